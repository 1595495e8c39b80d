"""lm-eval's HuggingFace model, with routing on the prompt alone and a record of what was executed.

Stock `lm_eval --model hf` hands the model prompt and scored continuation in one sequence, so its routing reads both.
`PromptRoutedLM` passes the length of the prompt along, or forces the routes of a control.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from accelerate import Accelerator, PartialState
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from routing.models.ends import before_end, end_ids
from routing.models.templates import fix_time
from routing.scoring.finite import FiniteLogits, check_finite
from routing.scoring.prompting import DEFAULT, Prompting
from routing.search.routes import Route
from train_models.offloading import device_of


class Key(NamedTuple):
    """A request: of which question of the task, and which of its requests (one a choice)."""

    question: int
    choice: int


class Row(NamedTuple):
    """What was executed for a request.

    Attributes:
        route: counts of its layers, or the share of its tokens that ran each; None for a stock model.
        prompt_tokens: that the routers could see.
        other_tokens: of a scored continuation, or generated (until the whole batch had ended).
    """

    route: Route | None
    prompt_tokens: int
    other_tokens: int


class Answer(str):
    """A generated answer that knows whether the limit of new tokens cut it off."""

    cut = False


class PromptRoutedLM(HFLM):
    """lm-eval's model for one process of any number; routing never sees a token that is being scored.

    Serves stock models too, then it only measures.

    Prompts are filled into the chat template as `prompting` says, and an answer ends at any end token of the model's
    or the tokenizer's, as in the search.

    Attributes:
        forced: route of a request, for controls; None: the routers decide.
        rows: what was executed, by request, since `start`.
        seconds: time inside the model. The first batch of a model is computed twice and timed once: what is first pays
            for memory, kernels and pages that those behind it find there.
    """

    def __init__(self, model, tokenizer, batch_size: int, prompting: Prompting = DEFAULT):
        fix_time(tokenizer, prompting.template_time)
        self.ends = end_ids(model, tokenizer)
        self._generated: list[list[int]] = []
        super().__init__(
            pretrained=model, tokenizer=tokenizer, batch_size=batch_size, chat_template_args=prompting.arguments
        )
        self._device = device_of(self.model.get_input_embeddings())  # lm-eval's own is meta where that is offloaded.
        processes = PartialState()
        self._rank, self._world_size = processes.process_index, processes.num_processes
        if self._world_size > 1:
            self.accelerator = Accelerator()
        self.logits_cache = False  # It would merge requests of one context into one row.
        self.routed = hasattr(self.model, "last_routes")
        self._requests: Sequence[Instance] = ()
        self._batch: list[Key] = []
        self._lengths: list[tuple[int, int]] = []
        self._warm = False
        self.start(None)

    def start(self, forced: Callable[[Key], Route] | None) -> None:
        """Forget what was recorded, and take routes from `forced` from now on."""
        self.forced, self.seconds = forced, 0.0
        self.rows: dict[Key, Row] = {}

    def _forced_routes(self) -> dict[str, torch.Tensor]:
        if not self.routed or self.forced is None:
            return {}
        return {"routes": torch.tensor([self.forced(key) for key in self._batch])}

    def _record(self, began: float, lengths: Sequence[tuple[int, int]]) -> None:
        """Note a forward or generation; `lengths` are prompt and other tokens of its rows."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - began
        routes = map(tuple, self.model.last_routes.tolist()) if self.routed else [None] * len(self._batch)
        for key, route, (prompt, other) in zip(self._batch, routes, lengths, strict=True):
            self.rows[key] = Row(route, prompt, other)

    def _progress(self, total: int, hidden: bool, what: str) -> tqdm:
        return tqdm(total=total, desc=what, disable=hidden or self.rank != 0)

    # Both kinds of requests are handed to the stock method batch by batch, in the order in which it would make the
    # batches itself, so that its rows are those of `_batch`.

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False):
        self._requests = requests
        return super().loglikelihood(requests, disable_tqdm)

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None):
        def order(index: int):
            tokens = requests[index][1] + requests[index][2]
            return -len(tokens), tuple(tokens)

        answers = [None] * len(requests)
        with self._progress(len(requests), disable_tqdm, "scoring") as progress:
            for indices in batches(sorted(range(len(requests)), key=order), int(self.batch_size)):
                batch = [requests[index] for index in indices]
                self._batch = [Key(self._requests[index].doc_id, self._requests[index].idx) for index in indices]
                self._lengths = [self._visible(context, choice) for _, context, choice in batch]
                scored = super()._loglikelihood_tokens(batch, disable_tqdm=True, override_bs=len(batch))
                check_finite((score for score, _ in scored), self.model.dtype)
                for index, answer in zip(indices, scored, strict=True):
                    answers[index] = answer
                progress.update(len(batch))
        return answers

    def _visible(self, context: list[int], choice: list[int]) -> tuple[int, int]:
        """Tokens of prompt and choice in the input, after lm-eval has cut a long request on the left.

        The last token of the choice is only predicted. Of a prompt that is cut away one token is left to route by.
        """
        total = min(len(context) + len(choice), self.max_length + 1) - 1
        prompt = max(total + 1 - len(choice), 1)
        return prompt, total - prompt

    def _timed(self, call: Callable):
        """When a call began, and what it gave."""
        if not self._warm:
            call()
            self._warm = True
        began = time.perf_counter()
        return began, call()

    def _model_call(self, inps, attn_mask=None, labels=None):
        def call():
            if not self.routed:
                return stock(inps, attn_mask=attn_mask, labels=labels)
            lengths = torch.tensor([prompt for prompt, _ in self._lengths])
            with torch.no_grad():
                return self.model(inps, prompt_lengths=lengths, **self._forced_routes()).logits

        stock = super()._model_call
        began, logits = self._timed(call)
        self._record(began, self._lengths)
        return logits

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        def order(index: int):
            text = requests[index].args[0]
            return -len(self.tok_encode(text)), text

        def settings(index: int) -> str:
            return str(requests[index].args[1])

        answers = [""] * len(requests)
        indices = sorted(sorted(range(len(requests)), key=order), key=settings)
        with self._progress(len(requests), disable_tqdm, "generating") as progress:
            for _, alike in groupby(indices, key=settings):
                for part in batches(list(alike), int(self.batch_size)):
                    self._batch = [Key(requests[index].doc_id, requests[index].idx) for index in part]
                    texts = super().generate_until([requests[index] for index in part], disable_tqdm=True)
                    for index, text, tokens in zip(part, texts, self._generated, strict=True):
                        answers[index] = Answer(text)
                        # An end token is no part of it, and a stop text takes something away.
                        ended = len(before_end(tokens, self.ends)) < len(tokens) or text != self.tok_decode(tokens)
                        answers[index].cut = not ended
                    progress.update(len(part))
        return answers

    def _model_generate(self, context, max_length, stop, **generation_kwargs):
        watch = FiniteLogits()
        stock, given = super()._model_generate, self._forced_routes() | generation_kwargs
        given["logits_processor"] = [watch]
        given["eos_token_id"] = list(self.ends) or None
        began, tokens = self._timed(lambda: stock(context, max_length, stop, **given))
        watch.check(self.model.dtype)
        self._generated = tokens[:, context.shape[1] :].tolist()
        new = tokens.shape[1] - context.shape[1]
        self._record(began, [(prompt, new) for prompt in generation_kwargs["attention_mask"].sum(1).tolist()])
        return tokens

    def tok_decode(self, tokens, skip_special_tokens: bool = True) -> str:
        """Text of an answer up to its end token; of other tokens, as lm-eval reads them."""
        if not skip_special_tokens or not isinstance(tokens, list):
            return super().tok_decode(tokens, skip_special_tokens)
        kept = before_end(tokens, self.ends)
        return self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def batches(indices: list[int], size: int) -> list[list[int]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]
