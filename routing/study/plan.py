"""The plan of a study: models, tasks, seeds, budgets, methods, and the tests to be made. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from routing.common.errors import UserError, raise_all
from routing.common.user_files import read_yaml
from routing.models.problems import model_problems
from routing.study.methods import GRIDS, METHODS, Method
from routing.tasks import unknown_names
from routing.tasks.problems import files_without_splits

FREE = "free"  # a row without a budget
ALL = "all"  # the task of all questions together; the seed of all seeds together
COUNTS = ("adapters", "table", "searched", "explored", "validation", "test")  # questions of each data set of a task
KEYS = ("models", "tasks", "text", "seeds", "test_questions", "budgets", "options", "methods", "timing", "hypotheses",
        "tests", "quick")  # fmt: skip
OPTIONS = ("adapters", "menu", "searched", "verified", "explored", "text")
AGAINST = ("full", "static")
SHARED, BY_SEED = "shared", "by_seed"  # test questions: all of them for each seed, or an equal part for each


@dataclass(frozen=True)
class Plan:
    """A plan as it was read, `quick` applied.

    Attributes:
        values: the YAML file.
    """

    values: dict

    def __getattr__(self, name: str):
        if name in KEYS:
            return self.values.get(name) or {}
        raise AttributeError(name)

    @property
    def digest(self) -> str:
        """SHA-256 of all that the plan says, whatever the order of its keys."""
        return hashlib.sha256(json.dumps(self.values, sort_keys=True).encode()).hexdigest()

    @property
    def datasets(self) -> str:
        """Names of the data sets of all tasks, with commas between."""
        return ",".join(task["dataset"] for task in self.tasks.values())

    @property
    def apart(self) -> bool:
        """Whether each seed has test questions of its own."""
        return self.values.get("test_questions") == BY_SEED

    def variants(self, method: str) -> list[dict]:
        """Hyper-parameters of each point of a method's grid."""
        given = self.methods[method] or {}
        lists = [value if isinstance(value, list) else [value] for value in given.values()]
        return [dict(zip(given, values, strict=True)) for values in product(*lists)]

    def table(self) -> dict[str, Method]:
        """The rows of `METHODS` that are asked for."""
        return {name: METHODS[name] for name in self.methods}

    def skips(self, budget: float, depth: int) -> int:
        """Layers that a budget leaves out of a model."""
        return round(budget * depth)


def merged(values: dict, others: dict) -> dict:
    """Values with others in their place, mapping by mapping; null takes one out."""
    found = dict(values)
    for key, value in others.items():
        if value is None:
            found.pop(key, None)
        elif isinstance(value, dict) and isinstance(found.get(key), dict):
            found[key] = merged(found[key], value)
        else:
            found[key] = value
    return found


