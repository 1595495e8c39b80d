"""Loss of a checkpoint on held-out text, beside its base, itself at full depth, and controls of equal depth.

    python -m routing text_evaluation checkpoints/my-run
    python -m routing text_evaluation checkpoints/my-run --thresholds 0.1,0.2,0.4
    python -m routing text_evaluation checkpoints/dense --skip 0.25

The corpus and the rows are those of the checkpoint's training, of the test part, which training never read. All methods
take each batch in turn. A threshold is another share of skipped layers of the same router. Writes text_evaluation.json,
controls.csv and layers.csv into the checkpoint folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from routing.common.cli import below
from routing.common.devices import DTYPES
from routing.common.errors import UserError, raise_all, run_command
from routing.common.files import unwritable
from routing.common.parser import Parser
from routing.common.placing import add_place_arguments, place_problems
from routing.models.checkpoint_files import check_checkpoint, training_record
from train_models.router_kinds import LEARNED

CONTROLS = ("random_tokens", "random_layers", "static")


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="dlr text_evaluation", description=__doc__)
    parser.add_argument("checkpoint", help="folder of a checkpoint that was trained end to end")
    parser.add_argument("--rows", type=int, default=64, help="rows of text, at most")
    parser.add_argument("--skip", type=float, help="share of all layers for controls of a checkpoint that skips none")
    parser.add_argument(
        "--thresholds",
        default="",
        help="further shares of routable layers to set the threshold for, with commas",
    )
    parser.add_argument("--seeds", type=int, default=3, help="random controls of each kind")
    parser.add_argument("--batch_size", type=int, default=4, help="rows a forward")
    parser.add_argument("--controls", default=",".join(CONTROLS), help="of equal depth, with commas; empty for none")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    add_place_arguments(parser)
    return parser


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    arguments = make_parser().parse_args(argv)
    found = place_problems(arguments) + unwritable("checkpoint", Path(arguments.checkpoint))
    found += below(arguments, rows=1, seeds=1, batch_size=1)
    arguments.controls = [name.strip() for name in arguments.controls.split(",") if name.strip()]
    if unknown := [name for name in arguments.controls if name not in CONTROLS]:
        found.append(f"--controls {', '.join(unknown)}: unknown; allowed are {', '.join(CONTROLS)}")
    if arguments.skip is not None and not 0 <= arguments.skip < 1:
        found.append(f"--skip {arguments.skip} must lie between 0 and 1")
    try:
        arguments.thresholds = [float(share) for share in arguments.thresholds.split(",") if share.strip()]
        if not all(0 <= share <= 1 for share in arguments.thresholds):
            raise ValueError
    except ValueError:
        found.append(f"--thresholds {arguments.thresholds!r} must be shares from 0 to 1, such as 0.1,0.2")
    try:
        router = check_checkpoint(Path(arguments.checkpoint)).get("router")
        if arguments.thresholds and router not in LEARNED:
            found.append(f"--thresholds: {arguments.checkpoint} has router {router!r}, which has no threshold")
        if "corpus" not in training_record(Path(arguments.checkpoint))["arguments"]:
            found.append(f"{arguments.checkpoint} was trained on labels, not on text; evaluate it with evaluation.py")
    except UserError as error:
        found.append(str(error))
    raise_all(found)
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    from routing.commands.work.text_evaluation import run  # Takes seconds to import.

    run(arguments)


if __name__ == "__main__":
    run_command(main)
