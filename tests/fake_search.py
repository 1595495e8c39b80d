"""Stage 1 without a model: verdicts that depend on example and route alone. Also a command, to be killed by tests.

python tests/fake_search.py FOLDER GROUP_SIZE SECONDS_A_ROUND
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from routing.labels.labelling import Counts, Labeller, label_all
from routing.labels.reading import FORMAT, LABELS
from routing.labels.writing import LabelFolder
from routing.scoring.requests import Request
from routing.search.mcts import SearchSettings
from routing.search.results import Verdict
from routing.tasks.examples import Example

DEPTH = 4
SETTINGS = SearchSettings(num_simulations=7, stop_saving=3)


def make_request(index: int) -> Request:
    """Every other question has choices: their records must fit into one file."""
    if index % 2:
        example = Example("quiz", f"Which, {index}? é", "no", ("yes", "no"), 1, "letter")
        return Request(example, "loglikelihood", f"Question: {example.question}\nAnswer:", (1, 2), ((3,), (4,)))
    example = Example("sums", f"{index} + 0 =", str(index), checker="number", accepted=("nought",) if not index else ())
    return Request(example, "generate", f"{example.question}", (1, 2, 3), max_new_tokens=4, stop="\n")


REQUESTS = [make_request(index) for index in range(5)]
IDS = [request.example.id for request in REQUESTS]


class Killed(Exception):
    """The process ends here."""


class Score:
    """A scorer that notes what it is asked; with `limit`, it dies when it is asked once more."""

    def __init__(self, limit: int | None = None, share: float = 0.1, pause: float = 0.0):
        self.limit, self.share, self.pause = limit, share, pause
        self.rounds, self.asked, self.groups, self.finished = 0, [], [], []

    def prepare(self, requests):
        self.groups.append([request.example.id for request in requests])

    def verdicts(self, requests, routes):
        if self.rounds == self.limit:
            raise Killed
        time.sleep(self.pause)
        self.rounds += 1
        self.asked += [(request.example.id, route) for request, route in zip(requests, routes, strict=True)]
        return [self.verdict(request.example.id, route) for request, route in zip(requests, routes, strict=True)]

    def finish(self, request):
        self.finished.append(request.example.id)

    def verdict(self, example_id: str, route) -> Verdict:
        digest = hashlib.sha256(f"{example_id}{route}".encode()).digest()
        return Verdict(digest[0] / 256 < self.share)


def make_header(**arguments) -> dict:
    chosen = {"num_simulations": 7, "seed": 0, "widening": 0.5} | arguments
    return {"format": FORMAT, "model": "m", "num_layers": DEPTH, "arguments": chosen, "git_commit": "abc"}


def open_folder(
    folder: Path, group_size: int = 2, header: dict | None = None, requests: Sequence[Request] = REQUESTS
) -> LabelFolder:
    lines = [json.dumps(asdict(request.example)) + "\n" for request in requests]
    return LabelFolder(folder, header or make_header(), group_size, lambda path: path.write_text("".join(lines)))


def run(folder: LabelFolder, score: Score, requests: Sequence[Request] = REQUESTS, **others) -> Counts:
    by_id = {request.example.id: request for request in requests}
    labeller = Labeller(**({"depth": DEPTH, "settings": SETTINGS, "seed": 0, "scorer": score} | others))
    return label_all(folder, lambda example: by_id[example.id], labeller, show=False)


def label(folder: Path, score: Score, group_size: int = 2, header: dict | None = None, seed: int = 0) -> bytes:
    """A run of stage 1."""
    run(open_folder(folder, group_size, header), score, seed=seed)
    return (folder / LABELS).read_bytes()


if __name__ == "__main__":
    label(Path(sys.argv[1]), Score(pause=float(sys.argv[3])), int(sys.argv[2]))
