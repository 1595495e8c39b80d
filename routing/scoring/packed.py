"""Verdicts of many (example, path) pairs at once: the evaluator of the search.

What makes it fast, and changes no verdict:
- tokens of all pairs are packed, and each layer runs once over all that need it;
- what is stored of a path serves every path with the same first layers, and the beginning that the prompts of a
  group share is computed once for all;
- the choices, or the answers to expect, are computed along with the prompt, as a token tree: an expected answer needs
  no decoding step, and decoding ends as soon as the verdict is certain (with a score, at the end of the answer);
- logits are computed where a token is decided only.

A verdict that hangs on a near tie of floats is taken from the plain evaluator (`routing.scoring.plain`), which
runs the pair alone: so no verdict depends on what else was in the batch, or in the store. In half precision, where ties
are common, those of a batch are decided together by it. `ties` counts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from routing.models.ends import before_end
from routing.scoring.certainty import settled
from routing.scoring.finite import check_finite
from routing.scoring.path_runner import PathRunner
from routing.scoring.plain import Evaluator, answer_verdict, best_choice, choice_lengths, choice_verdict
from routing.scoring.prefix_store import PrefixStore
from routing.scoring.requests import Request
from routing.scoring.router_inputs import inputs_along
from routing.scoring.segments import Node, Segment, TokenTree, chain
from routing.search.results import Verdict
from routing.search.routes import Route, to_path

# Two logits, or two scores of choices (nats), closer than this are a tie: above what the order of additions changes in
# fp32 (1e-4). In half precision that is up to 0.3, which far too many answers would be within: there verdicts may
# depend on the batch, and `--verify alone` keeps those that do not.
TIE = 1e-3
INFLUENCE_BATCH = 64  # requests; fixed, so that the last digits of the numbers hang on the group alone
SHORTEST_SHARED = 4  # tokens
LOGIT_ROWS = 128  # rows of logits in memory, each as wide as the vocabulary


@dataclass(eq=False)
class _Decoding:
    """A generated answer under way: its tokens so far and the node that was reached."""

    tree: TokenTree
    request: Request
    path: tuple[int, ...]
    node: Node
    tokens: list[int] = field(default_factory=list)


class PathEvaluator:
    """Verdicts of (request, route) pairs.

    Args:
        model: a Routed...ForCausalLM in eval mode.
        tokenizer: its tokenizer.
        batch_size: paths evaluated together, at most.
        memory: bytes of states kept between batches, at most.
        score: name of the score of generated answers, see `plain.answer_verdict`; None: verdicts alone.
    """

    def __init__(self, model, tokenizer, batch_size: int = 32, memory: int = 2**30, score: str | None = None):
        self.model, self.tokenizer, self.batch_size, self.score = model, tokenizer, batch_size, score
        self.store = PrefixStore(memory)
        self.runner = PathRunner(model, self.store)
        self.alone = Evaluator(model, tokenizer, batch_size=1, score=score)
        # In half precision verdicts depend on the batch anyway and ties are common: there they are decided together.
        self.together = Evaluator(model, tokenizer, batch_size, score=score)
        self.ties = 0
        self._trees: dict[Request, TokenTree] = {}
        self._shared: list[Segment] = []
        self.ends = self.alone.ends

    def prepare(self, requests: Sequence[Request]) -> None:
        """Make room for a group of requests, in place of the group before: what they share is found here."""
        self.release()
        by_kind: dict[tuple, list[Request]] = {}
        for request in requests:
            example = request.example
            by_kind.setdefault((example.dataset, example.shots, example.form, request.scoring), []).append(request)
        for members in by_kind.values():
            length = shared_length([request.prompt_ids for request in members])
            shared = None
            if len(members) > 1 and length >= SHORTEST_SHARED:
                shared = chain(members[0].prompt_ids[:length])
                self._shared.append(shared)
            for request in members:
                self._trees[request] = TokenTree(request.prompt_ids, continuations(request), shared)

    def release(self) -> None:
        """Forget all requests and what is stored of them."""
        for segment in self._shared + [s for tree in self._trees.values() for s in tree.segments()]:
            self.store.forget(segment)
        self._trees, self._shared = {}, []

    def finish(self, request: Request) -> None:
        """Forget one request, whose search is over."""
        if request in self._trees:
            for segment in self._trees.pop(request).segments():
                self.store.forget(segment)

    def _tree(self, request: Request) -> TokenTree:
        if request not in self._trees:
            self._trees[request] = TokenTree(request.prompt_ids, continuations(request))
        return self._trees[request]

    @torch.inference_mode()
    def verdicts(self, requests: Sequence[Request], routes: Sequence[Route]) -> list[Verdict]:
        """Verdict of each request along its route."""
        verdicts: list[Verdict] = []
        for start in range(0, len(requests), self.batch_size):
            part = slice(start, start + self.batch_size)
            verdicts += self._batch(requests[part], routes[part])
        return verdicts

    @torch.inference_mode()
    def influence(self, requests: Sequence[Request]) -> list[list[float]]:
        """How much each layer changes the hidden state of the prompt, [L] for each request.

        Mean over the tokens behind the first (an attention sink) of 1 - cos(state in, state out), at full depth:
        the block influence of ShortGPT (arXiv 2403.03853, section 3.2). Rounded, so that equals are equal. The states
        of the full path, which the search asks for first, are computed here and kept as far as memory allows.
        """
        full = tuple(range(self.model.config.num_hidden_layers))
        results = []
        for start in range(0, len(requests), INFLUENCE_BATCH):
            part = requests[start : start + INFLUENCE_BATCH]
            self.runner.compute([(self._tree(request).segment, full) for request in part], whole=True)
            results += [self._influence(request, full) for request in part]
            self.store.trim()
        return results

    def router_inputs(self, request: Request, route: Route, windows: int) -> dict[str, torch.Tensor]:
        """What routers read along a route, see `inputs_along`; a request that is not finished is cheap."""
        found = inputs_along(self.runner, self._tree(request).segment, request.prompt_ids, route, windows)
        self.store.trim()
        return found

    def _influence(self, request: Request, full: tuple[int, ...]) -> list[float]:
        tree = self._tree(request)
        size = len(request.prompt_ids)
        tokens = slice(1 if size > 1 else 0, size)
        states = [
            torch.cat([segment.states[full[:length]].hidden for segment in tree.segment.line])[tokens].float()
            for length in range(len(full) + 1)
        ]
        states = [state.to(states[0].device) for state in states]  # Layers may compute on several.
        kept = torch.stack([torch.cosine_similarity(*pair, dim=-1).mean() for pair in zip(states, states[1:])])
        return [round(1 - cosine, 3) for cosine in kept.tolist()]

    def _batch(self, requests: Sequence[Request], routes: Sequence[Route]) -> list[Verdict]:
        pairs = [(self._tree(request), request, tuple(to_path(route))) for request, route in zip(requests, routes)]
        self.runner.compute([(tree.segment, path) for tree, _, path in pairs])
        verdicts: list[Verdict | None] = [None] * len(pairs)
        for kind, judge in (("generate", self._decode), ("loglikelihood", self._compare)):
            chosen = [i for i, request in enumerate(requests) if request.scoring.startswith(kind)]
            if chosen:
                for index, verdict in zip(chosen, judge([pairs[i] for i in chosen])):
                    verdicts[index] = verdict
        self.store.trim()
        ties = [index for index, verdict in enumerate(verdicts) if verdict is None]
        self.ties += len(ties)
        if ties:
            plain = self.alone if self.model.dtype == torch.float32 else self.together
            found = plain.verdicts([requests[index] for index in ties], [routes[index] for index in ties])
            for index, verdict in zip(ties, found, strict=True):
                verdicts[index] = verdict
        return verdicts

    def _decode(self, pairs) -> list[Verdict | None]:
        """Greedy decoding, all pairs a token at a time, each until its verdict is certain; None for a tie."""
        running = {i: _Decoding(tree, request, path, tree.root) for i, (tree, request, path) in enumerate(pairs)}
        verdicts: list[Verdict | None] = [None] * len(pairs)
        while running:
            self.runner.compute([(d.node.segment, d.path) for d in running.values()])
            hidden = self.runner.last_hidden([(d.node, d.path) for d in running.values()])
            best = self.runner.head(hidden).float().topk(2)
            gaps = (best.values[:, 0] - best.values[:, 1]).tolist()
            check_finite(gaps, self.model.dtype)
            for (index, decoding), token, gap in zip(list(running.items()), best.indices[:, 0].tolist(), gaps):
                if gap < TIE:
                    del running[index]
                    continue
                verdicts[index] = self._take(decoding, token)
                if verdicts[index] is not None:
                    del running[index]
        return verdicts

    def _take(self, decoding: _Decoding, token: int) -> Verdict | None:
        """Go on by one token; the verdict, if it is certain now."""
        request = decoding.request
        decoding.tokens.append(token)
        kept = before_end(decoding.tokens, self.ends)
        text = self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        cut = len(kept) == request.max_new_tokens
        ended = cut or token in self.ends
        if request.stop is not None and request.stop in text:
            text, ended, cut = text.split(request.stop)[0], True, False
        if ended:
            return answer_verdict(text, request.example, self.score, cut)
        # A score is one of the whole answer. Without: a character may be cut in two.
        certain = self.score is None and not text.endswith("\ufffd")
        if certain and (right := settled(text, request.example)) is not None:
            return Verdict(right)
        decoding.node = decoding.tree.child(decoding.node, token)
        return None

    def _compare(self, pairs) -> list[Verdict | None]:
        """Verdicts of loglikelihood scoring; None for a tie."""
        rows: dict[tuple[Node, tuple[int, ...]], int] = {}
        asked: list[list[list[tuple[int, int]]]] = []  # pair, choice, token: (row, token id)
        for tree, request, path in pairs:
            asked.append([])
            for choice in request.choice_ids:
                node, line = tree.root, []
                for at, token in enumerate(choice):
                    line.append((rows.setdefault((node, path), len(rows)), token))
                    if at + 1 < len(choice):
                        node = tree.child(node, token)
                asked[-1].append(line)
        where = torch.tensor([pick for choices in asked for line in choices for pick in line]).T
        logprobs = self._logprobs(self.runner.last_hidden(list(rows)), *where).tolist()
        check_finite(logprobs, self.model.dtype)
        given = iter(logprobs)
        verdicts: list[Verdict | None] = []
        for (_, request, _), choices in zip(pairs, asked):
            scores = [sum(next(given) for _ in line) for line in choices]
            tie = _is_tie(scores, request, self.score)
            verdicts.append(None if tie else choice_verdict(scores, request, self.score))
        return verdicts

    def _logprobs(self, hidden: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """[N] log-probabilities of tokens behind the states `hidden` [R, D], of which token i has rows[i]."""
        rows, tokens = rows.to(hidden.device), tokens.to(hidden.device)
        result = torch.empty(len(rows), device=hidden.device)
        for start in range(0, len(hidden), LOGIT_ROWS):
            logits = self.runner.head(hidden[start : start + LOGIT_ROWS]).float()
            normal = torch.logsumexp(logits, dim=-1)
            inside = ((rows >= start) & (rows < start + LOGIT_ROWS)).nonzero()[:, 0]
            at = rows[inside] - start
            result[inside] = logits[at, tokens[inside]] - normal[at]
        return result


def _is_tie(scores: Sequence[float], request: Request, score: str | None = None) -> bool:
    """Whether the right choice and another one are too close for floats to tell.

    With a score the answer is told too, so that the choice that is picked must stand out as well.
    """
    lengths = choice_lengths(request)
    decisive = {request.example.gold} if score is None else {request.example.gold, best_choice(scores, request)}
    return any(
        abs(scores[one] / lengths[one] - scores[other] / lengths[other]) * max(lengths[one], lengths[other]) < TIE
        for one in decisive
        for other in range(len(lengths))
        if other != one
    )


def continuations(request: Request) -> list[tuple[int, ...]]:
    """Texts that are computed along with the prompt: the choices but for their last tokens, or expected answers.

    These end where generation does: tokens behind could lie beyond the context, where dynamic positions change for all.
    """
    if request.scoring == "generate":
        return list(dict.fromkeys(answer[: request.max_new_tokens] for answer in request.expected_ids))
    return [choice[:-1] for choice in request.choice_ids]


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, short of the last token of each."""
    length = min(map(len, prompts)) - 1
    for at in range(length):
        if len({prompt[at] for prompt in prompts}) > 1:
            return at
    return length
