"""Routers, the windows that they read, and the mask that tells prompt from padding."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import LLAMA, padded, random_rows, routed_from, stock_model
from hypothesis import given, settings
from hypothesis import strategies as st

from train_models.router_kinds import KINDS
from train_models.routers import RouterBlock, pool_windows, prompt_mask, window_weights
from train_models.routers_by_kind import ROUTERS

MASKS = st.integers(1, 20).flatmap(
    lambda tokens: st.lists(st.lists(st.booleans(), min_size=tokens, max_size=tokens), min_size=1, max_size=4)
)


def mask_of(ids, attention_mask=None, padding_ids=(0,), prompt_lengths=None):
    """`prompt_mask` as nested lists."""
    ids = torch.as_tensor(ids)
    if attention_mask is not None:
        attention_mask = torch.as_tensor(attention_mask)
    shape = tuple(ids.shape)
    return prompt_mask(ids, attention_mask, shape, ids.device, padding_ids, prompt_lengths).long().tolist()


@settings(max_examples=60)
@given(MASKS, st.integers(1, 10))
def test_windows_partition_the_prompt(mask, count):
    mask = torch.tensor(mask)
    weights, used = window_weights(mask, count)
    assert weights.shape == (len(mask), count, mask.shape[1]) and weights.dtype == torch.float32
    for row in range(len(mask)):
        tokens = mask[row].nonzero().flatten().tolist()
        windows = [weights[row, at].nonzero().flatten().tolist() for at in range(count)]
        # Joined in order they are the prompt: each token once, none of the padding, each window contiguous.
        assert [token for window in windows for token in window] == tokens
        assert used[row].tolist() == [bool(window) for window in windows]
        sizes = [len(window) for window in windows]
        assert max(sizes) - min(sizes) <= 1
        assert sum(map(bool, sizes)) == min(len(tokens), count)
        for at, window in enumerate(windows):
            assert all(weight == pytest.approx(1 / len(window)) for weight in weights[row, at, window].tolist())


@pytest.mark.parametrize(
    "tokens, count, sizes",
    [(8, 8, [1] * 8), (17, 8, [3, 2, 2, 2, 2, 2, 2, 2]), (3, 1, [3]), (2, 3, [1, 1, 0]), (9, 4, [3, 2, 2, 2])],
)
def test_window_sizes_worked_by_hand(tokens, count, sizes):
    """Token j of n lies in window floor(j W / n); the last ones, where the question ends, are not dropped."""
    weights, _ = window_weights(torch.ones(1, tokens, dtype=torch.bool), count)
    assert weights[0].bool().sum(1).tolist() == sizes


@settings(max_examples=30)
@given(MASKS, st.integers(1, 6), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_pooling_ignores_masked_tokens_whatever_they_hold(mask, count, poison):
    mask = torch.tensor(mask)
    hidden = torch.randn(*mask.shape, 3, generator=torch.Generator().manual_seed(0))
    weights, used = window_weights(mask, count)
    pooled = pool_windows(hidden.masked_fill(~mask[..., None], poison), weights)
    for row in range(len(mask)):
        for at in range(count):
            inside = weights[row, at].bool()
            expected = hidden[row, inside].mean(0) if used[row, at] else torch.zeros(3)
            torch.testing.assert_close(pooled[row, at], expected)


def test_pooling_of_a_row_does_not_depend_on_where_its_padding_is():
    hidden, left = torch.randn(1, 5, 4), torch.tensor([[False] * 3 + [True] * 5])
    padding = torch.full((1, 3, 4), math.nan)
    alone = pool_windows(hidden, window_weights(torch.ones(1, 5, dtype=torch.bool), 2)[0])
    after = pool_windows(torch.cat([hidden, padding], 1), window_weights(left.flip(1), 2)[0])
    before = pool_windows(torch.cat([padding, hidden], 1), window_weights(left, 2)[0])
    torch.testing.assert_close(after, alone)
    torch.testing.assert_close(before, alone)


def test_pooling_computes_in_fp32():
    """In bf16, the mean of 1000 equal numbers would drift, and so would the decision."""
    hidden = torch.full((1, 1000, 2), 1.0078125, dtype=torch.bfloat16)
    pooled = pool_windows(hidden, window_weights(torch.ones(1, 1000, dtype=torch.bool), 3)[0])
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, torch.full((1, 3, 2), 1.0078125))


def test_router_logits_are_the_mean_over_used_windows():
    torch.manual_seed(0)
    router = RouterBlock(4, 6)
    pooled = torch.randn(2, 3, 4)
    windows = torch.tensor([[True, True, True], [True, False, False]])
    logits = router(pooled, windows)

    def window_logits(state):
        hidden = router.up.weight @ state + router.up.bias
        gelu = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        return router.down.weight @ gelu + router.down.bias

    by_hand = [sum(window_logits(pooled[0, at]) for at in range(3)) / 3, window_logits(pooled[1, 0])]
    assert logits.shape == (2, 3)
    torch.testing.assert_close(logits, torch.stack(by_hand))


def test_router_of_a_row_without_windows_gives_finite_logits():
    logits = RouterBlock(4, 6)(torch.zeros(1, 3, 4), torch.zeros(1, 3, dtype=torch.bool))
    assert logits.tolist() == [[0.0, 0.0, 0.0]]


def test_router_takes_pooled_states_of_any_dtype():
    router = RouterBlock(4, 6)
    pooled, windows = torch.randn(1, 2, 4).bfloat16(), torch.ones(1, 2, dtype=torch.bool)
    assert router(pooled, windows).dtype == torch.float32
    torch.testing.assert_close(router(pooled, windows), router(pooled.float(), windows))


def check_fresh(routers, hidden_size, router_hidden_size):
    """Zero biases, and weights that fill the Xavier-uniform interval."""
    for router in routers:
        assert router.up.weight.shape == (router_hidden_size, hidden_size)
        assert router.down.weight.shape == (3, router_hidden_size)
        for linear in (router.up, router.down):
            bound = math.sqrt(6 / sum(linear.weight.shape))
            assert not linear.bias.any()
            assert bound * 0.8 < linear.weight.abs().max().item() <= bound
            # The standard deviation tells uniform from normal: bound / sqrt(3).
            assert linear.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.25)


def test_fresh_models_have_xavier_routers(family):
    model = routed_from(family, stock_model(family), router_hidden_size=64)
    check_fresh(model.model.routers, 32, 64)


def test_bases_are_loaded_with_xavier_routers(family, tmp_path):
    """A user who loads a base and trains it without a call of init_routers starts from the paper's draw."""
    stock_model(family).save_pretrained(tmp_path)
    check_fresh(family.routed.from_pretrained(tmp_path, router_hidden_size=64).model.routers, 32, 64)


