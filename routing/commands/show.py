"""What a checkpoint does with a prompt: its route, layer by layer, and its answer beside that of every layer once.

    python -m routing show checkpoints/my-run --text "The railway was opened in 1890."
    python -m routing show checkpoints/my-run --dataset procedural --num_samples 3 --html show.html

Takes checkpoints of every kind of router, and hybrid language models. Layers are columns; a row is the prompt, or a
token where each token has a route of its own. Skipped, run, repeated and replaced layers differ by colour and by sign.
Of a menu router it tells the estimated reward of each path. Both answers come from the same weights: the routed model,
and the same model with every layer run once; their times are measured in turn, and the median counts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from routing.common.cli import below
from routing.common.devices import DTYPES, device_problems
from routing.common.errors import UserError, raise_all, run_command
from routing.common.files import unwritable
from routing.common.parser import Parser
from routing.common.user_files import read_text
from routing.evaluation.knobs import knob_of, knob_problems
from routing.models.checkpoint_files import config_of
from routing.scoring.prompting import add_flags, flag_problems
from routing.tasks import unknown_names
from routing.tasks.examples import SPLITS
from routing.tasks.problems import files_without_splits


def add_model(parser: argparse.ArgumentParser) -> None:
    """The arguments that `routing.commands.app` has too."""
    parser.add_argument("checkpoint", type=Path, help="folder of a checkpoint of train.py")
    add_flags(parser)
    parser.add_argument("--max_new_tokens", type=int, default=32, help="tokens of the answer to a text, at most")
    parser.add_argument("--repeats", type=int, default=3, help="times that each way is measured; 0: no times")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    parser.add_argument("--device", default="auto", help="torch device; auto: cuda if there is one, else cpu")


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="dlr show", description=__doc__)
    add_model(parser)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--text", help="the prompt")
    given.add_argument("--file", type=Path, help="a file with the prompt, in UTF-8")
    given.add_argument("--dataset", help="questions of these data sets, comma-separated")
    given.add_argument("--id", help="one question by its id, DATASET/HASH, as in labels, evaluations and studies")
    parser.add_argument("--split", default="test", choices=SPLITS, help="split of the questions")
    parser.add_argument("--num_samples", type=int, default=3, help="questions of each data set, at most")
    parser.add_argument("--max_tokens", type=int, default=1024, help="tokens of a text that are read, at most")
    parser.add_argument(
        "--budget",
        type=float,
        help="another setting of what moves how many layers run: the cost of menu routers, pruned layers of query "
        "routers, the bias of others; default: that of the checkpoint",
    )
    parser.add_argument("--html", type=Path, help="file for the page")
    return parser


def model_problems(arguments: argparse.Namespace) -> tuple[list[str], dict | None]:
    """What is wrong with the arguments of `add_model`, and the fields of the checkpoint's config."""
    found = below(arguments, max_new_tokens=1, repeats=0)
    found += device_problems(arguments.device) + flag_problems(arguments)
    try:
        return found, config_of(arguments.checkpoint)
    except UserError as error:
        return [*found, str(error)], None


def text_of(arguments: argparse.Namespace) -> str | None:
    """The prompt; None where questions of data sets are asked for."""
    if arguments.file is None:
        return arguments.text
    try:
        return read_text(arguments.file)
    except ValueError as error:
        raise UserError(f"--file {arguments.file} cannot be read as text: {error}.") from error


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    arguments = make_parser().parse_args(argv)
    problems, config = model_problems(arguments)
    problems += below(arguments, max_tokens=1, num_samples=1)
    if arguments.dataset is not None:
        problems += unknown_names(arguments.dataset)
        problems += files_without_splits("dataset", arguments.dataset) if arguments.split != "search" else []
    if arguments.id is not None:
        name, slash, _ = arguments.id.rpartition("/")
        problems += unknown_names(name) if slash else [f"--id {arguments.id!r} must be DATASET/HASH"]
    if arguments.html and arguments.html.suffix != ".html":
        problems.append(f"--html {arguments.html} must end in .html")
    if arguments.html:
        problems += unwritable("--html", arguments.html.parent)
    if arguments.budget is not None and config is not None:
        problems += knob_problems(knob_of(config), config.get("router", "per_layer"), arguments.budget)
    raise_all(problems)
    arguments.text = text_of(arguments)
    if arguments.text == "":
        raise UserError("the text is empty; give one of at least one token.")
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    from routing.commands.work.show import run  # Takes seconds to import.

    run(arguments)


if __name__ == "__main__":
    run_command(main)
