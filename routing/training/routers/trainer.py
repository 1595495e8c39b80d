"""Stage 2: training the routers with transformers' Trainer, and choosing among their checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments

from routing.objectives import supervised
from routing.scoring.plain import Evaluator
from routing.scoring.requests import Request
from routing.training.routers.arguments import TrainArguments
from routing.training.run_folder import WholeCheckpoints, last_whole_checkpoint
from routing.training.trainer_arguments import trainer_arguments

SELECTION = "selection"  # the metric that chooses the kept checkpoint
IGNORED = -100  # label of an example that does not count, as the Trainer knows it
# parameter of RouterStack -> where a router has its part of it; the Trainer decays no weight whose name holds "bias"
STACKED = {
    "up": ("up", "weight"),  # [L, H, D]
    "up_bias": ("up", "bias"),  # [L, H]
    "down": ("down", "weight"),  # [L, 3, H]
    "down_bias": ("down", "bias"),  # [L, 3]
}
# --objective -> loss(logits, labels, class weights, arguments)
OBJECTIVES = {
    "supervised": lambda logits, labels, weights, arguments: supervised.focal_loss(
        logits, labels, weights, arguments.focal_gamma
    )
}


class StackedRouters(nn.Module):
    """The routers of a model as one module, all layers at once, on stacked copies of their weights.

    Hidden units are averaged over windows before the last linear map, not logits after it, which is the same and a W-th
    of the work.

    Args:
        routers: `model.model.routers`, not changed.
    """

    def __init__(self, routers: nn.ModuleList):
        super().__init__()
        for name, (part, kind) in STACKED.items():
            own = torch.stack([getattr(getattr(router, part), kind).detach() for router in routers])
            setattr(self, name, nn.Parameter(own))

    @torch.no_grad()
    def write_to(self, routers: nn.ModuleList) -> None:
        """Give the routers of a model these weights."""
        for name, (part, kind) in STACKED.items():
            for router, own in zip(routers, getattr(self, name), strict=True):
                getattr(getattr(router, part), kind).copy_(own)

    def logits(self, features: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        """[B, L, 3], of features [B, L, W, D] and windows [B, W]."""
        batch, layers, count, width = features.shape
        inputs = features.transpose(0, 1).reshape(layers, batch * count, width)
        # Weights on the left: their gradients then come out as they lie in memory.
        hidden = nn.functional.gelu(torch.baddbmm(self.up_bias[..., None], self.up, inputs.transpose(1, 2)))
        share = windows.to(hidden.dtype) / windows.sum(1, keepdim=True).clamp(min=1)
        pooled = (hidden.unflatten(2, (batch, count)) * share).sum(3)  # [L, H, B]
        return torch.baddbmm(self.down_bias[..., None], self.down, pooled).permute(2, 0, 1)


class RouterStack(StackedRouters):
    """The routers of a model as one module for the Trainer, with the training loss on labelled routes.

    Args:
        routers: `model.model.routers`, not changed.
        weights: class weights [3].
        arguments: name the objective and its settings.
    """

    accepts_loss_kwargs = True  # The Trainer then passes num_items_in_batch.

    def __init__(self, routers: nn.ModuleList, weights: torch.Tensor, arguments: TrainArguments):
        super().__init__(routers)
        self.arguments = arguments
        self.objective = OBJECTIVES[arguments.objective]
        self.register_buffer("weights", weights, persistent=False)

    def loss(self, logits: torch.Tensor, labels: torch.LongTensor) -> torch.Tensor:
        """The objective over the examples [B, L] that count; 0 where none does."""
        counted = labels[:, 0] != IGNORED
        if not counted.any():
            return logits.sum() * 0
        return self.objective(logits[counted], labels[counted], self.weights, self.arguments)

    def forward(
        self,
        features: torch.Tensor,
        windows: torch.Tensor,
        labels: torch.LongTensor,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Loss, and logits [B, L, 3], of features [B, L, W, D], windows [B, W] and labels [B, L].

        Args:
            num_items_in_batch: labels that count in the whole batch, all processes and accumulated steps together. The
                loss is then the share of this part in the mean over them all.
        """
        logits = self.logits(features, windows)
        loss = self.loss(logits, labels)
        if num_items_in_batch is not None:
            loss = loss * ((labels != IGNORED).sum() / num_items_in_batch)
        return {"loss": loss, "logits": logits}


