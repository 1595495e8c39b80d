"""Global routers in the forward: tokens gathered against the masked form, rows, caches, padding, batches, decoding."""

from __future__ import annotations

import pytest
import torch
from conftest import (
    LAYERS,
    LLAMA,
    QWEN2,
    assert_near,
    config_fields,
    entering,
    logits_of,
    naive_layers,
    padded,
    random_rows,
    route_path,
    routed_from,
    sliding,
    stock_model,
)
from hypothesis import given
from hypothesis import strategies as st

from train_models.global_routers import masked_mean, random_gates
from train_models.global_routing import check_attention
from train_models.router_kinds import LEARNED
from train_models.token_layers import gatherings

KEPT = 2
ROUTABLE = LAYERS - KEPT
LENGTHS = (7, 3, 12)


def global_model(family, kind: str, seed: int = 3, **fields):
    """A routed model whose global router decides differently for different inputs."""
    model = routed_from(family, stock_model(family), router=kind, kept_layers=KEPT, **fields)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.model.routers.parameters():
            parameter.normal_(0.0, 1.0 if parameter.ndim > 1 else 0.1)
    return model


def masked_logits(model, row: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """The oracle: logits [T, V] of one row, each layer run for all tokens and kept where the gate [T, R] is on."""
    inner, tokens = model.model, len(row)
    hidden, layers = entering(model, inner.embed_tokens(row[None])), naive_layers(model, tokens)
    for layer in range(LAYERS):
        gate = torch.ones(tokens, dtype=torch.bool) if layer < KEPT else gates[:, layer - KEPT]
        hidden = torch.where(gate[None, :, None], layers[layer](hidden), hidden)
    return logits_of(model, inner.norm(hidden))[0]


@pytest.mark.parametrize("attention", ("sdpa", "eager"))
@pytest.mark.parametrize("cached", (False, True))
@torch.no_grad()
def test_gathered_tokens_equal_the_masked_form(any_family, attention, cached):
    model = global_model(any_family, "prefix_token", attn_implementation=attention)
    for side in ("left", "right"):
        rows = random_rows(LENGTHS)
        ids, mask = padded(rows, side)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(ids, attention_mask=mask, position_ids=positions, use_cache=cached).logits
        gates = model.model.last_gates
        real = gates[mask.bool()]
        assert 0.1 < real.float().mean() < 0.9 and real.float().std(0).max() > 0.3
        for row, own, out, gate in zip(rows, mask.bool(), logits, gates, strict=True):
            assert_near(out[own], masked_logits(model, row, gate[own]))


@torch.no_grad()
def test_each_row_decides_as_it_does_alone(any_family):
    model = global_model(any_family, "prefix_token")
    rows = random_rows(LENGTHS)
    alone = [model(row[None], use_cache=False).logits[0] for row in rows]
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(ids, attention_mask=mask, position_ids=positions).logits
        for own, out, expected in zip(mask.bool(), logits, alone, strict=True):
            assert_near(out[own], expected)


@pytest.mark.parametrize("kind", ("prefix_token", "random_token"))
@torch.no_grad()
def test_cached_decoding_equals_the_whole_forward(any_family, kind):
    model = global_model(any_family, kind, random_seed=1, run_probability=0.5)
    row = random_rows((14,), seed=5)[0]
    whole = model(row[None], use_cache=False).logits[0]
    gates = model.model.last_gates[0]
    shares = model.last_routes
    cache, parts, seen = None, [], []
    for start, end in ((0, 5), (5, 6), (6, 7), (7, 11), (11, 14)):
        output = model(row[None, start:end], past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        parts.append(output.logits[0])
        seen.append(model.model.last_gates[0])
    assert torch.equal(torch.cat(seen), gates) and gates.float().mean() not in (0, 1)
    assert_near(torch.cat(parts), whole)
    assert_near(model.last_routes, shares)
    assert_near(shares[0, KEPT:], gates.float().mean(0))


@torch.no_grad()
def test_batched_generation_equals_that_of_each_row(family):
    model = global_model(family, "prefix_token")
    rows = random_rows(LENGTHS)
    ids, mask = padded(rows)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    together = model.generate(input_ids=ids, attention_mask=mask, **settings)[:, ids.shape[1] :]
    plain = model.generate(input_ids=ids, attention_mask=mask, use_cache=False, **settings)[:, ids.shape[1] :]
    beams = model.generate(input_ids=ids, attention_mask=mask, num_beams=3, **settings)[:, ids.shape[1] :]
    assert torch.equal(together, plain)
    for row, new, beam in zip(rows, together, beams, strict=True):
        assert torch.equal(model.generate(input_ids=row[None], **settings)[0, len(row) :], new)
        assert torch.equal(model.generate(input_ids=row[None], num_beams=3, **settings)[0, len(row) :], beam)


@torch.no_grad()
def test_all_gates_open_is_the_stock_model_and_none_is_its_first_layers(any_family):
    model = global_model(any_family, "prefix_token")
    row = random_rows((9,))[0]
    stock = stock_model(any_family)
    for bias, layers in ((1e4, range(LAYERS)), (-1e4, range(KEPT))):
        model.config.route_bias = bias
        logits = model(row[None]).logits[0]
        gates = torch.full((9, ROUTABLE), bias > 0)
        assert_near(logits, masked_logits(model, row, gates))
        assert model.last_routes[0].sum() == len(layers)
    model.config.route_bias = 1e4
    assert_near(model(row[None]).logits, stock(row[None]).logits)


@torch.no_grad()
def test_only_tokens_that_run_are_computed():
    """The MLP and the query see the tokens that run, and the keys all of them."""
    model = global_model(LLAMA, "prefix_token")
    seen = []
    for layer in model.model.layers:
        for part in (layer.mlp, layer.self_attn.o_proj, layer.self_attn.k_proj):
            part.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[:-1].numel()))
    ids, mask = padded(random_rows((40, 40)))
    model(ids, attention_mask=mask, use_cache=False)
    counts = model.model.last_gates.sum((0, 1)).tolist()
    expected = [[80, 80, 80]] * KEPT + [[80, count, count] if count < 80 else [80] * 3 for count in counts]
    found = [seen[at : at + 3] for at in range(0, len(seen), 3)]
    assert [sorted(part, reverse=True) for part in found] == expected and sum(counts) < 80 * ROUTABLE


