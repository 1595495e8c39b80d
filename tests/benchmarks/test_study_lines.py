"""benchmarks/study_lines.py: a router against its study's static row, mixed with the full model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_study import N, fake_plan, fake_study
from study_lines import compared, line, main

from routing.common.errors import UserError
from routing.common.files import write_json
from routing.study.results import Answers, all_answers
from routing.study.stages import Place


def test_the_line_by_hand(tmp_path):
    plan = fake_plan(tasks=("sums",), seeds=(0,))
    fake_study(tmp_path, plan)
    place = Place(plan, Path("plan.yaml"), False, tmp_path, "m", 0)
    # Of ten layers the static row runs 8 and answers half; the router, as good as the full model, runs 8 too.
    verdicts, share = line(Answers(place, "sums"), 0.2)
    assert share == 0 and verdicts.mean() == 0.5
    path = Answers.path(place, "sums")
    saved = json.loads(path.read_text())
    next(one for one in saved["instances"] if one["method"] == "value")["layers"] = [9.5] * N
    write_json(path, saved)
    verdicts, share = line(Answers(place, "sums"), 0.2)
    assert share == pytest.approx(0.75) and verdicts.mean() == pytest.approx(0.75 * 0.75 + 0.25 * 0.5)
    next(one for one in saved["instances"] if one["method"] == "value")["layers"] = [7.0] * N
    write_json(path, saved)
    assert line(Answers(place, "sums"), 0.2)[1] == 0, "the row itself, with more layers than the router"


def test_each_task_and_all_together(tmp_path):
    plan = fake_plan()
    fake_study(tmp_path, plan)
    rows = compared(plan, all_answers(plan, Path("plan.yaml"), False, tmp_path))
    assert [(row["seed"], row["task"], row["n"], row["seeds"]) for row in rows] == [
        *((seed, *own) for seed in (0, 1) for own in (("sums", N, 1), ("words", N, 1), ("all", 2 * N, 1))),
        *(("all", *own) for own in (("sums", 2 * N, 2), ("words", 2 * N, 2), ("all", 4 * N, 2))),
    ]
    assert all(row["difference"] == pytest.approx(0.25) for row in rows)


def test_a_folder_without_answers_is_refused(tmp_path, monkeypatch):
    output = tmp_path / "lines.json"
    plan = Path(__file__).parents[2] / "experiments" / "study.yaml"
    monkeypatch.setattr("sys.argv", ["study_lines.py", str(tmp_path), "--plan", str(plan), "--output", str(output)])
    with pytest.raises(UserError, match="has no model and seed whose test questions of all tasks are answered; give"):
        main()
    assert not output.exists()
