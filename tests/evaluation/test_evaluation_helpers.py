"""Numbers of an evaluation: intervals, paired tests, choices as lm-eval picks them, shares."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import LLAMA, PHI3, QWEN3_MOE, routed_from, stock_model
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from routing.common.errors import UserError
from routing.common.statistics import mcnemar, wilson_interval
from routing.evaluation.flops import Flops
from routing.evaluation.lm import Key, PromptRoutedLM, Row
from routing.evaluation.methods import TaskResult, random_of, route_facts, stored, summary
from routing.evaluation.task_names import CONFIGS, task_problems
from routing.evaluation.tasks import accuracy_of, members
from routing.scoring.controls import random_like, skips_around
from routing.scoring.plain import best_choice
from routing.scoring.requests import Request
from routing.tasks.examples import Example


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        (5, 10, 0.2366, 0.7634),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),
        (1, 1, 0.2065, 1),
    ],
)
def test_wilson_interval_by_hand(correct, total, low, high):
    """81 of 263 is the example of Newcombe, Statistics in Medicine 17, 1998."""
    assert wilson_interval(correct, total) == pytest.approx([low, high], abs=1e-4)


@settings(max_examples=60)
@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_solves_its_equation(counts):
    """Its ends are the shares from which what was seen is just 1.96 standard errors away."""
    correct, total = counts
    low, high = wilson_interval(correct, total)
    share, z = correct / total, 1.96
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    assert (low, high) == pytest.approx((max(centre - half, 0), min(centre + half, 1)), abs=2e-5)
    assert 0 <= low <= correct / total + 1e-12 and correct / total - 1e-12 <= high <= 1


@settings(max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_a_binomial_test(pairs):
    first = {i: a for i, (a, _) in enumerate(pairs)}
    second = {i: pairs[i][1] for i in reversed(range(len(pairs)))}
    result = mcnemar(first, second)
    assert result["gained"] == sum(b and not a for a, b in pairs)
    assert result["lost"] == sum(a and not b for a, b in pairs)
    total = result["gained"] + result["lost"]
    tail = sum(math.comb(total, k) for k in range(min(result["gained"], result["lost"]) + 1)) / 2**total
    assert result["p"] == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(second, first)["p"] == pytest.approx(result["p"])


def test_mcnemar_by_hand():
    """Five gained and none lost: p = 2 / 2^5."""
    first, second = {i: i > 4 for i in range(9)}, {i: True for i in range(9)}
    assert mcnemar(first, second) == {"difference": 5 / 9, "gained": 5, "lost": 0, "p": 0.0625}
    assert mcnemar(second, first)["difference"] == -5 / 9
    assert mcnemar(first, first) == {"difference": 0.0, "gained": 0, "lost": 0, "p": 1.0}


def test_mcnemar_of_a_large_set():
    first = {i: i < 2000 for i in range(5000)}
    second = {i: i >= 1900 for i in range(5000)}
    tail = sum(math.comb(4900, k) for k in range(1901)) / 2**4900
    assert mcnemar(first, second)["p"] == pytest.approx(2 * tail)


def test_route_facts():
    facts = route_facts([(0, 1, 1, 2), (1, 1, 1, 1), (1, 1, 0, 0), (2, 1, 1, 0)])
    assert facts["route_share"] == {"skip": 4 / 16, "run": 10 / 16, "repeat": 2 / 16}
    assert facts["rerouted"] == 3 / 4  # as long as the identity is not the identity
    assert facts["layers_histogram"] == {"2": 1, "4": 3}
    assert facts["routes"][0] == [0, 1, 1, 2]
    assert route_facts([(1, 1)])["route_share"] == {"skip": 0, "run": 1, "repeat": 0}


def result_of(routes: list, correct: dict[int, bool]) -> TaskResult:
    return TaskResult(
        correct, {Key(at, 0): Row(route, 5, 2) for at, route in enumerate(routes)}, 2.5, 0.5, "2026-01-02"
    )


def test_summary():
    assert summary(result_of([(1, 0, 2), (1, 0, 0)], {0: True, 1: False, 2: True, 5: True}), 3) == {
        "accuracy": 0.75,
        "ci95": wilson_interval(3, 4),
        "layers": 2.0,
        "gflops": 0.5,
        "seconds": 2.5,
        "inputs": 2,
    }
    assert summary(result_of([None], {0: True}), 30)["layers"] == 30.0


def test_results_come_back_from_their_file(tmp_path):
    made = []

    def make():
        made.append(result_of([(1, 0, 2), None], {0: True, 3: False}))
        return made[-1]

    path, key = tmp_path / "parts" / "task.routed.json", {"limit": 3, "files": [["a", 1, 2]]}
    first, second = stored(path, key, make), stored(path, key, make)
    assert first == second == made[0] and len(made) == 1
    stored(path, key | {"limit": 4}, make)
    assert len(made) == 2


def test_random_controls_are_as_long_as_the_routes_of_the_model():
    routes = [(1, 0, 2, 1, 1, 1), (0, 0, 1, 1, 1, 1), (2, 2, 1, 1, 1, 1), (1, 1, 1, 1, 1, 1)]
    rows = {Key(at, choice): Row(route, 5, 2) for at, route in enumerate(routes) for choice in (0, 1)}
    routed = TaskResult({}, rows, 1.0, 1.0, "2026-01-02")
    found = {seed: {key: random_of(routed, seed, 0)(key) for key in routed.rows} for seed in range(4)}
    for own in found.values():
        assert all(sum(own[key]) == sum(routed.rows[key].route) for key in own)
        assert all(own[Key(at, 0)] == own[Key(at, 1)] for at in range(4))
    assert len({own[Key(1, 0)] for own in found.values()}) > 1
    assert found[0] == {key: random_of(routed, 0, 0)(key) for key in routed.rows}
    assert [sum(route) for route in random_like(routes, 0)] == [sum(route) for route in routes]
    shares = [(1.0, 1.0, 0.25, 0.25)] * 200  # of tokens: 2.5 layers on average
    drawn = random_like(shares, 0, first=2)
    assert all(route[:2] == (1, 1) for route in drawn) and {sum(route) for route in drawn} == {2, 3}
    assert abs(sum(map(sum, drawn)) / 200 - 2.5) < 0.1


@pytest.mark.parametrize(
    ("mean", "skips"), [(29.02, [1]), (28.0, [2]), (27.6, [2, 3]), (30.0, []), (31.5, []), (0.4, [29])]
)
def test_static_controls_bracket_the_mean(mean, skips):
    """At most 29 of 30 layers are skipped; beside a mean of 30 and more stands the dense model itself."""
    assert skips_around(30, mean) == skips


@pytest.mark.parametrize("all_logits", [True, False])
@pytest.mark.parametrize("family", [LLAMA, PHI3, QWEN3_MOE], ids=["plain", "fused", "experts"])
@pytest.mark.parametrize("route", [(1, 1, 1, 1, 1), (0, 2, 1, 0, 1)])
def test_flops_are_those_that_torch_counts(all_logits, route, family):
    """torch counts whole attention matrices, ours the half that a causal mask leaves."""
    model = routed_from(family, stock_model(family))
    model.config._experts_implementation = "eager"  # The others give each expert as many tokens as the fullest has.
    row, ids = Row(route, 12, 0), torch.ones(1, 12, dtype=torch.long)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(ids, routes=torch.tensor([route]), logits_to_keep=0 if all_logits else 1, use_cache=False)
    flops = Flops(model, all_logits)
    other_half = sum(route) * (12 * 12 - 12 * 13 / 2) * flops.attention
    assert flops.of(row, decided=False) + other_half == counter.get_total_flops()


def test_flops_of_a_generation():
    """Prompt and new tokens but the last are read; a step's attention sees all before it."""
    model, route, new = routed_from(LLAMA, stock_model(LLAMA)), (0, 2, 1, 0, 1), 4
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.generate(torch.ones(1, 12, dtype=torch.long), routes=torch.tensor([route]), max_new_tokens=new)
    flops = Flops(model, all_logits=False)
    other_half = sum(route) * (12 * 12 - 12 * 13 / 2) * flops.attention
    assert flops.of(Row(route, 12, new), decided=False) + other_half == counter.get_total_flops()


