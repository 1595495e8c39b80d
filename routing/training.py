"""Stage 2: training the routers with transformers' Trainer, and choosing among their checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from routing.arguments import TrainArguments
from routing.objectives import supervised
from routing.scoring import Evaluator, Request

SELECTION = "selection"  # the metric that chooses the kept checkpoint
# --objective -> loss(logits, labels, class weights, arguments)
OBJECTIVES = {
    "supervised": lambda logits, labels, weights, arguments: supervised.focal_loss(
        logits, labels, weights, arguments.focal_gamma
    )
}


class RouterStack(nn.Module):
    """The routers of a model as one module for the Trainer, with the training loss.

    Args:
        routers: `model.model.routers`; shared, so the routed model sees every update.
        weights: class weights [3].
        arguments: name the objective and its settings.
    """

    def __init__(self, routers: nn.ModuleList, weights: torch.Tensor, arguments: TrainArguments):
        super().__init__()
        self.routers, self.arguments = routers, arguments
        self.objective = OBJECTIVES[arguments.objective]
        self.register_buffer("weights", weights, persistent=False)

    def forward(
        self, features: torch.Tensor, windows: torch.Tensor, labels: torch.LongTensor
    ) -> dict[str, torch.Tensor]:
        """Loss, and logits [B, L, 3], of features [B, L, W, D], windows [B, W] and labels [B, L]."""
        logits = torch.stack([router(features[:, i], windows) for i, router in enumerate(self.routers)], dim=1)
        return {"loss": self.objective(logits, labels, self.weights, self.arguments), "logits": logits}


class RouterTrainer(Trainer):
    """Trainer whose evaluation also executes answers with the routers deciding.

    Args:
        execute: runs the held-out questions on the routed model; returns metrics, among them
            `executed_accuracy` and the number of questions `executed_examples`.
    """

    def __init__(self, *args, execute: Callable[[], dict[str, float]], **kwargs):
        super().__init__(*args, **kwargs)
        self.execute = execute

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        metrics = super().evaluate(*args, **kwargs)
        extra = {f"eval_{name}": value for name, value in self.execute().items()}
        extra["eval_routers_loss"] = metrics["eval_loss"]  # its published name
        # Executed accuracy first, macro-F1 between equals: accuracies differ by at least 1/n.
        extra[f"eval_{SELECTION}"] = extra["eval_executed_accuracy"] + metrics["eval_macro_f1"] / (
            extra["eval_executed_examples"] + 1
        )
        self.log(extra)
        return metrics | extra


def held_out_metrics(prediction) -> dict[str, float]:
    """Agreement with the labels, under the published names."""
    logits = torch.as_tensor(prediction.predictions)
    return supervised.route_metrics(logits.argmax(-1), torch.as_tensor(prediction.label_ids))


def executor(model, tokenizer, requests: list[Request], batch_size: int) -> Callable[[], dict[str, float]]:
    """Function that answers the requests with the routers deciding, and reports accuracy and layers."""

    def execute() -> dict[str, float]:
        verdicts, routes = Evaluator(model, tokenizer, batch_size).verdicts_and_routes(requests, None)
        return {
            "executed_accuracy": sum(verdict.correct for verdict in verdicts) / len(verdicts),
            "executed_layers": sum(map(sum, routes)) / len(routes),
            "executed_examples": len(verdicts),
        }

    return execute


def steps_per_epoch(examples: int, arguments: TrainArguments) -> int:
    batches = -(-examples // arguments.batch_size)
    return max(-(-batches // arguments.gradient_accumulation), 1)


def training_arguments(arguments: TrainArguments, folder: Path, examples: int) -> TrainingArguments:
    """The Trainer's arguments; evaluation and saving happen at the same steps."""
    steps = steps_per_epoch(examples, arguments) * arguments.num_epochs
    every = max(steps // arguments.num_evaluations, 1)
    return TrainingArguments(
        output_dir=str(folder),
        run_name=arguments.run_name,
        num_train_epochs=arguments.num_epochs,
        per_device_train_batch_size=arguments.batch_size,
        per_device_eval_batch_size=arguments.batch_size,
        gradient_accumulation_steps=arguments.gradient_accumulation,
        learning_rate=arguments.learning_rate,
        weight_decay=arguments.weight_decay,
        lr_scheduler_type="cosine",
        # 500 steps suit the published 4,000 examples; a short run must not spend itself on warming up.
        warmup_steps=min(arguments.warmup_steps, steps // 10),
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{SELECTION}",
        greater_is_better=True,
        logging_steps=max(steps // 50, 1),
        report_to=arguments.report_to,
        seed=arguments.seed,
        data_seed=arguments.seed,
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=arguments.device == "cpu",
        dataloader_num_workers=0,
    )


def train_routers(
    arguments: TrainArguments,
    routers: nn.ModuleList,
    weights: torch.Tensor,
    train_set: Dataset,
    eval_set: Dataset,
    collator: Callable | None,
    execute: Callable[[], dict[str, float]],
    folder: Path,
) -> RouterTrainer:
    """Train to the end and load the best routers back into `routers`.

    Args:
        weights: class weights [3].
        train_set, eval_set: CachedFeatures or LiveExamples.
        collator: of the live mode; None for the default.
        execute: see `RouterTrainer`.
        folder: for the Trainer's checkpoints.
    """
    trainer = RouterTrainer(
        model=RouterStack(routers, weights, arguments),
        args=training_arguments(arguments, folder, len(train_set)),
        train_dataset=train_set,
        eval_dataset=eval_set,
        data_collator=collator,
        compute_metrics=held_out_metrics,
        execute=execute,
    )
    last = last_whole_checkpoint(folder) if arguments.resume else None
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    return trainer


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that the Trainer finished; a kill may have left a newer one half written."""
    whole = []
    for state in folder.glob("checkpoint-*/trainer_state.json"):  # written last
        try:
            json.loads(state.read_text())
        except ValueError:
            continue
        whole.append(state.parent)
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)