@given(data=st.data())
def test_gatherings_name_the_tokens_that_run(data):
    batch, tokens = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    flags = data.draw(st.lists(st.booleans(), min_size=batch * tokens, max_size=batch * tokens))
    gates = torch.tensor(flags).reshape(batch, tokens, 1)
    (some,) = gatherings(gates)
    if some is None:
        assert gates.all()
    else:
        assert some.count == gates.sum() == len(some.flat)
        assert sorted(some.flat.tolist()) == gates.flatten().nonzero()[:, 0].tolist()


@pytest.mark.parametrize("kind", ("embedding", "prefix"))
@torch.no_grad()
def test_rows_with_a_route_each_run_their_layers(any_family, kind):
    rows = random_rows((4, 9, 6, 11, 3, 8))
    ids, mask = padded(rows)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    for seed in (3, 4, 5):  # Until a router decides differently for these rows.
        model = global_model(any_family, kind, seed)
        output = model(ids, attention_mask=mask, position_ids=positions)
        routes = output.routes
        if len(set(map(tuple, routes.tolist()))) > 1:
            break
    assert routes[:, :KEPT].eq(1).all() and len(set(map(tuple, routes.tolist()))) > 1
    for row, own, out, route in zip(rows, mask.bool(), output.logits, routes, strict=True):
        alone = model(row[None], use_cache=False)
        assert alone.routes[0].tolist() == route.tolist()
        gates = route[None, KEPT:].expand(len(row), -1) > 0
        assert_near(out[own], masked_logits(model, row, gates))
        assert_near(out[own], alone.logits[0])
    slots = output.past_key_values.steps
    assert len(slots) < LAYERS + ROUTABLE and all(step.visit == 0 for step in slots)


