"""Arguments of `train.py --objective lm`."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from routing.common.cli import below, checkpoint_problems, not_positive, option
from routing.common.errors import UserError
from routing.common.placing import no_map
from routing.models.default_model import DEFAULT_MODEL
from routing.models.problems import model_problems
from routing.models.wheel_models import ANY_BASE
from routing.tasks.corpora import LAYOUTS, corpus_problems
from routing.training.language_model.configurations import PATTERNS, SUFFIXES, field_problems, pattern_of, read_fields
from routing.training.run_arguments import RunArguments

AUTO = -1.0  # a number that the configuration chooses
RESULT = "result.json"  # in the folder of a run, written last: it says that the run is done


@dataclass
class LanguageModelArguments(RunArguments):
    """Train a small hybrid language model from scratch, whose blocks have linear attention (Gated DeltaNet), softmax
    attention, or choose between them for each token. Run it again with --resume to continue. (`train.py --help` without
    --objective shows the arguments of training on labels.)"""

    objective: str = option("lm", "training objective", ("lm",))
    config: str = option(
        "dynamic",
        f"{', '.join(PATTERNS)}, or a YAML file of config fields of the model, which win over the sizes below. static: "
        "three of four blocks linear, the last softmax; dynamic: linear, two routed, softmax; random: as dynamic, the "
        "choice drawn (control)",
    )
    model_id: str = option(DEFAULT_MODEL, f"model whose tokenizer is used: {ANY_BASE}")
    hidden_size: int = option(768, "width D of the model")
    num_layers: int = option(4, "blocks")
    num_heads: int = option(12, "heads of either mechanism")
    head_dim: int | None = option(None, "width of a head; default, and all that fits: hidden_size / num_heads")
    intermediate_size: int = option(3072, "width of the MLPs (SwiGLU)")
    match_parameters: bool = option(
        False, "choose the width of the MLPs so that the model has about as many parameters as the static one"
    )
    random_share: str = option(
        "0.5",
        "probability that a token takes softmax in a routed block, 0 to 1; or one for each, such as 0.3,0.6 (random)",
    )
    corpus: str = option(
        "wikipedia", "wikipedia (offline), wikitext (WikiText-103 from the hub), a .txt or .jsonl file"
    )
    layout: str = option("packed", "packed: passages one behind the other; padded: one a row", LAYOUTS)
    sequence_length: int = option(1024, "tokens a row")
    train_passages: int = option(1_000_000, "passages of the train part, at most")
    validation_passages: int = option(1_000, "passages of the validation part, which chooses the checkpoint, at most")
    test_passages: int = option(1_000, "passages of the test part, on which the chosen checkpoint is measured, at most")
    balance_weight: float = option(0.1, "weight of the balance loss; published 0.01 to 0.5; 0: none")
    temperature: float = option(1.0, "tau of the gates at the start")
    temperature_end: float = option(0.5, "tau at the end, reached in a line")
    num_epochs: int = option(1, "epochs over the training rows")
    max_steps: int = option(-1, "updates to train for, whatever the epochs; -1: all epochs")
    learning_rate: float = option(
        AUTO,
        "peak learning rate of AdamW, cosine decay; -1: as published, 2e-3 where a router learns, else 1e-3 (give one "
        "for runs that are compared)",
    )
    weight_decay: float = option(0.1, "weight decay of AdamW, of matrices alone")
    max_grad_norm: float = option(1.0, "gradients are clipped at this norm")
    warmup_steps: int = option(100, "updates of linear warm-up; at most a tenth of all updates are used")
    batch_size: int = option(8, "rows a step and device")
    gradient_accumulation: int = option(1, "steps whose gradients are averaged before an update")
    num_evaluations: int = option(10, "validations, spread evenly over training")
    bf16: bool = option(False, "compute in bfloat16 (autocast), weights in float32")
    device: str = option("auto", "auto or cpu; auto: a GPU if there is one")

    def __post_init__(self):
        if not isinstance(self.random_share, str) or "," not in self.random_share:
            with suppress(ValueError):  # `problems` tells of it.
                self.random_share = float(self.random_share)

    @property
    def prompt_tokens(self) -> int:
        """First tokens of a row that are not predicted: none."""
        return 0

    def shares(self) -> float | list[float]:
        """Probability of softmax in each routed block, or in all.

        Raises:
            ValueError: for what are no numbers.
        """
        given = self.random_share
        return given if isinstance(given, float) else [float(part) for part in given.split(",")]

    def named(self) -> bool:
        """Whether --config is a name, not a file."""
        return self.config in PATTERNS

    def model_fields(self) -> dict:
        """Config fields of the model, but for the tokenizer's.

        Raises:
            UserError: for a file that cannot be read.
        """
        sizes = {
            "hidden_size": self.hidden_size,
            "num_attention_heads": self.num_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate_size,
            "random_share": self.shares(),
            "random_seed": self.seed,
        }
        if self.named():
            kind = "random" if self.config == "random" else "learned"
            return sizes | {"pattern": pattern_of(self.config, self.num_layers), "router": kind}
        return sizes | {"pattern": pattern_of("dynamic", self.num_layers)} | read_fields(Path(self.config))

    def learns_to_route(self, fields: dict) -> bool:
        return "routed" in fields["pattern"] and fields.get("router") != "random"

    def peak_rate(self, fields: dict) -> float:
        """The learning rate, as published where none was given."""
        if self.learning_rate != AUTO:
            return self.learning_rate
        return 2e-3 if self.learns_to_route(fields) else 1e-3

    def problems(self) -> list[str]:
        found = self.run_problems()
        found += below(
            self, hidden_size=1, num_layers=1, num_heads=1, intermediate_size=1, sequence_length=2,
            train_passages=1, validation_passages=1, test_passages=1, num_epochs=1, batch_size=1,
            gradient_accumulation=1, num_evaluations=1, balance_weight=0, weight_decay=0, warmup_steps=0,
        )  # fmt: skip
        found += self._share_problems() + not_positive(self, "temperature", "temperature_end", "max_grad_norm")
        if self.learning_rate != AUTO and not 0 < self.learning_rate < math.inf:
            found.append(f"--learning_rate {self.learning_rate} must be a number above 0, or -1")
        if self.max_steps != -1 and self.max_steps < 1:
            found.append(f"--max_steps {self.max_steps} must be at least 1, or -1")
        if self.device not in ("auto", "cpu") and not any(text.startswith("--device") for text in found):
            found.append(f"--device {self.device!r}: give auto or cpu, and choose a GPU with CUDA_VISIBLE_DEVICES")
        found += no_map(self, "--objective lm trains a whole model from scratch, on one device a process; leave it out")
        if not self.named() and not self.config.endswith(SUFFIXES):
            found.append(f"--config {self.config!r}: give {', '.join(PATTERNS)}, or a file that ends in .yaml")
        return found

    def _share_problems(self) -> list[str]:
        try:
            shares = self.shares()
        except ValueError:
            shares = [math.nan]
        if all(0 <= share <= 1 for share in (shares if isinstance(shares, list) else [shares])):
            return []
        return [f"--random_share {self.random_share} must be a number from 0 to 1, or one for each routed block"]

    def outside_problems(self) -> list[str]:
        found = model_problems(self.model_id) + checkpoint_problems(self.output_dir, self.run_name)
        found += corpus_problems("corpus", self.corpus)
        # The config's class takes seconds to import, which no other problem has to wait for.
        if not found and not self.problems():
            try:
                found += field_problems(self.config, self.model_fields())
            except UserError as error:
                found.append(f"--config: {error}")
        return found
