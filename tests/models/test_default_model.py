"""The real default model: conversion, exactness, verdicts against the naive way, lm-eval at several batch sizes."""

from __future__ import annotations

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer, LlamaForCausalLM

from data_models.modeling_llama import PathLlamaForCausalLM
from routing.evaluation.lm import Key, PromptRoutedLM
from routing.models.default_model import DEFAULT_MODEL, default_model_folder
from routing.models.wheel_models import WHEEL_MODELS, check_tokenizer
from routing.scoring.plain import Evaluator
from routing.scoring.requests import make_request
from routing.search.routes import to_path
from routing.tasks import load_examples
from routing.tasks.answers import check_number
from routing.tasks.prompts import build_prompt
from train_models.modeling_llama import RoutedLlamaForCausalLM


@pytest.fixture(scope="module")
def folder():
    return default_model_folder()


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def stock(folder):
    return LlamaForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def routed(folder):
    """The default model with routers that decide, and differently from row to row."""
    torch.manual_seed(1)
    model = RoutedLlamaForCausalLM.from_pretrained(folder).eval()
    model.model.init_routers()
    for router in model.model.routers:
        # Few edits a route, so that answers stay text.
        router.down.bias.data += torch.tensor([0.0, 40.0, 0.0])
    return model


def test_converted_tokenizer(tokenizer):
    check_tokenizer(tokenizer, WHEEL_MODELS[DEFAULT_MODEL])
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text.startswith("<|im_start|>system")


def test_converted_model_knows_its_capital(stock, tokenizer):
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    output = stock.generate(**inputs, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(output[0, -1]) == " Paris"


def test_full_route_is_the_stock_model_exactly(stock, routed, tokenizer):
    inputs = tokenizer(["A short one", "And a longer one, with more words"], return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = stock(**inputs).logits
        found = routed(**inputs, routes=torch.ones(2, 30, dtype=torch.long)).logits
    assert torch.equal(found, expected)


def test_verdicts_are_those_of_one_path_at_a_time(folder, routed, tokenizer):
    """Batched evaluation along forced routes against the given-path model, alone and without a cache."""
    examples = load_examples("arithmetic", "search", 6, seed=1)
    requests = [
        make_request(e, "generate", build_prompt(e, "generate", tokenizer, False), tokenizer, False) for e in examples
    ]
    generator = torch.Generator().manual_seed(0)
    routes = []
    for _ in requests:
        route = [1] * 30
        for layer in torch.randint(2, 29, (2,), generator=generator).tolist():
            route[layer] = int(torch.randint(0, 2, (), generator=generator)) * 2
        routes.append(tuple(route))
    routes[0] = (1,) * 30
    verdicts = Evaluator(routed, tokenizer, batch_size=4).verdicts(requests, routes)
    naive = PathLlamaForCausalLM.from_pretrained(folder).eval()
    expected = []
    for request, route in zip(requests, routes, strict=True):
        naive.model.layer_indices = to_path(route)
        ids = torch.tensor([request.prompt_ids])
        with torch.no_grad():
            for _ in range(request.max_new_tokens):
                ids = torch.cat([ids, naive(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
        text = tokenizer.decode(ids[0, len(request.prompt_ids) :]).split("\n")[0]
        expected.append(check_number(text, request.example))
    found = [verdict.correct for verdict in verdicts]
    assert found == expected
    assert any(found)


def requests_of(tokenizer) -> list[Instance]:
    """Loglikelihood requests of unequal lengths."""
    pairs = [
        (f"Question: {e.question}\nAnswer:", f" {choice}")
        for e in load_examples("openbookqa", "test", 4, seed=0)
        for choice in e.choices
    ]
    return [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [HFLM, PromptRoutedLM], ids=["stock", "prompt-routed"])
def test_loglikelihoods_do_not_depend_on_the_batch_size(kind, routed, tokenizer):
    """lm-eval pads on the right and sends no mask; each row must get what it gets alone."""
    found = {}
    for size in (1, 16):
        model = kind(routed, tokenizer=tokenizer, batch_size=size)
        found[size] = [score for score, _ in model.loglikelihood(requests_of(tokenizer), disable_tqdm=True)]
    assert len({tuple(route) for route in routed.last_routes.tolist()}) > 1
    assert found[1] == pytest.approx(found[16], abs=1e-4)


def test_prompt_routing_is_the_same_for_all_choices(routed, tokenizer):
    """The routes of one question's choices are equal when routing reads the prompt alone."""
    model = PromptRoutedLM(routed, tokenizer, batch_size=5)
    requests = requests_of(tokenizer)
    model.loglikelihood(requests, disable_tqdm=True)
    by_prompt: dict[str, set] = {}
    for request in requests:
        by_prompt.setdefault(request.args[0], set()).add(model.rows[Key(None, request.idx)].route)
    assert all(len(routes) == 1 for routes in by_prompt.values())
    assert len(set.union(*by_prompt.values())) > 1


@pytest.fixture(scope="module")
def lm_eval_samples(folder, tokenizer):
    """What lm-eval's own model makes of a task of choices on the stock model."""
    from lm_eval import simple_evaluate

    from routing.evaluation.tasks import check_tasks

    model = HFLM(pretrained=LlamaForCausalLM.from_pretrained(folder), tokenizer=tokenizer, batch_size=8)
    name = "routed_openbookqa"
    output = simple_evaluate(
        model=model, tasks=[name], limit=6, bootstrap_iters=0, task_manager=check_tasks([name])
    )  # fmt: skip
    return sorted(output["samples"][name], key=lambda sample: sample["doc_id"])


@pytest.mark.parametrize(
    ("scoring", "metric"),
    [
        pytest.param("loglikelihood", "acc", marks=pytest.mark.slow),
        pytest.param("loglikelihood_norm", "acc_norm", marks=pytest.mark.slow),
        ("loglikelihood_bytes", "acc_bytes"),
    ],
)
def test_search_scores_choices_as_lm_eval_does(scoring, metric, routed, tokenizer, lm_eval_samples):
    """Verdicts of the evaluator at full depth against lm-eval's own metric."""
    examples = load_examples("openbookqa", "test", None, seed=0)[: len(lm_eval_samples)]
    prompts = [build_prompt(e, scoring, tokenizer, False) for e in examples]
    assert [sample["doc"]["prompt"] for sample in lm_eval_samples] == prompts
    requests = [make_request(e, scoring, p, tokenizer, False) for e, p in zip(examples, prompts, strict=True)]
    verdicts = Evaluator(routed, tokenizer).verdicts(requests, [(1,) * 30] * len(requests))
    assert [bool(sample[metric]) for sample in lm_eval_samples] == [verdict.correct for verdict in verdicts]
