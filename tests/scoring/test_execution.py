"""Packed execution along paths: every state against the naive forward of its own text, alone."""

from __future__ import annotations

import copy
from random import Random

import pytest
import torch
from conftest import (
    FAMILIES,
    LAYERS,
    LLAMA,
    QWEN2,
    SLIDING_FAMILIES,
    VOCAB,
    assert_near,
    oracle_states,
    route_path,
    routed_from,
    stock_model,
)
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from routing.scoring import packed_layers as packing
from routing.scoring import path_runner
from routing.scoring.packed_attention import PackedStep, attend, make_layout
from routing.scoring.packed_layers import PrepackedLinear, packed_layers
from routing.scoring.path_runner import PathRunner
from routing.scoring.prefix_store import PrefixStore, State
from routing.scoring.segments import Node, Segment, TokenTree, chain

NO_LIMIT = 2**40
DENSE = tuple(range(LAYERS))


def ancestors(segment: Segment, offset: int) -> list[int]:
    """Places in the line of the tokens of one text, from its first to a token."""
    parents = [parent for member in segment.line for parent in member.parents]
    index, found = segment.start + offset, []
    while index >= 0:
        found.append(index)
        index = parents[index]
    return found[::-1]


def text_of(segment: Segment, offset: int) -> tuple[int, ...]:
    """The tokens that lead to a token, itself included."""
    tokens = [token for member in segment.line for token in member.tokens]
    return tuple(tokens[index] for index in ancestors(segment, offset))


def random_tokens(rng: Random, size: int, vocabulary: int = VOCAB) -> list[int]:
    return [rng.randrange(vocabulary) for _ in range(size)]


def random_trees(rng: Random) -> list[TokenTree]:
    """Requests of which most share a beginning, with drafts that share beginnings, and tokens added by decoding."""
    shared = chain(random_tokens(rng, rng.randint(3, 6)))
    trees = []
    for number in range(4):
        above = shared if number else None
        prompt = (shared.tokens if number else []) + random_tokens(rng, rng.randint(1, 6))
        drafts = [random_tokens(rng, rng.randint(0, 4), 3) for _ in range(rng.randint(0, 4))]
        tree = TokenTree(prompt, drafts, above)
        node = tree.root
        for token in random_tokens(rng, 3, 4):
            node = tree.child(node, token)
        tree.child(Node(tree.segment, len(tree.segment) - 1), 1)
        trees.append(tree)
    return trees


def random_path(rng: Random) -> tuple[int, ...]:
    return tuple(route_path([rng.choice((0, 1, 1, 1, 2)) for _ in range(LAYERS)]))


def random_jobs(rng: Random, count: int = 12) -> list[tuple[Segment, tuple[int, ...]]]:
    """Pairs of which some agree in the segment, in the path, or in its first layers; the empty path is there."""
    segments = [segment for tree in random_trees(rng) for segment in tree.segments()]
    paths = [random_path(rng) for _ in range(4)] + [DENSE, (*DENSE[:-1],), (), (0, 0, 1, 1, 4, 4)]
    return [(rng.choice(segments), rng.choice(paths)) for _ in range(count)]


class Oracle:
    """Last states by the naive forward, each text alone."""

    def __init__(self, stock):
        self.stock, self._found = stock, {}

    @torch.no_grad()
    def __call__(self, segment: Segment, offset: int, path: tuple[int, ...]) -> torch.Tensor:
        key = text_of(segment, offset), path
        if key not in self._found:
            embeddings = self.stock.model.embed_tokens(torch.tensor([key[0]]))
            self._found[key] = oracle_states(self.stock, embeddings, path)[-1][0, -1]
        return self._found[key]


@torch.no_grad()
def check(runner: PathRunner, oracle: Oracle, jobs, whole: bool = False) -> None:
    runner.compute(jobs, whole)
    for segment, path in jobs:
        asked = range(0 if whole else segment.asked, len(segment))
        if asked:
            found = runner.last_hidden([(Node(segment, offset), path) for offset in asked])
            assert_near(found, torch.stack([oracle(segment, offset, path) for offset in asked]))


# Segments and trees.


