"""Running a path: exact against the stock models, and along any route against the naive oracle."""

from __future__ import annotations

import pytest
import torch
from conftest import (
    ALL_SLIDING,
    FAMILIES,
    LAYERS,
    LLAMA,
    SLIDING_FAMILIES,
    VOCAB,
    assert_near,
    four_dimensional,
    models,
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
from hypothesis import given
from hypothesis import strategies as st

from train_models.layer_path import layer_steps, path_steps
from train_models.path_cache import Step

NEW_TOKENS = 5
# Every kind of row in one batch; the named ones are those that break a cache with one slot for each layer.
ROUTES = {
    "layer 0 skipped": [0, 1, 2, 1, 1],
    "all skipped": [0, 0, 0, 0, 0],
    "all repeated": [2, 2, 2, 2, 2],
    "mixed": [1, 0, 2, 0, 1],
    "last only": [0, 0, 0, 0, 1],
    "dense": [1, 1, 1, 1, 1],
}
ONES = [1] * LAYERS


def greedy(model, ids, mask=None, new_tokens=NEW_TOKENS, **kwargs):
    """(tokens [B, N], logits [B, N, V]) that generate() adds, greedily."""
    output = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=new_tokens,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **kwargs,
    )
    return output.sequences[:, ids.shape[1] :], torch.stack(output.logits, dim=1)


def check_greedy_equals_oracle(stock, routed, rows, routes):
    """Cached, left-padded, batched generate() against each row alone without a cache."""
    ids, mask = padded(rows)
    tokens, logits = greedy(routed, ids, mask, routes=torch.tensor(routes))
    for at, (row, route) in enumerate(zip(rows, routes, strict=True)):
        expected_tokens, expected_logits = oracle_generate(stock, row, route_path(route), NEW_TOKENS)
        assert_near(logits[at], expected_logits)
        assert tokens[at].tolist() == expected_tokens.tolist()


@pytest.mark.parametrize(
    "path, steps",
    [
        ([], []),
        ([0, 1, 2], [(0, 0), (1, 0), (2, 0)]),
        ([2, 0, 0, 3, 2, 0], [(2, 0), (0, 0), (0, 1), (3, 0), (2, 1), (0, 2)]),
    ],
)
def test_path_steps_number_the_visits_of_each_layer(path, steps):
    assert path_steps(path) == [Step(layer, visit) for layer, visit in steps]


@given(st.lists(st.integers(0, 2), max_size=6))
def test_layer_steps_hold_each_row_as_often_as_it_runs(counts):
    steps = layer_steps(3, counts)
    assert [step.visit for step in steps] == list(range(max(counts, default=0)))
    for row, count in enumerate(counts):
        assert sum(step.rows is None or row in step.rows for step in steps) == count
    # None stands for all rows, so that nothing is gathered there.
    assert all(step.rows != tuple(range(len(counts))) for step in steps)


def test_wrong_paths_are_far_outside_the_tolerance(family):
    """Guards the guards: if layers hardly changed the logits, no comparison below could fail."""
    stock = stock_model(family)
    row = random_rows([9])[0]
    dense = oracle_logits(stock, row, route_path(ONES))
    for layer in range(LAYERS):
        for count in (0, 2):
            route = [count if at == layer else 1 for at in range(LAYERS)]
            assert (oracle_logits(stock, row, route_path(route)) - dense).abs().max() > 0.1


def test_oracle_is_the_stock_model_on_the_full_path(any_family):
    stock = stock_model(any_family)
    row = random_rows([11])[0]
    assert_near(oracle_logits(stock, row, range(LAYERS)), stock(row[None]).logits[0])


