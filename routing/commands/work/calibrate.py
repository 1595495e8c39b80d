"""What `dlr calibrate` does: finds a route bias, or the largest saving that keeps a promise, and sets it."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from routing.commands.calibrate import SAMPLES
from routing.common.devices import DTYPES
from routing.common.files import write_json
from routing.common.paired_bounds import Tested, needed_questions
from routing.common.run_info import made_with
from routing.common.tables import print_table
from routing.evaluation.budget import decided_routes, find_bias, mean_layers
from routing.evaluation.calibration import PRICES, as_set, biases, swept_field, tested_settings
from routing.evaluation.promise import CALIBRATION, SET
from routing.models.checkpoint import load_checkpoint
from routing.models.checkpoint_files import check_checkpoint, checkpoint_hash, training_record
from routing.models.placement import place_of
from routing.report.card import renew_card
from routing.scoring.context import fitting
from routing.scoring.prompting import asked, recorded, trained_prompting
from routing.scoring.requests import draw_requests
from train_models.router_kinds import kind_of


def set_fields(folder: Path, fields: dict[str, float], note: dict | None) -> None:
    """Write fields into a checkpoint's config, what they rest on beside it, and the card anew."""
    record = folder / CALIBRATION
    if note is None:
        record.unlink(missing_ok=True)
    else:
        write_json(record, note)
    path = folder / "config.json"
    write_json(path, json.loads(path.read_text()) | fields)
    renew_card(folder)


def as_trained(folder: Path) -> dict[str, float]:
    """The config fields that a calibration sets, as training left them."""
    fields = {"route_bias": 0.0}
    if kind_of(check_checkpoint(folder)).has_menu:
        trained = training_record(folder)["arguments"]
        fields |= {"cost": trained["cost"]} if "cost" in trained else {}
    return fields


def in_words(fields: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in fields.items())


def promise(arguments: argparse.Namespace) -> None:
    """The largest saving that is shown to lose at most --max_loss, written into the checkpoint."""
    folder = Path(arguments.checkpoint)
    prompting = asked(trained_prompting(training_record(folder)), arguments)
    model, tokenizer = load_checkpoint(folder, DTYPES[arguments.dtype], place_of(arguments))
    config, depth = model.config, model.config.num_hidden_layers
    requests = fitting(
        draw_requests(arguments.dataset, arguments.split, arguments.num_samples, tokenizer, prompting), model.config
    )
    grid = arguments.grid or (PRICES if swept_field(config) == "cost" else None)
    if grid is None:
        split = "validation" if arguments.split != "validation" else "test"  # Other questions; only prompts are read.
        others = fitting(draw_requests(arguments.dataset, split, SAMPLES, tokenizer, prompting), model.config)
        prompts = [request.prompt_ids for request in others]
        grid = biases(model, tokenizer, prompts, arguments.batch_size, arguments.tolerance)
    grid = sorted(set(grid), reverse=swept_field(config) == "route_bias")
    identity = checkpoint_hash(folder, SET)
    tested, kept = tested_settings(
        model, tokenizer, requests, grid, arguments.max_loss, arguments.confidence, arguments.batch_size,
        folder / "calibration.parts", [identity, arguments.dtype, recorded(prompting)],
    )  # fmt: skip
    print_tested(tested, kept, arguments)
    best = tested[kept - 1] if kept else None
    if best is None or best.setting.layers >= depth:
        print(f"{folder} is left as it is: {missing_words(tested, kept, arguments)}")
        return
    fields = as_set(config, best.setting.value)
    note = {
        "max_loss": arguments.max_loss,
        "confidence": arguments.confidence,
        "set": fields,
        "layers": best.setting.layers,
        "accuracy": best.setting.accuracy,
        "full_accuracy": best.setting.full_accuracy,
        "questions": len(requests),
        "questions_by_dataset": dict(Counter(request.example.dataset for request in requests)),
        "split": arguments.split,
        **recorded(prompting),
        "dtype": arguments.dtype,
        "grid": list(grid),
        "tested": [test.setting._asdict() | test.pairs._asdict() | {"p": test.p} for test in tested],
        "checkpoint_sha256": identity,
    }
    set_fields(folder, fields, note | {"arguments": vars(arguments)} | made_with())
    print(
        f"{folder}: {in_words(fields)} runs {best.setting.layers:.2f} of {depth} layers an input; with "
        f"{arguments.confidence:.0%} confidence accuracy is at most "
        f"{arguments.max_loss:g} below the full path ({len(requests)} questions, p {best.p:.3g})"
    )
    if kept < len(tested) and (words := needed_words(tested[kept], arguments)):
        print(f"The next setting, {tested[kept].setting.layers:.2f} layers: {words}")


