"""Menus of paths: their SPEC, how they are made, and labels of every question along every path."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from conftest import save_tiny_base
from fake_search import DEPTH, IDS, REQUESTS, Killed, Score, make_header, open_folder, run
from test_exploration import save_adapted
from test_path_scoring import LAYERS, LOGLIKELIHOODS, TOKENIZER, WRITTEN, choosing, generating, make_model
from test_sharding import ENVIRONMENT, ROOT, generate, journals, wait_for
from transformers import AutoTokenizer

from routing.commands.work import generate as generate_work
from routing.common.errors import UserError
from routing.labels.arguments import DataGenerationArguments
from routing.labels.labelling import Labeller
from routing.labels.menus import influences, make_menu, most_serving, pooled_paths
from routing.labels.reading import HEADER, LABELS, read_header, read_labels
from routing.labels.records import label_line
from routing.labels.table import read_table
from routing.models.families import routed_class
from routing.scoring.packed import PathEvaluator
from routing.scoring.plain import Evaluator
from routing.scoring.requests import request_of
from routing.search.baselines import static_path
from routing.search.influence import influence_order
from routing.search.menu import (
    FromFile,
    Given,
    MenuSettings,
    Nested,
    Pooled,
    along_menu,
    joined,
    nested_routes,
    parse_spec,
    read_routes,
    spec_problems,
)
from routing.search.results import SearchResult, Verdict, run_search
from routing.search.routes import full_route, to_path
from routing.tasks import load_examples
from routing.tasks.drawn import QUESTIONS

FULL = full_route(LAYERS)


def not_called(*_):
    pytest.fail("this is not needed")


# SPEC


def test_specs_are_parsed():
    assert parse_spec("influence:0,2,4") == [Nested("influence", (0, 2, 4))]
    assert parse_spec("greedy: 3 + paths/my.json") == [Nested("greedy", (3,)), FromFile(Path("paths/my.json"))]
    assert parse_spec("labels:data/a, data/b:12") == [Pooled((Path("data/a"), Path("data/b")), 12)]
    assert parse_spec("path:0:2,3") == [Given("0:2,3")]
    assert parse_spec("labels:odd:name:2") == [Pooled((Path("odd:name"),), 2)]


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("", "'' has an empty part; give divergence:0,2,4, divergence-each:2,4, influence:0,2,4"),
        ("influence:1+", "'influence:1+' has an empty part"),
        ("influence", "'influence' is unknown"),
        ("influence:", "'influence:' must list numbers"),
        ("greedy:1,x", "'greedy:1,x' must list numbers"),
        ("greedy:-1", "'greedy:-1' must list numbers"),
        ("labels:3", "'labels:3' must name folders"),
        ("labels:a:0", "'labels:a:0' must name folders"),
        ("labels:a:b", "'labels:a:b' must name folders"),
        ("path:", "the path '' has the part ''; give half-open ranges"),
        ("path:0:2,9", "the path '0:2,9' has layer 9"),
        ("path:3,1", "the path [3, 1] does not keep the order"),
        (
            "best:3",
            "'best:3' is unknown; give divergence:0,2,4, divergence-each:2,4, influence:0,2,4, greedy:0,2,4",
        ),
    ],
)
def test_bad_specs_are_named(spec, named):
    (problem,) = spec_problems(spec, 8, 1)
    assert problem.startswith(f"--menu {named}")


def test_more_layers_than_there_are_cannot_go():
    assert spec_problems("influence:0,6", 8, 2) == spec_problems("greedy:7", 8, 0) == []
    (problem,) = spec_problems("influence:0,6,7", 8, 2)
    assert "7 layers cannot be left out; with 2 of 8 kept, 0..6 can" in problem
    assert len(spec_problems("greedy:8", 8, 0)) == 1, "one layer is always left"
    (problem,) = spec_problems("influence:1", 8, 8)
    assert problem.startswith("--menu_kept 8 must lie between 0 and 7")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[[0, 1", "cannot be read"),
        ("[]", "must hold a list of paths"),
        ("{}", "must hold a list of paths"),
        ("[3]", "3 must be a list of whole numbers"),
        ("[[0, 0.5]]", "must be a list of whole numbers"),
        ("[[0, 4]]", "has a layer outside 0..3"),
        ('["0:5"]', "the path '0:5' has layer 4"),
        ('["1,0"]', "does not keep the order of the layers"),
        ('["one"]', "half-open ranges"),
        ("[[1, 0]]", "does not keep the order of the layers"),
        ("[[1, 1, 1, 1]]", 'runs layer 1 more than twice; counts of layers go into an object, {"routes": [...]}'),
        ("[[]]", "without any layer"),
        ('{"routes": [[0, 0, 0, 0]]}', "without any layer"),
        ('{"routes": [[1, 1, 3, 1]]}', "must be 4 counts"),
        ('{"routes": [[1, 1, 1]]}', "must be 4 counts"),
    ],
)
def test_bad_files_of_paths_are_named(content, named, tmp_path):
    path = tmp_path / "paths.json"
    path.write_text(content)
    (problem,) = spec_problems(str(path), 4, 1)
    assert problem.startswith("--menu ") and str(path) in problem and named in problem
    (problem,) = spec_problems(str(tmp_path / "none.json"), 4, 1)
    assert "cannot be read" in problem


def test_files_of_paths(tmp_path):
    path, routes = tmp_path / "paths.json", [(1, 0, 2, 1), (1, 1, 1, 1)]
    for content in (
        [to_path(r) for r in routes],
        ["0,2,2,3", "0:4"],
        {"routes": routes},
        {"menu": {"spec": "x", "routes": routes}},
    ):
        path.write_text(json.dumps(content))
        assert read_routes(path, 4) == routes


def test_problems_of_the_arguments(tmp_path):
    def problems(**given) -> list[str]:
        return DataGenerationArguments(dataset="arithmetic", **given).problems()

    assert problems(search="menu", menu="influence:1", verify="paraphrase", reward="margin") == []
    for given, named in (
        ({"search": "menu"}, "--search menu needs --menu"),
        ({"menu": "influence:1"}, "--menu influence:1 is for --search menu, not mcts"),
        ({"search": "menu", "menu": "greedy:1", "menu_samples": 0}, "--menu_samples 0"),
    ):
        (problem,) = problems(**given)
        assert problem.startswith(named)
    own = tmp_path / "own.jsonl"
    own.write_text('{"question": "q", "answer": "a"}\n')
    (problem,) = DataGenerationArguments(dataset=str(own), search="menu", menu="greedy:1").problems()
    assert "file of your own, which has no validation" in problem
    assert DataGenerationArguments(dataset=str(own), search="menu", menu="influence:1").problems() == []


# How menus are made


def test_nested_and_joined():
    order = [3, 1, 2, 0]
    assert nested_routes(order, [2, 0, 3], 4) == [(1, 0, 1, 0), (1, 1, 1, 1), (1, 0, 0, 0)]
    assert joined(3, [(1, 0, 1), (1, 1, 1), (1, 0, 1), (1, 2, 1)]) == ((1, 1, 1), (1, 0, 1), (1, 2, 1))


def test_a_menu_of_influence_keeps_the_first_layers():
    menu = make_menu(parse_spec("influence:0,1,3"), 5, 2, lambda: [0, 4, 2, 1, 3], not_called, not_called)
    assert menu == ((1, 1, 1, 1, 1), (1, 1, 1, 1, 0), (1, 1, 0, 0, 0))


def test_a_menu_of_given_paths_needs_no_model():
    menu = make_menu(parse_spec("path:0:2,3:+path:0:5,4"), 5, 2, not_called, not_called, not_called)
    assert menu == ((1, 1, 1, 1, 1), (1, 1, 0, 1, 1), (1, 1, 1, 1, 2))


def test_greedy_finds_the_best_nested_paths_of_a_toy_problem():
    """A path is worth what its layers are: the best nested menu leaves out the cheapest ones first."""
    worth = [0.1, 0.5, 0.05, 0.4, 0.2, 0.3]
    asked = []

    def rewards(routes):
        asked.append(len(routes))
        return [sum(value for value, count in zip(worth, route) if count) for route in routes]

    menu = make_menu(parse_spec("greedy:0,1,3"), 6, 1, lambda: list(range(6)), rewards, not_called)
    assert menu == (full_route(6), (1, 1, 0, 1, 1, 1), (1, 1, 0, 1, 0, 0))
    assert asked == [5, 4, 3], "one step after the other, and layer 0 is kept"


def test_between_equal_rewards_the_layer_of_least_influence_goes():
    menu = make_menu(
        parse_spec("greedy:1,2"), 4, 0, lambda: [2, 0, 3, 1], lambda routes: [0.5] * len(routes), not_called
    )
    assert menu == (full_route(4), (1, 1, 0, 1), (0, 1, 0, 1))


def searched(folder: Path, found: list[dict[str, bool]]) -> Path:
    """Labels of a search that tried these routes on one question after the other."""
    folder.mkdir()
    (folder / HEADER).write_text(json.dumps(make_header()))
    lines = []
    for number, verdicts in enumerate(found):
        tried = {full_route(DEPTH): Verdict(False)} | {tuple(map(int, r)): Verdict(v) for r, v in verdicts.items()}
        example = replace(REQUESTS[0].example, question=f"{number} + 0 =", answer=str(number))
        lines.append(label_line(replace(REQUESTS[0], example=example), SearchResult(tried)))
    (folder / LABELS).write_text("".join(lines))
    return folder


def test_a_pooled_path_counts_for_other_questions_only(tmp_path):
    folder = searched(
        tmp_path / "mcts",
        [
            {"1100": True, "1010": True, "0111": True},
            {"1100": True, "1010": False},
            {"1101": False, "1010": True, "1211": True},
            {"1100": True, "1101": True, "1111": True, "0111": True, "1211": True},
        ],
    )  # fmt: skip
    # 1100 serves questions 1 and 3 (it was found on 0), 1010 serves 2, 1211 serves 3; 1101 was found on 3 and serves
    # nobody else; the full path is no part of the pool, and 0111 changes the first layer.
    assert pooled_paths(Pooled((folder,), 1), DEPTH, 1) == [(1, 1, 0, 0)]
    assert pooled_paths(Pooled((folder,), 3), DEPTH, 1) == [(1, 1, 0, 0), (1, 0, 1, 0), (1, 2, 1, 1)]
    assert (0, 1, 1, 1) in pooled_paths(Pooled((folder,), 4), DEPTH, 0)
    with pytest.raises(UserError, match="3 paths of .* were asked for; ask for fewer"):
        pooled_paths(Pooled((folder,), 4), DEPTH, 1)
    # The same question again is no other question.
    assert pooled_paths(Pooled((folder, folder), 3), DEPTH, 1) == pooled_paths(Pooled((folder,), 3), DEPTH, 1)


def test_paths_that_serve_most_open_questions_come_first():
    a, b, c, d = (1, 1, 0), (1, 0, 0), (0, 1, 0), (1, 2, 1)
    served = {a: {"1", "2", "3"}, b: {"1", "2"}, c: {"4"}, d: {"3", "2"}}
    # c serves what a leaves; then all count again: b before d, which serves as many and is longer.
    assert most_serving(served, 9) == [a, c, b, d]
    assert most_serving(served, 2) == [a, c] and most_serving({}, 2) == []


# The search


def test_a_menu_is_asked_in_its_order():
    menu = joined(4, [(1, 0, 1, 1), (1, 2, 1, 0)])
    result = run_search(along_menu(4, MenuSettings(menu), Random(0)), lambda route: Verdict(route[1] == 0))
    assert tuple(result.verdicts) == menu and result.best == (1, 0, 1, 1) and not result.base_correct


@pytest.mark.parametrize("score", [None, "accuracy"])
def test_every_question_along_every_path_is_the_plain_evaluators_verdict(score):
    _, model = make_model()
    requests = [r for kind in WRITTEN for r in generating(model, kind, 1, Random(1))]
    requests += [r for kind in LOGLIKELIHOODS for r in choosing(kind, 1, Random(1))]
    menu = joined(LAYERS, [(1, 1, 0, 1, 1), (1, 1, 2, 0, 1), (0, 1, 1, 1, 1)])
    evaluator = PathEvaluator(model, TOKENIZER, batch_size=7, score=score)
    labeller = Labeller(LAYERS, MenuSettings(menu), 0, evaluator, search=along_menu)
    found = labeller.search_group(requests, {}, lambda verdicts: None)
    plain = Evaluator(model, TOKENIZER, batch_size=1, score=score)
    right = 0
    for request, result in zip(requests, found, strict=True):
        assert tuple(result.verdicts) == menu
        expected = plain.verdicts([request] * len(menu), menu)
        assert [v._replace(margin=None) for v in expected] == list(result.verdicts.values())
        right += sum(verdict.correct for verdict in expected)
    assert 0 < right < len(requests) * len(menu)


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    menu = MenuSettings(joined(DEPTH, [(1, 0, 1, 1), (1, 0, 0, 1)]))
    kind = {"search": along_menu, "settings": menu}
    whole = Score(share=0.5)
    run(open_folder(tmp_path / "whole"), whole, **kind)
    with pytest.raises(Killed):
        run(open_folder(tmp_path / "killed"), Score(limit=4, share=0.5), **kind)
    rest = Score(share=0.5)
    run(open_folder(tmp_path / "killed"), rest, **kind)
    assert (tmp_path / "killed" / LABELS).read_bytes() == (tmp_path / "whole" / LABELS).read_bytes()
    assert len(whole.asked) == len(IDS) * 3 and 0 < len(rest.asked) < len(whole.asked)


def test_a_menu_is_made_once_and_not_compared(tmp_path):
    questions = '{"dataset": "d", "question": "q", "answer": "a"}\n'
    made = []

    def opened(menu, **arguments):
        def settle():
            made.append(menu)
            return {"menu": menu}

        header = make_header(**arguments)
        return generate_work.LabelFolder(tmp_path, header, 2, lambda path: path.write_text(questions), settle)

    assert opened("first").header["menu"] == "first"
    assert opened("second").header["menu"] == "first" and made == ["first"]
    with pytest.raises(UserError, match="seed: was 0, now 1"):
        opened("third", seed=1)


# The command, with a real model


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    return save_tiny_base(tmp_path_factory.mktemp("base"), 5, **sizes)


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "things.jsonl"
    rng = random.Random(0)
    words = ("red", "green", "blue", "dark", "warm", "cold", "old", "new", "big")
    rows = [
        {"question": f"What is thing {number} like?", "answer": rng.randrange(3), "choices": rng.sample(words, 3)}
        for number in range(10)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def words(base, dataset, output, menu, *others) -> list[str]:
    fixed = ["--model", base, "--dataset", dataset, "--output_dir", output, "--group_size", 3, "--device", "cpu"]
    return list(map(str, [*fixed, "--search", "menu", "--menu", menu, *others]))


SPEC = "influence:0,1,3"


@pytest.fixture(scope="module")
def single(base, questions, tmp_path_factory) -> Path:
    """Labels of one process."""
    output = tmp_path_factory.mktemp("single") / "out"
    with pytest.MonkeyPatch.context() as patch:
        generate(patch, *words(base, questions, output, SPEC))
    return output


def test_a_table_of_a_real_model(base, questions, single):
    """Against the plain evaluator, and influence as it is defined."""
    model = routed_class("llama").from_pretrained(base).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    requests = {e.id: request_of(e, "auto", tokenizer) for e in load_examples(str(questions), "search", None, 0)}
    order = influence_order(influences(PathEvaluator(model, tokenizer), list(requests.values())))
    order.remove(0)
    menu = [tuple(int(layer not in order[:k]) for layer in range(5)) for k in (0, 1, 3)]
    assert read_header(single)["menu"] == {"spec": SPEC, "routes": [list(route) for route in menu]}
    table, plain = read_table([single]), Evaluator(model, tokenizer, batch_size=1)
    assert table.routes == menu and set(table.ids) == set(requests) and 0 < table.rewards.mean() < 1
    for name, row in zip(table.ids, table.rewards.tolist(), strict=True):
        assert [v.correct for v in plain.verdicts([requests[name]] * 3, menu)] == row
    assert not (single / "menu.parts").exists()


def test_a_rerun_makes_no_menu_anew(base, questions, single, monkeypatch):
    before = (single / HEADER).read_bytes()
    monkeypatch.setattr(generate_work, "menu_field", not_called)
    generate(monkeypatch, *words(base, questions, single, SPEC))
    assert (single / HEADER).read_bytes() == before
    for others in (["--menu_kept", 2], ["--menu_samples", 3], ["--reward", "margin"]):
        with pytest.raises(UserError, match=others[0].removeprefix("--")):
            generate(monkeypatch, *words(base, questions, single, SPEC, *others))


def test_the_menu_of_a_folder_serves_another(base, questions, single, tmp_path, monkeypatch):
    """Other splits take the menu from the header; a file that changes is another menu."""
    copy = tmp_path / "menu.json"
    copy.write_bytes((single / HEADER).read_bytes())
    arguments = words(base, questions, tmp_path / "out", copy)
    generate(monkeypatch, *arguments)
    assert (tmp_path / "out" / LABELS).read_bytes() == (single / LABELS).read_bytes()
    assert len(read_table([single]).routes) == len(read_table([tmp_path / "out"]).routes) == 3
    copy.write_text("[[0, 1, 2, 3, 4, 4]]")
    with pytest.raises(UserError, match="menu_sha256"):
        generate(monkeypatch, *arguments)


def test_margins_scores_and_retests(base, questions, single, tmp_path, monkeypatch):
    plain = list(read_labels(single))
    generate(monkeypatch, *words(base, questions, tmp_path / "margin", SPEC, "--reward", "margin"))
    for record, other in zip(plain, read_labels(tmp_path / "margin"), strict=True):
        assert all("margin" not in entry for entry in record["tried"])
        assert all(type(entry["margin"]) is float for entry in other["tried"])
        assert [e["correct"] for e in record["tried"]] == [e["correct"] for e in other["tried"]]
    retested = words(base, questions, tmp_path / "verify", SPEC, "--verify", "paraphrase")
    generate(monkeypatch, *retested)
    entries = [pair for one, two in zip(plain, read_labels(tmp_path / "verify"), strict=True)
               for pair in zip(one["tried"], two["tried"], strict=True)]  # fmt: skip
    assert all(one["correct"] == (two["correct"] or two.get("lucky", False)) for one, two in entries)
    assert any(two.get("lucky") for _, two in entries) and any(two["correct"] for _, two in entries)


@pytest.mark.slow
def test_greedy_of_a_real_model_with_adapters(base, tmp_path, monkeypatch):
    """The steps are those of static_path on the plain evaluator's verdicts."""
    adapted = save_adapted(tmp_path / "adapted", base, 0)
    output = tmp_path / "out"
    arguments = words(
        base, "arithmetic", output, "greedy:1,2", "--adapters", adapted, "--menu_samples", 6, "--num_samples", 2
    )
    generate(monkeypatch, *arguments)
    model = generate_work.load_adapted(adapted, generate_work.DTYPES["float32"], "cpu")
    tokenizer = AutoTokenizer.from_pretrained(base)
    drawn = {split: [request_of(e, "auto", tokenizer) for e in load_examples("arithmetic", split, 6, 0)]
             for split in ("search", "validation")}  # fmt: skip
    plain = Evaluator(model, tokenizer, batch_size=1)

    def rewards(routes):
        requests = drawn["validation"]
        return [sum(v.correct for v in plain.verdicts(requests, [route] * len(requests))) for route in routes]

    order = [layer for layer in influence_order(influences(PathEvaluator(model, tokenizer), drawn["search"])) if layer]
    expected = [full_route(5), *(list(step.route) for step in static_path(5, rewards, 2, order))]
    assert read_header(output)["menu"]["routes"] == [list(route) for route in expected]


