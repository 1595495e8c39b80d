"""Write the model card of a checkpoint folder anew, and upload the folder.

    python -m routing card checkpoints/my-run --push --repo_id OWNER/NAME

Takes what evaluation.py wrote into the folder. A card that was edited by hand is left alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from routing.common.errors import raise_all, run_command
from routing.common.parser import Parser
from routing.models.checkpoint_files import config_of
from routing.models.hub import is_repo_id, upload


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="dlr card", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="folder of a checkpoint of train.py")
    parser.add_argument("--repo_id", help="OWNER/NAME of the model on the hub")
    parser.add_argument(
        "--push",
        action="store_true",
        help="upload weights, code, tokenizer, card and the records of training and evaluation (which hold the "
        "arguments as they were given) to --repo_id",
    )
    access = parser.add_mutually_exclusive_group()
    access.add_argument("--private", action="store_true", help="with --push: for yourself alone, which is the default")
    access.add_argument("--public", action="store_true", help="with --push: let everybody read it")
    return parser


def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    folder, repo_id, push = arguments.checkpoint, arguments.repo_id, arguments.push
    config = config_of(folder)
    problems = []
    if repo_id is not None and not ("/" in repo_id and is_repo_id(repo_id)):
        problems.append(f"--repo_id {repo_id!r} must be OWNER/NAME, as the hub writes it")
    if push and repo_id is None:
        problems.append("--push needs --repo_id OWNER/NAME")
    if (arguments.public or arguments.private) and not push:
        problems.append("--public and --private go with --push; without it nothing is uploaded")
    base = config.get("base_model")
    if push and base and Path(base).is_dir():
        problems.append(
            f"--push: the checkpoint refers to its base in {base}, which nobody else has. Make it again with train.py "
            "--save_base copy, or from a base on the hub."
        )
    raise_all(problems)
    from routing.report import card as cards  # Takes seconds to import.

    cards.read_text_results(folder)
    if push:
        cards.check_frontier(folder)
    if card := cards.write_model_card(folder, cards.read_results(folder), repo_id):
        print(card, file=sys.stderr)
    if push:
        url = upload(folder, cards.checkpoint_files(folder), repo_id, "model", arguments.public, "Routed checkpoint")
        print(f"uploaded to {url}", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
