"""train.py --objective value: ridge against its equations, cross-fitting against loops, planted problems, runs."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import LAYERS, LLAMA, assert_near, padded, random_rows, routed_from, save_tiny_base, stock_model
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn
from torch.utils.data import default_collate
from transformers import LlamaForCausalLM

from routing.commands import train
from routing.common.cli import parse
from routing.common.errors import UserError
from routing.common.files import write_json, write_text
from routing.evaluation.budget import decided_routes
from routing.labels.records import label_line
from routing.models.checkpoint import load_checkpoint, save_checkpoint
from routing.models.checkpoint_files import adapter_hashes
from routing.models.families import load_tokenizer
from routing.report.card import write_model_card
from routing.scoring.requests import request_of
from routing.search.results import SearchResult, Verdict
from routing.tasks.examples import Example, held_out_key
from routing.training.features import RouterExample, router_inputs
from routing.training.value import menu, per_layer
from routing.training.value.arguments import ValueArguments
from routing.training.value.crossfit import chosen_setting, crossfit, explained, fold_of, from_parts, to_parts
from routing.training.value.estimators import Mlp, Ridge
from routing.training.value.frontier import chosen_paths, frontier, standard_errors, static_reward
from routing.training.value.menu import auto_reads, shared_layers
from routing.training.value.per_layer import (
    NEVER,
    ValueStack,
    load_tried,
    rule_out,
    train_stack,
    value_logits,
    verdict_metrics,
)
from routing.training.value.prompts import prompt_inputs
from routing.training.value.ridge import ridge, standard
from train_models.routed_model import small_parts
from train_models.routers import RouterBlock

MENU = [[1, 1, 1, 1, 1], [1, 1, 0, 1, 1], [1, 1, 0, 0, 0]]
COUNTS = np.array([5, 4, 2])


def regression(questions: int, features: int, paths: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(questions, features)) * 3 + 1, rng.integers(0, 2, (questions, paths)).astype(float)


@pytest.mark.parametrize("shape", ((30, 7), (12, 40)))
def test_ridge_solves_its_normal_equations(shape):
    """More questions than features, and fewer: two ways through the same equations."""
    features, targets = regression(*shape)
    features[:, 2] = 4.0  # It says nothing, and must not divide by zero.
    scaled = standard(features)(features)
    assert np.isfinite(scaled).all() and abs(scaled.mean(0)).max() < 1e-12
    strengths = (0.1, 5.0, np.inf)
    weights = ridge(scaled, targets, strengths)
    for strength, found in zip(strengths[:2], weights):
        left = scaled.T @ scaled / len(scaled) + strength * np.eye(shape[1])
        expected = np.linalg.solve(left, scaled.T @ (targets - targets.mean(0)) / len(scaled))
        np.testing.assert_allclose(found, expected, atol=1e-10)
        library = SklearnRidge(alpha=strength * len(scaled)).fit(scaled, targets)
        np.testing.assert_allclose(found.T, library.coef_, atol=1e-8)
    assert not weights[2].any()


def test_cross_fitting_equals_a_loop_over_the_folds():
    features, rewards = regression(40, 6)
    folds, strengths = [number % 4 for number in range(40)], (0.01, 1.0, 100.0)
    fit = crossfit(Ridge(strengths).predict, features, rewards, folds)
    predicted = np.empty((3, 40, 3))  # of the parts
    for row in range(40):
        others = [other for other in range(40) if folds[other] != folds[row]]
        mean, scale = features[others].mean(0), features[others].std(0)
        left, parts = (
            (features[others] - mean) / scale,
            rewards[others] - np.c_[np.zeros(30), rewards[others][:, [0, 0]]],
        )
        for index, strength in enumerate(strengths):
            model = SklearnRidge(alpha=strength * len(others)).fit(left, parts)
            predicted[index, row] = model.predict(((features[row] - mean) / scale)[None])[0]
    actual = rewards - np.c_[np.zeros(40), rewards[:, [0, 0]]]
    squared = (predicted - actual) ** 2
    np.testing.assert_allclose(fit.errors, squared.mean(1), atol=1e-9)
    for row in range(40):
        seen = squared[:, [other for other in range(40) if folds[other] != folds[row]]].sum(1)
        spread = actual[[other for other in range(40) if folds[other] != folds[row]]].var(0)
        full, differences = seen[:, 0].argmin(), (seen[:, 1] / spread[1] + seen[:, 2] / spread[2]).argmin()
        expected = predicted[full, row, 0] + np.r_[0, predicted[differences, row, 1:]]
        np.testing.assert_allclose(fit.estimates[row], expected, atol=1e-9)


def test_a_question_does_not_move_its_own_estimate():
    features, rewards = regression(24, 4)
    folds = [number % 3 for number in range(24)]
    changed = rewards.copy()
    changed[0] = 1 - changed[0]
    one, other = (crossfit(Ridge((1.0,)).predict, features, given, folds) for given in (rewards, changed))
    same = [row for row in range(24) if folds[row] == 0]
    np.testing.assert_array_equal(one.estimates[same], other.estimates[same])
    assert not np.allclose(one.estimates[1], other.estimates[1])


def test_parts_settings_and_folds():
    rewards = np.array([[0.5, 0.25, 1.0]])
    np.testing.assert_array_equal(to_parts(rewards), [[0.5, -0.25, 0.5]])
    np.testing.assert_array_equal(from_parts(to_parts(rewards)), rewards)
    errors = np.array([[3.0, 1.0, 5.0], [1.0, 3.0, 2.0]])
    spread = np.array([1.0, 2.0, 2.0])
    assert chosen_setting(errors, spread) == (1, 1) and chosen_setting(errors[:, [0, 1, 1]], spread) == (1, 0)
    assert chosen_setting(errors[:, [0, 1, 1]], spread, joint=True) == (0, 0)
    assert chosen_setting(errors, np.array([1.0, 1.0, 9.0])) == (1, 0)  # Of 9, a 3 more or less is little.
    assert chosen_setting(errors, np.array([1.0, 0.0, 1.0])) == (1, 1)  # A path like the full one says nothing.
    counts = np.bincount([fold_of(str(number), 5) for number in range(2000)], minlength=5)
    assert len(counts) == 5 and counts.min() > 300


def planted(questions: int, seed: int = 0):
    """Features of which two say whether the short path and the middle one are right; the full one is at 0.6."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(questions, 6))
    chance = np.stack([np.full(questions, 0.6), 0.3 + 0.6 * (features[:, 0] > 0), 0.1 + 0.8 * (features[:, 1] > 0)], 1)
    return features, (rng.random((questions, 3)) < chance).astype(float), chance