def dense_variants(family, attention="sdpa", **overrides):
    """The stock model, and the models that must equal it: [(model, extra arguments for B rows)]."""
    stock, routed, path = models(family, attn_implementation=attention, **overrides)
    ones = torch.ones(1, LAYERS, dtype=torch.long)
    return stock, [(routed, lambda batch: {"routes": ones.expand(batch, -1)}), (path, lambda batch: {})]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_all_ones_equals_stock_exactly(any_family, attention):
    ids, mask = padded(random_rows([3, 11, 7]))
    stock, variants = dense_variants(any_family, attention)
    for model, extra in variants:
        assert model.config._attn_implementation == stock.config._attn_implementation
        for given_mask in (None, mask):
            expected = stock(ids, attention_mask=given_mask).logits
            assert torch.equal(model(ids, attention_mask=given_mask, **extra(3)).logits, expected)
            uncached = model(ids, attention_mask=given_mask, use_cache=False, **extra(3))
            assert torch.equal(uncached.logits, stock(ids, attention_mask=given_mask, use_cache=False).logits)
            assert uncached.past_key_values is None


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_all_ones_decodes_like_stock_exactly(any_family, attention):
    """Prefill, a step of one token, one of three at once (as in assisted decoding), one more of one."""
    ids, mask = padded(random_rows([3, 11, 7]))
    more = torch.stack(random_rows([5, 5, 5], seed=1))
    stock, variants = dense_variants(any_family, attention)
    for model, extra in variants:
        caches, tokens, length = [None, None], ids, ids.shape[1]
        arguments = extra(3)
        for step in (more[:, :1], more[:, 1:4], more[:, 4:], None):
            seen = torch.cat([mask, torch.ones(3, length - ids.shape[1], dtype=torch.long)], dim=1)
            outputs = [
                stock(tokens, attention_mask=seen, past_key_values=caches[0], use_cache=True),
                model(tokens, attention_mask=seen, past_key_values=caches[1], use_cache=True, **arguments),
            ]
            assert torch.equal(outputs[1].logits, outputs[0].logits)
            if step is None:
                break
            caches, tokens, arguments = [output.past_key_values for output in outputs], step, {}
            length += step.shape[1]


@pytest.mark.parametrize("tied", [False, True])
def test_all_ones_generates_like_stock_exactly(any_family, tied):
    ids, mask = padded(random_rows([3, 11, 7]))
    stock, variants = dense_variants(any_family, tie_word_embeddings=tied)
    expected_tokens, expected_logits = greedy(stock, ids, mask)
    for model, extra in variants:
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
        tokens, logits = greedy(model, ids, mask, **extra(3))
        assert torch.equal(tokens, expected_tokens)
        assert torch.equal(logits, expected_logits)


def test_loss_and_logits_to_keep_equal_stock(family):
    ids, mask = padded(random_rows([3, 8]))
    labels = ids.masked_fill(mask == 0, -100)
    stock, variants = dense_variants(family)
    expected = stock(ids, attention_mask=mask, labels=labels)
    for model, extra in variants:
        assert torch.equal(model(ids, attention_mask=mask, labels=labels, **extra(2)).loss, expected.loss)
        last = model(ids, attention_mask=mask, logits_to_keep=1, **extra(2)).logits
        assert_near(last, expected.logits[:, -1:])
        as_tuple = model(ids, attention_mask=mask, return_dict=False, **extra(2))
        assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], expected.logits)


def test_embeddings_in_place_of_ids(family):
    stock, routed, path = models(family)
    ids = torch.stack(random_rows([6, 6]))
    embeddings = stock.model.embed_tokens(ids)
    routes = torch.tensor([ROUTES["mixed"], ROUTES["layer 0 skipped"]])
    assert torch.equal(routed(inputs_embeds=embeddings, routes=routes).logits, routed(ids, routes=routes).logits)
    for model in (routed, path):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(ids, inputs_embeds=embeddings)
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model()


def test_forced_routes_in_one_padded_batch(any_family):
    stock = stock_model(any_family)
    rows = random_rows([4, 9, 1, 12, 6, 7])
    check_greedy_equals_oracle(stock, routed_from(any_family, stock), rows, list(ROUTES.values()))


@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES.keys())
@pytest.mark.parametrize("family", (LLAMA, *SLIDING_FAMILIES, ALL_SLIDING), ids=str)
def test_forced_route_shared_by_all_rows(family, route):
    """No row is gathered here, which is another way through the code than in mixed batches."""
    stock = stock_model(family)
    check_greedy_equals_oracle(stock, routed_from(family, stock), random_rows([3, 10]), [route, route])


