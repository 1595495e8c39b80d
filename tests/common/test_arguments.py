"""Arguments of the three commands: every problem at once, before anything is loaded, in words that help."""

from __future__ import annotations

import math
import os
import runpy
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from routing.common.cli import as_dict, parse
from routing.common.dataclass_parser import parser_of
from routing.common.devices import DTYPES, pick_device
from routing.common.errors import UserError, raise_all, run_command
from routing.evaluation.arguments import EvaluationArguments
from routing.labels.arguments import DataGenerationArguments
from routing.training.routers.arguments import TrainArguments

ROOT = Path(__file__).resolve().parents[2]
STAGES = {
    "data_generation.py": DataGenerationArguments,
    "train.py": TrainArguments,
    "evaluation.py": EvaluationArguments,
}
# What makes the arguments of a stage complete.
NEEDED = {DataGenerationArguments: {}, TrainArguments: {"run_name": "r"}, EvaluationArguments: {"checkpoint": "c"}}

BAD_VALUES = [
    (DataGenerationArguments, "dataset", "nope"),
    (DataGenerationArguments, "dataset", ","),
    (DataGenerationArguments, "dataset", "missing.jsonl"),
    (DataGenerationArguments, "num_samples", 0),
    (DataGenerationArguments, "num_simulations", 0),
    (DataGenerationArguments, "budget", 0.5),
    (DataGenerationArguments, "budget", math.nan),
    (DataGenerationArguments, "budget", math.inf),
    (DataGenerationArguments, "exploration_constant", -1.0),
    (DataGenerationArguments, "length_penalty", -0.1),
    (DataGenerationArguments, "length_penalty", math.inf),
    (DataGenerationArguments, "random_prob", -0.1),
    (DataGenerationArguments, "random_prob", 1.1),
    (DataGenerationArguments, "random_prob", math.nan),
    (DataGenerationArguments, "widening", 0.0),
    (DataGenerationArguments, "widening", 1.5),
    (DataGenerationArguments, "stop_saving", 0),
    (DataGenerationArguments, "batch_size", 0),
    (DataGenerationArguments, "group_size", 0),
    (DataGenerationArguments, "device", "gpu"),
    (TrainArguments, "run_name", ""),
    (TrainArguments, "run_name", "a/b"),
    (TrainArguments, "run_name", ".."),
    (TrainArguments, "num_epochs", 0),
    (TrainArguments, "learning_rate", 0.0),
    (TrainArguments, "learning_rate", -1e-3),
    (TrainArguments, "learning_rate", math.nan),
    (TrainArguments, "learning_rate", math.inf),
    (TrainArguments, "weight_decay", -0.1),
    (TrainArguments, "warmup_steps", -1),
    (TrainArguments, "batch_size", 0),
    (TrainArguments, "gradient_accumulation", 0),
    (TrainArguments, "num_windows", 0),
    (TrainArguments, "router_hidden_size", 0),
    (TrainArguments, "focal_gamma", -1.0),
    (TrainArguments, "class_beta", 1.0),
    (TrainArguments, "class_beta", -0.5),
    (TrainArguments, "class_beta", math.nan),
    (TrainArguments, "eval_fraction", 0.0),
    (TrainArguments, "eval_fraction", 1.0),
    (TrainArguments, "eval_fraction", 1.5),
    (TrainArguments, "num_evaluations", 0),
    (TrainArguments, "eval_examples", 0),
    # transformers.set_seed passes it to numpy, which takes 0 to 2**32 - 1.
    (TrainArguments, "seed", -1),
    (TrainArguments, "device", "gpu"),
    (EvaluationArguments, "checkpoint", ""),
    (EvaluationArguments, "tasks", " ,"),
    (EvaluationArguments, "limit", 0),
    (EvaluationArguments, "batch_size", 0),
    (EvaluationArguments, "device", "gpu"),
]


def run_script(script: str, arguments: list[str], monkeypatch, capsys) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a script, run in this process, which has its imports already."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    captured = capsys.readouterr()
    return stopped.value.code or 0, captured.out, captured.err


@pytest.mark.parametrize(("kind", "name", "value"), BAD_VALUES)
def test_bad_value_is_named(kind, name, value):
    problems = kind(**(NEEDED[kind] | {name: value})).problems()
    assert len(problems) == 1
    assert f"--{name}" in problems[0]
    assert str(value) in problems[0]


@pytest.mark.parametrize("kind", NEEDED)
def test_defaults_are_fine(kind):
    assert kind(**NEEDED[kind]).problems() == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu():
    (problem,) = DataGenerationArguments(device="cuda:0").problems()
    assert "'cuda:0'" in problem and "cpu" in problem


def test_limits_are_allowed():
    fine = {"budget": 1.0, "random_prob": 1.0, "widening": 1.0, "length_penalty": 0.0, "exploration_constant": 0.0}
    assert DataGenerationArguments(**fine, num_simulations=1, stop_saving=1, num_samples=1).problems() == []
    assert TrainArguments(run_name="r", class_beta=0.0, focal_gamma=0.0, warmup_steps=0).problems() == []


