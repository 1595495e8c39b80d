"""Function calls in a model's text, and how good they are.

An example that asks for calls (checker "calls") holds the expected ones in `answer`, as the JSON of a list
[{name: {argument: [allowed values]}}], one object a call. An empty text among the allowed values means that the
argument may be left out. An allowed value that is an object holds allowed values in turn, {key: [allowed values]},
as do objects within lists; other lists and values are meant literally. This is the form of the Berkeley
function-calling answers.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import regex

if TYPE_CHECKING:  # routing.tasks imports routing.tasks.answers, which imports this module.
    from routing.tasks.examples import Example

MALFORMED, PERFECT = -5.0, 10.0
_FENCE = regex.compile(r"```[a-z]*\s*(.*?)(?:```|$)", regex.DOTALL)
_TAGGED = regex.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", regex.DOTALL)
# What the JSON reader and the parser of expressions raise on what they cannot read, however deep or long it is.
_UNREADABLE = (ValueError, TypeError, SyntaxError, RecursionError, MemoryError)


@dataclass(frozen=True)
class Call:
    """A call that a text makes; its arguments are JSON values by name."""

    name: str
    arguments: dict[str, Any]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which no key comes twice: a second one would overwrite the first unseen."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key comes twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)


def parse_calls(text: str) -> list[Call] | None:
    """The calls of a text in their order, repeated ones too; None for a malformed text.

    Read are a JSON list of {"name", "arguments"}, single such objects behind one another, both also within a ```
    fence, `<tool_call>` blocks, and `f(a=1)` or `[f(a=1), g(b="x")]` with literal values. "parameters" is read as
    "arguments", which may also be the JSON text of an object, or missing. Text behind JSON is ignored.
    """
    try:
        return _read(text.strip())
    except _UNREADABLE:
        return None


def complete_list(text: str) -> bool:
    """Whether a text begins with a whole JSON list: then its calls stay the same whatever follows."""
    begun = text.strip()
    if not begun.startswith("["):
        return False
    try:
        _DECODER.raw_decode(begun)
    except _UNREADABLE:
        return False
    return True


def _read(text: str) -> list[Call]:
    if text.startswith(("[", "{")):
        try:
            found = _leading_json(text)
        except json.JSONDecodeError:
            return _python_calls(text)
        return list(map(_call, found))
    if blocks := _TAGGED.findall(text):
        return [call for block in blocks for call in map(_call, _leading_json(block.strip()))]
    if fence := _FENCE.search(text):
        return _read(fence.group(1).strip())
    return _python_calls(text)


def _leading_json(text: str) -> list:
    """The elements of the list that a text begins with, or its leading objects."""
    value, end = _DECODER.raw_decode(text)
    if not isinstance(value, dict):
        return value if isinstance(value, list) else [value]
    values = [value]
    while (rest := text[end:].lstrip(" \t\r\n,;")).startswith("{"):
        try:
            value, length = _DECODER.raw_decode(rest)
        except json.JSONDecodeError:  # It is text behind the calls.
            break
        values.append(value)
        end = len(text) - len(rest) + length
    return values


def _call(value: Any) -> Call:
    """The call that a JSON value describes; a ValueError for any other value."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError("a call is an object with a name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _DECODER.decode(arguments)
    if not isinstance(arguments, dict):
        raise ValueError("the arguments of a call are an object")
    return Call(value["name"], arguments)


def _python_calls(text: str) -> list[Call]:
    tree = ast.parse(text, mode="eval").body
    return [_python_call(node) for node in (tree.elts if isinstance(tree, ast.List) else [tree])]


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args or any(keyword.arg is None for keyword in node.keywords):
        raise ValueError("a call has named arguments only")
    pairs = [(keyword.arg, _json_value(ast.literal_eval(keyword.value))) for keyword in node.keywords]
    return Call(_dotted(node.func), _object(pairs))


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    raise ValueError("a function is named by words with dots between")


def _json_value(value: Any) -> Any:
    """A Python literal as the JSON value that it corresponds to; a ValueError if there is none."""
    if isinstance(value, (list, tuple)):
        return [_json_value(element) for element in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _json_value(element) for key, element in value.items()}
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise ValueError(f"{value!r} is no JSON value")


@lru_cache(maxsize=4096)
def _expected(answer: str) -> list[tuple[str, dict[str, list]]]:
    return [pair for call in json.loads(answer) for pair in call.items()]


def expected_calls(example: Example) -> list[tuple[str, dict[str, list]]]:
    """Name and allowed values by argument, of every call that an example expects."""
    return _expected(example.answer)


def answer_problem(answer: str) -> str | None:
    """What is wrong with the expected calls of an example, as half a sentence."""
    try:
        calls = json.loads(answer)
    except ValueError as error:
        return f"is no JSON ({error})"
    fits = isinstance(calls, list) and all(
        isinstance(call, dict)
        and len(call) == 1
        and all(isinstance(arguments, dict) and _all_lists(arguments) for arguments in call.values())
        for call in calls
    )
    if not fits or not calls:
        return "is no list of calls, one at least, in the form {name: {argument: [allowed values]}}"
    return None


def _all_lists(value: Any) -> bool:
    """Whether each key of every object within an allowed value has its own list of allowed values."""
    if isinstance(value, dict):
        return all(isinstance(allowed, list) and allowed and _all_lists(allowed) for allowed in value.values())
    return all(map(_all_lists, value)) if isinstance(value, list) else True


def score_problems(score: str, example: Example) -> str | None:
    """A sentence if a score of calls is asked for of an example that expects none; else None."""
    if score in CALL_SCORES and example.checker != "calls":
        return (
            f'the score {score} compares function calls, which the data set {example.dataset!r} (checker "'
            f'{example.checker}") does not ask for; use the score accuracy there'
        )
    return None


def canonical(example: Example) -> str:
    """The shortest form of the expected calls as one line of JSON: first allowed values, nothing that may be left out.

    It has the best value of every score.
    """
    calls = [{"name": name, "arguments": _first_values(wanted)} for name, wanted in expected_calls(example)]
    return json.dumps(calls, ensure_ascii=False)


def call_text(name: str, arguments: dict[str, Any]) -> str:
    """A call as `name(argument=value)`; values are those that JSON and Python write alike: texts and numbers."""
    told = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items())
    return f"{name}({told})"


def expected_texts(example: Example) -> list[str]:
    """What an answer with the expected calls may look like, in the notation of the solved examples if there are any."""
    calls = expected_calls(example)
    if len(calls) > 1:
        return [canonical(example)]
    if example.shots and '"name"' not in example.shots:  # No verdict hangs on it: a wrong guess is only slow.
        return [call_text(name, _first_values(wanted)) for name, wanted in calls]
    # A single call often comes without the list around it.
    return [canonical(example), canonical(example)[1:-1]]


def _first_values(wanted: dict[str, list]) -> dict[str, Any]:
    return {name: _first(allowed[0]) for name, allowed in wanted.items() if "" not in allowed}


def _first(value: Any) -> Any:
    if isinstance(value, dict):
        return _first_values(value)
    return [_first(element) for element in value] if isinstance(value, list) else value


def as_allowed(value: Any) -> Any:
    """A plain JSON value as an allowed value: every key of an object gets a list of the one value it may have."""
    if isinstance(value, dict):
        return {key: [as_allowed(element)] for key, element in value.items()}
    return [as_allowed(element) for element in value] if isinstance(value, list) else value


def _same(value: Any, wanted: Any) -> bool:
    """Of one type and equal; neither is a list or an object."""
    return type(value) is type(wanted) and value == wanted


def _alike(value: Any, wanted: Any) -> bool:
    """Equal but for case, blanks and punctuation of texts, or numbers of one value; neither is a list or an object."""
    if isinstance(value, str) and isinstance(wanted, str):
        return _plain(value) == _plain(wanted)
    if type(value) in (int, float) and type(wanted) in (int, float):
        return value == wanted
    return _same(value, wanted)


def _plain(text: str) -> str:
    """Letters and digits in lower case; a text of punctuation alone stays, since it is all there is to compare."""
    return "".join(filter(str.isalnum, text.casefold())) or text.strip()


Equal = Callable[[Any, Any], bool]


def _matches(value: Any, wanted: Any, equal: Equal) -> bool:
    """Whether a value is an allowed one."""
    if isinstance(wanted, dict):
        return isinstance(value, dict) and _share(value, wanted, equal) == 1
    if isinstance(wanted, list):
        return (
            isinstance(value, list)
            and len(value) == len(wanted)
            and all(_matches(one, other, equal) for one, other in zip(value, wanted, strict=True))
        )
    return not isinstance(value, (dict, list)) and equal(value, wanted)


def _share(given: dict[str, Any], wanted: dict[str, list], equal: Equal) -> float:
    """Share of right ones among the arguments that are given or must be; 1 if there are none."""
    needed = {name for name, allowed in wanted.items() if "" not in allowed}
    right = sum(any(_matches(value, one, equal) for one in wanted.get(name, ())) for name, value in given.items())
    return right / len(needed | set(given)) if needed or given else 1.0


def _assigned(weights: Sequence[Sequence[float]]) -> float:
    """The greatest sum of weights [rows, columns] with at most one taken from each row and each column."""
    if not weights or not weights[0]:
        return 0.0
    import numpy
    from scipy.optimize import linear_sum_assignment

    table = numpy.asarray(weights, dtype=float)
    return float(table[linear_sum_assignment(table, maximize=True)].sum())


def _found_of_expected(found: list[Call], example: Example) -> int:
    """How many expected calls are found, compared leniently, when each found one serves for one expected at most."""
    return round(
        _assigned(
            [
                [float(call.name == name and _share(call.arguments, wanted, _alike) == 1) for call in found]
                for name, wanted in expected_calls(example)
            ]
        )
    )


def exact_match(text: str, example: Example) -> float:
    """1 if the text makes exactly the expected calls in their order, else 0.

    Names are equal; every argument has the type and the value of an allowed one; none is missing that must be there,
    no argument and no call is there that is not expected. Text behind the calls does not count.
    """
    found, expected = parse_calls(text), expected_calls(example)
    return float(
        found is not None
        and len(found) == len(expected)
        and all(
            call.name == name and _share(call.arguments, wanted, _same) == 1
            for call, (name, wanted) in zip(found, expected, strict=True)
        )
    )


def json_match(text: str, example: Example) -> float:
    """1 if the text makes the expected calls and no other, in any order, else 0.

    Names are equal. Arguments are compared leniently: texts by their letters and digits without case, numbers by value
    (2 is 2.0, but not true), lists element by element, objects key by key. Each found call serves for one expected.
    """
    found = parse_calls(text)
    if found is None:
        return 0.0
    return float(len(found) == len(expected_calls(example)) == _found_of_expected(found, example))


def ratio_function_calls(text: str, example: Example) -> float:
    """Fraction of the expected calls that the text makes, in [0, 1]; 0 for a malformed text.

    Calls are compared as in `json_match`. Each found call serves for one expected at most, and the fraction is the
    greatest that any assignment of found to expected calls gives. Calls beyond the expected ones cost nothing.
    """
    found = parse_calls(text)
    return 0.0 if found is None else _found_of_expected(found, example) / len(expected_calls(example))


def partial_match(text: str, example: Example) -> float:
    """-5 for a malformed text, else from 0 to 10 for perfect calls.

    A found call has 5 points for the name of the expected one and, with it, 5 times the share of right arguments,
    among those that are given or must be. (Arguments of another function are worth nothing.) Found and expected calls
    are assigned to one another for the greatest sum of points, which is divided by the number of expected or of found
    calls, whichever is greater. Values are compared as in `json_match`.
    """
    found, expected = parse_calls(text), expected_calls(example)
    if found is None:
        return MALFORMED
    points = [
        [PERFECT * (1 + _share(call.arguments, wanted, _alike)) / 2 if call.name == name else 0.0 for call in found]
        for name, wanted in expected
    ]
    return _assigned(points) / max(len(expected), len(found))


CALL_SCORES: dict[str, Callable[[str, Example], float]] = {
    "exact_match": exact_match,
    "json_match": json_match,
    "ratio_function_calls": ratio_function_calls,
    "partial_match": partial_match,
}
