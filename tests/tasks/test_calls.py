"""Calls in a model's text, and the four scores of them, by hand-worked values."""

from __future__ import annotations

import json
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.scoring.certainty import settled
from routing.tasks.answers import CHECKERS, SCORES
from routing.tasks.calls import (
    CALL_SCORES,
    Call,
    answer_problem,
    as_allowed,
    canonical,
    complete_list,
    exact_match,
    json_match,
    parse_calls,
    partial_match,
    ratio_function_calls,
    score_problems,
)
from routing.tasks.examples import Example

PERFECT = {"exact_match": 1, "json_match": 1, "ratio_function_calls": 1, "partial_match": 10}
WORST = {"exact_match": 0, "json_match": 0, "ratio_function_calls": 0, "partial_match": -5}


def expecting(*calls: dict) -> Example:
    return Example("quiz", "Which calls?", json.dumps(list(calls)), checker="calls")


def scores(text: str, example: Example) -> dict[str, float]:
    return {name: score(text, example) for name, score in CALL_SCORES.items()}


def written(*calls: tuple[str, dict]) -> str:
    return json.dumps([{"name": name, "arguments": arguments} for name, arguments in calls])


ROME = {"name": "weather", "arguments": {"city": "Rome", "days": 2}}
CALL = Call("weather", {"city": "Rome", "days": 2})
WEATHER = expecting({"weather": {"city": ["Rome", "Roma"], "days": [2, ""], "units": ["", "metric"]}})
TWO_CITIES = expecting({"weather": {"city": ["Rome"]}}, {"weather": {"city": ["Oslo"]}})


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([ROME]),
        json.dumps(ROME),
        f"\n {json.dumps([ROME], indent=2)} and so on [",
        f"{json.dumps(ROME)}\nThat is {{the}} call.",
        f"```json\n{json.dumps([ROME])}\n```\nDone.",
        f"Here it is:\n```\n{json.dumps(ROME)}",
        f"<tool_call>\n{json.dumps(ROME)}\n</tool_call>",
        f"I call it. <tool_call>{json.dumps(ROME)}",
        json.dumps({"name": "weather", "parameters": {"city": "Rome", "days": 2}}),
        json.dumps({"name": "weather", "arguments": json.dumps({"city": "Rome", "days": 2})}),
        'weather(city="Rome", days=2)',
        "[weather(city='Rome', days=2)]",
    ],
)
def test_forms_of_a_call(text):
    assert parse_calls(text) == [CALL]


def test_calls_of_one_name_stay_apart():
    oslo = {"name": "weather", "arguments": {"city": "Oslo"}}
    both = [CALL, Call("weather", {"city": "Oslo"})]
    for text in (
        json.dumps([ROME, oslo]),
        f"{json.dumps(ROME)}\n{json.dumps(oslo)}",
        f"{json.dumps(ROME)}; {json.dumps(oslo)} {{",
        f"<tool_call>{json.dumps(ROME)}</tool_call>\n<tool_call>{json.dumps(oslo)}</tool_call>",
        "[weather(city='Rome', days=2), weather(city='Oslo')]",
    ):
        assert parse_calls(text) == both
    assert parse_calls(json.dumps([ROME, ROME])) == [CALL, CALL]


def test_literals_and_names():
    found = parse_calls("[a.b.c(x=(1, 2.5), y={'k': None}, z=-3, w=True)]")
    assert found == [Call("a.b.c", {"x": [1, 2.5], "y": {"k": None}, "z": -3, "w": True})]
    assert parse_calls('{"name": "now"}') == parse_calls("now()") == [Call("now", {})]
    assert parse_calls("[]") == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no calls here",
        "[1, 2]",
        "42",
        '{"arguments": {}}',
        '{"name": 3, "arguments": {}}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": "x=1"}',
        '{"name": "f", "arguments": {"a": 1, "a": 2}}',
        '{"name": "f", "arguments": {"a": NaN}}',
        '[{"name": "f", "arguments": {"a": 1}}}',
        '[{"name": "f", "arguments": {"a": 1}}, "g"]',
        "<tool_call>f</tool_call>",
        "<tool_call>3</tool_call>",
        "f(1)",
        "f(**{'a': 1})",
        "f(a=b)",
        "f(a=__import__('os'))",
        "f(a={1, 2})",
        "f(a=b'x')",
        "f(a=1j)",
        "f(a={1: 2})",
        "f(a={[1]: 2})",
        "f(a=1, a=2)",
        "f()(a=1)",
        "f(a=1); g()",
        "f(a='\0')",
        "[" * 100_000,
        '{"a":' * 100_000,
        "(" * 10_000,
        "[f(a=" + "9" * 5000 + ")]",
    ],
    ids=lambda text: text[:30],
)
def test_malformed_texts(text):
    assert parse_calls(text) is None
    assert scores(text, WEATHER) == WORST


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (written(("weather", {"city": "Rome", "days": 2})), PERFECT),
        (written(("weather", {"city": "Roma"})), PERFECT),
        (written(("weather", {"city": "Rome", "units": "metric"})), PERFECT),
        # Case and punctuation, and 2.0 for 2: alike, not the same.
        (written(("weather", {"city": "rome!", "days": 2.0})), PERFECT | {"exact_match": 0}),
        # One of two given arguments is right: 5 + 5 / 2.
        (written(("weather", {"city": "Rome", "days": 3})), WORST | {"partial_match": 7.5}),
        (written(("weather", {"city": "Rome", "days": True})), WORST | {"partial_match": 7.5}),
        (written(("weather", {"city": "Rome", "days": "2"})), WORST | {"partial_match": 7.5}),
        (written(("weather", {"city": "Rome", "night": True})), WORST | {"partial_match": 7.5}),
        # What must be given is missing; one that may be left out is right: 5 + 5 / 2.
        (written(("weather", {"days": 2})), WORST | {"partial_match": 7.5}),
        (written(("weather", {})), WORST | {"partial_match": 5}),
        (written(("forecast", {"city": "Rome", "days": 2})), WORST | {"partial_match": 0}),
        ("[]", WORST | {"partial_match": 0}),
        # One call too many: 10 points over two calls.
        (
            written(("weather", {"city": "Rome"}), ("weather", {"city": "Rome"})),
            {"exact_match": 0, "json_match": 0, "ratio_function_calls": 1, "partial_match": 5},
        ),
    ],
)
def test_scores_of_one_call(text, wanted):
    assert scores(text, WEATHER) == wanted


