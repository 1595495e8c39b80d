"""How long does labelling take on many workers, and what limits it? A simulation, and what it predicts for large sets.

    python benchmarks/scale.py --json benchmarks/results/scale.json

Groups of questions, with the boundaries that `routing.labels.spans` gives them, go to workers as they become free, one
at a time, by a driver that does one thing at a time. A group takes what `two_nodes.py` fitted on this machine's one
process, or on a card what its paths a second say (`gpu_sections/search.py`); the driver takes what `driver.py` measured
with as many groups in flight; the number of paths of a question is drawn from those of a measured search. Workers
differ in speed, some are slow for a whole group, nodes are lost and come back. The same simulation, without losses and
slow workers, is compared with two nodes that were measured.
"""

from __future__ import annotations

import argparse
import heapq
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from random import Random
from statistics import median

from rich.console import Console
from rich.table import Table
from scale_rates import (
    SHAPES,
    card_rates,
    driver_seconds,
    input_bytes,
    label_bytes,
    prefill_ratios,
    read_json,
    whole_share,
)

from routing.common.errors import run_command
from routing.common.files import write_json
from routing.common.run_info import git_commit, hardware, today
from routing.labels.spans import group_starts

HOUR, GB = 3600.0, 1e9
SIMULATIONS = 50  # of each search of the published set
KEPT = 4000  # of its questions that routers were trained on
GROUPS_A_WORKER = 8  # at least, that none waits long for the last ones


@dataclass(frozen=True)
class Rates:
    """Seconds that work takes on one worker.

    Attributes:
        start: until it can search: a process, the packages, the model.
        group: of a group, however small.
        round: of a round of a group, in which each search that goes on has one path evaluated.
        path: of an evaluated path.
        driver: of this process for a group: claiming, writing, merging.
    """

    start: float
    group: float
    round: float
    path: float
    driver: float

    def seconds(self, paths: list[int]) -> float:
        """Of a group of questions with so many paths each."""
        return self.group + self.round * max(paths) + self.path * sum(paths)


@dataclass(frozen=True)
class Trouble:
    """What goes wrong. Speeds are lognormal: `spread` is the standard deviation of their logarithm.

    Attributes:
        slow: share of groups that take `factor` times as long.
        between_losses: mean seconds between two losses of one node; None: nothing is lost.
        repair: seconds until a lost node is back.
    """

    spread: float = 0.0
    slow: float = 0.0
    factor: float = 3.0
    between_losses: float | None = None
    repair: float = 600.0


@dataclass(frozen=True)
class Outcome:
    """Seconds of a simulated run; shares of what all workers could have done in that time."""

    seconds: float
    searching: float  # share of the workers' time spent on groups that were finished
    driver: float  # share of the time in which the driver was busy
    tail: float  # share of the time behind the moment when the first worker found nothing more to do
    lost: float  # share of the workers' time spent on groups that were lost


def simulate(groups: list[float], workers: int, rates: Rates, trouble: Trouble = Trouble(), seed: int = 0) -> Outcome:
    """Run groups (seconds each on a worker of mean speed), in order, on workers.

    The driver hands out and takes in one group at a time: who asks while it is busy waits.
    """
    rng = Random(seed)
    speeds = [rng.lognormvariate(0, trouble.spread) for _ in range(workers)]
    next_loss = [_until_loss(rng, trouble) for _ in range(workers)]
    waiting = list(range(len(groups)))[::-1]
    # (time, kind, worker, group): "free" asks for a group, "done" brings one, "lost" has none to bring.
    events = [(rates.start / speed, "free", worker, -1) for worker, speed in enumerate(speeds)]
    heapq.heapify(events)
    idle: list[int] = []
    driver, driver_busy, useful, lost = 0.0, 0.0, 0.0, 0.0
    end, first_idle = 0.0, None
    left = len(groups)
    while left:
        time, kind, worker, group = heapq.heappop(events)
        if kind == "lost":
            waiting.append(group)
            heapq.heappush(events, (time + trouble.repair + rates.start / speeds[worker], "free", worker, -1))
            # Idle workers take what it had.
            if idle:
                heapq.heappush(events, (time, "free", idle.pop(), -1))
            continue
        if kind == "done":
            left -= 1
        if kind == "done" or waiting:
            driver = max(driver, time) + rates.driver
            driver_busy += rates.driver
            end = driver
        if not waiting:
            first_idle = time if first_idle is None else first_idle
            idle.append(worker)
            continue
        group = waiting.pop()
        took = groups[group] / speeds[worker] * (trouble.factor if rng.random() < trouble.slow else 1)
        if driver + took > next_loss[worker]:
            at = max(next_loss[worker], driver)
            lost += at - driver
            next_loss[worker] = at + trouble.repair + _until_loss(rng, trouble)
            heapq.heappush(events, (at, "lost", worker, group))
        else:
            useful += took
            heapq.heappush(events, (driver + took, "done", worker, -1))
    total = workers * end
    tail = (end - min(first_idle if first_idle is not None else end, end)) / end
    return Outcome(end, useful / total, driver_busy / end, tail, lost / total)