def test_flops_of_routers():
    model = routed_from(LLAMA, stock_model(LLAMA), router_seed=0)
    ids = torch.ones(1, 16, dtype=torch.long)
    counted = []
    for routes in (None, torch.ones(1, 5, dtype=torch.long)):
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(ids, routes=routes, use_cache=False)
        counted.append(counter.get_total_flops())
        ones = routes
        if routes is None:
            decided = model.last_routes[0].tolist()
    model_flops = Flops(model, True)
    row = Row(tuple(decided), 16, 0)
    routers = model_flops.of(row, True) - model_flops.of(row, False)
    layers = (sum(decided) - sum(ones[0].tolist())) * (16 * model_flops.layers[0] + 16 * 16 * model_flops.attention)
    found = counted[0] - counted[1] - layers
    # torch also counts the mean over windows and the three logits of each router.
    assert routers <= found <= 1.1 * routers


def test_accuracy_of_a_sample():
    assert accuracy_of("t", {"acc": 1.0, "acc_norm": 0.0}) is True
    assert accuracy_of("t", {"acc": 0.0, "exact_match": 1.0}) is False
    assert accuracy_of("t", {"exact_match": 1}) is True
    with pytest.raises(UserError, match="'t'"):
        accuracy_of("t", {"bleu": 0.3})


