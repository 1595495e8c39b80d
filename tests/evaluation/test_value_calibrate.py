"""`python -m routing calibrate --max_loss` on tiny checkpoints, with answers that are planted."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import save_tiny_base, save_tiny_checkpoint

from routing.commands import calibrate
from routing.commands.work import calibrate as calibrate_work
from routing.common.errors import UserError
from routing.evaluation import calibration
from routing.evaluation.budget import decided_routes
from routing.evaluation.promise import promise_of
from routing.models.checkpoint import load_checkpoint, save_checkpoint
from routing.models.checkpoint_files import checkpoint_hash
from routing.models.config_fields import config_with
from routing.report.card import CARD, write_model_card
from routing.scoring.requests import draw_requests
from routing.search.results import Verdict
from train_models.modeling_llama import RoutedLlamaForCausalLM

LAYERS = 6
MENU = [[1] * 6, [1, 1, 1, 1, 0, 1], [1, 1, 1, 0, 0, 1], [1, 1, 0, 0, 0, 1]]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}


def save_menu_checkpoint(folder: Path, seed: int = 0, **information) -> Path:
    """A checkpoint whose menu router takes other paths for other prompts."""
    base = folder / "base"
    if not base.exists():
        save_tiny_base(base, LAYERS, initializer_range=0.5, **SIZES)
    fields = {"router": "menu", "kept_layers": 2, "menu": MENU, "router_reads": [1, 2], "cost": 0.01}
    routed = RoutedLlamaForCausalLM.from_pretrained(base, **fields)
    torch.manual_seed(seed)
    router = routed.model.routers
    with torch.no_grad():
        router.linears[0].weight.normal_(0, 0.0002)
        router.linears[0].bias.copy_(torch.tensor([0.5, 0.49, 0.45, 0.3]))
        router.errors.zero_()
    record = {"arguments": {"model_id": str(base), "cost": 0.01}, "datasets": ["arithmetic"]} | information
    target = folder / f"checkpoint-{seed}"
    save_checkpoint(target, str(base), router.state_dict(), fields, "copy", record)
    return target


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return save_menu_checkpoint(tmp_path_factory.mktemp("models"))


@pytest.fixture
def checkpoint(trained, tmp_path) -> Path:
    shutil.copytree(trained, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def run(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["dlr calibrate", *map(str, words)])
    calibrate.main()


def plant(monkeypatch, right) -> list:
    """Verdicts by `right(route)`, True for every question or False; gives what is asked for, as it is asked."""
    asked = []

    def verdicts(model, tokenizer, requests, lines, skip_action, batch_size, folder, key):
        asked.append([(request.example.id, route) for request, route in zip(requests, lines[0], strict=True)])
        return [[Verdict(right(route)) for route in lines[0]]]

    monkeypatch.setattr(calibration, "verdicts_along", verdicts)
    return asked


WORDS = ["--max_loss", 0.1, "--data", "arithmetic", "--split", "validation", "--num_samples", 60]


def test_the_largest_saving_that_keeps_the_promise_is_set(checkpoint, monkeypatch, capsys):
    """Paths of five and six layers are always right, shorter ones never."""
    write_model_card(checkpoint)
    asked = plant(monkeypatch, lambda route: sum(route) >= 5)
    run(monkeypatch, checkpoint, *WORDS)
    note, config = (json.loads((checkpoint / f"{name}.json").read_text()) for name in ("calibration", "config"))
    assert config["cost"] == note["set"]["cost"] and config["route_bias"] == 0.0
    assert note["questions"] == 60 and note["questions_by_dataset"] == {"arithmetic": 60}
    assert note["full_accuracy"] == 1.0 and note["accuracy"] > 0.9 and note["layers"] < LAYERS
    kept, (failed,) = note["tested"][:-1], note["tested"][-1:]
    assert kept[-1]["value"] == config["cost"] and failed["p"] > 0.05 >= max(test["p"] for test in kept)
    assert [test["value"] for test in note["tested"]] == note["grid"][: len(note["tested"])]
    layers = [test["layers"] for test in note["tested"]]
    assert layers == sorted(layers, reverse=True) and layers[0] > 5.9
    # Each pair of question and route is answered once.
    pairs = [pair for part in asked for pair in part]
    assert len(set(pairs)) == len(pairs)
    # What was decided from the prompts read once is what the checkpoint decides, loaded anew.
    model, tokenizer = load_checkpoint(checkpoint, torch.float32, torch.device("cpu"))
    prompts = [request.prompt_ids for request in draw_requests("arithmetic", "validation", 60, tokenizer)]
    routes = decided_routes(model, tokenizer, prompts, 7)
    assert sum(map(sum, routes)) / 60 == pytest.approx(note["layers"])
    assert promise_of(checkpoint)["holds"] and note["checkpoint_sha256"] == checkpoint_hash(
        checkpoint, ("cost", "route_bias")
    )
    card = " ".join((checkpoint / CARD).read_text().split())
    assert "## Guarantee" in card and "With 95% confidence accuracy is at most 0.1 below" in card
    out = capsys.readouterr().out
    assert f"runs {note['layers']:.2f} of 6 layers" in " ".join(out.split()) and "The next setting" in out


def test_a_promise_of_what_was_changed_holds_no_more(checkpoint, monkeypatch):
    plant(monkeypatch, lambda route: True)
    run(monkeypatch, checkpoint, *WORDS)
    before = json.loads((checkpoint / "config.json").read_text())
    for change in ({"cost": 0.9}, {"caution": 1.0}, {"route_bias": 0.1}):
        (checkpoint / "config.json").write_text(json.dumps(before | change))
        assert not promise_of(checkpoint)["holds"]
    write_model_card(checkpoint)
    assert "it holds no more" in " ".join((checkpoint / CARD).read_text().split())
    (checkpoint / "config.json").write_text(json.dumps(before))
    assert promise_of(checkpoint)["holds"]
    run(monkeypatch, checkpoint, "--target_layers", "none")
    assert promise_of(checkpoint) is None
    config, trained = (json.loads((checkpoint / f"{name}.json").read_text()) for name in ("config", "training"))
    assert config["cost"] == trained["arguments"]["cost"] != before["cost"], "as trained"


def test_where_nothing_is_found_the_checkpoint_stays_as_it_is(checkpoint, monkeypatch, capsys):
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.is_file()}
    plant(monkeypatch, lambda route: sum(route) == LAYERS)
    run(monkeypatch, checkpoint, *WORDS, "--grid", "0.5")
    assert "so more of them would not show it" in " ".join(capsys.readouterr().out.split())
    plant(monkeypatch, lambda route: True)
    run(monkeypatch, checkpoint, *WORDS[:-1], 8)
    said = " ".join(capsys.readouterr().out.split())
    assert "is left as it is: no saving is shown to lose at most 0.1 with 95% confidence" in said
    assert "questions would show it with a probability of 80 %" in said
    run(monkeypatch, checkpoint, *WORDS, "--grid=-5,-4")
    assert "no setting of --grid saves any layer" in " ".join(capsys.readouterr().out.split())
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.is_file()} == before


def test_real_verdicts_and_a_rerun_that_answers_nothing_again(checkpoint, monkeypatch):
    words = [*WORDS[:-1], 10, "--max_loss", "0.99", "--grid", "0,0.01,0.05,0.5"]
    run(monkeypatch, checkpoint, *words)
    first = json.loads((checkpoint / "calibration.json").read_text())
    assert len(first["tested"]) == 4 and first["layers"] == 3.0
    monkeypatch.setattr("routing.scoring.packed.PathEvaluator.verdicts", None)
    run(monkeypatch, checkpoint, *words)
    again = json.loads((checkpoint / "calibration.json").read_text())
    assert again == first


def test_routers_without_a_menu_are_calibrated_by_their_bias(tmp_path, monkeypatch):
    folder = save_tiny_checkpoint(tmp_path, LAYERS)
    plant(monkeypatch, lambda route: True)
    monkeypatch.setattr(calibration, "SAVINGS", (0.1, 0.3))
    for module in (calibrate, calibrate_work):
        monkeypatch.setattr(module, "SAMPLES", 20)
    run(monkeypatch, folder, *WORDS, "--tolerance", 0.4)
    note, config = (json.loads((folder / f"{name}.json").read_text()) for name in ("calibration", "config"))
    assert note["set"] == {"route_bias": config["route_bias"]} and note["grid"] == sorted(note["grid"], reverse=True)
    assert note["layers"] < 5 and promise_of(folder)["holds"]
    model, tokenizer = load_checkpoint(folder, torch.float32, torch.device("cpu"))
    prompts = [request.prompt_ids for request in draw_requests("arithmetic", "validation", 60, tokenizer)]
    with config_with(model, route_bias=config["route_bias"]):
        routes = decided_routes(model, tokenizer, prompts, 16)
    assert sum(map(sum, routes)) / 60 == pytest.approx(note["layers"])


def test_wrong_arguments_of_a_promise(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate_work, "load_checkpoint", None)
    with pytest.raises(UserError) as error:
        run(
            monkeypatch, checkpoint, "--max_loss", 0, "--confidence", 1, "--grid", "a", "--split", "search",
            "--num_samples", "-1",
        )  # fmt: skip
    for message in (
        "--max_loss 0.0 must lie",
        "--confidence 1.0 must lie",
        "--grid 'a' must be numbers",
        "--split search holds the questions that routers are trained on",
        "--num_samples -1 must be at least 1",
    ):
        assert message in str(error.value)
    (tmp_path / "own.jsonl").write_text('{"question": "1 + 1 =", "answer": "2"}\n')
    fields = json.loads((checkpoint / "config.json").read_text()) | {"router": "prefix_token"}
    (checkpoint / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="whose tokens take routes of their own") as error:
        run(monkeypatch, checkpoint, "--max_loss", 0.1, "--data", tmp_path / "own.jsonl", "--split", "search")
    assert "give --grid" in str(error.value)


@pytest.mark.parametrize("words", (["--max_loss", 0.05], ["--target_layers", 5]))
def test_questions_are_prompted_as_the_labels_were(checkpoint, monkeypatch, words):
    """A checkpoint says how; flags may say otherwise."""
    record = json.loads((checkpoint / "training.json").read_text())
    record["prompting"] = {"scoring": "generate", "apply_chat_template": True, "tools_in_template": False}
    (checkpoint / "training.json").write_text(json.dumps(record))

    def draw(names, split, count, tokenizer, prompting):
        raise UserError(f"{prompting.scoring}, chat template {prompting.apply_chat_template}")

    monkeypatch.setattr(calibrate_work, "draw_requests", draw)
    with pytest.raises(UserError, match="generate, chat template True"):
        run(monkeypatch, checkpoint, *words)
    with pytest.raises(UserError, match="generate, chat template False"):
        run(monkeypatch, checkpoint, *words, "--no_chat_template")
