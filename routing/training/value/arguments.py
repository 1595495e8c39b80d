"""Arguments of `train.py --objective value`."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from routing.common.cli import below, option
from routing.common.devices import DTYPES
from routing.models.default_model import DEFAULT_MODEL
from routing.training.label_run_arguments import LabelRunArguments

ROUTERS = ("menu", "per_layer")
ESTIMATORS = ("ridge", "mlp")
# What is taken where nothing is given, by router.
DEFAULTS = {
    "menu": {"cost": 0.01, "num_epochs": 30, "learning_rate": 3e-4, "weight_decay": 1.0},
    "per_layer": {"cost": 0.0, "num_epochs": 8, "learning_rate": 1e-3, "weight_decay": 0.01},
}


@dataclass
class ValueArguments(LabelRunArguments):
    """Train a router that estimates what paths are worth for a prompt, and write a checkpoint. --router menu learns
    from a dense table (data_generation.py --search menu), in seconds; --router per_layer from all tried paths of any
    search. Run it again to continue, per_layer with --resume. (`train.py --help` without --objective shows the
    arguments of training on labels.)"""

    model_id: str = option(DEFAULT_MODEL, "base model that the labels were made with")
    data: str = option("data/menu", "comma-separated folders of labels from data_generation.py")
    adapters: str = option(
        "", "folder of a checkpoint of --model_id with adapters, those of the labels, for skipped layers; default none"
    )
    objective: str = option("value", "training objective", ("value",))
    router: str = option(
        "menu",
        "menu: one decision for all layers, among the paths of the labels; per_layer: a decision at each layer",
        ROUTERS,
    )
    cost: float | None = option(
        None,
        "what a layer costs: for menu a share of right answers (default 0.01: a path with one layer less is taken "
        "if at most 1 in 100 answers fewer is expected to be right), for per_layer logits (default 0)",
    )
    estimator: str = option("ridge", "menu: linear, in closed form; or mlp, a small network", ESTIMATORS)
    reads: str = option(
        "auto",
        "menu: behind how many first layers states are read, with commas between; at most as many as all paths of the "
        "menu run once; auto: behind all of these",
    )
    caution: float = option(2.0, "menu: standard errors that a path must be better by than the full one, at least 0")
    folds: int = option(10, "menu: parts, by question hash, for cross-fitting, 2 or more")
    shuffle_questions: bool = option(
        False, "menu: a control that learns from the prompts of other questions than the rewards are of"
    )
    router_sizes: str = option("128", "menu, mlp: widths of hidden layers, with commas between")
    tried_per_question: int = option(8, "per_layer: tried paths of each question, drawn at random, at most")
    num_windows: int = option(8, "per_layer: windows W of prompt tokens pooled for the routers")
    router_hidden_size: int = option(128, "per_layer: width of each router's hidden layer")
    eval_fraction: float = option(0.1, "per_layer: share of questions held out, by question hash, above 0 to below 1")
    features_dtype: str = option(
        "float32",
        "per_layer: dtype of cached router inputs on disk; float32 is exact, the others take half the bytes (in "
        "float16 states of Gemma overflow)",
        tuple(DTYPES),
    )
    num_epochs: int | None = option(
        None, "mlp: epochs at most (default 30), of which cross-fitting chooses; per_layer: epochs (default 8)"
    )
    batch_size: int = option(64, "questions a step (mlp), or paths a step and device (per_layer)")
    learning_rate: float | None = option(
        None, "learning rate of AdamW (default 3e-4 for mlp, 1e-3 with cosine decay for per_layer)"
    )
    weight_decay: float | None = option(None, "weight decay of AdamW (default 1.0 for mlp, 0.01 for per_layer)")
    model_batch_size: int = option(16, "prompts that the base computes together")
    save_base: str = option(
        "copy",
        "copy: a checkpoint with the base weights; reference: routers, adapters and the base's name",
        ("copy", "reference"),
    )
    dtype: str = option("float32", "dtype of the base while prompts are read", tuple(DTYPES))

    def __post_init__(self):
        for name, value in DEFAULTS.get(self.router, {}).items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def problems(self) -> list[str]:
        found = self.label_run_problems()
        found += below(
            self, folds=2, tried_per_question=1, num_windows=1, router_hidden_size=1, num_epochs=1, batch_size=1,
            model_batch_size=1, weight_decay=0, caution=0,
        )  # fmt: skip
        if not math.isfinite(self.cost):
            found.append(f"--cost {self.cost} must be a number")
        for name, least in (("reads", 0), ("router_sizes", 1)):
            given = getattr(self, name)
            if not (name == "reads" and given == "auto") and not _numbers(given, least):
                found.append(f"--{name} {given!r} must be whole numbers from {least} on with commas between")
        if self.reads != "auto" and _numbers(self.reads, 0) and len(set(self.depths())) < len(self.depths()):
            found.append(f"--reads {self.reads} must name each number of layers once")
        if self.shuffle_questions and self.router != "menu":
            found.append(f"--shuffle_questions is for --router menu, and the router is {self.router}; leave it out")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and self.router == "menu":
            found.append("--router menu trains in one process, in seconds; start train.py without accelerate launch")
        return found

    def sizes(self) -> list[int]:
        """Widths of the network's hidden layers."""
        return [int(word) for word in self.router_sizes.split(",")]

    def depths(self) -> list[int] | None:
        """Depths that are read; None: to be found."""
        return None if self.reads == "auto" else [int(word) for word in self.reads.split(",")]


def _numbers(text: str, least: int) -> bool:
    return all(word.strip().isdigit() and int(word) >= least for word in text.split(","))