SHARED = {str(family): models(family) for family in (*FAMILIES, *SLIDING_FAMILIES, ALL_SLIDING)}


@pytest.mark.parametrize("name", SHARED)
@given(
    rows=st.lists(
        st.tuples(st.integers(1, 9), st.lists(st.integers(0, 2), min_size=LAYERS, max_size=LAYERS)),
        min_size=1,
        max_size=3,
    ),
    seed=st.integers(0, 99),
)
def test_random_routes(name, rows, seed):
    stock, routed, _ = SHARED[name]
    lengths, routes = zip(*rows, strict=True)
    check_greedy_equals_oracle(stock, routed, random_rows(lengths, seed), list(routes))


def test_eager_attention_along_mixed_routes(any_family):
    stock = stock_model(any_family, attn_implementation="eager")
    rows = random_rows([4, 9, 6])
    check_greedy_equals_oracle(stock, routed_from(any_family, stock), rows, list(ROUTES.values())[:3])


@torch.no_grad()
def test_several_tokens_after_the_prefill(any_family):
    """A continuation of three tokens at once attends within itself and, under a window, not to all before it."""
    stock = stock_model(any_family)
    routed = routed_from(any_family, stock)
    rows, more = random_rows([2, 9, 6]), torch.stack(random_rows([3, 3, 3], seed=1))
    routes = [ROUTES["layer 0 skipped"], ROUTES["mixed"], ROUTES["all repeated"]]
    ids, mask = padded(rows)
    cache = routed(ids, attention_mask=mask, routes=torch.tensor(routes), use_cache=True).past_key_values
    longer = torch.cat([mask, torch.ones_like(more)], dim=1)
    logits = routed(more, attention_mask=longer, past_key_values=cache).logits
    for at, (row, route) in enumerate(zip(rows, routes, strict=True)):
        assert_near(logits[at], oracle_logits(stock, torch.cat([row, more[at]]), route_path(route))[-3:])


@torch.no_grad()
def test_given_path_equals_route(any_family):
    """The two kinds of model run the same operations, so they agree to the last bit."""
    _, routed, path = models(any_family)
    ids, mask = padded(random_rows([4, 9]))
    for route in ROUTES.values():
        path.model.layer_indices = route_path(route)
        routes = torch.tensor([route, route])
        expected = routed(ids, attention_mask=mask, routes=routes)
        assert torch.equal(path(ids, attention_mask=mask).logits, expected.logits)
        tokens, logits = greedy(path, ids, mask)
        expected_tokens, expected_logits = greedy(routed, ids, mask, routes=routes)
        assert torch.equal(tokens, expected_tokens) and torch.equal(logits, expected_logits)


def test_mask_of_four_dimensions_is_taken_as_it_is(family):
    stock = stock_model(family)
    routed = routed_from(family, stock)
    rows, routes = random_rows([7, 7]), [ROUTES["mixed"], ROUTES["all repeated"]]
    visible = torch.ones(7, 7, dtype=torch.bool).tril()
    # The second row must not see its first two tokens; its own diagonal stays visible.
    masks = torch.stack([visible, visible & ((torch.arange(7) > 1) | torch.eye(7, dtype=torch.bool))])
    masks = four_dimensional(masks[:, None], stock)
    logits = routed(torch.stack(rows), attention_mask=masks, routes=torch.tensor(routes)).logits
    assert_near(logits[0], oracle_logits(stock, rows[0], route_path(routes[0])))
    # Rotary positions are relative, so the row without its first two tokens is the same.
    assert_near(logits[1, 2:], oracle_logits(stock, rows[1][2:], route_path(routes[1])))


def test_sliding_window_matters():
    """Guards the sliding tests: the prompts are long enough for the window to change the result."""
    for family in (*SLIDING_FAMILIES, ALL_SLIDING):
        stock = stock_model(family)
        row = random_rows([11])[0]
        narrow = oracle_logits(stock, row, range(LAYERS))
        stock.config.sliding_window = 1000
        assert (oracle_logits(stock, row, range(LAYERS)) - narrow).abs().max() > 0.1


