"""Healing: the full model's own answers are distilled into the adapters, along whole paths and not layer by layer.

The loss is KL(full || path) of the next token, mean over all real tokens of prompts and answers, in nats; teacher and
student are the same weights, at full depth and along the path. Each batch follows one path, so it costs a forward at
full depth, and a forward and a backward along the path. The base is frozen; adapters on the path get their gradients
through the frozen layers behind them.

Source: self-data distillation (arXiv 2410.09982): targets written by the full model are what heals a pruned one.
Deviations: probabilities and not answers alone are the target, and adapters are trained, not the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from routing.models.head import Head
from routing.objectives.divergence import divergence
from routing.search.routes import Route, full_route
from routing.training.adapters.arguments import AdapterArguments
from routing.training.adapters.heal_paths import HealPaths, path_name
from routing.training.refetching import Refetching
from routing.training.run_folder import WholeCheckpoints, last_whole_checkpoint
from routing.training.trainer_arguments import trainer_arguments, write_metrics

WARMUP = 0.05  # of the steps


def last_states(model, ids: torch.LongTensor, mask: torch.LongTensor, route: Route) -> torch.Tensor:
    """Normalised states [N, D] of the real tokens of right-padded rows [B, T], all along one route."""
    routes = torch.tensor([route] * len(ids))
    states = model.model(input_ids=ids, attention_mask=mask, routes=routes, use_cache=False).last_hidden_state
    return states[mask.bool().to(states.device)]


def right_padded(rows: Sequence[Sequence[int]]) -> dict[str, torch.LongTensor]:
    """ids and mask [B, T] of rows of tokens; what fills up is behind a row, so that no real token sees it."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"ids": ids, "mask": mask}


