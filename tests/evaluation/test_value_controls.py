"""Controls of menu routers in evaluation.py, and what is drawn in place of routes."""

from __future__ import annotations

import json
import sys
from collections import Counter
from random import Random

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from test_value_calibrate import LAYERS, MENU, save_menu_checkpoint
from test_value_table import write_folder

from routing.commands import evaluate as evaluation
from routing.common.errors import UserError
from routing.common.paired_bounds import Pairs, difference_lower_bound
from routing.common.statistics import against_mixture, lower_bound
from routing.evaluation import comparison
from routing.evaluation.lm import Key, Row
from routing.evaluation.methods import TaskResult, drawn_of
from routing.scoring.controls import around, drawn_like, like_route

TASK = "routed_arithmetic"


def test_random_routes_keep_counts_and_first_layers():
    """A route that skips two layers and repeats two is no full path in disguise."""
    rng, own = Random(0), (1, 1, 0, 2, 0, 2, 1, 1)
    found = [like_route(own, rng, first=2) for _ in range(50)]
    assert all(route[:2] == (1, 1) and Counter(route) == Counter(own) for route in found)
    assert len(set(found)) > 20
    # Shares of tokens have no counts of their own.
    assert sum(like_route((1.0, 1.0, 0.5, 0.5), rng, first=2)) == 3


def test_drawn_routes_are_the_models_own():
    routes = [tuple(MENU[at % 3]) for at in range(40)]
    rows = {Key(at, choice): Row(route, 5, 2) for at, route in enumerate(routes) for choice in range(1 + at % 2)}
    draw = drawn_of(TaskResult({}, rows, 1.0, 1.0, "2026-01-02"), seed=0)
    found = {key: draw(key) for key in rows}
    assert Counter(found.values()) == Counter(row.route for row in rows.values())
    assert all(found[Key(at, 0)] == found[Key(at, 1)] for at in range(1, 40, 2))
    assert any(found[key] != row.route for key, row in rows.items())
    assert sorted(drawn_like([3, 1, 2], 5)) == [1, 2, 3]


def test_the_menus_paths_around_a_mean():
    menu = [tuple(route) for route in MENU]  # 6, 5, 4 and 3 layers
    assert around(menu, 4.4) == [menu[2], menu[1]]
    assert around(menu, 5.0) == [menu[1]] and around(menu, 2.0) == [menu[3]] and around(menu, 7.0) == [menu[0]]


def test_a_mixture_of_static_paths_by_hand():
    model, low, high = (
        {i: bool(v) for i, v in enumerate(values)} for values in ([1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 1])
    )
    found = against_mixture(model, [low, high], [0.25, 0.75])
    gains = [0, 0.25, 1, -0.75]
    expected = ttest_1samp(gains, 0, alternative="greater")
    assert found["accuracy"] == pytest.approx(0.625) and found["difference"] == pytest.approx(np.mean(gains))
    assert found["p"] == pytest.approx(expected.pvalue)
    assert found["lower_bound"] == pytest.approx(expected.confidence_interval(0.95).low)
    assert against_mixture(low, [low], [1.0])["p"] == 1.0
    two = against_mixture({0: True, 1: True}, [{0: False, 1: True}], [0.75])  # gains 1 and 0.25: enough for a test
    assert two["p"] == pytest.approx(ttest_1samp([1, 0.25], 0, alternative="greater").pvalue)


def test_the_lower_bound_of_paired_answers():
    first, second = {i: i < 60 for i in range(100)}, {i: 5 <= i < 62 for i in reversed(range(100))}
    assert lower_bound(first, second) == difference_lower_bound(Pairs(5, 2, 100)) < -0.03


# The command.


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A checkpoint, its shuffled control, and the table that both learned from."""
    folder = tmp_path_factory.mktemp("models")
    rewards = [[1, 1, 0, 0]] * 8 + [[0, 0, 0, 1]] * 2
    table = write_folder(folder / "table", rewards, "arithmetic", [tuple(route) for route in MENU])
    own = save_menu_checkpoint(folder)
    shuffled = save_menu_checkpoint(folder, seed=1)
    record = json.loads((shuffled / "training.json").read_text())
    record["arguments"]["shuffle_questions"] = True
    (shuffled / "training.json").write_text(json.dumps(record))
    return own, shuffled, table


def run(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluation.py", *map(str, words)])
    evaluation.main()


def test_all_controls_of_a_menu_router(checkpoints, monkeypatch, capsys):
    own, shuffled, table = checkpoints
    words = ["--checkpoint", own, "--tasks", TASK, "--limit", 6, "--seeds", 1, "--table", table]
    controls = "static,random,drawn,dataset,shuffled"
    run(monkeypatch, *words, "--controls", controls, "--shuffled_checkpoint", shuffled)
    (result,) = json.loads((own / "evaluation.json").read_text())
    found = {control["name"]: control for control in result["controls"]}
    mean = result["routed"]["layers"]
    statics = [control["layers"] for control in found.values() if control["method"] == "static"]
    assert statics == sorted({n for n in (int(mean), -int(-mean // 1)) if 3 <= n < LAYERS})
    assert found["drawn, seed 0"]["layers"] == pytest.approx(mean) == found["random, seed 0"]["layers"]
    # At 0.01 a layer the second path, of five layers, is the best of the table.
    assert found["data set's path"]["layers"] == 5
    assert "shuffled" in found
    # Base and router answer nothing right: a bound of six questions answered alike.
    assert result["difference_lower_bound"] == pytest.approx(difference_lower_bound(Pairs(0, 0, 6)))
    assert all("routed_lower_bound" in control for control in found.values())
    assert result["static_at_equal_layers"]["layers"] == pytest.approx(mean)
    printed = " ".join(capsys.readouterr().out.split())
    assert "routed against static paths at equal mean layers" in printed
    assert "data set" in (own / "evaluation.html").read_text() and "drawn, seed 0" in (own / "README.md").read_text()


def test_controls_that_do_not_fit_are_refused(checkpoints, tmp_path, monkeypatch):
    own, shuffled, table = checkpoints
    words = ["--checkpoint", own, "--tasks", TASK, "--limit", 2, "--no_base"]
    monkeypatch.setattr(comparison, "load_checkpoint", None)  # Before a model is loaded.
    with pytest.raises(UserError) as error:
        run(monkeypatch, *words, "--controls", "dataset,shuffled")
    assert "--controls shuffled and --shuffled_checkpoint go together" in str(error.value)
    assert "--controls dataset: the checkpoint does not say what it learned from" in str(error.value)
    with pytest.raises(UserError, match="was trained on its own questions"):
        run(monkeypatch, *words, "--controls", "shuffled", "--shuffled_checkpoint", own)
    other = write_folder(tmp_path / "other", [[1, 0]], "arithmetic", [tuple(route) for route in MENU[:2]])
    with pytest.raises(UserError, match="has another menu than the checkpoint"):
        run(monkeypatch, *words, "--controls", "dataset", "--table", other)
    words[3] = "routed_piqa"
    with pytest.raises(UserError, match="routed_piqa is of none of the data sets of .*arithmetic"):
        run(monkeypatch, *words, "--controls", "dataset", "--table", table)
    with pytest.raises(UserError, match="nowhere holds no labels"):
        run(monkeypatch, *words, "--controls", "dataset", "--table", tmp_path / "nowhere")
    assert comparison.dataset_of("routed_arithmetic") == "arithmetic"
