"""Verdicts: is an example answered rightly along a route?

One evaluator serves the search (routes forced) and the held-out evaluation of routers (routes decided by the
model). Loglikelihood scoring is lm-eval's acc, acc_norm and acc_bytes; generate scoring is greedy decoding and
an answer checker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from routing.answers import CHECKERS
from routing.prompts import encode, encode_choice, left_pad, max_new_tokens
from routing.search.routes import Route
from routing.tasks.examples import Example

STOP = "\n"


@dataclass(frozen=True)
class Request:
    """An example made ready for one model.

    Attributes:
        example: the question.
        scoring: generate, loglikelihood, loglikelihood_norm or loglikelihood_bytes.
        prompt: the whole prompt as text.
        prompt_ids: its tokens.
        choice_ids: tokens of each choice, for loglikelihood scoring.
        max_new_tokens: for generate scoring.
        stop: text at which a generated answer ends, or None for the end-of-sequence token alone.
    """

    example: Example
    scoring: str
    prompt: str
    prompt_ids: tuple[int, ...]
    choice_ids: tuple[tuple[int, ...], ...] = ()
    max_new_tokens: int = 0
    stop: str | None = None


def make_request(example: Example, scoring: str, prompt: str, tokenizer, chat: bool) -> Request:
    """The request of an example whose prompt text is already built (by `routing.prompts.build_prompt`)."""
    if scoring == "generate":
        ids = tuple(encode(tokenizer, prompt))
        return Request(
            example, scoring, prompt, ids, max_new_tokens=max_new_tokens(example, chat), stop=None if chat else STOP
        )
    pairs = [encode_choice(tokenizer, prompt, choice) for choice in example.choices]
    return Request(example, scoring, prompt, tuple(pairs[0][0]), choice_ids=tuple(tuple(choice) for _, choice in pairs))


class Evaluator:
    """Evaluates (request, route) pairs in batches on a routed model.

    Args:
        model: a Routed...ForCausalLM in eval mode.
        tokenizer: its tokenizer.
        batch_size: sequences a forward, at most (a choice counts as one).
    """

    def __init__(self, model, tokenizer, batch_size: int = 16):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size

    @torch.no_grad()
    def verdicts(self, requests: Sequence[Request], routes: Sequence[Route] | None) -> list[bool]:
        """Verdict of each request; `routes=None` lets the model's routers decide."""
        return self.verdicts_and_routes(requests, routes)[0]

    @torch.no_grad()
    def verdicts_and_routes(
        self, requests: Sequence[Request], routes: Sequence[Route] | None
    ) -> tuple[list[bool], list[Route]]:
        """Verdicts, and the routes that were executed."""
        done: dict[int, tuple[bool, Route]] = {}
        for kind in ("generate", "loglikelihood"):
            chosen = [i for i, r in enumerate(requests) if r.scoring.startswith(kind)]
            for group in self._groups([requests[i] for i in chosen]):
                indices = [chosen[at] for at in group]
                batch = [requests[i] for i in indices]
                forced = None if routes is None else [routes[i] for i in indices]
                score = self._generate if kind == "generate" else self._loglikelihood
                done.update(zip(indices, score(batch, forced), strict=True))
        return [done[i][0] for i in range(len(requests))], [done[i][1] for i in range(len(requests))]

    @torch.no_grad()
    def influence(self, requests: Sequence[Request]) -> list[list[float]]:
        """How much each layer changes the hidden state of the prompt, [L] for each request.

        Mean over the tokens behind the first (an attention sink) of 1 - cos(state in, state out), at full depth:
        the block influence of ShortGPT (arXiv 2403.03853, section 3.2). Rounded, so that it does not hang on the
        last bits of a float.
        """
        full = torch.ones(1, self.model.config.num_hidden_layers, dtype=torch.long)
        # The one state that output_hidden_states does not give: it holds the last one normalised.
        last: list[torch.Tensor] = []
        hook = self.model.model.layers[-1].register_forward_hook(lambda _, __, output: last.append(output))
        results = []
        for request in requests:
            ids = torch.tensor([request.prompt_ids], device=self.model.device)
            states = self.model.model(input_ids=ids, routes=full, use_cache=False, output_hidden_states=True)
            chain = [*states.hidden_states[:-1], last.pop()]
            tokens = slice(1 if ids.shape[1] > 1 else 0, None)
            kept = [
                torch.cosine_similarity(before[0, tokens], after[0, tokens], dim=-1).mean()
                for before, after in zip(chain, chain[1:])
            ]
            results.append([round(1 - float(cosine), 3) for cosine in kept])
        hook.remove()
        return results

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

    def _generate(self, batch: list[Request], routes: list[Route] | None) -> list[tuple[bool, Route]]:
        """Greedy decoding of a left-padded batch, each answer cut at its own limit and stop text."""
        device, pad = self.model.device, self.tokenizer.pad_token_id
        ids, mask = left_pad([request.prompt_ids for request in batch], pad)
        width = len(ids[0])
        output = self.model.generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            routes=self._tensor(routes),
            max_new_tokens=max(request.max_new_tokens for request in batch),
            do_sample=False,
            pad_token_id=pad,
            stopping_criteria=[_AllStopped(self.tokenizer, [r.stop for r in batch], width)],
        )
        executed = [tuple(route) for route in self.model.last_routes.tolist()]
        results = []
        for request, tokens, route in zip(batch, output[:, width:], executed, strict=True):
            text = self.tokenizer.decode(tokens[: request.max_new_tokens], skip_special_tokens=True)
            if request.stop is not None:
                text = text.split(request.stop)[0]
            results.append((CHECKERS[request.example.checker](text, request.example), route))
        return results

    def _loglikelihood(self, batch: list[Request], routes: list[Route] | None) -> list[tuple[bool, Route]]:
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
        scores = []
        for hidden, (prompt, choice) in zip(output, rows, strict=True):
            # Logits where a choice token is predicted only: the vocabulary is the widest layer of a small model.
            logits = self.model.lm_head(hidden[len(prompt) - 1 : len(prompt) + len(choice) - 1])
            logprobs = torch.log_softmax(logits, dim=-1)
            scores.append(float(logprobs.gather(1, torch.tensor(choice, device=device)[:, None]).sum()))
        results = []
        start = 0
        for request, count in zip(batch, copies, strict=True):
            own = scores[start : start + count]
            results.append((best_choice(own, request) == request.example.gold, executed[start]))
            start += count
        return results


def best_choice(scores: Sequence[float], request: Request) -> int:
    """Index of the choice that lm-eval would pick: raw (acc), per character (acc_norm) or per byte (acc_bytes)."""
    choices = request.example.choices
    lengths = {
        "loglikelihood": [1] * len(choices),
        "loglikelihood_norm": [len(choice) for choice in choices],
        "loglikelihood_bytes": [len(choice.encode()) for choice in choices],
    }[request.scoring]
    return max(range(len(choices)), key=lambda i: scores[i] / lengths[i])


class _AllStopped:
    """Ends generation once every row has produced its stop text."""

    def __init__(self, tokenizer, stops: list[str | None], width: int):
        self.tokenizer, self.stops, self.width = tokenizer, stops, width

    def __call__(self, input_ids: torch.LongTensor, scores, **kwargs) -> torch.BoolTensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.width :])
        stopped = [stop is not None and stop in text for stop, text in zip(self.stops, texts, strict=True)]
        return torch.tensor(stopped, device=input_ids.device)