@torch.no_grad()
def test_hidden_states_equal_stock_on_the_full_path(any_family):
    ids, mask = padded(random_rows([3, 8]))
    stock, variants = dense_variants(any_family)
    expected = stock(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    for model, extra in variants:
        states = model(ids, attention_mask=mask, output_hidden_states=True, **extra(2)).hidden_states
        assert len(states) == LAYERS + 1
        assert all(torch.equal(*pair) for pair in zip(states, expected, strict=True))
        assert model(ids, attention_mask=mask, **extra(2)).hidden_states is None


@torch.no_grad()
def test_hidden_states_along_mixed_routes(family):
    """One state for each layer, skipped or not, and for each row its own."""
    stock = stock_model(family)
    routed = routed_from(family, stock)
    rows, routes = random_rows([6, 6]), [ROUTES["mixed"], ROUTES["layer 0 skipped"]]
    states = routed(torch.stack(rows), routes=torch.tensor(routes), output_hidden_states=True).hidden_states
    assert len(states) == LAYERS + 1
    for at, (row, route) in enumerate(zip(rows, routes, strict=True)):
        expected = oracle_states(stock, stock.model.embed_tokens(row[None]), route_path(route))
        for layer in range(LAYERS):
            assert_near(states[layer][at], expected[sum(route[:layer])][0] if any(route[layer:]) else states[-2][at])
        assert_near(states[-1][at], expected[-1][0])


def test_attention_maps_are_refused(family):
    _, routed, path = models(family)
    ids = torch.stack(random_rows([4]))
    for model in (routed, path):
        with pytest.raises(ValueError, match="output_attentions is not available"):
            model(ids, output_attentions=True)
        with pytest.raises(ValueError, match="output_attentions is not available"):
            model.generate(ids, max_new_tokens=2, output_attentions=True, return_dict_in_generate=True)
        # transformers itself refuses to note this in the config of a model without eager attention.
        model.set_attn_implementation("eager")
        model.config.output_attentions = True
        with pytest.raises(ValueError, match="output_attentions is not available"):
            model(ids)


@pytest.mark.parametrize("use_cache", [False, True])
def test_gradients_along_mixed_routes(any_family, use_cache):
    stock = stock_model(any_family)
    routed = routed_from(any_family, stock)
    rows = random_rows([9, 9, 9])
    # Layer 3 is skipped by all rows, the others by some of them.
    routes = [[0, 1, 2, 0, 1], [2, 1, 0, 0, 1], [0, 0, 1, 0, 2]]
    labels = torch.stack(random_rows([9, 9, 9], seed=1))

    def loss(logits):
        return torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), labels.flatten())

    loss(routed(torch.stack(rows), routes=torch.tensor(routes), use_cache=use_cache).logits).backward()
    naive = [oracle_logits(stock, row, route_path(route)) for row, route in zip(rows, routes, strict=True)]
    loss(torch.stack(naive)).backward()
    found = dict(routed.named_parameters())
    for name, parameter in stock.named_parameters():
        if ".layers.3." in name:
            assert parameter.grad is None and found[name].grad is None
        else:
            assert_near(found[name].grad, parameter.grad)
    assert found["model.embed_tokens.weight"].grad.abs().max() > 1e-3
    assert all(parameter.grad is None for name, parameter in found.items() if ".routers." in name)


@pytest.mark.parametrize("kind", [routed_from, path_from])
def test_gradient_checkpointing_changes_nothing(family, kind):
    stock = stock_model(family)
    ids = torch.stack(random_rows([7, 7]))
    grads = []
    for checkpointing in (False, True):
        model = kind(family, stock).train()
        extra = {"routes": torch.tensor([ROUTES["mixed"], ROUTES["layer 0 skipped"]])} if kind is routed_from else {}
        if checkpointing:
            model.activation_checkpointing_enable()
        model(ids, labels=ids, use_cache=False, **extra).loss.backward()
        grads.append(model.model.embed_tokens.weight.grad)
    assert_near(grads[1], grads[0], 1e-6)
