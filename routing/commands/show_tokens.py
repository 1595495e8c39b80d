"""Which way each token of a text took, in colours: on the console, and as a page of its own.

    python -m routing show_tokens checkpoints/my-run --text "The railway was opened in 1890."
    python -m routing show_tokens checkpoints/my-run --file text.txt --layer 1 --html out.html

Takes hybrid language models (--objective lm), a line for each routed block: orange tokens took softmax attention, blue
ones Gated DeltaNet. And checkpoints whose router decides for each token (prefix_token, random_token), one line: the
share of the routable layers that ran a token, or with --layer whether that layer did. Decisions are those of the model
when it is used, without noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from routing.common.errors import UserError, raise_all, run_command
from routing.common.files import unwritable
from routing.common.parser import Parser
from routing.common.user_files import read_text
from routing.models.checkpoint_files import HYBRID, read_config
from train_models.router_kinds import TOKEN_ROUTERS


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="dlr show_tokens", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="folder of a checkpoint of train.py")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--text", help="the text")
    given.add_argument("--file", type=Path, help="a file with the text, in UTF-8")
    parser.add_argument("--layer", type=int, help="one block or layer alone, by its index from 0")
    parser.add_argument("--max_tokens", type=int, default=1024, help="tokens of the text that are read, at most")
    parser.add_argument("--html", type=Path, help="file for the page")
    return parser


def text_of(arguments: argparse.Namespace) -> str:
    if arguments.file is None:
        return arguments.text
    try:
        return read_text(arguments.file)
    except ValueError as error:
        raise UserError(f"--file {arguments.file} cannot be read as text: {error}.") from error


def check_router(folder: Path) -> None:
    """Refuse a checkpoint that decides nothing for tokens.

    Raises:
        UserError: naming those that do.
    """
    config = read_config(folder)
    kind = config.get("router", "per_layer")
    if config["model_type"] != HYBRID and kind not in TOKEN_ROUTERS:
        raise UserError(
            f"{folder} has router {kind!r}, which does not decide for each token; routers that do are "
            f"{', '.join(TOKEN_ROUTERS)}, and hybrid language models (--objective lm)."
        )


def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    problems = [] if arguments.max_tokens > 0 else [f"--max_tokens {arguments.max_tokens} must be at least 1"]
    if arguments.html and arguments.html.suffix != ".html":
        problems.append(f"--html {arguments.html} must end in .html")
    if arguments.html:
        problems += unwritable("--html", arguments.html.parent)
    raise_all(problems)
    check_router(arguments.checkpoint)
    text = text_of(arguments)
    if not text:
        raise UserError("the text is empty; give one of at least one token.")
    from routing.commands.work.show_tokens import run  # Takes seconds to import.

    run(arguments, text)


if __name__ == "__main__":
    run_command(main)