def test_init_routers_is_xavier_and_touches_nothing_else(family):
    model = routed_from(family, stock_model(family), router_hidden_size=64)
    with torch.no_grad():
        for parameter in model.model.routers.parameters():
            parameter.fill_(7.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.model.init_routers()
    check_fresh(model.model.routers, 32, 64)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (".routers." not in name)


def test_init_routers_draws_anew_what_was_loaded(family, tmp_path):
    """transformers marks loaded weights, and its init functions then leave them alone."""
    model = routed_from(family, stock_model(family), router_seed=3, router_hidden_size=64)
    model.save_pretrained(tmp_path)
    loaded = family.routed.from_pretrained(tmp_path)
    assert torch.equal(loaded.model.routers[0].up.bias, model.model.routers[0].up.bias)
    loaded.init_routers()
    check_fresh(loaded.model.routers, 32, 64)


def test_init_routers_follows_the_global_seed():
    model = routed_from(LLAMA, stock_model(LLAMA)).model
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        model.init_routers()
        drawn.append([router.up.weight.clone() for router in model.routers])
    assert all(torch.equal(*pair) for pair in zip(drawn[0], drawn[1], strict=True))
    assert not any(torch.equal(*pair) for pair in zip(drawn[0], drawn[2], strict=True))
    assert not torch.equal(drawn[0][0], drawn[0][1])


def test_right_padding_without_a_mask_is_seen_as_alone():
    """lm-eval pads with id 0 and gives no mask; the row must be routed as it is at batch size 1."""
    rows = random_rows([3, 6, 1])
    found = mask_of(padded(rows, "right")[0])
    for row, line in zip(rows, found, strict=True):
        assert mask_of(row[None])[0] == [1] * len(row)
        assert line == [1] * len(row) + [0] * (6 - len(row))


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=4),
    st.sampled_from([(0,), (0, 2)]),
    st.booleans(),
)
def test_a_row_is_seen_alike_alone_and_in_any_batch(rows, padding_ids, with_mask):
    """Also rows that hold padding ids inside and at their end."""
    rows = [torch.tensor(row) for row in rows]
    for side in ("right", "left") if with_mask else ("right",):
        ids, mask = padded(rows, side)
        found = torch.tensor(mask_of(ids, mask if with_mask else None, padding_ids)).bool()
        for at, row in enumerate(rows):
            if not with_mask and not set(row.tolist()) - set(padding_ids):
                continue  # a row of nothing but padding ids has no end that could be told from padding
            alone = torch.tensor(mask_of(row[None], None, padding_ids))[0].bool()
            place = slice(len(row)) if side == "right" else slice(ids.shape[1] - len(row), None)
            assert found[at, place].tolist() == alone.tolist()
            assert int(found[at].sum()) == int(alone.sum())


