"""What one bad run, task or question may cost: itself alone."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from fake_ray import FakeRay

from routing.commands import evaluate, sweep
from routing.commands.work import compare_pruning as compare_pruning_work
from routing.commands.work import evaluate as evaluate_work
from routing.commands.work import frontier as frontier_work
from routing.commands.work import report as report_work
from routing.commands.work import sweep as sweep_work
from routing.common.errors import UserError
from routing.common.locks import held
from routing.evaluation import arguments as evaluation_arguments
from routing.evaluation.arguments import EvaluationArguments
from routing.evaluation.tasks import members
from routing.search.results import Verdict


def run_sweep(tmp_path, monkeypatch, made, *words):
    (tmp_path / "grid.yaml").write_text("runs: [{objective: gumbel, target_skip: [0.1, 0.2, 0.3]}]")
    monkeypatch.setattr(sys, "argv", ["sweep", str(tmp_path / "grid.yaml"), "--output", str(tmp_path / "out"), *words])
    monkeypatch.setattr(sweep, "check_runs", lambda runs, output: None)

    def make(name, values, output, evaluation):
        made.append(values["target_skip"])
        if values["target_skip"] == 0.2:
            raise UserError("the loss is not finite")
        (output / "runs" / name / "controls.csv").write_text("a\n1\n")

    monkeypatch.setattr(sweep_work, "make_run", make)
    sweep.main()


def test_a_run_that_fails_does_not_end_a_sweep(tmp_path, monkeypatch):
    made = []
    with pytest.raises(UserError, match=r"1 of 3 runs failed.*--retry_failed.*\n.*target_skip=0.2.*: the loss is not"):
        run_sweep(tmp_path, monkeypatch, made)
    assert made == [0.1, 0.2, 0.3]
    with pytest.raises(UserError, match="1 of 3 runs failed"):
        run_sweep(tmp_path, monkeypatch, made)
    assert made == [0.1, 0.2, 0.3], "neither what is done nor what failed is done again"
    with pytest.raises(UserError, match="1 of 3 runs failed"):
        run_sweep(tmp_path, monkeypatch, made, "--retry_failed")
    assert made == [0.1, 0.2, 0.3, 0.2]


def test_workers_of_a_cluster_make_the_runs(tmp_path, monkeypatch):
    """With a stand-in for Ray: what is done, failed or taken by another process is not given to them."""
    made, fake = [], FakeRay(CPU=2)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(sweep, "ray_problems", lambda *arguments: [])
    monkeypatch.setattr(sweep_work, "cluster", lambda address: nullcontext())
    (tmp_path / "out/runs/gumbel-target_skip=0.1-s0").mkdir(parents=True)
    with held(tmp_path / "out/runs/gumbel-target_skip=0.1-s0/.sweep.lock", wait=False):
        with pytest.raises(UserError, match="1 of 3 runs failed.*\n.*target_skip=0.2.*: the loss is not"):
            run_sweep(tmp_path, monkeypatch, made, "--engine", "ray")
        assert sorted(made) == [0.2, 0.3]
    with pytest.raises(UserError, match="1 of 3 runs failed"):
        run_sweep(tmp_path, monkeypatch, made, "--engine", "ray", "--retry_failed")
    assert sorted(made) == [0.1, 0.2, 0.2, 0.3]
    assert "run gumbel-target_skip=0.3-s0" in fake.log


def test_a_run_that_cannot_be_read_does_not_cost_a_report(tmp_path):
    def read(folder):
        if folder.name == "bad":
            raise UserError("bad/metrics.csv, line 2: validation_loss is 'nan', which is no finite number.")
        return folder.name

    folders = [tmp_path / "a", tmp_path / "bad", tmp_path / "b"]
    found, broken = report_work.readable_runs(folders, read)
    assert found == ["a", "b"] and len(broken) == 1 and "line 2" in broken[0]
    with pytest.raises(UserError, match="line 2"):
        report_work.readable_runs(folders[1:2], read)


class Manager:
    def __init__(self, **tasks):
        self.tasks = tasks

    def load(self, name):
        kind, metrics = self.tasks[name]
        return {"tasks": {name: SimpleNamespace(OUTPUT_TYPE=kind, aggregation=lambda: dict.fromkeys(metrics))}}


def test_tasks_without_right_and_wrong_are_refused_before_they_are_answered():
    manager = Manager(good=("generate_until", ["exact_match"]), squad=("generate_until", ["exact", "f1"]),
                      bleu=("generate_until", ["bleu", "rouge1"]))  # fmt: skip
    assert members(["good", "squad"], manager) == ["good", "squad"]
    with pytest.raises(UserError, match=r"^bleu \(bleu, rouge1\): none of its metrics.*acc, exact_match, exact"):
        members(["good", "bleu"], manager)


def test_a_task_that_fails_leaves_the_others_their_results(tmp_path, monkeypatch):
    class Comparison:
        output = tmp_path / "evaluation.json"

        def __init__(self, *args):
            pass

        def run(self, task, manager):
            if task == "bad":
                raise UserError("no plain right or wrong")
            of_base = dict.fromkeys(("base", "paired", "difference_lower_bound", "static_at_equal_layers"))
            return {"task": task, "key_sha256": "k", "controls": []} | of_base

    found, tasks = [], ["a,bad,b", "c"]
    monkeypatch.setattr(
        evaluate, "parse", lambda kind, argv: EvaluationArguments(checkpoint="c", tasks=tasks.pop(0))
    )  # fmt: skip
    monkeypatch.setattr(evaluate_work, "check_tasks", lambda names, checkpoint: None)
    monkeypatch.setattr(evaluate_work, "members", lambda names, manager: names)
    monkeypatch.setattr(evaluate_work, "training_record", lambda folder: {})
    monkeypatch.setattr(evaluate_work, "Comparison", Comparison)
    monkeypatch.setattr(evaluate_work, "write_html", lambda results, page: found.append([r["task"] for r in results]))
    monkeypatch.setattr(evaluate_work, "print_table", lambda results: None)
    monkeypatch.setattr(evaluate_work, "write_model_card", lambda folder, results: None)
    with pytest.raises(UserError, match="^bad: no plain right or wrong"):
        evaluate.main()
    assert found == [["a", "b"]] and Comparison.output.exists()
    evaluate.main()
    assert found[1] == ["a", "b", "c"], "a second call adds to what the first one found"


@pytest.mark.parametrize("recorded", ("mine", "own.jsonl"))
def test_data_of_a_checkpoint_is_looked_at_before_models_are_loaded(tmp_path, monkeypatch, recorded):
    (tmp_path / "own.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    config = {"router": "per_layer", "model_type": "routed_llama"}
    monkeypatch.setattr(evaluation_arguments, "check_checkpoint", lambda folder: config)
    record = {"arguments": {}, "datasets": ["arithmetic", recorded]}
    monkeypatch.setattr(evaluation_arguments, "training_record", lambda folder: record)
    (problem,) = EvaluationArguments(checkpoint="c", controls="static").outside_problems()
    assert "--controls static" in problem and recorded in problem and "--control_data" in problem
    assert not EvaluationArguments(checkpoint="c", controls="static", control_data="arithmetic").outside_problems()
    record["datasets"] = ["arithmetic"]
    assert not EvaluationArguments(checkpoint="c", controls="static").outside_problems()


def test_frontier_times_warm_and_in_turn(monkeypatch):
    asked = []

    class Answers:
        def __init__(self, *args):
            pass

        def verdicts_and_routes(self, requests, forced):
            asked.append((model.config.route_bias, tuple(requests)))
            return [Verdict(True)] * len(requests), [(1,)] * len(requests)

    model = SimpleNamespace(config=SimpleNamespace(route_bias=0.0), device=torch.device("cpu"))
    monkeypatch.setattr(frontier_work, "Evaluator", Answers)
    points = [frontier_work.Point("routed", str(bias), bias=bias) for bias in (1, 2, 3)]
    frontier_work.answer(model, None, [10, 11, 12, 13], points, 2)
    assert [bias for bias, _ in asked] == [1, 1, 2, 3, 2, 3, 1], "one is not timed, then each begins once"
    assert all(len(point.correct) == 4 and point.seconds > 0 for point in points)


def test_near_ties_are_told_and_more_is_a_defect(tmp_path, capsys):
    compare_pruning_work.print_agreement(tmp_path, 16, 16, 16, True)
    assert capsys.readouterr().err == ""
    compare_pruning_work.print_agreement(tmp_path, 16, 15, 16, True)
    assert "gives 15 of the answers" in capsys.readouterr().err
    compare_pruning_work.print_agreement(tmp_path, 16, 3, 16, False)
    for same, right in ((16, 13), (13, 16)):
        with pytest.raises(RuntimeError, match="of 16 routes"):
            compare_pruning_work.print_agreement(tmp_path, same, right, 16, True)
