"""A look at what a checkpoint does with one prompt: its route, and its answer beside that of every layer once.

Both answers come from the same weights in turn: the routed model, and the same model with every layer run once and no
router.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from transformers import AutoTokenizer

from routing.common.errors import UserError
from routing.evaluation.knobs import knob_of
from routing.evaluation.look_rows import MenuPath, Row, rows_and_paths
from routing.models.checkpoint import load_checkpoint
from routing.models.checkpoint_files import HYBRID, config_of, training_record
from routing.models.config_fields import config_with
from routing.models.context import context_tokens
from routing.models.ends import before_end, end_ids
from routing.models.templates import fill
from routing.scoring.finite import FiniteLogits
from routing.scoring.plain import PLAIN_GREEDY, AllStopped, Evaluator, answer_verdict
from routing.scoring.prompting import DEFAULT, Prompting, trained_prompting
from routing.scoring.requests import Request
from routing.tasks.prompts import encode
from train_models.modeling_gdn_hybrid import GdnHybridForCausalLM
from train_models.router_kinds import kind_of

NEW_TOKENS, REPEATS = 32, 3


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked.

    Attributes:
        title: a name for it.
        prompt, ids: the whole prompt, and its tokens.
        request: where it is a question of a data set; None for a text.
    """

    title: str
    prompt: str
    ids: tuple[int, ...]
    request: Request | None = None


@dataclass(frozen=True)
class Answer:
    """What one way of running the model answers.

    Attributes:
        routed: whether the routers decided; else every layer ran once.
        text: generated, or the choice that is picked.
        right: the verdict on a question of a data set; None for a text.
        layers: executed, a token.
        seconds: median time to read the prompt and write `Look.timed_tokens` tokens; None where it was not measured.
    """

    routed: bool
    text: str
    right: bool | None
    layers: float
    seconds: float | None


@dataclass(frozen=True, eq=False)
class Look:
    """All that a page shows of one question.

    Attributes:
        question: what was asked.
        router: kind of router, or hybrid.
        decides_for: input, token or nothing.
        setting: what moves how many layers run, and its value; None where nothing does.
        depth: layers, or blocks of a hybrid.
        rows: one for the prompt, or one a token of prompt and answer.
        paths: of a menu router, in the menu's order.
        full, routed: the two answers; a hybrid has no full one.
        timed_tokens, repeats: tokens that were written for a time, and times of which the median is told.
        device: where it was measured.
    """

    question: Question
    router: str
    decides_for: str
    setting: tuple[str, float] | None
    depth: int
    rows: tuple[Row, ...]
    paths: tuple[MenuPath, ...]
    full: Answer | None
    routed: Answer
    timed_tokens: int
    repeats: int
    device: str


def load_any(folder: Path, dtype: torch.dtype, device: torch.device):
    """Model and tokenizer of a checkpoint of routers, or of a hybrid language model.

    Raises:
        UserError: if the folder is neither.
    """
    if config_of(folder)["model_type"] != HYBRID:
        return load_checkpoint(folder, dtype, device)
    model = GdnHybridForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    # With the config: without it transformers asks whether to run the code of the folder.
    return model, AutoTokenizer.from_pretrained(folder, config=model.config)


def prompting_for(folder: Path) -> Prompting:
    """How a checkpoint is prompted: as it was trained; a hybrid has no record of it."""
    if config_of(folder)["model_type"] == HYBRID:
        return DEFAULT
    return trained_prompting(training_record(folder))


def question_of_text(text: str, tokenizer, prompting: Prompting, max_tokens: int | None = None) -> Question:
    """A text as a prompt, in the chat template where prompts are; of a longer one, the first tokens."""
    prompt = fill(tokenizer, text, prompting) if prompting.apply_chat_template else text
    ids = encode(tokenizer, prompt)[:max_tokens]
    if not ids:
        raise UserError("the text is empty; give one of at least one token.")
    return Question("Text", prompt, tuple(ids))


