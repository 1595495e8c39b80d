"""Questions that functions answer: the Berkeley function-calling data, its hub relative, and easy ones of our own.

`Example.tools` lists the functions that may be called, `Example.answer` the expected calls (see routing/calls.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import product

from routing.calls import answer_problem, as_allowed
from routing.fetch import BFCL, fetch_wheel
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
        kind, _, optional = field.get("type", "any").partition(",")
        # "List[int]" is a list.
        properties[name] = field | {"type": kind.partition("[")[0].strip().lower()}
        if not optional and "default" not in field:
            required.append(name)
    return function | {"parameters": {"type": "dict", "properties": properties, "required": required}}


def _function(name: str, description: str, **parameters: str) -> dict:
    properties = {parameter: {"type": kind} for parameter, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"name": name, "description": description, "parameters": schema}


FUNCTIONS = [
    _function("get_weather", "The weather in a city.", city="string"),
    _function("set_timer", "Starts a timer.", minutes="integer"),
    _function("multiply", "The product of two numbers.", a="integer", b="integer"),
    _function("send_message", "Sends a message.", to="string", text="string"),
    _function("translate", "Translates a word.", word="string", language="string"),
]
CITIES = (
    "Paris Rome Berlin Madrid London Vienna Lisbon Dublin Oslo Prague Athens Cairo Tokyo Seoul Delhi Lima Boston Chicago "
    "Denver Miami Dallas Toronto Sydney Moscow Warsaw Zurich Geneva Munich Hamburg Milan Naples Venice Kyoto Beijing"
).split()
PEOPLE = "Anna Ben Carla David Emma Frank Grace Henry Irene Jack Karen Leo Maria Nina Oscar Paul".split()
MESSAGES = ("hello", "good night", "thank you", "call me", "see you soon", "happy birthday")
WORDS = "house water bread apple dog cat tree book night friend school river".split()
LANGUAGES = "French German Spanish Italian Dutch".split()
# function -> (phrasings, values of its arguments)
ENUMERATED: dict[str, tuple[tuple[str, ...], list[dict]]] = {
    "get_weather": (
        ("What is the weather in {city}?", "Tell me the weather in {city}.", "How is the weather in {city} today?"),
        [{"city": city} for city in CITIES],
    ),
    "set_timer": (
        ("Set a timer for {minutes} minutes.", "Start a timer of {minutes} minutes.", "Wake me in {minutes} minutes."),
        [{"minutes": minutes} for minutes in range(2, 61)],
    ),
    "multiply": (
        ("Multiply {a} by {b}.", "What is {a} times {b}?", "Compute the product of {a} and {b}."),
        [{"a": a, "b": b} for a, b in product(range(11, 20), range(2, 10))],
    ),
    "send_message": (
        ('Send "{text}" to {to}.', 'Write {to} the message "{text}".', 'Tell {to}: "{text}".'),
        [{"to": to, "text": text} for to, text in product(PEOPLE, MESSAGES)],
    ),
    "translate": (
        ('Translate "{word}" into {language}.', 'How do you say "{word}" in {language}?'),
        [{"word": word, "language": language} for word, language in product(WORDS, LANGUAGES)],
    ),
}


def call_line(name: str, arguments: dict) -> str:
    return json.dumps([{"name": name, "arguments": arguments}])


def solved(asked: str, answered: str, *calls: tuple[str, int, dict]) -> str:
    """The functions and solved questions (function, number of the phrasing, arguments), put before each question."""
    signatures = [f"{function['name']}({', '.join(function['parameters']['properties'])})" for function in FUNCTIONS]
    lines = ["Functions: " + ", ".join(signatures)]
    for name, phrasing, arguments in calls:
        question = ENUMERATED[name][0][phrasing].format(**arguments)
        lines.append(f"{asked} {question}\n{answered} {call_line(name, arguments)}")
    return "\n".join(lines) + "\n"


SHOTS = solved(
    "Question:",
    "Answer:",
    ("get_weather", 0, {"city": "Helsinki"}),
    ("multiply", 1, {"a": 25, "b": 4}),
    ("send_message", 0, {"to": "Tom", "text": "good luck"}),
)
OTHER_SHOTS = solved(
    "Q:",
    "A:",
    ("get_weather", 1, {"city": "Brussels"}),
    ("multiply", 0, {"a": 35, "b": 3}),
    ("send_message", 1, {"to": "Sue", "text": "well done"}),
)


def tool_calls(split: str, loader: Callable) -> Iterator[Example]:
    """One call of one of five small functions, every value of its arguments spelt out in the question."""
    for name, (phrasings, values) in ENUMERATED.items():
        for arguments in values:
            calls = json.dumps([{name: {key: [value] for key, value in arguments.items()}}])
            # All phrasings that ask for a call go to the same split.
            if split_of(Example("tool_calls", calls, calls)) != split:
                continue
            for phrasing in phrasings:
                question = phrasing.format(**arguments)
                yield Example("tool_calls", question, calls, checker="calls", shots=SHOTS, tools=json.dumps(FUNCTIONS))
