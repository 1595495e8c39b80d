"""Texts that healing distils on: prompts, each with the full model's own greedy answer, right or wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from routing.common.files import write_json
from routing.common.keyed import judging
from routing.scoring.own_answers import own_answers
from routing.scoring.packed import PathEvaluator
from routing.scoring.requests import Request
from routing.tasks.examples import Example, held_out, held_out_key
from routing.tasks.prompts import encode
from routing.training.adapters.states import GROUP

PARTS = ("train", "held_out")


def prompt_request(prompt: str, dataset: str, answer_tokens: int, tokenizer) -> Request:
    """The request of a prompt that has no right answer: the model goes on for so many tokens, or to the end token."""
    example = Example(dataset, prompt, "", checker="exact")
    return Request(example, "generate", prompt, tuple(encode(tokenizer, prompt)), max_new_tokens=answer_tokens)


def collect_texts(
    path: Path, model, tokenizer, requests: Sequence[Request], key: str, eval_fraction: float, batch_size: int
) -> dict[str, list[list[int]]]:
    """Tokens of prompt and own answer of each request, by part; kept in a file, group by group.

    Args:
        path: of the file; begun anew if it was written with another key.
        key: what the answers depend on.
        eval_fraction: share of the prompts that are held out, by their hash.
    """
    saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    wanted = {"key": key, "judging": judging()}
    rows: list[list[int]] = saved["rows"] if {name: saved.get(name) for name in wanted} == wanted else []
    evaluator = PathEvaluator(model, tokenizer, batch_size, score="accuracy")
    with tqdm(total=len(requests), initial=len(rows), desc="own answers", unit="prompt") as progress:
        for start in range(len(rows), len(requests), GROUP):
            part = requests[start : start + GROUP]
            rows += [list(tokens) for tokens, _ in own_answers(evaluator, part)]
            write_json(path, wanted | {"rows": rows})
            progress.update(len(part))
    found: dict[str, list[list[int]]] = {part: [] for part in PARTS}
    for request, row in zip(requests, rows, strict=True):
        found[PARTS[held_out(held_out_key(request.example), eval_fraction)]].append(row)
    return found
