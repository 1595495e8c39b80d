"""What kept results depend on, and how those of several calls come together."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fake_search import REQUESTS, make_header

from routing.common import keyed
from routing.common.errors import UserError
from routing.evaluation.merging import merged
from routing.labels import menus
from routing.labels.writing import LabelFolder
from routing.scoring import along
from routing.scoring.router_inputs import StoredInputs
from routing.search.results import Verdict
from routing.training.adapters import heal_texts, states
from routing.training.features import RouterExample, fingerprint
from routing.training.preferences import embeddings


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

    count, ends = 0, (1,)

    def __init__(self, *_, **__):
        pass

    def prepare(self, _):
        pass

    release = lambda self: None  # noqa: E731

    def verdicts(self, requests, routes):
        Asked.count += len(requests)
        return [Verdict(True)] * len(requests)


def test_kept_verdicts_are_made_again_by_other_code(tmp_path, monkeypatch):
    class Config:
        skip_action = "identity"

    model = type("Model", (), {"config": Config()})()
    monkeypatch.setattr(along, "PathEvaluator", Asked)
    arguments = (model, None, REQUESTS, [[(1, 1)] * len(REQUESTS)], "identity")
    for code, expected in (("one", len(REQUESTS)), ("one", len(REQUESTS)), ("two", 2 * len(REQUESTS))):
        monkeypatch.setattr(along, "judging", lambda code=code: {"code": code})
        along.verdicts_along(*arguments, folder=tmp_path)
        assert Asked.count == expected
    monkeypatch.setattr(Asked, "ends", (1, 2))  # of the model, by which its answers end
    along.verdicts_along(*arguments, folder=tmp_path)
    assert Asked.count == 3 * len(REQUESTS)


def test_the_key_of_a_question_knows_all_that_judges_it():
    (chosen,) = {request for request in REQUESTS[:2] if request.choice_ids}
    example = chosen.example
    examples = {"choices": ("a", "b"), "gold": 0, "answer": "yes", "accepted": ("y",), "checker": "exact"}
    fields = {"scoring": "generate", "prompt_ids": (7,), "choice_ids": ((8,), (9,)), "max_new_tokens": 9, "stop": "."}
    others = [replace(chosen, example=replace(example, **{name: value})) for name, value in examples.items()]
    others += [replace(chosen, **{name: value}) for name, value in fields.items()]
    keys = [json.dumps(request.key()) for request in (chosen, *others)]
    assert len(set(keys)) == len(keys) == 11


WEIGHT = torch.ones(1)
ENCODER = SimpleNamespace(
    config=SimpleNamespace(to_json_string=lambda: "{}"), state_dict=lambda: {"weight": WEIGHT}
)  # fmt: skip
QUERIES = SimpleNamespace(max_tokens=8, encoder=ENCODER, tokenizers=(None, SimpleNamespace(get_vocab=dict)))


def menu_key(folder, monkeypatch) -> str:
    found = []
    monkeypatch.setattr(menus, "Remembered", lambda make, path, key, progress: found.append(json.dumps(key)))
    monkeypatch.setattr(menus, "greedy_order", lambda *given: [])
    menus.MenuQuestions(None, None, lambda split: REQUESTS, folder, 1, None, "k").diverging([0, 1], 1, False)
    return found[0]


KEYS = {
    "inputs of routers": lambda *_: fingerprint([RouterExample((1, 2), (1,))]),
    "inputs of routers beside labels": lambda folder, _: StoredInputs(folder, str(folder), 8, "float32", "").key,
    "embeddings of queries": lambda *_: embeddings.fingerprint(QUERIES, ["a query"]),
    "divergence of a menu": menu_key,
}


@pytest.mark.parametrize("name", KEYS)
def test_what_is_kept_of_a_model_is_made_again_by_other_code(name, tmp_path, monkeypatch):
    found = []
    for code in ("one", "one", "two"):
        monkeypatch.setattr(keyed, "code_hash", lambda code=code: code)
        found.append(KEYS[name](tmp_path, monkeypatch))
    assert found[0] == found[1] != found[2]


def test_states_and_own_answers_are_collected_again_by_other_code(tmp_path, monkeypatch):
    """But a run that is resumed is not refused for it: their own key is the same."""
    note, config, asked = tmp_path / "states" / "group-00000.json", SimpleNamespace(num_hidden_layers=1), []
    config.hidden_size = 4
    monkeypatch.setattr(heal_texts, "PathEvaluator", lambda *given, **more: None)
    monkeypatch.setattr(heal_texts, "own_answers", lambda _, part: asked.extend(part) or [((1, 2), True)] * len(part))
    for code, kept in (("one", False), ("one", True), ("two", False)):
        monkeypatch.setattr(keyed, "code_hash", lambda code=code: code)
        states._prepare(note.parent, config, 3, "key", 2, torch.float32)
        assert note.exists() == kept
        note.write_text('{"questions": 1, "right": 1}')
        asked.clear()
        heal_texts.collect_texts(tmp_path / "texts.json", None, None, REQUESTS, "key", 0.5, 2)
        assert bool(asked) != kept
    key = states.states_key(REQUESTS)
    monkeypatch.setattr(keyed, "code_hash", lambda: "three")
    assert states.states_key(REQUESTS) == key != states.states_key([replace(REQUESTS[0], prompt_ids=(9,))])


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