@pytest.mark.parametrize("kind", ("ridge", "mlp"))
def test_the_router_finds_what_is_planted_and_the_shuffled_one_does_not(kind):
    features, rewards, chance = planted(600)
    estimator = Ridge() if kind == "ridge" else Mlp((8,), 8, 2e-2, 0.01, 100, 0)
    folds = [row % 5 for row in range(600)]
    errors = standard_errors(rewards)

    def reached(fit):
        points = frontier(fit.estimates, errors, rewards, COUNTS, 0.0, (0.0, 0.01))
        assert points[1]["layers"] <= points[0]["layers"]
        return points[0]

    fit = crossfit(estimator.predict, features, rewards, folds, joint=estimator.joint)
    own = reached(fit)
    control = reached(crossfit(estimator.predict, features, rewards, folds, np.random.default_rng(0), estimator.joint))
    best = chance.max(1).mean()
    assert own["reward"] > own["static"] + 0.1 and own["reward"] > best - 0.06
    assert control["reward"] < own["reward"] - 0.08 and control["reward"] < control["static"] + 0.03
    of_reward, of_difference = explained(rewards, fit.estimates)
    assert of_difference[0] is None and min(of_difference[1:]) > 0.1 > of_reward[0]
    router = estimator.fit(features, rewards, fit.setting)
    new, outcomes, chance = planted(400, seed=1)
    with torch.no_grad():
        router.errors.copy_(torch.from_numpy(errors))
        estimates, found = router(torch.from_numpy(new))
    chosen = chosen_paths(estimates.numpy(), found.numpy(), COUNTS, 0.0, 0.0)
    assert chance[np.arange(400), chosen].mean() > chance.mean(0).max() + 0.1