def look(model, tokenizer, question: Question, new_tokens: int = NEW_TOKENS, repeats: int = REPEATS) -> Look:
    """Ask a model one question, routed and with every layer once.

    Args:
        model: of `load_any`.
        new_tokens: limit of an answer to a text; questions of data sets have their own.
        repeats: times that each way is measured, in turn; 0: no time is measured.

    Raises:
        UserError: if prompt and answer are longer than the model's context.
    """
    hybrid = model.config.model_type == HYBRID
    asked = _Asked(model, tokenizer, question, new_tokens)
    with torch.inference_mode():
        full = None
        if not hybrid:
            with config_with(model, is_static_routing=True):
                full = asked.answer()
        routed = asked.answer()
        rows, paths = rows_and_paths(model, tokenizer, question.ids, routed.tokens)
        written = asked.longest_choice or max(len((full or routed).tokens), 1)
        seconds = asked.seconds_in_turn(written, repeats, hybrid)
    depth, kind, knob = model.config.num_hidden_layers, kind_of(model.config), knob_of(model.config)
    return Look(
        question=question,
        router="hybrid" if hybrid else model.config.router,
        decides_for="token" if hybrid else kind.decides_for,
        setting=None if knob is None else (knob.field, knob.value),
        depth=depth,
        rows=rows,
        paths=paths,
        full=full and Answer(False, full.text, full.right, depth, seconds[0]),
        routed=Answer(True, routed.text, routed.right, sum(row.layers for row in rows) / len(rows), seconds[-1]),
        timed_tokens=written,
        repeats=repeats,
        device=model.device.type,
    )


@dataclass(frozen=True)
class _Written:
    tokens: tuple[int, ...]
    text: str
    right: bool | None


class _Asked:
    """One question to one model."""

    def __init__(self, model, tokenizer, question: Question, new_tokens: int):
        self.model, self.tokenizer, self.question = model, tokenizer, question
        request = question.request
        self.picks = request is not None and request.scoring != "generate" and model.config.model_type != HYBRID
        self.longest_choice = max(map(len, request.choice_ids)) if self.picks else 0
        self.limit = request.max_new_tokens or new_tokens if request is not None else new_tokens
        self.ends = end_ids(model, tokenizer)
        self.ids = torch.tensor([question.ids], device=model.device)
        context, needed = context_tokens(model.config), len(question.ids) + (self.longest_choice or self.limit)
        if needed > context:
            raise UserError(
                f"{question.title}: the prompt has {len(question.ids)} tokens, which with the answer is more than the "
                f"{context} that the model takes. Give a shorter one, or fewer new tokens."
            )

    def answer(self) -> _Written:
        """The choice that is picked, or what is written up to an end."""
        request = self.question.request
        if self.picks:
            (verdict,) = Evaluator(self.model, self.tokenizer, score="accuracy").verdicts([request], None)
            return _Written((), verdict.output, verdict.correct)
        stop, watch = request and request.stop, FiniteLogits()
        ends = {} if stop is None else {"stopping_criteria": [AllStopped(self.tokenizer, [stop], self.ids.shape[1])]}
        tokens = self._generate(self.limit, eos_token_id=list(self.ends) or None, logits_processor=[watch], **ends)
        watch.check(self.model.dtype)
        kept = before_end(tokens, self.ends)
        text = self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        cut = len(kept) == self.limit
        if stop is not None and stop in text:
            text, cut = text.split(stop)[0], False
        judged = request is not None and request.scoring == "generate"
        return _Written(tuple(kept), text, answer_verdict(text, request.example, None, cut).correct if judged else None)

    def _generate(self, limit: int, **ends) -> list[int]:
        padding = self.tokenizer.pad_token_id
        output = self.model.generate(
            self.ids, attention_mask=torch.ones_like(self.ids), max_new_tokens=limit,
            pad_token_id=0 if padding is None else padding, **PLAIN_GREEDY, **ends,
        )  # fmt: skip
        return output[0, self.ids.shape[1] :].tolist()

    def seconds_in_turn(self, tokens: int, repeats: int, hybrid: bool) -> list[float | None]:
        """Median times of reading the prompt and writing exactly so many tokens: every layer once, then routed."""
        ways = [{}] if hybrid else [{"is_static_routing": True}, {}]
        times: list[list[float]] = [[] for _ in ways]
        for _ in range(repeats):
            for own, fields in zip(times, ways, strict=True):
                with config_with(self.model, **fields):
                    began = time.perf_counter()
                    self._generate(tokens, min_new_tokens=tokens)
                    if self.ids.device.type == "cuda":
                        torch.cuda.synchronize()
                    own.append(time.perf_counter() - began)
        return [median(own) if own else None for own in times]
