"""Rows of a study: what its stages left, put together. A row is a method at a budget on a task, of one seed or of all.

study.json holds them under `rows`. Keys of a row, None where it has no such thing:
- model, task, method, title, budget (a share of layers, or "free"), seed ("all": all of them together), n (questions);
- accuracy, ci95, layers (executed, mean), flops, seconds (of a request), seconds_full (of the full model);
- difference, difference_ci95, difference_lower_bound, p, p_holm: to the full model; p is two-sided, uncorrected;
- static_accuracy, static_difference, static_ci95, static_p, static_p_holm: to the best static path at equal layers;
- headroom (share of the cross-fitted gain that is used), run_shares (how often each layer runs);
- training_seconds, training_forwards, training_labels, added_parameters;
- perplexity, loss_difference, loss_ci95 (nats a token, to the full model): of text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_models.path_notation import write_path
from routing.common.errors import UserError
from routing.labels.reading import LABELS, read_labels
from routing.search.routes import to_path
from routing.study.comparing import holm, interval, one_sided, paired, static_mixture
from routing.study.methods import METHODS
from routing.study.plan import ALL, FREE, Plan
from routing.study.runner import DONE
from routing.study.stages import Place, checkpoints

TEXT = "text"  # the task of rows of text
LEAST_GAIN = 0.005  # of which a share is told: one of less says nothing
KEY = ("model", "task", "method", "budget", "seed")


class Answers:
    """What one model and seed left of a task: test verdicts, validation rewards and times."""

    def __init__(self, place: Place, task: str):
        folder = place.folder
        self.place, self.task = place, task
        self.test = _json(self.path(place, task))
        self.instances = {(one["method"], one["budget"]): one for one in self.test["instances"]}
        times = folder / f"times-{task}" / "times.json"
        self.times = _json(times) if times.exists() else None

    @staticmethod
    def path(place: Place, task: str) -> Path:
        """The file that is there once the test questions are answered."""
        return place.folder / f"answers-{task}" / "answers.json"

    def right(self, key: tuple) -> np.ndarray:
        return np.array(self.instances[key]["right"], dtype=float)

    def static_at(self, layers: float) -> np.ndarray:
        """[N] share of right answers of the best static path by validation, mixed so that it runs so many layers."""
        known = [one for one in self.instances.values() if "rewards" in (one.get("validation") or {})]
        own = [one for one in known if METHODS[one["method"]].is_static or one["method"] == "full"]
        lengths = np.array([one["validation"]["layers"] for one in own])
        rewards = np.array([np.mean(one["validation"]["rewards"]) for one in own])
        weights = static_mixture(rewards, lengths, max(layers, float(lengths.min())))
        return weights @ np.array([one["right"] for one in own], dtype=float)

    def seconds(self, key: tuple) -> np.ndarray | None:
        """Median over repeats of each timed question."""
        if self.times is None:
            return None
        one = next(i for i in self.times["instances"] if (i["method"], i["budget"]) == key)
        return None if one["seconds"] is None else np.median(np.array(one["seconds"]), axis=1)

    def added(self, key: tuple) -> int | None:
        if self.times is None:
            return None
        return self.times["added_parameters"][[*self.instances].index(key)]


def _json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def collect(plan: Plan, plan_file: Path, quick: bool, output: Path) -> dict:
    """All that is there by now: {rows, hypotheses, missing, commands, settings}.

    Raises:
        UserError: if no test question was answered yet.
    """
    rows, hypotheses, missing, commands, settings = [], [], [], {}, {}
    for model in plan.models:
        places = [Place(plan, plan_file, quick, output, model, seed) for seed in plan.seeds]
        found: dict[str, list[Answers]] = {}
        for place in places:
            answered = [Answers(place, task) for task in plan.tasks if Answers.path(place, task).exists()]
            for one in answered:
                found.setdefault(one.task, []).append(one)
            missing += _missing(place, answered)
        own = _rows_of_model(plan, model, found)
        rows += own + _text_rows(plan, model, places)
        for place in places:
            commands |= _commands(place, output)
        for one in (one for answers in found.values() for one in answers):
            _note_settings(settings, one)
        hypotheses += _hypotheses(plan, model, found)
    if not rows:
        raise UserError(
            f"{output} has no answers to test questions yet, so there is nothing to show; run the study on."
        )
    _correct(plan, rows)
    return {
        "rows": rows,
        "hypotheses": hypotheses,
        "missing": missing,
        "commands": commands,
        "settings": settings,
    }


def _missing(place: Place, answered: Sequence[Answers]) -> list[str]:
    """A line of what a model and seed lacks, none where everything is there."""
    name, tasks = f"{place.model}, seed {place.seed}", place.plan.tasks
    if not answered:
        return [name]
    there = {one.task for one in answered}
    lacks = [f"answers to {task}" for task in tasks if task not in there]
    lacks += [f"seconds of {one.task}" for one in answered if one.times is None]
    return [f"{name}: {', '.join(lacks)}"] if lacks else []


def all_answers(plan: Plan, plan_file: Path, quick: bool, output: Path) -> list[Answers]:
    """The answers that are there, by model, seed and task."""
    places = [Place(plan, plan_file, quick, output, model, seed) for model in plan.models for seed in plan.seeds]
    return [Answers(place, task) for place in places for task in plan.tasks if Answers.path(place, task).exists()]


def _complete(found: dict[str, list[Answers]], plan: Plan) -> dict[int, list[Answers]]:
    """Answers of all tasks, by seeds that have all of them."""
    by_seed: dict[int, list[Answers]] = {}
    for answers in found.values():
        for one in answers:
            by_seed.setdefault(one.place.seed, []).append(one)
    return {seed: own for seed, own in by_seed.items() if len(own) == len(plan.tasks)}


def _rows_of_model(plan: Plan, model: str, found: dict[str, list[Answers]]) -> list[dict]:
    """Rows of each task and of all of them, for each seed and for all seeds together."""
    groups = {task: {one.place.seed: [one] for one in answers} for task, answers in found.items()}
    if len(plan.tasks) > 1 and (whole := _complete(found, plan)):
        groups[ALL] = whole
    rows, costs = [], {}
    for task, by_seed in groups.items():
        keys = list(next(iter(by_seed.values()))[0].instances)
        for seeds in [[seed] for seed in by_seed] + [list(by_seed)] * (len(by_seed) > 1):
            parts = [by_seed[seed] for seed in seeds]  # [S][tasks]
            rows += [_row(plan, model, task, key, seeds, parts, costs) for key in keys]
        if len(by_seed) == 1:  # It is all that there is.
            rows += [row | {"seed": ALL} for row in rows if row["task"] == task]
    return rows


def _joined(parts: Sequence[Sequence[Answers]], of) -> np.ndarray:
    """[S, N] of a function of one seed's answers to one task."""
    return np.stack([np.concatenate([np.asarray(of(one), dtype=float) for one in own]) for own in parts])