def print_tested(tested: list[Tested], kept: int, arguments: argparse.Namespace) -> None:
    rows = [
        (
            f"{setting.value:g}", f"{setting.layers:.2f}", f"{setting.accuracy:.3f}", f"{setting.full_accuracy:.3f}",
            str(pairs.lost), str(pairs.gained), f"{p:.3g}", "yes" if at < kept else "no",
        )
        for at, (setting, pairs, p) in enumerate(tested)
    ]  # fmt: skip
    title = f"loss of at most {arguments.max_loss:g}? tested in this order, up to the first that is not shown"
    print_table(title, ("setting", "layers/input", "accuracy", "full path", "lost", "gained", "p", "shown"), rows)


def needed_words(test: Tested, arguments: argparse.Namespace) -> str:
    """How many questions would show that a setting keeps the promise, in words."""
    loss = test.setting.full_accuracy - test.setting.accuracy
    needed = needed_questions(test.pairs, arguments.max_loss, arguments.confidence)
    if needed is None:
        return f"it lost {loss:.3f} on these questions, so more of them would not show it"
    return f"about {needed} questions would show it with a probability of 80 %, if it loses {loss:.3f} as on these"


def missing_words(tested: list[Tested], kept: int, arguments: argparse.Namespace) -> str:
    """Why nothing was found, in words."""
    asked = f"no saving is shown to lose at most {arguments.max_loss:g} with {arguments.confidence:.0%} confidence"
    if kept < len(tested):
        test = tested[kept]
        return f"{asked}. At {test.setting.layers:.2f} layers: {needed_words(test, arguments)}."
    return f"{asked}; no setting of --grid saves any layer. Give others."


def run(arguments: argparse.Namespace) -> None:
    folder = Path(arguments.checkpoint)
    if arguments.max_loss is not None:
        promise(arguments)
        return
    if arguments.target_layers == "none":
        fields = as_trained(folder)
        set_fields(folder, fields, None)
        print(f"{folder}: {in_words(fields)}, the routers decide as trained")
        return
    target = float(arguments.target_layers)
    model, tokenizer = load_checkpoint(folder, DTYPES[arguments.dtype], place_of(arguments))
    prompting = asked(trained_prompting(training_record(folder)), arguments)
    requests = fitting(
        draw_requests(arguments.dataset, arguments.split, arguments.num_samples, tokenizer, prompting), model.config
    )
    prompts = [request.prompt_ids for request in requests]
    progress = tqdm(desc=f"target {target:g} layers", unit="bias")

    def layers_at(bias: float) -> float:
        model.config.route_bias = bias
        found = mean_layers(decided_routes(model, tokenizer, prompts, arguments.batch_size))
        progress.set_postfix_str(f"bias {bias:.4g}: {found:.2f} layers", refresh=False)
        progress.update()
        return found

    with progress:
        bias, tried = find_bias(layers_at, target, arguments.tolerance)
    note = {
        "route_bias": bias,
        "layers": tried[bias],
        "target_layers": target,
        "reached": abs(tried[bias] - target) <= arguments.tolerance,
        "tried": dict(sorted(tried.items())),
        "prompts": len(prompts),
    }
    set_fields(folder, {"route_bias": bias}, note | {"arguments": vars(arguments)} | made_with())
    print(f"{folder}: route_bias {bias:.6g} runs {tried[bias]:.2f} layers an input on {len(prompts)} prompts")
    if not note["reached"]:
        nearest = sorted(set(tried.values()), key=lambda layers: abs(layers - target))[:3]
        print(
            f"--target_layers {target:g} is not reached within {arguments.tolerance:g}: the routers decide so alike "
            f"for all inputs that the mean jumps; nearest were {', '.join(f'{layers:.2f}' for layers in nearest)}"
        )
