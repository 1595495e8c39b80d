"""Runs of train.py --objective lm, read from their folders; seeds taken together."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from routing.common.errors import UserError
from routing.common.statistics import t_interval
from routing.report.groups import ASIDE
from routing.report.runs import Row, read_object, read_table
from routing.training.language_model.arguments import RESULT
from routing.training.language_model.configurations import PATTERNS
from routing.training.language_model.training import COLUMNS, SHARE

ARGUMENTS = ("run_name", "config", "seed", "num_layers")
# Arguments, as they are called in a sentence, that runs which are compared have in common.
SAME = {
    "sequence_length": "sequence lengths",
    "corpus": "corpora",
    "model_id": "tokenizers",
    "layout": "layouts",
    "train_passages": "numbers of training passages",
    "validation_passages": "numbers of validation passages",
    "test_passages": "numbers of test passages",
    "num_epochs": "numbers of epochs",
    "weight_decay": "weight decays",
    "bf16": "settings of bf16",
    "num_processes": "numbers of processes",
}
UNEQUAL = 0.05  # difference of shares from which a random control is no fair one


@dataclass(frozen=True)
class HybridRun:
    """One run.

    Attributes:
        folder: that was read.
        arguments: of its training.
        metrics: a row for each validation, by COLUMNS and softmax_share_N; None where a cell is empty.
        blocks: routed blocks N.
        result: what train.py wrote at the end; None while it is not there.
    """

    folder: Path
    arguments: dict
    metrics: list[Row]
    blocks: list[int]
    result: dict | None

    @property
    def name(self) -> str:
        return self.arguments["run_name"]

    @property
    def best(self) -> Row:
        """The validation at which the checkpoint was kept; of an unfinished run the one with the lowest loss so far."""
        if self.result:
            return next(row for row in self.metrics if row["step"] == self.result["kept_step"])
        return min(self.metrics, key=lambda row: row["validation_loss"])

    @property
    def test_loss(self) -> float | None:
        return self.result["test"]["loss"] if self.result else None


@dataclass(frozen=True)
class HybridGroup:
    """Runs that differ in their seed alone."""

    name: str
    runs: list[HybridRun]

    def values(self, value: Callable[[HybridRun], float | None]) -> list[float]:
        """One figure of all runs; empty where a run lacks it."""
        found = [value(run) for run in self.runs]
        return [] if None in found else found

    def curve(self, name: str) -> tuple[list[float], list[list[float]]]:
        """Steps at which all runs have a value of a column, and their values at each."""
        by_step: dict[float, list[float]] = {}
        for run in self.runs:
            for row in run.metrics:
                if row.get(name) is not None:
                    by_step.setdefault(row["step"], []).append(row[name])
        steps = sorted(step for step, values in by_step.items() if len(values) == len(self.runs))
        return steps, [by_step[step] for step in steps]


def read_hybrid_run(folder: Path) -> HybridRun:
    """One run.

    Raises:
        UserError: naming file, line and remedy where one of its files is malformed.
    """
    arguments = read_object(folder / "arguments.json", ARGUMENTS)
    path = folder / "metrics.csv"
    with path.open(encoding="utf-8", newline="") as file:
        head = next(csv.reader(file), [])
    shares = [name for name in head if name.startswith(SHARE)]
    metrics = read_table(path, (*COLUMNS, *shares))
    for line, row in enumerate(metrics, 2):
        for name in ("step", "validation_loss"):
            if row[name] is None:
                raise UserError(f"{path}, line {line}: {name} is empty. Make the file again, or leave the run out.")
    result = folder / RESULT
    ended = None
    if result.exists():
        ended = read_object(result, ("test", "parameters", "kept_step", "alarms", "learning_rate"))
        if ended["kept_step"] not in [row["step"] for row in metrics]:
            raise UserError(
                f"{path} has no step {ended['kept_step']}, which {result} says was kept; they are of two runs. Make "
                "the run again, or leave it out."
            )
    return HybridRun(folder, arguments, metrics, [int(name.removeprefix(SHARE)) for name in shares], ended)


def group_hybrid_runs(runs: Sequence[HybridRun]) -> list[HybridGroup]:
    """Groups in the order of the configurations, named by --config and what else tells them apart.

    Raises:
        UserError: for two runs with the same arguments and seed.
    """
    found: dict[str, list[HybridRun]] = {}
    for run in runs:
        own = {name: value for name, value in run.arguments.items() if name not in ASIDE}
        found.setdefault(json.dumps(own, sort_keys=True), []).append(run)
    groups = []
    for own in found.values():
        own.sort(key=lambda run: run.arguments["seed"])
        for first, second in zip(own, own[1:]):
            if first.arguments["seed"] == second.arguments["seed"]:
                raise UserError(
                    f"{first.folder} and {second.folder} have the same arguments and seed, so they are no two "
                    "samples; give one of them."
                )
        arguments = own[0].arguments
        kin = [other[0].arguments for other in found.values() if other[0].arguments["config"] == arguments["config"]]
        told = [
            f"{name} {value}"
            for name, value in arguments.items()
            if name not in ASIDE and any(other.get(name) != value for other in kin)
        ]
        groups.append(HybridGroup(", ".join([arguments["config"], *told]), own))
    order = [*PATTERNS, *(group.runs[0].arguments["config"] for group in groups)]
    return sorted(groups, key=lambda group: order.index(group.runs[0].arguments["config"]))


def middle(values: Sequence[float]) -> tuple[float | None, list[float] | None]:
    """Mean and 95 % interval over seeds (Student's t), the latter for two runs and more."""
    return (mean(values), t_interval(values)) if values else (None, None)


@dataclass(frozen=True)
class Pair:
    """Test loss of two groups, seed by seed.

    Attributes:
        first, second: names of the groups.
        differences: first less second, nats a token, for each seed that both have finished.
    """

    first: str
    second: str
    differences: list[float]


def paired(groups: Sequence[HybridGroup]) -> list[Pair]:
    """Each group of --config dynamic against each of the others that have finished seeds in common with it."""

    def losses(group: HybridGroup) -> dict[int, float]:
        return {run.arguments["seed"]: run.test_loss for run in group.runs if run.result}

    found = []
    for first in of_config(groups, "dynamic"):
        for second in groups:
            if second.runs[0].arguments["config"] != "dynamic":
                own, other = losses(first), losses(second)
                differences = [own[seed] - other[seed] for seed in own if seed in other]
                if differences:
                    found.append(Pair(first.name, second.name, differences))
    return found


def of_config(groups: Sequence[HybridGroup], config: str) -> list[HybridGroup]:
    return [group for group in groups if group.runs[0].arguments["config"] == config]


def shares(group: HybridGroup) -> dict[int, float]:
    """Share of validation tokens that take softmax in each routed block, mean over runs; {} where one is unknown."""
    blocks = group.runs[0].blocks
    found = {block: group.values(lambda run, block=block: run.best.get(f"{SHARE}{block}")) for block in blocks}
    return {block: mean(values) for block, values in found.items() if values}


def unequal_shares(groups: Sequence[HybridGroup]) -> list[str]:
    """A random control says something of what is learned if it takes either mechanism as often, block by block."""
    found = []
    for control in of_config(groups, "random"):
        for learned in of_config(groups, "dynamic"):
            drawn, chosen = shares(control), shares(learned)
            if drawn and drawn.keys() == chosen.keys() and any(abs(drawn[at] - chosen[at]) > UNEQUAL for at in drawn):
                here, there = (", ".join(f"{share:.0%}" for share in own.values()) for own in (drawn, chosen))
                wanted = ",".join(f"{share:.2f}" for share in chosen.values())
                found.append(
                    f"{control.name} takes softmax for other shares of the tokens than {learned.name}: {here}, not "
                    f"{there} in its routed blocks; the control that fits has --random_share {wanted}."
                )
    return found


def unequal_runs(groups: Sequence[HybridGroup]) -> list[str]:
    """What makes a comparison unfair or is to be known of it, as sentences."""
    found, runs = [], [run for group in groups for run in group.runs]
    done = [run for run in runs if run.result]

    def compare(title: str, values: Iterable) -> None:
        different = dict.fromkeys(value for value in values if value is not None)
        if len(different) > 1:
            found.append(f"runs have different {title}: {', '.join(map(str, different))}.")

    compare("learning rates", (run.result["learning_rate"] for run in done))
    compare("batch sizes", (run.arguments["batch_size"] * run.arguments["gradient_accumulation"] for run in runs))
    compare("last steps", (int(run.metrics[-1]["step"]) for run in done))
    for name, title in SAME.items():
        compare(title, (run.arguments.get(name) for run in runs))
    # Without the embeddings, beside which differences of small models would not show.
    sizes = [run.result["parameters"]["total"] - run.result["parameters"]["embeddings"] for run in done]
    if sizes and max(sizes) > 1.01 * min(sizes):
        found.append(
            f"parameters without embeddings differ by more than 1 %: {min(sizes):,} to {max(sizes):,}; see "
            "--match_parameters."
        )
    found += unequal_shares(groups)
    unfinished = [run.name for group in groups for run in group.runs if run.result is None]
    if unfinished:
        found.append(f"not finished: {', '.join(unfinished)}.")
    for group in groups:
        for run in group.runs:
            if run.result and run.result["alarms"]:
                steps = ", ".join(run.result["alarms"])
                last = list(run.result["alarms"].values())[-1]
                found.append(f"ALARM in {run.name} at steps {steps}; the last: {'; '.join(last)}.")
    return found
