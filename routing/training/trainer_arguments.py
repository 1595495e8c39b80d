"""What all trainings ask of transformers' Trainer alike, and the table that they leave of its log."""

from __future__ import annotations

from pathlib import Path

from transformers import TrainingArguments

from routing.common.devices import pick_device
from routing.common.files import write_text
from routing.common.tables import csv_text


def trainer_arguments(arguments, folder: Path, every: int, **own) -> TrainingArguments:
    """The Trainer's arguments; evaluation and saving happen at the same steps.

    Args:
        arguments: of a stage, with run_name, device, report_to and seed.
        folder: for the Trainer's checkpoints.
        every: updates between two evaluations.
        own: what the stage adds.
    """
    made = TrainingArguments(
        output_dir=str(folder),
        run_name=arguments.run_name,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        report_to=arguments.report_to,
        seed=arguments.seed,
        data_seed=arguments.seed,
        remove_unused_columns=False,
        use_cpu=pick_device(arguments.device).type == "cpu",
        dataloader_num_workers=0,
        **own,
    )
    made._n_gpu = min(made.n_gpu, 1)  # One process uses one GPU; several are for `accelerate launch`.
    return made


def write_metrics(path: Path, history: list[dict], columns: tuple[str, ...]) -> None:
    """metrics.csv, anew from the Trainer's log, so that a resumed run leaves no row twice.

    Args:
        columns: step, epoch, then names of what each validation logs as `eval_NAME`.
    """
    rows = []
    for entry in history:
        if "eval_validation_loss" in entry:
            values = (entry.get(f"eval_{name}") for name in columns[2:])
            known = (None if value is None else float(value) for value in values)
            rows.append([entry["step"], str(round(entry["epoch"], 4)), *known])
    write_text(path, csv_text(columns, rows))