def test_a_fitted_router_estimates_what_its_equations_say():
    features, rewards = regression(50, 5)
    router = Ridge((0.5, 20.0)).fit(features, rewards, (0, 1))
    scaled = standard(features)
    parts = to_parts(rewards)
    light, heavy = ridge(scaled(features), parts, (0.5, 20.0))
    expected = scaled(features) @ light[:, :1] + parts[:, 0].mean()
    expected = np.c_[expected, expected + scaled(features) @ heavy[:, 1:] + parts[:, 1:].mean(0)]
    with torch.no_grad():
        found, _ = router(torch.from_numpy(features))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    again = Mlp((4,), 3, 1e-2, 0.0, 16, seed=5)
    first, second = (again.fit(features, rewards, (2, 2)).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    last = again.predict(features, rewards, features)[2]
    with torch.no_grad():
        np.testing.assert_allclose(again.fit(features, rewards, (2, 2))(torch.from_numpy(features))[0], last, atol=1e-6)


def test_caution_and_static_paths_by_hand():
    rewards = np.array([[1.0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 1, 1]])
    errors = standard_errors(rewards)
    np.testing.assert_allclose(errors, [0, np.std([0, 1, -1, 1], ddof=1) / 2, np.std([-1, 0, -1, 1], ddof=1) / 2])
    estimates = np.array([[0.5, 0.9, 0.2], [0.5, 0.6, 0.2], [0.5, 0.4, 0.2], [0.5, 0.5, 0.5]])
    assert chosen_paths(estimates, errors, COUNTS, 0.0, 0.0).tolist() == [1, 1, 0, 0]
    assert chosen_paths(estimates, errors, COUNTS, 0.0, 0.5).tolist() == [1, 0, 0, 0]  # 0.1 is less than 0.5 * 0.479
    assert chosen_paths(estimates, errors, COUNTS, 0.01, 0.0).tolist() == [1, 1, 0, 2]
    means = np.array([0.5, 0.75, 0.25])
    assert [static_reward(COUNTS, means, at) for at in (1, 2, 3, 4, 5, 6)] == [0.25, 0.25, 0.5, 0.75, 0.75, 0.75]
    assert static_reward(np.array([5, 4, 2]), np.array([0.8, 0.5, 0.5]), 4) == pytest.approx(0.7)  # 5 and 2 mixed


def test_layers_that_all_paths_share():
    assert shared_layers([tuple(route) for route in MENU]) == 2
    assert shared_layers([(1, 1, 1), (2, 1, 1)]) == 0 and shared_layers([(1, 1, 1)]) == 2
    assert all(0 <= read <= kept for kept in range(12) for read in auto_reads(kept))


@torch.no_grad()
def test_features_are_those_that_the_router_reads_and_no_layer_behind_runs():
    model = routed_from(LLAMA, stock_model(LLAMA), router="none")
    menu = routed_from(LLAMA, stock_model(LLAMA), router="menu", menu=MENU, kept_layers=2, router_reads=[1, 2])
    seen = []
    menu.model.routers.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    ran = [layer.register_forward_hook(lambda *_: pytest.fail("a layer ran")) for layer in model.model.layers[2:]]
    rows = random_rows((7, 3, 12))
    found = prompt_inputs((1, 2), model, [RouterExample(tuple(row.tolist()), ()) for row in rows], 0)["features"]
    for row, own in zip(rows, found, strict=True):
        with pytest.warns(UserWarning) if not seen else torch.no_grad():
            menu(row[None])
        assert_near(own, seen[-1][0])
    assert len(ran) == LAYERS - 2


# The additive model of routers of layers.


def test_the_value_of_a_route_is_a_sum_over_layers():
    torch.manual_seed(0)
    logits, routes, base = torch.randn(4, LAYERS, 3), torch.randint(0, 3, (4, LAYERS)), torch.randn(4)
    expected = [
        base[row] + sum(logits[row, layer, count] - logits[row, layer, 1] for layer, count in enumerate(routes[row]))
        for row in range(4)
    ]
    assert_near(value_logits(logits, routes, base), torch.stack(expected))
    shifted = logits + torch.randn(4, LAYERS, 1)  # An argmax does not see it, nor must the model.
    assert_near(value_logits(shifted, routes, base), torch.stack(expected))
    assert_near(value_logits(logits, torch.ones_like(routes), base), base)


def value_batch(rows: int, width: int = 10, layers: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    windows = torch.arange(4) < torch.randint(1, 5, (rows, 1), generator=generator)
    features = torch.randn(rows, layers, 4, width, generator=generator) * windows[:, None, :, None]
    labels = torch.randint(0, 2, (rows, layers), generator=generator)
    return {"features": features, "windows": windows, "labels": labels, "rewards": torch.ones(rows)}


def test_stacked_values_are_those_of_the_routers_and_begin_at_the_mean():
    torch.manual_seed(0)
    routers = nn.ModuleList(RouterBlock(10, 8) for _ in range(3))
    for parameter in routers.parameters():
        nn.init.normal_(parameter)
    batch = value_batch(6)
    stack = ValueStack(routers, 0.3)
    assert_near(stack(**batch)["logits"].sigmoid(), torch.full((6,), 0.3))
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.normal_()
        stack.write_to(routers)
        alone = torch.stack([router(batch["features"][:, i], batch["windows"]) for i, router in enumerate(routers)], 1)
        output = stack(**batch)
        base = stack.base(batch["features"], batch["windows"])
        assert_near(output["logits"], value_logits(alone, batch["labels"], base))
    expected = nn.functional.binary_cross_entropy_with_logits(output["logits"], batch["rewards"])
    assert_near(output["loss"], expected)


def test_the_additive_model_learns_which_layer_can_go():
    """Skipping layer 1 hurts where a feature of its input is above 0, skipping layer 2 always, layer 0 never."""
    torch.manual_seed(0)
    batch = value_batch(600, seed=1)
    share = batch["windows"].float() / batch["windows"].sum(1, keepdim=True)
    seen = (batch["features"][:, 1, :, 0] * share).sum(1) > 0
    skipped = batch["labels"] == 0
    logit = 2.0 - 4.0 * (skipped[:, 1] & seen) - 4.0 * skipped[:, 2]
    batch["rewards"] = (torch.rand(600) < logit.sigmoid()).float()
    routers = nn.ModuleList(RouterBlock(10, 8) for _ in range(3))
    for router in routers:
        router.reset_parameters()
    stack = ValueStack(routers, 0.5)
    optimizer = torch.optim.AdamW(stack.parameters(), 2e-2, weight_decay=0.05)
    for _ in range(40):
        loss = stack(**batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    stack.write_to(routers)
    assert rule_out(routers, batch["labels"].split(1)).tolist() == [[True, True, False]] * 3
    with torch.no_grad():
        new = value_batch(300, seed=2)
        share = new["windows"].float() / new["windows"].sum(1, keepdim=True)
        seen = (new["features"][:, 1, :, 0] * share).sum(1) > 0
        logits = torch.stack([router(new["features"][:, i], new["windows"]) for i, router in enumerate(routers)], 1)
        counts = (logits - 0.5 * torch.arange(3)).argmax(-1)  # as at inference, with cost 0.5
    assert (counts[:, 2] == 1).float().mean() > 0.97 and (counts[:, 0] == 0).float().mean() > 0.8
    assert ((counts[:, 1] == 1) == seen).float().mean() > 0.65
    assert logits[..., 2].max() < NEVER / 2


def test_the_value_of_a_question_reads_the_mean_of_its_windows():
    torch.manual_seed(0)
    stack = ValueStack(nn.ModuleList(RouterBlock(10, 8) for _ in range(3)), 0.5)
    nn.init.normal_(stack.base_down.weight)
    features, windows = torch.randn(2, 3, 2, 10), torch.tensor([[3, 1], [2, 0]])
    for row, mean in enumerate((0.75 * features[0, 0, 0] + 0.25 * features[0, 0, 1], features[1, 0, 0])):
        hidden = nn.functional.gelu(stack.base_up(mean / mean.square().mean().sqrt()))
        assert stack.base(features, windows)[row].item() == pytest.approx(stack.base_down(hidden).item(), abs=1e-5)


def test_the_values_of_the_best_epoch_are_kept_not_the_last(tmp_path, monkeypatch):
    torch.manual_seed(0)
    stack = ValueStack(nn.ModuleList(RouterBlock(10, 8) for _ in range(3)), 0.5)
    rows = [dict(zip(row, values)) for row in [value_batch(8)] for values in zip(*row.values())]
    losses, seen = iter([0.6, 0.1, 0.9]), []

    def measure(*_) -> dict[str, float]:
        seen.append({name: tensor.clone() for name, tensor in stack.state_dict().items()})
        return {"log_loss": next(losses)}

    monkeypatch.setattr(per_layer, "verdict_metrics", measure)
    monkeypatch.setattr(per_layer, "read_batch", default_collate)
    arguments = ValueArguments(run_name="r", num_epochs=3, batch_size=2, learning_rate=1e-2, device="cpu")
    trainer = train_stack(arguments, stack, (rows, rows), 0.5, tmp_path)
    assert trainer.state.best_global_step == 8  # of 12
    assert all(torch.equal(tensor, seen[1][name]) for name, tensor in stack.state_dict().items())
    assert not torch.equal(stack.down, seen[2]["down"])


@pytest.mark.parametrize(("low", "high", "refused"), [(0.0, 1.0, False), (0.0, 1.5, True), (-0.5, 1.0, True)])
def test_an_mlp_takes_rewards_from_0_to_1(monkeypatch, low, high, refused):
    table = SimpleNamespace(routes=[(1, 1), (1, 0)], rewards=np.array([[low, high]]))
    monkeypatch.setattr(menu, "read_table", lambda folders: table)
    arguments = ValueArguments(run_name="r", data="d", estimator="mlp", device="cpu")
    with pytest.raises(UserError, match="takes rewards from 0 to 1; use ridge") if refused else nullcontext():
        assert menu.checked_table(arguments) is table


def test_metrics_of_verdicts_are_the_library_ones():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=200).round(1)  # with ties
    rewards = (rng.random(200) < 1 / (1 + np.exp(-logits))).astype(float)
    found = verdict_metrics(logits, rewards, 0.4)
    assert found["log_loss"] == pytest.approx(log_loss(rewards, 1 / (1 + np.exp(-logits))))
    assert found["auc"] == pytest.approx(roc_auc_score(rewards, logits))
    assert found["log_loss_rate"] == pytest.approx(log_loss(rewards, np.full(200, 0.4)))
    assert verdict_metrics(np.zeros(4), np.array([0.0, 1, 1, 1]), 0.5)["calibration_error"] > 0.2
    assert verdict_metrics(np.full(4, 50.0), np.ones(4), 1.0)["calibration_error"] < 1e-6


# Whole runs of train.py.


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return save_tiny_base(tmp_path_factory.mktemp("base"), LAYERS, **sizes)


QUESTIONS = 120


def examples() -> list[Example]:
    """Half of the questions speak of apples, where the shortest path is right, the others of tins, where it is not."""
    rng = Random(0)
    found = []
    for number in range(QUESTIONS):
        what = "apples apples apples" if number % 2 else "tins tins tins"
        found.append(Example("shop", f"{rng.randint(100, 999)} {what} {number}", "3", checker="number"))
    return found


def write_labels(folder: Path, base: Path, dense: bool, adapters: str = "", few: int = QUESTIONS) -> Path:
    """Labels in whose table the shortest path is right for apples, and the full one mostly for tins."""
    tokenizer, rng = load_tokenizer(str(base)), Random(1)
    header = {
        "format": "dlr-labels-1",
        "model": str(base),
        "num_layers": LAYERS,
        "arguments": {"apply_chat_template": False, "adapters": adapters, "adapters_sha256": adapter_hashes(adapters)},
    }
    if dense:
        header["menu"] = {"spec": "file", "routes": MENU}
    lines = []
    for number, example in enumerate(examples()[:few]):
        right = [rng.random() < 0.7, rng.random() < 0.5, bool(number % 2) == (rng.random() < 0.95)]
        routes = [tuple(route) for route in MENU]
        verdicts = dict(zip(routes, map(Verdict, right)))
        lines.append(label_line(request_of(example, "generate", tokenizer), SearchResult(verdicts)))
    folder.mkdir(parents=True)
    write_json(folder / "labels.header.json", header)
    write_text(folder / "labels.jsonl", "".join(lines))
    return folder


def train_with(tmp_path: Path, base: Path, data: Path, monkeypatch, *words: str) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv",
        ["train.py", "--objective", "value", "--model_id", str(base), "--data", str(data), "--run_name", "r", *words],
    )  # fmt: skip
    train.main()
    return tmp_path / "checkpoints" / "r"


def prompts_of(folder: Path, base: Path) -> list[tuple[int, ...]]:
    tokenizer = load_tokenizer(str(base))
    return [request_of(example, "generate", tokenizer).prompt_ids for example in examples()]


def test_a_run_learns_the_planted_table(tmp_path, base, monkeypatch, capsys):
    data = write_labels(tmp_path / "labels", base, dense=True)
    folder = train_with(tmp_path, base, data, monkeypatch, "--cost", "0.01", "--caution", "0.5")
    training, config = (json.loads((folder / name).read_text()) for name in ("training.json", "config.json"))
    assert training["prompting"] == {"scoring": "auto", "apply_chat_template": False, "tools_in_template": False}
    assert config["router"] == "menu" and config["cost"] == 0.01 and config["menu"] == MENU
    assert config["kept_layers"] == 2 and max(config["router_reads"]) <= 2
    point = next(point for point in training["frontier"] if point["cost"] == 0.01)
    control = next(point for point in training["frontier_shuffled"] if point["cost"] == 0.01)
    assert point["reward"] > 0.75 > point["static"] + 0.03 and control["reward"] < point["reward"] - 0.1
    assert training["paths"][2]["r2_difference"] > 0.2 > training["paths"][1]["r2"]
    model, tokenizer = load_checkpoint(folder, torch.float32, torch.device("cpu"))
    routes = decided_routes(model, tokenizer, prompts_of(folder, base), 16)
    assert np.mean([route == tuple(MENU[2]) for route in routes[1::2]]) > 0.9
    assert np.mean([route == tuple(MENU[2]) for route in routes[::2]]) < 0.1
    card = (folder / "README.md").read_text()
    assert "which of 3 paths of 2 to 5 layers" in card and "trained on shuffled questions" in card
    assert "cross-fitted on 120 questions" in capsys.readouterr().err
    # The same again: features are taken from the disk, and the weights are the same.
    before = (folder / "model.safetensors").read_bytes()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "r" / "prompts").glob("*.safetensors")}
    train_with(tmp_path, base, data, monkeypatch, "--cost", "0.01", "--caution", "0.5")
    assert (folder / "model.safetensors").read_bytes() == before
    assert stamps and stamps == {path: path.stat().st_mtime_ns for path in stamps}


