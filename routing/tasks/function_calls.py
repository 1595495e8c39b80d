"""Questions that functions answer: the Berkeley function-calling data, its hub relative, and easy ones of our own.

`Example.tools` lists the functions that may be called, `Example.answer` the expected calls (see calls.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import product

from routing.models.fetch import BFCL, fetch_wheel
from routing.tasks.calls import answer_problem, as_allowed, call_text
from routing.tasks.examples import Example, split_of

# data set -> file of questions; a file of the same name holds the answers
FILES = {
    "bfcl_simple": "BFCL_v4_simple_python.json",
    "bfcl_multiple": "BFCL_v4_multiple.json",
    "bfcl_parallel": "BFCL_v4_parallel.json",
    "bfcl_parallel_multiple": "BFCL_v4_parallel_multiple.json",
}
# Names of types in the source -> names of JSON schema. "any" allows every type, so it is left out.
TYPES = {
    "dict": "object",
    "float": "number",
    "tuple": "array",
    "str": "string",
    "int": "integer",
    "bool": "boolean",
    "list": "array",
}


def schema_types(schema):
    """A schema of parameters with the type names of JSON schema."""
    if isinstance(schema, list):
        return [schema_types(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: schema_types(part) for key, part in schema.items() if key != "type" or part != "any"}
    # A parameter may itself be called "type": then its value is a schema, no text.
    return kept | {"type": TYPES.get(kept["type"], kept["type"])} if isinstance(kept.get("type"), str) else kept


def berkeley(name: str) -> Callable:
    """A file of the wheel. The same question comes with other functions too, and is in the same split there."""

    def examples(split: str, loader: Callable) -> Iterator[Example]:
        folder = fetch_wheel(BFCL) / "bfcl_eval" / "data"
        rows, answers = (
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            for path in (folder / FILES[name], folder / "possible_answer" / FILES[name])
        )
        for row, answer in zip(rows, answers, strict=True):
            if row["id"] != answer["id"]:
                raise ValueError(f"{FILES[name]}: the answer of {row['id']} is that of {answer['id']}")
            example = asking(name, row["question"][0][-1]["content"], row["function"], answer["ground_truth"])
            if split_of(example) == split:
                yield example

    return examples


def asking(name: str, question: str, functions: list[dict], calls: list[dict]) -> Example:
    """The example of a question, the functions that may be called and the expected calls."""
    tools = [function | {"parameters": schema_types(function["parameters"])} for function in functions]
    return Example(
        name,
        question,
        json.dumps(calls, ensure_ascii=False),
        checker="calls",
        tools=json.dumps(tools, ensure_ascii=False),
    )


def xlam(split: str, loader: Callable) -> Iterator[Example]:
    """{id, query, answers, tools}, the last two as JSON texts; rows that expect no call are left out."""
    for row in loader("Salesforce/xlam-function-calling-60k", split="train"):
        calls = [{call["name"]: as_allowed(call["arguments"])} for call in json.loads(row["answers"])]
        example = asking("xlam", row["query"], list(map(_xlam_function, json.loads(row["tools"]))), calls)
        if answer_problem(example.answer) is None and split_of(example) == split:
            yield example


def _xlam_function(function: dict) -> dict:
    """Its parameters as a JSON schema: {name: {type: "int, optional", description, default}} in the source."""
    properties, required = {}, []
    for name, field in function["parameters"].items():
        kind = field.get("type", "any")
        # "List[int]" is a list, "Tuple[int, int], optional" a tuple.
        properties[name] = field | {"type": kind.partition("[")[0].partition(",")[0].strip().lower()}
        if not kind.endswith("optional") and "default" not in field:
            required.append(name)
    return function | {"parameters": {"type": "dict", "properties": properties, "required": required}}


def _function(name: str, description: str, **parameters: str) -> dict:
    properties = {parameter: {"type": kind} for parameter, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"name": name, "description": description, "parameters": schema}


FUNCTIONS = [
    _function("send_message", "Sends a message.", to="string", text="string"),
    _function("multiply", "The product of two numbers.", a="integer", b="integer"),
    _function("set_timer", "Starts a timer.", minutes="integer"),
    _function("get_weather", "The weather in a city.", city="string"),
]
PEOPLE = (
    "Anna", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry", "Irene", "Jack", "Karen", "Luke", "Maria",
    "Nina", "Oscar", "Paul",
)  # fmt: skip
MESSAGES = ("hello", "good night", "thank you", "call me", "see you soon", "happy birthday")
CITIES = (
    "Athens", "Beijing", "Berlin", "Boston", "Cairo", "Chicago", "Dallas", "Delhi", "Denver", "Dublin", "Geneva",
    "Hamburg", "Kyoto", "Lima", "Lisbon", "London", "Madrid", "Miami", "Milan", "Moscow", "Munich", "Naples", "Oslo",
    "Paris", "Prague", "Rome", "Seoul", "Sydney", "Tokyo", "Toronto", "Venice", "Vienna", "Warsaw", "Zurich",
)  # fmt: skip
# function -> (phrasings, values of its arguments). Some phrasings do not name the function, which is harder.
ENUMERATED: dict[str, tuple[tuple[str, ...], list[dict]]] = {
    "send_message": (
        ('Send the message "{text}" to {to}.', 'Send {to} the message "{text}".', 'Tell {to} "{text}".'),
        [{"to": to, "text": text} for to, text in product(PEOPLE, MESSAGES)],
    ),
    "multiply": (
        ("Multiply {a} by {b}.", "Please multiply {a} by {b}.", "Multiply {a} and {b}."),
        [{"a": a, "b": b} for a, b in product(range(11, 20), range(2, 10))],
    ),
    "set_timer": (
        (
            "Set a timer for {minutes} minutes.",
            "Please set a timer for {minutes} minutes.",
            "Wake me in {minutes} minutes.",
        ),
        [{"minutes": minutes} for minutes in range(2, 61)],
    ),
    "get_weather": (
        ("Get the weather in {city}.", "Please get the weather in {city}.", "Is it raining in {city}?"),
        [{"city": city} for city in CITIES],
    ),
}

MORE_PEOPLE = (
    "Alice", "Bruno", "Clara", "Daniel", "Elena", "Felix", "Greta", "Hugo", "Julia", "Kevin", "Laura", "Martin",
    "Olivia", "Peter",
)  # fmt: skip
MORE_MESSAGES = ("good morning", "well played", "come home", "take care")
# The same functions and phrasings with more values: enough distinct questions to show that two accuracies are near.
MORE_VALUES = {
    "send_message": [{"to": to, "text": text} for to, text in product(PEOPLE + MORE_PEOPLE, MESSAGES + MORE_MESSAGES)],
    # None of what is solved in the prompts, see `SHOTS`.
    "multiply": [{"a": a, "b": b} for a, b in product(range(11, 30), range(2, 10)) if a != 25],
    "set_timer": [{"minutes": minutes} for minutes in range(2, 200) if minutes not in (75, 90)],
    "get_weather": [{"city": city} for city in CITIES],
}


CUES = (("Question:", "Answer:"), ("Q:", "A:"))  # of each form of prompt


def solved(form: int, values: dict[str, dict], short: bool) -> str:
    """A solved question for each function, put before the question.

    Args:
        form: of the prompt, and number of the phrasing.
        values: arguments by function.
        short: calls as `f(a=1)`, instead of JSON behind a line that lists the functions.
    """
    asked, answered = CUES[form]
    signatures = [f"{name}({', '.join(arguments)})" for name, arguments in values.items()]
    lines = [] if short else ["Functions: " + ", ".join(signatures)]
    for name, arguments in values.items():
        question = ENUMERATED[name][0][form].format(**arguments)
        call = call_text(name, arguments) if short else json.dumps({"name": name, "arguments": arguments})
        lines.append(f"{asked} {question}\n{answered} {call}")
    return "\n".join(lines) + "\n"


# Values that no question has, for each form.
SOLVED = (
    {
        "send_message": {"to": "Tom", "text": "good luck"},
        "multiply": {"a": 25, "b": 4},
        "set_timer": {"minutes": 75},
        "get_weather": {"city": "Helsinki"},
    },
    {
        "send_message": {"to": "Sue", "text": "well done"},
        "multiply": {"a": 35, "b": 3},
        "set_timer": {"minutes": 90},
        "get_weather": {"city": "Brussels"},
    },
)
SHOTS, OTHER_SHOTS = (solved(form, values, short=False) for form, values in enumerate(SOLVED))
SHORT_SHOTS, OTHER_SHORT_SHOTS = (solved(form, values, short=True) for form, values in enumerate(SOLVED))


def tool_calls(split: str, loader: Callable) -> Iterator[Example]:
    """One call of one of four small functions; every value is spelt out in the question, one call solved for each.

    The default model makes 55 of the 78 calls of the validation split rightly, by
    `benchmarks/base_accuracy.py --datasets tool_calls`.
    """
    yield from _enumerated("tool_calls", split, {name: values for name, (_, values) in ENUMERATED.items()})


def short_tool_calls(split: str, loader: Callable) -> Iterator[Example]:
    """The calls of `tool_calls` and more of their kind, 2,022 requests, solved as `f(a=1)` in the prompt.

    Prompts have some three fifths of the tokens. A call is in the same split in both.
    """
    yield from _enumerated("short_tool_calls", split, MORE_VALUES, SHORT_SHOTS)


def _enumerated(dataset: str, split: str, values: dict[str, list[dict]], shots: str = SHOTS) -> Iterator[Example]:
    """Requests for each call of each function, in every phrasing."""
    tools = json.dumps(FUNCTIONS)
    for name, own in values.items():
        for arguments in own:
            calls = json.dumps([{name: {key: [value] for key, value in arguments.items()}}])
            # All phrasings that ask for a call go to the same split.
            if split_of(Example("tool_calls", calls, calls)) == split:
                for phrasing in ENUMERATED[name][0]:
                    question = phrasing.format(**arguments)
                    yield Example(dataset, question, calls, checker="calls", shots=shots, tools=tools)
