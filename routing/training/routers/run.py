"""One run of training routers of layers on labelled paths, and its checkpoint."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import set_seed

from routing.common.cli import as_dict
from routing.common.devices import DTYPES, is_first_process, pick_device
from routing.common.locks import only_run
from routing.common.run_info import git_commit, hardware, versions
from routing.labels.reading import label_hashes, read_header
from routing.models.checkpoint import adapter_fields, adapter_hashes, load_adapters, save_checkpoint
from routing.models.families import load_base_config, load_tokenizer, locate_model, routed_class
from routing.objectives.supervised import CLASSES, class_counts, class_weights
from routing.scoring.prompting import common_prompting, recorded
from routing.training.features import (
    CachedFeatures,
    LiveExamples,
    cache_features,
    fingerprint,
    live_collator,
    read_batch,
)
from routing.training.routers.arguments import TrainArguments
from routing.training.routers.data import TrainingData, load_training_data
from routing.training.routers.trainer import executor, train_routers
from routing.training.run_folder import prepare_folder
from train_models.routed_model import small_parts


def make_sets(arguments: TrainArguments, model, data: TrainingData, pad_id: int, work: Path):
    """Training set, held-out set and collator, cached or live."""
    train, held_out = data.train_indices, data.held_out_indices
    if arguments.features == "live":
        sets = [LiveExamples([data.examples[i] for i in part]) for part in (train, held_out)]
        return *sets, live_collator(model, pad_id)
    place = Path(locate_model(arguments.model_id))
    weights = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(place.glob("*.safetensors"))]
    key = fingerprint(
        data.examples,
        model=arguments.model_id,
        revision=getattr(model.config, "_commit_hash", None),
        weights=weights,
        num_windows=arguments.num_windows,
        dtype=arguments.dtype,
        features_dtype=arguments.features_dtype,
        adapters=adapter_hashes(arguments.adapters),
    )
    folder = work / "features"
    folder.mkdir(parents=True, exist_ok=True)
    stored = DTYPES[arguments.features_dtype]
    cache_features(folder, model, data.examples, pad_id, arguments.batch_size, key, stored, is_first_process())
    return CachedFeatures(folder, train), CachedFeatures(folder, held_out), read_batch


def run(arguments: TrainArguments) -> Path | None:
    config = load_base_config(arguments.model_id)
    tokenizer = load_tokenizer(arguments.model_id)
    data = load_training_data(arguments, config, tokenizer)
    work = Path(arguments.work_dir) / arguments.run_name
    states = work / "trainer"
    device = pick_device(arguments.device)
    processes = PartialState(cpu=device.type == "cpu")
    with only_run(work, together=True):
        if processes.is_main_process:
            prepare_folder(arguments, work, states, label_hashes(arguments.data_folders()))
        processes.wait_for_everyone()
        set_seed(arguments.seed)
        routed = routed_class(config.model_type)
        fields = {"num_windows": arguments.num_windows, "router_hidden_size": arguments.router_hidden_size}
        fields |= adapter_fields(arguments.adapters)
        model = routed.from_pretrained(locate_model(arguments.model_id), dtype=DTYPES[arguments.dtype], **fields)
        load_adapters(model, arguments.adapters)
        model.to(device).eval()
        model.requires_grad_(False)
        model.model.init_routers()

        counts = class_counts(torch.tensor([data.examples[i].route for i in data.train_indices]))
        weights = class_weights(counts, arguments.class_weighting, arguments.class_beta)
        if processes.is_main_process:
            print(
                f"{len(data.train_indices)} training and {len(data.held_out_indices)} held-out examples; labels and "
                "class weights: "
                + ", ".join(f"{n} {c} ({w:.3f})" for n, c, w in zip(CLASSES, counts.tolist(), weights.tolist())),
                file=sys.stderr,
            )
        train_set, eval_set, collator = make_sets(arguments, model, data, tokenizer.pad_token_id, work)
        execute = executor(model, tokenizer, data.held_out_requests[: arguments.eval_examples], arguments.batch_size)
        trainer = train_routers(arguments, model.model.routers, weights, train_set, eval_set, collator, execute, states)
        summary = {
            "arguments": as_dict(arguments),
            "num_processes": processes.num_processes,
            "prompting": recorded(common_prompting([read_header(one) for one in arguments.data_folders()])),
            "datasets": data.datasets,
            "class_counts": dict(zip(CLASSES, counts.tolist())),
            "class_weights": dict(zip(CLASSES, weights.tolist())),
            "train_examples": len(data.train_indices),
            "held_out_examples": len(data.held_out_indices),
            "kept_step": trainer.state.best_global_step,
            "log": trainer.state.log_history,
            "versions": versions(),
            "git_commit": git_commit(),
            "hardware": hardware(),
        }
        routers = {name: tensor.detach().cpu() for name, tensor in small_parts(model.model).items()}
        # All that holds the base, which the checkpoint may load again, and the process group: it must be the last to
        # hold itself, or its end may wait for ever.
        del model, trainer, execute, collator
        gc.collect()
        processes.destroy_process_group()
        if is_first_process():
            folder = Path(arguments.output_dir) / arguments.run_name
            save_checkpoint(folder, arguments.model_id, routers, fields, arguments.save_base, summary)
            print(f"checkpoint: {folder}", file=sys.stderr)
            return folder