class RowBatches(Dataset):
    """Batches of rows of like length, the same in every epoch; the Trainer shuffles them.

    Args:
        rows: of tokens, at least one each.
        size: rows of a batch.
        seed: which of the rows of one length share a batch.
    """

    def __init__(self, rows: Sequence[Sequence[int]], size: int, seed: int):
        order = list(rows)
        Random(seed).shuffle(order)
        order.sort(key=len)
        self.batches = [order[start : start + size] for start in range(0, len(order), size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Sequence[Sequence[int]]:
        return self.batches[index]


def one_batch(items: list[Sequence[Sequence[int]]]) -> dict[str, torch.LongTensor]:
    """Collator: an item is a batch already."""
    return right_padded(items[0])


class Healing(nn.Module):
    """What the Trainer trains: the adapters' weights, so that a training state holds no copy of the base.

    Args:
        model: a routed ...ForCausalLM on its device, frozen but for its adapters.
        paths: what a batch may follow.
        seed, process: what the paths are drawn by, with the number of the step; each process follows its own.
    """

    def __init__(self, model: nn.Module, paths: HealPaths, seed: int, process: int = 0):
        super().__init__()
        self._held = (model,)  # In a tuple, so that it is no submodule.
        self.refetching = Refetching(model)
        self.paths, self.key = paths, f"{seed}/{process}"
        for name, parameter in model.model.adapters.named_parameters():
            self.register_parameter(name.replace(".", "/"), parameter)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, ids: torch.LongTensor, mask: torch.LongTensor) -> dict[str, torch.Tensor]:
        """Loss of right-padded rows [B, T] along the step's path."""
        (model,) = self._held
        route = self.paths.draw(Random(f"{self.key}/{int(self.steps)}"))
        self.steps += 1
        with torch.no_grad():
            teacher = last_states(model, ids, mask, full_route(len(route)))
        with self.refetching.forward():
            student = last_states(model, ids, mask, route)
        return {"loss": divergence(student, teacher, Head.of(model)) / len(student)}


@torch.no_grad()
def path_divergences(
    model, batches: Sequence[Sequence[Sequence[int]]], routes: Sequence[Route], process: int = 0, processes: int = 1
) -> list[float]:
    """Mean KL(full || path) over the real tokens of batches of rows, in nats, of each route.

    Args:
        process, processes: several processes share the batches out; each gets the result of all.
    """
    sums, tokens = torch.zeros(len(routes), dtype=torch.float64), 0
    for rows in batches[process::processes]:
        own = {name: tensor.to(model.device) for name, tensor in right_padded(rows).items()}
        teacher = last_states(model, **own, route=full_route(len(routes[0])))
        tokens += len(teacher)
        for at, route in enumerate(routes):
            sums[at] += float(divergence(last_states(model, **own, route=route), teacher, Head.of(model)))
    shares = gather_object([(sums.tolist(), tokens)]) if processes > 1 else [(sums.tolist(), tokens)]
    total = sum(count for _, count in shares)
    return [sum(own[at] for own, _ in shares) / total for at in range(len(routes))]


class HealingTrainer(WholeCheckpoints, Trainer):
    """Trainer that validates by the held-out KL of each path of the menu and writes metrics.csv.

    Args:
        held_out: batches of rows.
        table: where metrics.csv goes.
    """

    def __init__(self, *args, held_out: Sequence[Sequence[Sequence[int]]], table: Path, **kwargs):
        super().__init__(*args, **kwargs)
        self.held_out, self.table = held_out, table

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """`validation_loss`, the mean over the menu's paths of their held-out KL, and `kl_N` of path N."""
        own = self.accelerator.unwrap_model(self.model)
        found = path_divergences(
            own._held[0], self.held_out, own.paths.menu, self.args.process_index, self.args.world_size
        )
        row = {"validation_loss": sum(found) / len(found)} | {f"kl_{at}": value for at, value in enumerate(found)}
        metrics = {f"eval_{name}": value for name, value in row.items()}
        self.log(metrics)
        if self.is_world_process_zero():
            write_metrics(self.table, self.state.log_history, ("step", "epoch", *row))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def training_arguments(arguments: AdapterArguments, folder: Path, batches: int, processes: int) -> TrainingArguments:
    """The Trainer's arguments; evaluation and saving happen at the same steps, and the best is kept."""
    steps = -(-batches // processes) * arguments.heal_epochs
    return trainer_arguments(
        arguments,
        folder,
        max(steps // arguments.num_evaluations, 1),
        num_train_epochs=arguments.heal_epochs,
        per_device_train_batch_size=1,
        learning_rate=arguments.heal_learning_rate,
        weight_decay=0.0,
        lr_scheduler_type="cosine",
        warmup_steps=int(steps * WARMUP),
        logging_steps=max(steps // 50, 1),
        load_best_model_at_end=True,
        metric_for_best_model="eval_validation_loss",
        greater_is_better=False,
        label_names=[],
        ddp_find_unused_parameters=True,  # Adapters of layers that run take no part in a step.
    )


def heal(
    arguments: AdapterArguments,
    model,
    paths: HealPaths,
    train: Sequence[Sequence[int]],
    held_out: Sequence[Sequence[int]],
    folder: Path,
    process: int = 0,
    processes: int = 1,
) -> dict:
    """Train the adapters of a model in place; those of least held-out KL are kept, be it those that were there.

    Args:
        model: frozen.
        train, held_out: rows of tokens.
        folder: for the Trainer's checkpoints; metrics.csv goes beside it.

    Returns:
        kept_step (0: none was better than the start); routes and names of the menu's paths; kl_before and kl_after, the
        held-out KL of each in nats a token; the Trainer's log.
    """
    adapters = model.model.adapters
    start = {name: tensor.clone() for name, tensor in adapters.state_dict().items()}
    aside = RowBatches(held_out, arguments.heal_batch_size, arguments.seed).batches
    before = path_divergences(model, aside, paths.menu, process, processes)
    adapters.requires_grad_(True)
    batches = RowBatches(train, arguments.heal_batch_size, arguments.seed)
    trainer = HealingTrainer(
        model=Healing(model, paths, arguments.seed, process),
        args=training_arguments(arguments, folder, len(batches), processes),
        train_dataset=batches,
        eval_dataset=batches,  # Not read: `evaluate` has batches of its own.
        data_collator=one_batch,
        held_out=aside,
        table=folder.parent / "healing.csv",
    )
    last = last_whole_checkpoint(folder) if arguments.resume else None
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    adapters.requires_grad_(False)
    kept = trainer.state.best_global_step
    if not trainer.state.best_metric < sum(before) / len(before):  # NaN is no better either.
        adapters.load_state_dict(start)
        kept = 0
    after = path_divergences(model, aside, paths.menu, process, processes)
    return {
        "kept_step": kept,
        "routes": [list(route) for route in paths.menu],
        "paths": [path_name(route) for route in paths.menu],
        "kl_before": before,
        "kl_after": after,
        "log": trainer.state.log_history,
    }