class RouterTrainer(WholeCheckpoints, Trainer):
    """Trainer whose evaluation also executes answers with the routers deciding.

    Several processes take the steps of one whose batches are as large as theirs together.

    Args:
        execute: runs the held-out questions on the routed model, with the weights of the stack it is given; returns
            metrics, among them `executed_accuracy` and the number of questions `executed_examples`.
    """

    def __init__(self, *args, execute: Callable[[RouterStack], dict[str, float]], **kwargs):
        super().__init__(*args, **kwargs)
        self.execute = execute

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        """Batches of one update, and how many labels count in those of all processes.

        So that all processes get whole batches, accelerate fills the last ones of an epoch with examples of its
        beginning. They are not to count twice.
        """
        batches = list(islice(epoch_iterator, num_batches))
        if self.args.world_size > 1 and self.accelerator.gradient_state.end_of_dataloader:
            labels = batches[-1]["labels"]
            # Not accelerate's own remainder, which is another one in the epoch that a resumed run starts with.
            rest = len(self.train_dataset) % (len(labels) * self.args.world_size)
            if rest:
                labels[max(rest - self.args.process_index * len(labels), 0) :] = IGNORED
        return batches, self._get_num_items_in_batch(batches, device)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        metrics = super().evaluate(*args, **kwargs)
        extra = {f"eval_{name}": value for name, value in self.execute(self.model).items()}
        extra["eval_routers_loss"] = metrics["eval_loss"]  # its published name
        # Executed accuracy first, macro-F1 between equals: accuracies differ by at least 1/n.
        extra[f"eval_{SELECTION}"] = extra["eval_executed_accuracy"] + metrics["eval_macro_f1"] / (
            extra["eval_executed_examples"] + 1
        )
        self.log(extra)
        return metrics | extra


def held_out_metrics(stack: RouterStack) -> Callable[[EvalPrediction], dict[str, float]]:
    """Function that measures agreement with the labels, under the published names."""

    def measure(prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids)
        with torch.no_grad():
            loss = float(stack.loss(logits.to(stack.weights.device), labels.to(stack.weights.device)))
        # The loss goes in place of the Trainer's, which counts twice what fills the last batches of several processes.
        return supervised.route_metrics(logits.argmax(-1), labels) | {"loss": loss}

    return measure


def executor(model, tokenizer, requests: list[Request], batch_size: int) -> Callable[[], dict[str, float]]:
    """Function that answers the requests with the routers deciding, and reports accuracy and layers, accuracy of each
    data set too where there are several.

    Several processes share the requests out; each gets the metrics of all.
    """

    def execute() -> dict[str, float]:
        state = PartialState()
        own = requests[state.process_index :: state.num_processes]
        verdicts, routes = Evaluator(model, tokenizer, batch_size).verdicts_and_routes(own, None)
        found = gather_object(
            [
                (request.example.dataset, verdict.correct, sum(route))
                for request, verdict, route in zip(own, verdicts, routes, strict=True)
            ]
        )
        names = dict.fromkeys(request.example.dataset for request in requests)
        by_dataset = {name: [correct for dataset, correct, _ in found if dataset == name] for name in names}
        return {
            "executed_accuracy": sum(correct for _, correct, _ in found) / len(found),
            "executed_layers": sum(layers for *_, layers in found) / len(found),
            "executed_examples": len(found),
        } | {f"executed_accuracy_{name}": sum(own) / len(own) for name, own in by_dataset.items() if len(names) > 1}

    return execute


def steps_per_epoch(examples: int, arguments: TrainArguments) -> int:
    batches = -(-examples // (arguments.batch_size * PartialState().num_processes))
    return max(-(-batches // arguments.gradient_accumulation), 1)


def training_arguments(arguments: TrainArguments, folder: Path, examples: int) -> TrainingArguments:
    """The Trainer's arguments; evaluation and saving happen at the same steps."""
    steps = steps_per_epoch(examples, arguments) * arguments.num_epochs
    every = max(steps // arguments.num_evaluations, 1)
    return trainer_arguments(
        arguments,
        folder,
        every,
        num_train_epochs=arguments.num_epochs,
        per_device_train_batch_size=arguments.batch_size,
        per_device_eval_batch_size=arguments.batch_size,
        gradient_accumulation_steps=arguments.gradient_accumulation,
        learning_rate=arguments.learning_rate,
        weight_decay=arguments.weight_decay,
        lr_scheduler_type="cosine",
        # 500 steps suit the published 4,000 examples; a short run must not spend itself on warming up.
        warmup_steps=min(arguments.warmup_steps, steps // 10),
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{SELECTION}",
        greater_is_better=True,
        logging_steps=max(steps // 50, 1),
        label_names=["labels"],
    )


def train_routers(
    arguments: TrainArguments,
    routers: nn.ModuleList,
    weights: torch.Tensor,
    train_set: Dataset,
    eval_set: Dataset,
    collator: Callable,
    execute: Callable[[], dict[str, float]],
    folder: Path,
    callbacks: list[TrainerCallback] | None = None,
) -> RouterTrainer:
    """Train to the end and load the best routers back into `routers`.

    Args:
        weights: class weights [3].
        train_set, eval_set: CachedFeatures or LiveExamples.
        collator: `read_batch` or a `live_collator`.
        execute: runs the held-out questions with the routers as they are, see `RouterTrainer`.
        folder: for the Trainer's checkpoints.
        callbacks: of the Trainer, besides its own.
    """
    stack = RouterStack(routers, weights, arguments)

    def answer(trained: RouterStack) -> dict[str, float]:
        trained.write_to(routers)
        return execute()

    trainer = RouterTrainer(
        model=stack,
        args=training_arguments(arguments, folder, len(train_set)),
        train_dataset=train_set,
        eval_dataset=eval_set,
        data_collator=collator,
        compute_metrics=held_out_metrics(stack),
        execute=answer,
        callbacks=callbacks,
    )
    last = last_whole_checkpoint(folder) if arguments.resume else None
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    stack.write_to(routers)
    return trainer