def test_all_problems_come_together():
    argv = ["--dataset", "nope,ark", "--num_simulations", "0", "--budget", "0.5", "--random_prob", "2", "--device", "x"]
    with pytest.raises(UserError) as caught:
        parse(DataGenerationArguments, argv)
    lines = str(caught.value).splitlines()
    assert len(lines) == 6 and all(line.startswith("- ") for line in lines)
    for part in ("'nope'", "'ark'", "--num_simulations 0", "--budget 0.5", "--random_prob 2.0", "--device 'x'"):
        assert sum(part in line for line in lines) == 1


def test_published_settings_are_the_defaults():
    search, train = DataGenerationArguments(), TrainArguments()
    assert (search.num_simulations, search.budget, search.exploration_constant) == (50, 2.0, 1.8)
    assert (search.length_penalty, search.random_prob, search.stop_saving) == (3.0, 0.1, 2)
    assert (train.num_epochs, train.learning_rate, train.weight_decay, train.warmup_steps) == (25, 1e-3, 0.01, 500)
    assert (train.batch_size, train.num_windows, train.router_hidden_size) == (16, 8, 128)
    assert (train.focal_gamma, train.class_beta, train.class_weighting) == (2.0, 0.999, "effective")


def test_published_flags_are_understood(monkeypatch):
    monkeypatch.setattr(TrainArguments, "outside_problems", lambda self: [])
    argv = "--model_id M --run_name r --num_epochs 3 --learning_rate 1e-4 --weight_decay 0 --warmup_steps 0"
    argv += " --gradient_accumulation 2 --num_windows 4 --with_squad --with_commonsense --report_to wandb"
    arguments = parse(TrainArguments, argv.split())
    assert (arguments.model_id, arguments.num_epochs, arguments.learning_rate) == ("M", 3, 1e-4)
    assert arguments.with_squad and arguments.with_commonsense and arguments.report_to == "wandb"
    assert not parse(TrainArguments, ["--run_name", "r"]).with_squad


@pytest.mark.parametrize("kind", NEEDED)
def test_every_option_is_explained(kind):
    actions = {action.dest: action for action in parser_of(kind)._actions if action.dest != "help"}
    assert set(actions) == {f.name for f in fields(kind)}
    for name, action in actions.items():
        assert action.help and len(action.help.strip()) > 8, f"--{name} has no help"


@pytest.mark.parametrize("script", STAGES)
def test_help(script, monkeypatch, capsys):
    kind = ["--objective", "supervised"] if script == "train.py" else []  # Without, its help lists the objectives.
    status, printed, _ = run_script(script, [*kind, "--help"], monkeypatch, capsys)
    assert status == 0
    for f in fields(STAGES[script]):
        assert f"--{f.name}" in printed


@pytest.mark.parametrize(("script", "missing"), [("train.py", "--run_name"), ("evaluation.py", "--checkpoint")])
def test_what_is_required(script, missing, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DLR_CACHE", str(tmp_path / "cache"))
    status, _, errors = run_script(script, [], monkeypatch, capsys)
    assert status == 2 and errors.startswith("error") and missing in errors
    assert list(tmp_path.iterdir()) == []


def test_value_outside_of_the_choices(monkeypatch, capsys):
    status, _, errors = run_script("train.py", ["--run_name", "r", "--features", "none"], monkeypatch, capsys)
    assert status == 2 and "'none'" in errors and "cached" in errors and "live" in errors


def test_problems_end_a_run_before_a_model_is_fetched(tmp_path):
    """A process of its own, from another directory."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DLR_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, str(ROOT / "data_generation.py"), "--budget", "0.5", "--dataset", "nope"]
    before = os.times()
    result = subprocess.run(
        [*command, "--num_simulations", "0"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    after = os.times()
    assert result.returncode == 2
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used < 2, "seconds of a processor, however busy the machine is"
    assert result.stdout == "" and "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("- ")]
    assert len(lines) == 3
    for part in ("--budget 0.5", "--dataset 'nope'", "--num_simulations 0"):
        assert sum(part in line for line in lines) == 1
    assert list(tmp_path.iterdir()) == []


def test_raise_all():
    raise_all([])
    with pytest.raises(UserError, match="^one$"):
        raise_all(["one"])
    with pytest.raises(UserError, match="^- one\n- two$"):
        raise_all(["one", "two"])


def test_only_user_errors_are_made_short(capsys):
    def wrong():
        raise UserError("the value")

    def broken():
        raise ValueError("a defect")

    with pytest.raises(SystemExit) as stopped:
        run_command(wrong)
    assert stopped.value.code == 2 and capsys.readouterr().err == "error: the value\n"
    with pytest.raises(ValueError, match="a defect"):
        run_command(broken)
    run_command(lambda: None)


def test_as_dict_and_device():
    arguments = DataGenerationArguments(seed=7)
    assert as_dict(arguments)["seed"] == 7
    assert DataGenerationArguments(**as_dict(arguments)) == arguments
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert all(isinstance(dtype, torch.dtype) for dtype in DTYPES.values())


def test_names_of_dtypes_and_the_list_of_objectives_need_no_torch():
    probe = (
        "import sys, routing.commands.train, routing.common.run_info; from routing.common.devices import DTYPES, "
        "device_problems; assert 'float32' in DTYPES and list(DTYPES) and not device_problems('cpu'); "
        "print([name for name in ('torch', 'transformers', 'lm_eval', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
