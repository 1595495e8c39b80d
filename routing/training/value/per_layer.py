"""Dr.LLM's own routers, trained on what paths are worth instead of on one path that turned out right.

An additive model of the verdicts of all paths that a search tried:

    logit P(right | prompt x, route) = b(x) + sum over layers l of u_l(x, count of l)

u_l is the ordinary router of layer l, its three logits, fed what it reads at inference: the pooled state that enters l
along the executed route. Only differences between its logits count in an argmax, so u_l(x, run once) is taken as 0.
b(x), how hard the question is, is a small network on the pooled embeddings, of use in training alone. The loss is
binary cross-entropy; the epoch of least held-out log loss is kept. At inference a layer takes the count with the
highest u_l(x, count) - cost * count, greedily, as the routers always decide.

A count that no tried path has at a layer says nothing there; its logit is put so low that it is never taken.
"""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import torch
from accelerate import PartialState
from scipy.special import expit
from scipy.stats import rankdata
from torch import nn
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer

from routing.common.devices import DTYPES, is_first_process
from routing.common.errors import UserError
from routing.common.seen import Seen
from routing.labels.reading import read_header, read_labels
from routing.labels.records import example_of, labelled
from routing.models.bases import load_base, weight_stamps
from routing.models.checkpoint import load_adapters
from routing.models.checkpoint_files import adapter_fields, adapter_hashes
from routing.models.placement import place_of
from routing.scoring.prompting import prompting_of
from routing.search.routes import to_route
from routing.tasks.examples import held_out, held_out_key
from routing.training.features import (
    CachedFeatures,
    RouterExample,
    RouterExamples,
    cache_features,
    fingerprint,
    read_batch,
)
from routing.training.routers.trainer import StackedRouters
from routing.training.run_folder import WholeCheckpoints, last_whole_checkpoint
from routing.training.trainer_arguments import trainer_arguments
from routing.training.value.arguments import ValueArguments
from train_models.routers import REPEAT, RUN, RouterLinear

NEVER = -1e4  # Logit of a count that was never tried at a layer.
TOGETHER = 4096  # routes that are looked at a time
BINS = 10  # of equal numbers of predictions, for the calibration error


@dataclass
class TriedPaths:
    """Tried paths of questions, with their verdicts.

    Attributes:
        examples: prompt tokens and routes, on disk.
        rewards: 1 and 0 of right and wrong answers.
        train, held_out: indices, a partition by question hash.
        datasets: names of the data sets that they are of.
    """

    examples: RouterExamples
    rewards: array = field(default_factory=lambda: array("f"))
    train: array = field(default_factory=lambda: array("q"))
    held_out: array = field(default_factory=lambda: array("q"))
    datasets: list[str] = field(default_factory=list)


def drawn_entries(folder: Path, most: int, seed: int) -> Iterator[tuple[dict, list[dict]]]:
    """Records of a label folder, each with some of its tried paths at random: the same in every run."""
    for record in read_labels(folder):
        tried = record["tried"]
        if len(tried) > most:
            rng = Random(f"{seed}/{record['id']}")
            tried = [tried[place] for place in sorted(rng.sample(range(len(tried)), most))]
        yield record, tried


def load_tried(arguments: ValueArguments, depth: int, tokenizer) -> TriedPaths:
    """Read the label folders.

    Raises:
        UserError: for damaged files, or if nothing is left to train on or to hold out.
    """
    data, seen = TriedPaths(RouterExamples(Path(arguments.work_dir))), Seen()
    for folder in arguments.data_folders():
        prompting = prompting_of(read_header(folder))
        for record, tried in drawn_entries(folder, arguments.tried_per_question, arguments.seed):
            example = example_of(record)
            prompt = labelled(record, tokenizer, prompting).prompt_ids
            indices = data.held_out if held_out(held_out_key(example), arguments.eval_fraction) else data.train
            if record["dataset"] not in data.datasets:
                data.datasets.append(record["dataset"])
            for entry in tried:
                route = to_route(entry["path"], depth)
                key = hashlib.sha256(json.dumps([record["id"], route]).encode()).digest()
                if seen.add(key):  # Another search may have tried it too.
                    indices.append(len(data.examples))
                    data.examples.append(RouterExample(prompt, route))
                    data.rewards.append(float(entry["correct"]))
    if not data.train or not data.held_out:
        raise UserError(
            f"--data {arguments.data}: {len(data.train)} tried paths to train on and {len(data.held_out)} held out are "
            f"too few. Label more questions, or change --eval_fraction {arguments.eval_fraction}."
        )
    return data


