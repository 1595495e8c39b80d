"""One run of training routers of layers on labelled paths, and its checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from routing.common.devices import DTYPES, is_first_process
from routing.labels.reading import label_hashes, read_header
from routing.models.bases import load_base, weight_stamps
from routing.models.checkpoint import load_adapters, save_checkpoint
from routing.models.checkpoint_files import adapter_fields, adapter_hashes
from routing.models.families import load_base_config, load_tokenizer
from routing.objectives.supervised import CLASSES, class_counts, class_weights
from routing.scoring.prompting import common_prompting, recorded
from routing.scoring.router_inputs import StoredInputs
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
from routing.training.skeleton import Run, Save, training_run
from train_models.routed_model import small_parts

TOGETHER = 4096  # labels that are counted at a time


def make_sets(arguments: TrainArguments, model, data: TrainingData, pad_id: int, work: Path):
    """Training set, held-out set and collator, cached or live."""
    train, held_out = data.train_indices, data.held_out_indices
    if arguments.features == "live":
        sets = [LiveExamples(data.examples, part) for part in (train, held_out)]
        return *sets, live_collator(model, pad_id)
    key = fingerprint(
        data.examples,
        model=arguments.model_id,
        weights=weight_stamps(arguments.model_id),
        num_windows=arguments.num_windows,
        dtype=arguments.dtype,
        features_dtype=arguments.features_dtype,
        adapters=adapter_hashes(arguments.adapters),
    )
    folder = work / "features"
    folder.mkdir(parents=True, exist_ok=True)
    stored = DTYPES[arguments.features_dtype]
    made_with = arguments.model_id, arguments.num_windows, arguments.dtype, arguments.adapters
    stores = [StoredInputs(labels, *made_with) for labels in arguments.data_folders()]
    shown = is_first_process()
    cache_features(folder, model, data.examples, pad_id, arguments.batch_size, key, stored, shown, stores=stores)
    return CachedFeatures(folder, train), CachedFeatures(folder, held_out), read_batch


def label_counts(data: TrainingData) -> torch.LongTensor:
    """How often each class occurs in the training labels, [3]."""
    indices = data.train_indices
    parts = (indices[start : start + TOGETHER] for start in range(0, len(indices), TOGETHER))
    return sum(class_counts(data.examples.routes(part)) for part in parts)


def run(arguments: TrainArguments) -> Path | None:
    """Train and write the checkpoint folder."""
    config = load_base_config(arguments.model_id)
    tokenizer = load_tokenizer(arguments.model_id)
    data = load_training_data(arguments, config, tokenizer)

    def made_from() -> dict:
        return label_hashes(arguments.data_folders())

    return training_run(arguments, made_from, lambda own: train(own, config, tokenizer, data))


def train(run: Run, config, tokenizer, data: TrainingData) -> Save:
    arguments = run.arguments
    fields = {"num_windows": arguments.num_windows, "router_hidden_size": arguments.router_hidden_size}
    fields |= adapter_fields(arguments.adapters)
    model = load_base(arguments.model_id, DTYPES[arguments.dtype], config._commit_hash, run.placement, **fields)
    load_adapters(model, arguments.adapters)
    model.requires_grad_(False)
    model.model.init_routers()

    counts = label_counts(data)
    weights = class_weights(counts, arguments.class_weighting, arguments.class_beta)
    run.say(
        f"{len(data.train_indices)} training and {len(data.held_out_indices)} held-out examples; labels and "
        "class weights: "
        + ", ".join(f"{n} {c} ({w:.3f})" for n, c, w in zip(CLASSES, counts.tolist(), weights.tolist()))
    )
    train_set, eval_set, collator = make_sets(arguments, model, data, tokenizer.pad_token_id, run.work)
    execute = executor(model, tokenizer, data.held_out_requests, arguments.batch_size)
    trainer = train_routers(arguments, model.model.routers, weights, train_set, eval_set, collator, execute, run.states)
    summary = run.summary(
        prompting=recorded(common_prompting([read_header(one) for one in arguments.data_folders()])),
        datasets=data.datasets,
        class_counts=dict(zip(CLASSES, counts.tolist())),
        class_weights=dict(zip(CLASSES, weights.tolist())),
        train_examples=len(data.train_indices),
        held_out_examples=len(data.held_out_indices),
        kept_step=trainer.state.best_global_step,
        log=trainer.state.log_history,
    )
    routers = {name: tensor.detach().cpu() for name, tensor in small_parts(model.model).items()}
    return lambda folder: save_checkpoint(folder, arguments.model_id, routers, fields, arguments.save_base, summary)
