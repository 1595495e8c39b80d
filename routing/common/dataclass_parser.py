"""The command-line parser of a dataclass of arguments: an option a field, which gives its type, help and default.

As transformers' HfArgumentParser, without the seconds that transformers takes to import.
"""

from __future__ import annotations

import argparse
from dataclasses import MISSING, Field, fields
from types import NoneType
from typing import get_args, get_type_hints

from routing.common.parser import Parser

YES, NO = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")


def parser_of(kind: type) -> Parser:
    """A parser whose namespace has the fields of a dataclass of str, int, float, bool, or one of these or None."""
    parser = Parser(description=kind.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    types = get_type_hints(kind)
    for one in fields(kind):
        _add(parser, one, types[one.name])
    return parser


def _add(parser: argparse.ArgumentParser, one: Field, type_: type) -> None:
    """One option; of a flag that is on by default --no_NAME too."""
    given = dict(one.metadata) | ({"required": True} if one.default is MISSING else {"default": one.default})
    value = next((part for part in get_args(type_) if part is not NoneType), type_)
    if value is not bool:
        parser.add_argument(*_spellings(one.name), **given, type=value)
        return
    parser.add_argument(*_spellings(one.name), **given, type=truth, nargs="?", const=True)
    if one.default is True:
        off = given | {"default": False}
        parser.add_argument(*_spellings(f"no_{one.name}"), action="store_false", dest=one.name, **off)


def _spellings(name: str) -> list[str]:
    return list(dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")))


def truth(word: str) -> bool:
    """What a word behind a flag says."""
    if word.lower() in YES + NO:
        return word.lower() in YES
    raise argparse.ArgumentTypeError(
        f"Truthy value expected: got {word} but expected one of yes/no, true/false, t/f, y/n, 1/0 (case insensitive)."
    )
