"""The route bias: what it does to routes, how it is found, and the command that sets it."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
import torch
from conftest import LAYERS, routed_from, stock_model
from hypothesis import given
from hypothesis import strategies as st

from routing.evaluation.budget import WIDEST, find_bias, mean_layers


def routed(family, **overrides):
    return routed_from(family, stock_model(family), router_seed=1, **overrides)


def routes_at(model, ids, bias: float) -> list[list[int]]:
    model.config.route_bias = bias
    with torch.no_grad():
        model(ids)
    return model.last_routes.tolist()


def test_bias_counts_once_for_each_run(family):
    """Against logits by hand: bias b adds (0, b, 2b) to those of skip, run and repeat."""
    model = routed(family)
    ids = torch.randint(1, 90, (4, 12), generator=torch.Generator().manual_seed(0))
    found: list[torch.Tensor] = []
    for router in model.model.routers:
        router.register_forward_hook(lambda module, given, output: found.append(output))
    for bias in (-0.7, 0.0, 0.4):
        found.clear()
        routes = routes_at(model, ids, bias)
        expected = [(logits + torch.tensor([0.0, bias, 2 * bias])).argmax(-1).tolist() for logits in found]
        assert routes == [list(row) for row in zip(*expected, strict=True)]


def test_far_biases_skip_and_repeat_everything(family):
    model = routed(family)
    ids = torch.randint(1, 90, (3, 8), generator=torch.Generator().manual_seed(0))
    assert routes_at(model, ids, -1000.0) == [[0] * LAYERS] * 3
    assert routes_at(model, ids, 1000.0) == [[2] * LAYERS] * 3


def test_forced_and_static_routes_know_no_bias(family):
    model = routed(family, route_bias=-1000.0)
    ids = torch.ones(2, 4, dtype=torch.long)
    forced = torch.tensor([[1, 2, 0, 1, 1], [0, 1, 1, 2, 0]])
    with torch.no_grad():
        model(ids, routes=forced)
        assert torch.equal(model.last_routes, forced)
        model.config.is_static_routing = True
        model(ids)
    assert model.last_routes.tolist() == [[1] * LAYERS] * 2


def test_bias_is_saved_and_can_be_given(family, tmp_path):
    model = routed(family, route_bias=-0.25)
    model.save_pretrained(tmp_path)
    assert family.routed.from_pretrained(tmp_path).config.route_bias == -0.25
    assert family.routed.from_pretrained(tmp_path, route_bias=1.5).config.route_bias == 1.5


@pytest.mark.parametrize("value", ["much", True, float("nan"), float("inf"), None])
def test_a_bias_must_be_a_number(family, value):
    with pytest.raises(ValueError, match="route_bias must be a finite number, got"):
        routed(family, route_bias=value)


@given(st.lists(st.floats(-50, 50), min_size=4, max_size=40), st.floats(0.05, 0.95))
def test_the_nearest_mean_is_found(thresholds, wanted):
    """Each of n layers runs above a threshold of its own: the mean can be anything, or jump."""

    def layers_at(bias: float) -> float:
        return sum(bias >= threshold for threshold in thresholds) / len(thresholds) * LAYERS

    target = wanted * LAYERS
    bias, tried = find_bias(layers_at, target, tolerance=1e-9, max_halvings=60)
    assert tried[bias] == layers_at(bias)
    means = {layers_at(value) for value in [*thresholds, *(t - 1e-3 for t in thresholds), -60.0, 60.0]}
    steps = sorted(set(thresholds))
    if all(b - a > 1e-2 for a, b in pairwise(steps)):
        assert abs(tried[bias] - target) <= min(abs(mean - target) for mean in means) + 1e-9


def test_few_steps_are_enough():
    asked = []

    def layers_at(bias: float) -> float:
        asked.append(bias)
        return 15 + 5 * bias

    bias, tried = find_bias(layers_at, 12.3, tolerance=0.1)
    assert abs(tried[bias] - 12.3) <= 0.1 and len(asked) == len(set(asked)) <= 8


@pytest.mark.parametrize("layers", [3.0, 30.0])
def test_what_no_bias_moves_is_left_alone(layers):
    bias, tried = find_bias(lambda bias: layers, 10.0, tolerance=0.1)
    assert bias == 0.0 and max(map(abs, tried)) <= 2 * WIDEST


def test_mean_layers_by_hand():
    assert mean_layers([(0, 1, 2), (0, 0, 1), (1, 1, 1)]) == pytest.approx(7 / 3)


def test_noisy_layers_end_too():
    rng = Random(0)
    bias, tried = find_bias(lambda bias: rng.random() * 30, 10.0, tolerance=1e-6)
    assert len(tried) <= 2 + 11 + 12 and bias in tried