def test_the_shuffled_control_is_a_checkpoint_that_knows_nothing(tmp_path, base, monkeypatch):
    data = write_labels(tmp_path / "labels", base, dense=True)
    words = ("--cost", "0.01", "--shuffle_questions", "--save_base", "reference")
    folder = train_with(tmp_path, base, data, monkeypatch, *words)
    training = json.loads((folder / "training.json").read_text())
    assert training["frontier"] == training["frontier_shuffled"]
    assert "This is a control" in (folder / "README.md").read_text()
    model, tokenizer = load_checkpoint(folder, torch.float32, torch.device("cpu"))
    routes = decided_routes(model, tokenizer, prompts_of(folder, base), 16)
    apples, tins = (np.mean([route == tuple(MENU[2]) for route in routes[start::2]]) for start in (1, 0))
    assert abs(apples - tins) < 0.5


def test_a_network_and_adapters(tmp_path, base, monkeypatch):
    model = LLAMA.routed.from_pretrained(base, router="none", skip_action="adapter", adapter_size=4)
    with torch.no_grad():
        for parameter in model.model.adapters.parameters():
            parameter.normal_(0.0, 0.1)
    adapters, fields = tmp_path / "adapters", {"router": "none", "skip_action": "adapter", "adapter_size": 4}
    information = {"arguments": {"model_id": str(base)}, "datasets": []}
    save_checkpoint(adapters, str(base), small_parts(model.model), fields, "copy", information)
    data = write_labels(tmp_path / "labels", base, dense=True, adapters=str(adapters))
    words = ("--estimator", "mlp", "--router_sizes", "8", "--num_epochs", "6", "--folds", "3", "--reads", "0,2")
    with pytest.raises(UserError, match="was made with adapters.*and --adapters is ''"):
        train_with(tmp_path, base, data, monkeypatch, *words)
    folder = train_with(tmp_path, base, data, monkeypatch, *words, "--adapters", str(adapters))
    loaded, _ = load_checkpoint(folder, torch.float32, torch.device("cpu"))
    assert loaded.config.router_sizes == [8] and loaded.config.router_reads == [0, 2]
    own, others = loaded.model.adapters.state_dict(), model.model.adapters.state_dict()
    assert all(torch.equal(own[name], others[name]) for name in others)
    assert 1 <= json.loads((folder / "training.json").read_text())["setting"]["epochs"] <= 6


