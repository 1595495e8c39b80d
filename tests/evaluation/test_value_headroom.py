"""Headroom of planted tables whose answer is known."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from test_value_table import write_folder

from routing.commands import headroom as command
from routing.common.errors import UserError
from routing.evaluation import headroom
from routing.evaluation.headroom import (
    Gain,
    describe,
    effects,
    hull,
    matched,
    measure,
    minus_full,
    mixed,
    shortest_safe,
    simultaneous_bounds,
    variance_shares,
)
from routing.labels.arguments import DataGenerationArguments
from routing.labels.table import Table
from routing.tasks.drawn import DrawnExamples, draw
from routing.tasks.examples import Example
from routing.tasks.offline import ARITHMETIC_SHOTS
from routing.tasks.variants import rephrased
from routing.training.value.text_features import text_features

ROUTES = [(1,) * 10, (1,) * 8 + (0,) * 2, (1,) * 5 + (0,) * 5]


def table_of(rewards, datasets, prompts, routes=ROUTES) -> Table:
    records = []
    for number, (name, prompt) in enumerate(zip(datasets, prompts)):
        example = Example(name, f"{prompt} {number}", "1", checker="number")
        records.append(
            {"question": example.question, "prompt": example.question, "dataset": name, "answer": "1", "choices": [],
             "gold": None, "checker": "number", "accepted": [], "scoring": "generate", "id": example.id}
        )  # fmt: skip
    ids = [record["id"] for record in records]
    return Table(routes, np.array(rewards, dtype=float), list(datasets), ids, records, [0] * len(ids), [{}])


def drawn(chances, datasets, prompts, seed=0) -> Table:
    return table_of(np.random.default_rng(seed).random(np.shape(chances)) < chances, datasets, prompts)


def labelled(examples: list[Example]) -> Table:
    """A table of examples as labels keep them: without shots and form."""
    names = ("question", "answer", "dataset", "checker", "gold")
    records = [
        {name: getattr(e, name) for name in names} | {"choices": list(e.choices), "accepted": [], "id": e.id}
        for e in examples
    ]
    ids = [e.id for e in examples]
    return Table(ROUTES, np.zeros((len(ids), 3)), [e.dataset for e in examples], ids, records, [0] * len(ids), [{}])


def sides(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random(count) < 0.5


def test_effects_are_orthogonal_and_add_up():
    rewards = np.random.default_rng(0).random((40, 4))
    names = ["a"] * 25 + ["b"] * 15
    found = effects(rewards, names)
    total = ((rewards - rewards.mean()) ** 2).sum()
    assert found.question + found.path + found.by_dataset + (found.residual**2).sum() == pytest.approx(total)
    assert np.abs(found.residual.mean(1)).max() < 1e-12 and np.abs(found.residual[:25].mean(0)).max() < 1e-12
    assert found.freedom == 38 * 3


def test_planted_shares_come_back():
    """Variances 4 of questions, 1 of paths × data sets (± 1), 0 of paths, 1 of path × question, 1 of noise."""
    rng, count, paths = np.random.default_rng(0), 1500, 4
    sign = np.where(np.arange(paths) % 2, 1.0, -1.0)
    names = np.where(np.arange(count) % 2, "a", "b")
    planted = rng.normal(0, 2, (count, 1)) + np.where(names == "a", 1.0, -1.0)[:, None] * sign
    stable = rng.normal(0, 1, (count, paths))
    one, two = (planted + stable + rng.normal(0, 1, (count, paths)) for _ in range(2))
    routes = [(1,) * 10] + [(1,) * (9 - k) + (0,) * (1 + k) for k in range(3)]
    first, second = (table_of(part, names, ["x"] * count, routes) for part in (one, two))
    alone, both = variance_shares(first), variance_shares(first, second)
    assert alone["question"] == pytest.approx(4 / 7, abs=0.05)
    assert alone["path"] < 0.01
    assert alone["path × data set"] == pytest.approx(1 / 7, abs=0.03)
    assert both["path × question"] == pytest.approx(both["noise"], rel=0.15)
    assert both["returns under other words"]["of path × question"] == pytest.approx(0.5, abs=0.05)
    assert sum(alone.values()) == pytest.approx(1)
    low, high = both["returns under other words"]["ci95"]
    assert low < 0.5 < high and high - low < 0.1


def test_pure_noise_has_no_headroom_whatever_hindsight_says():
    """One path is as good as another for every question: the best of three verdicts is luck."""
    table = drawn(np.full((800, 3), 0.5), ["a"] * 800, [f"word{n % 7}" for n in range(800)])
    report = measure(table)
    assert report["hindsight"] > 0.8 and not report["route"]
    assert all(abs(row["gain"]) < 0.08 and row["gain_lower_bound"] < 0 for row in report["gains"])
    assert report["variance"]["path × data set"] < 0.01
    assert report["sentence"].startswith("Do not route, take one static path")


def test_a_text_that_tells_the_path_is_found():
    """Half of the questions say "easy" and lose nothing along the shortest path, which the others need whole."""
    easy = sides(1000)
    chances = np.where(easy[:, None], [0.8, 0.8, 0.8], [0.8, 0.3, 0.1])
    report = measure(drawn(chances, ["a"] * 1000, np.where(easy, "easy sum", "hard sum")))
    row = max(report["gains"], key=lambda row: row["gain"])
    # At half of the questions along 5 layers and half along 10: 0.8, where a coin between both gives 0.625.
    assert row["layers"] == pytest.approx(7.5, abs=0.3) and row["gain"] == pytest.approx(0.175, abs=0.05)
    assert row["gain_ci95"][0] < 0.175 < row["gain_ci95"][1]
    assert report["route"] and report["sentence"].startswith("Route: a router that knows the text of its prompt gains")
    assert report["gains"][0]["policy"] == "text"  # One data set: no table of data sets.


def test_data_sets_that_differ_are_found_and_text_knows_most_of_it():
    first = sides(1000)
    chances = np.where(first[:, None], [0.7, 0.7, 0.7], [0.7, 0.4, 0.1])
    report = measure(drawn(chances, np.where(first, "a", "b"), np.where(first, "of a", "of b")))
    by_cost = {(row["policy"], row["cost"]): row["gain"] for row in report["gains"]}
    assert by_cost["data set", 0.01] == pytest.approx(0.15, abs=0.05) and report["route"]
    assert 0.07 < by_cost["text", 0.01] < by_cost["data set", 0.01] + 0.02
    assert "one that knows" in report["sentence"]
    assert report["by_dataset"]["a"][2] == pytest.approx(0.7, abs=0.08)


def test_a_shorter_path_that_loses_nothing_is_recommended():
    right = sides(3000)
    rewards = np.stack([right, right, right & sides(3000, 5)], axis=1)
    report = measure(table_of(rewards, ["a"] * 3000, ["x"] * 3000))
    assert report["static_path"] == {"index": 1, "max_loss": 0.02, "layers": 8}
    assert "8 of 10 layers, without layers 8, 9" in report["sentence"] and not report["route"]


def test_of_equally_long_safe_paths_the_better_is_recommended_and_none_as_long_as_the_model():
    routes = [*ROUTES[:2], (0, 0, *[1] * 8), (0, 2, *[1] * 8)]  # 10, 8, 8 and 10 layers
    rewards = np.ones((900, 4))
    rewards[:3, 2] = 0
    table = table_of(rewards, ["sums"] * 900, ["a"] * 900, routes)
    assert shortest_safe(table, 0.02) == 1
    rewards[:, 1:3] = 0
    assert shortest_safe(table_of(rewards, ["sums"] * 900, ["a"] * 900, routes), 0.02) == 0


def test_the_hull_by_hand():
    layers, means = np.array([10, 8, 8, 6, 4]), np.array([0.5, 0.4, 0.3, 0.42, 0.1])
    assert hull(layers, means) == [4, 3, 0]
    grid = np.array([3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0])
    values = mixed(layers, np.tile(means, (7, 1)), [4, 3, 0], grid)
    assert values == pytest.approx([0.1, 0.1, 0.26, 0.42, 0.46, 0.5, 0.5])
    # A shorter path that is better than all longer ones stands alone from there on.
    assert hull(np.array([10, 5, 7]), np.array([0.4, 0.6, 0.5])) == [1]
    assert mixed(np.array([10, 5]), np.array([[0.4, 0.6]]), [1], np.array([9.0])) == pytest.approx([0.6])


def test_simultaneous_bounds_are_wider_than_single_ones():
    rng = np.random.default_rng(0)
    gains = [Gain("text", 0.0, 0, 0, np.vstack([[0.1, 0, 0], rng.normal(0.1, 0.01, (4000, 3))])) for _ in range(8)]
    single, many = simultaneous_bounds(gains[:1])[0], simultaneous_bounds(gains)[0]
    assert single == pytest.approx(0.1 - 1.645 * 0.01, abs=0.001) and many < single - 0.005
    still = Gain("text", 0.0, 0, 0, np.zeros((4001, 3)))
    assert simultaneous_bounds([still, gains[0]])[0] == 0.0


def test_other_words_part_luck_from_what_returns():
    """What one wording's verdicts choose is judged by the other's."""
    example = Example("a", "3 + 5 =", "8", checker="number", shots=ARITHMETIC_SHOTS)
    assert rephrased(example).id != example.id
    easy, prompts = sides(600), [f"q{n}" for n in range(600)]
    chances = np.where(easy[:, None], [0.1, 0.9, 0.9], [0.9, 0.1, 0.1])
    tables = [drawn(chances, ["a"] * 600, prompts, seed) for seed in (3, 4)]
    report = measure(*tables)
    rows = {row["cost"]: row for row in report["other_wording"]}
    # Seeing one verdict of each of three paths is to see nearly all.
    assert rows[0.0]["reward"] > 0.78 and report["hindsight"] > 0.9
    assert report["variance"]["path × question"] > report["variance"]["noise"]
    assert report["repeated_questions"] == 600
    luck = [drawn(np.full((600, 3), 0.5), ["a"] * 600, prompts, seed) for seed in (5, 6)]
    report = measure(*luck)
    assert all(abs(row["gain"]) < 0.09 for row in report["other_wording"])
    assert abs(report["variance"]["returns under other words"]["of path × question"]) < 0.1


def test_the_same_questions_are_drawn_in_other_words(tmp_path):
    """In the same order, each with the id by which `matched` finds it."""
    names = "arithmetic,procedural,piqa"
    draw(names, "validation", 12, 0, tmp_path / "first.jsonl")
    draw(names, "validation", 12, 0, tmp_path / "again.jsonl", rephrased)
    first, again = (list(DrawnExamples(tmp_path / f"{name}.jsonl")) for name in ("first", "again"))
    assert again == [rephrased(example) for example in first] and len(first) == 36
    assert any(one.question != two.question for one, two in zip(first, again))
    assert all(two.form == 1 for two in again[24:]) and [e.id for e in first[24:]] == [e.id for e in again[24:]]
    tables = [labelled(examples) for examples in (first, again)]
    one, two = matched(tables[0], labelled(again[::-1]))
    assert one.ids == tables[0].ids and two.ids == tables[1].ids
    arguments = DataGenerationArguments(dataset="arithmetic", wording=1, verify="paraphrase")
    assert any("--verify paraphrase would ask in the words of --wording 1" in text for text in arguments.problems())


def test_text_features_know_words_and_lengths():
    found = text_features(["add 3 and 4"] * 30 + ["take 12345 from 7"] * 20 + ["add rare 1"])
    assert (found[0] == found[29]).all() and (found[0] != found[30]).any()
    assert found[0, -3:] == pytest.approx(np.log1p([11, 4, 2]))
    # "rare" is left out, so the last prompt is told by its other words.
    assert set(np.unique(found[:, :-3])) == {0.0, 1.0} and 10 < found.shape[1] < 40
    assert text_features(["all alike"] * 9).shape == (9, 3)


def test_each_path_is_compared_with_the_full_one_question_by_question():
    rewards = np.array([[1, 1], [0, 1], [1, 0], [1, 0], [0, 0], [1, 0], [1, 1], [1, 1.0]])
    table = SimpleNamespace(rewards=rewards)
    found, gains = minus_full(table, 1), rewards[:, 1] - rewards[:, 0]
    assert found["minus_full"] == gains.mean() == -0.25
    assert found["minus_full_ci95"] == pytest.approx(-0.25 + np.array([-1, 1]) * 1.959964 * gains.std(ddof=1) / 8**0.5)
    assert minus_full(table, 0) == {"minus_full": 0.0, "minus_full_ci95": [0.0, 0.0]}


def test_paths_in_words():
    assert describe(ROUTES[0]) == "10 of 10 layers, the full path"
    assert describe((1, 2, 0)) == "3 of 3 layers, without layers 2 and with layers 1 twice"


# The command.


def test_the_command_writes_report_and_pictures(tmp_path, capsys):
    rng = np.random.default_rng(0)
    routes = [(1, 1, 1, 1), (1, 1, 0, 1), (1, 2, 0, 0)]
    folders = [
        write_folder(tmp_path / name, rng.random((60, 3)) < 0.5, name, routes, first=100 * at)
        for at, name in enumerate(("a", "b"))
    ]
    again = [
        write_folder(tmp_path / f"{name}-again", rng.random((60, 3)) < 0.5, name, routes, first=100 * at)
        for at, name in enumerate(("a", "b"))
    ]
    words = [*map(str, folders), "--again", *map(str, again), "--costs", "0,0.1", "--output", str(tmp_path / "out")]
    command.main(words)
    report = json.loads((tmp_path / "out" / "headroom.json").read_text())
    assert report["questions"] == report["repeated_questions"] == 120 and len(report["gains"]) == 4
    assert len(report["labels"]) == 4 and report["sentence"] in capsys.readouterr().out
    assert (tmp_path / "out" / "headroom.png").stat().st_size > 5000
    assert (tmp_path / "out" / "headroom_datasets.png").stat().st_size > 5000
    command.main([str(folders[0]), "--costs", "0"])
    assert (folders[0] / "headroom.json").exists()


def test_what_cannot_be_measured_is_refused(tmp_path):
    routes = [(1, 1, 1, 1), (1, 1, 0, 1)]
    good = write_folder(tmp_path / "good", np.eye(2), routes=routes)
    other = write_folder(tmp_path / "other", np.eye(2), routes=routes, first=50)
    with pytest.raises(UserError, match="--again has none of the questions of LABELS.*--wording 1"):
        command.main([str(good), "--again", str(other)])
    menu = write_folder(tmp_path / "menu", np.eye(3), first=9)
    with pytest.raises(UserError, match="--again has another menu"):
        command.main([str(good), "--again", str(menu)])
    with pytest.raises(UserError, match="all rewards of the table are the same"):
        command.main([str(write_folder(tmp_path / "same", np.ones((4, 2)), routes=routes))])
    with pytest.raises(UserError, match="full path alone"):
        command.main([str(write_folder(tmp_path / "one", [[1], [0]], routes=routes[:1]))])
    with pytest.raises(UserError) as error:
        command.main([str(good), "--costs", "a", "--folds", "1", "--max_loss", "1", "--seed", "-1"])
    for message in ("--costs 'a' must be numbers", "--folds 1 must", "--max_loss 1.0 must", "--seed -1 must"):
        assert message in str(error.value)
    assert headroom.COSTS[0] == 0