def choice_request(choices: tuple[str, ...], scoring: str) -> Request:
    return Request(Example("d", "q", choices[0], choices, 0, "letter"), scoring, "q", (1,))


def lm_eval_picks(scores: list[float], choices: tuple[str, ...]) -> dict[str, int]:
    """Index of the choice that lm-eval's own scoring takes for right, by metric."""
    metrics = ("acc", "acc_norm", "acc_bytes")
    picks = {}
    for gold in range(len(choices)):
        task = SimpleNamespace(
            config=SimpleNamespace(process_results=None),
            OUTPUT_TYPE="multiple_choice",
            _metric_fn_list=dict.fromkeys(metrics),
            doc_to_choice=lambda doc: list(choices),
            doc_to_target=lambda doc, gold=gold: gold,
            multiple_input=False,
            multiple_target=False,
        )
        found = ConfigurableTask.process_results(task, {}, [(score, False) for score in scores])
        picks |= {metric: gold for metric in metrics if found[metric]}
    return picks


SCORED_CHOICES = st.lists(
    st.tuples(st.text("ab é中🙂", min_size=1, max_size=6), st.integers(-40, -1).map(float)), min_size=2, max_size=5
)


@settings(max_examples=150)
@given(SCORED_CHOICES)
def test_choices_are_picked_as_by_lm_eval(scored):
    choices, scores = tuple(c for c, _ in scored), [s for _, s in scored]
    expected = lm_eval_picks(scores, choices)
    names = {"acc": "loglikelihood", "acc_norm": "loglikelihood_norm", "acc_bytes": "loglikelihood_bytes"}
    for metric, scoring in names.items():
        assert best_choice(scores, choice_request(choices, scoring)) == expected[metric]


def test_the_three_ways_to_pick_a_choice():
    """-6, -8 and -9 over 2, 4 and 3 characters, and over 2, 4 and 9 bytes."""
    choices, scores = ("ab", "abcd", "中中中"), [-6.0, -8.0, -9.0]
    picked = [best_choice(scores, choice_request(choices, f"loglikelihood{end}")) for end in ("", "_norm", "_bytes")]
    assert picked == [0, 1, 2]
    assert best_choice([-4.0, -4.0], choice_request(("a", "b"), "loglikelihood")) == 0


@settings(max_examples=60)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(6, 14))
def test_visible_prompt_of_a_request_that_lm_eval_cuts(context, choice, max_length):
    """lm-eval scores the last max_length + 1 tokens less the last; routing may see what is left of the prompt."""
    tokens = ["prompt"] * context + ["choice"] * choice
    left = tokens[-(max_length + 1) :][:-1]
    ids = [0] * context, [1] * choice
    prompt, other = PromptRoutedLM._visible(SimpleNamespace(max_length=max_length), *ids)
    assert prompt == max(left.count("prompt"), 1) and prompt + other == len(left)


def test_names_of_tasks_are_found_where_they_are_written():
    assert task_problems(["in_domain", "routed_arithmetic", "arc_easy"]) == []  # a group, of ours, of lm-eval
    (problem,) = task_problems(["routed_arithmetic", "routed_arithmetics"])
    assert problem.startswith("unknown task routed_arithmetics. ")


@pytest.mark.slow
def test_groups_are_evaluated_as_their_members(tmp_path):
    (tmp_path / "inner.yaml").write_text("group: inner\ntask:\n  - routed_arithmetic\n")
    (tmp_path / "outer.yaml").write_text("group: outer\ntask:\n  - inner\n  - routed_openbookqa\n")
    manager = TaskManager(include_path=[str(CONFIGS), str(tmp_path)])
    assert members(["outer", "routed_arithmetic"], manager) == ["routed_arithmetic", "routed_openbookqa"]
