"""Command-line arguments as dataclasses: options, checks of values, parsing; all problems are reported at once."""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import field, fields
from pathlib import Path

from routing.common.dataclass_parser import parser_of
from routing.common.errors import UserError, raise_all
from routing.common.user_files import read_yaml


def option(default, help: str, choices: tuple | None = None):
    """A dataclass field with a help text, and allowed values."""
    metadata = {"help": help} | ({"choices": list(choices)} if choices else {})
    return field(default=default, metadata=metadata)


def names_of(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",") if name.strip()]


def run_name_problems(name: str) -> list[str]:
    if name and "/" not in name and not name.startswith("."):
        return []
    return [f"--run_name {name!r} must be a plain folder name, such as my-run"]


def checkpoint_problems(output_dir: str, run_name: str) -> list[str]:
    target = Path(output_dir) / run_name
    if not run_name or not target.exists() or (target / "training.json").is_file():
        return []
    return [
        f"--run_name {run_name}: {target} exists and is no checkpoint of train.py, so it is not replaced; give another "
        "name"
    ]


def reporting_problems(report_to: str) -> list[str]:
    if report_to == "none" or importlib.util.find_spec(report_to) is not None:
        return []
    return [f"--report_to {report_to}: the package is not installed; pip install {report_to}"]


def below(arguments, **least) -> list[str]:
    values = {name: getattr(arguments, name) for name in least}
    return [
        f"--{name} {values[name]} must be at least {low}"
        for name, low in least.items()
        if not values[name] >= low or math.isinf(values[name])
    ]


def outside(arguments, **ranges) -> list[str]:
    values = {name: getattr(arguments, name) for name in ranges}
    return [
        f"--{name} {values[name]} must lie between {low} and {high}"
        for name, (low, high) in ranges.items()
        if not low <= values[name] <= high
    ]


def not_positive(arguments, *names: str) -> list[str]:
    """What is wrong with numbers that must be above 0, infinity left out."""
    values = {name: getattr(arguments, name) for name in names}
    return [f"--{n} {value} must be a number above 0" for n, value in values.items() if not 0 < value < math.inf]


def expanded(argv: list[str]) -> list[str]:
    """Arguments whose first one may be a YAML file of others, {name: value}; those behind it win.

    Raises:
        UserError: for a file that cannot be read or is no such mapping.
    """
    if not argv or argv[0].startswith("-") or not argv[0].endswith((".yaml", ".yml")):
        return argv
    values = read_yaml(Path(argv[0]))
    if not isinstance(values, dict) or any(isinstance(value, (dict, list)) for value in values.values()):
        raise UserError(f"{argv[0]} must hold one `name: value` a line, such as `objective: gumbel`.")
    return [*(f"--{name}={value}" for name, value in values.items() if value is not None), *argv[1:]]


def read_arguments(kind: type, words: list[str]):
    """Arguments of one stage, not checked yet.

    Raises:
        UserError: for unknown ones.
    """
    given, unknown = parser_of(kind).parse_known_args(words)
    if unknown:
        raise UserError(
            f"unknown arguments: {' '.join(unknown)}. --help lists those there are; a YAML file of them comes first."
        )
    return kind(**vars(given))


def parse(kind: type, argv: list[str] | None = None):
    """Arguments of one stage, checked: the values, then what they name on disk and on the hub, without weights.

    Raises:
        UserError: for unknown arguments, or with every problem of the values.
    """
    arguments = read_arguments(kind, expanded(sys.argv[1:] if argv is None else argv))
    raise_all(arguments.problems() + arguments.outside_problems())
    return arguments


def as_dict(arguments) -> dict:
    return {f.name: getattr(arguments, f.name) for f in fields(arguments)}
