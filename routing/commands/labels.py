"""Label folders for others: PoLar's files, records of explored layer sets, and data set cards.

python -m routing labels export --format polar data/mcts_paths polar
python -m routing labels import --format polar polar/NAME data/imported --model M
python -m routing labels records data/explored records.jsonl
python -m routing labels card data/mcts_paths --repo_id OWNER/NAME --push
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TypeVar

from routing.common.errors import UserError, raise_all, run_command
from routing.common.files import unwritable
from routing.common.parser import Parser
from routing.labels.exploration import write_records
from routing.labels.polar import find_files
from routing.labels.polar_export import export_polar
from routing.labels.polar_import import ImportSettings, check_output, import_polar
from routing.labels.reading import LABELS, read_header
from routing.models.families import base_config, load_base_config, load_tokenizer
from routing.models.hub import is_repo_id
from routing.models.wheel_models import ANY_BASE
from routing.report.card_labels import CARD, check_card, push, write_card
from routing.tasks.examples import SPLITS

Value = TypeVar("Value")

EXPORT_HELP = """Write labels as PoLar files: OUTPUT/MODEL/dart-math-diff-N/merged_mcts_samples.json.

The data sets dart-1 to dart-5 become dart-math-diff-1 to 5; every other one gets a folder of its own name. PoLar asks
open questions: where there are choices, they are listed below the question, and the answer is the letter.
Lost are prompts, scoring, checkers, margins and marks of luck."""
IMPORT_HELP = """Make a label folder from PoLar files, ready for train.py.

Paths that do not keep the order of the layers, run a layer more than twice or leave the model are left out and
counted, and so are malformed samples, questions that were asked before, and samples without a usable path. Verdicts
are taken as they are; nothing is executed. A folder dart-math-diff-N becomes the data set dart-N, another one keeps
its name (see --dataset)."""
RECORDS_HELP = """Write what data_generation.py --search dfs or random explored as one JSON file, a line a layer set.

Each record has id, pruned_layers (in order; none for the full path), output (the whole answer) and score. The folder
may hold the labels of a run that is not finished."""
CARD_HELP = """Write a data set card into a label folder, and upload both to the HuggingFace hub on request.

