"""A whole study of a tiny random model, every method of the table, all stages in this process; and --quick."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import save_tiny_base

from routing.__main__ import named
from routing.commands import study
from routing.common.errors import UserError
from routing.models.config_fields import config_with
from routing.scoring.plain import Evaluator
from routing.study import runner
from routing.study.asking import Asking
from routing.study.methods import METHODS
from routing.study.plan import read_plan
from routing.study.stages import Place

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}


def plan_of(base: Path) -> dict:
    task = {"adapters": 12, "table": 12, "searched": 4, "explored": 4, "validation": 4, "test": 6}
    return {
        "models": {"tiny": {"model": str(base), "adapter_size": 4}},
        "tasks": {"sums": {"dataset": "procedural"} | task, "choices": {"dataset": "piqa,siqa"} | task},
        "text": {"passages": 30, "questions": 12, "test_rows": 3},
        "seeds": [0],
        "budgets": [0.3],
        "options": {
            "adapters": {"start": "least_squares", "num_epochs": 0, "score_samples": 2},
            "menu": {"menu_samples": 4},
            "searched": {"num_simulations": 6}, "verified": {"num_simulations": 6, "verify": "paraphrase"},
            "explored": {"num_scenarios": 4},
            "text": {
                "sequence_length": 24, "prompt_tokens": 4, "batch_size": 2, "gradient_accumulation": 1, "max_steps": 2,
                "num_evaluations": 1, "kept_layers": 2, "train_passages": 20, "validation_passages": 4,
            },
        },
        "methods": {name: {} for name in METHODS} | {
            "dr_llm": {"num_epochs": 2, "num_windows": 2}, "dr_llm_verified": {"num_epochs": 2, "num_windows": 2},
            "value": {"caution": [0.0, 2.0], "folds": 2}, "dlr_token": {"sink_tokens": 1},
        },
        "timing": {"questions": 2, "repeats": 2},
        "hypotheses": [{"says": "x", "method": "value", "budget": 0.3, "task": "all", "against": "static", "above": 0}],
    }  # fmt: skip


def in_this_process(stage, command, log, output):
    """What a stage's own process does."""
    script, *words = command
    name = {"data_generation.py": "generate", "train.py": "train"}.get(script, words[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [])
        named([name, *(words[2:] if script == "-m" else words)])


@pytest.mark.slow
def test_every_method_on_a_tiny_model(tmp_path, monkeypatch, capsys):
    base = save_tiny_base(tmp_path / "base", 7, **SIZES)
    plan, output = tmp_path / "plan.yaml", tmp_path / "study"
    plan.write_text(yaml.safe_dump(plan_of(base)))
    monkeypatch.setattr(runner.Runner, "__init__", with_run(runner.Runner.__init__))
    words = [str(plan), "--output", str(output)]
    study.main(words)
    told = capsys.readouterr().out
    assert "written to" in told
    saved = json.loads((output / "study.json").read_text())
    rows = [row for row in saved["rows"] if row["task"] == "all" and row["seed"] == "all"]
    assert {row["method"] for row in rows} == set(METHODS)
    assert all(row["n"] == 18 for row in rows)
    full = next(row for row in rows if row["method"] == "full")
    for row in rows:
        assert 0 <= row["accuracy"] <= 1 and row["flops"] > 0 and row["training_seconds"] >= 0
        assert (row["seconds"] is None) == (row["method"] == "oracle")
        if METHODS[row["method"]].path and row["budget"] == 0.3:
            assert row["layers"] == 5, row["method"]  # two of seven are left out
        if row["method"] in ("fbc", "dpo", "orpo") and row["budget"] == 0.3:
            assert row["layers"] == 5
        if row["method"] == "oracle":
            assert row["accuracy"] >= full["accuracy"]
    assert {row["method"] for row in saved["rows"] if row["task"] == "text"} == {
        n for n, m in METHODS.items() if m.text
    }
    assert set(saved["commands"]) >= {"tiny/0/value", "tiny/0/dlr_token"}
    opened = json.loads((output / "test_opened.json").read_text())
    assert opened["plan_sha256"] == read_plan(plan).digest

    for task in ("sums", "choices"):
        as_the_routed_models_do(Place(read_plan(plan), plan, False, output, "tiny", 0), task)
    monkeypatch.setattr(runner, "run_command_of", lambda *asked: pytest.fail("all is done"))
    study.main([*words, "--report"])
    plan.write_text(yaml.safe_dump(plan_of(base) | {"budgets": [0.3, 0.4]}))
    with pytest.raises(UserError, match="the plan was changed"):
        study.main(words)


def as_the_routed_models_do(place: Place, task: str) -> None:
    """Routes and verdicts of a study are those that a user's routed model gives, asked one question at a time."""
    asking = Asking(place, task)
    answers = json.loads((place.folder / f"answers-{task}" / "answers.json").read_text())["instances"]
    seen = []
    for one in answers:
        if METHODS[one["method"]].path:
            continue
        model = asking.model(one["weights"])
        with config_with(model, **one["fields"]):
            found = Evaluator(model, asking.tokenizer, 1).verdicts_and_routes(asking.requests("test"), None)
        where = (one["method"], one["budget"], task)
        assert [int(verdict.correct) for verdict in found[0]] == one["right"], where
        # A token's gate may lie so near 0 that the batch decides.
        tolerance = 0.1 if one["method"] == "dlr_token" else 1e-4
        assert [sum(route) for route in found[1]] == pytest.approx(one["layers"], abs=tolerance), where
        seen.append(one["method"])
    assert {"value", "dr_llm", "dpo", "dlr_input", "dlr_token", "reinforce"} <= set(seen)


def with_run(original):
    """Runner.__init__ with stages made in this process."""

    def made(self, *arguments, **options):
        original(self, *arguments, **options)
        self.run = in_this_process

    return made


@pytest.mark.slow
def test_quick_study_of_the_default_model(tmp_path):
    """--quick on the real default model, in processes of their own, as a user would."""
    command = [sys.executable, "-m", "routing", "study", "experiments/study.yaml", "--output", str(tmp_path), "--quick"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((tmp_path / "study.json").read_text())["rows"]
    asked = read_plan(ROOT / "experiments" / "study.yaml", quick=True)
    assert {row["method"] for row in rows} == set(asked.methods)
    assert (tmp_path / "study.html").exists() and (tmp_path / "study.csv").exists()
