"""Verdicts: is an example answered rightly along a route?

The plain evaluator. The held-out evaluation of routers uses it (routes decided by the model), and so does the fast one
of the search (`routing.scoring.packed`) where floats nearly tie. Loglikelihood scoring is lm-eval's acc, acc_norm and
acc_bytes; generate scoring is greedy decoding and an answer checker.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from routing.models.ends import before_end, end_ids
from routing.models.head import Head
from routing.scoring.certainty import is_right
from routing.scoring.finite import FiniteLogits, check_finite
from routing.scoring.requests import Request
from routing.search.results import Verdict
from routing.search.routes import Route
from routing.tasks.answers import SCORES
from routing.tasks.examples import Example
from routing.tasks.prompts import (
    left_pad,
)

# Verdicts rest on the model alone, whatever its generation_config asks for.
PLAIN_GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}


class Evaluator:
    """Evaluates (request, route) pairs in batches on a routed model.

    Args:
        model: a Routed...ForCausalLM in eval mode.
        tokenizer: its tokenizer.
        batch_size: sequences a forward, at most (a choice counts as one).
        score: name of the score of generated answers, see `answer_verdict`; None: verdicts without score and answer.
    """

    def __init__(self, model, tokenizer, batch_size: int = 16, score: str | None = None):
        self.model, self.tokenizer, self.batch_size, self.score = model, tokenizer, batch_size, score
        self.ends = end_ids(model, tokenizer)

    @torch.no_grad()
    def verdicts(self, requests: Sequence[Request], routes: Sequence[Route] | None) -> list[Verdict]:
        """Verdict of each request; `routes=None` lets the model's routers decide."""
        return self.verdicts_and_routes(requests, routes)[0]

    @torch.no_grad()
    def verdicts_and_routes(
        self, requests: Sequence[Request], routes: Sequence[Route] | None
    ) -> tuple[list[Verdict], list[Route]]:
        """Verdicts, and the routes that were executed."""
        done: dict[int, tuple[Verdict, Route]] = {}
        for kind in ("generate", "loglikelihood"):
            chosen = [i for i, r in enumerate(requests) if r.scoring.startswith(kind)]
            for group in self._groups([requests[i] for i in chosen]):
                indices = [chosen[at] for at in group]
                batch = [requests[i] for i in indices]
                forced = None if routes is None else [routes[i] for i in indices]
                score = self._generate if kind == "generate" else self._loglikelihood
                done.update(zip(indices, score(batch, forced), strict=True))
        return [done[i][0] for i in range(len(requests))], [done[i][1] for i in range(len(requests))]

    def _groups(self, requests: list[Request]) -> list[list[int]]:
        """Indices in batches of at most `batch_size` sequences, in order."""
        groups: list[list[int]] = []
        size = 0
        for index, request in enumerate(requests):
            need = max(len(request.choice_ids), 1)
            if not groups or size + need > self.batch_size:
                groups.append([])
                size = 0
            groups[-1].append(index)
            size += need
        return groups

    def _tensor(self, routes: list[Route] | None, copies: list[int] | None = None) -> torch.Tensor | None:
        if routes is None:
            return None
        return torch.tensor([route for i, route in enumerate(routes) for _ in range(copies[i] if copies else 1)])

    def _generate(self, batch: list[Request], routes: list[Route] | None) -> list[tuple[Verdict, Route]]:
        """Greedy decoding of a left-padded batch, each answer cut at its own limit and stop text."""
        device, pad = self.model.device, self.tokenizer.pad_token_id
        ids, mask = left_pad([request.prompt_ids for request in batch], pad)
        width, watch = len(ids[0]), FiniteLogits()
        output = self.model.generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            routes=self._tensor(routes),
            max_new_tokens=max(request.max_new_tokens for request in batch),
            **PLAIN_GREEDY,
            pad_token_id=pad,
            logits_processor=[watch],
            eos_token_id=list(self.ends) or None,
            stopping_criteria=[AllStopped(self.tokenizer, [r.stop for r in batch], width)],
        )
        watch.check(self.model.dtype)
        executed = [tuple(route) for route in self.model.last_routes.tolist()]
        results = []
        for request, tokens, route in zip(batch, output[:, width:], executed, strict=True):
            whole = tokens[: request.max_new_tokens].tolist()
            kept = before_end(whole, self.ends)
            text = self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            cut = len(kept) == request.max_new_tokens
            if request.stop is not None and request.stop in text:
                text, cut = text.split(request.stop)[0], False
            results.append((answer_verdict(text, request.example, self.score, cut), route))
        return results

    def _loglikelihood(self, batch: list[Request], routes: list[Route] | None) -> list[tuple[Verdict, Route]]:
        """The choice with the best summed loglikelihood; routing sees the prompt alone."""
        copies = [len(request.choice_ids) for request in batch]
        rows = [(r.prompt_ids, choice) for r in batch for choice in r.choice_ids]
        sequences = [(*prompt, *choice)[:-1] for prompt, choice in rows]
        width = max(map(len, sequences))
        device = self.model.device
        ids = torch.tensor([[*s, *[0] * (width - len(s))] for s in sequences], device=device)
        output = self.model.model(
            input_ids=ids,
            routes=self._tensor(routes, copies),
            prompt_lengths=torch.tensor([len(prompt) for prompt, _ in rows], device=device),
            use_cache=False,
        ).last_hidden_state
        executed = [tuple(route) for route in self.model.last_routes.tolist()]
        scores, head = [], Head.of(self.model)
        for hidden, (prompt, choice) in zip(output, rows, strict=True):
            # Logits where a choice token is predicted only: the vocabulary is the widest layer of a small model.
            logits = head(hidden[len(prompt) - 1 : len(prompt) + len(choice) - 1])
            logprobs = torch.log_softmax(logits.float(), dim=-1)
            scores.append(float(logprobs.gather(1, torch.tensor(choice, device=logits.device)[:, None]).sum()))
        check_finite(scores, self.model.dtype)
        results = []
        start = 0
        for request, count in zip(batch, copies, strict=True):
            own = scores[start : start + count]
            results.append((choice_verdict(own, request, self.score), executed[start]))
            start += count
        return results


