"""A page on which prompts are typed: the routed model and every layer once side by side, with the route and a budget.

    pip install 'gradio==6.31.0'
    python -m routing app checkpoints/my-run

Takes the checkpoints that `dlr show` takes, and shows what it shows. The slider moves how many layers run, where the
kind of router has a number for it: the cost of menu routers, pruned layers of query routers, the bias of others. The
page is served to this machine alone unless --host says otherwise.
"""

from __future__ import annotations

import argparse
import importlib.util

from routing.commands.show import add_model, model_problems
from routing.common.cli import outside
from routing.common.errors import raise_all, run_command
from routing.common.parser import Parser

VERSION = "6.31.0"  # of gradio, as pyproject.toml has it


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="dlr app", description=__doc__)
    add_model(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at; 0.0.0.0: for other machines too")
    parser.add_argument("--port", type=int, default=7860, help="port to serve at")
    arguments = parser.parse_args(argv)
    problems = model_problems(arguments)[0] + outside(arguments, port=(1, 65535))
    if importlib.util.find_spec("gradio") is None:
        problems.append(f"dlr app needs gradio, which is not installed; pip install 'gradio=={VERSION}'")
    raise_all(problems)
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    from routing.commands.work.app import run  # Takes seconds to import.

    run(arguments)


if __name__ == "__main__":
    run_command(main)