def _until_loss(rng: Random, trouble: Trouble) -> float:
    return rng.expovariate(1 / trouble.between_losses) if trouble.between_losses else float("inf")


def groups_of(counts: list[int], size: int, rates: Rates) -> list[float]:
    """Seconds of each group of questions with so many paths each."""
    starts = group_starts(len(counts), size)
    return [rates.seconds(counts[at:end]) for at, end in zip(starts, starts[1:])]


def drawn(counts: list[int], questions: int, mean: float, seed: int = 0) -> list[int]:
    """Numbers of paths of so many questions, with the shape of measured ones and a given mean."""
    factor = mean / (sum(counts) / len(counts))
    rng = Random(seed)
    return [max(round(factor * count), 1) for count in rng.choices(counts, k=questions)]


def plan(
    sets: list, workers: list[int], counts: list[int], rates: Rates, driver: list[dict], trouble: Trouble, sizes: list
) -> list[dict]:
    """What each set costs on each number of workers: medians of simulations.

    Args:
        driver: rows of driver.json.
        sizes: of groups, at most; None: as many questions as leave each worker GROUPS_A_WORKER groups, at most 64.
    """
    rows = []
    every = {name: drawn(counts, questions, mean) for name, questions, mean in sets}
    for (name, questions, _), count, size in product(sets, workers, sizes):
        paths = every[name]
        own = size or max(min(64, questions // (GROUPS_A_WORKER * count)), 1)
        groups = groups_of(paths, own, rates)
        ideal = sum(groups) / count
        timed = replace(rates, driver=driver_seconds(driver, count, own))
        found = [simulate(groups, count, timed, trouble, seed) for seed in range(3)]
        middle = sorted(found, key=lambda outcome: outcome.seconds)[1]
        rows.append(
            {"set": name, "questions": questions, "workers": count, "group_size": own, "paths": sum(paths)}
            | {"driver_seconds_a_group": timed.driver}
            | {"hours": middle.seconds / HOUR, "ideal_hours": ideal / HOUR}
            | {key: value for key, value in asdict(middle).items() if key != "seconds"}
        )
    return rows


def limits(
    rate: float, mean: float, driver: list[dict], workers: list[int], a_label: float, an_input: int
) -> list[dict]:
    """What many cards at work ask of the driver and of a file system, by groups.

    Args:
        rate: paths a second of a card.
        mean: paths of a question.
        a_label, an_input: bytes of a label, and of the router inputs that --store_features keeps for it.
    """
    rows = []
    for count, size in product(workers, (4, 16, 64)):
        group, own = size * mean / rate, driver_seconds(driver, count, size)
        rounds = count / group * (SIMULATIONS + 1)  # a card's groups a second, and the rounds of each
        rows.append(
            {"workers": count, "group_size": size, "seconds_of_a_group": group, "driver_seconds_a_group": own}
            | {"cards_that_one_driver_feeds": group / own, "label_bytes_a_second": count * rate / mean * a_label}
            | {"input_bytes_a_second": count * rate / mean * an_input, "journal_flushes_a_second": rounds}
        )
    return rows


def sizes_of(sets: list, a_label: float) -> list[dict]:
    """Bytes of each set's labels, and of the router inputs of those that are kept."""
    found = []
    for name, questions, _ in sets:
        kept = KEPT * questions / sets[0][1]
        inputs = {shape: kept * input_bytes(shape) for shape in SHAPES}
        found.append(
            {"set": name, "labels": questions, "label_bytes": questions * a_label, "kept": kept, "inputs": inputs}
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results = Path("benchmarks/results")
    parser.add_argument("--rates", type=Path, default=results / "two_nodes.json", help="what two_nodes.py measured")
    parser.add_argument("--driver", type=Path, default=results / "driver.json", help="what driver.py measured")
    parser.add_argument("--card", type=Path, default=results / "gpu/nvidia-h200", help="what gpu.py measured on a card")
    parser.add_argument("--workers", default="8,64,512", help="numbers of cards")
    parser.add_argument("--questions", type=int, default=24_330, help="searched for the published set of 4,000")
    parser.add_argument("--passes", type=int, default=961_000, help="forward passes of that search")
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    measured = read_json(arguments.rates, "benchmarks/two_nodes.py")
    driver = read_json(arguments.driver, "benchmarks/driver.py")["rows"]
    on_card = card_rates(read_json(arguments.card / "search.json", "benchmarks/gpu.py"))
    prefills = prefill_ratios(read_json(arguments.card / "prefill.json", "benchmarks/gpu.py"))
    whole = whole_share(
        read_json(results / "search.json", "benchmarks/search.py"),
        read_json(results / "whole_search.json", "benchmarks/whole_search.py"),
    )
    rates, counts = Rates(**measured["rates"]), measured["paths"]
    groups = groups_of(counts, measured["group_size"], rates)
    predicted = {n: simulate(groups, n, rates) for n in (1, 2)}
    checks = [
        {"workers": n, "measured": median(measured["seconds"][str(n)]), "simulated": outcome.seconds}
        for n, outcome in predicted.items()
    ]
    for row in checks:
        row["ratio"] = row["simulated"] / row["measured"]
        print(f"{row['workers']} workers: measured {row['measured']:.1f} s, simulated {row['simulated']:.1f} s")
    rate, shape = on_card[0]["paths_a_second"], on_card[0]["shape"]
    # A card's rounds and groups cost nothing beside its paths here: its rate was measured with them in it.
    card = replace(rates, group=0.0, round=0.0, path=1 / rate)
    mean = arguments.passes / arguments.questions
    sets = [("published", arguments.questions, mean), ("100 times", 100 * arguments.questions, mean)]
    workers = [int(word) for word in arguments.workers.split(",")]
    worlds = {
        "nothing goes wrong": Trouble(),
        "stragglers and lost nodes": Trouble(spread=0.1, slow=0.02, between_losses=48 * HOUR),
    }
    rows = []
    for world, trouble in worlds.items():
        found = plan(sets, workers, counts, card, driver, trouble, [None])
        rows += [{"world": world, "trouble": asdict(trouble)} | row for row in found]
    world, trouble = [*worlds.items()][-1]
    found = plan(sets[1:], workers[-1:], counts, card, driver, trouble, [4, 16, 64, 256])
    by_size = [{"world": world} | row for row in found]
    a_label = label_bytes(SHAPES[shape][0], mean, SIMULATIONS)
    asked = limits(rate, mean, driver, workers, a_label, input_bytes(shape))
    sizes = sizes_of(sets, a_label)
    print(f"in whole searches {whole:.2f} of the paths a second are left, measured on a processor")
    console = Console(width=140)
    show_plan(console, rows + by_size)
    show_limits(console, asked)
    print(f"a label has {a_label:.0f} bytes: {GB / a_label:,.0f} a GB")
    for own in sizes:
        inputs = ", ".join(f"{name} {size / GB:,.0f}" for name, size in own["inputs"].items())
        print(f"{own['set']}: labels {own['label_bytes'] / GB:.1f} GB; inputs of {own['kept']:,.0f} kept, GB: {inputs}")
    if arguments.json:
        about = {"hardware": hardware(), "date": today(), "git_commit": git_commit(), "rates": asdict(card)}
        about |= {
            "whole_searches_share": whole,
            "card": on_card,
            "prefill": prefills,
            "bytes_a_label": a_label,
            "sizes": sizes,
            "limits": asked,
        }
        about |= {"input_bytes": {name: input_bytes(name) for name in SHAPES}, "two_nodes": checks}
        write_json(arguments.json, about | {"rows": rows, "by_group_size": by_size})


def show_plan(console: Console, rows: list[dict]) -> None:
    table = Table("set", "world", "cards", "group", "hours", "× ideal", "searching", "driver busy", "tail", "lost")
    for row in rows:
        shares = [f"{row[key]:.1%}" for key in ("searching", "driver", "tail", "lost")]
        hours = [f"{row['hours']:.2f}", f"{row['hours'] / row['ideal_hours']:.2f}"]
        table.add_row(row["set"], row["world"], str(row["workers"]), str(row["group_size"]), *hours, *shares)
    console.print(table)


def show_limits(console: Console, rows: list[dict]) -> None:
    names = (
        "cards",
        "group",
        "s a group",
        "driver ms",
        "cards a driver feeds",
        "labels MB/s",
        "inputs MB/s",
        "flushes/s",
    )
    table = Table(*names)
    for row in rows:
        table.add_row(
            str(row["workers"]), str(row["group_size"]), f"{row['seconds_of_a_group']:.1f}",
            f"{1000 * row['driver_seconds_a_group']:.1f}", f"{row['cards_that_one_driver_feeds']:,.0f}",
            f"{row['label_bytes_a_second'] / 1e6:.1f}", f"{row['input_bytes_a_second'] / 1e6:,.0f}",
            f"{row['journal_flushes_a_second']:,.0f}",
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    run_command(main)
