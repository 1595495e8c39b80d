"""Stage 1: search the examples group by group, all of a group side by side, and write their labels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields
from random import Random

from tqdm import tqdm

from routing.labels.records import label_line
from routing.labels.writing import Group, LabelFolder
from routing.scoring.requests import Request
from routing.scoring.verification import Scorer
from routing.search.exploration import ExplorationSettings
from routing.search.mcts import SearchSettings, search
from routing.search.menu import MenuSettings
from routing.search.results import SearchResult, Verdict
from routing.search.routes import Route, route_length
from routing.tasks.examples import Example

Prior = Callable[[Sequence[Request]], Sequence[Sequence[float] | None]]


def no_prior(requests: Sequence[Request]) -> list[None]:
    """Moves in random order."""
    return [None] * len(requests)


def example_rng(seed: int, example_id: str) -> Random:
    """The generator of one example's search: the same whatever is searched before it or beside it."""
    digest = hashlib.sha256(f"{seed}/{example_id}".encode()).digest()
    return Random(int.from_bytes(digest[:8], "big"))


@dataclass
class Counts:
    """What searches found so far."""

    examples: int = 0
    evaluations: int = 0
    base_correct: int = 0
    fixed: int = 0
    shortened: int = 0
    lucky: int = 0  # right paths that failed the re-test
    ties: int = 0  # near ties that the plain evaluator decided

    def add(self, result: SearchResult) -> None:
        self.examples += 1
        self.base_correct += result.base_correct
        self.fixed += result.best is not None and not result.base_correct
        self.shortened += result.base_correct and route_length(result.best) < len(result.full)
        self.lucky += sum(verdict.lucky for verdict in result.verdicts.values())

    def merge(self, other: Counts) -> None:
        """Add what others counted."""
        for name in (f.name for f in fields(self)):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass
class Labeller:
    """Searches groups of requests.

    Args:
        depth: L.
        settings: of each search.
        seed: of all searches.
        scorer: gives the verdicts.
        prior: for each request of a group the influence of each layer [L], or None.
        counts: of what was found.
        on_round: called after each round of evaluations and each finished search.
        on_result: told a request and the result of its search, before the scorer forgets the request.
        replays: whether a group that was interrupted goes on from its journal. It starts over where results hang on
            what else was evaluated: half precision, and the last digits of margins.
        search: which search is run, called as `routing.search.mcts.search` is, with settings of its own kind.
        margins: whether verdicts keep their margins, which a margin reward needs.
    """

    depth: int
    settings: SearchSettings | ExplorationSettings | MenuSettings
    seed: int
    scorer: Scorer
    prior: Prior = no_prior
    counts: Counts = field(default_factory=Counts)
    on_round: Callable[[], None] = lambda: None
    on_result: Callable[[Request, SearchResult], None] = lambda request, result: None
    replays: bool = True
    search: Callable[..., Generator[Route, Verdict, SearchResult]] = search
    margins: bool = False

    def search_group(
        self,
        requests: Sequence[Request],
        known: dict[tuple[str, Route], Verdict],
        note: Callable[[list[tuple[str, Route, Verdict]]], None],
    ) -> list[SearchResult]:
        """Search requests in rounds: one route of each unfinished search is evaluated a round.

        Args:
            known: verdicts of rounds that a killed run finished, by (example id, route); not asked for again.
            note: is told the verdicts of each new round before any search goes on.
        """
        self.scorer.prepare(requests)
        running: dict[int, tuple[Generator, Route]] = {}
        results: dict[int, SearchResult] = {}
        for index, (request, prior) in enumerate(zip(requests, self.prior(requests), strict=True)):
            searching = self.search(self.depth, self.settings, example_rng(self.seed, request.example.id), prior)
            running[index] = (searching, next(searching))
        while running:
            pending = [(requests[i].example.id, route) for i, (_, route) in running.items()]
            if all(key in known for key in pending):
                verdicts = [known[key] for key in pending]
            else:
                verdicts = self._score([requests[i] for i in running], [route for _, route in running.values()])
                note([(example, route, verdict) for (example, route), verdict in zip(pending, verdicts, strict=True)])
            for (index, (searching, _)), verdict in zip(list(running.items()), verdicts, strict=True):
                try:
                    running[index] = (searching, searching.send(verdict))
                except StopIteration as stop:
                    results[index] = stop.value
                    del running[index]
                    self.on_result(requests[index], stop.value)
                    self.scorer.finish(requests[index])
                    self.counts.add(stop.value)
            self.on_round()
        return [results[index] for index in range(len(requests))]

    def _score(self, requests: list[Request], routes: list[Route]) -> list[Verdict]:
        verdicts = self.scorer.verdicts(requests, routes)
        self.counts.evaluations += len(verdicts)
        if self.margins:
            return verdicts
        # A margin's last digits hang on what else was in the batch; labels shall not.
        return [verdict._replace(margin=None) for verdict in verdicts]


def label_all(folder: LabelFolder, make: Callable[[Example], Request], labeller: Labeller, show: bool = True) -> Counts:
    """Label what the folder lacks, beside other processes that do the same.

    Args:
        make: the request of an example.
        show: show progress on stderr; of several processes one does.
    """
    progress = tqdm(
        total=len(folder), initial=folder.finished(), desc="searching", unit="example", mininterval=1, miniters=0,
        disable=not show,
    )  # fmt: skip
    counts = labeller.counts

    def refresh() -> None:
        # Groups in flight count too; those of other processes show once they are finished.
        rate = counts.evaluations / max(progress.format_dict["elapsed"], 1e-9)
        share = (counts.fixed + counts.shortened) / max(counts.examples, 1)
        progress.set_postfix_str(f"{rate:.1f} paths/s, improved {share:.0%}", refresh=False)
        progress.update(max(done + counts.examples - before - progress.n, 0))

    labeller.on_round = refresh
    # Closed, so that an interrupted call gives its group free at once.
    with progress, closing(folder.groups()) as groups:
        for group in groups:
            done, before = folder.finished(), counts.examples
            folder.finish(group, _label_group(group, make, labeller))
    return counts


def _label_group(group: Group, make: Callable[[Example], Request], labeller: Labeller) -> list[str]:
    if not labeller.replays:
        group.drop_journal()
    requests = [make(example) for example in group.examples]
    results = labeller.search_group(requests, group.read_journal(), group.write_round)
    return [label_line(request, result) for request, result in zip(requests, results, strict=True)]
