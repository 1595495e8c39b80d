"""Where results go, and errors of several processes: refused before a model is loaded, told once."""

from __future__ import annotations

import hashlib
import os
import sys

import pytest

from routing.commands import (
    adapters,
    analysis,
    calibrate,
    compare_pruning,
    frontier,
    headroom,
    report,
    show,
    sweep,
    text_evaluation,
)
from routing.commands import labels as labels_command
from routing.common import files
from routing.common.errors import UserError, run_command
from routing.common.files import sha256, unwritable
from routing.evaluation.arguments import EvaluationArguments
from routing.labels.arguments import DataGenerationArguments
from routing.training.registry import OBJECTIVES


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        (problem,) = unwritable("--output", path)
        assert problem.startswith(f"--output {path}: {tmp_path / 'file'} is a file") and "another folder" in problem
    assert unwritable("--output", tmp_path / "new" / "folder") == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing is made, and nothing is left"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_a_file_system_that_takes_no_files():
    (problem,) = unwritable("--output", files.Path("/proc/x"))
    assert "nothing can be written in /proc" in problem


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", ("output_dir", "work_dir"))
def test_training_refuses_such_a_folder(tmp_path, objective, name):
    (tmp_path / "file").touch()
    kind = OBJECTIVES[objective].arguments()
    found = kind(run_name="r", objective=objective, **{name: str(tmp_path / "file")}).problems()
    assert [problem for problem in found if f"--{name} {tmp_path / 'file'}" in problem and "is a file" in problem]


def test_the_other_stages_refuse_it(tmp_path):
    (tmp_path / "file").touch()
    (problem,) = DataGenerationArguments(output_dir=str(tmp_path / "file")).problems()
    assert "--output_dir" in problem and "is a file" in problem
    (problem,) = EvaluationArguments(checkpoint="c", output=str(tmp_path / "file" / "e.json")).problems()
    assert "--output" in problem and "is a file" in problem


COMMANDS = {
    "adapters": (adapters.main, ["{missing}", "--output", "{file}"]),
    "analysis": (analysis.main, ["{missing}", "--output", "{file}/a.json"]),
    "calibrate": (calibrate.main, ["{file}", "--target_layers", "none"]),
    "compare_pruning": (compare_pruning.main, ["--adapters", "{missing}", "--output", "{file}"]),
    "frontier": (frontier.main, ["{missing}", "--output", "{file}"]),
    "headroom": (headroom.main, ["{missing}", "--output", "{file}"]),
    "labels export": (labels_command.main, ["export", "{missing}", "{file}", "--format", "polar"]),
    "labels import": (
        labels_command.main, ["import", "{missing}", "{file}", "--format", "polar", "--model", "{missing}"]
    ),
    "labels records": (labels_command.main, ["records", "{missing}", "{file}/r.jsonl"]),
    "labels card": (labels_command.main, ["card", "{file}"]),
    "report": (report.main, ["{missing}", "--output", "{file}"]),
    "show": (show.main, ["{missing}", "--text", "a", "--html", "{file}/a.html"]),
    "sweep": (sweep.main, ["{missing}", "--output", "{file}"]),
    "text_evaluation": (text_evaluation.main, ["{file}"]),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_it(tmp_path, monkeypatch, name):
    """Before it loads a model: there is none here."""
    (tmp_path / "file").touch()
    main, words = COMMANDS[name]
    places = {"file": tmp_path / "file", "missing": tmp_path / "missing"}
    monkeypatch.setattr(sys, "argv", [name, *(word.format(**places) for word in words)])
    with pytest.raises(UserError, match="is a file, so nothing can be written below it"):
        main()


def test_an_error_of_all_processes_is_told_once(monkeypatch, capsys, tmp_path):
    def fail(message):
        def wrong():
            raise UserError(message)

        with pytest.raises(SystemExit) as stopped:
            run_command(wrong)
        assert stopped.value.code == 2
        return capsys.readouterr().err

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert fail("alone") == fail("alone") == "error: alone\n"
    monkeypatch.setenv("WORLD_SIZE", "2")  # as schedulers set it; a launcher sets LOCAL_RANK too
    assert fail("alone") == fail("alone") == "error: alone\n"
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert [fail("all"), fail("all"), fail("one's own"), fail("all")] == ["error: all\n", "", "error: one's own\n", ""]
    for path in tmp_path.iterdir():  # of a launch long ago
        os.utime(path, (0, 0))
    assert fail("all") == "error: all\n"


def test_a_file_is_hashed_once(tmp_path, monkeypatch):
    asked = []

    def digest(file, kind):
        asked.append(kind)
        return hashlib.sha256(file.read())

    monkeypatch.setattr(files.hashlib, "file_digest", digest)
    path = tmp_path / "weights"
    path.write_text("a")
    first = sha256(path)
    assert sha256(path) == first and len(asked) == 1
    path.write_text("bb")
    assert sha256(path) != first and len(asked) == 2
