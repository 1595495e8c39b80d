"""Exploration of pruned layer sets: both searches by hand, scored verdicts, their records, and killed runs."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from conftest import save_tiny_base
from fake_search import DEPTH, IDS, REQUESTS, Killed, Score, open_folder, run
from hypothesis import given
from hypothesis import strategies as st
from test_path_scoring import LOGLIKELIHOODS, TOKENIZER, choosing, generating, make_model, random_route, written
from test_sharding import ENVIRONMENT, ROOT, generate, journals, wait_for
from transformers import AutoConfig, AutoTokenizer

from routing.commands.labels import main as labels_main
from routing.commands.work import generate as generate_work
from routing.common.errors import UserError
from routing.common.files import sha256
from routing.labels.arguments import DataGenerationArguments
from routing.labels.exploration import exploration_records, write_records
from routing.labels.reading import HEADER, LABELS, read_header, read_labels
from routing.labels.records import label_line, parse_label
from routing.labels.writing import PARTS
from routing.models.checkpoint import save_checkpoint
from routing.models.default_model import DEFAULT_MODEL, default_model_folder
from routing.models.families import routed_class
from routing.scoring import packed as path_scoring
from routing.scoring.packed import PathEvaluator
from routing.scoring.plain import Evaluator
from routing.scoring.requests import Request, request_of
from routing.search.exploration import (
    EXPLORATIONS,
    ExplorationSettings,
    dfs,
    distinct_subsets,
    random_subsets,
    score_of,
)
from routing.search.results import SearchResult, Verdict, run_search
from routing.search.routes import full_route, pruned_layers, route_length, to_path
from routing.tasks import load_examples
from routing.tasks.answers import SCORES
from routing.tasks.calls import CALL_SCORES
from routing.tasks.examples import Example
from train_models.modeling_llama import RoutedLlamaForCausalLM
from train_models.routed_model import small_parts

CHECKED = ("letter", "number", "exact", "regex", "boxed")


class InOrder(Random):
    """Takes layers from the first to the last."""

    def shuffle(self, layers):
        pass


def explored(method, score, depth: int, rng: Random | None = None, **settings) -> dict[str, float]:
    """Routes in order of evaluation, as text, with their scores."""
    searching = method(depth, ExplorationSettings(**settings), rng or InOrder())
    result = run_search(searching, lambda route: Verdict(False, score=score("".join(map(str, route)))))
    return {"".join(map(str, route)): verdict.score for route, verdict in result.verdicts.items()}


def by_size(routes) -> dict[int, int]:
    """How many routes prune so many layers."""
    return dict(Counter(route.count("0") for route in routes))


def test_scores_of_verdicts():
    assert [score_of(v) for v in (Verdict(True), Verdict(False), Verdict(True, score=-5.0))] == [1.0, 0.0, -5.0]
    assert pruned_layers((1, 0, 2, 0)) == [1, 3] and pruned_layers((1, 1)) == []


# Depth first


def test_dfs_by_hand():
    """Below the first layer (0) it tries one child; 001 was met there, so that 101 goes on to 100."""
    found = explored(dfs, lambda route: 1.0, 3, branching=2, min_branching=1)
    assert list(found) == ["111", "011", "001", "101", "100"]


def test_dfs_goes_on_where_the_score_does_not_fall():
    scores = {"111": 1.0, "011": 2.0, "001": 1.5, "010": 2.0, "101": 0.5, "110": 1.0, "100": 0.0}
    found = explored(dfs, scores.__getitem__, 3, branching=3, min_branching=3)
    # 101 is worse than the full path; 110 is as good, and of its children 010 is known.
    assert list(found) == ["111", "011", "001", "010", "101", "110", "100"]


def test_dfs_compares_with_the_parent_not_with_the_full_path():
    scores = {"1111": 1.0, "0111": 2.0, "0011": 1.5}
    assert list(explored(dfs, scores.__getitem__, 4, branching=1, min_branching=1)) == list(scores)


@pytest.mark.parametrize(
    ("limit", "branching", "least", "levels"),
    [
        (1, 8, 2, {0: 1, 1: 8}),
        (2, 8, 2, {0: 1, 1: 8, 2: 8 * 4}),
        (3, 8, 2, {0: 1, 1: 8, 2: 8 * 4, 3: 8 * 4 * 2}),
        (4, 8, 2, {0: 1, 1: 8, 2: 8 * 4, 3: 8 * 4 * 2, 4: 8 * 4 * 2 * 2}),
        (4, 5, 1, {0: 1, 1: 5, 2: 5 * 2, 3: 5 * 2, 4: 5 * 2}),
        (2, 3, 3, {0: 1, 1: 3, 2: 3 * 3}),
    ],
)
def test_branching_is_halved_down_to_its_least(limit, branching, least, levels):
    """What prunes `limit` layers is worse than its parent."""
    found = explored(
        dfs, lambda route: float(route.count("0") < limit), 30, Random(0),
        num_scenarios=10_000, branching=branching, min_branching=least,
    )  # fmt: skip
    assert by_size(found) == levels


def test_dfs_ends_with_its_scenarios_or_with_one_layer():
    assert len(explored(dfs, lambda route: 1.0, 30, Random(0))) == 1 + 20
    assert len(explored(dfs, lambda route: 1.0, 30, Random(0), num_scenarios=1)) == 2
    assert by_size(explored(dfs, lambda route: 1.0, 30, Random(0))) == dict.fromkeys(range(21), 1)
    assert list(explored(dfs, lambda route: 1.0, 1)) == ["1"]
    whole = explored(dfs, lambda route: 1.0, 4, num_scenarios=100, branching=4, min_branching=4)
    assert len(whole) == 2**4 - 1


@pytest.mark.parametrize("score", [0.0, -5.0])
def test_dfs_leaves_a_bad_full_path_alone(score):
    assert explored(dfs, lambda route: score, 5) == {"11111": score}


def test_verdicts_without_scores_count_as_right_or_wrong():
    for right, count in ((True, 21), (False, 1)):
        result = run_search(dfs(30, ExplorationSettings(), Random(0)), lambda route, right=right: Verdict(right))
        assert len(result.verdicts) == count
    result = run_search(random_subsets(30, ExplorationSettings(), Random(0)), lambda route: Verdict(False))
    assert len(result.verdicts) == 1 + 5


# Random sets


def test_random_sets_of_each_size():
    found = explored(random_subsets, lambda route: 1.0, 4, Random(0))
    assert by_size(found) == {0: 1, 1: 4, 2: 5, 3: 4}
    assert [route.count("0") for route in found] == sorted(route.count("0") for route in found)
    for count in (1, 5):
        found = explored(random_subsets, lambda route: 1.0, 30, Random(0), subsets=count)
        assert by_size(found) == {0: 1} | dict.fromkeys(range(1, 30), count)
    assert list(explored(random_subsets, lambda route: 1.0, 1)) == ["1"]


@pytest.mark.parametrize(("best", "sizes"), [(0.5, 9), (0.45, 3), (-5.0, 3)])
def test_random_sets_end_with_the_first_bad_size(best, sizes):
    """One set of each size above 2 has the score `best`, the others 0: five have a mean of 0.1, or less."""
    seen = set()

    def score(route):
        size = route.count("0")
        if size < 3:
            return 1.0
        new = size not in seen
        seen.add(size)
        return best if new else 0.0

    found = explored(random_subsets, score, 10, Random(0))
    assert by_size(found) == {0: 1} | dict.fromkeys(range(1, sizes + 1), 5)


def test_a_bad_full_path_does_not_end_random_sets():
    assert by_size(explored(random_subsets, lambda route: 0.0, 10, Random(0))) == {0: 1, 1: 5}
    assert by_size(explored(random_subsets, lambda route: 0.0, 10, Random(0), stop_score=-1.0))[9] == 5


@pytest.mark.parametrize("size", range(1, 6))
def test_subsets_are_all_there_are_where_there_are_few(size):
    assert len(set(distinct_subsets(6, size, 1000, Random(0)))) == math.comb(6, size)
    assert all(route.count(0) == size for route in distinct_subsets(6, size, 3, Random(1)))


# Both


def toy(route: str) -> float:
    """Layers 1 and 3 are needed, layer 4 does harm."""
    return int(route[1]) + int(route[3]) - int(route[4]) / 2


def test_golden_traces():
    settings = {"num_scenarios": 12, "branching": 4, "subsets": 2, "stop_score": 0.5}
    traces = {
        dfs: "111111 111101 110101 110100 010100 010000 000100 110000 110001 111001 011111 011101 010101",
        random_subsets: "111111 110111 101111 011011 011101 010110 001101 011000 001001 000100 010000",
    }
    for method, trace in traces.items():
        assert " ".join(explored(method, toy, 6, Random(7), **settings)) == trace
        assert explored(method, toy, 6, Random(7), **settings) != explored(method, toy, 6, Random(8), **settings)


SETTINGS = st.builds(
    ExplorationSettings,
    num_scenarios=st.integers(1, 60),
    branching=st.integers(1, 9),
    min_branching=st.integers(1, 4),
    subsets=st.integers(1, 7),
    stop_score=st.floats(-1, 1),
)


@given(st.sampled_from(list(EXPLORATIONS.values())), st.integers(1, 9), SETTINGS, st.integers(0, 10**6))
def test_invariants(method, depth, settings, seed):
    asked: list[tuple[int, ...]] = []

    def score(route):
        asked.append(route)
        return Verdict(False, score=Random(f"{seed}{route}").choice([-1.0, 0.0, 0.5, 1.0, 1.0]))

    result = run_search(method(depth, settings, Random(seed)), score)
    assert asked == list(result.verdicts) and len(asked) == len(set(asked)) and asked[0] == full_route(depth)
    assert all(set(route) <= {0, 1} and len(route) == depth and any(route) for route in asked)
    if method is dfs:
        assert len(asked) <= 1 + settings.num_scenarios
        for index, route in enumerate(asked[1:], 1):
            # One layer more than a route before that scored no worse than that one's own parent.
            parents = [
                other for other in asked[:index]
                if route_length(other) == route_length(route) + 1 and all(a >= b for a, b in zip(other, route))
            ]  # fmt: skip
            assert parents and score_of(result.verdicts[asked[0]]) > 0
            assert depth - route_length(route) <= depth - route_length(asked[index - 1]) + 1
    else:
        sizes = [route.count(0) for route in asked]
        assert sizes == sorted(sizes) and set(sizes) == set(range(max(sizes) + 1))
        assert all(
            count == min(settings.subsets, math.comb(depth, size)) for size, count in Counter(sizes).items() if size
        )


# Verdicts with scores


def letters(text: str, example: Example) -> float:
    """A graded score that tells answers apart."""
    return sum(map(ord, text)) / 1000 - len(example.question)


@pytest.fixture(autouse=True)
def _letters_are_a_score(monkeypatch):
    monkeypatch.setitem(SCORES, "letters", letters)


@pytest.fixture(scope="module")
def model():
    return make_model()[1]


def without_margins(verdicts: list[Verdict]) -> list[Verdict]:
    return [verdict._replace(margin=None) for verdict in verdicts]


def pairs_of(requests: list[Request], rng: Random) -> tuple[list[Request], list[tuple[int, ...]]]:
    pairs = [(request, random_route(rng)) for request in requests for _ in range(2)]
    rng.shuffle(pairs)
    return tuple(map(list, zip(*pairs)))


@pytest.fixture(scope="module")
def mixed(model) -> tuple[list[Request], list[tuple[int, ...]]]:
    rng = Random(3)
    requests = [r for checker in CHECKED for r in generating(model, checker, 3, rng)]
    requests += [r for scoring in LOGLIKELIHOODS for r in choosing(scoring, 3, rng)]
    return pairs_of(requests, rng)


@pytest.mark.parametrize(
    ("score", "batch_size", "memory"),
    [
        ("accuracy", 32, 2**30),
        pytest.param("letters", 32, 2**30, marks=pytest.mark.slow),
        ("letters", 3, 0),
    ],
)
def test_the_fast_evaluator_gives_the_scores_of_the_plain_one(model, mixed, score, batch_size, memory):
    asked, routes = mixed
    plain = without_margins(Evaluator(model, TOKENIZER, 1, score).verdicts(asked, routes))
    evaluator = PathEvaluator(model, TOKENIZER, batch_size, memory, score)
    evaluator.prepare(list(dict.fromkeys(asked)))
    assert without_margins(evaluator.verdicts(asked, routes)) == plain
    assert without_margins(Evaluator(model, TOKENIZER, 16, score).verdicts(asked, routes)) == plain
    unscored = without_margins(PathEvaluator(model, TOKENIZER).verdicts(asked, routes))
    assert [verdict._replace(score=None, output=None) for verdict in plain] == unscored
    assert all(verdict.score is None and verdict.output is None for verdict in unscored)
    for request, route, verdict in zip(asked, routes, plain, strict=True):
        if request.scoring == "generate":
            assert verdict.output == written(model, request, route)
            assert verdict.score == SCORES[score](verdict.output, request.example)
        else:
            assert verdict.output in request.example.choices
            assert verdict.score == float(verdict.correct) == float(verdict.output == request.example.answer)
    assert len({verdict.output for verdict in plain}) > 10


def test_ties_of_the_picked_choice_are_the_plain_evaluators():
    """Between wrong choices they change no verdict, but the answer that is told."""
    texts = ("a", "b", "c")
    example = Example("q", "?", "a", texts, 0, "letter")
    request = Request(example, "loglikelihood", "", (1,), choice_ids=((1,), (2,), (3,)))
    assert not path_scoring._is_tie([-3.0, -2.0, -2.0], request)
    assert path_scoring._is_tie([-3.0, -2.0, -2.0], request, "accuracy")
    assert not path_scoring._is_tie([-1.0, -2.0, -2.0], request, "accuracy")


@pytest.mark.slow
def test_the_default_model_on_sums():
    """A spot check, with the real model, against the plain evaluator."""
    folder = default_model_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    routed = routed_class(AutoConfig.from_pretrained(folder).model_type).from_pretrained(folder, dtype=torch.float32)
    routed.eval()
    requests = [request_of(example, "auto", tokenizer) for example in load_examples("arithmetic", "search", 2, seed=0)]
    rng = Random(0)
    depth = routed.config.num_hidden_layers
    routes = [full_route(depth), *(route for size in (1, 6) for route in distinct_subsets(depth, size, 1, rng))]
    asked = [request for request in requests for _ in routes]
    evaluator = PathEvaluator(routed, tokenizer, score="letters")
    evaluator.prepare(requests)
    verdicts = evaluator.verdicts(asked, routes * len(requests))
    assert verdicts == Evaluator(routed, tokenizer, 1, "letters").verdicts(asked, routes * len(requests))
    assert len({verdict.output for verdict in verdicts}) > 3


# Labels and records

RESULT = SearchResult(
    {
        (1, 1, 1, 1): Verdict(True, score=1.0, output=" no, é\n"),
        (1, 0, 1, 1): Verdict(False, score=-2.5, output=""),
        (1, 0, 1, 0): Verdict(True, score=1.0, output="no"),
    }
)


def test_labels_by_hand():
    line = label_line(REQUESTS[1], RESULT)
    record = parse_label(line, DEPTH)
    assert record["tried"] == [
        {"path": [0, 1, 2, 3], "correct": True, "pruned_layers": [], "score": 1.0, "output": " no, é\n"},
        {"path": [0, 2, 3], "correct": False, "pruned_layers": [1], "score": -2.5, "output": ""},
        {"path": [0, 2], "correct": True, "pruned_layers": [1, 3], "score": 1.0, "output": "no"},
    ]
    assert record["route"] == [1, 0, 1, 0] and record["base_correct"] and line.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pruned_layers": [0]}, "pruned_layers"),
        ({"pruned_layers": [3, 1]}, "pruned_layers"),
        ({"path": None}, "path"),
        ({"path": [[0], 2]}, "path"),
        ({"path": [0, 9]}, "path"),
        ({"score": math.nan}, "NaN is no number"),
        ({"score": "1"}, "score"),
        ({"score": True}, "score"),
        ({"output": None}, "output"),
    ],
)
def test_damaged_scores_are_refused(change, reason):
    record = json.loads(label_line(REQUESTS[1], RESULT))
    record["tried"][2] |= change
    with pytest.raises(ValueError, match=reason):
        parse_label(json.dumps(record), DEPTH)


@pytest.mark.parametrize("name", ["path", "pruned_layers", "score", "output"])
def test_half_a_score_is_refused(name):
    record = json.loads(label_line(REQUESTS[1], RESULT))
    del record["tried"][0][name]
    with pytest.raises(ValueError, match=f"without {name}"):
        parse_label(json.dumps(record), DEPTH)


class Graded(Score):
    """A scorer whose verdicts have scores and answers, with line breaks of all kinds."""

    def verdict(self, example_id, route):
        number = Random(f"{example_id}{route}").randrange(5)
        return Verdict(number > 3, 0.5, score=number / 4 - 0.2, output=f"{number}\r\n\u2028 é {example_id}")


def explore(folder: Path, score: Score, name: str = "dfs", **settings) -> bytes:
    run(open_folder(folder), score, search=EXPLORATIONS[name], settings=ExplorationSettings(**settings))
    return (folder / LABELS).read_bytes()


@pytest.mark.parametrize("name", EXPLORATIONS)
def test_labels_hold_what_was_explored(tmp_path, name):
    content = explore(tmp_path, score := Graded(), name)
    found = list(read_labels(tmp_path))
    assert [record["id"] for record in found] == IDS
    tried = [entry for record in found for entry in record["tried"]]
    assert len(tried) == len(score.asked) and not any("margin" in entry for entry in tried)
    assert len({entry["score"] for entry in tried}) > 3
    assert explore(tmp_path / "again", Graded(), name) == content


@pytest.mark.parametrize("name", EXPLORATIONS)
def test_runs_killed_in_any_round_end_with_the_same_bytes(tmp_path, name):
    content = explore(tmp_path / "whole", whole := Graded(), name)
    for limit in range(0, whole.rounds, 3):
        folder = tmp_path / str(limit)
        first, second = Graded(limit), Graded()
        with pytest.raises(Killed):
            explore(folder, first, name)
        assert explore(folder, second, name) == content
        assert Counter(first.asked + second.asked) == Counter(whole.asked)


def test_records(tmp_path, capsys):
    folder, output = tmp_path / "labels", tmp_path / "out" / "records.jsonl"
    explore(folder, Graded(), "random")
    labels_main(["records", str(folder), str(output)])
    records = [json.loads(line) for line in output.read_text(encoding="utf-8").split("\n")[:-1]]
    assert records == list(exploration_records(folder))
    labels = list(read_labels(folder))
    assert f"{len(records)} records" in capsys.readouterr().err
    assert len(records) == sum(label["evaluations"] for label in labels)
    assert all(list(record) == ["id", "pruned_layers", "output", "score"] for record in records)
    first = {record["id"]: record for record in reversed(records)}
    assert list(reversed(first)) == IDS and all(record["pruned_layers"] == [] for record in first.values())
    entry = labels[0]["tried"][1]
    assert records[1] == {"id": IDS[0]} | {name: entry[name] for name in ("pruned_layers", "output", "score")}
    assert sorted(records[1]["pruned_layers"] + entry["path"]) == to_path(full_route(DEPTH))


def test_records_of_a_tree_search_are_refused(tmp_path):
    run(open_folder(tmp_path / "labels"), Score())
    with pytest.raises(UserError, match="--search dfs or random"):
        write_records(tmp_path / "labels", tmp_path / "records.jsonl")
    assert not (tmp_path / "records.jsonl").exists() and len(list(tmp_path.iterdir())) == 1
    for wrong in ("labels/records.jsonl", "records.txt", "labels"):
        with pytest.raises(UserError, match="must be a file|would be among the labels"):
            labels_main(["records", str(tmp_path / "labels"), str(tmp_path / wrong)])
    with pytest.raises(UserError, match=HEADER):
        labels_main(["records", str(tmp_path), str(tmp_path / "records.jsonl")])


# The command


def test_only_the_arguments_of_a_search_are_in_its_header():
    config = AutoConfig.for_model("llama", num_hidden_layers=4)
    config._commit_hash = None  # of a folder

    def chosen(**arguments):
        return generate_work.make_header(DataGenerationArguments(**arguments), config)["arguments"]

    old = chosen()
    assert {"num_simulations", "reward", "verify", "seed", "scoring"} <= set(old)
    assert not {"search", "score", "num_scenarios", "subsets", "adapters"} & set(old)
    assert chosen(num_scenarios=3, subsets=2, score="json_match") == old
    assert chosen(search="dfs", num_simulations=3, subsets=2) == chosen(search="dfs")
    assert chosen(search="dfs", branching=4)["branching"] == 4 and "subsets" not in chosen(search="dfs")
    assert chosen(search="random", subsets=2)["subsets"] == 2 and "reward" not in chosen(search="random")
    every = {name for names in generate_work.OF_SEARCH.values() for name in names}
    assert every <= set(DataGenerationArguments.__dataclass_fields__)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"num_scenarios": 0}, "--num_scenarios 0"),
        ({"branching": 0}, "--branching 0"),
        ({"min_branching": 0}, "--min_branching 0"),
        ({"branching": 2, "min_branching": 3}, "--min_branching 3"),
        ({"subsets": 0}, "--subsets 0"),
        ({"stop_score": math.nan}, "--stop_score nan"),
        ({"search": "dfs", "verify": "alone"}, "--verify alone"),
        ({"search": "random", "reward": "margin"}, "--reward margin"),
    ],
)
def test_bad_values_are_named(given, named):
    (problem,) = DataGenerationArguments(**given).problems()
    assert problem.startswith(named)


@pytest.mark.parametrize("score", CALL_SCORES)
def test_scores_of_calls_need_calls(score):
    for example in (
        Example("own", "Capital?", "Paris"),
        Example("quiz", "Colour?", "red", ("red", "blue"), 0, "letter"),
    ):
        arguments = DataGenerationArguments(search="dfs", score=score)
        (problem,) = generate_work.scoring_problems(example, arguments)
        assert score in problem and example.dataset in problem
        assert generate_work.scoring_problems(example, replace(arguments, search="mcts")) == []


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    return save_tiny_base(tmp_path_factory.mktemp("base"), 5, **sizes)


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    """With choices and without; a random model answers some of both kinds right."""
    path = tmp_path_factory.mktemp("questions") / "things.jsonl"
    rng = random.Random(0)
    words = ("red", "green", "blue", "dark", "warm", "cold", "old", "new", "big", "small", "round", "fast", "slow")
    rows = []
    for number in range(10):
        row = {"question": f"What is thing {number} like?", "answer": rng.randrange(3), "choices": rng.sample(words, 3)}
        if number % 2:
            row = {"question": row["question"], "answer": r"[\s\S]*[aeiou]{2}[\s\S]*", "checker": "regex"}
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def listed(base: Path, questions: Path, output: Path, *others) -> list[str]:
    fixed = ["--model", base, "--dataset", questions, "--output_dir", output, "--group_size", 3, "--device", "cpu"]
    return list(map(str, [*fixed, *others]))


DFS = ("--search", "dfs", "--num_scenarios", "10")


@pytest.fixture(scope="module")
def single(base, questions, tmp_path_factory) -> bytes:
    """Labels of one process."""
    output = tmp_path_factory.mktemp("single") / "out"
    with pytest.MonkeyPatch.context() as patch:
        generate(patch, *listed(base, questions, output, *DFS))
    return (output / LABELS).read_bytes()


def records_of(content: bytes) -> list[dict]:
    return [parse_label(line, 5) for line in content.decode().split("\n")[:-1]]


def test_labels_of_a_real_model(single):
    records = records_of(single)
    assert len(records) == 10 and {record["base_correct"] for record in records} == {True, False}
    for record in records:
        assert record["evaluations"] == len(record["tried"]) <= 11
        assert (record["evaluations"] > 1) == record["base_correct"]
        assert all(entry["score"] == float(entry["correct"]) for entry in record["tried"])
        assert all(type(entry["score"]) is float for entry in record["tried"])
    opened = [entry for record in records if record["scoring"] == "generate" for entry in record["tried"]]
    assert len({entry["output"] for entry in opened}) > 10


@pytest.mark.slow
def test_a_killed_process_and_two_others_end_with_the_bytes_of_one(base, questions, single, tmp_path, monkeypatch):
    """The first is killed in the middle of a group, which the two that follow share with the rest."""
    output = tmp_path / "out"
    words = listed(base, questions, output, *DFS)
    command = [sys.executable, str(ROOT / "data_generation.py"), *words]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: process.poll() is not None or journals(output))
        finally:
            process.kill()
    assert not (output / LABELS).exists()
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as beside:
        generate(monkeypatch, *words)
        assert beside.wait(timeout=120) == 0
    assert (output / LABELS).read_bytes() == single
    assert not (output / PARTS).exists()


def test_another_search_does_not_continue_labels(base, questions, tmp_path, monkeypatch):
    few = listed(base, questions, tmp_path / "out", "--num_samples", "1")
    generate(monkeypatch, *few, *DFS)
    for others in (("--search", "random"), ("--search", "dfs"), ()):
        with pytest.raises(UserError, match="made otherwise"):
            generate(monkeypatch, *few, *others)


def save_adapted(folder: Path, base: Path, seed: int) -> Path:
    """A checkpoint of the base with random adapters."""
    fields = {"skip_action": "adapter"}
    config = RoutedLlamaForCausalLM.config_class.from_pretrained(base, **fields)
    torch.manual_seed(seed)
    parts = {name: torch.randn_like(part) for name, part in small_parts(RoutedLlamaForCausalLM(config).model).items()}
    save_checkpoint(folder, str(base), parts, fields, "copy", {"arguments": {"model_id": str(base)}})
    return folder


@pytest.mark.slow
def test_adapters_stand_in_for_pruned_layers(base, questions, single, tmp_path, monkeypatch):
    adapted, output = save_adapted(tmp_path / "adapted", base, 0), tmp_path / "out"
    words = listed(base, questions, output, *DFS, "--adapters", adapted)
    generate(monkeypatch, *words)
    arguments = read_header(output)["arguments"]
    assert arguments["adapters"] == str(adapted)
    assert arguments["adapters_sha256"] == {"model.safetensors": sha256(adapted / "model.safetensors")}
    plain = [record["tried"] for record in records_of(single)]
    tried = [record["tried"] for record in read_labels(output)]
    # The full path prunes nothing, so that no adapter runs.
    assert [entries[0] for entries in tried] == [entries[0] for entries in plain]
    assert [entries[1:] for entries in tried] != [entries[1:] for entries in plain]
    save_adapted(adapted, base, 1)
    with pytest.raises(UserError, match="adapters_sha256"):
        generate(monkeypatch, *words)


def test_folders_without_adapters_are_refused(base, tmp_path):
    assert DataGenerationArguments(model=str(base)).outside_problems() == []
    adapted = save_adapted(tmp_path / "adapted", base, 0)
    assert DataGenerationArguments(model=str(base), adapters=str(adapted)).outside_problems() == []
    for model, folder in ((base, tmp_path), (base, base), (DEFAULT_MODEL, adapted)):
        (problem,) = DataGenerationArguments(model=str(model), adapters=str(folder)).outside_problems()
        assert problem.startswith("--adapters: ") and str(folder) in problem
