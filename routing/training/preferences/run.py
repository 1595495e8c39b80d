"""One run of training a query router: queries and pairs, embeddings, training, checkpoint. The base never runs."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import set_seed

from routing.common.cli import as_dict
from routing.common.devices import is_first_process, pick_device
from routing.common.errors import UserError
from routing.common.locks import only_run
from routing.common.run_info import git_commit, hardware, today, versions
from routing.labels.reading import label_hashes, read_header
from routing.models.checkpoint import adapter_fields, adapter_weights, save_checkpoint
from routing.models.families import load_base_config, load_tokenizer, locate_model, routed_class
from routing.models.query_encoder import encoder_fields, load_encoder
from routing.scoring.prompting import common_prompting, recorded
from routing.training.preferences.arguments import PreferenceArguments
from routing.training.preferences.data import load_queries, split_sets
from routing.training.preferences.embeddings import cached_embeddings
from routing.training.preferences.training import PreferenceLearner, alarms, train_preferences
from routing.training.run_folder import prepare_folder
from train_models.query_router import QueryRouter

PAIRS, EMBEDDINGS = "pairs.jsonl", "embeddings.safetensors"


def model_fields(arguments: PreferenceArguments) -> dict:
    """Config fields of the routed model."""
    fields = {
        "router": "query",
        "router_hidden_size": arguments.router_hidden_size,
        "query_encoder": encoder_fields(arguments.encoder),
        "query_max_tokens": arguments.query_max_tokens,
    }
    return fields | adapter_fields(arguments.adapters)


def make_router(arguments: PreferenceArguments, fields: dict, tokenizer) -> QueryRouter:
    """A router with fresh heads and the encoder's weights, in a model whose own weights are not loaded."""
    routed = routed_class(load_base_config(arguments.model_id).model_type)
    config = routed.config_class.from_pretrained(locate_model(arguments.model_id), **fields)
    with torch.device("meta"):
        shell = routed(config)
    shell.model.routers = QueryRouter(config)
    load_encoder(shell, arguments.encoder, tokenizer)
    shell.model.init_routers()
    return shell.model.routers


def run(arguments: PreferenceArguments) -> Path | None:
    """Train and write the checkpoint folder."""
    config, tokenizer = load_base_config(arguments.model_id), load_tokenizer(arguments.model_id)
    depth = config.num_hidden_layers
    work = Path(arguments.work_dir) / arguments.run_name
    device = pick_device(arguments.device)
    processes = PartialState(cpu=device.type == "cpu")
    with only_run(work, together=True):
        if processes.is_main_process:
            prepare_folder(arguments, work, work / "trainer", label_hashes(arguments.data_folders()))
        processes.wait_for_everyone()
        queries = load_queries(arguments, config, tokenizer, work / PAIRS)
        processes.wait_for_everyone()
        sets, held_out, pairs = split_sets(arguments, queries, work / PAIRS, depth)
        fields = model_fields(arguments)
        set_seed(arguments.seed)
        router = make_router(arguments, fields, tokenizer).to(device).eval()
        embeddings = None
        if not arguments.train_encoder:
            router.encoder.requires_grad_(False)
            with processes.main_process_first():
                embeddings = cached_embeddings(work / EMBEDDINGS, router, queries.texts, is_first_process())
        learner = PreferenceLearner(router, queries.texts, embeddings, arguments)
        if processes.is_main_process:
            trained = sum(parameter.numel() for parameter in learner.parameters())
            print(f"{arguments.objective}, query router: {trained:,} trainable parameters", file=sys.stderr)
        trainer = train_preferences(learner, sets, held_out, pairs, work / "trainer", processes.num_processes)
        kept = trainer.state.best_global_step
        log = trainer.state.log_history
        if kept is None:
            raise UserError("no evaluation had a finite loss; give a lower --learning_rate, and leave --resume out.")
        warnings = next(alarms(entry) for entry in log if entry["step"] == kept and "eval_loss" in entry)
        for text in warnings if processes.is_main_process else ():
            print(f"ALARM: {text}", file=sys.stderr)
        learned = "pairs" if arguments.plan.from_pairs else "best_sets"
        summary = {
            "arguments": as_dict(arguments),
            "num_processes": processes.num_processes,
            "prompting": recorded(common_prompting([read_header(one) for one in arguments.data_folders()])),
            "datasets": queries.datasets,
            "train_examples": queries.held_out.count(False),
            "held_out_examples": queries.held_out.count(True),
            f"train_{learned}": len(sets),
            f"held_out_{learned}": len(held_out),
            "kept_step": kept,
            "warnings": warnings,
            "log": log,
            "versions": versions(),
            "git_commit": git_commit(),
            "hardware": hardware(),
            "date": today(),
        }
        parts = {name: tensor.detach().cpu() for name, tensor in router.state_dict().items()}
        del learner, trainer
        gc.collect()
        processes.destroy_process_group()
        if is_first_process():
            if arguments.adapters:
                parts |= adapter_weights(Path(arguments.adapters))
            folder = Path(arguments.output_dir) / arguments.run_name
            encoder = arguments.encoder
            save_checkpoint(folder, arguments.model_id, parts, fields, arguments.save_base, summary, encoder=encoder)
            print(f"checkpoint: {folder}", file=sys.stderr)
            return folder