class RewardedFeatures(Dataset):
    """`CachedFeatures` with the reward of each path."""

    def __init__(self, folder: Path, indices: array, rewards: array):
        self.features = CachedFeatures(folder, indices)
        self.rewards = torch.frombuffer(rewards, dtype=torch.float32)[torch.frombuffer(indices, dtype=torch.int64)]

    def __len__(self) -> int:
        return len(self.features)

    def __getitems__(self, items: list[int]) -> dict[str, torch.Tensor]:
        """A batch: as of `CachedFeatures`, and rewards [B]."""
        return self.features.__getitems__(items) | {"rewards": self.rewards[items]}

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        return {name: tensor[0] for name, tensor in self.__getitems__([item]).items()}


def value_logits(logits: torch.Tensor, routes: torch.LongTensor, base: torch.Tensor) -> torch.Tensor:
    """logit P(right) [B]: the routers' logits [B, L, 3] at the counts of routes [B, L], less those at one run, summed,
    plus base [B]."""
    worth = logits - logits[..., RUN : RUN + 1]
    return base + worth.gather(-1, routes[..., None])[..., 0].sum(1)


class ValueStack(StackedRouters):
    """The routers of a model and b(x) as one module for the Trainer; all start from nothing: P(right) is the mean.

    Args:
        routers: `model.model.routers`.
        rate: share of training rewards, where b starts from.
    """

    def __init__(self, routers: nn.ModuleList, rate: float):
        super().__init__(routers)
        hidden, width = self.up.shape[1:]
        self.base_up, self.base_down = RouterLinear(width, hidden), RouterLinear(hidden, 1)
        for linear in (self.base_up, self.base_down):
            linear.reset_parameters()
        for parameter in (self.down, self.down_bias, self.base_down.weight):
            nn.init.zeros_(parameter)
        nn.init.constant_(self.base_down.bias, float(torch.tensor(rate).clamp(0.01, 0.99).logit()))

    def base(self, features: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        """b(x) [B], of what enters the first layer."""
        share = windows / windows.sum(1, keepdim=True).clamp(min=1)
        pooled = (features[:, 0] * share[..., None]).sum(1)
        pooled = nn.functional.rms_norm(pooled, pooled.shape[-1:])
        return self.base_down(nn.functional.gelu(self.base_up(pooled)))[:, 0]

    def forward(self, features, windows, labels, rewards) -> dict[str, torch.Tensor]:
        """Loss and logits [B] of features [B, L, W, D], windows [B, W], routes [B, L] and rewards [B]."""
        logits = value_logits(self.logits(features, windows), labels, self.base(features, windows))
        return {"loss": nn.functional.binary_cross_entropy_with_logits(logits, rewards), "logits": logits}


def verdict_metrics(logits: np.ndarray, rewards: np.ndarray, rate: float) -> dict[str, float]:
    """How well P(right) is told, of logits and rewards [N].

    Returns:
        log_loss, in nats, and log_loss_rate, that of one probability for all; auc, the chance that a right path is put
        above a wrong one (0.5 where all are alike); calibration_error, the mean distance of predicted and true share
        of right answers over BINS groups of neighbouring predictions.
    """
    logits, rewards = np.asarray(logits, np.float64), np.asarray(rewards, np.float64)
    right, wrong = int(rewards.sum()), int((1 - rewards).sum())
    auc = 0.5
    if right and wrong:
        auc = (rankdata(logits)[rewards == 1].sum() - right * (right + 1) / 2) / (right * wrong)
    order = logits.argsort(kind="stable")
    groups = [group for group in np.array_split(order, BINS) if len(group)]
    probability = expit(logits)
    off = [len(group) * abs(probability[group].mean() - rewards[group].mean()) for group in groups]
    rate = min(max(rate, 1e-6), 1 - 1e-6)
    return {
        "log_loss": float((np.logaddexp(0, logits) - rewards * logits).mean()),
        "log_loss_rate": float(-(rewards * np.log(rate) + (1 - rewards) * np.log(1 - rate)).mean()),
        "auc": float(auc),
        "calibration_error": float(sum(off) / len(logits)),
    }


class ValueTrainer(WholeCheckpoints, Trainer):
    """Trainer of a `ValueStack`."""


def train_stack(arguments: ValueArguments, stack: ValueStack, sets, rate: float, states: Path) -> ValueTrainer:
    """Train to the end and load the epoch of least held-out log loss."""
    train_set, eval_set = sets
    steps = -(-len(train_set) // (arguments.batch_size * PartialState().num_processes))

    def measure(prediction: EvalPrediction) -> dict[str, float]:
        return verdict_metrics(prediction.predictions, prediction.label_ids, rate)

    trainer = ValueTrainer(
        model=stack,
        args=trainer_arguments(
            arguments,
            states,
            steps,
            num_train_epochs=arguments.num_epochs,
            per_device_train_batch_size=arguments.batch_size,
            per_device_eval_batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            weight_decay=arguments.weight_decay,
            lr_scheduler_type="cosine",
            warmup_steps=steps * arguments.num_epochs // 10,  # Without, the first epoch unlearns the mean.
            load_best_model_at_end=True,
            metric_for_best_model="eval_log_loss",
            greater_is_better=False,
            logging_steps=max(steps // 5, 1),
            label_names=["rewards"],
        ),
        train_dataset=train_set,
        eval_dataset=eval_set,
        data_collator=read_batch,
        compute_metrics=measure,
    )
    last = last_whole_checkpoint(states) if arguments.resume else None
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    return trainer


@torch.no_grad()
def rule_out(routers: nn.ModuleList, parts: Iterable[torch.LongTensor]) -> torch.BoolTensor:
    """Make routers never take a count that no route has at their layer; gives which they may take, [L, 3].

    Args:
        parts: of the routes, [N, L] each.
    """
    tried = sum(nn.functional.one_hot(part, REPEAT + 1).any(0) for part in parts).bool()
    tried[:, RUN] = True  # Its logit is what the others are measured by.
    for router, own in zip(routers, tried, strict=True):
        router.down.bias[~own.to(router.down.bias.device)] = NEVER
    return tried


def train_per_layer(arguments: ValueArguments, config, tokenizer, work: Path) -> tuple[dict, dict, dict]:
    """Weights of the routers, config fields, and what training.json says of them."""
    data = load_tried(arguments, config.num_hidden_layers, tokenizer)
    commit = config._commit_hash
    sizes = {"num_windows": arguments.num_windows, "router_hidden_size": arguments.router_hidden_size}
    fields = {"router": "per_layer", "cost": arguments.cost, **sizes}
    adapted = adapter_fields(arguments.adapters)
    base = arguments.model_id, DTYPES[arguments.dtype], commit, place_of(arguments)
    model = load_base(*base, **fields, **adapted).requires_grad_(False)
    load_adapters(model, arguments.adapters)
    model.model.init_routers()
    key = fingerprint(
        data.examples, model=arguments.model_id, revision=commit,
        weights=weight_stamps(arguments.model_id, commit), num_windows=arguments.num_windows, dtype=arguments.dtype,
        features_dtype=arguments.features_dtype, adapters=adapter_hashes(arguments.adapters),
    )  # fmt: skip
    folder = work / "features"
    folder.mkdir(parents=True, exist_ok=True)
    cache_features(
        folder, model, data.examples, tokenizer.pad_token_id, arguments.model_batch_size, key,
        DTYPES[arguments.features_dtype], is_first_process(),
    )  # fmt: skip
    sets = [RewardedFeatures(folder, part, data.rewards) for part in (data.train, data.held_out)]
    rate = float(sets[0].rewards.mean())
    if is_first_process():
        print(
            f"{len(data.train)} tried paths to train on, {rate:.3f} of them right; {len(data.held_out)} held out",
            file=sys.stderr,
        )
    trainer = train_stack(arguments, ValueStack(model.model.routers, rate), sets, rate, work / "trainer")
    found = trainer.evaluate()
    trainer.model.write_to(model.model.routers)
    parts = (data.train[start : start + TOGETHER] for start in range(0, len(data.train), TOGETHER))
    tried = rule_out(model.model.routers, map(data.examples.routes, parts))
    summary = {
        "datasets": data.datasets,
        "train_paths": len(data.train),
        "held_out_paths": len(data.held_out),
        "right_share": rate,
        "held_out": {name: found[f"eval_{name}"] for name in verdict_metrics(np.zeros(2), np.array([0, 1]), rate)},
        "counts_tried": tried.tolist(),
        "kept_step": trainer.state.best_global_step,
        "log": trainer.state.log_history,
    }
    if is_first_process():
        told = ", ".join(f"{name} {value:.4f}" for name, value in summary["held_out"].items())
        print(f"held out: {told}", file=sys.stderr)
    if is_first_process() and not summary["held_out"]["log_loss"] < summary["held_out"]["log_loss_rate"]:
        print("ALARM: the routers tell no better than the mean which paths are right", file=sys.stderr)
    return {name: tensor.detach().cpu() for name, tensor in model.model.routers.state_dict().items()}, fields, summary
