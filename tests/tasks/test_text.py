"""Corpora and sequences of tokens: schemas, disjoint parts, packing, padding."""

from __future__ import annotations

import json
import tracemalloc
from random import Random

import pytest
import torch
from zoo import make_tokenizer

from routing.common.errors import UserError
from routing.tasks import sequences
from routing.tasks.corpora import PARTS, corpus_problems, part_of, passages
from routing.tasks.sequences import make_sequences, pack, pad, text_batch

LONG = "word " * 30


def test_offline_passages_are_disjoint_by_article():
    """No hub, no article in two parts, long passages alone, the same order each time."""
    found = {part: passages("wikipedia", part) for part in PARTS}
    assert sum(map(len, found.values())) > 10_000 and all(len(p) > 100 for part in found.values() for p in part)
    assert len(set().union(*found.values())) == sum(map(len, found.values()))
    assert 0.7 < len(found["train"]) / sum(map(len, found.values())) < 0.9
    assert list(passages("wikipedia", "validation", 5)) == found["validation"][:5]


def test_wikitext_by_its_schema():
    asked = []

    def loader(*args, split):
        asked.append((*args, split))
        return [{"text": ""}, {"text": " = Heading = \n"}, {"text": f" {LONG}\n"}, {"text": LONG + split}]

    assert sorted(passages("wikitext", "validation", loader=loader)) == sorted([LONG.strip(), LONG + "validation"])
    assert asked == [("Salesforce/wikitext", "wikitext-103-raw-v1", "validation")]


@pytest.mark.parametrize("suffix", (".txt", ".jsonl"))
def test_files_are_divided_by_passage(tmp_path, suffix):
    texts = [f"{LONG}{number}" for number in range(60)]
    path = tmp_path / f"corpus{suffix}"
    path.write_text("\n".join(texts if suffix == ".txt" else [json.dumps({"text": text}) for text in texts]))
    found = {part: passages(str(path), part) for part in PARTS}
    assert sorted(text for own in found.values() for text in own) == sorted(texts)
    assert all(part_of(text) == part for part, own in found.items() for text in own)


