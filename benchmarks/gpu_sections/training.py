"""Router training on cached features against the base in every step, and the pass that makes 4,000 features; 3B, bf16.

The same losses first: no ratio where they differ. `seconds_for_25_epochs` is what a training of 25 epochs takes either
way, from the measured epochs (the pass included).
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from random import Random

import torch
from stop_training import Stop
from transformers import set_seed

from gpu_sections.job import Job
from gpu_sections.models import RandomModels
from routing.training.features import (
    SHARD_SIZE,
    CachedFeatures,
    LiveExamples,
    RouterExample,
    cache_features,
    feature_bytes,
    live_collator,
    read_batch,
    router_inputs,
)
from routing.training.routers.arguments import TrainArguments
from routing.training.routers.trainer import train_routers

LONGEST, SHORTEST = 220, 60  # tokens of a prompt, as those of ARC and DART-Math with a chat template


def make_examples(depth: int, vocabulary: int, count: int) -> list[RouterExample]:
    rng = Random(0)
    shares = (0.08, 0.9, 0.02)
    return [
        RouterExample(
            tuple(rng.randrange(1, vocabulary) for _ in range(rng.randint(SHORTEST, LONGEST))),
            tuple(rng.choices((0, 1, 2), shares, k=depth)),
        )
        for _ in range(count)
    ]


class Run:
    """Losses by step and name, and seconds of an epoch."""

    def __init__(self, job: Job, models: RandomModels, way: str, examples, epochs: int, folder: Path):
        arguments = TrainArguments(run_name="gpu", num_epochs=25, features=way, device=str(job.device))
        set_seed(0)
        models.routed.model.init_routers()
        cut = len(examples) * 7 // 8
        start = time.perf_counter()
        if way == "cached":
            (folder / "features").mkdir()
            cache_features(folder / "features", models.routed, examples, 0, 64, "gpu", show=False)
            sets = [CachedFeatures(folder / "features", list(part)) for part in (range(cut), range(cut, len(examples)))]
            collator = read_batch
        else:
            sets, collator = (
                [LiveExamples(part, range(len(part))) for part in (examples[:cut], examples[cut:])],
                live_collator(models.routed, 0),
            )
        ready = time.perf_counter()
        trainer = train_routers(
            arguments, models.routed.model.routers, torch.ones(3), *sets, collator,
            lambda: {"executed_accuracy": 0.0, "executed_examples": 1}, folder / way, callbacks=[Stop(epochs)],
        )  # fmt: skip
        job.synchronize()
        self.pass_seconds, self.epoch_seconds = ready - start, (time.perf_counter() - ready) / epochs
        log = trainer.state.log_history
        self.losses = {(e["step"], name): e[name] for e in log for name in ("loss", "eval_loss") if name in e}


def run(job: Job) -> None:
    dtype, shape = (torch.float32, "tiny") if job.smoke else (torch.bfloat16, "3B")
    few, many, epochs = (16, 16, 1) if job.smoke else (256, 4000, 2)
    models = RandomModels(shape, dtype, job.device, num_windows=8)
    routed, config = models.routed, models.routed.config
    size = feature_bytes(config.num_hidden_layers, config.num_windows, config.hidden_size, torch.float32)
    examples = make_examples(config.num_hidden_layers, config.vocab_size, many)
    router_inputs(routed, examples[:4], 0)  # Warm.
    with tempfile.TemporaryDirectory() as place:
        cached = Run(job, models, "cached", examples[:few], epochs, Path(place))
        live = Run(job, models, "live", examples[:few], epochs, Path(place))
        # In bf16 a pass of other batches gives other last digits of the states that routers read.
        tolerance = 1e-4 if dtype == torch.float32 else 2e-2
        worst = max(abs(cached.losses[key] - live.losses[key]) for key in cached.losses.keys() & live.losses.keys())
        job.check("losses of cached and live training", worst, tolerance)
        both = (cached.pass_seconds + 25 * cached.epoch_seconds, 25 * live.epoch_seconds)
        job.row(
            shape=shape, examples=few, epochs=epochs, pass_seconds=cached.pass_seconds,
            cached_epoch_seconds=cached.epoch_seconds, live_epoch_seconds=live.epoch_seconds,
            seconds_for_25_epochs=both[0], live_seconds_for_25_epochs=both[1], ratio=both[1] / both[0],
        )  # fmt: skip
    # The pass alone, as long as there is time and room: shard by shard, as training does it.
    with tempfile.TemporaryDirectory() as place:
        job.peak_mib()
        start, done = time.perf_counter(), 0
        for first in range(0, many, 8 * SHARD_SIZE):
            if job.seconds_left() < 6 and done:
                break
            part = examples[first : first + 8 * SHARD_SIZE]
            folder = Path(place) / str(first)
            folder.mkdir()
            cache_features(folder, routed, part, 0, 64, "gpu", show=False)
            done += len(part)
        seconds = time.perf_counter() - start
    if done < many:
        job.left_out(f"features of {many - done} of {many} examples: no time")
    tokens = sum(len(example.prompt_ids) for example in examples[:done])
    job.row(
        shape=shape, features_of=done, seconds=seconds, examples_per_second=done / seconds,
        tokens_per_second=tokens / seconds, gib_on_disk=size * done / 2**30, peak_mib=job.peak_mib(),
    )  # fmt: skip