def test_segments_by_hand():
    """Prompt 5 6 7, of which 5 6 is shared; drafts 8 9 and 8 4; 4 is followed by 3."""
    shared = chain([5, 6])
    tree = TokenTree([5, 6, 7], [[8, 9], [8, 4], []], shared)
    own = tree.segment
    assert (shared.start, shared.tokens, shared.parents, shared.positions) == (0, [5, 6], [-1, 0], [0, 1])
    assert shared.visible.int().tolist() == [[1, 0], [1, 1]]
    assert (own.start, own.tokens, own.parents) == (2, [7, 8, 9, 4], [1, 2, 3, 3])
    assert own.positions == [0, 1, 2, 3, 4, 4]
    assert own.line == (shared, own) and tree.root == Node(own, 0)
    assert own.visible.int().tolist() == [
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0, 1],
    ]
    four = tree.child(tree.child(tree.root, 8), 4)
    assert four == Node(own, 3) and tree.segments() == [own]
    three = tree.child(four, 3)
    assert three.segment.line == (shared, own, three.segment) and three.offset == 0
    assert three.segment.positions == [0, 1, 2, 3, 4, 4, 5]
    assert three.segment.visible.int().tolist() == [[1, 1, 1, 1, 0, 1, 1]]
    assert tree.segments() == [own, three.segment]


@pytest.mark.parametrize("seed", range(5))
def test_segments_see_the_text_before_them(seed):
    for tree in random_trees(Random(seed)):
        for segment in tree.segments():
            for offset in range(len(segment)):
                seen = ancestors(segment, offset)
                assert segment.visible[offset].nonzero()[:, 0].tolist() == seen
                assert segment.positions[segment.start + offset] == len(seen) - 1
            assert segment.visible.shape == (len(segment), segment.start + len(segment))


def test_children_are_found_again():
    tree = TokenTree([1, 2], [[3, 4], [3, 5]])
    drafted, new = tree.child(tree.root, 3), tree.child(tree.root, 9)
    assert drafted.segment is tree.segment and new.segment.above is tree.segment
    assert tree.child(tree.root, 9) is new and tree.child(tree.root, 3) == drafted
    for node, text in ((drafted, (1, 2, 3)), (tree.child(drafted, 5), (1, 2, 3, 5)), (new, (1, 2, 9))):
        assert text_of(*node) == text
    later = tree.child(tree.child(new, 3), 3)
    assert text_of(*later) == (1, 2, 9, 3, 3)
    assert len(tree.segments()) == len(set(tree.segments())) == 4


# Attention.


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("heads", [(4, 2), (3, 1), (2, 2)], ids=str)
def test_packed_attention_is_plain_attention_of_each_text(heads, window):
    """Every query against the keys of its own text, some of them stored, some packed."""
    rng = Random(0)
    generator = torch.Generator().manual_seed(0)
    trees = random_trees(rng)
    stored = [trees[1].segment.above]
    # Trees 1 to 3 hang below the stored segment; those with a child bring their own segment along.
    segments = [tree.segment for tree in trees] + trees[1].segments()[1:2]
    starts, size = {}, 0
    for segment in stored + segments:
        starts[segment], size = size, size + len(segment)
    context = sum(map(len, stored))
    query = torch.randn(1, heads[0], size - context, 8, generator=generator)
    keys, values = torch.randn(2, size, heads[1], 8, generator=generator)
    layout = make_layout(segments, [[starts[member] for member in segment.line] for segment in segments], window)
    step = PackedStep(layout.to("cpu"), (keys[:context], values[:context]))
    packed_keys, packed_values = (tensor[None, context:].transpose(1, 2) for tensor in (keys, values))
    output, weights = attend(None, query, packed_keys, packed_values, None, scaling=0.3, packed=step)
    assert weights is None and output.shape == (1, size - context, heads[0], 8)
    assert torch.equal(step.keys, keys[context:]) and torch.equal(step.values, values[context:])
    for segment in segments:
        places = [starts[member] + at for member in segment.line for at in range(len(member))]
        for offset in range(len(segment)):
            seen = [places[index] for index in ancestors(segment, offset)][-(window or NO_LIMIT) :]
            at = starts[segment] + offset - context
            expected = scaled_dot_product_attention(
                query[:, :, at : at + 1], keys[None, seen].transpose(1, 2), values[None, seen].transpose(1, 2),
                scale=0.3, enable_gqa=True,
            )  # fmt: skip
            assert_near(output[0, at], expected[0, :, 0], 1e-5)


