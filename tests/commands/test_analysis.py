"""What a router spends layers on: kinds of tokens and figures by hand, a tiny model, the command."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from statistics import stdev

import numpy as np
import pytest
import torch
from conftest import save_tiny_base

from routing.commands import analysis
from routing.commands.work.analysis import Tokens, collect, kinds_of, pearson_of_clusters, piece_texts, rarity, summary
from routing.common.errors import UserError
from routing.common.statistics import pearson, t_interval
from routing.models.checkpoint import save_checkpoint
from routing.models.families import load_tokenizer
from routing.tasks.sequences import Sequences
from routing.training.end_to_end.validation import batches_of
from train_models.modeling_llama import RoutedLlamaForCausalLM

LAYERS, KEPT = 5, 2


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["The", " end", "."], ["stop word", "", "punctuation"]),
        (["The", "ory"], ["", "continuation"]),
        ([" the", "…", "the"], ["stop word", "punctuation", "stop word"]),
        ([" 1", "9", "%", " (", "3", ".", "5"],
         ["numeric", "continuation numeric", "punctuation", "punctuation", "numeric", "punctuation", "numeric"]),
        ([" 4th", "\n", "is"], ["", "", "stop word"]),
        ([" don", "'t", " well", "-", "known"], ["", "continuation", "", "punctuation", ""]),
        ([" be", "'", "s"], ["stop word", "punctuation", ""]),
        ([], []),
    ],
)  # fmt: skip
def test_kinds_by_hand(pieces, expected):
    names = [" ".join(sorted(own)) for own in kinds_of(pieces)]
    assert names == expected


def test_pieces_of_the_default_tokenizer_are_its_text():
    tokenizer = load_tokenizer("smollm2-135m-instruct")
    text = "The unbelievable theory of 1969, naïve as it is"
    pieces = piece_texts(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])
    assert "".join(pieces).startswith("The unbelievable theory of 1969, na")
    kinds = dict(zip(pieces, kinds_of(pieces)))
    assert kinds["The"] == kinds[" of"] == kinds[" it"] == {"stop word"}
    assert kinds["1"] == {"numeric"} and kinds["6"] == {"numeric", "continuation"} and kinds[","] == {"punctuation"}


class SentencePieces:
    """A tokenizer whose decoding drops the space that a lone piece starts with."""

    names = ("▁the", "ory")

    def convert_ids_to_tokens(self, ids):
        return [self.names[token] for token in ids]

    def decode(self, ids):
        return self.names[ids[0]].replace("▁", "")


def test_spaces_of_sentencepiece_are_put_back():
    assert piece_texts(SentencePieces(), [0, 1, 0]) == [" the", "ory", " the"]


def test_rarity_by_hand():
    counts = Counter({0: 5, 1: 1})
    found = rarity(np.array([1, 0, 3]), counts, vocabulary=4)
    assert found == pytest.approx([math.log(10 / 2), math.log(10 / 6), math.log(10 / 1)])


def test_pearson_by_hand():
    # Deviations (-2, -1, 1, 2) and (-1, -2, 2, 1): r = 8 / 10; z = atanh(0.8) = 1.0986, half = 1.96 / sqrt(1).
    found = pearson([1, 2, 4, 5], [2, 1, 5, 4])
    assert found["r"] == pytest.approx(0.8) and found["n"] == 4
    assert found["ci95"] == pytest.approx([math.tanh(1.0986 - 1.95996), math.tanh(1.0986 + 1.95996)], abs=1e-4)
    rng = np.random.default_rng(0)
    first = rng.normal(size=40)
    second = first + rng.normal(size=40)
    r, half = np.corrcoef(first, second)[0, 1], 1.959964 / math.sqrt(37)
    assert pearson(first, second)["r"] == pytest.approx(r)
    ends = [math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)]
    assert pearson(first, second)["ci95"] == pytest.approx(ends, abs=1e-6)


def test_pearson_without_variation_or_pairs():
    assert pearson([1, 1, 1, 1], [1, 2, 3, 4]) == {"r": None, "ci95": None, "n": 4}
    assert pearson([1, 2, 4], [1, 3, 2])["ci95"] is None
    assert pearson([1], [1])["r"] is None


def test_t_interval():
    # Mean 2, deviation 1, t with 2 degrees of freedom 4.3027.
    assert t_interval([1, 2, 3]) == pytest.approx([2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5], rel=1e-4)
    assert t_interval([1.0]) is None
    for freedom, quantile in {1: 12.7062, 5: 2.5706, 10: 2.2281, 30: 2.0423}.items():
        values = list(range(freedom + 1))
        low, high = t_interval(values)
        assert (high - low) / 2 == pytest.approx(quantile * stdev(values) / math.sqrt(len(values)), rel=1e-4)


def test_summary_by_hand():
    tokens = Tokens(
        ids=[7, 8, 9, 7, 8],
        layers=[2, 3, 5, 4, 4],
        losses=[1.0, 2.0, math.nan, 5.0, math.nan],
        rows=[0, 0, 0, 1, 1],
        executed=np.array([5, 5, 5, 3, 0]),
    )
    kinds = [{"punctuation"}, {"stop word"}, {"punctuation", "numeric"}, set(), set()]
    found = summary(tokens, kinds, Counter({7: 3}), vocabulary=10)
    assert found["mean_layers"] == pytest.approx(18 / 5) and found["tokens"] == 5 and found["predicted_tokens"] == 3
    assert found["layer_skip_rates"] == pytest.approx([0, 0, 0, 0.4, 1])
    categories = found["categories"]
    assert categories["all"] == {"tokens": 5, "layers": pytest.approx(3.6)}
    assert categories["punctuation"] == {"tokens": 2, "layers": 3.5}
    assert categories["numeric"] == {"tokens": 1, "layers": 5.0}
    assert categories["continuation"] == {"tokens": 0, "layers": None}
    assert categories["frequent"] == {"tokens": 2, "layers": 3.0}
    # The upper quartile of 1, 2, 5 is 3.5; tokens without a prediction have no loss.
    assert categories["high-loss"] == {"tokens": 1, "layers": 4.0}
    # Two passages: lengths 3 and 2, layers 10/3 and 4.
    assert found["correlations"]["passage_length"]["r"] == pytest.approx(-1)
    assert found["correlations"]["passage_perplexity"]["r"] == pytest.approx(1)
    assert found["correlations"]["token_rarity"]["n"] == 5


def save_global(folder, kind: str):
    """A checkpoint with a global router that decides differently for different tokens or rows."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    base = save_tiny_base(folder / "base", LAYERS, initializer_range=0.5, **sizes)
    fields = {"router": kind, "kept_layers": KEPT}
    routed = RoutedLlamaForCausalLM.from_pretrained(base, **fields)
    torch.manual_seed(1)
    routers = {name: torch.randn_like(tensor) for name, tensor in routed.model.routers.state_dict().items()}
    record = {"arguments": {"model_id": str(base), "prompt_tokens": 4}}
    save_checkpoint(folder / "checkpoint", str(base), routers, fields, "copy", record)
    return folder / "checkpoint"


