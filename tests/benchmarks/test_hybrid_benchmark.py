"""The benchmark of hybrid models: it refuses what is not exact, and finds where linear attention pays."""

from __future__ import annotations

import json

import hybrid
import pytest
import torch

from routing.common.errors import UserError
from train_models import routed_mixer

TINY = ["--hidden_size=16", "--num_heads=2", "--intermediate_size=24", "--vocab_size=100", "--repeats=1",
        "--device=cpu", "--threads=1"]  # fmt: skip


def test_crossings_by_hand():
    contexts = [256, 1024, 4096]
    assert hybrid.crossing(contexts, [0.5, 0.8, 0.9]) is None
    assert hybrid.crossing(contexts, [1.1, 1.2, 2.0]) == 256
    assert hybrid.crossing(contexts, [0.5, 1.5, 2.0]) == pytest.approx(512)  # half way in the logarithm
    assert hybrid.crossing(contexts, [1.2, 0.5, 1.5]) == pytest.approx(2048)  # A lucky first one does not count.
    assert hybrid.crossing(contexts, [1.2, 1.5, 0.9]) is None


@pytest.mark.parametrize("name", ("static", "dynamic", "all-gdn", "all-softmax"))
def test_models_are_exact_and_others_are_refused(name, monkeypatch):
    arguments = hybrid.arguments_of(TINY)
    ids = torch.randint(100, (1, 20), generator=torch.Generator().manual_seed(0))
    model = hybrid.make_model(name, arguments, ids.device)
    assert hybrid.check(model, name, arguments, ids) < 1e-4
    real = model.forward

    def broken(*args, past_key_values=None, **given):
        output = real(*args, past_key_values=past_key_values, **given)
        if past_key_values is not None:
            output.logits[..., 0] += 1
        return output

    monkeypatch.setattr(model, "forward", broken)
    with pytest.raises(UserError, match=f"{name} is not exact: log-probabilities differ"):
        hybrid.check(model, name, arguments, ids)


def test_what_is_checked_is_long_enough_for_what_is_timed(monkeypatch):
    """Queries of a row attend some at a time where there are many; a fault there must be found."""
    real = routed_mixer.SoftmaxAttention._attended

    def broken(self, query, *others):
        return real(self, query, *others) + (query.shape[2] > routed_mixer.QUERIES)

    monkeypatch.setattr(routed_mixer.SoftmaxAttention, "_attended", broken)
    with pytest.raises(UserError, match="dynamic is not exact"):
        hybrid.run(hybrid.arguments_of([*TINY, "--contexts=8,1300", "--configs=dynamic,all-softmax"]))


def test_every_context_and_phase_is_measured(tmp_path):
    path = tmp_path / "hybrid.json"
    arguments = hybrid.arguments_of([*TINY, "--contexts=16,8", f"--json={path}"])
    rows = hybrid.run(arguments)
    names, contexts = ("static", "dynamic", "all-softmax"), (8, 16)
    assert [(row["context"], row["phase"], row["config"]) for row in rows] == [
        (context, phase, name) for context in contexts for phase in ("prefill", "decode") for name in names
    ]
    for row in rows:
        assert row["ms"] > 0 and (row["config"] != "all-softmax" or row["speedup"] == 1)
    held = {(row["config"], row["context"]): row["cache_mib"] * 2**20 for row in rows}
    assert held["all-softmax", 16] == 2 * held["all-softmax", 8] == 4 * 2 * 16 * 16 * 4  # blocks, K and V, D, T, bytes
    assert held["static", 16] - held["static", 8] == (held["all-softmax", 16] - held["all-softmax", 8]) / 4
    found = json.loads(path.read_text())
    assert found["rows"] == rows and set(found["crossings"]) == {"prefill", "decode"}
    assert len(hybrid.in_words(found["crossings"], contexts)) == 4
    hybrid.plot(rows, tmp_path / "hybrid.png", "title")
    assert (tmp_path / "hybrid.png").stat().st_size > 10_000


def test_wrong_arguments_are_named_at_once():
    wrong = ["--configs=static,best", "--contexts=8,x", "--repeats=0", "--batch=0", "--json=no/x.json"]
    with pytest.raises(UserError) as error:
        hybrid.arguments_of(wrong)
    for part in ("--configs best", "have all-softmax", "--contexts takes", "--repeats 0", "--batch 0", "--json no"):
        assert part in str(error.value), part
    with pytest.raises(UserError, match="(?s)both mixers have equal width.*random_share must lie between 0 and 1"):
        hybrid.arguments_of(["--hidden_size=100", "--random_share=2"])