# Runner.


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_states_are_those_of_each_text_alone(any_family, seed, whole):
    """Cold, warm, trimmed and without any store."""
    rng = Random(seed)
    stock = stock_model(any_family)
    assert stock.config.num_attention_heads > stock.config.num_key_value_heads
    model, oracle, jobs = routed_from(any_family, stock), Oracle(stock), random_jobs(rng)
    store = PrefixStore(NO_LIMIT)
    runner = PathRunner(model, store)
    check(runner, oracle, jobs[:6])
    check(runner, oracle, jobs, whole)
    store.limit = store.bytes // 3
    store.trim()
    check(runner, oracle, jobs, whole)
    for limit in (store.bytes // 2, 5000, 0):
        store.limit = limit
        for start in range(0, len(jobs), 4):
            check(runner, oracle, jobs[start : start + 4], whole)
            store.trim()
    assert store.bytes == 0


@pytest.mark.parametrize("family", [LLAMA, SLIDING_FAMILIES[1]], ids=str)
def test_neither_order_nor_portions_change_states(family):
    stock = stock_model(family)
    model, oracle, jobs = routed_from(family, stock), Oracle(stock), random_jobs(Random(7))
    computed = set()
    for seed, max_tokens in ((0, 2048), (1, 7), (2, 1), (3, 30)):
        for segment, _ in jobs:
            for member in segment.line:
                member.states.clear()
        Random(seed).shuffle(jobs)
        runner = PathRunner(model, PrefixStore(NO_LIMIT), max_tokens)
        check(runner, oracle, jobs + jobs[:3])
        computed.add(runner.layer_tokens)
    assert len(computed) == 1


def test_a_call_has_so_many_pairs_of_query_and_key(monkeypatch):
    runner = PathRunner(routed_from(LLAMA, stock_model(LLAMA)), PrefixStore(NO_LIMIT))
    items = [(chain(range(4)), ()) for _ in range(10)] + [(chain(range(60)), ())]
    assert list(map(len, runner._portions(items))) == [11]
    monkeypatch.setattr(path_runner, "MAX_PAIRS", 10 * 4 * 4)
    assert list(map(len, runner._portions(items))) == [10, 1]
    monkeypatch.setattr(path_runner, "MAX_PAIRS", 5 * 4 * 4 - 1)
    portions = list(runner._portions(items))
    assert list(map(len, portions)) == [4, 4, 2, 1] and sum(portions, []) == items


def test_nothing_is_computed_twice():
    runner = PathRunner(routed_from(LLAMA, stock_model(LLAMA)), PrefixStore(NO_LIMIT))
    shared = chain([1, 2, 3, 4])
    trees = [TokenTree([1, 2, 3, 4, *prompt], [[7], [7, 8]], shared) for prompt in ([5], [6, 5, 9])]
    sizes = [len(tree.segment) for tree in trees]
    assert sizes == [3, 5]

    def added(*jobs) -> int:
        before = runner.layer_tokens
        runner.compute(jobs)
        return runner.layer_tokens - before

    jobs = [(tree.segment, DENSE) for tree in trees]
    assert added(*jobs, *jobs) == (4 + sum(sizes)) * LAYERS
    assert added(*jobs) == 0
    assert added((trees[0].segment, DENSE[:3]), (shared, DENSE[:2]), (shared, ())) == 0
    # Two first layers in common; then each of the line runs the rest, the shared segment once for both.
    assert added(*((tree.segment, (0, 1, 1, 4)) for tree in trees)) == (4 + sum(sizes)) * 2
    assert added((trees[0].segment, (0, 1, 1, 3))) == 4 + sizes[0]
    child = trees[0].child(trees[0].root, 9)
    assert added((child.segment, DENSE)) == LAYERS
    assert added((trees[0].child(trees[0].root, 7).segment, DENSE)) == 0
    runner.store.forget(trees[0].segment)
    assert added((trees[0].segment, DENSE)) == sizes[0] * LAYERS


def test_behind_the_last_layer_are_the_tokens_alone_that_are_asked_for():
    runner = PathRunner(routed_from(LLAMA, stock_model(LLAMA)), PrefixStore(NO_LIMIT))
    shared = chain([1, 2, 3])
    segment = TokenTree([1, 2, 3, 4, 5], [[6]], shared).segment  # Asked for are 5 and 6.
    short, long = (0, 1), (0, 1, 4)
    store = runner.store

    def rows(path) -> tuple[int, int]:
        return tuple(len(member.states[path].hidden) for member in (shared, segment))

    runner.compute([(segment, short)])
    assert rows(short) == (0, 2) and rows(short[:1]) == (3, 3)
    assert len(segment.states[short].keys) == 3 and not segment.states[short].whole
    before = runner.last_hidden([(Node(segment, 1), short)])
    with pytest.raises(IndexError):
        runner.last_hidden([(Node(segment, 0), short)])
    # A longer path needs the others too: that layer is run again, and nothing is stored twice.
    runner.compute([(segment, short), (segment, long)])
    assert rows(short) == (3, 3) and rows(long) == (0, 2)
    assert_near(runner.last_hidden([(Node(segment, 1), short)]), before)
    states = [state for member in (shared, segment) for state in member.states.values()]
    assert store.bytes == sum(state.nbytes for state in states)
    # The other way round nothing is run again.
    ran = runner.layer_tokens
    runner.compute([(segment, short)])
    assert runner.layer_tokens == ran and rows(short) == (3, 3)
    runner.compute([(segment, long)], whole=True)
    assert rows(long) == (3, 3)


# Store.


def stored_states(segments) -> list[State]:
    return [state for segment in segments for state in segment.states.values()]


def filled_store() -> tuple[PathRunner, list]:
    """A runner that has computed some jobs, the last one being the latest."""
    runner = PathRunner(routed_from(LLAMA, stock_model(LLAMA)), PrefixStore(NO_LIMIT))
    jobs = random_jobs(Random(3), 16)
    for start in range(0, len(jobs), 4):
        runner.compute(jobs[start : start + 4])
    return runner, jobs


def test_store_counts_bytes_and_keeps_its_limit():
    runner, jobs = filled_store()
    store, segments = runner.store, {member for segment, _ in jobs for member in segment.line}

    def true_bytes() -> int:
        tensors = [t for s in stored_states(segments) for t in (s.hidden, s.keys, s.values) if t is not None]
        # No state may be a view into a batch, which would keep all of it in memory.
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors if tensor.numel())

    assert store.bytes == true_bytes() == store.peak > 0
    whole = store.bytes
    for share in (0.9, 0.5, 0.1, 0.0):
        store.limit = int(whole * share)
        store.trim()
        assert store.bytes == true_bytes() <= store.limit
        if share:
            assert store.bytes > store.limit - max(s.nbytes for s in stored_states(segments)) - whole // 50
        for segment in segments:
            for prefix in segment.states:
                # No gaps: neither along a path, nor in the texts above.
                assert all(prefix[:length] in segment.states for length in range(len(prefix)))
                assert all(prefix in member.states for member in segment.line)
    assert store.peak == whole and not stored_states(segments)


