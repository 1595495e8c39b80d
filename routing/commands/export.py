"""A path of a base or a routed checkpoint as a model that every stack serves: stock folder, mergekit recipe or PEFT.

    python -m routing export smollm2-135m-instruct --path 0:20,24:30 --output exports/trimmed
    python -m routing export checkpoints/static --output exports/static
    python -m routing export checkpoints/menu --menu --output exports/menu
    python -m routing export M --format mergekit --path 0:20,24:30 --output exports/recipe

--format hf (default) writes a smaller stock checkpoint without remote code, reads it back, compares its logits with the
routed model's along the path, prints the difference and only then gives the folder its name. mergekit writes the YAML
of a passthrough merge; peft a LoRA folder with layer_replication, whose repeated layers share the base's weights. A
checkpoint of train.py --objective static brings its path with it. What cannot be a stock model is refused.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_models.path_notation import EXAMPLE
from routing.common.devices import DTYPES
from routing.common.errors import raise_all, run_command
from routing.common.files import unwritable
from routing.common.parser import Parser
from routing.models.export.asked import MANIFEST, RECORD, menu_of, path_of, source_fields
from routing.models.wheel_models import ANY_BASE

FORMATS = ("hf", "mergekit", "peft")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="dlr export", description=__doc__)
    parser.add_argument("source", help=f"base ({ANY_BASE}), or folder of a routed checkpoint")
    parser.add_argument("--path", default="", help=f"layers to run, in order: {EXAMPLE}; default a checkpoint's own")
    parser.add_argument("--menu", action="store_true", help="every path of a menu router, a folder each, and menu.json")
    parser.add_argument(
        "--format", default="hf", choices=FORMATS, help="hf: stock folder; mergekit: YAML; peft: LoRA folder"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write; an older export there is replaced")
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", *sorted(DTYPES)), help="of the weights; auto: their own"
    )
    parser.add_argument(
        "--skip_action", default="", choices=("", "identity"), help="identity: leave a checkpoint's adapters out"
    )
    parser.add_argument(
        "--check", default="", choices=("", "gguf"), help="gguf: refuse what llama.cpp would run wrongly"
    )
    parser.add_argument("--rank", type=int, default=16, help="rank of the LoRA of --format peft")
    arguments = parser.parse_args(argv)
    problems = []
    if arguments.menu and arguments.path:
        problems.append("--menu exports every path, --path one; give one of them")
    if arguments.menu and arguments.format != "hf":
        problems.append(f"--menu writes stock folders; --format {arguments.format} takes one --path")
    if arguments.rank < 1:
        problems.append(f"--rank {arguments.rank} must be at least 1")
    problems += output_problems(arguments.output)
    raise_all(problems)
    return arguments


def output_problems(folder: Path) -> list[str]:
    """What forbids to write an export there."""
    if folder.exists() and not ((folder / RECORD).is_file() or (folder / MANIFEST).is_file()):
        return [f"--output {folder} exists and is no export, so it is not replaced; give another folder"]
    return unwritable("--output", folder.parent)


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    named = arguments.source, source_fields(arguments.source, arguments.skip_action)
    paths = menu_of(*named) if arguments.menu else [path_of(*named, arguments.path)]
    from routing.commands.work.export import run  # Takes seconds to import.

    run(arguments, paths)


if __name__ == "__main__":
    run_command(main)
