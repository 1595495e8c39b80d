"""A menu router in the forward: its rule by hand, what it reads, padding, caches, beams, files, and the plain check."""

from __future__ import annotations

import json
import math
import warnings

import pytest
import torch
from conftest import (
    LAYERS,
    LLAMA,
    assert_near,
    config_fields,
    oracle_generate,
    oracle_logits,
    oracle_states,
    padded,
    random_rows,
    route_path,
    routed_from,
    save_tiny_base,
    stock_model,
)
from transformers import AutoModelForCausalLM

from routing.evaluation.budget import find_bias
from routing.evaluation.check import proofs
from routing.evaluation.flops import Flops
from routing.models.checkpoint import save_checkpoint
from routing.scoring.controls import first_routed_layer
from train_models.menu_router import MenuRouter, best_paths, path_values
from train_models.routed_model import small_parts

KEPT = 2
MENU = [[1, 1, 1, 1, 1], [1, 1, 0, 1, 1], [1, 1, 0, 0, 1], [1, 1, 1, 2, 1], [1, 1, 2, 0, 0]]
FIELDS = {"router": "menu", "kept_layers": KEPT, "menu": MENU, "router_reads": [1, KEPT]}
LENGTHS = (7, 3, 12, 5, 9, 4)


def draw_router(model, seed: int = 3) -> None:
    """A router that takes other paths for other prompts."""
    router = model.model.routers
    torch.manual_seed(seed)
    with torch.no_grad():
        router.mean.normal_()
        router.scale.uniform_(0.5, 2.0)
        router.errors.uniform_(0.0, 0.1)
        router.errors[0] = 0
        for linear in router.linears:
            linear.weight.normal_(0.0, 0.3)
            linear.bias.normal_(0.0, 0.1)


def menu_model(family=LLAMA, seed: int = 3, **fields):
    model = routed_from(family, stock_model(family), **(FIELDS | fields))
    draw_router(model, seed)
    return model


@torch.no_grad()
def oracle_route(model, stock, row: torch.Tensor) -> list[int]:
    """The route of one prompt, from the stock layers and the definition."""
    config, router = model.config, model.model.routers
    states = oracle_states(stock, stock.model.embed_tokens(row[None]), range(LAYERS))
    features = torch.cat(
        [part for depth in config.router_reads for part in (states[depth][0].mean(0), states[depth][0, -1])]
    )
    hidden = (features - router.mean) / router.scale
    for linear in router.linears[:-1]:
        hidden = torch.nn.functional.gelu(linear(hidden))
    estimates = router.linears[-1](hidden)
    if len(router.linears) > 1:
        estimates = estimates.sigmoid()
    best, route = -math.inf, None
    for path, estimate in enumerate(estimates.tolist()):
        worth = estimate - (config.cost - config.route_bias) * sum(config.menu[path])
        worth -= config.caution * float(router.errors[path])
        if worth > best:
            best, route = worth, config.menu[path]
    return route


def test_the_rule_by_hand():
    estimates = torch.tensor([[0.50, 0.48, 0.55], [0.50, 0.52, 0.10], [0.5, 0.5, 0.5]])
    errors, layers = torch.tensor([0.0, 0.01, 0.04]), torch.tensor([10, 8, 6])

    def chosen(price, caution):
        return best_paths(path_values(estimates, errors, layers, price, caution)).tolist()

    assert chosen(0.0, 0.0) == [2, 1, 0]  # Of equal ones the full path.
    assert chosen(0.011, 0.0) == [2, 1, 2]  # Layers saved are worth 0.022 and 0.044.
    assert chosen(0.0, 1.0) == [2, 1, 0] and chosen(0.0, 1.3) == [0, 1, 0] and chosen(0.0, 2.1) == [0, 0, 0]
    assert chosen(-0.1, 0.0) == [0, 0, 0]
    worth = path_values(estimates, errors, layers, 0.02, 1.0)
    assert_near(worth[0], torch.tensor([0.30, 0.31, 0.39]))
    assert path_values(estimates, torch.tensor([0.0, math.inf, 0.0]), layers, 0.0, 0.0)[0].tolist()[1] == -math.inf


def test_more_bias_never_runs_fewer_layers():
    torch.manual_seed(0)
    estimates, errors, layers = torch.rand(50, 6), torch.rand(6) / 4, torch.tensor([9, 10, 7, 5, 3, 8])
    last = None
    for price in torch.linspace(0.3, -0.3, 40).tolist():
        ran = layers[best_paths(path_values(estimates, errors, layers, price, 0.7))]
        assert last is None or bool((ran >= last).all())
        last = ran


