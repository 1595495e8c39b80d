"""What kept results depend on, and how those of several calls come together."""

from __future__ import annotations

import json

import pytest
from fake_search import make_header

from routing.common import keyed
from routing.common.errors import UserError
from routing.evaluation.merging import merged
from routing.labels.writing import LabelFolder
from routing.scoring import along
from routing.search.results import Verdict


def test_the_hash_knows_names_and_contents(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    found = keyed.code_hash(("*.py",), tmp_path)
    (tmp_path / "note.txt").write_text("no code")
    assert keyed.code_hash.__wrapped__(("*.py",), tmp_path) == found
    (tmp_path / "a.py").write_text("x = 2\n")
    changed = keyed.code_hash.__wrapped__(("*.py",), tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({found, changed, keyed.code_hash.__wrapped__(("*.py",), tmp_path)}) == 3


def test_every_pattern_names_files():
    assert all(any(keyed.ROOT.glob(pattern)) for pattern in keyed.JUDGES)
    assert keyed.judging()["versions"].keys() == set(keyed.DECIDING) and len(keyed.judging()["code"]) == 64


class Asked:
    """An evaluator that counts."""

    count = 0

    def __init__(self, *_, **__):
        pass

    def prepare(self, _):
        pass

    release = lambda self: None  # noqa: E731

    def verdicts(self, requests, routes):
        Asked.count += len(requests)
        return [Verdict(True)] * len(requests)


def test_kept_verdicts_are_made_again_by_other_code(tmp_path, monkeypatch):
    from fake_search import REQUESTS

    class Config:
        skip_action = "identity"

    model = type("Model", (), {"config": Config()})()
    monkeypatch.setattr(along, "PathEvaluator", Asked)
    arguments = (model, None, REQUESTS, [[(1, 1)] * len(REQUESTS)], "identity")
    for code, expected in (("one", len(REQUESTS)), ("one", len(REQUESTS)), ("two", 2 * len(REQUESTS))):
        monkeypatch.setattr(along, "judging", lambda code=code: {"code": code})
        along.verdicts_along(*arguments, folder=tmp_path)
        assert Asked.count == expected


def entry(task: str, *controls: str, key: str = "k", base: dict | None = None) -> dict:
    return {
        "task": task, "key_sha256": key, "base": base, "paired": base and {"p": 1},
        "difference_lower_bound": None, "static_at_equal_layers": None, "controls": [{"name": n} for n in controls],
    }  # fmt: skip


def test_a_second_call_keeps_what_the_first_one_found():
    first = entry("a", "static", base={"accuracy": 0.5})
    assert merged([], first) == [first]
    assert merged([first], entry("b")) == [first, entry("b")]
    found = merged([first, entry("b")], entry("a", "random"))
    assert [one["task"] for one in found] == ["a", "b"]
    assert [control["name"] for control in found[0]["controls"]] == ["static", "random"]
    assert found[0]["base"] == {"accuracy": 0.5} and found[0]["paired"] == {"p": 1}
    again = entry("a", "static") | {"controls": [{"name": "static", "accuracy": 1.0}]}
    assert merged(found, again)[0]["controls"] == [{"name": "random"}, {"name": "static", "accuracy": 1.0}]


def test_results_of_another_state_go():
    old = [entry("a", "static", key="old"), entry("b", "static")]
    assert merged(old, entry("c")) == [old[1], entry("c")]
    assert merged(old, entry("b", key="other")) == [entry("b", key="other")]
    without = {name: value for name, value in old[1].items() if name != "key_sha256"}
    assert merged([without], entry("b")) == [entry("b")], "results of before there were keys are not known to fit"


def folder_of(place, versions: dict) -> LabelFolder:
    line = json.dumps({"dataset": "d", "question": "q", "answer": "a"}) + "\n"
    return LabelFolder(place, make_header() | {"versions": versions}, 2, lambda path: path.write_text(line))


def test_labelling_goes_on_after_an_update_that_decides_nothing(tmp_path, capsys):
    versions = {"torch": "2.13.0", "transformers": "5.0.0", "datasets": "4.0.0", "python": "3.11.1"}
    folder_of(tmp_path, versions)
    folder_of(tmp_path, versions)
    assert capsys.readouterr().err == ""
    folder_of(tmp_path, versions | {"datasets": "4.0.1", "python": "3.11.2"})
    told = capsys.readouterr().err
    assert "datasets: was '4.0.0', now '4.0.1'" in told and "python" in told
    with pytest.raises(UserError, match="transformers: was '5.0.0', now '5.0.1'"):
        folder_of(tmp_path, versions | {"transformers": "5.0.1"})