@pytest.fixture(scope="module", params=("prefix_token", "prefix"))
def checkpoint(request, tmp_path_factory):
    return save_global(tmp_path_factory.mktemp(request.param), request.param)


@torch.inference_mode()
def test_padding_is_not_counted(checkpoint):
    """Short passages beside long ones count as they do alone."""
    model = RoutedLlamaForCausalLM.from_pretrained(checkpoint).eval()
    lengths = torch.tensor([9, 20, 6])
    torch.manual_seed(0)
    rows = Sequences(torch.randint(10, 400, (3, 20)), lengths)
    found = collect(model, batches_of(rows, 3, 4, torch.device("cpu")))
    assert found.rows == [0] * 9 + [1] * 20 + [2] * 6
    assert found.executed[:KEPT].tolist() == [35, 35] and 0 < found.executed[KEPT:].sum() < 35 * (LAYERS - KEPT)
    assert sum(found.layers) == found.executed.sum()
    for row, length in enumerate(lengths.tolist()):
        alone = Sequences(rows.ids[row : row + 1, :length], lengths[row : row + 1])
        own = collect(model, batches_of(alone, 1, 4, torch.device("cpu")))
        place = [at for at, number in enumerate(found.rows) if number == row]
        assert own.ids == [found.ids[at] for at in place] == alone.ids[0].tolist()
        assert own.layers == [found.layers[at] for at in place]
        assert own.losses == pytest.approx([found.losses[at] for at in place], abs=1e-3, nan_ok=True)
        # Behind a prompt of 4 tokens: predictions at 3, 4, … up to the last but one.
        assert [math.isnan(loss) for loss in own.losses] == [True] * 3 + [False] * (length - 4) + [True]
    if model.config.router == "prefix":
        assert all(len({found.layers[at] for at in range(35) if found.rows[at] == row}) == 1 for row in range(3))
    else:
        assert len(set(found.layers)) > 1


def run(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["dlr analysis", *map(str, words)])
    analysis.main()


def test_command(checkpoint, monkeypatch, tmp_path, capsys):
    corpus = tmp_path / "corpus.txt"
    lines = [f"Passage {n} of the {n % 7} towns, which have a theory of {'long ' * (n % 9)}names." for n in range(200)]
    corpus.write_text("\n".join(line + " It is told again and again, in each of them, since 1969." for line in lines))
    output = tmp_path / "analysis.json"
    run(monkeypatch, checkpoint, "--corpus", corpus, "--passages", 6, "--sequence_length", 24, "--output", output)
    found = json.loads(output.read_text())
    assert found["passages"] == 6 and found["tokens"] == 6 * 24 and found["predicted_tokens"] == 6 * 20
    assert found["layer_skip_rates"][:KEPT] == [0, 0] and len(found["layer_skip_rates"]) == LAYERS
    assert found["mean_layers"] == pytest.approx(LAYERS - sum(found["layer_skip_rates"]))
    assert found["categories"]["stop word"]["tokens"] > 6 and found["categories"]["high-loss"]["tokens"] >= 30
    assert found["correlations"]["token_rarity"]["n"] == 144
    assert "stop word: " in capsys.readouterr().out


def test_checkpoints_without_a_global_router_are_refused(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(
        '{"model_type": "routed_llama", "trained_num_windows": 8, "router": "per_layer"}'
    )
    (tmp_path / "training.json").write_text('{"arguments": {"model_id": "m"}}')
    with pytest.raises(UserError) as error:
        run(monkeypatch, tmp_path, "--corpus", "no.txt", "--passages", 0, "--output", tmp_path / "x.json")
    for part in ("router 'per_layer'", "train.py --objective gumbel", "no.txt", "--passages 0 must be at least 1"):
        assert part in str(error.value)
    assert not (tmp_path / "x.json").exists()


def test_intervals_of_tokens_are_over_passages():
    """With every token of a passage alike, n tokens know no more than the passages do."""
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=20), rng.normal(size=20)
    rows = np.repeat(np.arange(20), 50)
    once = pearson_of_clusters(first, second, np.arange(20))
    often = pearson_of_clusters(first[rows], second[rows], rows)
    assert often["r"] == pytest.approx(once["r"]) and often["ci95"] == pytest.approx(once["ci95"])
    plain = pearson(first[rows], second[rows])["ci95"]
    assert often["ci95"][1] - often["ci95"][0] > 3 * (plain[1] - plain[0])
