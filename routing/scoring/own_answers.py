"""What the full model itself answers, right or wrong."""

from __future__ import annotations

from collections.abc import Sequence

from routing.scoring.packed import PathEvaluator
from routing.scoring.requests import Request
from routing.search.routes import full_route
from routing.tasks.prompts import encode


def own_answers(evaluator: PathEvaluator, requests: Sequence[Request]) -> list[tuple[tuple[int, ...], bool]]:
    """Tokens of each prompt and the full model's own answer (where there are choices, the one it prefers), and whether
    that is right."""
    evaluator.prepare(requests)
    depth = evaluator.model.config.num_hidden_layers
    verdicts = evaluator.verdicts(requests, [full_route(depth)] * len(requests))
    evaluator.release()
    found = []
    for request, verdict in zip(requests, verdicts, strict=True):
        if request.choice_ids:
            picked = request.example.choices.index(verdict.output)
            tokens = request.prompt_ids + request.choice_ids[picked]
        else:
            tokens = tuple(encode(evaluator.tokenizer, request.prompt + verdict.output))
        found.append((tokens, verdict.correct))
    return found