def test_store_drops_what_was_used_longest_ago_and_deepest_first():
    runner = PathRunner(routed_from(LLAMA, stock_model(LLAMA)), PrefixStore(NO_LIMIT))
    store, first, second = runner.store, chain([1, 2]), chain([3, 4])
    left, right = (0, 1, 2), (0, 3)
    runner.compute([(first, left), (second, left)])
    runner.compute([(first, right)])
    dropped = []
    while store.bytes:
        before = {(state.segment, state.prefix) for state in stored_states([first, second])}
        store.limit = store.bytes - 1
        store.trim()
        dropped += before - {(state.segment, state.prefix) for state in stored_states([first, second])}
    assert dropped == [
        *((first, left[:length]) for length in (3, 2)),
        *((second, left[:length]) for length in (3, 2, 1, 0)),
        *((first, right[:length]) for length in (2, 1, 0)),
    ]


def test_forgotten_segments_leave_nothing():
    runner, jobs = filled_store()
    segments = list({member: None for segment, _ in jobs for member in segment.line})
    for segment in segments:
        held = sum(state.nbytes for state in stored_states([segment]))
        before = runner.store.bytes
        runner.store.forget(segment)
        assert runner.store.bytes == before - held and not segment.states
        runner.store.forget(segment)
    assert runner.store.bytes == 0
    runner.store.limit = 0
    runner.store.trim()


