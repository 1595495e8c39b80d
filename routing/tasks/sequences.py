"""Passages as sequences of tokens: packed one behind the other, or one a row and padded."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch

TOGETHER = 1000  # texts that are tokenized at a time


class Sequences(NamedTuple):
    """Rows of tokens.

    Attributes:
        ids: [N, T] token ids, padded on the right.
        lengths: [N], how many of a row's tokens are real.
    """

    ids: torch.LongTensor
    lengths: torch.LongTensor

    def __len__(self) -> int:
        return len(self.ids)


class TextBatch(NamedTuple):
    """A batch for a loss over real tokens behind the prompt.

    Attributes:
        ids: [B, T].
        mask: [B, T], 1 for real tokens, also those of the prompt.
        targets: [B, T], the token that follows each one.
        counted: [B, T] bool, whether what follows is a real token behind the prompt.
        prompt_lengths: [B], the tokens at the start of each row by which it is routed.
    """

    ids: torch.LongTensor
    mask: torch.LongTensor
    targets: torch.LongTensor
    counted: torch.BoolTensor
    prompt_lengths: torch.LongTensor


def pack(documents: Iterable[Sequence[int]], length: int, separator: int, beginning: tuple[int, ...] = ()) -> Sequences:
    """Documents one behind the other, each ended by the separator, cut into rows of `length`; a rest is left out.

    Args:
        beginning: tokens that every row begins with, as every text does that such a model is given.
    """
    stream = array("i")  # 4 bytes a token, where a list of Python's numbers takes some 40
    for document in documents:
        stream.extend(document)
        stream.append(separator)
    own = length - len(beginning)  # tokens of a row that are text
    rows = len(stream) // own
    ids = torch.empty(0, dtype=torch.int32) if not rows else torch.frombuffer(stream, dtype=torch.int32)
    first = torch.tensor(beginning, dtype=torch.long).expand(rows, -1)
    return Sequences(torch.cat([first, ids[: rows * own].view(rows, own).long()], 1), torch.full((rows,), length))


def pad(documents: Iterable[Sequence[int]], length: int, padding: int, shortest: int) -> Sequences:
    """One document a row, cut at `length` tokens; those of fewer than `shortest` are left out."""
    rows = [array("i", document[:length]) for document in documents if len(document) >= shortest]
    ids = torch.full((len(rows), length), padding, dtype=torch.long)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = torch.tensor(row, dtype=torch.long)
    return Sequences(ids, torch.tensor(list(map(len, rows)), dtype=torch.long))


def tokenized(texts: Sequence[str], tokenizer) -> Iterator[list[int]]:
    """Tokens of texts, some at a time, so that few are Python's numbers at once."""
    for start in range(0, len(texts), TOGETHER):
        yield from tokenizer(texts[start : start + TOGETHER], add_special_tokens=False)["input_ids"]


def beginning_of(tokenizer) -> tuple[int, ...]:
    """What a tokenizer puts in front of every text, as generate() and lm-eval see it: BOS, or nothing."""
    bos = getattr(tokenizer, "bos_token_id", None)
    return (bos,) if bos is not None and tokenizer.encode("a")[0] == bos else ()


def make_sequences(texts: list[str], tokenizer, length: int, layout: str, prompt_tokens: int) -> Sequences:
    """Texts as rows of tokens, each begun as the tokenizer begins a text.

    Args:
        layout: packed or padded.
        prompt_tokens: documents that have nothing behind so many are left out where they are padded.
    """
    documents = tokenized(texts, tokenizer)
    end, beginning = tokenizer.eos_token_id, beginning_of(tokenizer)
    if layout == "packed":
        return pack(documents, length, end, beginning)
    documents = ([*beginning, *document] for document in documents)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    return pad(documents, length, padding, prompt_tokens + 2)


def text_batch(ids: torch.LongTensor, lengths: torch.LongTensor, prompt_tokens: int) -> TextBatch:
    """A batch of rows; columns that are padding in all of them are cut off.

    Args:
        ids: [B, T].
        lengths: [B] real tokens.
        prompt_tokens: first tokens of each row that are not predicted, and by which a router of rows decides.
    """
    ids = ids[:, : int(lengths.max())]
    place = torch.arange(ids.shape[1])
    real = place < lengths[:, None]
    follows = (place + 1 < lengths[:, None]) & (place + 1 >= max(prompt_tokens, 1))
    prompts = torch.full_like(lengths, prompt_tokens) if prompt_tokens else lengths
    return TextBatch(ids, real.long(), ids.roll(-1, 1), follows, prompts)
