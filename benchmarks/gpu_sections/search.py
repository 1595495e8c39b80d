"""Paths a second of the search's evaluator against one path at a time, 3B shape, bf16. See benchmarks/search.py.

The naive way is `generate()` with batch 1, and each choice in full as lm-eval scores it. Random weights answer nothing
right, so the answer of each generated question is what the full path says: then some paths are right, some are not.
Tokens are single characters. In bf16 near ties are common, and a verdict may hang on the batch; that is what
`agreement` shows.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import torch
from search import collect, compare, in_flight, replay
from tokenizers import Regex, Tokenizer, decoders
from tokenizers import models as tokenizer_models
from tokenizers import pre_tokenizers as pre
from transformers import PreTrainedTokenizerFast

from gpu_sections.job import Job
from gpu_sections.models import RandomModels
from routing.scoring.packed import PathEvaluator
from routing.scoring.plain import PLAIN_GREEDY
from routing.scoring.requests import request_of
from routing.tasks.examples import Example

CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]


def character_tokenizer() -> PreTrainedTokenizerFast:
    """A token a character; id 0 is padding."""
    vocabulary = {token: at for at, token in enumerate(["<pad>", "<eos>", *CHARACTERS])}
    tokenizer = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def sentence(rng: Random, words: int) -> str:
    return " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 8))) for _ in range(words))


def examples(scoring: str, count: int) -> list[Example]:
    """Questions as long as those of real data sets: shots that all share, some words of their own."""
    rng = Random(scoring)
    shots = sentence(rng, 8) + "\n"
    if scoring == "generate":
        return [Example("random", sentence(rng, 12) + " =", "?", checker="exact", shots=shots) for _ in range(count)]
    questions = []
    for _ in range(count):
        choices = tuple(sentence(rng, 4) for _ in range(4))
        gold = rng.randrange(4)
        questions.append(Example("random", sentence(rng, 16), choices[gold], choices, gold, "letter"))
    return questions


@torch.inference_mode()
def requests_of(model, tokenizer, scoring: str, count: int, new_tokens: int):
    requests = [replace(request_of(e, scoring, tokenizer), max_new_tokens=new_tokens) for e in examples(scoring, count)]
    if scoring != "generate":
        return requests
    answered = []
    for request in requests:
        prompt = torch.tensor([request.prompt_ids], device=model.device)
        routes = torch.ones(1, model.config.num_hidden_layers, dtype=torch.long)
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            routes=routes,
            max_new_tokens=new_tokens,
            pad_token_id=0,
            **PLAIN_GREEDY,
        )
        text = tokenizer.decode(output[0, prompt.shape[1] :], skip_special_tokens=True).split("\n")[0]
        answered.append(replace(request, example=replace(request.example, answer=text or "?")))
    return answered


def run(job: Job) -> None:
    dtype, shape = (torch.float32, "tiny") if job.smoke else (torch.bfloat16, "3B")
    count, limit, new_tokens = (4, 8, 2) if job.smoke else (64, 192, 6)
    model = RandomModels(shape, dtype, job.device).routed
    tokenizer = character_tokenizer()
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)
        model.lm_head.weight[len(tokenizer) :] = 0  # Characters alone are said.
    options = {"batch_size": 64, "memory": 8 * 2**30}
    for scoring in ("loglikelihood", "generate"):
        requests = requests_of(model, tokenizer, scoring, count, new_tokens)
        evaluator = PathEvaluator(model, tokenizer, **options)
        rounds = collect(evaluator, requests, model.config.num_hidden_layers, limit)
        evaluator.release()
        job.peak_mib()
        result = compare(model, tokenizer, rounds, options)
        result.pop("by_dataset")
        job.row(scoring=scoring, shape=shape, **result, peak_mib=job.peak_mib())
        if job.smoke:
            continue
        base = result["naive_per_second"]
        for name, given, changed in (
            *((f"batch {size}", rounds, {"batch_size": size}) for size in (4, 16, 256)),
            *((f"{size} in flight", in_flight(rounds, size), {}) for size in (4, 16)),
            ("nothing stored", rounds, {"memory": 0}),
        ):
            if job.seconds_left() < 5:
                job.left_out(f"{scoring}, {name}: no time")
                continue
            seconds = replay(PathEvaluator(model, tokenizer, **options | changed), given)
            job.row(scoring=scoring, varied=name, ratio=sum(map(len, given)) / seconds / base)