def test_routers_of_layers_learn_from_all_verdicts(tmp_path, base, monkeypatch, capsys):
    data = write_labels(tmp_path / "labels", base, dense=False)
    words = ("--router", "per_layer", "--num_epochs", "3", "--router_hidden_size", "16", "--eval_fraction", "0.3")
    folder = train_with(tmp_path, base, data, monkeypatch, *words, "--tried_per_question", "2", "--cost", "0.1")
    training = json.loads((folder / "training.json").read_text())
    assert training["train_paths"] + training["held_out_paths"] == 2 * QUESTIONS
    assert set(training["held_out"]) == {"log_loss", "log_loss_rate", "auc", "calibration_error"}
    best = min(
        (entry for entry in training["log"] if "eval_log_loss" in entry), key=lambda entry: entry["eval_log_loss"]
    )
    assert training["kept_step"] == best["step"]
    assert training["held_out"]["log_loss"] == pytest.approx(best["eval_log_loss"], abs=1e-6)
    assert training["counts_tried"][0] == [False, True, False] and training["counts_tried"][2] == [True, True, False]
    model, tokenizer = load_checkpoint(folder, torch.float32, torch.device("cpu"))
    routes = decided_routes(model, tokenizer, prompts_of(folder, base), 16)
    assert model.config.cost == 0.1 and all(route[:2] == (1, 1) and 2 not in route for route in routes)
    assert "what each choice adds to the logit" in (folder / "README.md").read_text()
    assert "tried paths to train on" in capsys.readouterr().err
    write_model_card(folder)