def _questions(right: np.ndarray, plan: Plan) -> int:
    """How many questions verdicts [S, N] are of."""
    return right.size if plan.apart else right.shape[1]


def _row(
    plan: Plan, model: str, task: str, key: tuple, seeds: list, parts: Sequence[Sequence[Answers]], costs: dict
) -> dict:
    method, budget = key
    right = _joined(parts, lambda one: one.right(key))
    full = _joined(parts, lambda one: one.right(("full", FREE)))
    static = _joined(parts, lambda one: one.static_at(np.mean(one.instances[key]["layers"])))
    to_full, to_static = paired(right, full, plan.apart), paired(right, static, plan.apart)
    layers = _joined(parts, lambda one: one.instances[key]["layers"])
    counts = [len(one.test["ids"]) for one in parts[0]]
    shares = [one.instances[key]["run_shares"] for own in parts for one in own]
    seconds = _seconds(parts, key)
    row = {
        "model": model, "task": task, "method": method, "title": METHODS[method].title, "budget": budget,
        "seed": seeds[0] if len(seeds) == 1 else ALL, "n": _questions(right, plan), "accuracy": float(right.mean()),
        "ci95": interval(right, plan.apart), "layers": float(layers.mean()),
        "flops": float(np.average([[one.instances[key]["flops"] for one in own] for own in parts], axis=1,
                                  weights=counts).mean()),
        "seconds": seconds, "seconds_full": _seconds(parts, ("full", FREE)),
        "difference": to_full["difference"], "difference_ci95": to_full["ci95"],
        "difference_lower_bound": to_full["lower_bound"], "p": None if method == "full" else to_full["p"],
        "p_holm": None, "static_accuracy": float(static.mean()), "static_difference": to_static["difference"],
        "static_ci95": to_static["ci95"], "static_p": to_static["p"], "static_p_holm": None,
        "added_parameters": parts[0][0].added(key), "run_shares": np.mean(shares, axis=0).round(4).tolist(),
        "perplexity": None, "loss_difference": None, "loss_ci95": None,
    }  # fmt: skip
    gain = _headroom(parts, float(layers.mean()), costs)
    row["headroom"] = to_static["difference"] / gain if gain and method not in ("full", "lora") else None
    return row | _cost(parts, key, costs)


