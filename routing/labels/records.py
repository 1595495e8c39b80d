"""One line of a label file: writing and checking it."""

from __future__ import annotations

import json
import math

from routing.common import strict_json
from routing.scoring.prompting import Prompting
from routing.scoring.requests import Request, make_request
from routing.search.results import SearchResult, Verdict
from routing.search.routes import Route, pruned_layers, to_path, to_route
from routing.tasks.answers import CHECKERS
from routing.tasks.calls import answer_problem
from routing.tasks.examples import Example
from routing.tasks.prompts import SCORINGS


def label_line(request: Request, result: SearchResult) -> str:
    """One line of a label file, with its newline."""
    example = request.example
    route = result.full if result.best is None else result.best
    record = {
        "id": example.id,
        "dataset": example.dataset,
        "prompt": request.prompt,
        "question": example.question,
        "answer": example.answer,
        "choices": list(example.choices),
        "accepted": list(example.accepted),
        "gold": example.gold,
        "checker": example.checker,
        **({"tools": example.tools} if example.tools else {}),
        "scoring": request.scoring,
        "base_correct": result.base_correct,
        "correct": result.best is not None,
        "route": list(route),
        "path": to_path(route),
        "valid_paths": [to_path(tried) for tried, verdict in result.verdicts.items() if verdict.correct],
        "tried": [tried_entry(tried, verdict) for tried, verdict in result.verdicts.items()],
        "evaluations": len(result.verdicts),
    }
    return json.dumps(record, ensure_ascii=False) + "\n"


# Fields of a tried path whose verdict has a score.
SCORED = {"pruned_layers", "score", "output"}


def tried_entry(route: Route, verdict: Verdict) -> dict:
    """A path with its verdict; `margin` and `lucky` only where they say something, SCORED only with a score."""
    entry = {"path": to_path(route), "correct": verdict.correct}
    if verdict.margin is not None:
        entry["margin"] = verdict.margin
    if verdict.lucky:
        entry["lucky"] = True
    if verdict.score is not None:
        entry |= {"pruned_layers": pruned_layers(route), "score": verdict.score, "output": verdict.output}
    return entry


def example_of(record: dict) -> Example:
    """The question of a label record."""
    return Example(
        dataset=record["dataset"],
        question=record["question"],
        answer=record["answer"],
        choices=tuple(record["choices"]),
        gold=record["gold"],
        checker=record["checker"],
        accepted=tuple(record["accepted"]),
        tools=record.get("tools", ""),
    )


def labelled(record: dict, tokenizer, prompting: Prompting) -> Request:
    """The request that a label is of, asked as the header of its folder says."""
    example = example_of(record)
    limit = prompting.limit_of(example.dataset)
    return make_request(example, record["scoring"], record["prompt"], tokenizer, prompting.apply_chat_template, limit)


FIELDS = {
    "id": str,
    "dataset": str,
    "prompt": str,
    "question": str,
    "answer": str,
    "choices": list,
    "accepted": list,
    "gold": (int, type(None)),
    "checker": str,
    "scoring": str,
    "base_correct": bool,
    "correct": bool,
    "route": list,
    "path": list,
    "valid_paths": list,
    "tried": list,
    "evaluations": int,
}


def parse_label(line: str, depth: int) -> dict:
    """Record of a line; raises a ValueError that says what is wrong with it."""
    record = strict_json.loads(line)
    if not isinstance(record, dict):
        raise ValueError(f"it is a {type(record).__name__}, no object")
    for name, kind in FIELDS.items():
        if name not in record:
            raise ValueError(f'it has no field "{name}"')
        if not isinstance(record[name], kind):
            raise ValueError(f'"{name}" is {record[name]!r}')
    # Only questions that are answered by function calls have it.
    if not isinstance(record.get("tools", ""), str):
        raise ValueError(f'"tools" is {record["tools"]!r}')
    for name in ("route", "path"):
        if not all(type(number) is int for number in record[name]):
            raise ValueError(f'"{name}" must hold whole numbers, got {record[name]!r}')
    if record["scoring"] not in SCORINGS[1:] or record["checker"] not in CHECKERS:
        raise ValueError(f'unknown "scoring" {record["scoring"]!r} or "checker" {record["checker"]!r}')
    if record["checker"] == "calls" and (problem := answer_problem(record["answer"])):
        raise ValueError(f'"answer" {problem}')
    if record["choices"] and (record["gold"] is None or not 0 <= record["gold"] < len(record["choices"])):
        raise ValueError(f'"gold" {record["gold"]!r} is no index of "choices"')
    if record["scoring"] != "generate" and not record["choices"]:
        raise ValueError(f'"choices" is empty, which the scoring {record["scoring"]!r} needs')
    if len(record["route"]) != depth:
        raise ValueError(f'"route" has {len(record["route"])} counts; the model has {depth} layers')
    if set(record["route"]) - {0, 1, 2}:
        raise ValueError(f'"route" has counts other than 0, 1 and 2: {record["route"]}')
    if to_route(record["path"], depth) != tuple(record["route"]):
        raise ValueError('"path" and "route" do not agree')
    for entry in record["tried"]:
        if not isinstance(entry, dict):
            raise ValueError(f'"tried" holds {entry!r}')
        if entry.keys() & SCORED:
            check_scored(entry, depth)
    return record


def check_scored(entry: dict, depth: int) -> None:
    """Raise a ValueError that says what is wrong with a tried path that has a score."""
    missing = {"path", *SCORED} - entry.keys()
    if missing:
        raise ValueError(f'a record of "tried" has a score without {", ".join(sorted(missing))}')
    path = entry["path"]
    if not isinstance(path, list) or not all(type(layer) is int for layer in path):
        raise ValueError(f'"path" must hold whole numbers, got {path!r}')
    if entry["pruned_layers"] != pruned_layers(to_route(path, depth)):
        raise ValueError(f'"pruned_layers" {entry["pruned_layers"]!r} are not the layers that {path} leaves out')
    if type(entry["score"]) not in (int, float) or not math.isfinite(entry["score"]):
        raise ValueError(f'"score" must be a number, got {entry["score"]!r}')
    if not isinstance(entry["output"], str):
        raise ValueError(f'"output" must be a text, got {entry["output"]!r}')