@torch.no_grad()
def test_a_route_is_kept_while_decoding_and_reads_the_prompt_alone():
    model = global_model(LLAMA, "prefix")
    rows = random_rows((10, 6), seed=2)
    ids, mask = padded(rows, "right")
    first = model(ids, attention_mask=mask, prompt_lengths=torch.tensor([4, 4])).routes
    prompts = model(torch.stack([row[:4] for row in rows])).routes
    assert torch.equal(first, prompts)
    model.generate(input_ids=rows[0][None, :4], max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert torch.equal(model.last_routes, prompts[:1])


@pytest.mark.parametrize("kind", ("embedding", "prefix"))
@torch.no_grad()
def test_a_row_without_a_prompt_runs_all_layers(kind):
    """Its router would read nothing: with this bias it skips all that it may."""
    model = global_model(LLAMA, kind, route_bias=-1e4)
    ids, mask = torch.stack(random_rows((6, 6), seed=2)), torch.tensor([[1] * 6, [0] * 6])
    routes = model(ids, attention_mask=mask, use_cache=False).routes
    assert routes.tolist() == [[1] * KEPT + [0] * ROUTABLE, [1] * LAYERS]


@torch.no_grad()
def test_router_inputs_are_those_of_the_docstring():
    model = global_model(LLAMA, "prefix")
    ids, mask = padded(random_rows(LENGTHS))
    states = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    logits = model.model.routers(masked_mean(states[KEPT], mask.bool()))
    assert torch.equal(model.last_routes[:, KEPT:], (logits > 0).long())
    model = global_model(LLAMA, "embedding")
    embedded = masked_mean(model.model.embed_tokens(ids), mask.bool())
    model(ids, attention_mask=mask)
    assert torch.equal(model.last_routes[:, KEPT:], (model.model.routers(embedded) > 0).long())


@pytest.mark.parametrize("kind", LEARNED)
def test_gates_with_a_gradient_reach_every_router_parameter(family, kind):
    model = global_model(family, kind).train()
    model.requires_grad_(False)
    model.model.routers.requires_grad_(True)
    ids, mask = padded(random_rows(LENGTHS))

    def draw(logits):
        soft = torch.sigmoid(logits)
        return (soft > 0.5).float() + (soft - soft.detach())

    output = model(ids, attention_mask=mask, use_cache=False, draw_gates=draw)
    output.logits[mask.bool()].square().mean().backward()
    for name, parameter in model.model.routers.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", ("prefix", "prefix_token"))
def test_blended_hard_gates_equal_the_hard_forward(any_family, kind):
    """Straight-through gates are hard in the forward, so training sees what inference does."""
    model = global_model(any_family, kind)
    ids, mask = padded(random_rows(LENGTHS))
    positions = (mask.cumsum(1) - 1).clamp(min=0)

    def draw(logits):
        soft = torch.sigmoid(logits)
        return (logits > 0).float() + (soft - soft.detach())

    inputs = {"attention_mask": mask, "position_ids": positions, "use_cache": False}
    soft = model(ids, draw_gates=draw, **inputs).logits
    hard = model(ids, **inputs).logits
    assert_near(soft[mask.bool()], hard[mask.bool()])


def test_random_gates_have_their_probability_and_do_not_depend_on_the_batch():
    ids = torch.randint(0, 49_000, (8, 512), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(512)[None]
    gates = random_gates(ids, positions, (8, 512), 26, 0.6, seed=0)
    assert abs(gates.float().mean() - 0.6) < 0.005
    assert (gates.float().mean((0, 1)) - 0.6).abs().max() < 0.03  # each layer
    assert (gates.float().mean((0, 2)) - 0.6).abs().max() < 0.2  # each position
    flat = gates.float().flatten(0, 1) - 0.6
    correlation = (flat.T @ flat / len(flat) / 0.24).fill_diagonal_(0)
    assert correlation.abs().max() < 0.07
    assert (gates != random_gates(ids, positions, (8, 512), 26, 0.6, seed=1)).float().mean() > 0.4
    part = random_gates(ids[3:4, 100:101], positions[:, 100:101], (1, 1), 26, 0.6, seed=0)
    assert torch.equal(part[0, 0], gates[3, 100])


@torch.no_grad()
def test_forced_and_fixed_routes_override_the_router():
    model = global_model(LLAMA, "prefix_token")
    row = random_rows((8,))[0]
    route = [1, 1, 0, 2, 1]
    stock = stock_model(LLAMA)
    from conftest import oracle_logits

    expected = oracle_logits(stock, row, route_path(route))
    output = model(row[None], routes=torch.tensor([route]))
    assert_near(output.logits[0], expected)
    follow = model(row[None, :1], past_key_values=output.past_key_values)  # the cache keeps the route
    assert follow.routes.tolist() == [route]
    model.config.fixed_route = route
    assert_near(model(row[None]).logits[0], expected)
    model.config.is_static_routing = True
    assert_near(model(row[None]).logits, stock(row[None]).logits)


@torch.no_grad()
def test_a_route_does_not_go_into_a_cache_of_tokens():
    model = global_model(LLAMA, "prefix_token")
    row = random_rows((8,))[0]
    cache = model(row[None]).past_key_values
    with pytest.raises(ValueError, match="each token has a route of its own"):
        model(row[None, :1], past_key_values=cache, routes=torch.ones(1, LAYERS, dtype=torch.long))


@torch.no_grad()
def test_no_router_runs_all_layers_and_scales_what_they_change():
    model = routed_from(LLAMA, stock_model(LLAMA), router="none")
    assert not list(model.model.routers.parameters())
    ids = random_rows((8,))[0][None]
    states = model(ids, output_hidden_states=True).hidden_states
    assert_near(model(ids).logits, stock_model(LLAMA)(ids).logits)
    model.config.residual_scale = [0.5] + [1.0] * (LAYERS - 1)
    halved = model(ids, output_hidden_states=True).hidden_states
    assert_near(halved[1], (states[0] + states[1]) / 2)


@torch.no_grad()
def test_padding_counts_nothing():
    model = global_model(QWEN2, "prefix_token")
    rows = random_rows(LENGTHS)
    model.model.count_layers()
    for row in rows:
        model(row[None], use_cache=False)
    alone = model.model.totals
    model.model.count_layers()
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        model(ids, attention_mask=mask, position_ids=positions, use_cache=False)
    totals = model.model.totals
    assert totals.inputs == 2 * alone.inputs == 2 * sum(LENGTHS)
    assert totals.layers == 2 * alone.layers < LAYERS * totals.inputs
    assert torch.equal(totals.choices, 2 * alone.choices)


@pytest.mark.parametrize("kind", ("prefix_token", "random_token"))
@torch.no_grad()
def test_sinks_run_every_layer_padded_cached_or_blended(kind):
    model = global_model(LLAMA, kind, sink_tokens=2, run_probability=0.3, route_bias=-1.0)
    rows = random_rows((9, 1, 6))
    ids, mask = padded(rows)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    for row, own, out, gates in zip(rows, mask.bool(), logits, model.model.last_gates, strict=True):
        assert gates[own][:2].all() and (len(row) < 3 or not gates[own][2:].all())
        assert_near(out[own], masked_logits(model, row, gates[own]))
    whole = model(rows[0][None], use_cache=False).logits[0]
    cache = model(rows[0][None, :1]).past_key_values  # The second sink comes behind the cache.
    assert_near(model(rows[0][None, 1:], past_key_values=cache).logits[0], whole[1:])
    if kind == "prefix_token":
        blended = model(ids, attention_mask=mask, position_ids=positions, draw_gates=lambda z: (z - 1 > 0).float())
        assert_near(blended.logits[mask.bool()], logits[mask.bool()])


@torch.no_grad()
def test_what_is_fed_to_rows_that_have_ended_counts_nothing():
    """A row's share of layers is the same whether others in its batch go on or not."""
    model = global_model(LLAMA, "prefix_token", pad_token_id=1)
    rows = [row.clamp(min=2) for row in random_rows((5, 5))]
    first = model(torch.stack(rows)).past_key_values
    for step in range(6):
        token = torch.tensor([[7], [7 if step < 2 else 1]])  # the second row ends after two tokens
        model(token, past_key_values=first)
    ended = model.last_routes[1].clone()
    alone = model(rows[1][None]).past_key_values
    for _ in range(2):
        model(torch.tensor([[7]]), past_key_values=alone)
    assert_near(model.last_routes[0], ended)


def test_other_attention_is_refused():
    model = global_model(LLAMA, "prefix_token")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2.*sdpa"):
        check_attention(model.config)


@pytest.mark.parametrize(
    ("fields", "words"),
    (
        ({"router": "gumbel"}, "router must be one of per_layer.*'gumbel'"),
        ({"router": "prefix", "kept_layers": LAYERS}, f"kept_layers must be .* {LAYERS - 1}.*got {LAYERS}"),
        ({"router_sizes": [0]}, "router_sizes"),
        ({"run_probability": 1.5}, "run_probability.*1.5"),
        ({"fixed_route": [1, 3]}, "fixed_route"),
        ({"residual_scale": [1.0]}, "residual_scale must be"),
        ({"router": "prefix_token", "residual_scale": [1.0] * LAYERS}, "residual_scale does not go with"),
    ),
)
def test_wrong_fields_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        LLAMA.routed(LLAMA.routed_config(**config_fields(LLAMA, **fields)))


def test_windows_of_sliding_attention_are_kept_while_decoding():
    family = sliding(QWEN2, "sssss")
    model = global_model(family, "prefix_token")
    row = random_rows((11,), seed=7)[0]
    with torch.no_grad():
        whole = model(row[None], use_cache=False).logits[0, -1]
        cache = model(row[None, :-1]).past_key_values
        last = model(row[None, -1:], past_key_values=cache).logits[0, -1]
    assert_near(last, whole)
