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
import shutil
import tempfile
from pathlib import Path

from data_models.path_notation import EXAMPLE, write_path
from routing.common.devices import DTYPES
from routing.common.errors import UserError, raise_all, run_command
from routing.common.files import unwritable, write_json, write_text
from routing.common.parser import Parser
from routing.common.run_info import made_with
from routing.models.checkpoint import swap_in
from routing.models.export.config import cut_config, stock_config
from routing.models.export.gguf import gguf_problems
from routing.models.export.hf import RECORD, export_path
from routing.models.export.recipes import MERGEKIT, mergekit_recipe, recipe_problems, save_peft
from routing.models.export.source import Source, find_source, frozen_base, load_model, menu_of, path_of, path_problems
from routing.models.wheel_models import ANY_BASE

FORMATS = ("hf", "mergekit", "peft")
MANIFEST = "menu.json"


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


def config_problems(arguments: argparse.Namespace, source: Source, paths: list[list[int]]) -> list[str]:
    """What can be said before weights are loaded."""
    stock, found = stock_config(source.config), []
    for path in paths:
        if not path:
            found.append("a path without any layer answers nothing; give --path with at least one")
            continue
        if arguments.format != "hf":
            found += recipe_problems(source, path, arguments.format)
        if arguments.check == "gguf":
            found += gguf_problems(cut_config(stock, path), path)
    return list(dict.fromkeys(found))


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    prepared = prepare(arguments)  # Nothing is made before all is known to be right.
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{arguments.output.name}.", dir=arguments.output.parent))
    work.chmod(0o755)
    try:
        write(arguments, work, *prepared)
        swap_in(work, arguments.output)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"written to {arguments.output}")


def prepare(arguments: argparse.Namespace) -> tuple:
    """The source, its model, the paths, and the base that a recipe names.

    Raises:
        UserError: if one of the paths cannot leave as asked.
    """
    source = find_source(arguments.source, arguments.skip_action)
    paths = menu_of(source) if arguments.menu else [path_of(source, arguments.path)]
    raise_all(config_problems(arguments, source, paths))
    base = frozen_base(source) if arguments.format != "hf" else None
    model = load_model(source, "auto" if arguments.dtype == "auto" else DTYPES[arguments.dtype])
    raise_all(list(dict.fromkeys(problem for path in paths for problem in path_problems(source, model, path))))
    if arguments.format != "hf" and len(getattr(model.model, "stand_ins", ())):
        raise UserError(
            f"--format {arguments.format} names a base, which has no adapters; give --skip_action identity, or "
            "--format hf"
        )
    return source, model, paths, base


def write(arguments: argparse.Namespace, work: Path, source: Source, model, paths: list[list[int]], base) -> None:
    """Write the export into a folder that is empty and has another name."""
    facts = {"arguments": {name: str(value) for name, value in vars(arguments).items()}} | made_with()
    if arguments.menu:
        export_menu(source, model, paths, work, facts)
    elif arguments.format == "hf":
        found = export_path(source, model, paths[0], work, facts | {"name": arguments.output.name})
        print(line(source, paths[0], found))
    else:
        export_recipe(arguments, source, model, paths[0], base, work, facts)


def export_menu(source: Source, model, paths: list[list[int]], work: Path, facts: dict) -> None:
    """Every path of a menu in a folder of its own, in the menu's order, and menu.json."""
    rows = []
    for at, path in enumerate(paths):
        name = f"path-{at:02d}"
        found = export_path(source, model, path, work / name, facts | {"name": name})
        print(f"{name}: {line(source, path, found)}")
        row = {"folder": name, "path": write_path(path), "layers": len(path), "equality": found.record()}
        rows.append(row | {"route": [path.count(layer) for layer in range(source.depth)]})
    write_json(work / MANIFEST, {"source": source.name, "of": source.depth, "paths": rows} | facts)


def export_recipe(
    arguments, source: Source, model, path: list[int], base: tuple[str, str | None], work: Path, facts: dict
) -> None:
    """The YAML of mergekit, or a PEFT folder."""
    record = {"source": source.name, "base": base[0], "base_revision": base[1], "format": arguments.format}
    record |= {"path": write_path(path), "layers": len(path), "of": source.depth}
    if arguments.format == "mergekit":
        dtype = str(model.dtype).removeprefix("torch.")
        write_text(work / MERGEKIT, mergekit_recipe(*base, path, dtype))
        print(f"{source.name}, path {write_path(path)}: {len(path)} of {source.depth} layers; run mergekit-yaml on it")
    else:
        found = save_peft(source, *base, model, path, arguments.rank, work)
        print(line(source, path, found))
        record["equality"] = found.record()
    write_json(work / RECORD, record | facts)


def line(source: Source, path: list[int], found) -> str:
    return f"{source.name}, path {write_path(path)}: {len(path)} of {source.depth} layers; {found.words()}"


if __name__ == "__main__":
    run_command(main)
