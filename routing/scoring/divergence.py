"""How far paths lead the model away from its own answers, and the order of layers that follows from it.

Unlike accuracy, the divergence needs no right answers, is far less noisy (every token of an answer says by how much it
changed), and unlike block influence it sees what a skipped layer does to what comes out, with its adapter in place.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from routing.common.files import write_json
from routing.models.head import Head
from routing.objectives.divergence import divergence
from routing.scoring.own_answers import own_answers
from routing.scoring.packed import SHORTEST_SHARED, PathEvaluator, shared_length
from routing.scoring.path_runner import PathRunner
from routing.scoring.prefix_store import PrefixStore
from routing.scoring.requests import Request
from routing.scoring.segments import Node, Segment, chain
from routing.search.routes import Route, full_route, to_path

ROWS = 32  # answers that are computed together
MEMORY = 2**29  # bytes of states kept between paths: those with the same first layers share them


@dataclass(frozen=True)
class Answer:
    """Tokens of a prompt and the answer behind it.

    Args:
        tokens: of both.
        prompt: how many are the prompt's, at least one.
        kind: answers of one kind may have prompts that begin alike.
    """

    tokens: tuple[int, ...]
    prompt: int
    kind: object = None

    @property
    def has_tokens(self) -> bool:
        return len(self.tokens) > self.prompt


class AnswerDivergence:
    """Mean over answer tokens of KL(full || path) in nats, along the full model's own greedy answers.

    Args:
        model: a Routed...ForCausalLM in eval mode; its adapters stand in for skipped layers, if it has some.
        answers: those without a token are left out.

    Raises:
        ValueError: if no answer has a token.
    """

    def __init__(self, model, answers: Sequence[Answer]):
        self.model = model
        self.store = PrefixStore(MEMORY)
        self.runner = PathRunner(model, self.store)
        segments = answer_segments([answer for answer in answers if answer.has_tokens])
        if not segments:
            raise ValueError("no answer has a token, so nothing can diverge")
        self.parts = [segments[start : start + ROWS] for start in range(0, len(segments), ROWS)]
        self.tokens = sum(len(segment) - segment.asked for segment in segments)
        self.full = [self._states(part, full_route(model.config.num_hidden_layers)) for part in self.parts]

    @torch.inference_mode()
    def __call__(self, route: Route) -> float:
        """Of one route."""
        sums = [
            float(divergence(self._states(part, route), full, Head.of(self.model)))
            for part, full in zip(self.parts, self.full, strict=True)
        ]
        return math.fsum(sums) / self.tokens

    def _states(self, part: Sequence[Segment], route: Route) -> torch.Tensor:
        """Normalised states [N, D] in front of all answer tokens of some rows, behind the last layer of a route."""
        path = tuple(to_path(route))
        self.runner.compute([(segment, path) for segment in part])
        nodes = [(Node(segment, at), path) for segment in part for at in range(segment.asked, len(segment))]
        states = self.runner.last_hidden(nodes)
        self.store.trim()
        return states


def answer_segments(answers: Sequence[Answer]) -> list[Segment]:
    """A segment of each answer, that asks for the states in front of the answer's tokens; behind what the prompts of
    its kind begin with, which is computed once."""
    kinds: dict[object, list[Answer]] = {}
    for answer in answers:
        kinds.setdefault(answer.kind, []).append(answer)
    segments = []
    for members in kinds.values():
        start = shared_length([answer.tokens[: answer.prompt] for answer in members])
        if len(members) == 1 or start < SHORTEST_SHARED:
            start = 0
        shared = chain(members[0].tokens[:start]) if start else None
        for answer in members:
            # The state in front of a token predicts it: from the prompt's last token to the last but one.
            own = answer.tokens[start:-1]
            parents = range(start - 1, len(answer.tokens) - 2)
            segments.append(Segment(own, parents, shared, asked=answer.prompt - 1 - start))
    return segments


def answers_of(model, tokenizer, requests: Sequence[Request], batch_size: int) -> list[Answer]:
    """The full model's own greedy answer to each request, right or wrong; of choices the one that it prefers."""
    evaluator = PathEvaluator(model, tokenizer, batch_size, score="accuracy")
    found = own_answers(evaluator, requests)
    return [
        Answer(tuple(tokens), len(request.prompt_ids), (request.example.dataset, request.example.shots))
        for request, (tokens, _) in zip(requests, found, strict=True)
    ]


def greedy_order(layers: Sequence[int], count: int, diverging: Callable[[frozenset[int]], float]) -> list[int]:
    """`count` of some layers, the next one always that without which the divergence is least.

    Lazy: a layer is measured again only when what it added the last time is the least that is left. So the order is
    that of trying all layers each time, as long as no layer adds less when more of the others are gone.

    Args:
        layers: that may be left out, in order of preference between equals.
        diverging: of the path without a set of layers.
    """
    gone, value = frozenset(), 0.0
    added = dict.fromkeys(layers, -math.inf)
    order: list[int] = []
    while len(order) < count:
        fresh: dict[int, float] = {}
        while True:
            best = min(added, key=added.__getitem__)
            if best in fresh:
                break
            fresh[best] = diverging(gone | {best})
            added[best] = fresh[best] - value
        gone, value = gone | {best}, fresh[best]
        del added[best]
        order.append(best)
    return order


class Remembered:
    """A function of sets of layers whose values are kept in a file, so that a rerun goes on.

    Args:
        make: gives the function; called when a value is not there.
        path: JSON file; one that was made with another key is written anew.
        key: all that the values depend on.
        progress: told of each value.
    """

    def __init__(self, make: Callable[[], Callable], path: Path, key: object, progress: tqdm):
        self.make, self.path, self.progress, self.function = make, path, progress, None
        self.key = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
        saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.values = saved["values"] if saved.get("key") == self.key else {}

    def __call__(self, layers: frozenset[int]) -> float:
        name = ",".join(map(str, sorted(layers)))
        if name not in self.values:
            self.function = self.function or self.make()
            self.values[name] = self.function(layers)
            write_json(self.path, {"key": self.key, "values": self.values})
        self.progress.update()
        return self.values[name]
