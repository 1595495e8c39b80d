"""How far paths lead from the model's own answers, and the order of layers that follows from it."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from test_exploration import save_adapted
from test_menu import base, words  # noqa: F401
from test_sharding import generate
from tqdm import tqdm
from transformers import AutoTokenizer

from routing.commands.work import generate as generate_work
from routing.common.errors import UserError
from routing.labels import menus
from routing.labels.reading import read_header
from routing.scoring.divergence import Answer, AnswerDivergence, Remembered, answers_of, greedy_order
from routing.scoring.requests import draw_requests, request_of
from routing.search.menu import nested_routes
from routing.search.routes import full_route
from routing.tasks import load_examples


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):  # noqa: F811
    folder = save_adapted(tmp_path_factory.mktemp("adapted") / "checkpoint", base, 0)
    model = generate_work.load_adapted(folder, generate_work.DTYPES["float32"], "cpu")
    return folder, model, AutoTokenizer.from_pretrained(base)


def plain_divergence(model, rows, route) -> float:
    """Row by row, token by token, from whole distributions."""
    values = []
    for row in rows:
        ids = torch.tensor([row.tokens])
        own, full = (
            model(ids, routes=torch.tensor([path])).logits[0, row.prompt - 1 : -1].double().log_softmax(-1)
            for path in (route, full_route(len(route)))
        )
        values += [(f.exp() * (f - o)).sum().item() for f, o in zip(full, own, strict=True)]
    return sum(values) / len(values)


@torch.no_grad()
def test_it_is_the_divergence_of_whole_distributions(adapted):
    _, model, _ = adapted
    generator = torch.Generator().manual_seed(0)
    rows = [
        Answer(tuple(torch.randint(3, 60, (prompt + answer,), generator=generator).tolist()), prompt)
        for prompt, answer in ((5, 1), (9, 4), (2, 7), (1, 2), (6, 0))
    ]
    begins = rows[1].tokens
    rows[:0] = [Answer(begins[:6] + tail, 8, "alike") for tail in ((9, 9, 9), (7, 8, 9, 9, 9), (9, 7, 5))]
    measured = AnswerDivergence(model, rows)
    assert measured.tokens == 14 + 5 and measured(full_route(5)) == pytest.approx(0, abs=1e-7)
    for route in ((1, 0, 1, 1, 1), (1, 1, 0, 0, 1), (0, 1, 1, 1, 0), (1, 2, 1, 0, 1)):
        found = measured(route)
        assert found > 1e-4 and found == pytest.approx(plain_divergence(model, rows[:-1], route), rel=1e-4)
    with pytest.raises(ValueError, match="no answer has a token"):
        AnswerDivergence(model, rows[-1:])


def test_the_order_is_that_of_trying_all_where_nothing_adds_less():
    worth = {0: 0.3, 1: 0.1, 2: 0.1, 3: 0.5, 4: 0.2, 5: 0.15}
    pairs = {frozenset((1, 2)): 1.0, frozenset((4, 5)): 0.2}
    asked = []

    def diverging(gone):
        asked.append(gone)
        more = sum(pairs.get(frozenset(pair), 0) for pair in itertools.combinations(gone, 2))
        return math.fsum(worth[layer] for layer in gone) + more

    found = greedy_order(list(worth), 5, diverging)
    lazily, gone, expected = len(asked), frozenset(), []
    for _ in range(5):
        expected.append(min((layer for layer in worth if layer not in gone), key=lambda one: diverging(gone | {one})))
        gone |= {expected[-1]}
    assert found == expected == [1, 5, 0, 4, 3]
    assert lazily < len(asked) - lazily and len(set(asked[:lazily])) == lazily
    assert greedy_order([], 0, diverging) == []


def test_what_was_measured_is_not_measured_again(tmp_path):
    path = tmp_path / "parts" / "divergence.json"

    def remembered(make, key):
        return Remembered(make, path, key, tqdm(disable=True))

    first = remembered(lambda: lambda gone: len(gone) / 4, ["a"])
    assert [first(frozenset({3, 1})), first(frozenset({2}))] == [0.5, 0.25]
    again = remembered(lambda: pytest.fail("nothing is to be measured"), ["a"])
    assert again(frozenset({1, 3})) == 0.5
    assert remembered(lambda: lambda gone: 7.0, ["b"])(frozenset({1, 3})) == 7.0
    assert json.loads(path.read_text())["values"] == {"1,3": 7.0}


def test_a_menu_by_divergence_of_a_real_model_with_adapters(base, adapted, tmp_path, monkeypatch):  # noqa: F811
    folder, model, tokenizer = adapted
    options = ("--adapters", folder, "--menu_samples", 6, "--num_samples", 2)
    generate(monkeypatch, *words(base, "arithmetic", tmp_path, "divergence:0,1,3", *options))
    requests = draw_requests("arithmetic", "search", 6, tokenizer)
    rows = answers_of(model, tokenizer, requests, 4)
    assert len(rows) == 6 and all(len(row.tokens) > row.prompt for row in rows)
    order = greedy_order(
        [1, 2, 3, 4], 3, lambda gone: plain_divergence(model, rows, tuple(int(layer not in gone) for layer in range(5)))
    )
    assert read_header(tmp_path)["menu"]["routes"] == [list(route) for route in nested_routes(order, (0, 1, 3), 5)]


def test_an_order_for_each_data_set_is_that_of_the_data_set_alone(base, adapted, tmp_path, monkeypatch):  # noqa: F811
    options = ("--adapters", adapted[0], "--menu_samples", 4, "--num_samples", 2)

    def routes(names: str, spec: str) -> list:
        place = tmp_path / f"{names}-{spec.partition(':')[0]}"
        generate(monkeypatch, *words(base, names, place, spec, *options))
        return read_header(place)["menu"]["routes"]

    alone = [routes(name, "divergence:1,3") for name in ("arithmetic", "piqa")]
    assert alone[0] != alone[1]
    both = [route for found in alone for route in found]
    assert routes("piqa,arithmetic", "divergence-each:1,3") == [*map(list, dict.fromkeys(map(tuple, both)))]


def asked_of(tmp_path, monkeypatch, adapted, answers, value):
    """What a menu by divergence says of answers, where every path diverges by `value`."""
    _, model, tokenizer = adapted
    requests = [request_of(e, "auto", tokenizer) for e in load_examples("arithmetic", "search", 3, 0)]
    monkeypatch.setattr(menus, "answers_of", lambda *_: answers)
    monkeypatch.setattr(menus, "AnswerDivergence", lambda *_: lambda route: value)
    questions = menus.MenuQuestions(lambda: model, tokenizer, lambda split: requests, tmp_path, 4, None, "key")
    return questions.diverging([1, 2, 3], 2, False)[0]


def test_answers_without_a_token_and_overflow_are_told(tmp_path, monkeypatch, adapted):
    empty, right = Answer((5, 6), 2), Answer((5, 6, 7), 2)
    assert asked_of(tmp_path / "right", monkeypatch, adapted, [empty, right], 0.5) == [1, 2]
    with pytest.raises(UserError, match="answers none of 3 questions with a token.*give --menu influence"):
        asked_of(tmp_path / "empty", monkeypatch, adapted, [empty], 0.5)
    with pytest.raises(UserError, match="it is nan without layers 1, so torch.float32 overflows; give --dtype"):
        asked_of(tmp_path / "nan", monkeypatch, adapted, [right], math.nan)
