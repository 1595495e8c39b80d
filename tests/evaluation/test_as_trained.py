"""Who evaluates a checkpoint takes its base, prompts and layers as its training had them. Without a model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from routing.commands.work import adapters, compare_pruning, frontier, text_evaluation
from routing.evaluation import comparison
from routing.evaluation.arguments import EvaluationArguments
from routing.evaluation.lm import Key, Row
from routing.evaluation.methods import Settings, TaskResult

RECORD = {
    "arguments": {
        "model_id": "org/base", "trainable": "lora", "sequence_length": 8, "prompt_tokens": 0, "run_name": "r",
    },
    "base_revision": "abc",
    "datasets": ["arithmetic"],
    "prompting": {"scoring": "generate", "apply_chat_template": True, "system_instruction": "Be short."},
}  # fmt: skip
CONFIG = SimpleNamespace(router="prefix", kept_layers=2, num_hidden_layers=4, fixed_route=None, route_bias=0.0)
MODEL = SimpleNamespace(config=CONFIG, device="cpu")


class Asked(Exception):
    """What a command asked for; nothing comes behind it."""


def ask(*given, **more):
    raise Asked(*given)


def options(folder, **more) -> SimpleNamespace:
    names = {"checkpoint": folder, "adapters": folder, "output": folder, "dataset": "arithmetic", "split": "test"}
    numbers = {"num_samples": 3, "control_samples": 3, "batch_size": 1, "rows": 4}
    flags = {"apply_chat_template": False, "no_chat_template": False, "tools_in_template": False}
    place = {"device": "cpu", "device_map": "", "max_memory": "", "offload_folder": ""}
    return SimpleNamespace(**names, **numbers, **place, dtype="float32", **(flags | more))


def evaluation(folder, base: bool = False, no_chat_template: bool = False):
    arguments = EvaluationArguments(str(folder), controls="static", base=base, no_chat_template=no_chat_template)
    return comparison.Comparison(arguments, RECORD)


COMMANDS = {
    "frontier": (frontier, lambda folder, **more: frontier.run(options(folder, **more))),
    "adapters": (adapters, lambda folder, **more: adapters.run(options(folder, **more))),
    "compare_pruning": (compare_pruning, lambda folder, **more: compare_pruning.Comparison(options(folder, **more))),
    "static controls of evaluation": (comparison, evaluation),
    "text_evaluation": (text_evaluation, lambda folder, **more: text_evaluation.run(options(folder, **more))),
}
STANDING_IN = {
    "load_checkpoint": lambda *_: (MODEL, None),
    "load_adapted": lambda *_: MODEL,
    "load_tokenizer": lambda *_: None,
    "training_record": lambda _: RECORD,
    "checkpoint_hash": lambda _: "",
    "weight_stamps": lambda *_: [],
    "filling_problems": lambda *_: [],
    "PromptRoutedLM": lambda model, *_: SimpleNamespace(model=model),
    "text_of": lambda *_: None,
    "batches_of": lambda *_: None,
    "full_depth": lambda *_: None,
}


@pytest.fixture
def stand_in(monkeypatch):
    """Puts stand-ins for what loads a model into a module, and `ask` for one of its names."""

    def put(module, last: str) -> None:
        for name, value in STANDING_IN.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
        monkeypatch.setattr(module, last, ask)

    return put


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "text_evaluation"])
def test_questions_are_prompted_as_in_training(name, stand_in, tmp_path):
    module, run = COMMANDS[name]
    stand_in(module, "draw_requests")
    for flags, chat, system in (({}, True, "Be short."), ({"no_chat_template": True}, False, "")):
        with pytest.raises(Asked) as asked:
            run(tmp_path, **flags)
        prompting = asked.value.args[-1]
        assert (prompting.scoring, prompting.apply_chat_template) == ("generate", chat)
        assert prompting.system_instruction == system


BASES = {
    "evaluation": (comparison, "load_stock", lambda folder: evaluation(folder, base=True)),
    "tokenizer of compare_pruning": (compare_pruning, "load_tokenizer", COMMANDS["compare_pruning"][1]),
    "speed of compare_pruning": (compare_pruning, "load_stock", lambda folder: speeds(folder)),
    "text_evaluation": (text_evaluation, "load_base", COMMANDS["text_evaluation"][1]),
}


def speeds(folder) -> None:
    own = object.__new__(compare_pruning.Comparison)
    own.arguments = SimpleNamespace(speed_prompts=0, speed_tokens=[1], repeats=1, checkpoints=[], counts=[])
    own.output, own.test, own.key, own.device, own.dtype, own.place = folder, [], [], None, None, None
    own.base_name, own.revision = RECORD["arguments"]["model_id"], RECORD["base_revision"]
    own.speeds([])


@pytest.mark.parametrize("name", BASES)
def test_the_base_is_the_one_of_training_whatever_the_hub_has_now(name, stand_in, tmp_path):
    module, last, run = BASES[name]
    stand_in(module, last)
    with pytest.raises(Asked) as asked:
        run(tmp_path)
    assert asked.value.args[0] == "org/base" and "abc" in asked.value.args[1:3]


def test_random_routes_of_the_frontier_keep_the_layers_that_the_router_keeps(monkeypatch):
    """Else it is "far better than random" for layers that it cannot skip."""
    monkeypatch.setattr(
        frontier, "decided_routes", lambda model, tokenizer, prompts, size: [(1, 1, 0, 2)] * len(prompts)
    )
    monkeypatch.setattr(frontier, "PathEvaluator", lambda *_: None)
    monkeypatch.setattr(frontier, "static_routes", lambda *_: [])
    test = [SimpleNamespace(prompt_ids=(1,))] * 30
    how = SimpleNamespace(batch_size=1, seeds=2, max_static=1)
    points = frontier.make_points(MODEL, None, [], test, {"routed": 0.0}, how)
    found = [route for point in points if point.method == "random" for route in point.routes]
    assert len(found) == 60 and {route[:2] for route in found} == {(1, 1)}
    assert {route[2:] for route in found} == {(0, 2), (2, 0)}, "its own counts, in any order"


def test_random_routes_of_evaluation_keep_the_layers_that_the_router_keeps(monkeypatch, tmp_path):
    rows = {Key(question, 0): Row((1, 1, 0, 2), 3, 1) for question in range(30)}
    result, forced = TaskResult({0: True, 1: False}, rows, 1.0, 1.0, "today"), []
    monkeypatch.setattr(comparison, "stored", lambda path, key, make: make())
    monkeypatch.setattr(comparison, "evaluate", lambda *given: forced.append(given[-1]) or result)
    own = object.__new__(comparison.Comparison)
    own.arguments = EvaluationArguments("c", controls="random", base=False, seeds=2)
    own.settings, own.key, own.base, own.depth, own.output = Settings(), {}, None, 4, tmp_path / "evaluation.json"
    own.routed, own.base_name, own.checkpoint_sha256 = SimpleNamespace(model=MODEL), "base", ""
    own.control_data, own.tuning = "", []
    own.run("task", None)
    found = [route(key) for route in forced if route is not None for key in rows]
    assert len(found) == 60 and {route[:2] for route in found} == {(1, 1)}
    assert {route[2:] for route in found} == {(0, 2), (2, 0)}