@pytest.mark.parametrize(
    ("cities", "wanted"),
    [
        (("Rome", "Oslo"), PERFECT),
        (("Oslo", "Rome"), PERFECT | {"exact_match": 0}),
        (("Rome",), {"exact_match": 0, "json_match": 0, "ratio_function_calls": 0.5, "partial_match": 5}),
        # The second call has the name right alone: (10 + 5) / 2.
        (("Rome", "Rome"), {"exact_match": 0, "json_match": 0, "ratio_function_calls": 0.5, "partial_match": 7.5}),
        (
            ("Rome", "Oslo", "Rome"),
            {"exact_match": 0, "json_match": 0, "ratio_function_calls": 1, "partial_match": pytest.approx(20 / 3)},
        ),
    ],
)
def test_scores_of_two_calls_of_one_name(cities, wanted):
    assert scores(written(*(("weather", {"city": city}) for city in cities)), TWO_CITIES) == wanted


def test_an_ambiguous_call_goes_where_it_is_needed():
    """Taken in order, the first expected call would take the only found one that fits the second."""
    example = expecting({"f": {"a": [1, 2]}}, {"f": {"a": [1]}})
    for order in ((1, 2), (2, 1)):
        found = scores(written(*(("f", {"a": value}) for value in order)), example)
        assert found["json_match"] == found["ratio_function_calls"] == 1 and found["partial_match"] == 10
    assert exact_match(written(("f", {"a": 2}), ("f", {"a": 1})), example) == 1
    assert exact_match(written(("f", {"a": 1}), ("f", {"a": 2})), example) == 0


def test_values_within_values():
    """Objects hold allowed values in turn, alone or within lists; other lists are meant literally."""
    condition = {"field": ["age"], "limit": [25, 26], "strict": ["", True]}
    example = expecting({"query": {"where": [[condition]], "table": [[[1, 2], [3]], "all"]}})
    right = {"where": [{"field": "age", "limit": 26}], "table": [[1, 2], [3]]}
    assert scores(written(("query", right)), example) == PERFECT
    assert scores(written(("query", right | {"table": "all"})), example) == PERFECT
    assert json.loads(canonical(example))[0]["arguments"] == right | {"where": [{"field": "age", "limit": 25}]}
    for wrong in (
        {"where": [{"field": "age"}]},
        {"where": [{"field": "age", "limit": 25, "more": 1}]},
        {"where": {"field": "age", "limit": 25}},
        {"where": []},
        {"table": [[1, 2, 3]]},
        {"table": [1, 2, 3]},
        {"table": {}},
    ):
        assert scores(written(("query", right | wrong)), example) == WORST | {"partial_match": 7.5}


def test_texts_of_punctuation_alone_are_compared_as_they_are():
    example = expecting({"compare": {"sign": [">"]}})
    assert json_match(written(("compare", {"sign": " > "})), example) == 1
    assert json_match(written(("compare", {"sign": "<"})), example) == 0


def test_plain_values_as_allowed_ones():
    value = {"a": [1, {"b": "x"}], "c": None}
    example = expecting({"f": {"value": [as_allowed(value)]}})
    assert scores(written(("f", {"value": value})), example) == PERFECT
    assert json_match(written(("f", {"value": value | {"c": 0}})), example) == 0


def test_registered():
    assert CALL_SCORES.items() <= SCORES.items()
    text = written(("weather", {"city": "rome"}))
    assert CHECKERS["calls"](text, WEATHER) and SCORES["accuracy"](text, WEATHER) == 1
    assert not CHECKERS["calls"]("weather", WEATHER)


