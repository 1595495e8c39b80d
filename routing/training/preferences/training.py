"""Training a query router with transformers' Trainer, on embeddings of a frozen encoder or together with it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from routing.objectives.preference import PreferenceStep
from routing.objectives.set_probability import log_policy
from routing.training.preferences.arguments import PreferenceArguments
from routing.training.preferences.data import LayerSets, read_batch
from routing.training.preferences.embeddings import embed_queries
from routing.training.run_folder import WholeCheckpoints, last_whole_checkpoint
from routing.training.trainer_arguments import trainer_arguments
from train_models.query_router import QueryRouter, QueryScores, pruned_counts
from train_models.query_text import encoder_inputs

MEASURED_TOGETHER = 1024  # held-out layer sets or pairs


class PreferenceLearner(nn.Module):
    """What the Trainer trains: the heads of a router and, if asked for, its encoder.

    A frozen encoder is no part of it, so that a training state holds no copy.

    Args:
        router: trained in place.
        texts: of all queries.
        embeddings: of the texts by the frozen encoder, [Q, E]; None where the encoder is trained.
    """

    def __init__(
        self, router: QueryRouter, texts: list[str], embeddings: torch.Tensor | None, arguments: PreferenceArguments
    ):
        super().__init__()
        self._held = (router, texts)  # In a tuple, so that it is no submodule.
        self.arguments, self.heads = arguments, router.heads
        if embeddings is None:
            self.encoder = router.encoder
        self.register_buffer("embeddings", embeddings, persistent=False)

    def embed(self, queries: torch.LongTensor) -> torch.Tensor:
        """Embeddings [B, E] of queries [B], which each are read once."""
        if self.embeddings is not None:
            return self.embeddings[queries]
        router, texts = self._held
        own, places = queries.unique(return_inverse=True)
        chosen = [texts[query] for query in own.tolist()]
        return router.embed(*encoder_inputs(router.tokenizers[1], chosen, router.max_tokens))[places]

    def embed_all(self, queries: torch.LongTensor) -> torch.Tensor:
        """The same of many queries, without gradient."""
        if self.embeddings is not None:
            return self.embeddings[queries]
        router, texts = self._held
        return embed_queries(router, [texts[query] for query in queries.tolist()], show=False).to(queries.device)

    def log_policy(self, scores: QueryScores, mask: torch.BoolTensor) -> torch.Tensor:
        """log pi [B] by the arguments. Outside of training without noise: the marginals are those of no noise then."""
        arguments, method = self.arguments, self.arguments.top_k
        if method == "gumbel" and not self.training:
            method = "sinkhorn"
        return log_policy(
            scores, mask, method, arguments.top_k_temperature, arguments.top_k_iterations, arguments.gumbel_samples
        )

    def loss(
        self, scores: QueryScores, winners: torch.BoolTensor, losers: torch.BoolTensor | None = None
    ) -> torch.Tensor:
        """The objective's loss of scores and masks [B, L]."""
        step = PreferenceStep(scores, winners, losers, partial(self.log_policy, scores), self.arguments)
        return self.arguments.plan.loss(step)

    def forward(
        self, queries: torch.LongTensor, winners: torch.BoolTensor, losers: torch.BoolTensor | None = None
    ) -> dict[str, torch.Tensor]:
        return {"loss": self.loss(self.heads(self.embed(queries)), winners, losers)}


def batches(sets: LayerSets, count: int, device: torch.device):
    """Batches of at most `count` layer sets or pairs, spaced evenly over them all."""
    chosen = torch.linspace(0, len(sets) - 1, min(count, len(sets)), dtype=torch.double).round().long()
    for part in chosen.split(MEASURED_TOGETHER):
        yield {name: tensor.to(device) for name, tensor in sets.__getitems__(part.tolist()).items()}


