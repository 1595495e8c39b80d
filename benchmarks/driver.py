"""What the driver of `--engine ray` does for a group, with many groups in flight, and how many groups it keeps up with.

    pip install "ray[default]==2.60.0"
    python benchmarks/driver.py --json benchmarks/results/driver.json

The driver is the real one: it claims groups of a label folder, gives them to workers by Ray, waits, takes their lines
and writes them. The workers are all but free: they are threads of a few processes of a local Ray, and answer at once
with lines as long as a search's, so the driver is all that takes time. The labels are checked.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from routing.common import ray_workers
from routing.common.errors import UserError, run_command
from routing.common.files import write_json
from routing.common.run_info import git_commit, hardware, today, versions
from routing.labels.labelling import Counts
from routing.labels.on_cluster import Found, label_on
from routing.labels.reading import FORMAT, LABELS
from routing.labels.writing import LabelFolder
from routing.tasks.examples import Example, to_line

PROCESSES = 2  # in which all workers stand
LINE = 7000  # bytes of a label of the published search at 28 layers, as scale.py tells them


def line_of(example: Example) -> str:
    """What stands for the label of a question: a record of the folder, as long as LINE."""
    record = {"id": example.id, "filler": ""}
    record["filler"] = "x" * (LINE - 1 - len(json.dumps(record)))
    return json.dumps(record) + "\n"


def answer(examples: list[Example]) -> Found:
    """What a worker does."""
    return Found([line_of(example) for example in examples], Counts(examples=len(examples)))


def answering():
    return answer


class Threads(ray_workers.Workers):
    """Workers that are threads of a few actors. Ray is asked what it is asked for workers of their own."""

    def __init__(self, build, title: str, number: int):
        self._made: list = []
        super().__init__(build, title, number)

    def _start_one(self) -> None:
        if len(self._made) < PROCESSES:
            threads = -(-self.count // PROCESSES)
            self._made.append(self._kind.options(max_concurrency=threads, num_cpus=1).remote())
        worker = self._made[len(self._starting) % PROCESSES]
        self._starting[worker.start.remote(self._build, str(Path.cwd()))] = worker

    def wait_for_start(self) -> None:
        """Until all could be given work: how long that takes is no part of what is measured."""
        self._ray.wait(list(self._starting), num_returns=len(self._starting))


def write_questions(path: Path, count: int) -> None:
    with path.open("w") as file:
        for index in range(count):
            file.write(to_line(Example("sums", f"{index} + 0 =", str(index), checker="number")))


def measured(place: Path, workers: int, groups: int, size: int) -> dict:
    """One run over a new folder."""
    header = {"format": FORMAT, "model": "m", "num_layers": 4, "arguments": {}}
    folder = LabelFolder(place, header, size, partial(write_questions, count=groups * size))
    crew = Threads(answering, "driver", workers)
    crew.wait_for_start()
    wall, busy = time.perf_counter(), time.process_time()
    label_on(folder, crew)
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    written = (place / LABELS).read_text().splitlines()
    if [json.loads(line)["id"] for line in written] != [example.id for example in folder.questions]:
        raise UserError("the labels are not those of the questions in their order; nothing is reported")
    count = folder.group_count
    row = {"workers": workers, "group_size": size, "groups": count}
    return row | {"seconds": wall, "seconds_a_group": wall / count, "cpu_seconds_a_group": busy / count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,8,64,512", help="numbers of workers, so of groups in flight")
    parser.add_argument("--groups", type=int, default=2000, help="groups of each run, at least")
    parser.add_argument("--sizes", default="4,64", help="questions of a group")
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    rows = []
    with ray_workers.cluster(None), tempfile.TemporaryDirectory() as name:
        for size in map(int, arguments.sizes.split(",")):
            for workers in map(int, arguments.workers.split(",")):
                rows.append(measured(Path(name) / str(len(rows)), workers, arguments.groups, size))
                print(rows[-1], flush=True)
    table = Table("workers", "questions a group", "groups", "driver ms a group", "CPU ms a group", "groups a second")
    for row in rows:
        wall, cpu = row["seconds_a_group"], row["cpu_seconds_a_group"]
        facts = [str(row[name]) for name in ("workers", "group_size", "groups")]
        table.add_row(*facts, f"{1000 * wall:.2f}", f"{1000 * cpu:.2f}", f"{1 / wall:.0f}")
    Console(width=120).print(table)
    if arguments.json:
        about = {"hardware": hardware(), "date": today(), "versions": versions(), "git_commit": git_commit()}
        write_json(arguments.json, about | {"bytes_a_line": LINE, "rows": rows})


if __name__ == "__main__":
    run_command(main)
