"""How long does labelling take on many workers, and what limits it? A simulation, and what it predicts for large sets.

    python benchmarks/scale.py --rates benchmarks/results/two_nodes.json --json benchmarks/results/scale.json

Groups of questions, with the boundaries that `routing.labels.spans` gives them, go to workers as they become free, one
at a time, by a driver that does one thing at a time. A group takes what `two_nodes.py` fitted on this machine's one
process, or on a card what its paths a second say; the number of paths of a question is drawn from those of a measured
search. Workers differ in speed, some are slow for a whole group, nodes are lost and come back. The same simulation,
without losses and slow workers, is compared with two nodes that were measured.
"""

from __future__ import annotations

import argparse
import heapq
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from statistics import median

from rich.console import Console
from rich.table import Table

from routing.common.errors import UserError, run_command
from routing.common.files import write_json
from routing.common.run_info import git_commit, hardware, today
from routing.labels.spans import group_starts

HOUR = 3600.0


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


def plan(sets: list, workers: list[int], counts: list[int], rates: Rates, trouble: Trouble, size: int) -> list[dict]:
    """What each set costs on each number of workers: medians of simulations."""
    rows = []
    for name, questions, mean in sets:
        paths = drawn(counts, questions, mean)
        for count in workers:
            # No group so large that a worker has fewer than eight of them.
            own = max(min(size, questions // (8 * count)), 1)
            groups = groups_of(paths, own, rates)
            ideal = sum(groups) / count
            found = [simulate(groups, count, rates, trouble, seed) for seed in range(3)]
            middle = sorted(found, key=lambda outcome: outcome.seconds)[1]
            rows.append(
                {"set": name, "questions": questions, "workers": count, "group_size": own, "paths": sum(paths)}
                | {"hours": middle.seconds / HOUR, "ideal_hours": ideal / HOUR}
                | {key: value for key, value in asdict(middle).items() if key != "seconds"}
            )
    return rows


def read_rates(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--rates {path} cannot be read ({error}); benchmarks/two_nodes.py writes it") from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rates", type=Path, default=Path("benchmarks/results/two_nodes.json"), help="what two_nodes.py measured"
    )
    parser.add_argument("--paths_a_second", type=float, default=164.0, help="of a card; results/gpu measured 164 at 1B")
    parser.add_argument("--workers", default="8,64,512", help="numbers of cards")
    parser.add_argument("--group_size", type=int, default=64, help="questions of a group, at most")
    parser.add_argument("--questions", type=int, default=24_330, help="searched for the published set of 4,000")
    parser.add_argument("--passes", type=int, default=961_000, help="forward passes of that search")
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    measured = read_rates(arguments.rates)
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
    # A card's rounds and groups cost nothing beside its paths here: its rate was measured with them in it.
    card = replace(rates, group=0.0, round=0.0, path=1 / arguments.paths_a_second)
    mean = arguments.passes / arguments.questions
    sets = [("published", arguments.questions, mean), ("100 times", 100 * arguments.questions, mean)]
    workers = [int(word) for word in arguments.workers.split(",")]
    worlds = {
        "nothing goes wrong": Trouble(),
        "stragglers and lost nodes": Trouble(spread=0.1, slow=0.02, between_losses=48 * HOUR),
    }
    rows = []
    for world, trouble in worlds.items():
        found = plan(sets, workers, counts, card, trouble, arguments.group_size)
        rows += [{"world": world, "trouble": asdict(trouble)} | row for row in found]
    table = Table("set", "world", "cards", "hours", "× ideal", "searching", "driver busy", "tail", "lost")
    for row in rows:
        shares = [f"{row[key]:.1%}" for key in ("searching", "driver", "tail", "lost")]
        hours = [f"{row['hours']:.2f}", f"{row['hours'] / row['ideal_hours']:.2f}"]
        table.add_row(row["set"], row["world"], str(row["workers"]), *hours, *shares)
    Console(width=140).print(table)
    if arguments.json:
        about = {"paths_a_second": arguments.paths_a_second, "hardware": hardware(), "date": today()}
        write_json(
            arguments.json,
            about | {"git_commit": git_commit(), "rates": asdict(card), "two_nodes": checks, "rows": rows},
        )


if __name__ == "__main__":
    run_command(main)