EXPLORED = ("--search", "random", "--subsets", 8, "--stop_score", -1)


def test_pooled_paths_of_a_real_search(base, questions, tmp_path, monkeypatch):
    mcts = tmp_path / "mcts"
    fixed = ["--model", base, "--dataset", questions, "--device", "cpu"]
    generate(monkeypatch, *map(str, [*fixed, "--output_dir", mcts, *EXPLORED]))
    generate(monkeypatch, *words(base, questions, tmp_path / "out", f"labels:{mcts}:2+influence:1"))
    header = read_header(tmp_path / "out")
    assert header["menu"]["routes"][1:3] == [list(r) for r in pooled_paths(Pooled((mcts,), 2), 5, 1)]
    assert header["arguments"]["menu_sha256"].keys() == {str(mcts / LABELS)}
    (problem,) = DataGenerationArguments(
        model=str(base), dataset="arithmetic", search="menu", menu=f"labels:{tmp_path}:2"
    ).outside_problems()  # fmt: skip
    assert problem.startswith("--menu labels: ") and "holds no labels" in problem


@pytest.mark.slow
def test_a_killed_process_and_two_others_end_with_the_bytes_of_one(base, questions, single, tmp_path, monkeypatch):
    output = tmp_path / "out"
    arguments = words(base, questions, output, SPEC)
    command = [sys.executable, str(ROOT / "data_generation.py"), *arguments]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: process.poll() is not None or (output / QUESTIONS).exists())
        finally:
            process.kill()
    assert not (output / LABELS).exists()
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as beside:
        generate(monkeypatch, *arguments)
        assert beside.wait(timeout=120) == 0
    assert (output / LABELS).read_bytes() == (single / LABELS).read_bytes()
    assert read_header(output)["menu"] == read_header(single)["menu"]
    assert not journals(output)
