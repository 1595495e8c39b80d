"""The list of objectives and of commands, which needs no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from routing.__main__ import COMMANDS
from routing.commands import train
from routing.common.errors import UserError
from routing.objectives.table import END_TO_END, PREFERENCE
from routing.training.registry import OBJECTIVES

ROOT = Path(__file__).resolve().parents[2]


def test_every_objective_has_a_row():
    assert {*END_TO_END, *PREFERENCE, "supervised", "value", "adapters", "lm"} == set(OBJECTIVES)
    for name, row in OBJECTIVES.items():
        assert "objective" in row.arguments().__dataclass_fields__ and row.what, name


def test_every_command_has_a_row():
    files = {path.stem for path in (ROOT / "routing" / "commands").glob("*.py")} - {"__init__"}
    assert files == set(COMMANDS)


@pytest.mark.parametrize(
    "command", (["train.py", "--help"], ["-m", "routing"], ["-m", "routing", "train", "--help"], ["-m", "routing", "x"])
)
def test_lists_need_no_torch(command):
    script, *words = command[1:] if command[0] == "-m" else command
    run, argv = ("run_module", [script, *words]) if command[0] == "-m" else ("run_path", command)
    code = f"import runpy, sys\nsys.argv = {argv!r}\ntry:\n    runpy.{run}({script!r}, run_name='__main__')\n"
    code += "except SystemExit:\n    pass\nassert not {'torch', 'transformers'} & set(sys.modules)\n"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    told = result.stdout + result.stderr
    assert "gumbel" in told if "train" in " ".join(command) else "calibrate" in told


def test_an_unknown_objective_is_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--objective", "best"])
    with pytest.raises(UserError, match=r"(?s)--objective 'best' is unknown.*supervised"):
        train.main()