Uploaded are the labels, their header, which names the model and the arguments as they were given, and the card."""


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="dlr labels", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, text: str, main: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=text.split("\n")[0].rstrip("."),
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(main=main)
        return added

    export = command("export", EXPORT_HELP, export_command)
    export.add_argument("labels", type=Path, help="folder of labels")
    export.add_argument("output", type=Path, help="root of the PoLar files")
    export.add_argument("--format", choices=("polar",), required=True, help="format to write")
    export.add_argument(
        "--model_folder",
        help="folder of the model below the root, default the last part of the model's name; PoLar's own code looks "
        "for the whole hub id",
    )

    bring = command("import", IMPORT_HELP, import_command)
    bring.add_argument("path", type=Path, help="root, folder of a model, folder of a level, or one file")
    bring.add_argument("output", type=Path, help="folder for the labels; an earlier import there is replaced")
    bring.add_argument("--format", choices=("polar",), required=True, help="format to read")
    bring.add_argument("--model", required=True, help=f"model of the paths: {ANY_BASE}")
    bring.add_argument("--dataset", help="name of the data set, for a single file; default from its folder")
    bring.add_argument(
        "--split",
        choices=(*SPLITS, "all"),
        default="search",
        help="questions of DART-Math to take: the splits go by question hash, and the tasks dart_1 to dart_5 evaluate "
        "on test (default %(default)s)",
    )
    bring.add_argument(
        "--checker",
        choices=("boxed", "exact", "number", "regex"),
        default="boxed",
        help="how routed answers will be checked (default %(default)s)",
    )
    bring.add_argument("--apply_chat_template", action="store_true", help="wrap prompts in the chat template")

    records = command("records", RECORDS_HELP, records_command)
    records.add_argument("labels", type=Path, help="folder of labels with scores")
    records.add_argument("output", type=Path, help="JSON lines file; one that is there is replaced")

    card = command("card", CARD_HELP, card_command)
    card.add_argument("labels", type=Path, help="folder of labels")
    card.add_argument("--repo_id", help="OWNER/NAME of the data set on the hub")
    card.add_argument("--license", help="license as the hub names it, such as mit; default: the card claims none")
    card.add_argument("--push", action="store_true", help="upload to --repo_id, made private if it is new")
    card.add_argument("--public", action="store_true", help="with --push: let everybody read it")
    return parser


def noted(problems: list[str], function: Callable[..., Value], *arguments) -> Value | None:
    """Result of a function; its UserError goes to the problems, so that all of them are told at once."""
    try:
        return function(*arguments)
    except UserError as error:
        problems.append(str(error))
    return None


def say(text: str) -> None:
    print(text, file=sys.stderr)


def export_command(arguments: argparse.Namespace) -> None:
    problems: list[str] = []
    header = noted(problems, read_header, arguments.labels)
    problems += unwritable("output", arguments.output)
    name = arguments.model_folder
    if name is not None and (not PurePosixPath(name).parts or PurePosixPath(name).is_absolute() or ".." in name):
        problems.append(f"--model_folder {name!r} must be a folder below the root, such as NAME or ORG/NAME")
    raise_all(problems)
    name = name or Path(header["model"]).resolve().name
    for file, count in export_polar(arguments.labels, arguments.output, name).items():
        say(f"{file}: {count} samples")


def import_command(arguments: argparse.Namespace) -> None:
    problems: list[str] = []
    files = noted(problems, find_files, arguments.path, arguments.model) or []
    noted(problems, base_config, arguments.model)
    noted(problems, check_output, arguments.output)
    problems += unwritable("output", arguments.output)
    if arguments.dataset is not None and len(files) > 1:
        problems.append(f"--dataset {arguments.dataset!r} would name {len(files)} files; give one of them as the path")
    if arguments.dataset is not None and not arguments.dataset.strip():
        problems.append(f"--dataset {arguments.dataset!r} is no name")
    raise_all(problems)
    config, tokenizer, chat = (
        load_base_config(arguments.model),
        load_tokenizer(arguments.model),
        arguments.apply_chat_template,
    )
    if chat and not tokenizer.chat_template:
        raise UserError("--apply_chat_template: the tokenizer has no chat template; leave the flag out")
    settings = ImportSettings(arguments.model, arguments.dataset, arguments.split, arguments.checker, chat)
    counts = import_polar(files, arguments.output, settings, config, tokenizer)
    for file, count in counts.items():
        say(f"{file}: {count}")
    say(f"{arguments.output / LABELS}: {sum(count.imported for count in counts.values())} labels")


def records_command(arguments: argparse.Namespace) -> None:
    problems: list[str] = []
    noted(problems, read_header, arguments.labels)
    if arguments.output.suffix != ".jsonl" or arguments.output.is_dir():
        problems.append(f"{arguments.output} must be a file whose name ends in .jsonl")
    problems += unwritable("output", arguments.output.parent)
    if arguments.output.resolve().parent == arguments.labels.resolve():
        problems.append(f"{arguments.output} would be among the labels; give a file outside of {arguments.labels}")
    raise_all(problems)
    say(f"{arguments.output}: {write_records(arguments.labels, arguments.output)} records")


def card_command(arguments: argparse.Namespace) -> None:
    problems: list[str] = []
    noted(problems, read_header, arguments.labels)
    noted(problems, check_card, arguments.labels)
    problems += unwritable("labels", arguments.labels)
    if arguments.repo_id is not None:
        if not ("/" in arguments.repo_id and is_repo_id(arguments.repo_id)):
            problems.append(f"--repo_id {arguments.repo_id!r} must be OWNER/NAME, as the hub writes it")
    elif arguments.push:
        problems.append("--push needs --repo_id OWNER/NAME")
    if arguments.public and not arguments.push:
        problems.append("--public goes with --push; without it nothing is uploaded")
    raise_all(problems)
    counts = write_card(arguments.labels, arguments.repo_id, arguments.license)
    say(f"{arguments.labels / CARD}: card of {counts.total().examples} labels")
    if arguments.push:
        say(f"uploaded to {push(arguments.labels, arguments.repo_id, arguments.public)}")


def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    arguments.main(arguments)


if __name__ == "__main__":
    run_command(main)
