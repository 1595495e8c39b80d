"""Groups of runs that differ in their seed alone, and what they came to: means and intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

from routing.common.errors import UserError
from routing.common.statistics import t_interval
from routing.report.runs import CONTROLS, Row, Run

# Arguments that do not change what is trained.
ASIDE = ("run_name", "seed", "output_dir", "work_dir", "resume", "report_to", "device", "save_base")
SWEPT = ("target_skip", "layer_penalty")  # What moves a run along its frontier.


@dataclass(frozen=True)
class Group:
    """Runs with the same arguments but for the seed.

    Attributes:
        name: objective, router, and those arguments that tell it from other groups.
        family: the same without SWEPT, shared by groups along one frontier.
        runs: by seed.
    """

    name: str
    family: str
    runs: list[Run]

    @property
    def arguments(self) -> dict:
        return self.runs[0].arguments


@dataclass(frozen=True)
class Point:
    """Means over the runs of a group, of one way to run their weights.

    Attributes:
        method: "own" for the model as it is used, or one of METHODS.
        runs: how many.
        layers: executed a token.
        skip_ratio: share of the routable layers that were skipped.
        loss: nats a token.
        interval: 95 % interval of the loss, or None.
        over: what the interval is over: seeds (Student's t), rows (of text, one run), or nothing.
        difference: loss less that of the routed model on the same rows, or None; with its interval.
        speedup: tokens a second, those of the same weights at full depth = 1; None where it was not measured.
        speedup_interval: 95 % interval over seeds, or None.
    """

    group: Group
    method: str
    runs: int
    layers: float
    skip_ratio: float
    loss: float
    interval: list[float] | None
    over: str
    difference: float | None
    difference_interval: list[float] | None
    speedup: float | None
    speedup_interval: list[float] | None


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Groups, those of a family side by side, families in the order of their first runs.

    Raises:
        UserError: for two runs with the same arguments and seed.
    """
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(_key(run, ASIDE), []).append(run)
    for own in found.values():
        own.sort(key=lambda run: run.arguments["seed"])
        for first, second in zip(own, own[1:]):
            if first.arguments["seed"] == second.arguments["seed"]:
                raise UserError(
                    f"{first.folder} and {second.folder} have the same arguments and seed, so they are no two "
                    "samples; give one of them."
                )
    groups = list(found.values())
    names = labels([own[0].arguments for own in groups], ASIDE)
    families = labels([own[0].arguments for own in groups], ASIDE + SWEPT)
    made = [Group(*parts) for parts in zip(names, families, groups, strict=True)]
    order = list(dict.fromkeys(families))
    return sorted(made, key=lambda group: (order.index(group.family), *(group.arguments[name] for name in SWEPT)))


def _key(run: Run, aside: tuple[str, ...]) -> str:
    return json.dumps({name: value for name, value in run.arguments.items() if name not in aside}, sort_keys=True)


def labels(arguments: list[dict], aside: tuple[str, ...]) -> list[str]:
    """A short name for each: objective, router, and what differs between those with the same objective and router.

    Args:
        aside: arguments that are not told.
    """
    found = []
    for own in arguments:
        kin = [other for other in arguments if all(other[name] == own[name] for name in ("objective", "router"))]
        different = [name for name in own if name not in aside and any(other.get(name) != own[name] for other in kin)]
        words = [own["objective"]] + ([own["router"]] if own["router"] != "none" else [])
        parts = [" ".join(words)] + [f"{name} {_short(own[name])}" for name in different]
        found.append(", ".join(parts))
    return found


def _short(value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def own_point(group: Group) -> Point:
    """The group's models as they are used; see `Run.result`."""
    return _point(group, "own", [(dict.fromkeys(CONTROLS) | run.result | (run.own or {})) for run in group.runs])


def control_points(group: Group) -> list[Point]:
    """Each other way in which the weights of all runs of the group were run.

    Random controls are averaged over their own seeds first. Static controls count as different ones by their layers,
    thresholds by the share of skipped layers that they were set for.
    """
    found: dict[tuple, dict[str, list[Row]]] = {}
    for run in group.runs:
        for row in run.controls:
            if row is not run.own:
                which = {"static": round(row["layers"], 2), "threshold": row["target"]}.get(row["method"])
                kind = (row["method"], which)
                found.setdefault(kind, {}).setdefault(str(run.folder), []).append(row)
    return [_point(group, kind[0], [_mean_row(rows) for rows in by_run.values()]) for kind, by_run in found.items()]


def _mean_row(rows: list[Row]) -> Row:
    return {name: _mean([row[name] for row in rows]) for name in CONTROLS}


def _mean(values: list[float | None]) -> float | None:
    return None if None in values else mean(values)


def _point(group: Group, method: str, rows: list[Row]) -> Point:
    """One row for each run."""
    # The base is the same model whatever the seed of the training.
    independent = len(rows) > 1 and method != "base"

    def interval(name: str, low: str, high: str) -> list[float] | None:
        ends = [_mean([row[end] for row in rows]) for end in (low, high)]
        values = [row[name] for row in rows]
        if independent:
            return None if None in values else t_interval(values)
        return None if None in ends else ends

    loss = interval("loss", "loss_low", "loss_high")
    speeds = [row["speedup"] for row in rows]
    return Point(
        group,
        method,
        len(rows),
        _mean([row["layers"] for row in rows]),
        _mean([row["skip_ratio"] for row in rows]),
        _mean([row["loss"] for row in rows]),
        loss,
        "" if loss is None else "seeds" if independent else "rows",
        _mean([row["difference"] for row in rows]),
        interval("difference", "difference_low", "difference_high"),
        _mean(speeds),
        t_interval(speeds) if None not in speeds else None,
    )


def curve(group: Group, value: Callable[[Row], float | None]) -> tuple[list[float], list[float]]:
    """Steps at which all runs of a group have a value, and its means over them."""
    by_step: dict[float, list[float]] = {}
    for run in group.runs:
        for row in run.metrics:
            found = value(row)
            if found is not None:
                by_step.setdefault(row["step"], []).append(found)
    steps = sorted(step for step, values in by_step.items() if len(values) == len(group.runs))
    return steps, [mean(by_step[step]) for step in steps]


def unequal(groups: Sequence[Group]) -> list[str]:
    """What makes a comparison unfair, as sentences: runs at different steps, and some evaluated and others not."""
    found = []
    for group in groups:
        last = {run.name: int(run.metrics[-1]["step"]) for run in group.runs}
        if len(set(last.values())) > 1:
            steps = ", ".join(f"{name} at {step}" for name, step in last.items())
            found.append(f"{group.name}: runs are at different steps ({steps}); finish them or leave some out.")
    without = [run.name for group in groups for run in group.runs if not run.controls]
    if 0 < len(without) < sum(len(group.runs) for group in groups):
        found.append(
            f"{', '.join(without)}: no controls.csv, so the loss is that of validation text where that of other runs "
            "is of test text; run routing.commands.text_evaluation on them."
        )
    return found
