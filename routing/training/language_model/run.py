"""One run of training a hybrid language model from scratch: text, model, training, checkpoint."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

from routing.common.errors import UserError
from routing.common.files import write_json
from routing.models.checkpoint import put_in_place
from routing.models.families import load_tokenizer
from routing.tasks.sequences import Sequences
from routing.training.end_to_end.run import hash_of, rows_of
from routing.training.end_to_end.validation import batches_of
from routing.training.language_model.arguments import RESULT, LanguageModelArguments
from routing.training.language_model.parameters import matched, parameter_counts
from routing.training.language_model.training import train_language_model
from routing.training.language_model.validation import validate
from routing.training.skeleton import Run, Save, training_run
from train_models.configuration_gdn_hybrid import GdnHybridConfig
from train_models.modeling_gdn_hybrid import GdnHybridForCausalLM

# Fields of the model in RESULT; those of a file, and a matched width, differ from the arguments.
MODEL_FIELDS = (
    "pattern", "hidden_size", "num_attention_heads", "head_dim", "intermediate_size", "vocab_size", "router",
    "random_share",
)  # fmt: skip


def check_vocabulary(arguments: LanguageModelArguments, tokenizer) -> None:
    """Refuse a file whose vocabulary lacks tokens of the text, before that is read.

    Raises:
        UserError: if it does.
    """
    size = arguments.model_fields().get("vocab_size", len(tokenizer))
    if size < len(tokenizer):
        raise UserError(
            f"--config {arguments.config}: vocab_size {size} is less than the {len(tokenizer)} tokens of the tokenizer "
            f"of {arguments.model_id!r}. Leave vocab_size out."
        )


def make_config(arguments: LanguageModelArguments, tokenizer) -> GdnHybridConfig:
    fields = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "max_position_embeddings": max(arguments.sequence_length, 2048),  # lm-eval cuts its requests at so many tokens
    } | arguments.model_fields()
    return matched(fields) if arguments.match_parameters else GdnHybridConfig(**fields)


def save_language_model(folder: Path, model, tokenizer, metrics: Path, run_info: dict) -> None:
    """Write a self-contained folder that loads with trust_remote_code, replacing an older one but for its README.md."""
    work = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    model.save_pretrained(work)
    tokenizer.save_pretrained(work)
    shutil.copy2(metrics, work)
    write_json(work / "training.json", run_info)
    put_in_place(work, folder)


def run(arguments: LanguageModelArguments) -> Path | None:
    """Train and write the checkpoint folder, with metrics.csv beside the weights."""
    tokenizer = load_tokenizer(arguments.model_id)
    check_vocabulary(arguments, tokenizer)
    rows, held_out, test = (rows_of(arguments, part, tokenizer) for part in ("train", "validation", "test"))

    def made_from() -> dict:
        # A file may be edited between two starts; a named configuration may not.
        fields = {} if arguments.named() else {"model_fields": arguments.model_fields()}
        return fields | {"text": hash_of(rows, held_out, test)}

    return training_run(arguments, made_from, lambda own: train(own, tokenizer, rows, held_out, test))


def train(run: Run, tokenizer, rows: Sequences, held_out: Sequences, test: Sequences) -> Save:
    arguments = run.arguments
    if run.processes.is_main_process:
        (run.work / RESULT).unlink(missing_ok=True)
    config = make_config(arguments, tokenizer)
    model = GdnHybridForCausalLM(config).to(run.device)
    sizes = parameter_counts(config)
    rate = arguments.peak_rate(arguments.model_fields())
    run.say(
        f"{arguments.config}: {'-'.join(config.pattern)}, {sizes['total']:,} parameters "
        f"({sizes['embeddings']:,} of the embeddings), MLP width {config.intermediate_size}, learning rate "
        f"{rate:g}; {len(rows)} training and {len(held_out)} validation rows of {arguments.sequence_length} "
        "tokens"
    )
    validation, tests = (batches_of(part, arguments.batch_size, 0, run.device) for part in (held_out, test))
    trainer = train_language_model(model, arguments, rate, rows, validation, run.work, run.processes.num_processes)
    kept = trainer.state.best_global_step
    log = trainer.state.log_history
    if kept is None:
        raise UserError(
            f"training diverged: no validation had a finite loss (learning rate {rate:g}). Give a lower "
            f"--learning_rate, a lower --max_grad_norm or more --warmup_steps; losses: {run.work / 'metrics.csv'}."
        )
    chosen = next(entry for entry in log if entry["step"] == kept and "eval_validation_loss" in entry)
    measured = validate(model, tests)  # of the best weights
    alarmed = {entry["step"]: entry["warnings"] for entry in log if entry.get("warnings")}
    summary = run.summary(
        parameters=sizes,
        model={name: getattr(config, name) for name in MODEL_FIELDS},
        learning_rate=rate,
        train_rows=len(rows),
        validation_rows=len(held_out),
        test_rows=len(test),
        kept_step=kept,
        validation_loss=chosen["eval_validation_loss"],
        test=measured.facts() | {"softmax_shares": dict(zip(map(str, config.routed_blocks), measured.shares))},
        warnings=chosen["warnings"],
        alarms=alarmed,
        log=log,
    )

    def save(folder: Path) -> None:
        if alarmed:
            print(
                f"ALARM: alarms in {len(alarmed)} validations (training.json, alarms); at the kept step {kept}: "
                f"{'; '.join(chosen['warnings']) or 'none'}",
                file=sys.stderr,
            )
        save_language_model(folder, model.to(torch.float32), tokenizer, run.work / "metrics.csv", summary)
        write_json(run.work / RESULT, {name: value for name, value in summary.items() if name != "log"})

    return save
