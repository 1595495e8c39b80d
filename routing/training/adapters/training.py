"""Distillation of every layer into its adapter, all layers in one pass."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import PartialState
from torch import nn
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer, TrainingArguments

from routing.training.adapters.arguments import AdapterArguments
from routing.training.features import read_batch
from routing.training.run_folder import WholeCheckpoints, last_whole_checkpoint
from routing.training.trainer_arguments import trainer_arguments

SMALLEST_MOVE = 1e-6  # mean squared change of a token's state below which a relative error is not divided further


class AdapterStack(nn.Module):
    """The adapters of a model as one module for the Trainer: all layers compute at once, on stacked weights.

    Args:
        adapters: `model.model.adapters`, not changed.
        relative: see `token_errors`.
    """

    def __init__(self, adapters: nn.ModuleList, relative: bool):
        super().__init__()
        self.relative = relative
        for part in ("down", "up"):
            for kind in ("weight", "bias"):
                own = [getattr(getattr(adapter, part), kind).detach() for adapter in adapters]
                setattr(self, f"{part}_{kind}", nn.Parameter(torch.stack(own)))

    @torch.no_grad()
    def write_to(self, adapters: nn.ModuleList) -> None:
        """Give the adapters of a model these weights."""
        for part in ("down", "up"):
            for kind in ("weight", "bias"):
                for adapter, own in zip(adapters, getattr(self, f"{part}_{kind}"), strict=True):
                    getattr(getattr(adapter, part), kind).copy_(own)

    def forward(self, states: torch.Tensor) -> dict[str, torch.Tensor]:
        """Loss, and errors [B, L] of adapters and of the identity, of states [B, L + 1, D].

        The loss is the sum over layers, so that each adapter has the gradient that it would have alone.
        """
        given, wanted = states[:, :-1].transpose(0, 1), states[:, 1:].transpose(0, 1)  # [L, B, D]
        inner = torch.relu(torch.baddbmm(self.down_bias[:, None], given, self.down_weight.transpose(1, 2)))
        found = given + torch.baddbmm(self.up_bias[:, None], inner, self.up_weight.transpose(1, 2))
        errors, identity = token_errors(found, wanted), token_errors(given, wanted)
        counted = errors / identity.clamp(min=SMALLEST_MOVE) if self.relative else errors
        return {"loss": counted.mean(1).sum(), "errors": errors.T, "identity": identity.T}


def token_errors(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean squared error over the last dimension."""
    return (found - wanted).square().mean(-1)


def layer_errors(prediction) -> dict[str, list[float]]:
    """Of each layer: `mse`, the mean squared error of its adapter over held-out tokens; `identity_mse`, that of doing
    nothing; `relative`, the median over tokens of the one divided by the other (means are those of a few tokens whose
    states are huge).

    Args:
        prediction: of the Trainer, on the outputs of `AdapterStack`.
    """
    errors, identity = (torch.as_tensor(part).double() for part in prediction.predictions)
    relative = (errors / identity.clamp(min=SMALLEST_MOVE)).median(0).values
    return {"mse": errors.mean(0).tolist(), "identity_mse": identity.mean(0).tolist(), "relative": relative.tolist()}


@torch.no_grad()
def held_out_errors(adapters: nn.ModuleList, stored, batch_size: int) -> dict[str, list[float]]:
    """`layer_errors` of adapters on StoredStates."""
    stack = AdapterStack(adapters, relative=False)
    found = []
    for start in range(0, len(stored), batch_size):
        states = stored.__getitems__(list(range(start, min(start + batch_size, len(stored)))))["states"]
        output = stack(states.to(stack.down_weight.device))
        found.append((output["errors"].cpu(), output["identity"].cpu()))
    return layer_errors(EvalPrediction([torch.cat(part) for part in zip(*found)], None))


def mean_relative_error(prediction: EvalPrediction) -> dict[str, float]:
    """The mean over layers of `layer_errors`' relative ones."""
    relative = layer_errors(prediction)["relative"]
    return {"relative_error": sum(relative) / len(relative)}


def training_arguments(arguments: AdapterArguments, folder: Path, tokens: int) -> TrainingArguments:
    """The Trainer's arguments."""
    steps = -(-tokens // (arguments.batch_size * PartialState().num_processes)) * arguments.num_epochs
    every = max(steps // arguments.num_evaluations, 1)
    return trainer_arguments(
        arguments,
        folder,
        every,
        num_train_epochs=arguments.num_epochs,
        per_device_train_batch_size=arguments.batch_size,
        per_device_eval_batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        weight_decay=0.0,
        max_grad_norm=0.0,  # The norm of all layers together would let the largest decide.
        lr_scheduler_type=arguments.lr_schedule,
        logging_steps=max(steps // 50, 1),
    )


class AdapterTrainer(WholeCheckpoints, Trainer):
    """The Trainer, whose checkpoints tell when they are whole."""


def train_adapters(
    arguments: AdapterArguments, adapters: nn.ModuleList, train_set: Dataset, eval_set: Dataset, folder: Path
) -> Trainer:
    """Train to the end and write the adapters back."""
    stack = AdapterStack(adapters, arguments.loss == "relative")
    trainer = AdapterTrainer(
        model=stack,
        args=training_arguments(arguments, folder, len(train_set)),
        train_dataset=train_set,
        eval_dataset=eval_set,
        data_collator=read_batch,
        compute_metrics=mean_relative_error,
    )
    trainer.can_return_loss = True  # The states are inputs and targets in one, so there are no labels.
    last = last_whole_checkpoint(folder) if arguments.resume else None
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    stack.write_to(adapters)
    return trainer
