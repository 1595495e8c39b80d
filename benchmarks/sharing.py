"""Two processes that label one folder together, against one: the same labels, and how much sooner.

    python benchmarks/sharing.py --json benchmarks/results/sharing.json

Each process has one thread, so two of them use two cores. Seconds are those of the whole command, from start to the
finished file, loading included; `searching_ratio` leaves out what a process takes before it can search (measured on one
question). One and two processes are run in turn. The bytes of `labels.jsonl` must be the same, or nothing is reported.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from tqdm import tqdm

from routing.common.errors import UserError, run_command
from routing.common.files import write_json
from routing.common.run_info import git_commit, hardware, today, versions
from routing.models.default_model import DEFAULT_MODEL

ROOT = Path(__file__).resolve().parents[1]
LABELS = "labels.jsonl"


def words_of(arguments: argparse.Namespace, questions: int, folder: Path) -> list[str]:
    """Arguments of data_generation.py."""
    return [
        "--model", arguments.model, "--dataset", arguments.dataset, "--num_samples", str(questions),
        "--num_simulations", str(arguments.num_simulations), "--group_size", str(arguments.group_size),
        "--output_dir", str(folder),
    ]  # fmt: skip


def make_parser(description: str, group_size: int) -> argparse.ArgumentParser:
    """What benchmarks of shared labelling are asked alike."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="base model")
    parser.add_argument("--dataset", default="arithmetic", help="data sets")
    parser.add_argument("--num_samples", type=int, default=96, help="questions of each data set")
    parser.add_argument("--num_simulations", type=int, default=20, help="of each search")
    parser.add_argument("--group_size", type=int, default=group_size, help="as in data_generation.py")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each, taken in turn")
    return parser


def label(arguments: argparse.Namespace, folder: Path, questions: int, processes: int) -> float:
    """Seconds until a folder is labelled."""
    words = [sys.executable, str(ROOT / "data_generation.py"), *words_of(arguments, questions, folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    running = [subprocess.Popen(words, env=environment, stderr=subprocess.PIPE) for _ in range(processes)]
    for process in running:
        told = process.communicate()[1]
        if process.returncode:
            raise UserError(f"a process failed: {told.decode()[-500:]}")
    return time.perf_counter() - began


def main() -> None:
    parser = make_parser(__doc__, group_size=32)
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as place, tqdm(total=1 + 2 * arguments.repeats, unit="run") as progress:
        loading = label(arguments, Path(place) / "loading", 1, 1)
        progress.update()
        found = set()
        for repeat in range(arguments.repeats):
            for processes in seconds:
                folder = Path(place) / f"{processes}-{repeat}"
                seconds[processes].append(label(arguments, folder, arguments.num_samples, processes))
                found.add((folder / LABELS).read_bytes())
                progress.update()
    if len(found) != 1:
        raise UserError("one and two processes wrote different labels; nothing is reported")
    one, two = (median(own) for own in seconds.values())
    result = {
        "arguments": {name: str(value) for name, value in vars(arguments).items() if name != "json"},
        "seconds": seconds,
        "loading_seconds": loading,
        "ratio": one / two,
        "searching_ratio": (one - loading) / (two - loading),
    }
    print(f"two processes: {result['ratio']:.2f} times one; without loading {result['searching_ratio']:.2f} times")
    if arguments.json:
        about = {"hardware": hardware(), "date": today(), "versions": versions(), "git_commit": git_commit()}
        write_json(arguments.json, result | about)


if __name__ == "__main__":
    run_command(main)
