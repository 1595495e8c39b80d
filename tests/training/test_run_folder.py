"""Runs that are started again, and the held-out questions that choose among their checkpoints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from zoo import bring

from routing.common.errors import UserError
from routing.labels.reading import LABELS
from routing.models.families import load_base_config, load_tokenizer
from routing.search.results import Verdict
from routing.training import skeleton
from routing.training.adapters import run as adapters
from routing.training.adapters.data import load_data
from routing.training.end_to_end import run as end_to_end
from routing.training.language_model import run as language_model
from routing.training.preferences import run as preferences
from routing.training.registry import OBJECTIVES
from routing.training.routers import run as routers
from routing.training.routers import trainer
from routing.training.routers.data import spread
from routing.training.run_folder import prepare_folder
from routing.training.value import run as value


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


def test_a_record_tells_where_it_comes_from(tmp_path):
    run = skeleton.Run(Arguments(), tmp_path, None, SimpleNamespace(num_processes=2))
    found = run.summary(kept_step=3)
    assert found["arguments"] == {"resume": False, "rate": 1.0} and found["kept_step"] == 3
    assert found.keys() >= {"date", "hardware", "versions", "git_commit", "num_processes"}


# Data of a run, and what changes it: every kind of training notices.


def made_from_by(module, monkeypatch, arguments) -> dict:
    """What a kind of training says that a run depends on."""
    monkeypatch.setattr(module, "training_run", lambda _, made_from, train: made_from())
    return json.loads(json.dumps(module.run(arguments)))


@pytest.mark.parametrize("objective", ("gumbel", "lm"))
def test_training_on_text_notices_another_text(objective, tmp_path, monkeypatch):
    corpus = tmp_path / "own.txt"
    module, fields = {"gumbel": (end_to_end, {"kept_layers": 1}), "lm": (language_model, {})}[objective]
    kind = OBJECTIVES[objective].arguments()
    found = []
    for word in ("red", "red", "blue"):
        corpus.write_text("".join(f"{word} {n}, and {'a few words more, ' * 9}for a row or two.\n" for n in range(99)))
        given = {"sequence_length": 16, "model_id": bring("plain"), "corpus": str(corpus)} | fields
        found.append(made_from_by(module, monkeypatch, kind("r", objective=objective, **given)))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("objective", ("supervised", "value", "orpo"))
def test_training_on_labels_notices_other_labels(objective, tmp_path, monkeypatch):
    module = {"supervised": routers, "value": value, "orpo": preferences}[objective]
    monkeypatch.setattr(module, "load_training_data", lambda *_: None, raising=False)
    monkeypatch.setattr(module, "read_header", lambda _: {}, raising=False)
    monkeypatch.setattr(module, "foreign_labels", lambda *_: [], raising=False)
    arguments = OBJECTIVES[objective].arguments()("r", objective=objective, model_id=bring("plain"), data=str(tmp_path))
    found = []
    for line in ("one", "one", "other"):
        (tmp_path / LABELS).write_text(line)
        found.append(made_from_by(module, monkeypatch, arguments))
    assert found[0] == found[1] != found[2]


def test_training_of_adapters_notices_other_questions(tmp_path, monkeypatch):
    questions, found = tmp_path / "own.jsonl", []
    for word in ("red", "red", "blue"):
        questions.write_text(json.dumps({"question": f"Is it {word}?", "answer": word}) + "\n")
        kind, given = OBJECTIVES["adapters"].arguments(), {"dataset": str(questions), "model_id": bring("plain")}
        found.append(made_from_by(adapters, monkeypatch, kind("r", objective="adapters", split="search", **given)))
    assert found[0] == found[1] != found[2]


def questions(*datasets):
    return [SimpleNamespace(example=SimpleNamespace(dataset=name), at=at) for at, name in enumerate(datasets)]


def test_held_out_questions_are_spread_over_the_data_sets():
    asked = questions(*"aaaaab", *"bc")
    found = spread(asked)
    assert [request.example.dataset for request in found] == list("abcabaaa")
    assert sorted(request.at for request in found) == list(range(8))
    own = [request.at for request in found if request.example.dataset == "a"]
    assert own == sorted(own), "within a data set the order stays"


def test_adapters_are_scored_on_questions_of_all_data_sets(tmp_path):
    """Of files of one's own, whose held-out questions stand file by file."""
    for name in "ab":
        rows = [{"question": f"Is {name} {n}?", "answer": "yes"} for n in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"dataset": f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl", "model_id": bring("plain"), "split": "search"}
    kind = OBJECTIVES["adapters"].arguments()
    arguments = kind("r", objective="adapters", eval_fraction=0.5, score_samples=4, **given)
    base = bring("plain")
    found = load_data(arguments, load_tokenizer(base), load_base_config(base)).scored
    assert [request.example.dataset for request in found] == ["a", "b"] * 2


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
