"""Models that choose their route: what decides it, what keeps it, and what a checkpoint keeps of it."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from conftest import (
    FAMILIES,
    LAYERS,
    LLAMA,
    QWEN2,
    QWEN3,
    SLIDING_FAMILIES,
    assert_near,
    config_fields,
    four_dimensional,
    oracle_generate,
    oracle_logits,
    oracle_states,
    padded,
    path_from,
    random_rows,
    route_path,
    routed_from,
    stock_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from routing.models.bases import stored_tensors

NEW_TOKENS = 5
WINDOWS = 4
LENGTHS = [3, 9, 1, 12, 6]  # some shorter than the number of windows
ROUTES = [[0, 1, 2, 1, 0], [2, 0, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [2, 2, 2, 2, 2]]
GREEDY = {"max_new_tokens": NEW_TOKENS, "do_sample": False}


def make_pair(family, **overrides):
    """(stock, routed) with the same weights; the routers take varied decisions."""
    stock = stock_model(family)
    return stock, routed_from(family, stock, router_seed=5, num_windows=WINDOWS, **overrides)


# What depends on generate() and the cache rather than on the weights needs no more families than these.
KINDS_OF_CACHE = (LLAMA, *SLIDING_FAMILIES)
PAIRS = {str(family): make_pair(family) for family in FAMILIES + SLIDING_FAMILIES}


@pytest.fixture
def pair(any_family):
    return PAIRS[str(any_family)]


@torch.no_grad()
def oracle_route(pair, row: torch.Tensor) -> list[int]:
    """The decisions for one prompt [T], layer by layer and window by window."""
    stock, routed = pair
    embeddings, route = stock.model.embed_tokens(row[None]), []
    for router in routed.model.routers:
        # What enters this layer: the state before one more step behind the path that is decided so far.
        hidden = oracle_states(stock, embeddings, [*route_path(route), 0])[-2][0]
        logits = []
        for window in range(WINDOWS):
            tokens = [j for j in range(len(row)) if j * WINDOWS // len(row) == window]
            if tokens:
                pooled = torch.stack([hidden[j] for j in tokens]).mean(0)
                logits.append(router.down(torch.nn.functional.gelu(router.up(pooled))))
        route.append(int(torch.stack(logits).mean(0).argmax()))
    return route


def check_tokens(stock, tokens, rows, routes):
    """New tokens [B, N] against greedy decoding of each row along its route, without a cache."""
    for found, row, route in zip(tokens, rows, routes, strict=True):
        assert found.tolist() == oracle_generate(stock, row, route_path(route), len(found))[0].tolist()


def test_the_decisions_vary(pair):
    """Guards the tests below: rows must differ from one another, and from what longer text would get."""
    rows = random_rows(LENGTHS)
    routes = [oracle_route(pair, row) for row in rows]
    assert len({tuple(route) for route in routes}) > 2
    assert {count for route in routes for count in route} == {0, 1, 2}
    longer = [torch.cat([row, more]) for row, more in zip(rows, random_rows([4] * 5, seed=1), strict=True)]
    assert sum(oracle_route(pair, row) != route for row, route in zip(longer, routes, strict=True)) > 1


@torch.no_grad()
def test_a_row_is_routed_alike_in_any_batch_and_padding(pair):
    stock, routed = pair
    rows = random_rows(LENGTHS)
    expected = [oracle_route(pair, row) for row in rows]
    for row, route in zip(rows, expected, strict=True):
        for mask in (None, torch.ones(1, len(row), dtype=torch.long)):
            output = routed(row[None], attention_mask=mask)
            assert output.routes.tolist() == routed.last_routes.tolist() == [route]
            assert_near(output.logits[0], oracle_logits(stock, row, route_path(route)))
    for side, with_mask in (("left", True), ("right", True), ("right", False)):
        ids, mask = padded(rows, side)
        for chosen in ([0, 1, 2, 3, 4], [4, 1], [2, 3, 2]):
            output = routed(ids[chosen], attention_mask=mask[chosen] if with_mask else None)
            assert output.routes.tolist() == [expected[row] for row in chosen]
            for at, row in enumerate(chosen):
                wanted = oracle_logits(stock, rows[row], route_path(expected[row]))
                assert_near(output.logits[at][mask[row].bool()], wanted)


@torch.no_grad()
def test_last_routes_are_those_of_the_last_prefill():
    routed = make_pair(LLAMA)[1]
    assert routed.last_routes is None and routed.model.last_routes is None
    ids, mask = padded(random_rows(LENGTHS))
    output = routed(ids, attention_mask=mask, use_cache=True)
    routes = routed.last_routes
    assert routes.shape == (5, LAYERS) and routes.dtype == torch.int64 and routes.device.type == "cpu"
    assert torch.equal(routes, routed.model.last_routes) and torch.equal(routes, output.past_key_values.routes)
    # Decoding replays; it decides nothing.
    longer = torch.cat([mask, torch.ones(5, 1, dtype=torch.long)], dim=1)
    step = routed(ids[:, :1], attention_mask=longer, past_key_values=output.past_key_values)
    assert torch.equal(routed.last_routes, routes) and torch.equal(step.routes, routes)
    routed(ids[:2], routes=torch.tensor(ROUTES[:2]))
    assert routed.last_routes.tolist() == ROUTES[:2]
    # A step of the first batch reports the routes of its cache, not of the prefill in between.
    longer = torch.cat([longer, torch.ones(5, 1, dtype=torch.long)], dim=1)
    step = routed(ids[:, :1], attention_mask=longer, past_key_values=output.past_key_values)
    assert torch.equal(step.routes, routes)


@torch.no_grad()
def test_a_row_without_any_prompt_token_runs_every_layer_once(pair):
    routed = pair[1]
    rows = random_rows([5, 5])
    mask = torch.tensor([[0] * 5, [1] * 5])
    routes = routed(torch.stack(rows), attention_mask=mask).routes.tolist()
    assert routes == [[1] * LAYERS, oracle_route(pair, rows[1])]


@torch.no_grad()
def test_embeddings_are_routed_like_their_tokens(pair):
    stock, routed = pair
    ids = torch.stack(random_rows([6, 6]))
    expected = routed(ids)
    output = routed(inputs_embeds=stock.model.embed_tokens(ids))
    assert torch.equal(output.routes, expected.routes) and torch.equal(output.logits, expected.logits)
    generated = routed.generate(inputs_embeds=stock.model.embed_tokens(ids), **GREEDY)
    check_tokens(stock, generated, ids, expected.routes.tolist())


@torch.no_grad()
def test_prompt_lengths_hide_the_continuation(pair):
    """The route is that of the context alone; the continuation is scored along it."""
    stock, routed = pair
    contexts, continuations = random_rows([3, 7, 1]), random_rows([4, 2, 6], seed=1)
    rows = [torch.cat(both) for both in zip(contexts, continuations, strict=True)]
    expected = [oracle_route(pair, row) for row in contexts]
    assert [oracle_route(pair, row) for row in rows] != expected
    lengths = torch.tensor([len(row) for row in contexts])
    for side, with_mask in (("left", True), ("right", True), ("right", False)):
        ids, mask = padded(rows, side)
        output = routed(ids, attention_mask=mask if with_mask else None, prompt_lengths=lengths)
        assert output.routes.tolist() == expected
        for at, row in enumerate(rows):
            wanted = oracle_logits(stock, row, route_path(expected[at]))
            assert_near(output.logits[at][mask[at].bool()], wanted)


@pytest.mark.parametrize("any_family", KINDS_OF_CACHE, ids=str)
@pytest.mark.parametrize("arguments", [{}, {"use_cache": False}, {"num_beams": 2}], ids=str)
@torch.no_grad()
def test_prompt_lengths_in_generate(pair, arguments):
    routed = pair[1]
    rows = random_rows([8, 5])
    ids, mask = padded(rows)
    lengths = torch.tensor([3, 2])
    routes = torch.tensor([oracle_route(pair, row[:length]) for row, length in zip(rows, lengths, strict=True)])
    arguments = GREEDY | {"attention_mask": mask} | arguments
    expected = routed.generate(ids, routes=routes, **arguments)
    assert torch.equal(routed.generate(ids, prompt_lengths=lengths, **arguments), expected)


def test_count_layers_adds_up_the_prefills():
    routed = make_pair(LLAMA)[1]
    ids = torch.stack(random_rows([6, 6]))
    assert routed.model.totals is None
    routed(ids)
    routed.model.count_layers()
    assert (routed.model.totals.inputs, routed.model.totals.layers) == (0, 0)
    cache = routed(ids, routes=torch.tensor(ROUTES[:2]), use_cache=True).past_key_values
    routed(ids[:, :1], past_key_values=cache)
    routed(ids[:1], routes=torch.tensor(ROUTES[4:]))
    decided = routed(ids).routes
    totals = routed.model.totals
    assert totals.inputs == 5
    assert totals.layers == 4 + 4 + 10 + int(decided.sum())
    taken = torch.tensor([*ROUTES[:2], ROUTES[4], *decided.tolist()])
    assert totals.choices.tolist() == [
        [int((taken[:, layer] == count).sum()) for count in range(3)] for layer in range(LAYERS)
    ]
    routed.generate(ids, **GREEDY)
    assert totals.inputs == 7
    routed.model.count_layers()
    assert routed.model.totals.inputs == 0
    routed.model.count_layers(False)
    routed(ids)
    assert routed.model.totals is None


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_static_routing_equals_stock_exactly(any_family, attention):
    stock = stock_model(any_family, attn_implementation=attention)
    routed = routed_from(any_family, stock, router_seed=5, is_static_routing=True)
    ids, mask = padded(random_rows(LENGTHS))
    assert torch.equal(routed(ids, attention_mask=mask).logits, stock(ids, attention_mask=mask).logits)
    assert routed.last_routes.tolist() == [[1] * LAYERS] * 5
    assert torch.equal(routed(ids).logits, stock(ids).logits)
    generated = routed.generate(ids, attention_mask=mask, **GREEDY)
    assert torch.equal(generated, stock.generate(ids, attention_mask=mask, **GREEDY))


def test_routes_that_are_given_win_over_static_routing():
    stock = stock_model(LLAMA)
    routed = routed_from(LLAMA, stock, is_static_routing=True)
    row = random_rows([6])[0]
    logits = routed(row[None], routes=torch.tensor(ROUTES[:1])).logits
    assert_near(logits[0], oracle_logits(stock, row, route_path(ROUTES[0])))


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"num_windows": 0}, ["num_windows"]),
        ({"num_windows": -3}, ["num_windows"]),
        ({"num_windows": True}, ["num_windows"]),
        ({"num_windows": 2.5}, ["num_windows"]),
        ({"router_hidden_size": 0}, ["router_hidden_size"]),
        ({"is_static_routing": "yes"}, ["is_static_routing"]),
        ({"num_windows": 4, "trained_num_windows": 8}, ["num_windows=4", "num_windows=8"]),
        ({"num_windows": 0, "router_hidden_size": 0}, ["num_windows", "router_hidden_size"]),
    ],
    ids=str,
)
def test_wrong_routing_fields_are_refused_all_at_once(family, fields, named):
    with pytest.raises(ValueError) as error:
        family.routed(family.routed_config(**config_fields(family), **fields))
    assert all(name in str(error.value) for name in named)


def test_the_trained_number_of_windows_is_accepted(family):
    fields = {"num_windows": 6, "trained_num_windows": 6}
    assert family.routed(family.routed_config(**config_fields(family), **fields)).config.num_windows == 6


ONES = [[1] * LAYERS] * 2


@pytest.mark.parametrize(
    "routes, message",
    [
        (torch.ones(1, LAYERS, dtype=torch.long), rf"shape \(2, {LAYERS}\), got torch.int64 \(1, {LAYERS}\)"),
        (torch.ones(2, LAYERS + 1, dtype=torch.long), rf"shape \(2, {LAYERS}\)"),
        (torch.ones(LAYERS, dtype=torch.long), rf"shape \(2, {LAYERS}\)"),
        (torch.tensor([[1, 1, 1, 1, 3], [1] * 5]), r"0 \(skip\), 1 \(run\) or 2 \(repeat\), got \[1, 3\]"),
        (torch.tensor([[1, 1, 1, 1, -1], [1] * 5]), r"0 \(skip\), 1 \(run\) or 2 \(repeat\), got \[-1, 1\]"),
        (torch.ones(2, LAYERS), "whole numbers .* got torch.float32"),
        (torch.ones(2, LAYERS, dtype=torch.bool), "whole numbers .* got torch.bool"),
    ],
    ids=["one row", "too long", "1-D", "3", "-1", "float", "bool"],
)
def test_wrong_routes_are_refused(family, routes, message):
    routed = PAIRS[str(family)][1]
    ids = torch.stack(random_rows([4, 4]))
    with pytest.raises(ValueError, match=message):
        routed(ids, routes=routes)
    cache = routed(ids, routes=torch.tensor(ONES), use_cache=True).past_key_values
    with pytest.raises(ValueError, match=message):
        routed(ids[:, :1], routes=routes, past_key_values=cache)
    assert torch.equal(routed(ids, routes=ONES).logits, routed(ids, routes=torch.tensor(ONES)).logits)


@torch.no_grad()
def test_routes_that_contradict_the_cache_are_refused(family):
    stock, routed = PAIRS[str(family)]
    rows = random_rows([6, 6])
    ids, routes = torch.stack(rows), torch.tensor(ROUTES[:2])
    cache = routed(ids[:, :-1], routes=routes, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="contradicts the cache"):
        routed(ids[:, -1:], routes=routes.flip(0), past_key_values=cache)
    # The refusal left the cache alone, and the routes that it holds may be given again.
    logits = routed(ids[:, -1:], routes=routes, past_key_values=cache).logits
    for at, row in enumerate(rows):
        assert_near(logits[at], oracle_logits(stock, row, route_path(ROUTES[at]))[-1:])


@torch.no_grad()
def test_the_cache_of_a_model_with_a_given_path_is_refused():
    """Such a cache holds no routes, and its path may have an order that no route can express."""
    stock, routed = PAIRS["llama"]
    path = path_from(LLAMA, stock)
    path.model.layer_indices = [2, 0, 1]
    ids = torch.stack(random_rows([6]))
    for extra in ({}, {"routes": torch.tensor([[1, 1, 1, 0, 0]])}):
        cache = path(ids[:, :-1], use_cache=True).past_key_values
        with pytest.raises(ValueError):
            routed(ids[:, -1:], past_key_values=cache, **extra)


def test_masks_of_four_dimensions_need_routes(family):
    stock, routed = PAIRS[str(family)]
    row = random_rows([5])[0]
    mask = four_dimensional(torch.ones(1, 1, 5, 5, dtype=torch.bool).tril(), stock)
    with pytest.raises(ValueError, match=r"attention_mask of shape \[B, T\].*routes="):
        routed(row[None], attention_mask=mask)
    logits = routed(row[None], attention_mask=mask, routes=torch.tensor(ROUTES[:1])).logits
    assert_near(logits[0], oracle_logits(stock, row, route_path(ROUTES[0])))
    static = routed_from(family, stock, is_static_routing=True)
    assert torch.equal(static(row[None], attention_mask=mask).logits, stock(row[None], attention_mask=mask).logits)


@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_the_route_of_the_prompt_is_kept_for_the_whole_generation(pair, use_cache):
    """Without a cache each token runs all again, and deciding again would give another route."""
    stock, routed = pair
    rows = random_rows(LENGTHS)
    ids, mask = padded(rows)
    tokens = routed.generate(ids, attention_mask=mask, use_cache=use_cache, **GREEDY)[:, ids.shape[1] :]
    routes = [oracle_route(pair, row) for row in rows]
    assert routed.last_routes.tolist() == routes
    check_tokens(stock, tokens, rows, routes)
    text = [torch.cat(both) for both in zip(rows, tokens, strict=True)]
    assert [oracle_route(pair, row) for row in text] != routes


@pytest.mark.parametrize("forced", [True, False])
@torch.no_grad()
def test_beam_search(pair, forced):
    """Equal with and without a cache, and each score is that of its own text along its own route."""
    stock, routed = pair
    rows = random_rows([4, 9, 6])
    ids, mask = padded(rows)
    routes = ROUTES[:2] + ROUTES[4:] if forced else [oracle_route(pair, row) for row in rows]
    arguments = GREEDY | {
        "attention_mask": mask,
        "num_beams": 3,
        "num_return_sequences": 3,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    if forced:
        arguments["routes"] = torch.tensor(routes)
    cached, uncached = (routed.generate(ids, use_cache=use_cache, **arguments) for use_cache in (True, False))
    assert torch.equal(cached.sequences, uncached.sequences)
    assert_near(cached.sequences_scores, uncached.sequences_scores)
    assert cached.past_key_values.routes.tolist() == [route for route in routes for _ in range(3)]
    for at, sequence in enumerate(cached.sequences):
        row, new = rows[at // 3], sequence[ids.shape[1] :]
        logits = oracle_logits(stock, torch.cat([row, new]), route_path(routes[at // 3]))
        likelihoods = logits[len(row) - 1 : -1].log_softmax(-1)[range(NEW_TOKENS), new]
        assert_near(cached.sequences_scores[at], likelihoods.sum() / NEW_TOKENS)


@pytest.mark.parametrize("any_family", KINDS_OF_CACHE, ids=str)
@pytest.mark.parametrize("forced", [True, False])
@torch.no_grad()
def test_sampling_several_sequences_of_each_row(pair, forced):
    stock, routed = pair
    rows = random_rows([4, 9])
    ids, mask = padded(rows)
    routes = ROUTES[:2] if forced else [oracle_route(pair, row) for row in rows]
    extra = {"routes": torch.tensor(routes)} if forced else {}
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        outputs.append(
            routed.generate(
                ids,
                attention_mask=mask,
                do_sample=True,
                top_k=0,
                num_return_sequences=3,
                max_new_tokens=NEW_TOKENS,
                use_cache=use_cache,
                return_dict_in_generate=True,
                output_logits=True,
                **extra,
            )
        )
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    assert outputs[0].past_key_values.routes.tolist() == [route for route in routes for _ in range(3)]
    assert len({tuple(sequence.tolist()) for sequence in outputs[0].sequences}) == 6
    for at, sequence in enumerate(outputs[0].sequences):
        row, new = rows[at // 3], sequence[ids.shape[1] :]
        expected = oracle_logits(stock, torch.cat([row, new]), route_path(routes[at // 3]))
        assert_near(torch.stack(outputs[0].logits, 1)[at], expected[len(row) - 1 : -1])


@pytest.mark.parametrize("any_family", KINDS_OF_CACHE, ids=str)
@pytest.mark.parametrize("static", [False, True])
@torch.no_grad()
def test_as_assistant_of_its_dense_base(any_family, static, monkeypatch):
    """The text is that of the base, and each draft that of the route of the prompt: rejected ones leave no trace."""
    stock, routed = make_pair(any_family, is_static_routing=static)
    routed.generation_config.num_assistant_tokens = 4
    routed.generation_config.num_assistant_tokens_schedule = "constant"
    routed.generation_config.assistant_confidence_threshold = 0.0
    drafts, generate = [], routed.generate

    def recorded(**arguments):
        output = generate(**arguments)
        drafts.append((arguments["input_ids"][0], output.sequences[0]))
        return output

    monkeypatch.setattr(routed, "generate", recorded)
    row = random_rows([7])[0]
    arguments = {"max_new_tokens": 12, "do_sample": False}
    text = stock.generate(row[None], assistant_model=routed, **arguments)
    assert torch.equal(text, stock.generate(row[None], **arguments))
    route = [1] * LAYERS if static else oracle_route((stock, routed), row)
    # 12 tokens are 3 rounds when every draft is accepted.
    assert (len(drafts) == 3) if static else (len(drafts) > 3)
    for start, draft in drafts:
        tokens = oracle_generate(stock, start, route_path(route), len(draft) - len(start))[0]
        assert draft[len(start) :].tolist() == tokens.tolist()


@pytest.mark.parametrize("any_family", KINDS_OF_CACHE, ids=str)
@pytest.mark.parametrize("how", ["assistant", "prompt lookup"])
@torch.no_grad()
def test_drafts_change_neither_text_nor_route(pair, how):
    """The first forward of assisted decoding holds prompt and draft; the routers must see the prompt alone."""
    stock, routed = pair
    for row in random_rows([7, 3]):
        # Padding ids at the end of a prompt are hidden from the routers, also when a draft stands behind them.
        for prompt, seen in ((row.repeat(2), row.repeat(2)), (torch.cat([row, torch.zeros_like(row[:2])]), row)):
            expected = routed.generate(prompt[None], **GREEDY)
            assert routed.last_routes.tolist() == [oracle_route(pair, seen)]
            arguments = {"assistant_model": stock} if how == "assistant" else {"prompt_lookup_num_tokens": 3}
            text = routed.generate(prompt[None], **GREEDY, **arguments)
            assert routed.last_routes.tolist() == [oracle_route(pair, seen)]
            assert torch.equal(text, expected)


@pytest.mark.parametrize("any_family", KINDS_OF_CACHE, ids=str)
@torch.no_grad()
def test_drafts_along_forced_routes_change_nothing(pair):
    stock, routed = pair
    row = random_rows([4])[0].repeat(3)
    for route in ROUTES:
        text = routed.generate(
            row[None], routes=torch.tensor([route]), prompt_lookup_num_tokens=3, max_new_tokens=12, do_sample=False
        )
        check_tokens(stock, text[:, len(row) :], [row], [route])


@pytest.mark.parametrize("forced", [True, False])
@torch.no_grad()
def test_going_on_from_a_returned_cache(pair, forced):
    """A second turn of a conversation; the route stays that of the first prompt."""
    stock, routed = pair
    rows = random_rows([4, 9, 6])
    ids, mask = padded(rows)
    routes = ROUTES[:2] + ROUTES[4:] if forced else [oracle_route(pair, row) for row in rows]
    extra = {"routes": torch.tensor(routes)} if forced else {}
    first = routed.generate(ids, attention_mask=mask, return_dict_in_generate=True, **GREEDY, **extra)
    more = torch.stack(random_rows([3, 3, 3], seed=1))
    longer = torch.cat([first.sequences, more], dim=1)
    mask = torch.cat([mask, torch.ones(3, NEW_TOKENS + 3, dtype=torch.long)], dim=1)
    second = routed.generate(longer, attention_mask=mask, past_key_values=first.past_key_values, **GREEDY)
    texts = [torch.cat([row, new[ids.shape[1] :]]) for row, new in zip(rows, longer, strict=True)]
    check_tokens(stock, second[:, longer.shape[1] :], texts, routes)


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


def loaders(family, folder):
    """Both ways of loading a checkpoint: by its class, and as lm-eval does."""
    return (
        lambda **arguments: family.routed.from_pretrained(folder, **arguments),
        lambda **arguments: AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **arguments),
    )


@pytest.mark.parametrize("tied", [False, True])
def test_a_base_loads_with_its_weights_and_fresh_routers(family, tied, tmp_path):
    stock = stock_model(family, tie_word_embeddings=tied)
    saved(stock, tmp_path)
    drawn = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model, info = family.routed.from_pretrained(
            tmp_path, num_windows=5, router_hidden_size=12, output_loading_info=True
        )
        assert all(".routers." in key for key in info["missing_keys"]) and not info["unexpected_keys"]
        state = model.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in stock.state_dict().items())
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
        assert (model.config.num_windows, model.config.router_hidden_size) == (5, 12)
        assert model.config.model_type == f"routed_{family.config.model_type}"
        drawn.append(model.model.routers[0].up.weight)
        assert drawn[-1].shape == (12, 32) and drawn[-1].any()
    assert not torch.equal(*drawn)
    ids = torch.stack(random_rows([6, 6]))
    assert torch.equal(model(ids, routes=ONES).logits, stock(ids).logits)


@pytest.mark.parametrize("family, other", [(LLAMA, QWEN2), (QWEN2, QWEN3), (QWEN3, LLAMA)], ids=str)
def test_another_family_is_refused_by_name(family, other, tmp_path):
    stock = stock_model(other)
    saved(stock, tmp_path / "base")
    saved(routed_from(other, stock), tmp_path / "routed")
    for folder, found in (("base", other.name), ("routed", f"routed_{other.name}")):
        with pytest.raises(ValueError, match=f"'{found}'.*takes '{family.name}' or 'routed_{family.name}'"):
            family.routed.from_pretrained(tmp_path / folder)


@torch.no_grad()
def test_a_checkpoint_loads_with_trust_remote_code_alone(family, tmp_path):
    stock, routed = make_pair(family, router_hidden_size=12)
    saved(routed, tmp_path / "first")
    for name, tensor in stored_tensors(str(tmp_path / "first")):
        assert torch.equal(tensor, routed.state_dict()[name])
    ids, mask = padded(random_rows(LENGTHS))
    expected = routed(ids, attention_mask=mask)
    # A copy of a copy: what is loaded must be able to save its own code again.
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "first", trust_remote_code=True)
    saved(again, tmp_path / "second")
    for folder in ("first", "second"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / folder, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules.")
        assert model.config.num_windows == WINDOWS
        output = model(ids, attention_mask=mask)
        assert torch.equal(output.routes, expected.routes) and torch.equal(output.logits, expected.logits)
        tokens = model.generate(ids, attention_mask=mask, **GREEDY)
        assert torch.equal(tokens, routed.generate(ids, attention_mask=mask, **GREEDY))
        own = family.routed.from_pretrained(tmp_path / folder)
        assert torch.equal(own(ids, attention_mask=mask).logits, expected.logits)


def test_a_checkpoint_is_refused_without_trust_remote_code(family, tmp_path, monkeypatch):
    saved(make_pair(family)[1], tmp_path)
    # Without a terminal transformers would wait 15 seconds for an answer.
    monkeypatch.setattr("transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE", 0)
    for arguments in ({}, {"trust_remote_code": False}):
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            AutoModelForCausalLM.from_pretrained(tmp_path, **arguments)
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            AutoConfig.from_pretrained(tmp_path, **arguments)


def test_config_fields_can_be_overridden_when_loading(family, tmp_path):
    """lm-eval passes its model_args on in this way."""
    stock, routed = make_pair(family)
    saved(routed, tmp_path)
    ids = torch.stack(random_rows([9, 9]))
    for load in loaders(family, tmp_path):
        assert load().config.num_windows == WINDOWS
        assert load(num_windows=7).config.num_windows == 7
        assert torch.equal(load(is_static_routing=True)(ids).logits, stock(ids).logits)
        assert load(attn_implementation="eager").config._attn_implementation == "eager"


def test_a_trained_number_of_windows_cannot_be_overridden(family, tmp_path):
    routed = routed_from(family, stock_model(family), num_windows=6, trained_num_windows=6)
    saved(routed, tmp_path)
    for load in loaders(family, tmp_path):
        assert load(num_windows=6).config.num_windows == load().config.num_windows == 6
        with pytest.raises(ValueError, match="num_windows=8 contradicts the checkpoint"):
            load(num_windows=8)


def test_a_trained_checkpoint_that_lacks_router_weights_is_refused(family, tmp_path):
    """Drawn anew, they would route at random and nobody would know."""
    saved(routed_from(family, stock_model(family), num_windows=6, trained_num_windows=6), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.routers.3.up.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for load in loaders(family, tmp_path):
        with pytest.raises(ValueError, match="model.routers.3.up.weight"):
            load()


def dtypes(model) -> tuple[set, set]:
    """Of the base and of the routers."""
    found = {True: set(), False: set()}
    for name, parameter in model.named_parameters():
        found[".routers." in name].add(parameter.dtype)
    return found[False], found[True]


@pytest.mark.parametrize(
    "family, dtype",
    [
        (LLAMA, torch.bfloat16),
        (QWEN2, torch.bfloat16),
        (QWEN3, torch.bfloat16),
        (LLAMA, torch.float16),
        (LLAMA, "bfloat16"),
    ],
    ids=str,
)
@torch.no_grad()
def test_routers_of_a_checkpoint_stay_fp32(family, dtype, tmp_path):
    stock, routed = make_pair(family)
    saved(stock, tmp_path / "base")
    saved(routed, tmp_path / "routed")
    half = torch.bfloat16 if dtype == "bfloat16" else dtype
    ids, mask = padded(random_rows(LENGTHS))
    # Loaded, not cast: .to() would round the rotary frequencies as well.
    stock = family.stock.from_pretrained(tmp_path / "base", dtype=half)
    for load in loaders(family, tmp_path / "routed"):
        model = load(dtype=dtype)
        assert dtypes(model) == ({half}, {torch.float32})
        for name, tensor in model.model.routers.state_dict().items():
            assert torch.equal(tensor, routed.model.routers.state_dict()[name])
        ones = [[1] * LAYERS] * 5
        expected = stock(ids, attention_mask=mask).logits
        assert torch.equal(model(ids, attention_mask=mask, routes=ones).logits, expected)
        assert model.generate(ids, attention_mask=mask, **GREEDY).shape == (5, ids.shape[1] + NEW_TOKENS)


@pytest.mark.parametrize("saved_as", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [None, "auto", torch.bfloat16, "bfloat16", torch.float16], ids=str)
def test_fresh_routers_of_a_base_are_fp32(saved_as, dtype, tmp_path):
    """Training would else round every small step of the routers to bf16."""
    saved(stock_model(LLAMA).to(saved_as), tmp_path)
    model = LLAMA.routed.from_pretrained(tmp_path, **({} if dtype is None else {"dtype": dtype}))
    wanted = {None: saved_as, "auto": saved_as, "bfloat16": torch.bfloat16}.get(dtype, dtype)
    assert dtypes(model) == ({wanted}, {torch.float32})


def test_subfolders_load(tmp_path):
    """The outer folder holds another checkpoint, whose config must not be taken for that of the inner one."""
    stock = stock_model(LLAMA)
    inner = routed_from(LLAMA, stock, router_seed=5, num_windows=7)
    saved(routed_from(LLAMA, stock, router_seed=6, num_windows=2), tmp_path)
    saved(inner, tmp_path / "inner")
    ids = torch.stack(random_rows([9]))
    model = LLAMA.routed.from_pretrained(tmp_path, subfolder="inner")
    assert model.config.num_windows == 7
    assert torch.equal(model(ids).logits, inner(ids).logits)


def test_configs_show_the_fields_of_the_model():
    text = repr(LLAMA.routed_config(**config_fields(LLAMA)))
    assert "num_windows" in text and "hidden_size" in text.replace("router_hidden_size", "")


@pytest.fixture(params=FAMILIES, ids=str)
def reference(request, tmp_path):
    """A checkpoint of routers alone: (family, routed model, folder of the base, folder of the checkpoint)."""
    family = request.param
    stock, routed = make_pair(family)
    base, folder = saved(stock, tmp_path / "base"), saved(routed, tmp_path / "routers")
    (folder / "model.safetensors").unlink()
    save_file(routed.model.routers.state_dict(), folder / "routers.safetensors")
    fields = json.loads((folder / "config.json").read_text())
    digest = hashlib.sha256((base / "model.safetensors").read_bytes()).hexdigest()
    fields |= {"base_model": str(base), "base_sha256": {"model.safetensors": digest}}
    (folder / "config.json").write_text(json.dumps(fields))
    return family, routed, base, folder


@torch.no_grad()
def test_routers_load_onto_their_base(reference):
    family, routed, base, folder = reference
    ids, mask = padded(random_rows(LENGTHS))
    expected = routed(ids, attention_mask=mask)
    for load in loaders(family, folder):
        output = load()(ids, attention_mask=mask)
        assert torch.equal(output.routes, expected.routes) and torch.equal(output.logits, expected.logits)
        model, info = load(output_loading_info=True)
        assert torch.equal(model(ids, attention_mask=mask).logits, expected.logits)
        assert not info["unexpected_keys"]


def test_routers_that_refer_to_a_base_stay_fp32(reference):
    """Rounded to bf16, they would decide otherwise than they were trained to."""
    family, routed, _, folder = reference
    for load in loaders(family, folder):
        model = load(dtype=torch.bfloat16)
        assert dtypes(model) == ({torch.bfloat16}, {torch.float32})
        for name, tensor in model.model.routers.state_dict().items():
            assert torch.equal(tensor, routed.model.routers.state_dict()[name])


@torch.no_grad()
def test_a_model_loaded_from_a_reference_can_be_saved_whole(reference, tmp_path):
    family, routed, _, folder = reference
    saved(family.routed.from_pretrained(folder), tmp_path / "whole")
    ids = torch.stack(random_rows([6, 6]))
    for load in loaders(family, tmp_path / "whole"):
        assert torch.equal(load()(ids).logits, routed(ids).logits)


def test_a_base_that_was_changed_or_is_gone_is_refused(reference):
    family, _, base, folder = reference
    weights = base / "model.safetensors"
    saved(stock_model(family, seed=1), base)
    for load in loaders(family, folder):
        with pytest.raises(ValueError, match=f"{weights} is not the file that the routers were trained with"):
            load()
    weights.unlink()
    for load in loaders(family, folder):
        with pytest.raises(FileNotFoundError, match=f"{weights} is missing"):
            load()
