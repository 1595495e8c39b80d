"""Arguments of `train.py --objective orpo` and the other objectives that learn from explored layer sets."""

from __future__ import annotations

from dataclasses import dataclass

from routing.common.cli import below, not_positive, option
from routing.common.placing import no_map
from routing.models.default_model import DEFAULT_MODEL
from routing.models.query_encoder import DEFAULT_ENCODER, encoder_problems
from routing.objectives.table import PREFERENCE, TOP_K, Preference
from routing.training.label_run_arguments import LabelRunArguments
from routing.training.preferences.pairs import PAIRS


@dataclass
class PreferenceArguments(LabelRunArguments):
    """Train a query router on explored layer sets and write a checkpoint. Run it again with --resume to continue.
    (`train.py --help` without --objective shows the arguments of training on labels.)"""

    model_id: str = option(DEFAULT_MODEL, "base model that the layer sets were explored with")
    data: str = option("data/explored", "comma-separated folders of data_generation.py --search dfs or random")
    objective: str = option("orpo", "training objective", tuple(PREFERENCE))
    router: str = option("query", "kind of router", ("query",))
    adapters: str = option(
        "", "folder of a checkpoint of --model_id with trained adapters, which stand in for pruned layers; default none"
    )
    encoder: str = option(DEFAULT_ENCODER, "sentence encoder of type bert: hub id, local folder, or the default")
    train_encoder: bool = option(False, "train the encoder too; default: the heads alone, on stored embeddings")
    query_max_tokens: int = option(256, "tokens of a query that the encoder reads, from its end")
    router_hidden_size: int = option(128, "width of each head's hidden layer")
    top_k: str = option(
        "conditional",
        "probability of a layer set given its size: conditional (exact), sinkhorn or gumbel (marginals of a "
        "differentiable top-k)",
        TOP_K,
    )
    top_k_temperature: float = option(1.0, "temperature of the marginals, above 0 (sinkhorn, gumbel)")
    top_k_iterations: int = option(40, "halvings of the interval in which their sum is made right (sinkhorn, gumbel)")
    gumbel_samples: int = option(16, "draws of noise in each step (gumbel)")
    pairs: str = option("random", "pairs of an example's layer sets: some drawn at random, or all", PAIRS)
    pairs_per_example: int = option(64, "random pairs of each example, at most")
    beta: float = option(0.1, "beta of dpo, above 0")
    orpo_weight: float = option(0.1, "weight of fbc in orpo")
    num_epochs: int = option(10, "epochs over the training pairs, or for fbc over the best layer sets")
    batch_size: int = option(128, "pairs, or best layer sets, a step and device")
    learning_rate: float = option(1e-3, "peak learning rate of AdamW for the heads, cosine decay")
    encoder_learning_rate: float = option(2e-5, "that of the encoder (--train_encoder)")
    weight_decay: float = option(0.01, "weight decay of AdamW")
    max_grad_norm: float = option(1.0, "gradients are clipped at this norm")
    warmup_steps: int = option(0, "steps of linear warm-up")
    eval_fraction: float = option(0.1, "share of examples held out, by question hash, above 0 to below 1")
    num_evaluations: int = option(10, "held-out evaluations, spread evenly over training")
    eval_pairs: int = option(20_000, "held-out pairs of each evaluation, at most")
    save_base: str = option(
        "copy",
        "copy: a checkpoint with the base weights; reference: router, adapters and the base's name",
        ("copy", "reference"),
    )

    @property
    def plan(self) -> Preference:
        return PREFERENCE[self.objective]

    def problems(self) -> list[str]:
        found = self.label_run_problems()
        found += no_map(self, f"--objective {self.objective} learns from labels alone, without the base; leave it out")
        found += below(
            self, query_max_tokens=1, router_hidden_size=1, top_k_iterations=1, gumbel_samples=1, pairs_per_example=1,
            num_epochs=1, batch_size=1, num_evaluations=1, eval_pairs=1, orpo_weight=0, weight_decay=0, warmup_steps=0,
        )  # fmt: skip
        return found + not_positive(self, "top_k_temperature", "beta", "encoder_learning_rate", "max_grad_norm")

    def outside_problems(self) -> list[str]:
        return super().outside_problems() + encoder_problems(self.encoder, self.query_max_tokens)
