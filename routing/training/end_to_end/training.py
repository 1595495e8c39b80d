"""Training end to end with transformers' Trainer: an objective's loss, validation with routing on, metrics, alarms."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate.utils import gather_object
from peft import LoraModel
from torch import nn
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments

from routing.objectives.end_to_end import TrainingStep
from routing.tasks.sequences import Sequences, TextBatch, text_batch
from routing.training.end_to_end.alarms import alarms
from routing.training.end_to_end.arguments import EndToEndArguments
from routing.training.end_to_end.lora import lora_off
from routing.training.end_to_end.validation import Measured, validate
from routing.training.refetching import Refetching
from routing.training.run_folder import WholeCheckpoints, last_whole_checkpoint
from routing.training.trainer_arguments import trainer_arguments, write_metrics

# Columns of metrics.csv, a row for each validation. Losses of training are means since the row before.
COLUMNS = (
    "step", "epoch", "train_loss", "ce_loss", "kd_loss", "gate_loss", "target_loss", "validation_loss", "active_layers",
    "skip_ratio", "temperature", "learning_rate", "perplexity", "tokens_per_second", "peak_memory_gib",
)  # fmt: skip
MEANS = ("ce_loss", "kd_loss", "gate_loss", "target_loss", "gate_entropy")


class EndToEnd(nn.Module):
    """What the Trainer trains: the weights of router and adapters, not those of the frozen base.

    Its parameters are those of the model that get gradients, so that a training state holds no copy of the base.

    Args:
        model: a routed ...ForCausalLM on its device.
        adapters: those that were put into it, or None.
    """

    def __init__(self, model: nn.Module, adapters: LoraModel | None, arguments: EndToEndArguments):
        super().__init__()
        self._held = (model, adapters)  # In a tuple, so that it is no submodule.
        self.refetching = Refetching(model)
        self.arguments, self.temperature = arguments, arguments.temperature
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.register_parameter(name.replace(".", "/"), parameter)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("baseline", torch.zeros(()))
        self.register_buffer("costs", torch.zeros((), dtype=torch.long))

    @property
    def routed(self) -> nn.Module:
        return self._held[0]

    @property
    def hf_device_map(self) -> dict:
        """By which the Trainer knows that parameters lie on several devices, and leaves them there."""
        return self.routed.hf_device_map  # Of a model on one device there is none.

    def train(self, mode: bool = True) -> EndToEnd:
        self.routed.train(mode)
        return super().train(mode)

    def teacher_logits(self, batch: TextBatch) -> torch.Tensor:
        """[B, T, V] of the base at full depth: the same weights, adapters off."""
        model, adapters = self._held
        every = torch.ones(len(batch.ids), model.config.num_hidden_layers, dtype=torch.long)
        with torch.no_grad(), lora_off(adapters):
            return model(batch.ids, attention_mask=batch.mask, routes=every, use_cache=False).logits

    def forward(self, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Losses of a TextBatch, given by its fields."""
        batch = TextBatch(**tensors)
        step = TrainingStep(
            self.routed,
            batch,
            self.arguments,
            self.temperature,
            int(self.steps),
            teacher=lambda: self.teacher_logits(batch),
            memory={"baseline": self.baseline, "costs": self.costs},
        )
        with self.refetching.forward():
            losses = self.arguments.plan.loss(step)
        self.steps += 1
        return losses


class TextRows(torch.utils.data.Dataset):
    """Rows of tokens for the Trainer."""

    def __init__(self, rows: Sequences):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.rows.ids[index], self.rows.lengths[index]


