"""Arguments of train.py for Dr.LLM's routers, on labelled paths."""

from __future__ import annotations

from dataclasses import dataclass

from routing.common.cli import below, option, outside
from routing.common.devices import DTYPES
from routing.models.default_model import DEFAULT_MODEL
from routing.objectives.table import END_TO_END, PREFERENCE
from routing.training.label_run_arguments import LabelRunArguments


@dataclass
class TrainArguments(LabelRunArguments):
    """Train routers on the frozen base and write a checkpoint. Run it again with --resume to continue."""

    model_id: str = option(DEFAULT_MODEL, "base model that the labels were made with")
    data: str = option("data/mcts_paths", "comma-separated folders of labels from data_generation.py")
    adapters: str = option(
        "", "folder of a checkpoint of --model_id with adapters, which stand in for skipped layers; default none"
    )
    objective: str = option(
        "supervised",
        f"training objective; {', '.join(END_TO_END)} train end to end on text, {', '.join(PREFERENCE)} on explored "
        "layer sets, value on what paths are worth, adapters trains adapters for skipped layers, lm a small hybrid "
        "language model from scratch; they have arguments of their own: train.py --objective gumbel --help",
        ("supervised", "value", "adapters", "lm", *END_TO_END, *PREFERENCE),
    )
    num_epochs: int = option(25, "epochs over the training examples")
    learning_rate: float = option(1e-3, "peak learning rate of AdamW, cosine decay")
    weight_decay: float = option(0.01, "weight decay of AdamW")
    warmup_steps: int = option(500, "steps of linear warm-up; at most a tenth of all steps are used")
    batch_size: int = option(16, "examples a step and device; N processes of accelerate launch take N times as many")
    gradient_accumulation: int = option(1, "steps whose gradients are averaged before an update")
    num_windows: int = option(8, "windows W of prompt tokens pooled for the routers")
    router_hidden_size: int = option(128, "width of each router's hidden layer")
    focal_gamma: float = option(2.0, "gamma of the focal loss")
    class_beta: float = option(0.999, "beta of the effective number of samples, 0 (no weights) to below 1")
    class_weighting: str = option(
        "effective",
        "class weights from the label counts: effective numbers, inverse frequency, or none",
        ("effective", "inverse", "none"),
    )
    with_squad: bool = option(False, "use labels of squadv2 too")
    with_commonsense: bool = option(False, "use labels of commonsense_qa too")
    eval_fraction: float = option(0.1, "share of examples held out, by question hash, above 0 to below 1")
    num_evaluations: int = option(5, "held-out evaluations, spread evenly over training")
    eval_examples: int = option(64, "held-out examples whose answers are executed in each evaluation, at most")
    features: str = option(
        "cached", "cached: pool all router inputs once; live: run the base in every step", ("cached", "live")
    )
    features_dtype: str = option(
        "float32",
        "dtype of cached router inputs on disk; float32 is exact, the others take half the bytes and change losses",
        tuple(DTYPES),
    )
    save_base: str = option(
        "copy",
        "copy: a checkpoint with the base weights; reference: routers and the base's name",
        ("copy", "reference"),
    )
    dtype: str = option("float32", "dtype of the base while features are made and answers executed", tuple(DTYPES))

    def problems(self) -> list[str]:
        found = self.label_run_problems()
        found += below(self, num_epochs=1, batch_size=1, gradient_accumulation=1, num_windows=1, warmup_steps=0)
        found += below(self, router_hidden_size=1, weight_decay=0, focal_gamma=0, num_evaluations=1, eval_examples=1)
        found += outside(self, class_beta=(0, 1))
        if self.class_beta == 1:
            found.append("--class_beta 1.0 gives no weights; it must be below 1")
        return found