def _seconds(parts: Sequence[Sequence[Answers]], key: tuple) -> float | None:
    """Of a request: mean over timed questions of the median of repeats."""
    times = [one.seconds(key) for own in parts for one in own]
    if any(own is None for own in times):
        return None
    return float(np.mean(np.concatenate(times)))


def _headroom(parts: Sequence[Sequence[Answers]], layers: float, costs: dict) -> float | None:
    """The cross-fitted gain over static paths that a router was shown to have, at about so many layers.

    On the tables that routers learned from; None where it is below LEAST_GAIN.
    """
    gains = []
    for own in parts:
        for one in own:
            place = (one.place.prefix, one.task, "headroom")
            if place not in costs:
                path = one.place.folder / f"headroom-{one.task}" / "headroom.json"
                costs[place] = _json(path)["gains"] if path.exists() else []
            text = [gain for gain in costs[place] if gain["policy"] == "text"]
            if text:
                gains.append(min(text, key=lambda gain: abs(gain["layers"] - layers))["gain"])
    mean = float(np.mean(gains)) if gains else 0.0
    return mean if mean >= LEAST_GAIN else None


def _cost(parts: Sequence[Sequence[Answers]], key: tuple, costs: dict) -> dict:
    """What it took to make a method, mean over seeds: seconds of its stages, forward passes, labelled questions."""
    found = []
    for own in parts:
        place, one = own[0].place, own[0].instances[key]
        names = made_by(place, one)
        seconds = forwards = labels = 0.0
        for name in names:
            if (place.prefix, name) not in costs:
                costs[place.prefix, name] = _cost_of(place, name)
            stage = costs[place.prefix, name]
            seconds, forwards, labels = seconds + stage[0], forwards + stage[1], labels + stage[2]
        found.append((seconds, forwards, labels))
    seconds, forwards, labels = np.mean(found, axis=0).tolist()
    return {"training_seconds": seconds, "training_forwards": int(forwards), "training_labels": int(labels)}


def made_by(place: Place, one: dict) -> list[str]:
    """Names of the stages that make an instance, in their order."""
    names = []
    for name in METHODS[one["method"]].made_by:
        if "{task}" in name:
            names += [name.format(task=task) for task in place.plan.tasks]
        elif name == METHODS[one["method"]].weights:
            names.append(one["weights"])
        else:
            names.append(name)
    return list(dict.fromkeys(names))


def _cost_of(place: Place, name: str) -> tuple[float, int, int]:
    """Seconds, forward passes along one path, and labelled questions of a stage."""
    record = place.output / ".stages" / place.prefix / name / DONE
    seconds = _json(record)["seconds"] if record.exists() else 0.0
    folder, forwards, labels = place.folder / name, 0, 0
    if (folder / LABELS).exists():
        for label in read_labels(folder):
            forwards, labels = forwards + len(label["tried"]), labels + 1
    elif (folder / "training.json").exists():
        made = _json(folder / "training.json")["arguments"]
        if made.get("max_steps", -1) > 0:
            forwards = made["max_steps"] * made["batch_size"] * made["gradient_accumulation"]
        elif made.get("objective") == "adapters":
            forwards = labels = made["num_samples"] * len(made["dataset"].split(","))
    return seconds, forwards, labels


def _commands(place: Place, output: Path) -> dict[str, list[str]]:
    """The commands that make each method of a model and seed, as they were run; OUTPUT is the folder of the study."""
    found = {}
    for name in place.plan.methods:
        own = []
        for checkpoint in checkpoints(place, name) or [""]:
            for stage in made_by(place, {"method": name, "weights": checkpoint}):
                record = output / ".stages" / place.prefix / stage / DONE
                if record.exists():
                    words = _json(record)["command"]
                    own.append("python " + " ".join(words))
        if own:
            found[f"{place.model}/{place.seed}/{name}"] = list(dict.fromkeys(own))
    return found


def _note_settings(settings: dict, answers: Answers) -> None:
    """Add what validation chose for each method and budget on a task: checkpoint, config fields, the path if it is one.

    The checkpoint of a path without weights of its own is that of the adapters, where they stand in for layers. Keys
    are MODEL/SEED/METHOD/BUDGET, then the task.
    """
    place = answers.place
    for (method, budget), one in answers.instances.items():
        name = one["weights"] or ("adapters" if one["skip_action"] == "adapter" else "")
        own = {
            "checkpoint": f"OUTPUT/{place.prefix}/{name}" if name else "",
            "fields": one["fields"],
            "path": None if one["route"] is None else write_path(to_path(one["route"])),
        }
        settings.setdefault(f"{place.model}/{place.seed}/{method}/{budget}", {})[answers.task] = own