def test_wrong_corpora_are_named(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n{"txt": 1}\n')
    with pytest.raises(UserError, match="bad.jsonl, line 2.*expected"):
        passages(str(path), "train")
    (tmp_path / "short.txt").write_text("short\n")
    with pytest.raises(UserError, match="no train passage of over 100 characters"):
        passages(str(tmp_path / "short.txt"), "train")
    assert "wikipedia, wikitext" in corpus_problems("corpus", "books")[0]
    assert "does not exist" in corpus_problems("corpus", "missing.txt")[0]
    assert "bad.jsonl, line 2" in corpus_problems("corpus", str(path))[0]
    assert not corpus_problems("corpus", "wikitext")


def test_packing_and_padding_by_hand():
    rows = pack([[1, 2, 3], [4, 5], [6]], 4, separator=9)
    assert rows.ids.tolist() == [[1, 2, 3, 9], [4, 5, 9, 6]] and rows.lengths.tolist() == [4, 4]
    rows = pad([[1, 2, 3], [4], [5, 6, 7, 8, 9]], 4, padding=0, shortest=2)
    assert rows.ids.tolist() == [[1, 2, 3, 0], [5, 6, 7, 8]] and rows.lengths.tolist() == [3, 4]


def test_passages_come_in_the_order_of_a_shuffled_list(tmp_path):
    """They wait on disk; a list of them would be shuffled so."""
    texts = [f"{LONG}{number} \u00e9" for number in range(200)]
    (tmp_path / "corpus.txt").write_text("\n".join(texts + texts))
    oracle = [text for text in texts if part_of(text) == "train"]
    Random(0).shuffle(oracle)
    found = passages(str(tmp_path / "corpus.txt"), "train", beside=tmp_path / "work")
    assert list(found) == oracle and found[3:9] == oracle[3:9] and found[-1] == oracle[-1]


@pytest.mark.parametrize("beginning", [(), (7,)])
def test_long_text_is_packed_as_one_stream(tmp_path, monkeypatch, beginning):
    """By the plain way, in memory; the rows lie in a file without a name."""
    monkeypatch.setattr(sequences, "BLOCK", 50)
    rng = Random(1)
    documents = [[rng.randrange(9) for _ in range(rng.randrange(40))] for _ in range(60)]
    rows = pack(documents, 12, 9, beginning, tmp_path)
    stream, own = [token for document in documents for token in (*document, 9)], 12 - len(beginning)
    cut = [[*beginning, *stream[at : at + own]] for at in range(0, len(stream) - own + 1, own)]
    assert rows.ids.tolist() == cut and rows.lengths.tolist() == [12] * len(cut)
    assert not list(tmp_path.iterdir())


def test_texts_are_tokenized_some_at_a_time(monkeypatch):
    """So that the memory of Python's numbers stays small."""
    monkeypatch.setattr(sequences, "TOGETHER", 2)
    asked = []

    class Tokenizer:
        eos_token_id, pad_token_id = 9, None

        def __call__(self, texts, add_special_tokens):
            asked.append(len(texts))
            return {"input_ids": [list(map(int, text.split())) for text in texts]}

    rows = make_sequences(["1 2", "3", "4 5", "6", "7"], Tokenizer(), 4, "packed", 1)
    assert asked == [2, 2, 1] and rows.ids.tolist() == [[1, 2, 9, 3], [9, 4, 5, 9], [6, 9, 7, 9]]
    assert rows.ids.dtype == torch.long
    assert make_sequences(["1"], Tokenizer(), 4, "packed", 1).ids.shape == (0, 4)


def test_packing_holds_no_numbers_of_python(monkeypatch):
    """Some 40 bytes a token, where a large corpus in several processes has room for a few."""
    documents = ([1000 + n for n in range(1000)] for _ in range(100))
    tracemalloc.start()
    try:
        rows = pack(documents, 512, separator=9)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(rows) == 100 * 1001 // 512 and peak < 8 * 100_000


def test_layouts_use_the_tokenizer():
    class Tokenizer:
        eos_token_id, pad_token_id = 9, None

        def __call__(self, texts, add_special_tokens):
            assert not add_special_tokens
            return {"input_ids": [list(map(int, text.split())) for text in texts]}

    packed = make_sequences(["1 2 3", "4 5"], Tokenizer(), 3, "packed", 1)
    assert packed.ids.tolist() == [[1, 2, 3], [9, 4, 5]]
    padded = make_sequences(["1 2 3", "4 5"], Tokenizer(), 4, "padded", 1)
    assert padded.ids.tolist() == [[1, 2, 3, 9]] and padded.lengths.tolist() == [3]


@pytest.mark.parametrize("layout", ("packed", "padded"))
def test_rows_begin_as_generate_begins_a_text(layout):
    """A tokenizer that puts BOS in front of every text does so in training and evaluation on text too, once."""
    for first in (True, False):
        tokenizer = make_tokenizer(first=first)
        rows = make_sequences(["item 1 item 2", "red and blue"], tokenizer, 5, layout, 1)
        assert len(rows) > 1 and {len(row) for row in rows.ids.tolist()} == {5}
        assert [row.count(tokenizer.bos_token_id) for row in rows.ids.tolist()] == [int(first)] * len(rows)
        if layout == "padded":
            assert rows.ids[0].tolist() == tokenizer.encode("item 1 item 2")[:5]
        elif first:
            assert set(rows.ids[:, 0].tolist()) == {tokenizer.bos_token_id}


def test_a_batch_drops_columns_of_padding():
    batch = text_batch(torch.tensor([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0]]), torch.tensor([3, 2]), 1)
    assert batch.ids.shape == (2, 3) and batch.mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.counted.tolist() == [[True, True, False], [True, False, False]]
