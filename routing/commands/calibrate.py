"""Set how many layers a routed checkpoint runs: as many as asked for, or as few as a promise about accuracy allows.

    python -m routing calibrate checkpoints/my-run --target_layers 27 --dataset arithmetic
    python -m routing calibrate checkpoints/my-run --max_loss 0.02 --confidence 0.95 --dataset arithmetic

--target_layers finds the route bias that reaches a mean on held-out questions; only prompts are read, and no answer is
looked at. --max_loss finds the largest saving whose accuracy is at most so far below the full path with the confidence
asked for: it answers calibration questions, tests settings from the safest on, and stops at the first that is not
shown (Learn then Test, arXiv 2110.01052). Where nothing is shown it says how many questions that would take, and leaves
the checkpoint as it is.

What is found goes into the checkpoint's config.json (`route_bias`, of menu routers with a promise `cost`), what it
rests on into calibration.json beside it, and into the model card. --target_layers none takes it back.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from routing.common.cli import below
from routing.common.devices import DTYPES, pick_device
from routing.common.errors import UserError, raise_all, run_command
from routing.common.files import unwritable, write_json
from routing.common.paired_bounds import Tested, needed_questions
from routing.common.parser import Parser
from routing.common.run_info import made_with
from routing.common.tables import print_table
from routing.evaluation.budget import decided_routes, find_bias, mean_layers
from routing.evaluation.calibration import PRICES, as_set, biases, swept_field, tested_settings
from routing.evaluation.promise import CALIBRATION, SET
from routing.models.checkpoint import check_checkpoint, checkpoint_hash, load_checkpoint, training_record
from routing.report.card import renew_card
from routing.scoring.context import fitting
from routing.scoring.plain import draw_requests
from routing.scoring.prompting import add_flags, asked, flag_problems, recorded, trained_prompting
from routing.tasks import expand_names, unknown_names
from routing.tasks.examples import SPLITS
from train_models.router_kinds import kind_of

SAMPLES, PROMISE_SAMPLES = 200, 3000  # questions of each data set, at most, by what is asked for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those that `routing.commands.frontier` has too."""
    parser.add_argument("checkpoint", help="folder of a routed checkpoint")
    parser.add_argument("--dataset", default="arithmetic", help="comma-separated data sets: names or JSONL files")
    parser.add_argument("--num_samples", type=int, default=SAMPLES, help="questions of each data set, at most")
    add_flags(parser)
    parser.add_argument("--tolerance", type=float, default=0.1, help="difference in layers that is good enough")
    parser.add_argument("--batch_size", type=int, default=16, help="prompts a forward")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    parser.add_argument("--device", default="auto", help="torch device; auto: cuda if there is one, else cpu")


def parse_arguments() -> argparse.Namespace:
    parser = Parser(prog="dlr calibrate", description=__doc__)
    add_arguments(parser)
    parser.set_defaults(num_samples=None)
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--target_layers", help="mean number of layers an input runs, or none")
    goal.add_argument("--max_loss", type=float, help="accuracy below the full path that is allowed, 0 to 1")
    parser.add_argument("--confidence", type=float, default=0.95, help="of the promise, 0.5 to 0.998")
    parser.add_argument(
        "--grid",
        default="",
        help="settings to test, as --grid=-0.01,0,0.01: costs of a layer for a menu router, else route biases; "
        "default: a fixed list of costs, or biases by the layers that they run on validation questions",
    )
    parser.add_argument(
        "--split", choices=SPLITS, help="split to draw from; default validation, with --max_loss calibration"
    )
    arguments = parser.parse_args()
    promised = arguments.max_loss is not None
    if arguments.num_samples is None:
        arguments.num_samples = PROMISE_SAMPLES if promised else SAMPLES
    arguments.split = arguments.split or ("calibration" if promised else "validation")
    targets = [] if arguments.target_layers in (None, "none") else [arguments.target_layers]
    found = problems_of(arguments, "target_layers", targets)
    raise_all(found + (promise_problems(arguments) if promised else []))
    return arguments


def promise_problems(arguments: argparse.Namespace) -> list[str]:
    """What is wrong with the arguments of a promise; the grid becomes a list."""
    found = []
    if not 0 < arguments.max_loss < 1:
        found.append(f"--max_loss {arguments.max_loss} must lie between 0 and 1, neither of them")
    if not 0.5 <= arguments.confidence <= 0.998:
        found.append(f"--confidence {arguments.confidence} must lie between 0.5 and 0.998")
    try:
        grid = [float(word) for word in arguments.grid.split(",") if word.strip()]
        if not all(map(math.isfinite, grid)):
            raise ValueError
        arguments.grid = grid
    except ValueError:
        found.append(f"--grid {arguments.grid!r} must be numbers with commas between")
    own_files = [name for name in expand_names(arguments.dataset) if Path(name).is_file()]
    if arguments.split == "search" and len(own_files) < len(expand_names(arguments.dataset)):
        found.append("--split search holds the questions that routers are trained on, which show nothing; give another")
    try:
        config = check_checkpoint(Path(arguments.checkpoint))
    except UserError:
        return found  # Which is said already.
    if kind_of(config).decides_for == "token":
        named = f"{arguments.checkpoint} has router {config['router']!r}"
        found.append(f"--max_loss: {named}, whose tokens take routes of their own")
    if own_files and not kind_of(config).has_menu and not arguments.grid:
        found.append(
            f"--data {', '.join(own_files)}: a file has no validation questions that route biases could be found on; "
            "give --grid"
        )
    return found


def problems_of(arguments: argparse.Namespace, name: str, targets: list[str]) -> list[str]:
    """What is wrong with shared arguments, and with numbers of layers given as --{name}."""
    found, depth = [], None
    try:
        config = check_checkpoint(Path(arguments.checkpoint))
        depth = config["num_hidden_layers"]
        if not kind_of(config).learned or config.get("fixed_route"):
            found.append(f"{arguments.checkpoint} has router {config['router']!r}, whose decisions no bias changes")
    except UserError as error:
        found.append(str(error))
    for text in targets:
        try:
            if depth is not None and not 0 < float(text) < 2 * depth:
                found.append(
                    f"--{name} {text} must lie between 0 and {2 * depth}, twice the {depth} layers of the model"
                )
        except ValueError:
            found.append(f"--{name} {text!r} is no number" + (", nor none" if name == "target_layers" else ""))
    found += unknown_names(arguments.dataset)
    found += below(arguments, num_samples=1, batch_size=1)
    found += flag_problems(arguments)
    given = getattr(arguments, "output", "")  # frontier has one, calibrate writes into the checkpoint.
    found += unwritable("--output" if given else "--checkpoint", Path(given or arguments.checkpoint))
    if not arguments.tolerance > 0:
        found.append(f"--tolerance {arguments.tolerance} must be above 0")
    return found


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
    model, tokenizer = load_checkpoint(folder, DTYPES[arguments.dtype], pick_device(arguments.device))
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


def main() -> None:
    arguments = parse_arguments()
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
    model, tokenizer = load_checkpoint(folder, DTYPES[arguments.dtype], pick_device(arguments.device))
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


if __name__ == "__main__":
    run_command(main)
