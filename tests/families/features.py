"""What every family must do, one function a feature: each compares with stock layers run one by one, or raises.

The other tests go deeper, with the first families in every run and with all in the slow one; this is the short form,
for all families in every run.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass

import torch
from conftest import (
    Family,
    assert_near,
    entering,
    logits_of,
    models,
    naive_layers,
    narrow,
    oracle_logits,
    padded,
    path_from,
    random_rows,
    route_path,
    routed_from,
    stock_model,
)

from routing.models.bases import stored_tensors
from routing.models.export.config import cut_config
from routing.models.export.weights import cut_model
from routing.scoring.path_runner import PathRunner
from routing.scoring.prefix_store import PrefixStore
from routing.scoring.segments import Node, TokenTree

LENGTHS = (4, 9, 6)
ROUTES = ([1, 2, 0, 1, 1], [0, 1, 1, 2, 1], [1, 0, 1, 0, 2])
NEW = 4
GREEDY = {"max_new_tokens": NEW, "do_sample": False}


@dataclass
class Subject:
    """A family with a stock model of it; windows are shorter than the texts, but where a feature needs longer ones."""

    family: Family

    def __post_init__(self):
        self.narrow = narrow(self.family) if dict(self.family.overrides).get("sliding_window") else self.family
        self.stock = stock_model(self.narrow)
        self.rows = random_rows(LENGTHS)

    def routed(self, **fields):
        return routed_from(self.narrow, self.stock, **fields)

    def check(self, row: torch.Tensor, path, tokens: torch.Tensor, logits: torch.Tensor | None = None) -> None:
        """Greedy tokens behind a row, and their logits, against the whole text alone, without a cache."""
        expected = oracle_logits(self.stock, torch.cat([row, tokens[:-1]]), path)[-len(tokens) :]
        assert tokens.tolist() == expected.argmax(-1).tolist()
        if logits is not None:
            assert_near(logits, expected)


def parity(subject: Subject) -> None:
    """Every layer once, padded and cached, generates what the stock model does, bit for bit."""
    ids, mask = padded(subject.rows)
    wanted = {"attention_mask": mask, "output_logits": True, "return_dict_in_generate": True, **GREEDY}
    expected = subject.stock.generate(ids, **wanted)
    found = subject.routed(is_static_routing=True).generate(ids, **wanted)
    assert torch.equal(found.sequences, expected.sequences)
    assert all(torch.equal(*pair) for pair in zip(found.logits, expected.logits, strict=True))


def given_path(subject: Subject) -> None:
    """A list of layers in any order, with repeats, cached."""
    model = path_from(subject.narrow, subject.stock)
    model.model.layer_indices = path = [0, 3, 1, 1, 4]
    row = subject.rows[1]
    subject.check(row, path, model.generate(row[None], **GREEDY)[0, len(row) :])
    assert_near(model(row[None]).logits[0], oracle_logits(subject.stock, row, path))


def forced_routes(subject: Subject) -> None:
    """A route for each row of a padded batch, cached, on both sides of padding."""
    routed, routes = subject.routed(), torch.tensor(ROUTES)
    ids, mask = padded(subject.rows)
    output = routed.generate(
        ids, attention_mask=mask, routes=routes, output_logits=True, return_dict_in_generate=True, **GREEDY
    )
    logits = torch.stack(output.logits, 1)
    for at, (row, route) in enumerate(zip(subject.rows, ROUTES, strict=True)):
        subject.check(row, route_path(route), output.sequences[at, ids.shape[1] :], logits[at])
    ids, mask = padded(subject.rows, "right")
    logits = routed(ids, attention_mask=mask, routes=routes, use_cache=False).logits
    for found, row, route in zip(logits, subject.rows, ROUTES, strict=True):
        assert_near(found[: len(row)], oracle_logits(subject.stock, row, route_path(route)))


def cache(subject: Subject) -> None:
    """Reorder, select, repeat and crop the cache, then go on."""
    stock, routed, _ = models(subject.family)
    rows, routes = random_rows((6, 6, 6)), list(ROUTES)
    past = routed(torch.stack(rows), routes=torch.tensor(routes), use_cache=True).past_key_values
    past.reorder_cache(torch.tensor([2, 0, 1]))
    past.batch_select_indices(torch.tensor([0, 2]))
    past.batch_repeat_interleave(2)
    past.crop(-2)
    order = [2, 2, 1, 1]
    more = torch.stack(random_rows((3,) * 4, seed=1))
    logits = routed(more, past_key_values=past).logits
    for found, at, new in zip(logits, order, more, strict=True):
        text = torch.cat([rows[at][:4], new])
        assert_near(found, oracle_logits(stock, text, route_path(routes[at]))[-3:])


def beams(subject: Subject) -> None:
    """Beams of two rows with a route each, with a cache and without."""
    routed = subject.routed()
    ids, mask = padded(subject.rows[:2])
    wanted = {"num_beams": 3, "attention_mask": mask, "routes": torch.tensor(ROUTES[:2]), **GREEDY}
    with_cache, without = (routed.generate(ids, use_cache=use, **wanted) for use in (True, False))
    assert torch.equal(with_cache, without)


def token_routing(subject: Subject) -> None:
    """Tokens that run a layer, gathered, against the layer run for all and kept for some."""
    routed = subject.routed(router="prefix_token", kept_layers=2)
    torch.manual_seed(3)
    for parameter in routed.model.routers.parameters():
        parameter.normal_(0.0, 1.0 if parameter.ndim > 1 else 0.1)
    stock, row = subject.stock, subject.rows[1]
    found = routed(row[None]).logits[0]
    gates, layers = routed.model.last_gates[0], naive_layers(stock, len(row))
    assert 0.1 < gates.float().mean() < 0.95
    hidden = entering(stock, stock.model.embed_tokens(row[None]))
    for layer, run in enumerate(layers):
        on = torch.ones(len(row), dtype=torch.bool) if layer < 2 else gates[:, layer - 2]
        hidden = torch.where(on[None, :, None], run(hidden), hidden)
    assert_near(found, logits_of(stock, stock.model.norm(hidden))[0])


def adapters(subject: Subject) -> None:
    """Adapters stand in for skipped layers, in a batch and in the evaluator of the search."""
    routed = subject.routed(skip_action="adapter", adapter_size=6, router="none", fixed_route=ROUTES[2])
    torch.manual_seed(5)
    for parameter in routed.model.adapters.parameters():
        parameter.normal_(0.0, 0.3)
    stock, row = subject.stock, subject.rows[2]
    layers, hidden = naive_layers(stock, len(row)), entering(stock, stock.model.embed_tokens(row[None]))
    for layer, count in enumerate(ROUTES[2]):
        if not count:
            hidden = routed.model.adapters[layer](hidden)
        for _ in range(count):
            hidden = layers[layer](hidden)
    expected = logits_of(stock, stock.model.norm(hidden))[0]
    assert_near(routed(row[None]).logits[0], expected)
    assert_near(packed(routed, [row], [ROUTES[2]])[0], expected[-1])


def packed(routed, rows, routes) -> torch.Tensor:
    """Logits [N, V] behind each row along its route, by the evaluator of the search."""
    runner = PathRunner(routed, PrefixStore(2**30))
    nodes = []
    for row, route in zip(rows, routes, strict=True):
        tree = TokenTree(row.tolist(), [])
        nodes.append((Node(tree.segment, len(row) - 1), tuple(route_path(route))))
    runner.compute([(node.segment, path) for node, path in nodes])
    return runner.head(runner.last_hidden(nodes))


def search(subject: Subject) -> None:
    """The evaluator of the search computes all rows along all routes at once."""
    rows = [row for row in subject.rows for _ in ROUTES]
    found = packed(subject.routed(), rows, list(ROUTES) * len(subject.rows))
    at = 0
    for row in subject.rows:
        for route in ROUTES:
            assert_near(found[at], oracle_logits(subject.stock, row, route_path(route))[-1])
            at += 1


def loading(subject: Subject) -> None:
    """A base's files load into both kinds of model, and name every weight of theirs."""
    family, stock = subject.narrow, subject.stock
    with tempfile.TemporaryDirectory() as folder:
        stock.save_pretrained(folder)
        stored = dict(stored_tensors(folder))
        for load in (family.routed.from_pretrained, family.path.from_pretrained):
            model, info = load(folder, output_loading_info=True)
            assert all(".routers." in key for key in info["missing_keys"]) and not info["unexpected_keys"]
            own = model.state_dict()
            assert all(torch.equal(own[name], tensor) for name, tensor in stock.state_dict().items())
            assert all(torch.equal(own[name], tensor) for name, tensor in stored.items())


def export(subject: Subject) -> None:
    """A path with a repeat as a smaller stock model."""
    path = [0, 2, 3, 3]
    cut = cut_model(subject.stock, cut_config(subject.stock.config, path), path)
    with tempfile.TemporaryDirectory() as folder:
        cut.save_pretrained(folder)
        written = subject.family.stock.from_pretrained(folder).eval()
    row = subject.rows[1]
    assert_near(written(row[None]).logits[0], oracle_logits(subject.stock, row, path))


FEATURES = {
    "stock, bit for bit": parity,
    "given paths": given_path,
    "forced routes": forced_routes,
    "cache operations": cache,
    "beams": beams,
    "routers of tokens": token_routing,
    "adapters": adapters,
    "evaluator of the search": search,
    "files of a base": loading,
    "export": export,
}