@torch.no_grad()
def measure(learner: PreferenceLearner, sets: LayerSets, pairs: LayerSets, count: int) -> dict[str, float]:
    """How the router does on held-out queries.

    Args:
        learner: in eval mode.
        sets: what the loss is of.
        pairs: of the same queries.
        count: of sets and of pairs that are measured, at most.

    Returns:
        loss; pair_accuracy, the share of pairs whose better set is likelier than the worse; pruned_layers, the mean
        over queries of how many the router prunes; preferred_layers, that of the better sets; explored_layers, the
        size of the largest explored set.
    """
    device = next(learner.parameters()).device
    own = torch.cat([sets.queries, pairs.queries]).unique().to(device)
    every = learner.heads(learner.embed_all(own))
    total = {"loss": 0.0, "right": 0.0, "preferred": 0.0}
    measured, compared = 0, 0

    def scores_of(queries: torch.LongTensor) -> QueryScores:
        rows = torch.searchsorted(own, queries)
        return QueryScores(*(part[rows] for part in every))

    for batch in batches(sets, count, device):
        size = len(batch["queries"])
        total["loss"] += size * learner.loss(scores_of(batch.pop("queries")), **batch).item()
        total["preferred"] += batch["winners"].sum().item()
        measured += size
    for batch in batches(pairs, count, device):
        scores = scores_of(batch["queries"])
        better, worse = (learner.log_policy(scores, batch[who]) for who in ("winners", "losers"))
        total["right"] += (better > worse).sum().item()
        compared += len(better)
    return {
        "loss": total["loss"] / measured,
        "pair_accuracy": total["right"] / compared,
        "pruned_layers": pruned_counts(every).double().mean().item(),
        "preferred_layers": total["preferred"] / measured,
        "explored_layers": int(pairs.masks.sum(1).max()),
    }


def alarms(measured: dict[str, float]) -> list[str]:
    """What is wrong with a router that an evaluation measured, as sentences.

    Preferences compare explored sets with one another: a policy can order them all well and still put nearly all its
    probability on sets that nobody explored, or on pruning nothing.
    """
    pruned, explored = measured["eval_pruned_layers"], measured["eval_explored_layers"]
    remedies = "raise --orpo_weight, take --objective fbc, or set pruned_layers in the config"
    if pruned > explored:
        return [
            f"the router prunes {pruned:.1f} layers on average, and no explored set has more than {explored}, so "
            f"nothing is known of such sets; explore larger ones (data_generation.py --search random), {remedies}"
        ]
    return [f"the router prunes nothing; {remedies}"] if pruned == 0 else []


class PreferenceTrainer(WholeCheckpoints, Trainer):
    """Trainer that measures held-out queries with `measure`, each process all of them.

    Args:
        sets: held-out layer sets or pairs that the loss is of.
        pairs: held-out pairs.
    """

    def __init__(self, *args, sets: LayerSets, pairs: LayerSets, **kwargs):
        super().__init__(*args, eval_dataset=sets, **kwargs)
        self.sets, self.pairs = sets, pairs
        self.model_accepts_loss_kwargs = False

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        """AdamW with a learning rate for the heads and one for the encoder; biases and norms do not decay."""
        if self.optimizer is None:
            groups, arguments = [], self.model.arguments
            for part, rate in (("heads.", arguments.learning_rate), ("encoder.", arguments.encoder_learning_rate)):
                for decays in (True, False):
                    own = [
                        parameter
                        for name, parameter in self.model.named_parameters()
                        if name.startswith(part) and (parameter.ndim > 1) == decays
                    ]
                    if own:
                        groups.append({"params": own, "lr": rate, "weight_decay": decays * arguments.weight_decay})
            self.optimizer = torch.optim.AdamW(groups)
        return self.optimizer

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        own = self.accelerator.unwrap_model(self.model)
        own.eval()
        found = measure(own, self.sets, self.pairs, own.arguments.eval_pairs)
        metrics = {f"eval_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def training_arguments(
    arguments: PreferenceArguments, folder: Path, examples: int, processes: int
) -> TrainingArguments:
    """The Trainer's arguments; evaluation and saving happen at the same steps."""
    steps = -(-examples // (arguments.batch_size * processes)) * arguments.num_epochs
    every = -(-steps // arguments.num_evaluations)
    return trainer_arguments(
        arguments,
        folder,
        every,
        num_train_epochs=arguments.num_epochs,
        per_device_train_batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        weight_decay=arguments.weight_decay,
        max_grad_norm=arguments.max_grad_norm,
        lr_scheduler_type="cosine",
        warmup_steps=arguments.warmup_steps,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=max(steps // 50, 1),
        label_names=["winners"],
        ddp_broadcast_buffers=False,  # Embeddings are the same in all processes.
    )


def train_preferences(
    learner: PreferenceLearner, sets: LayerSets, held_out: LayerSets, pairs: LayerSets, folder: Path, processes: int
) -> PreferenceTrainer:
    """Train to the end, from the last state where the run is resumed, and load the weights of the lowest held-out loss.

    Args:
        sets: layer sets or pairs to learn from.
        held_out: the same of held-out queries.
        pairs: held-out pairs.
        folder: for the Trainer's checkpoints.
    """
    trainer = PreferenceTrainer(
        model=learner,
        args=training_arguments(learner.arguments, folder, len(sets), processes),
        train_dataset=sets,
        data_collator=read_batch,
        sets=held_out,
        pairs=pairs,
    )
    last = last_whole_checkpoint(folder) if learner.arguments.resume else None
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    return trainer
