"""Runs that are started again, and the held-out questions that choose among their checkpoints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from routing.common.errors import UserError
from routing.search.results import Verdict
from routing.training import skeleton
from routing.training.routers import trainer
from routing.training.routers.data import spread
from routing.training.run_folder import prepare_folder


@dataclass
class Arguments:
    resume: bool = False
    rate: float = 1.0


def test_resume_without_an_earlier_run_starts(tmp_path, capsys):
    """Job managers restart with the command line that they started with."""
    states = tmp_path / "run" / "trainer"
    states.mkdir(parents=True)
    prepare_folder(Arguments(resume=True), tmp_path / "run", states, {"text": "a"})
    assert "there is no run in" in capsys.readouterr().err and not states.exists()
    assert json.loads((tmp_path / "run" / "made_from.json").read_text()) == {"text": "a"}
    states.mkdir()
    prepare_folder(Arguments(resume=True), tmp_path / "run", states, {"text": "a"})
    assert capsys.readouterr().err == "" and states.exists(), "now there is one, and it goes on"
    with pytest.raises(UserError, match="--rate was 1.0, now 2.0"):
        prepare_folder(Arguments(resume=True, rate=2.0), tmp_path / "run", states, {"text": "a"})
    with pytest.raises(UserError, match=r"have changed since \(text\)"):
        prepare_folder(Arguments(resume=True), tmp_path / "run", states, {"text": "b"})


def test_every_run_knows_its_base_and_adapters(tmp_path, monkeypatch):
    monkeypatch.setattr(skeleton, "adapter_hashes", lambda folder: {"adapters": folder})
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    found = [skeleton.base_of(SimpleNamespace(model_id=str(base), adapters="a"))]
    for name in ("pytorch_model.bin", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (base / name).write_text("1")
        found.append(skeleton.base_of(SimpleNamespace(model_id=str(base), adapters="a")))
    found.append(skeleton.base_of(SimpleNamespace(model_id=str(base), adapters="b")))
    assert all("format" in one for one in found)
    assert len({json.dumps(one) for one in found}) == len(found), "each change is noticed"
    (base / "notes.txt").write_text("1")
    assert skeleton.base_of(SimpleNamespace(model_id=str(base), adapters="b")) == found[-1]


def questions(*datasets):
    return [SimpleNamespace(example=SimpleNamespace(dataset=name), at=at) for at, name in enumerate(datasets)]


def test_held_out_questions_are_spread_over_the_data_sets():
    asked = questions(*"aaaaab", *"bc")
    found = spread(asked)
    assert [request.example.dataset for request in found] == list("abcabaaa")
    assert sorted(request.at for request in found) == list(range(8))
    own = [request.at for request in found if request.example.dataset == "a"]
    assert own == sorted(own), "within a data set the order stays"


def test_accuracy_is_told_by_data_set(monkeypatch):
    class Answers:
        def __init__(self, *args):
            pass

        def verdicts_and_routes(self, requests, forced):
            right = [request.at % 2 == 0 or request.example.dataset == "b" for request in requests]
            return [Verdict(one) for one in right], [(1, 0)] * len(requests)

    monkeypatch.setattr(trainer, "Evaluator", Answers)
    found = trainer.executor(None, None, questions(*"aabb"), 2)()
    assert found["executed_accuracy"] == 0.75 and found["executed_examples"] == 4
    assert (found["executed_accuracy_a"], found["executed_accuracy_b"]) == (0.5, 1.0)
    assert "executed_accuracy_a" not in trainer.executor(None, None, questions("a"), 2)()