@pytest.mark.parametrize("sizes", (None, [6]))
@torch.no_grad()
def test_each_row_takes_the_path_of_the_oracle(any_family, sizes):
    stock, rows = stock_model(any_family), random_rows(LENGTHS)
    for seed in range(3, 20):  # Some random routers send all rows one way.
        model = menu_model(any_family, seed, router_sizes=sizes, cost=0.02, caution=0.5)
        expected = [oracle_route(model, stock, row) for row in rows]
        if len(set(map(tuple, expected))) > 1:
            break
    assert len(set(map(tuple, expected))) > 1
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        output = model(ids, attention_mask=mask, position_ids=positions)
        assert output.routes.tolist() == expected
        for row, own, out, route in zip(rows, mask.bool(), output.logits, expected, strict=True):
            assert_near(out[own], oracle_logits(stock, row, route_path(route)))
            assert_near(out[own], model(row[None], use_cache=False).logits[0])


@torch.no_grad()
def test_right_padding_without_a_mask_and_continuations_are_not_read():
    """As lm-eval sends loglikelihood requests: padded with 0, prompt and continuation in one row."""
    model = menu_model()
    rows = random_rows(LENGTHS, seed=1)
    alone = [model(row[None]).routes[0].tolist() for row in rows]
    assert len(set(map(tuple, alone))) > 1
    ids, _ = padded(rows, "right")
    assert model(ids).routes.tolist() == alone
    longer = [torch.cat([row, extra]) for row, extra in zip(rows, random_rows((4, 6, 2, 1, 3, 5), seed=2))]
    ids, _ = padded(longer, "right")
    assert model(ids, prompt_lengths=torch.tensor(LENGTHS)).routes.tolist() == alone
    assert model(ids).routes.tolist() != alone


@torch.no_grad()
def test_decoding_keeps_the_route_with_and_without_cache_and_with_beams(family):
    model, stock = menu_model(family), stock_model(family)
    rows = random_rows(LENGTHS)
    ids, mask = padded(rows)
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "attention_mask": mask}
    together = model.generate(input_ids=ids, **settings)[:, ids.shape[1] :]
    routes = model.last_routes.tolist()
    assert len(set(map(tuple, routes))) > 1
    assert torch.equal(model.generate(input_ids=ids, use_cache=False, **settings)[:, ids.shape[1] :], together)
    beams = model.generate(input_ids=ids, num_beams=3, **settings)[:, ids.shape[1] :]
    for row, new, beam, route in zip(rows, together, beams, routes, strict=True):
        assert torch.equal(oracle_generate(stock, row, route_path(route), 5)[0], new)
        alone = settings | {"attention_mask": None}
        assert torch.equal(model.generate(input_ids=row[None], num_beams=3, **alone)[0, len(row) :], beam)


@torch.no_grad()
def test_forced_fixed_and_static_routes_ask_no_router():
    model, stock = menu_model(), stock_model(LLAMA)
    row, route = random_rows((8,))[0], [1, 0, 1, 2, 0]
    model.model.routers.choose = None  # It would fail.
    expected = oracle_logits(stock, row, route_path(route))
    assert_near(model(row[None], routes=torch.tensor([route])).logits[0], expected)
    model.config.fixed_route = route
    assert_near(model(row[None]).logits[0], expected)
    model.config.is_static_routing = True
    assert torch.equal(model(row[None]).logits, stock(row[None]).logits)


@torch.no_grad()
def test_an_untrained_router_says_so_once_and_takes_the_full_path():
    model = routed_from(LLAMA, stock_model(LLAMA), **FIELDS, cost=0.5)
    ids = torch.stack(random_rows((6, 6)))
    with pytest.warns(UserWarning, match="not trained.*--objective value"):
        assert model(ids).routes.tolist() == [MENU[0]] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model(ids).routes.tolist() == [MENU[0]] * 2
    draw_router(model)
    model.model.init_routers()
    assert bool(model.model.routers.errors.isinf().all())


@torch.no_grad()
def test_rows_without_a_prompt_take_the_full_path():
    model = menu_model(cost=1000.0)
    ids, mask = torch.stack(random_rows((6, 6))), torch.tensor([[1] * 6, [0] * 6])
    assert model(ids, attention_mask=mask).routes.tolist() == [MENU[2], MENU[0]]


@torch.no_grad()
def test_bias_moves_the_layers_and_one_reads_the_embeddings_alone():
    model = menu_model(kept_layers=0, router_reads=[0])
    ids = torch.stack(random_rows((9, 9, 9, 9)))

    def layers_at(bias):
        model.config.route_bias = bias
        return model(ids).routes.sum(1).float().mean().item()

    assert layers_at(100.0) == 6 and layers_at(-100.0) == 3
    bias, tried = find_bias(layers_at, 4.5, 0.6)
    assert abs(tried[bias] - 4.5) <= 0.6
    model.config.route_bias, model.config.cost = 0.0, -bias
    assert model(ids).routes.sum(1).float().mean().item() == tried[bias]


