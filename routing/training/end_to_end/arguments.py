"""Arguments of `train.py --objective gumbel` and the other objectives that train end to end."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from data_models.path_notation import EXAMPLE, parse_path
from routing.common.cli import below, checkpoint_problems, not_positive, option, outside
from routing.common.devices import DTYPES
from routing.common.placing import no_map
from routing.common.sharding import FSDP, is_on
from routing.models.default_model import DEFAULT_MODEL
from routing.models.problems import adapter_problems, model_problems
from routing.models.wheel_models import ANY_BASE
from routing.objectives.table import END_TO_END, Objective
from routing.tasks.corpora import LAYOUTS, corpus_problems
from routing.training.run_arguments import RunArguments
from train_models.router_kinds import KINDS, LEARNED, TOKEN_ROUTERS

AUTO = -1.0  # a number that the objective chooses


@dataclass
class EndToEndArguments(RunArguments):
    """Train a router, LoRA or both end to end on text and write a checkpoint. Run it again with --resume to
    continue. (`train.py --help` without --objective shows the arguments of training on labels.)"""

    model_id: str = option(DEFAULT_MODEL, f"base model: {ANY_BASE}")
    objective: str = option("gumbel", "training objective", tuple(END_TO_END))
    adapters: str = option(
        "", "folder of a checkpoint of --model_id with adapters, which stand in for skipped layers; default none"
    )
    router: str = option("auto", "kind of router; auto: the first one of the objective", ("auto", *tuple(KINDS)[1:]))
    trainable: str = option("lora", "lora: LoRA (PEFT) and the router; router: the router alone", ("lora", "router"))
    corpus: str = option(
        "wikipedia", "wikipedia (offline), wikitext (WikiText-103 from the hub), a .txt or .jsonl file"
    )
    layout: str = option("packed", "packed: passages one behind the other; padded: one a row", LAYOUTS)
    sequence_length: int = option(512, "tokens a row")
    prompt_tokens: int = option(
        64, "first tokens of each row that are not predicted, and by which routers of rows decide; 0: none and all"
    )
    train_passages: int = option(10_000, "passages of the train part, at most")
    validation_passages: int = option(1_000, "passages of the validation part, at most")
    kept_layers: int = option(4, "K, first layers that always run")
    sink_tokens: int = option(0, "first tokens of each row that run every layer (prefix_token, random_token)")
    router_sizes: str = option("", "comma-separated widths of the router's hidden layers; default as published")
    router_bias_init: float | None = option(
        None, "start of the router's last biases, above 0 to start by running; default -1.5 for prefix_token, else 0"
    )
    lora_rank: int = option(16, "rank r of LoRA")
    lora_alpha: float = option(32.0, "alpha of LoRA, which is scaled by alpha / r")
    lora_dropout: float = option(0.05, "dropout in front of LoRA")
    lora_targets: str = option("q_proj,k_proj,v_proj,o_proj", "comma-separated names of the linear maps with LoRA")
    ce_weight: float = option(
        AUTO, "alpha of alpha CE + (1 - alpha) KD, 0 to 1; -1: as published, 0.5 for gumbel and 1 (no teacher) else"
    )
    kd_temperature: float = option(2.0, "T of the distillation from the base at full depth")
    layer_penalty: float = option(AUTO, "lambda, cost of each layer that runs; -1: 0.05 for reinforce, else 0")
    target_skip: float = option(0.4, "share of routable layers to skip, 0 to 1 (gumbel, static)")
    path: str = option(
        "",
        f"layers that run for every input, in place of --target_skip: {EXAMPLE}; in order, each at most twice (static)",
    )
    target_warmup_steps: int = option(0, "updates over which the target rises from 0 (gumbel)")
    target_weight: float = option(10.0, "gamma of (skip - target)^2 (gumbel)")
    entropy_weight: float = option(0.1, "beta of the entropy of mean gates (gumbel)")
    calibrate_threshold: bool = option(
        False, "after training, set the threshold so that the target holds on training text (gumbel, reinforce)"
    )
    noise_steps: int = option(-1, "updates with noise in the gates, none afterwards; -1: noise in all (gumbel)")
    temperature: float = option(1.0, "tau of the first epoch (gumbel)")
    temperature_decay: float = option(0.95, "factor of tau an epoch")
    temperature_floor: float = option(0.5, "smallest tau")
    drop_probability: float = option(0.5, "probability to drop a layer (stochastic_depth)")
    drop_schedule: str = option("uniform", "uniform, or linear: rising with depth", ("uniform", "linear"))
    residual_scaling: bool = option(False, "evaluate x + (1 - p)(F(x) - x) (stochastic_depth)")
    run_probability: float = option(0.6, "probability that a token runs a layer (random)")
    baseline: str = option(
        "moving_average", "what a cost is compared with (reinforce)", ("moving_average", "self_critical")
    )
    num_epochs: int = option(3, "epochs over the training rows")
    max_steps: int = option(-1, "updates to train for, whatever the epochs; -1: all epochs")
    learning_rate: float = option(3e-5, "peak learning rate of AdamW, cosine decay")
    router_learning_rate: float | None = option(None, "that of the router; default the same")
    weight_decay: float = option(0.01, "weight decay of AdamW")
    max_grad_norm: float = option(1.0, "gradients are clipped at this norm")
    warmup_steps: int = option(0, "updates of linear warm-up")
    batch_size: int = option(4, "rows a step and device")
    gradient_accumulation: int = option(4, "steps whose gradients are averaged before an update")
    num_evaluations: int = option(10, "validations, spread evenly over training")
    load_in_4bit: bool = option(False, "load the base in 4 bits (needs bitsandbytes) and train LoRA on it")
    save_base: str = option(
        "copy",
        "copy: a checkpoint with the weights, LoRA merged; reference: router and name of a frozen base",
        ("copy", "reference"),
    )
    dtype: str = option("float32", "dtype of the base in training", tuple(DTYPES))
    device: str = option("auto", "auto or cpu; auto: a GPU if there is one")

    other_processes = True  # A run goes on with another number of them, where its updates stay the same.

    def __post_init__(self):
        plan = END_TO_END.get(self.objective)
        if plan is None:
            return
        if self.router == "auto":
            self.router = plan.routers[0]
        if self.ce_weight == AUTO:
            self.ce_weight = plan.ce_weight
        if self.layer_penalty == AUTO:
            self.layer_penalty = plan.layer_penalty
        if self.router_bias_init is None:
            self.router_bias_init = -1.5 if self.router == "prefix_token" else 0.0
        if self.router_learning_rate is None:
            self.router_learning_rate = self.learning_rate

    @property
    def takes_fsdp(self) -> bool:
        """Whether all processes run the same parts of all layers in each step of training."""
        return self.objective in ("gumbel", "dense", "static")

    @property
    def plan(self) -> Objective:
        return END_TO_END[self.objective]

    def sizes(self) -> list[int] | None:
        return [int(size) for size in self.router_sizes.split(",")] if self.router_sizes else None

    def model_fields(self, depth: int) -> dict:
        """Config fields of the routed model."""
        own = {
            "router": self.router,
            "kept_layers": self.kept_layers,
            "sink_tokens": self.sink_tokens,
            "router_sizes": self.sizes(),
            "router_bias_init": self.router_bias_init,
        }
        return own | self.plan.fields(self, depth)

    def problems(self) -> list[str]:
        found = self.run_problems()
        if self.router not in self.plan.routers:
            found.append(f"--router {self.router}: --objective {self.objective} takes {', '.join(self.plan.routers)}")
        if self.path and self.objective != "static":
            found.append(f"--path {self.path}: --objective {self.objective} has no fixed path; give --objective static")
        elif self.path:
            try:
                parse_path(self.path)
            except ValueError as error:
                found.append(f"--path: {error}")
        if self.trainable == "router" and self.plan.trains_base:
            found.append(
                f"--trainable router: --objective {self.objective} has no router to train; leave it out to train LoRA"
            )
        if self.trainable == "lora" and self.save_base == "reference":
            found.append("--save_base reference: LoRA is merged into the weights; use copy, or --trainable router")
        if self.load_in_4bit and is_on(FSDP):
            found.append("--load_in_4bit: a base of 4 bits is not shared out; launch without FSDP, or leave it out")
        if self.load_in_4bit:
            found += no_map(self, "--load_in_4bit puts the base on one device; leave one of them out")
        if self.load_in_4bit and importlib.util.find_spec("bitsandbytes") is None:
            found.append("--load_in_4bit: bitsandbytes is not installed; pip install -r requirements-gpu.txt")
        try:
            if min(self.sizes() or [1]) < 1:
                raise ValueError
        except ValueError:
            found.append(f"--router_sizes {self.router_sizes!r} must be whole numbers of at least 1, such as 288,144")
        found += below(
            self, sequence_length=2, train_passages=1, validation_passages=1, kept_layers=1, lora_rank=1, num_epochs=1,
            batch_size=1, gradient_accumulation=1, num_evaluations=1, prompt_tokens=0, warmup_steps=0, weight_decay=0,
            target_warmup_steps=0, sink_tokens=0, layer_penalty=0, target_weight=0, entropy_weight=0,
        )  # fmt: skip
        found += outside(
            self, ce_weight=(0, 1), target_skip=(0, 1), drop_probability=(0, 1), run_probability=(0, 1),
            lora_dropout=(0, 1), temperature_decay=(0, 1),
        )  # fmt: skip
        found += not_positive(
            self, "learning_rate", "router_learning_rate", "kd_temperature", "lora_alpha", "temperature",
            "temperature_floor", "max_grad_norm",
        )  # fmt: skip
        if self.prompt_tokens >= self.sequence_length - 1:
            found.append(
                f"--prompt_tokens {self.prompt_tokens} leaves nothing to predict in rows of --sequence_length "
                f"{self.sequence_length}"
            )
        if self.sink_tokens and self.router not in TOKEN_ROUTERS:
            found.append(
                f"--sink_tokens {self.sink_tokens}: router {self.router} has no routes of tokens; leave it out"
            )
        if self.calibrate_threshold and self.router not in LEARNED:
            found.append(f"--calibrate_threshold: router {self.router} has no threshold; leave it out")
        if self.noise_steps < -1:
            found.append(f"--noise_steps {self.noise_steps} must be at least 0, or -1")
        if self.max_steps != -1 and self.max_steps < 1:
            found.append(f"--max_steps {self.max_steps} must be at least 1, or -1")
        if self.device not in ("auto", "cpu") and not any(text.startswith("--device") for text in found):
            found.append(f"--device {self.device!r}: give auto or cpu, and choose a GPU with CUDA_VISIBLE_DEVICES")
        return found

    def outside_problems(self) -> list[str]:
        found = model_problems(self.model_id) + checkpoint_problems(self.output_dir, self.run_name)
        found += adapter_problems(self.adapters, self.model_id)
        return found + corpus_problems("corpus", self.corpus)
