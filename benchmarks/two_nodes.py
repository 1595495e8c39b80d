"""Labelling by Ray on two nodes of a local cluster, against one worker; and what groups cost, for `scale.py`.

    pip install "ray[default]==2.60.0"
    python benchmarks/two_nodes.py --json benchmarks/results/two_nodes.json

Each node has one CPU, and so one worker of one thread. Seconds are of the whole command, from its start to the finished
labels, which must be the same byte for byte. What a group costs is fitted on a process that searches the groups by
itself, apart from the runs that are compared: seconds = group + round · rounds + path · paths, none below 0. What the
driver does with a group is timed with searches that take no time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from scipy.optimize import nnls
from sharing import make_parser, words_of
from tqdm import tqdm

from routing.common.errors import UserError, run_command
from routing.common.files import write_json
from routing.common.run_info import git_commit, hardware, today, versions
from routing.labels.arguments import DataGenerationArguments
from routing.labels.reading import LABELS
from routing.labels.spans import group_starts
from routing.labels.writing import LabelFolder

ROOT = Path(__file__).resolve().parents[1]


def labelled(words: list[str]) -> float:
    """Seconds of a whole command."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(ROOT / "data_generation.py"), *words], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise UserError(f"data_generation.py failed: {done.stderr[-500:]}")
    return time.perf_counter() - began


def on_nodes(count: int, words: list[str]) -> float:
    """Seconds of the command on a cluster of so many nodes beside the head, which has no CPU to give."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(count):
            cluster.add_node(num_cpus=1)
        return labelled([*words, "--engine", "ray", "--address", cluster.address])
    finally:
        cluster.shutdown()


def fitted(words: list[str], folder: Path) -> tuple[dict[str, float], list[dict]]:
    """What a group costs, from all groups of a folder whose questions are drawn; searched here, one after the other."""
    import torch

    from routing.commands.work.generate_by_ray import group_search
    from routing.common.cli import parse
    from routing.labels.reading import read_header

    torch.set_num_threads(1)
    arguments = parse(DataGenerationArguments, words)
    header = read_header(folder)
    from routing.tasks.drawn import QUESTIONS, DrawnExamples

    questions = DrawnExamples(folder / QUESTIONS)
    search = group_search(arguments, header)
    search([questions[0]])  # Warm.
    starts, rows = group_starts(len(questions), arguments.group_size), []
    for at, end in tqdm(list(zip(starts, starts[1:])), desc="groups", unit="group"):
        began = time.perf_counter()
        found = search([questions[index] for index in range(at, end)])
        took = time.perf_counter() - began
        paths = [json.loads(line)["evaluations"] for line in found.lines]
        rows.append({"questions": end - at, "rounds": max(paths), "paths": sum(paths), "seconds": took})
    matrix = np.array([[1.0, row["rounds"], row["paths"]] for row in rows])
    solution, _ = nnls(matrix, np.array([row["seconds"] for row in rows]))
    return dict(zip(("group", "round", "path"), solution.tolist())), rows


def driver_seconds(folder: Path, place: Path, groups: int = 200) -> float:
    """Seconds of claiming and finishing one group of a folder with as long lines as a given one."""
    header = json.loads((folder / "labels.header.json").read_text()) | {"settled": True}
    lines = (folder / LABELS).read_text().splitlines(keepends=True)
    questions = (folder / "questions.jsonl").read_text().splitlines(keepends=True)
    repeated = [json.loads(question) for question in questions]
    total = groups * 4

    def draw(path: Path) -> None:
        with path.open("w") as file:
            for index in range(total):
                asked = repeated[index % len(repeated)]
                file.write(json.dumps(asked | {"question": f"{asked['question']} ({index})"}) + "\n")

    writing = LabelFolder(place, header, 4, draw)
    began = time.perf_counter()
    while not writing.complete():
        with ExitStack() as stack:
            group = writing.claim(stack)
            writing.finish(group, [lines[index % len(lines)] for index in range(len(group.examples))])
    return (time.perf_counter() - began) / writing.group_count


def main() -> None:
    parser = make_parser(__doc__, group_size=16)
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    seconds: dict[int, list[float]] = {1: [], 2: []}
    start: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        place, made = Path(name), set()
        for repeat in tqdm(range(arguments.repeats), desc="runs of both", unit="run"):
            start.append(on_nodes(1, words_of(arguments, 1, place / f"start-{repeat}")))
            for count in seconds:
                folder = place / f"{count}-{repeat}"
                seconds[count].append(on_nodes(count, words_of(arguments, arguments.num_samples, folder)))
                made.add((folder / LABELS).read_bytes())
        print(f"seconds of the commands: {seconds}, with one question: {start}", flush=True)
        if len(made) > 1:
            raise UserError("the labels of the runs differ; nothing is reported")
        labels = [json.loads(line) for line in (folder / LABELS).read_text().splitlines()]
        costs, groups = fitted(words_of(arguments, arguments.num_samples, place / "fit"), folder)
        first = (place / "start-0" / LABELS).read_text()
        one = json.loads(first)["evaluations"]
        driver = driver_seconds(folder, place / "driver")
        size = len((folder / LABELS).read_bytes()) / len(labels)
    searched = costs["group"] + (costs["round"] + costs["path"]) * one
    rates = {"start": max(min(start) - searched, 0.0), **costs, "driver": driver}
    ratio = min(seconds[1]) / min(seconds[2])
    print(f"two nodes are {ratio:.2f} times one; {rates}")
    if arguments.json:
        about = {"hardware": hardware(), "date": today(), "versions": versions(), "git_commit": git_commit()}
        settings = {name: value for name, value in vars(arguments).items() if name != "json"}
        found = {"ratio": ratio, "seconds": seconds, "start_seconds": start, "rates": rates, "groups": groups}
        found |= {"group_size": arguments.group_size, "paths": [label["evaluations"] for label in labels]}
        write_json(arguments.json, about | {"arguments": settings, "bytes_a_label": size} | found)


if __name__ == "__main__":
    run_command(main)
