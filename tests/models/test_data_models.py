"""Models that run the path they are given: any order, any repeats."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import (
    FAMILIES,
    LAYERS,
    LLAMA,
    SLIDING_FAMILIES,
    assert_near,
    entering,
    logits_of,
    models,
    oracle_generate,
    oracle_logits,
    oracle_states,
    padded,
    path_from,
    random_rows,
    stock_model,
)
from hypothesis import given
from hypothesis import strategies as st

PATHS = {
    "any order": [2, 0, 0, 3, 1, 2],
    "backwards": [4, 3, 2, 1, 0],
    "one layer five times": [3, 3, 3, 3, 3],
    "without layer 0": [1, 2, 4],
    "empty": [],
}
MODELS = {str(family): models(family) for family in FAMILIES + SLIDING_FAMILIES}


def check_against_oracle(name, path, rows):
    """Forward and left-padded greedy decoding, with and without a cache."""
    stock, _, model = MODELS[name]
    model.model.layer_indices = path
    ids, mask = padded(rows)
    for use_cache in (True, False):
        logits = model(ids, attention_mask=mask, use_cache=use_cache).logits
        tokens = model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False, use_cache=use_cache)
        for at, row in enumerate(rows):
            assert_near(logits[at, -len(row) :], oracle_logits(stock, row, path))
            assert tokens[at, ids.shape[1] :].tolist() == oracle_generate(stock, row, path, 3)[0].tolist()


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_given_paths(name, path):
    check_against_oracle(name, path, random_rows([3, 10, 7]))


@pytest.mark.parametrize("name", MODELS)
@given(
    path=st.lists(st.integers(0, LAYERS - 1), max_size=2 * LAYERS),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
)
@torch.no_grad()
def test_random_paths(name, path, lengths):
    check_against_oracle(name, path, random_rows(lengths))


def test_default_is_every_layer_once(family):
    stock = stock_model(family)
    model = path_from(family, stock)
    assert model.model.layer_indices == list(range(LAYERS))
    ids = torch.stack(random_rows([6, 6]))
    assert torch.equal(model(ids).logits, stock(ids).logits)
    model.model.layer_indices = [1]
    model.model.layer_indices = range(LAYERS)
    assert torch.equal(model(ids).logits, stock(ids).logits)


def test_stock_folders_load_as_they_are(family, tmp_path):
    stock = stock_model(family)
    stock.save_pretrained(tmp_path)
    model, info = family.path.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(tensor, stock.state_dict()[name]) for name, tensor in model.state_dict().items())
    ids = torch.stack(random_rows([6]))
    assert torch.equal(model(ids).logits, stock(ids).logits)


def test_the_empty_path_feeds_embeddings_to_the_head(family):
    stock = stock_model(family)
    model = path_from(family, stock)
    model.model.layer_indices = []
    ids = torch.stack(random_rows([6, 6]))
    assert torch.equal(
        model(ids).logits, logits_of(stock, stock.model.norm(entering(stock, stock.model.embed_tokens(ids))))
    )


def test_a_path_may_be_written_as_ranges():
    model = path_from(LLAMA, stock_model(LLAMA)).model
    model.layer_indices = "0:2,1,3:"
    assert model.layer_indices == [0, 1, 1, 3, 4]


@pytest.mark.parametrize("path", [(2, 0), range(3), torch.tensor([4, 1, 1])], ids=str)
def test_paths_may_come_in_any_sequence(path):
    model = path_from(LLAMA, stock_model(LLAMA)).model
    model.layer_indices = path
    assert model.layer_indices == [int(layer) for layer in path]
    assert all(type(layer) is int for layer in model.layer_indices)


def test_the_path_cannot_be_changed_from_outside():
    """An edit of the list that went in or came out would pass by the check of the setter."""
    model = path_from(LLAMA, stock_model(LLAMA)).model
    given_path = [1, 2]
    model.layer_indices = given_path
    given_path.append(77)
    model.layer_indices.append(78)
    assert model.layer_indices == [1, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        [0, LAYERS],
        [-1],
        [1.5],
        [math.nan],
        [math.inf],
        "012",
        ["0"],
        [True],
        True,
        None,
        [None],
        [[0, 1]],
        3,
    ],
    ids=str,
)
def test_wrong_paths_are_refused(family, wrong):
    model = path_from(family, stock_model(family)).model
    model.layer_indices = [3, 1]
    with pytest.raises(ValueError, match=f"whole numbers from 0 to {LAYERS - 1}, in any order, with repeats, got"):
        model.layer_indices = wrong
    assert model.layer_indices == [3, 1]


@torch.no_grad()
def test_changing_the_path_of_a_filled_cache_is_refused(family):
    stock = stock_model(family)
    model = path_from(family, stock)
    row = random_rows([6])[0]
    model.model.layer_indices = [0, 2, 2]
    cache = model(row[None, :-1], use_cache=True).past_key_values
    # [2, 0, 2] runs the same layers as often, in another order.
    for path in ([0, 2], [2, 0, 2], [0, 2, 2, 3], []):
        model.model.layer_indices = path
        with pytest.raises(ValueError, match=r"filled along the path \[0, 2, 2\], but layer_indices is now"):
            model(row[None, -1:], past_key_values=cache)
    model.model.layer_indices = [0, 2, 2]
    logits = model(row[None, -1:], past_key_values=cache).logits
    assert_near(logits[0], oracle_logits(stock, row, [0, 2, 2])[-1:])
    cache.reset()
    model.model.layer_indices = [4, 1]
    assert_near(model(row[None], past_key_values=cache).logits[0], oracle_logits(stock, row, [4, 1]))


@torch.no_grad()
def test_changing_from_and_to_the_empty_path_is_refused():
    """A cache without slots knows only by its length that it was filled."""
    model = path_from(LLAMA, stock_model(LLAMA))
    ids = torch.stack(random_rows([6]))
    model.model.layer_indices = []
    cache = model(ids, use_cache=True).past_key_values
    model.model.layer_indices = [0]
    with pytest.raises(ValueError, match=r"filled along the path \[\]"):
        model(ids[:, :1], past_key_values=cache)


@torch.no_grad()
def test_beam_search_equals_beam_search_without_a_cache(any_family):
    model = MODELS[str(any_family)][2]
    model.model.layer_indices = PATHS["any order"]
    ids, mask = padded(random_rows([3, 8]))
    arguments = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False, "attention_mask": mask}
    cached, uncached = (model.generate(ids, use_cache=use_cache, **arguments) for use_cache in (True, False))
    assert torch.equal(cached, uncached)


@torch.no_grad()
def test_prompt_lookup_changes_nothing(any_family):
    """The cache is cut back after each rejected draft, with several visits of a layer in it."""
    model = MODELS[str(any_family)][2]
    model.model.layer_indices = PATHS["any order"]
    ids = random_rows([4])[0].repeat(3)[None]
    arguments = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3, **arguments), model.generate(ids, **arguments))


@torch.no_grad()
def test_hidden_states_follow_the_path(family):
    stock = stock_model(family)
    model = path_from(family, stock)
    row = random_rows([6])[0]
    for path in PATHS.values():
        model.model.layer_indices = path
        states = model(row[None], output_hidden_states=True).hidden_states
        expected = oracle_states(stock, stock.model.embed_tokens(row[None]), path)
        assert len(states) == len(path) + 1
        for found, wanted in zip(states, expected, strict=True):
            assert_near(found, wanted)