def test_cost_of_routers_of_layers_is_taken_for_each_run():
    model = routed_from(LLAMA, stock_model(LLAMA), router_seed=1)
    ids = torch.stack(random_rows((9, 9)))
    model.config.route_bias = 9.0
    expected = model(ids).routes
    model.config.cost = 9.0
    neutral = model(ids).routes
    model.config.route_bias, model.config.cost = 0.0, -9.0
    assert torch.equal(model(ids).routes, expected) and not torch.equal(expected, neutral)
    model.config.cost = 1e6
    assert not model(ids).routes.any()


@pytest.mark.parametrize("save_base", ("copy", "reference"))
@torch.no_grad()
def test_checkpoints_load_and_decide_alike(tmp_path, save_base):
    """With adapters, in fp32 and bf16, from the hub's classes."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    base = save_tiny_base(tmp_path / "base", LAYERS, **sizes)
    fields = FIELDS | {"skip_action": "adapter", "adapter_size": 4, "router_sizes": [6], "cost": 0.01, "caution": 0.5}
    model = LLAMA.routed.from_pretrained(base, **fields).eval()
    draw_router(model)
    for parameter in model.model.adapters.parameters():
        parameter.normal_(0.0, 0.3)
    parts, information = small_parts(model.model), {"arguments": {"model_id": str(base)}}
    save_checkpoint(tmp_path / "checkpoint", str(base), parts, fields, save_base, information)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint", trust_remote_code=True).eval()
    ids, mask = padded(random_rows(LENGTHS))
    expected = model(ids, attention_mask=mask)
    found = loaded(ids, attention_mask=mask)
    assert torch.equal(found.routes, expected.routes) and torch.equal(found.logits, expected.logits)
    assert len(set(map(tuple, expected.routes.tolist()))) > 1
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in again.model.routers.parameters()} == {torch.float32}
    assert again.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert torch.equal(again.model.routers.errors, model.model.routers.errors)
    again.eval()(ids, attention_mask=mask)
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{layer}": "disk" if layer % 2 else "cpu" for layer in range(LAYERS)}
    places |= {"model.routers": "disk", "model.adapters": "cpu"}
    arguments = {"trust_remote_code": True, "device_map": places, "offload_folder": tmp_path / "offload"}
    offloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "again", **arguments).eval()
    assert offloaded.model.routers.errors.device.type == "cpu"  # Whatever is asked for, routers are never offloaded.
    assert torch.equal(offloaded(ids, attention_mask=mask).routes, expected.routes)
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    assert config["menu"] == MENU and config["cost"] == 0.01 and config["caution"] == 0.5


@pytest.mark.parametrize("sizes", (None, [6]))
@torch.no_grad()
def test_the_check_of_evaluation_holds_and_can_fail(sizes):
    model, stock = menu_model(router_sizes=sizes, caution=0.5), stock_model(LLAMA)
    prompts = [row.tolist() for row in random_rows(LENGTHS)]
    assert all(proof.holds for proof in proofs(stock, model, prompts, 0))
    model.model.routers.choose = lambda states, mask, config: [1] * len(mask)
    assert not proofs(stock, model, prompts, 0)[0].holds


def test_its_cost_and_kept_layers_are_known_to_the_evaluation():
    model = menu_model()
    assert first_routed_layer(model.config) == KEPT
    assert Flops(model, False).router == 2 * len(MENU) * 4 * model.config.hidden_size


@pytest.mark.parametrize(
    ("fields", "words"),
    (
        ({"menu": None}, "menu must hold routes of 5 counts.*None"),
        ({"menu": [[1] * 4]}, "menu must hold routes of 5"),
        ({"menu": [MENU[1]]}, "menu must begin with the full path"),
        ({"menu": [*MENU, MENU[1]]}, "path twice"),
        ({"kept_layers": 3, "router_reads": [1]}, "kept_layers=3: a path"),
        ({"kept_layers": LAYERS}, "kept_layers must be a whole number from 0 to 4"),
        ({"router_reads": [3]}, "router_reads must be .* 0 to 2, kept_layers, got .3."),
        ({"router_reads": []}, "router_reads"),
        ({"router_reads": [1, 1]}, "router_reads must name each depth once, got .1, 1."),
        ({"caution": -1.0}, "caution must be a number >= 0, got -1.0"),
        ({"cost": math.nan}, "cost must be a finite number"),
    ),
)
def test_wrong_fields_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        LLAMA.routed(LLAMA.routed_config(**config_fields(LLAMA, **(FIELDS | fields))))


def test_estimates_of_a_network_are_rewards():
    router = MenuRouter(4, [3], 2)
    router.reset_parameters()
    estimates, _ = router(torch.randn(50, 4) * 10)
    assert estimates.min() >= 0 and estimates.max() <= 1