def collator(prompt_tokens: int) -> Callable:
    """Function that makes a batch of rows."""

    def collate(rows: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
        ids, lengths = map(torch.stack, zip(*rows, strict=True))
        return text_batch(ids, lengths, prompt_tokens)._asdict()

    return collate


class OwnNoise(TrainerCallback):
    """Other random numbers in each further process, which the Trainer would seed like the first."""

    def on_train_begin(self, args, state, control, **kwargs):
        if args.process_index:
            torch.manual_seed(args.seed + args.process_index)


class EndToEndTrainer(WholeCheckpoints, Trainer):
    """Trainer that validates with the routers deciding, without noise, and writes metrics.csv.

    Args:
        batches: of validation text, shared out over the processes.
        table: where metrics.csv goes.
    """

    def __init__(self, *args, batches: Sequence[TextBatch], table: Path, **kwargs):
        super().__init__(*args, **kwargs)
        self.batches, self.table = batches, table
        self.model_accepts_loss_kwargs = False  # The Trainer then averages over accumulated steps.
        self._forget()

    def _forget(self) -> None:
        self._sums: dict[str, torch.Tensor | float] = {}
        self._count, self._tokens, self._began = 0, 0, time.perf_counter()

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        """AdamW with a learning rate for the router and one for the adapters; biases do not decay."""
        if self.optimizer is None:
            groups, router_rate = [], self.model.arguments.router_learning_rate
            for is_router, rate in ((True, router_rate), (False, self.args.learning_rate)):
                for decays in (True, False):
                    own = [
                        parameter
                        for name, parameter in self.model.named_parameters()
                        if ("/routers/" in name) == is_router and (not name.endswith("bias")) == decays
                    ]
                    if own:
                        decay = self.args.weight_decay if decays else 0.0
                        groups.append({"params": own, "lr": rate, "weight_decay": decay})
            self.optimizer = torch.optim.AdamW(groups)
        return self.optimizer

    def training_step(self, model, inputs, *args, **kwargs):
        own, arguments = self.accelerator.unwrap_model(model), self.model.arguments
        cooled = arguments.temperature * arguments.temperature_decay ** int(self.state.epoch or 0)
        own.temperature = max(cooled, arguments.temperature_floor)
        return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        losses = model(**inputs)
        self._count += 1
        self._tokens += int(inputs["mask"].sum())
        noted = {name: losses[name] for name in (*MEANS, "run_shares") if name in losses}
        for name, value in (noted | {"train_loss": losses["loss"]}).items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()
        return (losses["loss"], losses) if return_outputs else losses["loss"]

    def _means(self) -> dict[str, torch.Tensor]:
        return {name: self.accelerator.reduce(value / self._count, "mean") for name, value in self._sums.items()}

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs = logs | {"temperature": self.accelerator.unwrap_model(self.model).temperature}
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Validation loss and what was executed; a row of metrics.csv; alarms."""
        means, seconds = self._means(), time.perf_counter() - self._began
        measured = self._validated()
        own = self.accelerator.unwrap_model(self.model)
        config = own.routed.config
        kept = config.kept_layers
        routable = measured.layer_shares[kept:]
        # The Trainer's schedule is that of the first group; its last one holds the adapters, or the router alone.
        row = {name: float(value) for name, value in means.items() if name != "run_shares"} | {
            "validation_loss": measured.loss,
            "perplexity": float(torch.tensor(measured.loss).exp()),
            "active_layers": measured.layers,
            "skip_ratio": 1 - sum(routable) / len(routable),
            "temperature": own.temperature,
            "learning_rate": self.optimizer.param_groups[-1]["lr"] if self.optimizer else self.args.learning_rate,
            "tokens_per_second": self._tokens * self.args.world_size / seconds,
            "validation_tokens_per_second": measured.tokens / measured.seconds,
            "peak_memory_gib": peak_memory(),
        }
        warnings = [f"validation: {text}" for text in alarms(routable, kept)] if config.router != "none" else []
        if "run_shares" in means:
            warnings += [f"training, without noise: {text}" for text in alarms(means["run_shares"].tolist(), kept)]
        for text in warnings if self.is_world_process_zero() else ():
            tqdm.write(f"ALARM at step {self.state.global_step}: {text}", file=sys.stderr)
        metrics = {f"eval_{name}": value for name, value in (row | {"alarms": len(warnings)}).items()}
        self.log(metrics)
        # For the record, not for the terminal.
        self.state.log_history[-1] |= {"layer_shares": measured.layer_shares, "warnings": warnings}
        if self.is_world_process_zero():
            write_metrics(self.table, self.state.log_history, COLUMNS)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._forget()
        return metrics

    def _validated(self) -> Measured:
        own = self.batches[self.args.process_index :: self.args.world_size]
        total, model = Measured(), self.accelerator.unwrap_model(self.model).routed
        measured = validate(model, own)
        if len(own) * self.args.world_size < len(self.batches):  # A batch less than others, who may wait for weights.
            validate(model, self.batches[:1])
        for part in gather_object([measured]):
            if part.tokens:
                total.add(part)
        return total


def peak_memory() -> float:
    """Most memory that was used so far, in GiB: of the GPU, or of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def training_arguments(arguments: EndToEndArguments, folder: Path, rows: int, processes: int) -> TrainingArguments:
    """The Trainer's arguments; validation and saving happen at the same steps."""
    batches = -(-rows // (arguments.batch_size * processes))
    steps = max(-(-batches // arguments.gradient_accumulation), 1) * arguments.num_epochs
    if arguments.max_steps > 0:
        steps = arguments.max_steps
    every = -(-steps // arguments.num_evaluations)
    return trainer_arguments(
        arguments,
        folder,
        every,
        num_train_epochs=arguments.num_epochs,
        max_steps=arguments.max_steps,
        per_device_train_batch_size=arguments.batch_size,
        gradient_accumulation_steps=arguments.gradient_accumulation,
        learning_rate=arguments.learning_rate,
        weight_decay=arguments.weight_decay,
        max_grad_norm=arguments.max_grad_norm,
        lr_scheduler_type="cosine",
        warmup_steps=arguments.warmup_steps,
        logging_steps=max(steps // 50, 1),
        label_names=["targets"],
        ddp_find_unused_parameters=True,  # A skipped layer's adapters take no part in a step.
    )


def train_end_to_end(
    module: EndToEnd, rows: Sequences, batches: Sequence[TextBatch], folder: Path, processes: int
) -> EndToEndTrainer:
    """Train to the end, from the last state where the run is resumed.

    Args:
        rows: training text.
        batches: validation text.
        folder: of the run; training states and metrics.csv go there.
    """
    arguments = module.arguments
    states = folder / "trainer"
    trainer = EndToEndTrainer(
        model=module,
        args=training_arguments(arguments, states, len(rows), processes),
        train_dataset=TextRows(rows),
        eval_dataset=TextRows(rows),  # Not read: `evaluate` has batches of its own.
        data_collator=collator(arguments.prompt_tokens),
        batches=batches,
        table=folder / "metrics.csv",
        callbacks=[OwnNoise()],
    )
    last = last_whole_checkpoint(states) if arguments.resume else None
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    return trainer