def _text_rows(plan: Plan, model: str, places: Sequence[Place]) -> list[dict]:
    """Rows of text: perplexity, and the paired difference of losses to the base at full depth, in nats a token."""
    by_seed = {}
    for place in places:
        path = place.folder / "perplexity" / "perplexity.json"
        if path.exists():
            by_seed[place.seed] = {(one["method"], one["budget"]): one for one in _json(path)["instances"]}
    groups = [[seed] for seed in by_seed] + [list(by_seed)] * (len(by_seed) > 1)
    rows = [_text_row(model, key, seeds, by_seed) for seeds in groups for key in by_seed[seeds[0]]]
    return rows + [row | {"seed": ALL} for row in rows] * (len(by_seed) == 1)


def _text_row(model: str, key: tuple, seeds: list, by_seed: dict) -> dict:
    method, budget = key
    own = [by_seed[seed][key] for seed in seeds]
    counts = np.array(own[0]["predicted"], dtype=float)  # the same rows in all seeds
    losses = np.array([one["losses"] for one in own])
    full = np.array([by_seed[seed]["full", FREE]["losses"] for seed in seeds])
    found = paired(losses / counts, full / counts)
    return dict.fromkeys(rows_keys()) | {
        "model": model, "task": TEXT, "method": method, "title": METHODS[method].title, "budget": budget,
        "seed": seeds[0] if len(seeds) == 1 else ALL, "n": len(counts),
        "layers": float(np.mean([one["layers"] for one in own])),
        "perplexity": math.exp(losses.sum() / (counts.sum() * len(own))), "loss_difference": found["difference"],
        "loss_ci95": found["ci95"],
        "p": None if method == "full" else found["p"],
    }  # fmt: skip


def rows_keys() -> tuple[str, ...]:
    """Keys of a row, in the order of tables."""
    return (
        *KEY, "title", "n", "accuracy", "ci95", "layers", "flops", "seconds", "seconds_full", "difference",
        "difference_ci95", "difference_lower_bound", "p", "p_holm", "static_accuracy", "static_difference",
        "static_ci95", "static_p", "static_p_holm", "headroom", "training_seconds", "training_forwards",
        "training_labels", "added_parameters", "run_shares", "perplexity", "loss_difference",
        "loss_ci95",
    )  # fmt: skip


def _correct(plan: Plan, rows: list[dict]) -> None:
    """Holm's correction over the tests of the plan: rows of all seeds on its task, for each model."""
    task = plan.tests.get("task", ALL) if len(plan.tasks) > 1 else next(iter(plan.tasks))
    against = plan.tests.get("against", ["full", "static"])
    for model in plan.models:
        family = []
        for row in rows:
            if (row["model"], row["task"], row["seed"]) != (model, task, ALL) or row["method"] in ("full", "oracle"):
                continue
            family += [(row, "p", "p_holm")] if "full" in against else []
            family += [(row, "static_p", "static_p_holm")] if "static" in against else []
        for (row, _, corrected), p in zip(family, holm([row[name] for row, name, _ in family]), strict=True):
            row[corrected] = p


def _hypotheses(plan: Plan, model: str, found: dict[str, list[Answers]]) -> list[dict]:
    """What became of the plan's hypotheses, with Holm's correction over all of them.

    None holds before all seeds of the plan are there: to stop as soon as one does would be to choose.
    """
    whole, tested = _complete(found, plan), []
    for one in plan.values.get("hypotheses") or []:
        own = [[answers] for answers in found.get(one["task"], [])]
        parts = list(whole.values()) if one["task"] == ALL else own
        key = (one["method"], one["budget"])
        if not parts or not all(key in part.instances for own in parts for part in own):
            continue
        right = _joined(parts, lambda part, key=key: part.right(key))
        if one["against"] == "full":
            others = _joined(parts, lambda part: part.right(("full", FREE)))
        else:
            others = _joined(parts, lambda part, key=key: part.static_at(np.mean(part.instances[key]["layers"])))
        p = one_sided(right, others, one.get("above"), one.get("below"), plan.apart)
        seen = {key: value for key, value in paired(right, others, plan.apart).items() if key in ("difference", "ci95")}
        seen |= {"p": p, "n": _questions(right, plan), "seeds": len(right)}
        tested.append({"model": model} | one | seen | {"settled": len(right) == len(plan.seeds)})
    level = plan.tests.get("level", 0.05)
    untested = len(plan.values.get("hypotheses") or []) - len(tested)
    corrected = holm([one["p"] for one in tested] + [1.0] * untested)
    return [one | {"p_holm": p, "holds": one["settled"] and p < level} for one, p in zip(tested, corrected)]