def test_only_the_end_of_a_row_counts_as_padding():
    assert mask_of([[0, 5, 0, 7, 0, 0]]) == [[1, 1, 1, 1, 0, 0]]
    assert mask_of([[9, 5, 9, 0, 9]], padding_ids=(0, 9)) == [[1, 1, 0, 0, 0]]
    assert mask_of([[5, 0, 0]], padding_ids=()) == [[1, 1, 1]]


def test_pad_token_of_the_config_counts_beside_id_0():
    stock = stock_model(LLAMA)
    ids, hidden = torch.tensor([[5, 6, 9, 9], [5, 6, 0, 0], [5, 6, 9, 0]]), torch.zeros(3, 4, 32)
    for pad, expected in ((9, [2, 2, 2]), (None, [4, 2, 3]), (0, [4, 2, 3])):
        model = routed_from(LLAMA, stock, pad_token_id=pad).model
        assert model.routing_mask(ids, None, hidden).sum(1).tolist() == expected


def test_attention_mask_is_respected_on_both_sides():
    assert mask_of([[0, 0, 5, 6], [3, 4, 5, 6]], [[0, 0, 1, 1], [1, 1, 1, 1]]) == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert mask_of([[5, 6, 8, 8]], [[1, 1, 0, 0]]) == [[1, 1, 0, 0]]
    # Of a mask that also covers what a cache holds, the last columns belong to these tokens.
    assert mask_of([[5, 6]], [[1, 1, 1, 0, 1]]) == [[0, 1]]


def test_rows_of_nothing_but_padding():
    assert mask_of([[0, 0, 0]]) == [[1, 1, 1]]
    assert mask_of([[0, 0, 0]], [[1, 1, 0]]) == [[1, 1, 0]]
    assert mask_of([[5, 6, 7]], [[0, 0, 0]]) == [[0, 0, 0]]


def test_embeddings_have_no_padding_ids():
    mask = prompt_mask(None, None, (2, 3), torch.device("cpu"), (0,))
    assert mask.dtype == torch.bool and mask.tolist() == [[True] * 3] * 2


def test_prompt_lengths_count_real_tokens():
    ids, mask = [[0, 5, 6, 7], [5, 6, 7, 8]], [[0, 1, 1, 1], [1, 1, 1, 1]]
    assert mask_of(ids, mask, prompt_lengths=torch.tensor([2, 3])) == [[0, 1, 1, 0], [1, 1, 1, 0]]
    # Longer than the row means all of it, and lengths may come as a list.
    assert mask_of([[5, 6, 0, 0]], prompt_lengths=[9]) == [[1, 1, 0, 0]]
    assert mask_of([[5, 6, 0, 0]], prompt_lengths=[1]) == [[1, 0, 0, 0]]


@pytest.mark.parametrize("lengths", [[0, 1], [-1, 2], [1], [1, 1, 1], [[1, 1]], 2], ids=str)
def test_wrong_prompt_lengths_are_refused(lengths):
    with pytest.raises(ValueError, match="prompt_lengths must hold one length >= 1 for each of 2 rows"):
        mask_of([[5, 6], [7, 8]], prompt_lengths=lengths)


@pytest.mark.parametrize(
    "mask",
    [torch.ones(1, 1, 2, 2), torch.ones(2), {"full_attention": torch.ones(1, 1, 2, 2)}],
    ids=["4-D", "1-D", "dict"],
)
def test_masks_that_hide_what_is_padding_are_refused(mask):
    with pytest.raises(ValueError, match=r"needs an attention_mask of shape \[B, T\].*routes="):
        prompt_mask(torch.tensor([[5, 6]]), mask, (1, 2), torch.device("cpu"), (0,))


def test_every_kind_of_router_has_what_makes_it_and_decides():
    assert ROUTERS.keys() == KINDS.keys()
    assert {name for name, (_, decide) in ROUTERS.items() if decide is None} == {
        name for name, kind in KINDS.items() if kind.decides_for == "nothing"
    }
