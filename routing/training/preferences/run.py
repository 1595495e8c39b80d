"""One run of training a query router: queries and pairs, embeddings, training, checkpoint. The base never runs."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import set_seed

from routing.common.devices import is_first_process
from routing.common.errors import UserError
from routing.labels.reading import label_hashes, read_header
from routing.models.base_files import locate_model
from routing.models.checkpoint import adapter_weights, save_checkpoint
from routing.models.checkpoint_files import adapter_fields
from routing.models.families import load_base_config, load_tokenizer, routed_class
from routing.models.query_encoder import encoder_fields, load_encoder
from routing.scoring.prompting import common_prompting, recorded
from routing.training.preferences.arguments import PreferenceArguments
from routing.training.preferences.data import load_queries, split_sets
from routing.training.preferences.embeddings import cached_embeddings
from routing.training.preferences.training import PreferenceLearner, alarms, train_preferences
from routing.training.skeleton import Run, Save, training_run
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
    base = load_base_config(arguments.model_id)
    routed = routed_class(base.model_type)
    where = {} if base._commit_hash is None else {"revision": base._commit_hash}
    config = routed.config_class.from_pretrained(locate_model(arguments.model_id), **where, **fields)
    with torch.device("meta"):
        shell = routed(config)
    shell.model.routers = QueryRouter(config)
    load_encoder(shell, arguments.encoder, tokenizer)
    shell.model.init_routers()
    return shell.model.routers


def run(arguments: PreferenceArguments) -> Path | None:
    """Train and write the checkpoint folder."""
    config, tokenizer = load_base_config(arguments.model_id), load_tokenizer(arguments.model_id)

    def made_from() -> dict:
        return label_hashes(arguments.data_folders())

    return training_run(arguments, made_from, lambda own: train(own, config, tokenizer))


def train(run: Run, config, tokenizer) -> Save:
    arguments = run.arguments
    queries = load_queries(arguments, config, tokenizer, run.work / PAIRS)
    run.processes.wait_for_everyone()
    sets, held_out, pairs = split_sets(arguments, queries, run.work / PAIRS, config.num_hidden_layers)
    fields = model_fields(arguments)
    set_seed(arguments.seed)
    router = make_router(arguments, fields, tokenizer).to(run.device).eval()
    embeddings = None
    if not arguments.train_encoder:
        router.encoder.requires_grad_(False)
        with run.processes.main_process_first():
            embeddings = cached_embeddings(run.work / EMBEDDINGS, router, queries.texts, is_first_process())
    learner = PreferenceLearner(router, queries.texts, embeddings, arguments)
    trained = sum(parameter.numel() for parameter in learner.parameters())
    run.say(f"{arguments.objective}, query router: {trained:,} trainable parameters")
    trainer = train_preferences(learner, sets, held_out, pairs, run.states, run.processes.num_processes)
    kept = trainer.state.best_global_step
    log = trainer.state.log_history
    if kept is None:
        raise UserError("no evaluation had a finite loss; give a lower --learning_rate, and leave --resume out.")
    warnings = next(alarms(entry) for entry in log if entry["step"] == kept and "eval_loss" in entry)
    for text in warnings:
        run.say(f"ALARM: {text}")
    learned = "pairs" if arguments.plan.from_pairs else "best_sets"
    summary = run.summary(
        prompting=recorded(common_prompting([read_header(one) for one in arguments.data_folders()])),
        datasets=queries.datasets,
        train_examples=queries.held_out.count(False),
        held_out_examples=queries.held_out.count(True),
        **{f"train_{learned}": len(sets), f"held_out_{learned}": len(held_out)},
        kept_step=kept,
        warnings=warnings,
        log=log,
    )
    parts = {name: tensor.detach().cpu() for name, tensor in router.state_dict().items()}

    def save(folder: Path) -> None:
        own = parts | (adapter_weights(Path(arguments.adapters)) if arguments.adapters else {})
        kinds = arguments.save_base, summary
        save_checkpoint(folder, arguments.model_id, own, fields, *kinds, encoder=arguments.encoder)

    return save