def test_routers_of_layers_learn_where_states_are_beyond_half_precision(tmp_path, base, monkeypatch):
    """As those of Gemma 3 are: what is cached of them must hold them, by default."""
    loud = LlamaForCausalLM.from_pretrained(base)
    with torch.no_grad():
        loud.model.embed_tokens.weight *= 1e6
    loud.save_pretrained(tmp_path / "loud")
    load_tokenizer(str(base)).save_pretrained(tmp_path / "loud")
    data = write_labels(tmp_path / "labels", tmp_path / "loud", dense=False, few=30)
    words = ("--router", "per_layer", "--num_epochs", "1", "--router_hidden_size", "16", "--eval_fraction", "0.3")
    folder = train_with(tmp_path, tmp_path / "loud", data, monkeypatch, *words)
    assert np.isfinite(json.loads((folder / "training.json").read_text())["held_out"]["log_loss"])
    with pytest.raises(UserError, match="router inputs are not finite in torch.float16"):
        train_with(tmp_path, tmp_path / "loud", data, monkeypatch, *words, "--features_dtype", "float16")


def test_a_path_that_several_folders_tried_for_a_question_counts_once(tmp_path, base):
    first, few = (write_labels(tmp_path / name, base, dense=False, few=few) for name, few in (("a", 30), ("b", 20)))
    tokenizer = load_tokenizer(str(base))

    def loaded(data: str):
        return load_tried(ValueArguments(run_name="r", data=data, eval_fraction=0.4), LAYERS, tokenizer)

    alone, both = loaded(str(first)), loaded(f"{first},{few}")
    assert len(alone.examples) == 30 * len(MENU)
    for name in vars(alone):
        assert list(getattr(both, name)) == list(getattr(alone, name))


