"""Operations on a filled PathCache: whatever is done to it, continuing equals computing everything anew."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import (
    ALL_SLIDING,
    FAMILIES,
    LAYERS,
    LLAMA,
    QWEN2,
    SLIDING_FAMILIES,
    VOCAB,
    assert_near,
    models,
    oracle_logits,
    padded,
    random_rows,
    route_path,
)
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache, LlamaConfig, StaticCache
from transformers.cache_utils import EncoderDecoderCache

from train_models.path_cache import PathCache, Step, checked_cache

# Every layer is skipped by some row, so that each slot holds some rows only; row 3 runs nothing at all.
ROUTES = [[0, 1, 2, 0, 1], [2, 0, 0, 1, 1], [0, 2, 1, 2, 0], [0, 0, 0, 0, 0]]
LENGTHS = [4, 9, 6, 7]
BYTES_PER_TOKEN = 2 * 2 * 8 * 4  # keys and values, 2 heads, 8 numbers each, 4 bytes a number

TRIPLES = {str(family): models(family) for family in (*FAMILIES, *SLIDING_FAMILIES, ALL_SLIDING)}


class Session:
    """A cache with the rows that it should stand for: their tokens, routes and paddings."""

    def __init__(self, name, lengths=LENGTHS, routes=ROUTES, cache=None, seed=0):
        self.stock, self.routed, _ = TRIPLES[name]
        self.rows, self.routes = random_rows(lengths, seed), [list(route) for route in routes]
        self.seed = seed
        ids, self.mask = padded(self.rows)
        output = self.routed(
            ids,
            attention_mask=self.mask,
            routes=torch.tensor(self.routes),
            past_key_values=cache,
            use_cache=True,
        )
        self.cache = output.past_key_values
        self.check(output.logits[:, -1:])

    def check(self, logits):
        """Logits [B, N, V] of the last N tokens of each row against the oracle."""
        assert len(logits) == len(self.rows)
        for row, route, found in zip(self.rows, self.routes, logits, strict=True):
            assert_near(found, oracle_logits(self.stock, row, route_path(route))[-len(found) :])

    def select(self, index):
        """The same choice of rows on this side of the comparison."""
        self.rows = [self.rows[at] for at in index]
        self.routes = [self.routes[at] for at in index]
        self.mask = self.mask[list(index)]

    def go_on(self, tokens=1, steps=2):
        """Feed new random tokens and compare."""
        assert self.cache.get_seq_length() == self.mask.shape[1]
        assert self.cache.routes.tolist() == self.routes
        assert self.cache.batch_size == len(self.rows)
        for _ in range(steps):
            self.seed += 1
            new = torch.stack(random_rows([tokens] * len(self.rows), seed=100 + self.seed))
            self.rows = [torch.cat(pair) for pair in zip(self.rows, new, strict=True)]
            self.mask = torch.cat([self.mask, torch.ones_like(new)], dim=1)
            output = self.routed(new, attention_mask=self.mask, past_key_values=self.cache)
            assert output.past_key_values is self.cache
            self.check(output.logits)


@pytest.fixture(params=TRIPLES)
def session(request):
    with torch.no_grad():
        yield Session(request.param)


def test_continuing_without_any_operation(session):
    session.go_on(tokens=1)
    session.go_on(tokens=3)


@pytest.mark.parametrize("index", [[2, 0, 3, 1], [1, 1, 0, 0], [3, 3, 3, 3], [2, 2, 1, 3]])
def test_reorder_cache(session, index):
    session.go_on(steps=1)
    session.cache.reorder_cache(torch.tensor(index))
    session.select(index)
    session.go_on()


@pytest.mark.parametrize(
    "index",
    [
        torch.tensor([1, 2]),
        torch.tensor([3]),
        torch.tensor([2, 0, 2]),
        torch.tensor([-1, -3]),
        torch.tensor([True, False, True, False]),
        torch.tensor([False, False, False, True]),
    ],
    ids=str,
)
def test_batch_select_indices(session, index):
    session.cache.batch_select_indices(index)
    session.select(torch.arange(4)[index].tolist())
    session.go_on()


def test_batch_repeat_interleave(session):
    session.cache.batch_repeat_interleave(3)
    session.select([row for row in range(4) for _ in range(3)])
    session.go_on()


OPERATIONS = st.one_of(
    st.tuples(st.just("reorder"), st.lists(st.integers(0, 99), min_size=1, max_size=5)),
    st.tuples(st.just("select"), st.lists(st.integers(0, 99), min_size=1, max_size=5)),
    st.tuples(st.just("repeat"), st.integers(1, 2)),
    st.tuples(st.just("crop"), st.integers(0, 2)),
    st.tuples(st.just("copy"), st.none()),
    st.tuples(st.just("go on"), st.integers(1, 2)),
)


@pytest.mark.parametrize("name", [str(family) for family in FAMILIES])
@given(
    routes=st.lists(st.lists(st.integers(0, 2), min_size=LAYERS, max_size=LAYERS), min_size=1, max_size=3),
    operations=st.lists(OPERATIONS, min_size=1, max_size=5),
)
@torch.no_grad()
def test_random_operations(name, routes, operations):
    session = Session(name, LENGTHS[: len(routes)], routes)
    for operation, argument in operations:
        count = len(session.rows)
        if operation in ("reorder", "select"):
            index = [at % count for at in argument]
            apply = session.cache.reorder_cache if operation == "reorder" else session.cache.batch_select_indices
            apply(torch.tensor(index))
            session.select(index)
        elif operation == "repeat" and count < 6:
            session.cache.batch_repeat_interleave(argument)
            session.select([row for row in range(count) for _ in range(argument)])
        elif operation == "crop" and argument < min(map(len, session.rows)):
            session.cache.crop(-argument)
            session.rows = [row[: len(row) - argument] for row in session.rows]
            session.mask = session.mask[:, : session.mask.shape[1] - argument]
        elif operation == "copy":
            session.cache = copy.deepcopy(session.cache)
        elif operation == "go on":
            session.go_on(tokens=argument, steps=1)
    session.go_on()


@pytest.mark.parametrize("name", [str(family) for family in FAMILIES])
@pytest.mark.parametrize("removed", [0, 1, 3])
@torch.no_grad()
def test_crop_then_continue(name, removed):
    session = Session(name)
    session.cache.crop(-removed)
    session.rows = [row[: len(row) - removed] for row in session.rows]
    session.mask = session.mask[:, : session.mask.shape[1] - removed]
    session.go_on()


@pytest.mark.parametrize("name", [str(family) for family in (*SLIDING_FAMILIES, ALL_SLIDING)])
@torch.no_grad()
def test_crop_beyond_the_window_when_the_past_is_recorded(name):
    """As assisted decoding does: record, run several tokens, take back some of them, and again."""
    config = TRIPLES[name][1].config
    cache = PathCache(config)
    cache.activate_past_recording()
    session = Session(name, cache=cache)
    for removed in (2, 0, 3, 1):
        session.go_on(tokens=4, steps=1)
        session.cache.crop(-removed)
        session.rows = [row[: len(row) - removed] for row in session.rows]
        session.mask = session.mask[:, : session.mask.shape[1] - removed]
    session.go_on()


@pytest.mark.parametrize("name", [str(family) for family in (*SLIDING_FAMILIES, ALL_SLIDING)])
@torch.no_grad()
def test_crop_refused_beyond_the_window_leaves_the_cache_usable(name):
    """What fell out of a window cannot come back; a caller that catches this must not hold a broken cache."""
    session = Session(name)
    with pytest.raises(RuntimeError, match="activate_past_recording"):
        session.cache.crop(-1)
    session.go_on()


@pytest.mark.parametrize("removed", ["all", "more than there is"])
@torch.no_grad()
def test_crop_everything_then_a_new_prefill(any_family, removed):
    """Nothing of the old rows, routes or keys may be left: the new prefill differs in all of them."""
    name = str(any_family)
    cache = PathCache(TRIPLES[name][1].config)
    cache.activate_past_recording()
    session = Session(name, cache=cache)
    extra = 0 if removed == "all" else 5
    session.cache.crop(-session.cache.get_seq_length() - extra)
    assert session.cache.is_empty and session.cache.get_seq_length() == 0
    again = Session(name, [5, 3], [[1, 0, 1, 2, 1], [2, 2, 1, 0, 0]], cache=session.cache, seed=7)
    again.go_on()


@torch.no_grad()
def test_reset_then_a_new_prefill(any_family):
    session = Session(str(any_family))
    cache = session.cache
    cache.reset()
    assert cache.is_empty and cache.get_seq_length() == 0 and cache.memory_bytes() == 0
    assert cache.steps == [] and cache.routes is None
    again = Session(str(any_family), [5, 3], [[1, 0, 1, 2, 1], [2, 2, 1, 0, 0]], cache=cache, seed=7)
    assert again.cache is cache
    again.go_on()


def test_copies_go_on_independently(session):
    twin = copy.copy(session)
    twin.cache = copy.deepcopy(session.cache)
    twin.seed += 50
    session.go_on()
    twin.go_on()
    session.go_on()


def test_memory_is_what_was_executed():
    routed = TRIPLES["llama"][1]
    ids, mask = padded(random_rows(LENGTHS))
    tokens = ids.shape[1]

    def memory(routes):
        cache = routed(ids, attention_mask=mask, routes=torch.tensor(routes), use_cache=True).past_key_values
        return cache.memory_bytes()

    assert memory([[1] * LAYERS] * 4) == 4 * LAYERS * tokens * BYTES_PER_TOKEN
    assert memory([[2] * LAYERS] * 4) == 8 * LAYERS * tokens * BYTES_PER_TOKEN
    assert memory(ROUTES) == sum(map(sum, ROUTES)) * tokens * BYTES_PER_TOKEN
    assert memory([[0] * LAYERS] * 4) == 0
    # One skipped layer in one row saves exactly that layer of that row.
    assert memory([[1] * LAYERS] * 3 + [[1, 1, 0, 1, 1]]) == (4 * LAYERS - 1) * tokens * BYTES_PER_TOKEN


def test_memory_of_a_window_does_not_grow():
    routed = TRIPLES[str(ALL_SLIDING)][1]
    ids = torch.stack(random_rows([9, 9]))
    cache = routed(ids, routes=torch.tensor(ROUTES[:2]), use_cache=True).past_key_values
    window = routed.config.sliding_window - 1
    assert cache.memory_bytes() == sum(map(sum, ROUTES[:2])) * window * BYTES_PER_TOKEN


@pytest.mark.parametrize("route", [[0, 1, 1, 1, 1], [0, 0, 0, 0, 0], [2, 1, 1, 1, 1]], ids=str)
def test_length_does_not_depend_on_layer_0(any_family, route):
    """generate() and the masks count on it; the stock cache would report 0 tokens without layer 0."""
    routed = TRIPLES[str(any_family)][1]
    ids = torch.stack(random_rows([8, 8]))
    cache = routed(ids, routes=torch.tensor([route, route]), use_cache=True).past_key_values
    for seen in (8, 9):
        assert cache.get_seq_length() == seen
        assert [cache.get_seq_length(layer) for layer in range(LAYERS)] == [seen] * LAYERS
        routed(ids[:, :1], past_key_values=cache)


@given(st.integers(0, 12), st.integers(1, 6), st.integers(2, 6))
def test_mask_sizes_are_those_of_the_stock_cache(seen, new, window):
    fields = {"num_hidden_layers": 2, "use_sliding_window": True, "sliding_window": window}
    config = QWEN2.config(**fields, layer_types=["full_attention", "sliding_attention"])
    stock, cache = DynamicCache(config=config), PathCache(config)
    cache.start(1)
    states = torch.zeros(1, 2, seen, 4)
    if seen:
        for layer in range(2):
            stock.update(states, states, layer)
        cache.advance(seen)
    for layer in range(2):
        assert cache.get_mask_sizes(new, layer) == stock.get_mask_sizes(new, layer)
    assert cache.is_sliding == [False, True]


def test_slots_of_skipped_and_gathered_rows():
    cache = Session("llama").cache
    assert cache.steps[0] == Step(0, 0, (1,)) and cache.steps[1] == Step(0, 1, (1,))
    assert {step: len(slot.keys) for step, slot in cache.slots.items()} == {
        step: len(step.rows) for step in cache.steps
    }
    # Row 1 alone runs layer 0, so without it the slots of layer 0 are gone; layer 2 is now run by all rows left.
    cache.batch_select_indices(torch.tensor([0, 2]))
    assert {step.layer for step in cache.steps} == {1, 2, 3, 4}
    assert Step(2, 0, None) in cache.steps and Step(2, 1, (0,)) in cache.steps


@pytest.mark.parametrize("operation", ["batch_repeat_interleave", "batch_select_indices", "reorder_cache", "crop"])
def test_empty_cache_takes_operations_as_the_stock_one_does(operation):
    argument = {"batch_repeat_interleave": 2, "crop": -1}.get(operation, torch.tensor([0]))
    for cache in (DynamicCache(), PathCache(LlamaConfig(num_hidden_layers=2))):
        getattr(cache, operation)(argument)
        assert cache.get_seq_length() == 0


def test_crop_takes_minus_the_number_of_tokens(session):
    with pytest.raises(ValueError, match="minus the number of tokens to remove, got 3"):
        session.cache.crop(3)
    session.go_on()


def foreign_caches(config):
    return [
        DynamicCache(config=config),
        DynamicCache(),
        StaticCache(config=config, max_cache_len=16),
        EncoderDecoderCache(DynamicCache(), DynamicCache()),
    ]


def test_other_caches_are_refused_by_name(family):
    _, routed, path = TRIPLES[str(family)]
    ids = torch.stack(random_rows([4]))
    for model in (routed, path):
        for cache in foreign_caches(model.config):
            name = type(cache).__name__
            with pytest.raises(TypeError, match=f"past_key_values is a {name}"):
                model(ids, past_key_values=cache)
            with pytest.raises(TypeError, match=f"past_key_values is a {name}"):
                model.generate(ids, past_key_values=cache, max_new_tokens=2)


def test_anything_that_is_no_cache_is_refused():
    with pytest.raises(TypeError, match="past_key_values is a tuple"):
        checked_cache(((torch.zeros(1), torch.zeros(1)),), LlamaConfig(), use_cache=True)
    assert checked_cache(None, LlamaConfig(), use_cache=False) is None
    assert isinstance(checked_cache(None, LlamaConfig(), use_cache=True), PathCache)


def test_stock_models_cannot_fill_a_path_cache(family):
    stock, routed, _ = TRIPLES[str(family)]
    with pytest.raises(TypeError, match="no stock transformers model"):
        stock(torch.stack(random_rows([4])), past_key_values=PathCache(routed.config))


@pytest.mark.parametrize(
    "wanted",
    [
        {"cache_implementation": "static"},
        {"cache_implementation": "quantized"},
        {"cache_implementation": "offloaded"},
        {"cache_implementation": "offloaded_static"},
        {"prefill_chunk_size": 2},
    ],
    ids=str,
)
def test_generate_refuses_other_caches_and_chunks(family, wanted):
    _, routed, path = TRIPLES[str(family)]
    (name, value), ids = next(iter(wanted.items())), torch.stack(random_rows([4]))
    for model in (routed, path):
        with pytest.raises(ValueError, match=f"{name}='?{value}"):
            model.generate(ids, max_new_tokens=2, **wanted)
        # The dynamic cache is the one that transformers would take by default, so asking for it is no error.
        assert model.generate(ids, max_new_tokens=2, cache_implementation="dynamic").shape == (1, 6)


def test_layers_that_cannot_be_routed_are_refused():
    config = QWEN2.config(num_hidden_layers=2, layer_types=["full_attention", "linear_attention"])
    with pytest.raises(ValueError, match="layers of type linear_attention cannot be routed"):
        PathCache(config)


@torch.no_grad()
def test_wrong_number_of_rows_is_refused():
    """Rows 0 and 1 share no layer, so every slot holds one row and a third row would silently run nothing."""
    routed = TRIPLES["llama"][1]
    ids = torch.stack(random_rows([6, 6]))
    routes = torch.tensor([[1, 0, 1, 0, 1], [0, 1, 0, 1, 0]])
    cache = routed(ids, routes=routes, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="rows"):
        routed(torch.full((3, 1), VOCAB - 1), past_key_values=cache)


@torch.no_grad()
def test_failed_prefill_leaves_no_trace():
    """A prefill that dies half-way (out of memory, say) has filled some slots; the next one must not see them."""
    stock, routed, _ = models(LLAMA)
    cache, broken = PathCache(routed.config), routed.model.layers[3].forward
    routed.model.layers[3].forward = None
    ids = torch.stack(random_rows([6]))
    with pytest.raises(TypeError):
        routed(ids, routes=torch.tensor([[2, 1, 1, 1, 1]]), past_key_values=cache)
    routed.model.layers[3].forward = broken
    logits = routed(ids, routes=torch.tensor([[1, 1, 1, 1, 1]]), past_key_values=cache).logits
    assert_near(logits[0], oracle_logits(stock, ids[0], range(LAYERS)))
    assert cache.get_seq_length() == 6 and len(cache.steps) == LAYERS
