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
import math
from pathlib import Path

from routing.common.cli import below
from routing.common.devices import DTYPES
from routing.common.errors import UserError, raise_all, run_command
from routing.common.files import unwritable
from routing.common.parser import Parser
from routing.common.placing import add_place_arguments, place_problems
from routing.models.checkpoint_files import check_checkpoint
from routing.scoring.prompting import add_flags, flag_problems
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
    add_place_arguments(parser)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
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
    arguments = parser.parse_args(argv)
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
    found += flag_problems(arguments) + place_problems(arguments)
    given = getattr(arguments, "output", "")  # frontier has one, calibrate writes into the checkpoint.
    found += unwritable("--output" if given else "--checkpoint", Path(given or arguments.checkpoint))
    if not arguments.tolerance > 0:
        found.append(f"--tolerance {arguments.tolerance} must be above 0")
    return found


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    from routing.commands.work.calibrate import run  # Takes seconds to import.

    run(arguments)


if __name__ == "__main__":
    run_command(main)
