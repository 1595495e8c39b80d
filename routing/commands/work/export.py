"""What `dlr export` does: the paths of a source as stock models or recipes, compared with the routed model."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from data_models.path_notation import write_path
from routing.common.devices import DTYPES
from routing.common.errors import UserError, raise_all
from routing.common.files import write_json, write_text
from routing.common.run_info import made_with
from routing.models.checkpoint import swap_in
from routing.models.export.asked import MANIFEST, RECORD
from routing.models.export.config import cut_config, stock_config
from routing.models.export.gguf import gguf_problems
from routing.models.export.hf import export_path
from routing.models.export.recipes import MERGEKIT, mergekit_recipe, recipe_problems, save_peft
from routing.models.export.source import Source, find_source, frozen_base, load_model, path_problems


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


def prepare(arguments: argparse.Namespace, paths: list[list[int]]) -> tuple:
    """The source, its model, and the base that a recipe names.

    Raises:
        UserError: if one of the paths cannot leave as asked.
    """
    source = find_source(arguments.source, arguments.skip_action)
    raise_all(config_problems(arguments, source, paths))
    base = frozen_base(source) if arguments.format != "hf" else None
    model = load_model(source, "auto" if arguments.dtype == "auto" else DTYPES[arguments.dtype])
    raise_all(list(dict.fromkeys(problem for path in paths for problem in path_problems(source, model, path))))
    if arguments.format != "hf" and len(getattr(model.model, "stand_ins", ())):
        raise UserError(
            f"--format {arguments.format} names a base, which has no adapters; give --skip_action identity, or "
            "--format hf"
        )
    return source, model, base


def write(arguments: argparse.Namespace, work: Path, paths: list[list[int]], source: Source, model, base) -> None:
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


def run(arguments: argparse.Namespace, paths: list[list[int]]) -> None:
    prepared = prepare(arguments, paths)  # Nothing is made before all is known to be right.
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{arguments.output.name}.", dir=arguments.output.parent))
    work.chmod(0o755)
    try:
        write(arguments, work, paths, *prepared)
        swap_in(work, arguments.output)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"written to {arguments.output}")