def read_plan(path: Path, quick: bool = False) -> Plan:
    """A plan file, checked.

    Args:
        quick: with what its section `quick` says in the place of the rest.

    Raises:
        UserError: with all that is wrong with it.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a mapping with {', '.join(KEYS)}; experiments/study.yaml is an example.")
    if quick and not isinstance(values.get("quick"), dict):
        raise UserError(f"{path} has no section `quick`; give one, or leave --quick out.")
    small = values.pop("quick", None) or {}
    values = merged(values, small) if quick else values
    raise_all([f"{path}: {problem}" for problem in problems(values)])
    return Plan(values)


def problems(values: dict) -> list[str]:
    """All that is wrong with a plan, as sentences."""
    found = [f"{key!r} is unknown; allowed are {', '.join(KEYS)}" for key in sorted(set(values) - set(KEYS), key=str)]
    kinds = {"models": dict, "tasks": dict, "methods": dict, "seeds": list, "budgets": list}
    for key, kind in kinds.items():
        if not isinstance(values.get(key), kind) or not values[key]:
            what = "mapping" if kind is dict else "list"
            found.append(f"{key} must be a {what} with at least one entry, got {values.get(key)!r}")
    for key in ("text", "options", "timing", "tests"):
        if not isinstance(values.get(key) or {}, dict):
            found.append(f"{key} must be a mapping, got {values[key]!r}")
    if found:
        return found  # What follows looks into them.
    for name, model in values["models"].items():
        if not isinstance(model, dict) or not isinstance(model.get("model"), str):
            found.append(f"models: {name} must say `model`, a base model's name, got {model!r}")
        else:
            found += [f"models: {name}: {text}" for text in model_problems(model["model"])]
            if "adapter_size" in model:
                found += _too_small(f"models: {name}", model, ("adapter_size",))
    for name, task in values["tasks"].items():
        found += _task_problems(name, task)
    for seed in values["seeds"]:
        if type(seed) is not int or seed < 0:
            found.append(f"seeds: {seed!r} must be a whole number of at least 0")
    for budget in values["budgets"]:
        if type(budget) not in (int, float) or not 0 < budget < 1:
            found.append(f"budgets: {budget!r} must be a share of layers to leave out, such as 0.2")
    for key in ("seeds", "budgets"):
        if len(set(map(str, values[key]))) < len(values[key]):
            found.append(f"{key}: {values[key]} names one twice")
    if values.get("test_questions", SHARED) not in (SHARED, BY_SEED):
        found.append(f"test_questions must be {SHARED} or {BY_SEED}, got {values['test_questions']!r}")
    if values.get("test_questions") == BY_SEED:
        found += [
            f"tasks: {name}: test {task['test']} is fewer than the {len(values['seeds'])} seeds, which share the test "
            f"questions out ({BY_SEED}); ask more, or give test_questions: {SHARED}"
            for name, task in values["tasks"].items()
            if isinstance(task, dict) and type(task.get("test")) is int and 0 < task["test"] < len(values["seeds"])
        ]
    for name, own in values["methods"].items():
        if name not in METHODS:
            found.append(f"methods: {name!r} is unknown; there are {', '.join(METHODS)}")
        elif own is not None and not isinstance(own, dict):
            found.append(f"methods: {name} must be a mapping of options, got {own!r}")
        elif any(isinstance(value, list) for value in (own or {}).values()) and name not in GRIDS:
            found.append(f"methods: {name} takes no grid; give one value of each option (grids: {', '.join(GRIDS)})")
        elif own and not METHODS[name].weights:
            found.append(f"methods: {name} trains nothing, so it has no options; leave {', '.join(own)} out")
    if "full" not in values["methods"]:
        found.append("methods: `full` is missing, with which all others are compared")
    if not any(METHODS[name].is_static for name in values["methods"] if name in METHODS):
        static = ", ".join(name for name, method in METHODS.items() if method.is_static)
        found.append(f"methods: there is no static path to compare with; give one of {static}")
    if any("corpus" in METHODS[name].made_by for name in values["methods"] if name in METHODS):
        found += _too_small("text", values.get("text") or {}, ("passages", "questions", "test_rows"))
    found += _too_small("timing", values.get("timing") or {}, ("questions", "repeats"))
    for key in values.get("options") or {}:
        if key not in OPTIONS:
            found.append(f"options: {key!r} is unknown; allowed are {', '.join(OPTIONS)}")
    return found + _test_problems(values)


def _too_small(where: str, values: dict, keys: tuple[str, ...]) -> list[str]:
    """What is not a whole number of at least 1."""
    wrong = [key for key in keys if type(values.get(key)) is not int or values[key] < 1]
    return [f"{where}: {key} must be a whole number of at least 1, got {values.get(key)!r}" for key in wrong]


def _task_problems(name: str, task) -> list[str]:
    if name in (ALL, "text") or not isinstance(task, dict) or not isinstance(task.get("dataset"), str):
        return [f"tasks: {name} must say `dataset`, and not be called {ALL} or text; got {task!r}"]
    found = [f"tasks: {name}: {text.removeprefix('--dataset ')}" for text in unknown_names(task["dataset"])]
    found = found or [f"tasks: {name}: {text}" for text in files_without_splits("dataset", task["dataset"])]
    found += _too_small(f"tasks: {name}", task, COUNTS)
    return found + [
        f"tasks: {name}: {key!r} is unknown; allowed are dataset, {', '.join(COUNTS)}"
        for key in task
        if key not in ("dataset", *COUNTS)
    ]


def _test_problems(values: dict) -> list[str]:
    found = []
    hypotheses = values.get("hypotheses") or []
    for number, one in enumerate(hypotheses if isinstance(hypotheses, list) else [None], 1):
        where = f"hypotheses: number {number}"
        if not isinstance(one, dict) or ("above" in one) == ("below" in one):
            found.append(f"{where} must say method, budget, task, against, and either above or below; got {one!r}")
            continue
        allowed = {
            "method": list(values["methods"]), "budget": [*values["budgets"], FREE], "against": list(AGAINST),
            "task": [*values["tasks"], ALL],
        }  # fmt: skip
        for key, known in allowed.items():
            if one.get(key) not in known:
                found.append(f"{where}: {key} {one.get(key)!r} is none of {', '.join(map(str, known))}")
        bound = one.get("above", one.get("below"))
        if type(bound) not in (int, float):
            found.append(f"{where}: its bound must be a number, got {bound!r}")
        method = METHODS.get(one.get("method"))
        if method and not (method.free if one.get("budget") == FREE else method.budgets):
            found.append(f"{where}: {one['method']} has no row at budget {one['budget']}")
    tests = values.get("tests") or {}
    if not isinstance(tests, dict):
        return found
    for key, known in (("task", [*values["tasks"], ALL]), ("against", AGAINST)):
        given = tests.get(key, known)
        wrong = [one for one in (given if isinstance(given, list | tuple) else [given]) if one not in known]
        found += [f"tests: {key} {one!r} is none of {', '.join(known)}" for one in wrong]
    if not 0 < tests.get("level", 0.05) < 1:
        found.append(f"tests: level {tests['level']!r} must lie between 0 and 1")
    return found
