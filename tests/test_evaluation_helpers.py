"""Numbers of an evaluation: intervals, paired tests, choices as lm-eval picks them, shares."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.task import ConfigurableTask
from scipy.stats import binomtest

from routing.errors import UserError
from routing.evaluation import PromptRoutedLM, TaskResult, accuracy_of, mcnemar, route_share, summary, wilson_interval
from routing.scoring import Request, best_choice
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
def test_wilson_interval_is_scipys(counts):
    correct, total = counts
    low, high = wilson_interval(correct, total)
    expected = binomtest(correct, total).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-4)
    assert 0 <= low <= correct / total + 1e-12 and correct / total - 1e-12 <= high <= 1


@settings(max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_a_binomial_test(pairs):
    first = {i: a for i, (a, _) in enumerate(pairs)}
    second = {i: pairs[i][1] for i in reversed(range(len(pairs)))}
    result = mcnemar(first, second)
    assert result["gained"] == sum(b and not a for a, b in pairs)
    assert result["lost"] == sum(a and not b for a, b in pairs)
    discordant = result["gained"] + result["lost"]
    expected = binomtest(result["gained"], discordant, 0.5).pvalue if discordant else 1.0
    assert result["p"] == pytest.approx(expected)
    assert mcnemar(second, first)["p"] == pytest.approx(result["p"])


def test_mcnemar_by_hand():
    """Five gained and none lost: p = 2 / 2^5."""
    first, second = {i: i > 4 for i in range(9)}, {i: True for i in range(9)}
    assert mcnemar(first, second) == {"gained": 5, "lost": 0, "p": 0.0625}
    assert mcnemar(first, first) == {"gained": 0, "lost": 0, "p": 1.0}


def test_mcnemar_of_a_large_set():
    first = {i: i < 2000 for i in range(5000)}
    second = {i: i >= 1900 for i in range(5000)}
    assert mcnemar(first, second)["p"] == pytest.approx(binomtest(1900, 4900, 0.5).pvalue)


def test_route_share():
    assert route_share([[0, 1, 1, 2], [1, 1, 1, 1]]) == {"skip": 1 / 8, "run": 6 / 8, "repeat": 1 / 8}
    assert route_share([[1, 1]]) == {"skip": 0, "run": 1, "repeat": 0}


def test_summary():
    result = TaskResult({0: True, 1: False, 2: True, 5: True}, 2.5, [[1, 0, 2], [1, 0, 0]])
    assert summary(result, 3) == {
        "accuracy": 0.75,
        "ci95": wilson_interval(3, 4),
        "layers": 2.0,
        "seconds": 2.5,
    }
    assert summary(TaskResult({0: True}, 1.0), 30)["layers"] == 30.0


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
    left = tokens[-(max_length + 1) :][:-1].count("prompt")
    ids = [0] * context, [1] * choice
    assert PromptRoutedLM._visible_prompt(SimpleNamespace(max_length=max_length), *ids) == max(left, 1)


def test_groups_are_evaluated_as_their_members(tmp_path):
    from lm_eval.tasks import TaskManager

    from routing.evaluation import CONFIGS, members

    (tmp_path / "inner.yaml").write_text("group: inner\ntask:\n  - routed_arithmetic\n")
    (tmp_path / "outer.yaml").write_text("group: outer\ntask:\n  - inner\n  - routed_openbookqa\n")
    manager = TaskManager(include_path=[str(CONFIGS), str(tmp_path)])
    assert members(["outer", "routed_arithmetic"], manager) == ["routed_arithmetic", "routed_openbookqa"]
