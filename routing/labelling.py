"""Stage 1: search the examples group by group, all of a group side by side, and write their labels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from random import Random

from tqdm import tqdm

from routing.labels import LabelWriter, label_line
from routing.scoring import Request
from routing.search.mcts import SearchResult, SearchSettings, search
from routing.search.routes import Route, route_length

Score = Callable[[list[Request], list[Route]], list[bool]]
Prior = Callable[[list[Request]], Sequence[Sequence[float] | None]]


def no_prior(requests: list[Request]) -> list[None]:
    """Moves in random order."""
    return [None] * len(requests)


def example_rng(seed: int, example_id: str) -> Random:
    """The generator of one example's search: the same whatever is searched before it or beside it."""
    digest = hashlib.sha256(f"{seed}/{example_id}".encode()).digest()
    return Random(int.from_bytes(digest[:8], "big"))


def search_group(
    requests: list[Request],
    depth: int,
    settings: SearchSettings,
    seed: int,
    score: Score,
    known: dict[tuple[str, Route], bool],
    note: Callable[[list[tuple[str, Route, bool]]], None],
    finished: Callable[[SearchResult], None],
    priors: Sequence[Sequence[float] | None],
) -> list[SearchResult]:
    """Search the examples of a group in rounds: one route of each unfinished search is evaluated a round.

    Args:
        score: verdicts of a batch.
        known: verdicts of rounds that an earlier run finished, by (example id, route); used instead of `score`.
        note: is told the verdicts of each new round before any search goes on.
        finished: is told each result as it comes.
        priors: for each request the influence of each layer, or None.
    """
    running, results = {}, {}
    for index, request in enumerate(requests):
        searching = search(depth, settings, example_rng(seed, request.example.id), priors[index])
        running[index] = (searching, next(searching))
    while running:
        pending = [(requests[i].example.id, route) for i, (_, route) in running.items()]
        if all(key in known for key in pending):
            verdicts = [known[key] for key in pending]
        else:
            verdicts = score([requests[i] for i in running], [route for _, route in running.values()])
            note([(example, route, right) for (example, route), right in zip(pending, verdicts, strict=True)])
        for (index, (searching, _)), right in zip(list(running.items()), verdicts, strict=True):
            try:
                running[index] = (searching, searching.send(right))
            except StopIteration as stop:
                results[index] = stop.value
                del running[index]
                finished(stop.value)
    return [results[index] for index in range(len(requests))]


def label_all(
    requests: list[Request],
    depth: int,
    settings: SearchSettings,
    seed: int,
    score: Score,
    writer: LabelWriter,
    prior: Prior = no_prior,
) -> dict[str, int]:
    """Label what the folder lacks; returns counts over the examples of this run."""
    counts = {"examples": 0, "evaluations": 0, "base_correct": 0, "fixed": 0, "shortened": 0}
    known = writer.read_journal()
    progress = tqdm(
        total=len(requests), initial=writer.written, desc="searching", unit="example", mininterval=1, miniters=0
    )

    def counted(batch: list[Request], routes: list[Route]) -> list[bool]:
        verdicts = score(batch, routes)
        counts["evaluations"] += len(batch)
        rate = counts["evaluations"] / max(progress.format_dict["elapsed"], 1e-9)
        improved = counts["fixed"] + counts["shortened"]
        progress.set_postfix_str(f"{rate:.1f} paths/s, improved {improved}/{counts['examples']}", refresh=False)
        progress.update(0)
        return verdicts

    def finished(result: SearchResult) -> None:
        counts["examples"] += 1
        counts["base_correct"] += result.base_correct
        counts["fixed"] += result.best is not None and not result.base_correct
        counts["shortened"] += result.base_correct and route_length(result.best) < depth
        progress.update(1)

    with progress:
        while writer.written < len(requests):
            group = requests[writer.written : writer.written + writer.group_size]
            results = search_group(
                group, depth, settings, seed, counted, known, writer.write_round, finished, prior(group)
            )
            known = {}
            writer.write_group([label_line(r, result) for r, result in zip(group, results, strict=True)])
    return counts
