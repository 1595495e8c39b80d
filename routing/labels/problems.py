"""What is wrong with folders of labels that arguments name, by their headers."""

from __future__ import annotations

from pathlib import Path

from routing.common.errors import UserError
from routing.labels.reading import LABELS, read_header
from routing.models.checkpoint_files import adapter_hashes
from routing.models.problems import adapter_problems
from routing.search.menu import Pooled, parse_spec


def label_problems(folders: list[Path], adapters: str, model: str) -> list[str]:
    """What is wrong with folders of labels, by their headers: they must have been made with the same adapters."""
    if found := adapter_problems(adapters, model):
        return found
    own = adapter_hashes(adapters)
    for folder in folders:
        try:
            made = read_header(folder)["arguments"]
        except UserError as error:
            found.append(f"--data: {error}")
            continue
        if made.get("adapters_sha256", {}) != own:
            found.append(
                f"--data: {folder} was made with adapters {made.get('adapters', '')!r}, and --adapters is "
                f"{adapters!r}, which is not the same; give those, or make labels with these"
            )
    return found


def pool_problems(menu: str, depth: int) -> list[str]:
    """What is wrong with the label folders that the SPEC of a menu names, for a model of `depth` layers."""
    found = []
    for folder in (folder for source in parse_spec(menu) if isinstance(source, Pooled) for folder in source.folders):
        try:
            layers = read_header(folder)["num_layers"]
        except UserError as error:
            found.append(f"--menu labels: {error}")
            continue
        if layers != depth:
            found.append(f"--menu labels: {folder} is of a model of {layers} layers, and --model has {depth}")
        elif not (folder / LABELS).is_file():
            found.append(f"--menu labels: {folder} holds no labels yet; run data_generation.py to its end")
    return found
