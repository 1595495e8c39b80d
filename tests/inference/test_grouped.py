"""Grouped generation: each prompt's tokens are those of the prompt alone, whatever its group."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import (
    ALL_SLIDING,
    FAMILIES,
    LAYERS,
    LLAMA,
    SLIDING_FAMILIES,
    oracle_generate,
    random_rows,
    route_path,
    routed_from,
    stock_model,
)

from routing.common.errors import UserError
from routing.inference import generate_grouped, stream_grouped
from routing.inference import grouped as module
from routing.inference.groups import grouped, union

LENGTHS = [7, 1, 12, 4, 9, 7, 2, 5, 11]
NEW = 6


class Plain:
    """A tokenizer that only names its padding."""

    pad_token_id = 0

    def __call__(self, text):
        return SimpleNamespace(input_ids=[1 + ord(letter) % 90 for letter in text])

    def decode(self, tokens, **options):
        return " ".join(map(str, tokens))


def varied(family, **fields):
    """(stock, routed) whose routers send these prompts different ways, repeats too."""
    stock = stock_model(family)
    return stock, routed_from(family, stock, router_seed=1, **fields)


def alone(model, row) -> tuple:
    """Greedy tokens and route of a prompt alone, by stock generate."""
    output = model.generate(row[None], attention_mask=torch.ones(1, len(row)), max_new_tokens=NEW, pad_token_id=0)
    return tuple(output[0, len(row) :].tolist()), tuple(model.last_routes[0].tolist())


@pytest.mark.parametrize("family", (*FAMILIES, *SLIDING_FAMILIES, ALL_SLIDING), ids=str)
def test_each_prompt_answers_as_alone_along_its_own_route(family):
    stock, model = varied(family)
    rows = random_rows(LENGTHS)
    found = generate_grouped(model, Plain(), [row.tolist() for row in rows], 3, window=6, max_new_tokens=NEW)
    assert [answer.index for answer in found] == list(range(len(rows)))
    assert len({answer.route for answer in found}) > 2 and max(max(answer.route) for answer in found) == 2
    for answer, row in zip(found, rows, strict=True):
        assert (answer.tokens, answer.route) == alone(model, row)
        assert answer.tokens == tuple(oracle_generate(stock, row, route_path(answer.route), NEW)[0].tolist())
        assert answer.text == " ".join(map(str, answer.tokens))


@pytest.mark.parametrize(
    "fields",
    [
        {"router": "menu", "kept_layers": 1, "menu": [[1] * LAYERS, [1, 0, 1, 0, 1]], "router_reads": [1]},
        {"router": "embedding", "kept_layers": 1},
        {"router": "prefix", "kept_layers": 2},
        {"router": "prefix_token", "kept_layers": 1},
        {"router": "none", "fixed_route": [1, 2, 0, 1, 1]},
        {"skip_action": "adapter"},
        {"is_static_routing": True},
    ],
    ids=lambda fields: "-".join(map(str, list(fields.values())[:1])),
)
def test_every_kind_of_router(fields):
    stock = stock_model(LLAMA)
    model = routed_from(LLAMA, stock, **{k: v for k, v in fields.items() if k != "skip_action"})
    if "skip_action" in fields:
        model = adapted(stock)
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in model.model.routers.parameters():
            parameter.normal_(0.0, 1.0)
    rows = random_rows(LENGTHS)
    found = generate_grouped(model, Plain(), [row.tolist() for row in rows], 2, max_new_tokens=NEW)
    by_token = fields.get("router") == "prefix_token"
    for answer, row in zip(found, rows, strict=True):
        tokens, route = alone(model, row)
        assert answer.tokens == tokens and answer.route == (None if by_token else route)


def adapted(stock):
    from train_models.configuration_llama import RoutedLlamaConfig
    from train_models.modeling_llama import RoutedLlamaForCausalLM

    config = RoutedLlamaConfig(**stock.config.to_dict() | {"router_hidden_size": 16, "skip_action": "adapter"})
    model = RoutedLlamaForCausalLM(config).eval()
    model.load_state_dict(stock.state_dict(), strict=False)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.model.adapters.parameters():
            parameter.normal_(0.0, 0.3)
    return model


def test_routes_can_be_forced():
    stock, model = varied(LLAMA)
    rows = random_rows(LENGTHS)
    routes = [[(index + layer) % 3 for layer in range(LAYERS)] for index in range(len(rows))]
    found = generate_grouped(model, Plain(), [row.tolist() for row in rows], 2, routes=routes, max_new_tokens=NEW)
    for answer, row, route in zip(found, rows, routes, strict=True):
        assert answer.route == tuple(route)
        assert answer.tokens == tuple(oracle_generate(stock, row, route_path(route), NEW)[0].tolist())


def test_a_stock_model_is_run_in_plain_batches():
    stock = stock_model(LLAMA)
    rows = random_rows(LENGTHS)
    found = generate_grouped(stock, Plain(), [row.tolist() for row in rows], 4, max_new_tokens=NEW)
    for answer, row in zip(found, rows, strict=True):
        assert answer.tokens == tuple(oracle_generate(stock, row, range(LAYERS), NEW)[0].tolist())
        assert answer.route is None


def test_answers_end_at_an_end_token_and_texts_are_encoded():
    _, model = varied(LLAMA)
    texts = ["some", "words of", "various lengths"]
    free = generate_grouped(model, Plain(), texts, 2, max_new_tokens=NEW)
    assert [answer.tokens for answer in free] == [alone(model, torch.tensor(Plain()(t).input_ids))[0] for t in texts]
    end = free[1].tokens[2]
    cut = generate_grouped(model, Plain(), texts, 2, max_new_tokens=NEW, eos_token_id=end)
    for whole, ended in zip(free, cut, strict=True):
        wanted = whole.tokens[: whole.tokens.index(end) + 1] if end in whole.tokens else whole.tokens
        assert ended.tokens == wanted


def test_a_window_ends_where_its_states_fill_the_memory_and_answers_stream(monkeypatch):
    _, model = varied(LLAMA)
    prompts = [row.tolist() for row in random_rows(LENGTHS)]
    seen = []
    whole = module._prefilled

    def told(*arguments):
        rows, order = whole(*arguments)
        seen.append(len(rows))
        return rows, order

    monkeypatch.setattr(module, "_prefilled", told)
    first = next(stream_grouped(model, Plain(), prompts, 2, cache_gib=1e-9, max_new_tokens=2))
    assert seen == [2] and first.index in (1, 6)  # the two shortest
    seen.clear()
    generate_grouped(model, Plain(), prompts, 2, max_new_tokens=2)
    assert seen == [9]


def test_the_model_is_left_as_it_was():
    _, model = varied(LLAMA)
    before = copy.deepcopy(model.config.to_dict()), copy.deepcopy(model.generation_config.to_dict())
    generate_grouped(model, Plain(), [[5, 6, 7]], max_new_tokens=2)
    assert before == (model.config.to_dict(), model.generation_config.to_dict())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"use_cache": False}, "use_cache= is made by grouped generation itself"),
        ({"max_length": 9}, "max_length= counts the padding of a group; give max_new_tokens"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate= gives what"),
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens= decodes one row alone"),
        ({"stop_strings": ["a"]}, "stop_strings= ends a group by texts"),
        ({"prompts": [[3], []]}, "prompt 1 has no token"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"window": 3, "batch_size": 4}, "window=3 must be at least batch_size=4"),
        ({"cache_gib": 0}, "cache_gib=0 must be more than 0"),
        ({"num_beams": 2}, "num_beams=2: grouped generation gives one sequence"),
        ({"past_key_values": 1}, "past_key_values= is made by grouped generation itself"),
        ({"routes": []}, "routes= has 0 routes for 1 prompts"),
        ({"routes": [[1]]}, "routes= cannot be forced on a NoneType, which routes nothing"),
    ],
)
def test_what_cannot_be_is_named(arguments, words):
    given = {"prompts": [[3]]} | arguments
    with pytest.raises(UserError, match=words):
        generate_grouped(None, Plain(), **given)


def test_what_the_model_tells_is_checked():
    _, model = varied(LLAMA)
    with pytest.raises(UserError, match="how long may an answer be. give max_new_tokens"):
        generate_grouped(model, Plain(), [[3]])
    for route in ([1, 1], [1, 1, 1, 1, 3]):
        with pytest.raises(UserError, match="route 0 is .* give 5 counts, each 0"):
            generate_grouped(model, Plain(), [[3]], routes=[route], max_new_tokens=2)


def test_a_generation_config_without_cache_changes_nothing():
    _, model = varied(LLAMA)
    rows = random_rows(LENGTHS)
    expected = [alone(model, row)[0] for row in rows]
    model.generation_config.use_cache = False
    found = generate_grouped(model, Plain(), [row.tolist() for row in rows], 3, max_new_tokens=NEW)
    assert [answer.tokens for answer in found] == expected


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@pytest.mark.parametrize("routed", [True, False])
def test_rows_beyond_the_first_context_change_no_others(kind, routed):
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    fields = {"rope_parameters": rope, "max_position_embeddings": 16 if kind == "dynamic" else 64}
    model = stock_model(LLAMA, **fields)
    if routed:
        model = routed_from(LLAMA, model, router_seed=1, **fields)
    rows = random_rows([4, 9, 14, 20, 6, 18])

    def each(row):
        model.generate(row[None, :1], max_new_tokens=1, pad_token_id=0)  # Forgets the lengths of rows before.
        output = model.generate(row[None], attention_mask=torch.ones(1, len(row)), max_new_tokens=NEW, pad_token_id=0)
        return tuple(output[0, len(row) :].tolist())

    expected = [each(row) for row in rows]
    found = generate_grouped(model, Plain(), [row.tolist() for row in rows], 3, max_new_tokens=NEW)
    assert [answer.tokens for answer in found] == expected


def test_a_row_keeps_no_more_memory_than_its_own():
    _, model = varied(LLAMA)
    seen = []
    real = module.taken_out

    def told(cache, lengths):
        seen.extend(real(cache, lengths))
        return seen[-len(lengths) :]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "taken_out", told)
        generate_grouped(model, Plain(), [row.tolist() for row in random_rows(LENGTHS)], 4, max_new_tokens=2)
    held = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for row in seen
        for p in row.states.values()
        for t in p
    }
    assert sum(held.values()) == sum(row.bytes for row in seen)


def test_a_tokenizer_without_padding_is_refused():
    with pytest.raises(UserError, match="no pad token"):
        generate_grouped(None, SimpleNamespace(pad_token_id=None), [[3]])


def read(groups, routes) -> int:
    """Executions that are read at every token, over all groups."""
    return sum(sum(union([routes[index] for index in group])) for group in groups)


def test_like_routes_stand_together():
    a, b, c = (1, 1, 0, 0), (0, 0, 1, 1), (1, 0, 0, 0)
    routes = [a, b, a, c, b, a]
    groups = grouped(routes, 2)
    assert sorted(index for group in groups for index in group) == list(range(6))
    assert groups == [[0, 2], [1, 4], [5, 3]]
    assert [len(group) for group in grouped(routes, 4)] == [4, 2]
    with pytest.raises(ValueError, match="groups of 0"):
        grouped(routes, 0)


def test_pairs_are_never_worse_than_in_the_order_of_arrival_and_near_the_best():
    generator = torch.Generator().manual_seed(0)
    routes = [tuple(row) for row in torch.randint(0, 3, (6, 8), generator=generator).tolist()]
    found = read(grouped(routes, 2), routes)
    assert found <= read([[0, 1], [2, 3], [4, 5]], routes)

    def pairings(left):
        if not left:
            yield []
        for other in left[1:]:
            rest = [index for index in left[1:] if index != other]
            yield from ([[left[0], other], *more] for more in pairings(rest))

    best = min(read(pairing, routes) for pairing in pairings(list(range(6))))
    assert best <= found <= 1.1 * best