def answer_verdict(text: str, example: Example, score: str | None = None, cut: bool = False) -> Verdict:
    """Verdict of a generated answer; with a score (a key of `SCORES`), what it gives and the answer.

    Args:
        cut: whether the limit of new tokens ended it, see `is_right`.
    """
    right = is_right(text, example, cut)
    if score is None:
        return Verdict(right)
    return Verdict(right, score=float(right) if score == "accuracy" else SCORES[score](text, example), output=text)


def choice_verdict(scores: Sequence[float], request: Request, score: str | None = None) -> Verdict:
    """Verdict of the summed loglikelihoods of all choices.

    With a score, 1 for the right choice and 0 for others, and as the answer the choice that was picked.
    """
    gold, choices = request.example.gold, request.example.choices
    per_byte = [score / max(len(choice.encode()), 1) for score, choice in zip(scores, choices, strict=True)]
    rival = max(value for index, value in enumerate(per_byte) if index != gold)
    picked = best_choice(scores, request)
    verdict = Verdict(picked == gold, per_byte[gold] - rival)
    return verdict if score is None else verdict._replace(score=float(picked == gold), output=choices[picked])


def best_choice(scores: Sequence[float], request: Request) -> int:
    """Index of the choice that lm-eval would pick: raw (acc), per character (acc_norm) or per byte (acc_bytes)."""
    lengths = choice_lengths(request)
    return max(range(len(lengths)), key=lambda i: scores[i] / lengths[i])


def choice_lengths(request: Request) -> list[int]:
    """What the summed loglikelihood of each choice is divided by."""
    choices = request.example.choices
    return {
        "loglikelihood": [1] * len(choices),
        "loglikelihood_norm": [len(choice) for choice in choices],
        "loglikelihood_bytes": [len(choice.encode()) for choice in choices],
    }[request.scoring]


class AllStopped:
    """Ends generation once every row has produced its stop text."""

    def __init__(self, tokenizer, stops: list[str | None], width: int):
        self.tokenizer, self.stops, self.width = tokenizer, stops, width

    def __call__(self, input_ids: torch.LongTensor, scores, **kwargs) -> torch.BoolTensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.width :])
        stopped = [stop is not None and stop in text for stop, text in zip(self.stops, texts, strict=True)]
        return torch.tensor(stopped, device=input_ids.device)
