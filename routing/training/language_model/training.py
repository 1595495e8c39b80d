"""Training of a hybrid model with transformers' Trainer: language-model loss and balance loss, validation, alarms.

The two losses are added for the gradient alone. All that is logged holds them apart, and the checkpoint is chosen by
the language-model loss of validation, without noise.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments

from routing.objectives.hybrid import balance_loss, gumbel_noise, mechanism_gates, temperature_at
from routing.tasks.sequences import Sequences, TextBatch
from routing.training.end_to_end.training import OwnNoise, TextRows, collator, peak_memory
from routing.training.language_model.alarms import alarms
from routing.training.language_model.arguments import LanguageModelArguments
from routing.training.language_model.validation import Measured, learns_to_route, needed_mask, validate
from routing.training.run_folder import WholeCheckpoints, last_whole_checkpoint
from routing.training.trainer_arguments import trainer_arguments, write_metrics

# Columns of metrics.csv, a row for each validation, and behind them softmax_share_N for each routed block N. Losses of
# training are means since the row before, with noise in the gates; train_loss is that of the language model alone.
COLUMNS = (
    "step", "epoch", "train_loss", "balance_loss", "validation_loss", "perplexity", "validation_balance_loss",
    "tokens_per_second", "validation_tokens_per_second", "temperature", "learning_rate", "softmax_share",
    "share_entropy", "routing_entropy", "peak_memory_gib",
)  # fmt: skip
SHARE = "softmax_share_"
LOGS_BETWEEN = 5  # log entries from one validation to the next


class Means:
    """Means of losses since they were last taken."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}
        self.count = 0

    def add(self, losses: dict[str, torch.Tensor]) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach()
        self.count += 1

    def take(self, reduce) -> dict[str, float]:
        """The means over all processes, and begin anew."""
        found = {name: float(reduce(value / self.count, "mean")) for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        return found


class LanguageModelTrainer(WholeCheckpoints, Trainer):
    """Trainer of a hybrid model that validates without noise and writes metrics.csv.

    Args:
        own: arguments of the run.
        batches: of validation text, shared out over the processes.
        table: where metrics.csv goes.
    """

    def __init__(self, *args, own: LanguageModelArguments, batches: Sequence[TextBatch], table: Path, **kwargs):
        super().__init__(*args, **kwargs)
        self.own, self.batches, self.table = own, batches, table
        self.model_accepts_loss_kwargs = False  # The Trainer then averages over accumulated steps.
        self._logged, self._validated = Means(), Means()
        self._tokens, self._began = 0, None

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        """AdamW (0.9, 0.95); vectors, such as norms, biases and decay rates of the recurrent state, do not decay."""
        if self.optimizer is None:
            parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            groups = [
                {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.args.weight_decay},
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
            ]
            self.optimizer = torch.optim.AdamW(groups, lr=self.args.learning_rate, betas=(0.9, 0.95))
        return self.optimizer

    @property
    def tau(self) -> float:
        progress = self.state.global_step / self.state.max_steps
        return temperature_at(progress, self.own.temperature, self.own.temperature_end)

    def training_step(self, *args, **kwargs):
        if self._began is None:  # Here, so that neither validation nor saving is in tokens a second.
            self._began = time.perf_counter()
        return super().training_step(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        config = self.accelerator.unwrap_model(model).config
        real = inputs["mask"].bool()
        drawing = {}
        if learns_to_route(config):
            drawing["draw_mechanisms"] = lambda logits: mechanism_gates(logits, self.tau, gumbel_noise(logits))
        labels = inputs["ids"].masked_fill(~real, -100)
        output = model(inputs["ids"], attention_mask=needed_mask(inputs["mask"]), labels=labels, **drawing)
        losses, loss = {"train_loss": output.loss}, output.loss
        if drawing:
            losses["balance_loss"] = balance_loss(output.router_logits, real)
            loss = loss + self.own.balance_weight * losses["balance_loss"]
        self._logged.add(losses)
        self._validated.add(losses)
        self._tokens += int(real.sum())
        return (loss, output) if return_outputs else loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """What the Trainer calls loss is the sum that has the gradient; its parts stand beside it."""
        if "loss" in logs:
            parts = self._logged.take(self.accelerator.reduce)
            logs = {"objective": logs.pop("loss"), "lm_loss": parts.pop("train_loss")} | parts | logs
            if "balance_loss" in parts:
                logs["temperature"] = self.tau
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Validation loss and shares of mechanisms; a row of metrics.csv; alarms."""
        seconds = time.perf_counter() - self._began
        means = self._validated.take(self.accelerator.reduce)
        measured = self._measured()
        config = self.accelerator.unwrap_model(self.model).config
        blocks, facts = config.routed_blocks, measured.facts()
        row = means | {
            "validation_loss": facts.pop("loss"),
            # Both of all processes together; a process without a batch reads nothing.
            "validation_tokens_per_second": facts.pop("tokens_per_second")
            * min(self.args.world_size, len(self.batches)),
            "tokens_per_second": self._tokens * self.args.world_size / seconds,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "peak_memory_gib": peak_memory(),
        }
        if "balance_loss" in facts:
            row |= {"validation_balance_loss": facts.pop("balance_loss"), "temperature": self.tau}
        row |= facts
        if blocks:
            row["softmax_share"] = sum(measured.shares) / len(blocks)
            row |= {f"{SHARE}{block}": share for block, share in zip(blocks, measured.shares, strict=True)}
        warnings = alarms(measured.shares, blocks, facts.get("routing_entropy")) if learns_to_route(config) else []
        for text in warnings if self.is_world_process_zero() else ():
            tqdm.write(f"ALARM at step {self.state.global_step}: {text}", file=sys.stderr)
        metrics = {f"eval_{name}": value for name, value in (row | {"alarms": len(warnings)}).items()}
        self.log(metrics)
        self.state.log_history[-1]["warnings"] = warnings  # For the record, not for the terminal.
        if self.is_world_process_zero():
            write_metrics(self.table, self.state.log_history, (*COLUMNS, *(f"{SHARE}{block}" for block in blocks)))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._tokens, self._began = 0, None
        return metrics

    def _measured(self) -> Measured:
        own = self.batches[self.args.process_index :: self.args.world_size]
        found = [validate(self.accelerator.unwrap_model(self.model), own)] if own else []
        first, *rest = gather_object(found)
        return sum(rest, first)


class ValidateAtTheEnd(TrainerCallback):
    """The last state is validated too where the number of updates is no multiple of those between validations."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_log = control.should_save = True


def updates(arguments: LanguageModelArguments, rows: int, processes: int) -> int:
    if arguments.max_steps > 0:
        return arguments.max_steps
    batches = -(-rows // (arguments.batch_size * processes))
    return max(-(-batches // arguments.gradient_accumulation), 1) * arguments.num_epochs


def training_arguments(
    arguments: LanguageModelArguments, rate: float, folder: Path, rows: int, processes: int
) -> TrainingArguments:
    """The Trainer's arguments. Logs, validations and saves end at the same steps, so that a run that is resumed logs
    what one that was not interrupted does."""
    steps = updates(arguments, rows, processes)
    logging = max(steps // (arguments.num_evaluations * LOGS_BETWEEN), 1)
    every = math.ceil(math.ceil(steps / arguments.num_evaluations) / logging) * logging
    return trainer_arguments(
        arguments,
        folder,
        every,
        max_steps=steps,
        per_device_train_batch_size=arguments.batch_size,
        gradient_accumulation_steps=arguments.gradient_accumulation,
        learning_rate=rate,
        weight_decay=arguments.weight_decay,
        max_grad_norm=arguments.max_grad_norm,
        lr_scheduler_type="cosine",
        warmup_steps=min(arguments.warmup_steps, steps // 10),
        load_best_model_at_end=True,
        metric_for_best_model="eval_validation_loss",
        greater_is_better=False,
        logging_steps=logging,
        bf16=arguments.bf16,
        label_names=["targets"],
    )


def train_language_model(
    model, arguments: LanguageModelArguments, rate: float, rows: Sequences, batches: Sequence[TextBatch], folder: Path,
    processes: int,
) -> LanguageModelTrainer:  # fmt: skip
    """Train to the end, from the last state where the run is resumed; the model then has the best weights.

    Args:
        model: a GdnHybridForCausalLM.
        rate: peak learning rate.
        rows: training text.
        batches: validation text.
        folder: of the run; training states and metrics.csv go there.
    """
    states = folder / "trainer"
    trainer = LanguageModelTrainer(
        model=model,
        args=training_arguments(arguments, rate, states, len(rows), processes),
        train_dataset=TextRows(rows),
        eval_dataset=TextRows(rows),  # Not read: `evaluate` has batches of its own.
        data_collator=collator(0),
        own=arguments,
        batches=batches,
        table=folder / "metrics.csv",
        callbacks=[OwnNoise(), ValidateAtTheEnd()],
    )
    last = last_whole_checkpoint(states) if arguments.resume else None
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    return trainer
