"""What the speed benchmarks rest on: routes of the right length, and the check that refuses what is not exact."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import decode
import prefill
import pytest
import routed_speed
import router_share
import token_routing
import torch
from conftest import LAYERS, SLIDING_FAMILIES, VOCAB, Family, stock_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from routing.common.errors import UserError


def models_of(family: Family, folder: Path, **fields) -> routed_speed.Models:
    stock_model(family).save_pretrained(folder)
    return routed_speed.Models(Namespace(model=str(folder), dtype="float32", device="cpu"), **fields)


def test_routes_skip_their_share():
    for share in routed_speed.SHARES:
        for mixed in (False, True):
            routes = routed_speed.make_routes(30, 8, share, mixed)
            assert routes.shape == (8, 30) and set(routes.sum(1).tolist()) == {30 - round(share * 30)}
            assert (len({tuple(route) for route in routes.tolist()}) > 1) == (mixed and share > 0)


def test_what_is_exact_passes_and_what_is_not_is_refused(any_family, tmp_path, monkeypatch):
    models = models_of(any_family, tmp_path)
    prompts = models.prompts(3, 9)
    for routes in (torch.ones(3, LAYERS, dtype=torch.long), torch.tensor([[1, 0, 1, 2, 1], [0, 1, 1, 1, 0], [1] * 5])):
        assert routed_speed.check_exact(models, prompts, routes) < 1e-3
    dense = models.pruned([1] * LAYERS)
    monkeypatch.setattr(models, "pruned", lambda route: dense)
    with pytest.raises(UserError, match="are not exact: log-probabilities differ by"):
        routed_speed.check_exact(models, prompts, routes)


@pytest.mark.parametrize("phase", [decode, prefill])
def test_every_route_is_measured(phase, tmp_path):
    models = models_of(SLIDING_FAMILIES[0], tmp_path)
    routes = [(s, m, routed_speed.make_routes(LAYERS, 2, s, m)) for s, m in ((0.0, False), (0.4, False), (0.4, True))]
    rows = phase.measure(models, models.prompts(2, 6), routes, repeats=2)
    assert [row["speedup"] > 0 for row in rows] == [True] * 3 and "pruned" in rows[1] and "pruned" not in rows[2]
    if phase is decode:
        assert [row["cache_share"] for row in rows] == pytest.approx([1.0, 0.6, 0.6], abs=0.15)
    else:
        assert "router_share" in rows[0]


@pytest.mark.parametrize("kind", ["per_layer", "menu"])
def test_shares_of_decisions_are_measured_where_these_are_right(kind, tmp_path, monkeypatch):
    fields = router_share.menu_fields(LAYERS) if kind == "menu" else {}
    models = models_of(SLIDING_FAMILIES[0], tmp_path, **fields)
    torch.manual_seed(0)
    router_share.draw(models, kind)
    for tokens in (9, 5):
        router_share.check(models, models.prompts(3, tokens), kind)
    assert len(set(models.routed.last_routes.flatten().tolist())) > 1
    name = "menu_route" if kind == "menu" else "layer_counts"
    with monkeypatch.context() as patch, pytest.raises(UserError, match=f"decisions of {kind} routers differ"):
        patch.setattr(router_share, name, lambda *others: None)
        router_share.check(models, models.prompts(3, 9), kind)
    router_share.run_all_layers(models, kind)
    (row,) = router_share.measure({kind: models}, 2, 6, 2, 9.0)
    assert 0 < row["router_share"] < 1 and row["prefills"] == 2 and row["prefill_seconds"] > 0
    assert models.routed.last_routes.tolist() == [[1] * LAYERS] * 2


def test_pruned_models_share_the_weights(family, tmp_path):
    models = models_of(family, tmp_path)
    pruned = models.pruned([1, 0, 2, 0, 1])
    assert len(pruned.model.layers) == pruned.config.num_hidden_layers == 4
    own = {parameter.data_ptr() for parameter in models.dense.parameters()}
    routed = (parameter for name, parameter in models.routed.named_parameters() if ".routers." not in name)
    assert {parameter.data_ptr() for parameter in (*pruned.parameters(), *routed)} == own
    assert models.dense.config.num_hidden_layers == LAYERS and models.dense.config.vocab_size == VOCAB


def test_ratios_are_those_of_neighbours():
    assert routed_speed.speedup([2.0, 6.0, 9.0], [1.0, 2.0, 9.0]) == 2.0
    calls = []
    seconds = routed_speed.in_turn([lambda: calls.append("a"), lambda: calls.append("b")], 2, lambda: None)
    assert calls == ["a", "b"] * 3 and list(map(len, seconds)) == [2, 2]


@pytest.fixture
def token_models(family, tmp_path) -> routed_speed.Models:
    models = models_of(family, tmp_path, router="prefix_token", kept_layers=token_routing.KEPT)
    models.routed.model.init_routers()
    return models


def test_gathered_tokens_pass_and_what_is_not_exact_is_refused(token_models, monkeypatch):
    prompts = token_models.prompts(3, 9)
    assert token_routing.check(token_models, prompts, 0.5) < 1e-3
    real = token_routing.Gates
    monkeypatch.setattr(token_routing, "Gates", lambda skip, hard: real(0.9 if hard else skip, hard))
    with pytest.raises(UserError, match="50% skipped: gathered and masked log-probabilities differ"):
        token_routing.check(token_models, prompts, 0.5)


def is_counted(models) -> bool:
    model_type = models.routed.config.model_type
    return not any(name in model_type for name in ("phi3", "moe"))


@pytest.mark.parametrize("skip", (0.0, 1.0))
def test_work_is_what_torch_counts(token_models, skip):
    """Multiplications and additions of a forward; torch counts all pairs of queries and keys, causal ones count."""
    model, tokens = token_models.routed, 12
    prompts = token_models.prompts(1, tokens)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(prompts, use_cache=False, logits_to_keep=1, draw_gates=token_routing.Gates(2 * skip, hard=True))
    if not is_counted(token_models):
        with pytest.raises(UserError, match="is not counted: it has experts, or one projection"):
            token_routing.Work(model)
        return
    work = token_routing.Work(model)
    layers = token_routing.KEPT + (LAYERS - token_routing.KEPT) * (1 - skip)
    other_half = layers * (tokens * tokens - tokens * (tokens + 1) / 2) * work.attention
    found = work.of(tokens, 0, skip) + tokens * work.router + other_half
    assert 2 * found == counter.get_total_flops()


def test_token_routing_gives_a_row_for_each_share(token_models):
    if not is_counted(token_models):
        with pytest.raises(UserError, match="is not counted"):
            token_routing.measure(token_models, token_models.prompts(2, 6), [0.0, 0.5], 1, False)
        return
    for decoding in (False, True):
        rows = token_routing.measure(token_models, token_models.prompts(2, 6), [0.0, 0.5], 1, decoding)
        assert [row["skipped_fraction"] for row in rows] == [0.0, 0.5]
        assert all(row["speedup"] > 0 and row["masked"] > 0 for row in rows) and rows[1]["ideal"] > rows[0]["ideal"]
