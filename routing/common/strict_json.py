"""JSON as its standard has it: no NaN, no key twice, no text that is no Unicode; Python's own reader takes them all."""

from __future__ import annotations

import json
import math
import re

HALF_PAIR = re.compile("[\ud800-\udfff]")


def _no_constant(name: str):
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large for a number")
    return number


def _once(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for at, name in enumerate(names) if name in names[:at])
        raise ValueError(f"the key {twice!r} is there twice")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite)


def check_text(text: str) -> str:
    """The same text.

    Raises:
        ValueError: if it holds half of a surrogate pair, which no tokenizer and no file takes, or a null character.
    """
    if half := HALF_PAIR.search(text):
        raise ValueError(f"a text holds \\u{ord(half[0]):04x}, half of a character alone, which is no Unicode")
    if "\0" in text:
        raise ValueError("a text holds a null character")
    return text


def check_texts(value):
    """The same value, all of whose texts `check_text` takes.

    Raises:
        ValueError: see there.
    """
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, dict):
        for part in (*value, *value.values()):
            check_texts(part)
    elif isinstance(value, list):
        for part in value:
            check_texts(part)
    return value


def loads(text: str):
    """The value of a JSON text.

    Raises:
        ValueError: says what is wrong.
    """
    try:
        value = DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON ({error})") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    # Only an escape can bring such a text: what is no UTF-8 was refused before.
    return check_texts(value) if "\\u" in text else value
