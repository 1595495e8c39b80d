"""`python -m routing calibrate` on a tiny checkpoint with random routers and the default tokenizer."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import save_tiny_checkpoint

from routing.commands import calibrate, frontier
from routing.commands.work import calibrate as calibrate_work
from routing.commands.work import frontier as frontier_work
from routing.common.errors import UserError
from routing.evaluation.budget import decided_routes, mean_layers
from routing.models.checkpoint import load_checkpoint
from routing.scoring.context import needed_tokens
from routing.scoring.controls import random_like
from routing.scoring.requests import draw_requests

LAYERS = 6


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Routers that decide differently from prompt to prompt."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("models"), LAYERS)


@pytest.fixture
def checkpoint(trained, tmp_path) -> Path:
    shutil.copytree(trained, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def run(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["dlr calibrate", *map(str, words)])
    calibrate.main()


def layers_of(folder: Path) -> float:
    """Mean over the same validation prompts, with the checkpoint as it is on disk."""
    model, tokenizer = load_checkpoint(folder, torch.float32, torch.device("cpu"))
    requests = draw_requests("arithmetic", "validation", 40, tokenizer)
    # One prompt at a time: batches must not matter.
    return mean_layers(decided_routes(model, tokenizer, [request.prompt_ids for request in requests], 1))


def test_a_checkpoint_is_calibrated_and_put_back(checkpoint, monkeypatch, capsys):
    before, config = layers_of(checkpoint), (checkpoint / "config.json").read_text()
    found = {}
    for target in (before - 1, before + 1):
        run(monkeypatch, checkpoint, "--target_layers", target, "--num_samples", 40, "--tolerance", 0.4)
        note = json.loads((checkpoint / "calibration.json").read_text())
        assert note["reached"] and abs(note["layers"] - target) <= 0.4 and note["prompts"] == 40
        assert json.loads((checkpoint / "config.json").read_text())["route_bias"] == note["route_bias"]
        assert layers_of(checkpoint) == pytest.approx(note["layers"])
        found[target] = note["route_bias"]
    assert found[before - 1] < 0 < found[before + 1]
    assert f"route_bias {found[before + 1]:.6g} runs" in capsys.readouterr().out
    run(monkeypatch, checkpoint, "--target_layers", "none")
    assert json.loads((checkpoint / "config.json").read_text()) == json.loads(config) | {"route_bias": 0.0}
    assert not (checkpoint / "calibration.json").exists() and layers_of(checkpoint) == before


def test_a_target_between_two_jumps_is_said_to_be_missed(checkpoint, monkeypatch, capsys):
    """One question: the number of layers is whole."""
    run(monkeypatch, checkpoint, "--target_layers", 4.5, "--num_samples", 1)
    assert not json.loads((checkpoint / "calibration.json").read_text())["reached"]
    assert "--target_layers 4.5 is not reached within 0.1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["--target_layers", "13"], ["--target_layers 13 must lie between 0 and 12, twice the 6 layers"]),
        (["--target_layers", "0"], ["--target_layers 0 must lie between 0 and 12"]),
        (["--target_layers", "nan"], ["--target_layers nan must lie between 0 and 12"]),
        (["--target_layers", "few"], ["--target_layers 'few' is no number, nor none"]),
        (
            ["--target_layers", "4", "--dataset", "nothing", "--tolerance", "0", "--batch_size", "0"],
            ["--dataset 'nothing' is unknown", "--tolerance 0.0 must be above 0", "--batch_size 0 must be at least 1"],
        ),
    ],
)
def test_wrong_arguments_are_named_before_a_model_is_loaded(checkpoint, monkeypatch, words, messages):
    monkeypatch.setattr(calibrate_work, "load_checkpoint", None)
    with pytest.raises(UserError) as error:
        run(monkeypatch, checkpoint, *words)
    assert all(message in str(error.value) for message in messages)


def test_folders_that_are_no_checkpoint_are_refused(checkpoint, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="config.json cannot be read"):
        run(monkeypatch, tmp_path / "nowhere", "--target_layers", 4)
    fields = json.loads((checkpoint / "config.json").read_text()) | {"trained_num_windows": None}
    (checkpoint / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="holds no trained routers"):
        run(monkeypatch, checkpoint, "--target_layers", 4)


# The frontier.


def test_random_routes_run_as_many_layers():
    routes = [(1, 0, 1, 0, 1), (1, 1, 1, 1, 1), (2, 1, 1, 2, 0), (0, 0, 0, 0, 0), (2, 2, 2, 2, 2)]
    found = random_like(routes * 4, seed=0)
    assert [sum(route) for route in found] == [sum(route) for route in routes] * 4
    assert found == random_like(routes * 4, seed=0) != random_like(routes * 4, seed=1)
    assert found[0] != routes[0] or found[5] != routes[0]
    assert all(set(route) <= {0, 1, 2} for route in found)


def test_frontier_of_a_checkpoint(checkpoint, monkeypatch, capsys):
    """Every method is there, with as many layers as it should have; the checkpoint stays as it was."""
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.is_file()}
    words = ["--num_samples", "8", "--targets", "5,7", "--seeds", "2", "--max_static", "2", "--tolerance", "0.6"]
    monkeypatch.setattr(sys, "argv", ["dlr frontier", str(checkpoint), *words])
    frontier.main()
    result = json.loads((checkpoint / "frontier.json").read_text())
    points = {point["name"]: point for point in result["points"]}
    assert list(points)[:4] == ["dense", "routed, as saved", "routed, target 5", "routed, target 7"]
    assert points["dense"]["layers"] == LAYERS and points["dense"]["speedup"] == 1.0
    assert points["dense"]["against_dense"] == {"difference": 0.0, "gained": 0, "lost": 0, "p": 1.0}
    for name in list(points)[1:4]:
        like = [points[f"random like {name}, seed {seed}"] for seed in range(2)]
        assert {point["layers"] for point in like} == {points[name]["layers"]}
    statics = [point for point in result["points"] if point["method"] == "static"]
    assert [point["layers"] for point in statics] == [LAYERS - skipped for skipped in range(1, len(statics) + 1)]
    assert [entry["target"] for entry in result["calibrated"]] == [5.0, 7.0]
    assert result["test_questions"] == result["validation_questions"] == 8
    assert "random like routed, target 5, seed 1" in capsys.readouterr().out.replace("\n", " ")
    assert (checkpoint / "frontier.png").stat().st_size > 10_000
    assert {name: (checkpoint / name).read_bytes() for name in before} == before


def test_the_frontier_leaves_out_what_the_model_cannot_take(checkpoint, monkeypatch, capsys):
    _, tokenizer = load_checkpoint(checkpoint, torch.float32, torch.device("cpu"))
    needed = {
        s: sorted(map(needed_tokens, draw_requests("arithmetic", s, 8, tokenizer))) for s in ("validation", "test")
    }
    context = needed["test"][3]
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": context}))
    monkeypatch.setattr(
        sys, "argv", ["frontier", str(checkpoint), "--num_samples", "8", "--seeds", "1", "--max_static", "1"]
    )
    frontier.main()
    result = json.loads((checkpoint / "frontier.json").read_text())
    fitting = {split: sum(tokens <= context for tokens in found) for split, found in needed.items()}
    assert 0 < fitting["test"] < 8
    assert [result["test_questions"], result["validation_questions"]] == [fitting["test"], fitting["validation"]]
    assert f"left out {8 - fitting['test']} of arithmetic questions: longer than the {context} tokens" in (
        capsys.readouterr().err
    )


def test_wrong_arguments_of_the_frontier(checkpoint, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["routing.commands.frontier", str(checkpoint), "--targets", "5,x,40", "--seeds", "0"]
    )
    with pytest.raises(UserError) as error:
        frontier.main()
    for message in ("--targets 'x' is no number", "--targets 40 must lie between 0 and 12", "--seeds 0 must be"):
        assert message in str(error.value)


def test_the_frontier_refuses_a_file_without_splits(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "own.jsonl").write_text('{"question": "1 + 1 =", "answer": "2"}\n')
    monkeypatch.setattr(frontier_work, "load_checkpoint", None)
    monkeypatch.setattr(
        sys, "argv", ["routing.commands.frontier", str(checkpoint), "--data", str(tmp_path / "own.jsonl")]
    )
    with pytest.raises(UserError, match="own.jsonl' is a file of your own, which has no validation and test questions"):
        frontier.main()
