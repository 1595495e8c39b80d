"""The parser of all commands: one thing has one name, and its other spellings are taken too."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# Spellings of one option; --help shows the one that a command was written with.
SAME = (("--model", "--model_id"), ("--output", "--output_dir"))
# What stands without a name in some commands -> the name that it has in others.
UNNAMED = {"checkpoint": "--checkpoint", "labels": "--data", "output": "--output"}


class Parser(argparse.ArgumentParser):
    """Takes other spellings, see `spelled`; a description keeps its lines."""

    def __init__(self, **given):
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter} | given)

    def parse_known_args(self, args=None, namespace=None):
        words = spelled(self, sys.argv[1:] if args is None else list(args))
        return super().parse_known_args(words, namespace)


def spelled(parser: argparse.ArgumentParser, words: list[str]) -> list[str]:
    """Words in the spelling of a parser: options by the names that it knows, and those that it takes without a name
    (the first of them in front, others at the end)."""
    options = {name for action in parser._actions for name in action.option_strings}
    unnamed = [action.dest for action in parser._actions if not action.option_strings]
    found, first, last = [], [], []
    words = iter(words)
    for word in words:
        if word == "--":
            found += [word, *words]
            break
        name, has_value, value = word.partition("=")
        names = next((names for names in SAME if name in names), (name,))
        known = next((own for own in (name, *names) if own in options), None)
        dest = next((dest for dest in unnamed if UNNAMED.get(dest) in names), None)
        if known is None and dest is not None:
            value = value if has_value else next(words, None)
            own = first if dest == unnamed[0] else last
            own += [] if value is None else value.split(",") if dest == "labels" else [value]
        else:
            found.append((known or name) + has_value + value)
    if "--checkpoint" in options and found and not found[0].startswith("-"):
        found.insert(0, "--checkpoint")
    return first + found + last


def file_of(output: str, name: str) -> Path:
    """The file that `--output` means: that of a name in a folder, or itself if it ends as the name does."""
    return Path(output) if output.endswith(Path(name).suffix) else Path(output) / name