def test_bad_input_is_refused_before_a_model_is_loaded(tmp_path, base, monkeypatch):
    def refused(words: list[str], message: str, data: Path) -> None:
        monkeypatch.setattr("routing.training.value.menu.load_base", lambda _: pytest.fail("a model was loaded"))
        with pytest.raises(UserError, match=message):
            train_with(tmp_path, base, data, monkeypatch, *words)

    dense, sparse = (write_labels(tmp_path / str(kind), base, dense=kind, few=4) for kind in (True, False))
    refused([], "not dense.*--search menu", sparse)
    refused(["--reads", "3"], "--reads 3: all paths of the menu run the first 2 layers", dense)
    refused(["--reads", "1,x"], "--reads '1,x' must be whole numbers", dense)
    refused(["--folds", "1"], "--folds 1 must be at least 2", dense)
    refused(["--cost", "inf"], "--cost inf", dense)
    refused(["--router", "per_layer", "--shuffle_questions"], "--shuffle_questions is for --router menu", dense)
    refused(["--data", str(tmp_path / "none")], "holds no labels", dense)
    assert parse(ValueArguments, ["--run_name", "r", "--data", str(dense), "--model_id", str(base)]).cost == 0.01


def test_other_routes_of_a_question_share_what_enters_the_first_layer():
    model = routed_from(LLAMA, stock_model(LLAMA), num_windows=3)
    prompt = tuple(random_rows((9,))[0].tolist())
    found = router_inputs(model, [RouterExample(prompt, tuple(route)) for route in MENU], 0)
    assert torch.equal(found["features"][0, 0], found["features"][2, 0])
    assert not torch.equal(found["features"][0, 4], found["features"][2, 4])
    ids, mask = padded([torch.tensor(prompt)])
    assert ids.shape == mask.shape and held_out_key(examples()[0]) != held_out_key(examples()[1])


@pytest.mark.slow
def test_the_benchmark_compares_both_kinds_of_labels(tmp_path, base, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    import value_labels

    data = write_labels(tmp_path / "labels", base, dense=True)
    words = ["--labels", str(data), "--model", str(base), "--num_samples", "8", "--targets", "4", "--seeds", "1"]
    result = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["x", *words, "--work_dir", str(tmp_path / "work"), "--json", str(result)])
    value_labels.main()
    rows = json.loads(result.read_text())["rows"]
    assert [(row["name"], row["target_layers"]) for row in rows] == [
        ("full path", None), ("hindsight", None), ("hindsight", 4.0), ("value", None), ("value", 4.0)
    ]  # fmt: skip
    assert rows[0]["layers"] == LAYERS and "against_hindsight" in rows[4] and "against_hindsight" not in rows[2]
    monkeypatch.setattr(value_labels, "run_stage", lambda *_: pytest.fail("trained twice"))
    value_labels.main()
