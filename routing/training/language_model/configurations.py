"""Configurations by name: which mechanism each block has, and who chooses where a block has both."""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path

from routing.common.errors import UserError
from routing.common.user_files import read_yaml

# Mechanisms of four blocks, repeated for deeper models.
PATTERNS = {
    "static": ("gdn", "gdn", "gdn", "softmax"),
    "dynamic": ("gdn", "routed", "routed", "softmax"),
    "all-gdn": ("gdn",),
    "all-softmax": ("softmax",),
    "random": ("gdn", "routed", "routed", "softmax"),
}
SUFFIXES = (".yaml", ".yml")


def pattern_of(name: str, layers: int) -> list[str]:
    return list(islice(cycle(PATTERNS[name]), layers))


def read_fields(path: Path) -> dict:
    """Config fields of a YAML file, {name: value}.

    Raises:
        UserError: for a file that cannot be read or is no such mapping.
    """
    fields = read_yaml(path)
    if not isinstance(fields, dict):
        raise UserError(f"{path} must hold one `name: value` a line, such as `pattern: [gdn, routed, softmax]`.")
    return fields


def field_problems(name: str, fields: dict) -> list[str]:
    """What is wrong with config fields, as sentences. Imports transformers."""
    from train_models.configuration_gdn_hybrid import GdnHybridConfig

    known = {*GdnHybridConfig().to_dict(), "rope_theta"}
    found = [f"--config {name}: the model has no field {field!r}" for field in fields if field not in known]
    try:
        GdnHybridConfig(**fields)
    except ValueError as error:
        found.append(f"--config {name}: {error}")
    return found