# Layers.


@pytest.mark.parametrize("family", FAMILIES, ids=str)
@torch.no_grad()
def test_packing_leaves_the_model_as_it_is(family):
    model = routed_from(family, stock_model(family))
    ids, routes = torch.arange(1, 9)[None], torch.tensor([[1, 2, 0, 1, 1]])
    config, before = copy.deepcopy(model.config.to_dict()), model(ids, routes=routes).logits
    attention = model.config._attn_implementation
    names = {name: id(parameter) for name, parameter in model.named_parameters()}
    runner = PathRunner(model, PrefixStore(NO_LIMIT))
    runner.compute([(chain([1, 2, 3]), DENSE)])
    assert torch.equal(model(ids, routes=routes).logits, before)
    assert model.config.to_dict() == config and model.config._attn_implementation == attention
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == names
    assert not any(isinstance(module, PrepackedLinear) for module in model.modules())


def test_fused_mlp_is_the_plain_one_and_leaves_its_inputs_alone():
    model = stock_model(LLAMA)
    layer = packed_layers(model)[0][1]
    x, residual = torch.randn(2, 1, 7, 32, generator=torch.Generator().manual_seed(0))
    copies = x.clone(), residual.clone()
    with torch.no_grad():
        found = layer.fused(x, residual)
        expected = residual + model.model.layers[1].mlp(x)
    assert_near(found, expected, 1e-5)
    assert torch.equal(x, copies[0]) and torch.equal(residual, copies[1])


def test_another_activation_is_not_fused():
    model = stock_model(LLAMA, hidden_act="gelu")
    assert all(layer.fused is None for layer in packed_layers(model)[0])


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_prepacked_linear_is_linear(bias):
    torch.manual_seed(0)
    linear = nn.Linear(48, 33, bias=bias)
    packed = PrepackedLinear(linear)
    for shape in ((1, 1, 48), (1, 300, 48), (7, 48)):
        x = torch.randn(shape)
        assert_near(packed(x), linear(x), 1e-5)


def test_weights_are_shared_or_reordered():
    """Qwen2 has biases; half precision has no reordered weights."""
    model = stock_model(QWEN2)
    layers, head = packed_layers(model)
    linear = [name for name, module in model.model.layers.named_modules() if isinstance(module, nn.Linear)]
    assert all(isinstance(layers.get_submodule(name), PrepackedLinear) for name in linear)
    assert isinstance(head.linear, PrepackedLinear)
    assert all(layer.fused is not None for layer in layers)
    assert layers[0].self_attn.q_proj.bias is not None and layers[0].self_attn.o_proj.bias is None
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert all(parameter.data_ptr() in own for parameter in layers.parameters())
    half = stock_model(QWEN2).to(torch.bfloat16)
    layers, head = packed_layers(half)
    assert head.linear is half.lm_head
    assert not any(isinstance(module, PrepackedLinear) for module in layers.modules())
    assert all(layer.fused is None for layer in layers)
    shared = dict(half.model.layers.named_parameters())
    assert all(parameter is shared[name] for name, parameter in layers.named_parameters())
    assert len(shared) == len(list(layers.parameters()))


def test_large_models_are_not_copied(monkeypatch):
    monkeypatch.setattr(packing, "LARGEST_PREPACKED", 1000)
    model = stock_model(LLAMA)
    layers, head = packed_layers(model)
    assert head.linear is model.lm_head
    assert {id(p) for p in layers.parameters()} == {id(p) for p in model.model.layers.parameters()}