def test_scores_of_calls_are_for_calls():
    number = Example("sums", "1 + 1 =", "2", checker="number")
    for name in CALL_SCORES:
        problem = score_problems(name, number)
        assert name in problem and "sums" in problem and "number" in problem
        assert score_problems(name, WEATHER) is None
    assert score_problems("accuracy", number) is None


@pytest.mark.parametrize(
    "answer", ["f(a=1)", "[]", "{}", "3", "[1]", '[{"f": {"a": 1}}]', '[{"f": {"a": []}}]', '[{"f": {}, "g": {}}]',
               '[{"f": [1]}]', '[{"f": {"a": [{"b": 1}]}}]'],
)  # fmt: skip
def test_expected_calls_are_checked(answer):
    assert answer_problem(answer)
    assert answer_problem(WEATHER.answer) is None


LEAVES = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text("aB 1.", max_size=3)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=2)
)
ARGUMENTS = st.dictionaries(
    st.sampled_from(("a", "b", "c")), st.lists(VALUES.map(as_allowed), min_size=1, max_size=2), max_size=2
)
EXPECTED = st.lists(
    st.dictionaries(st.sampled_from(("f", "g.h")), ARGUMENTS, min_size=1, max_size=1), min_size=1, max_size=4
)


@settings(max_examples=100, deadline=None)
@given(EXPECTED)
def test_the_canonical_answer_is_perfect(expected):
    example = expecting(*expected)
    assert answer_problem(example.answer) is None
    assert scores(canonical(example), example) == PERFECT


@settings(max_examples=60, deadline=None)
@given(EXPECTED, EXPECTED, st.randoms(use_true_random=False))
def test_the_order_of_calls_changes_exact_match_alone(expected, other, rng):
    example = expecting(*expected)
    calls = json.loads(canonical(expecting(*other, *expected[:2])))
    before = scores(json.dumps(calls), example)
    rng.shuffle(calls)
    after = scores(json.dumps(calls), example)
    for name in ("json_match", "ratio_function_calls"):
        assert after[name] == before[name]
    assert after["partial_match"] == pytest.approx(before["partial_match"])


def best_by_trying(found: list[Call], example: Example) -> float:
    """The oracle of the assignment: every order of the found calls, the missing ones worth nothing."""
    single = [expecting(call) for call in json.loads(example.answer)]
    size = max(len(found), len(single))
    padded = [*found, *[None] * (size - len(found))]

    def points(call: Call | None, one: Example) -> float:
        return 0.0 if call is None else partial_match(written((call.name, call.arguments)), one)

    return max(sum(map(points, order, single)) for order in permutations(padded)) / size


@settings(max_examples=40, deadline=None)
@given(EXPECTED, EXPECTED)
def test_partial_match_takes_the_best_assignment(expected, other):
    example = expecting(*expected)
    text = canonical(expecting(*other[:2], *expected[:2]))
    assert partial_match(text, example) == pytest.approx(best_by_trying(parse_calls(text), example))


PIECES = (
    "[", "]", "{", "}", '"name": "f"', '"arguments": {}', ", ", "f(a=1)", "```json\n", "```", "<tool_call>",
    "</tool_call>", '{"name": "f", "arguments": {"a": 1}}', "\n", " ", "\\", '"', "\ufffd", "nan", "1e999",
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.text(max_size=20))
def test_no_text_raises_and_scores_are_bounded(text):
    example = expecting({"f": {"a": [1]}}, {"f": {"a": ["", 2]}})
    found = scores(text, example)
    assert found["exact_match"] <= found["json_match"] <= found["ratio_function_calls"]
    assert {found["exact_match"], found["json_match"]} <= {0, 1} and 0 <= found["ratio_function_calls"] <= 1
    assert found["partial_match"] == -5 if parse_calls(text) is None else 0 <= found["partial_match"] <= 10
    assert (found["json_match"] == 1) == (found["partial_match"] == 10)
    assert ratio_function_calls(text, example) * len(json.loads(example.answer)) in (0, 1, 2)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), st.sampled_from(PIECES))
def test_verdicts_are_certain_behind_a_whole_list(text, following):
    example = expecting({"f": {"a": [1]}})
    beginnings = [f"{text}{following}"[:end] for end in range(len(text + following) + 1)]
    verdicts = [CHECKERS["calls"](beginning, example) for beginning in beginnings]
    for index, beginning in enumerate(beginnings):
        verdict = settled(beginning, example)
        assert verdict is None or set(verdicts[index:]) == {verdict}


def test_when_verdicts_are_certain():
    whole = written(("weather", {"city": "Rome"}))
    assert settled(whole, WEATHER) is settled(f" {whole} and", WEATHER) is True
    assert settled("[]", WEATHER) is settled("[1]", WEATHER) is False
    for text in ("", whole[:-1], whole[1:-1], "weather(city='Rome')", f"```\n{whole}"):
        assert settled(text, WEATHER) is None and not complete_list(text)
