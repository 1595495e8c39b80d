"""What routers read along a path, of the states of the evaluator: as the model itself gives it, and kept in files."""

from __future__ import annotations

from random import Random

import pytest
import torch
from conftest import LAYERS
from test_path_scoring import TOKENIZER, choosing, make_model, random_route

from routing.common.errors import UserError
from routing.scoring.packed import PathEvaluator
from routing.scoring.router_inputs import StoredInputs
from routing.training.features import RouterExample, router_inputs, with_stored

WINDOWS = 8


@pytest.mark.parametrize("memory", [2**30, 0])
def test_inputs_are_those_of_the_model(any_family, memory):
    """Of prompts with choices behind them, below a common beginning, with their states kept and dropped."""
    _, model = make_model(any_family)
    requests = choosing("loglikelihood", 6, Random(1))
    routes = [random_route(Random(seed)) for seed in range(5)] + [(1, 1, 0, 0, 0)]
    evaluator = PathEvaluator(model, TOKENIZER, memory=memory)
    evaluator.prepare(requests)
    evaluator.verdicts(requests, routes)
    before = evaluator.runner.layer_tokens
    for request, route in zip(requests, routes, strict=True):
        found = evaluator.router_inputs(request, route, WINDOWS)
        expected = router_inputs(model, [RouterExample(request.prompt_ids, route)], TOKENIZER.pad_token_id)
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name][0], atol=1e-4, rtol=1e-4)
    if memory:  # Nothing is computed again but the last run layer of the path without the last layers.
        assert evaluator.runner.layer_tokens - before <= len(evaluator._tree(requests[-1]).segment) + 5


class Folder(StoredInputs):
    def __init__(self, folder, key: str = "key"):
        self.folder, self.key = folder / "features", key


def test_what_was_kept_is_read_and_only_the_rest_is_computed(tmp_path):
    torch.manual_seed(0)
    examples = [RouterExample((3, 4 + i), (1,) * LAYERS) for i in range(4)]
    rows = [{"features": torch.randn(LAYERS, 2, 3), "windows": torch.ones(2, dtype=torch.bool)} for _ in examples]
    stores, asked = [Folder(tmp_path), Folder(tmp_path / "none")], []
    for at in (0, 2):
        stores[0].write(examples[at].prompt_ids, examples[at].route, rows[at])

    def compute(rest):
        asked.extend(rest)
        return {name: torch.stack([rows[at][name] for at in (1, 3)]) for name in rows[0]}

    found = with_stored(examples, stores, compute)
    assert asked == [examples[1], examples[3]]
    for name in rows[0]:
        assert torch.equal(found[name], torch.stack([row[name] for row in rows]))
    assert found["labels"].tolist() == [[1] * LAYERS] * 4
    assert stores[0].read((3, 4), (1,) * (LAYERS - 1) + (2,)) is None
    assert Folder(tmp_path, "other").read((3, 4), (1,) * LAYERS) is None
    assert with_stored(examples[:1], stores, None)["labels"].shape == (1, LAYERS)
    path = stores[0].path((3, 4), (1,) * LAYERS)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="is damaged .* training then computes"):
        stores[0].read((3, 4), (1,) * LAYERS)
