"""Passages as sequences of tokens: packed one behind the other, or one a row and padded.

Rows are kept in a file without a name and mapped: their pages are memory that the system takes back when it needs it.
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from routing.common.spool import existing_folder

BLOCK = 1 << 14  # tokens that are written at a time
TOGETHER = 1000  # texts that are tokenized at a time


class Sequences(NamedTuple):
    """Rows of tokens.

    Attributes:
        ids: [N, T] token ids, padded on the right; of large sets in a file that is mapped.
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


class _RowFile:
    """Rows of T tokens, written one behind the other.

    Args:
        beside: a place on the disk for them; None: the system's folder for temporary files.
    """

    def __init__(self, length: int, beside: Path | None):
        self.length, self.count = length, 0
        self._waiting = array("q")
        place = None if beside is None else existing_folder(beside)
        self._file = tempfile.TemporaryFile(dir=place)  # noqa: SIM115 - mapped as long as the rows are

    def append(self, row: Iterable[int]) -> None:
        """One whole row."""
        self._waiting.extend(row)
        self.count += 1
        if len(self._waiting) >= BLOCK:
            self._write()

    def _write(self) -> None:
        self._file.write(self._waiting.tobytes())
        self._waiting = array("q")

    def ids(self) -> torch.LongTensor:
        """[N, T], mapped."""
        self._write()
        self._file.flush()
        if not self.count:
            return torch.empty(0, self.length, dtype=torch.long)
        # Copied when written to, as nobody does; else PyTorch would warn that it may not.
        return torch.from_numpy(np.memmap(self._file, np.int64, mode="c", shape=(self.count, self.length)))


def pack(
    documents: Iterable[Sequence[int]],
    length: int,
    separator: int,
    beginning: tuple[int, ...] = (),
    beside: Path | None = None,
) -> Sequences:
    """Documents one behind the other, each ended by the separator, cut into rows of `length`; a rest is left out.

    Args:
        beginning: tokens that every row begins with, as every text does that such a model is given.
        beside: see `_RowFile`.
    """
    rows, stream = _RowFile(length, beside), array("q")
    own = length - len(beginning)  # tokens of a row that are text
    for document in documents:
        stream.extend(document)
        stream.append(separator)
        whole = len(stream) // own * own
        for start in range(0, whole, own):
            rows.append((*beginning, *stream[start : start + own]))
        del stream[:whole]
    return Sequences(rows.ids(), torch.full((rows.count,), length))


def pad(
    documents: Iterable[Sequence[int]], length: int, padding: int, shortest: int, beside: Path | None = None
) -> Sequences:
    """One document a row, cut at `length` tokens; those of fewer than `shortest` are left out."""
    rows, lengths = _RowFile(length, beside), array("q")
    for document in documents:
        if len(document) >= shortest:
            own = list(document[:length])
            lengths.append(len(own))
            rows.append(own + [padding] * (length - len(own)))
    return Sequences(rows.ids(), torch.tensor(lengths, dtype=torch.long))


def tokenized(texts: Sequence[str], tokenizer) -> Iterator[list[int]]:
    """Tokens of texts, some at a time, so that few are Python's numbers at once."""
    for start in range(0, len(texts), TOGETHER):
        yield from tokenizer(texts[start : start + TOGETHER], add_special_tokens=False)["input_ids"]


def beginning_of(tokenizer) -> tuple[int, ...]:
    """What a tokenizer puts in front of every text, as generate() and lm-eval see it: BOS, or nothing."""
    bos = getattr(tokenizer, "bos_token_id", None)
    return (bos,) if bos is not None and tokenizer.encode("a")[0] == bos else ()


def make_sequences(
    texts: Sequence[str], tokenizer, length: int, layout: str, prompt_tokens: int, beside: Path | None = None
) -> Sequences:
    """Texts as rows of tokens, each begun as the tokenizer begins a text.

    Args:
        layout: packed or padded.
        prompt_tokens: documents that have nothing behind so many are left out where they are padded.
        beside: a place on the disk for the rows, see `_RowFile`.
    """
    documents = tokenized(texts, tokenizer)
    end, beginning = tokenizer.eos_token_id, beginning_of(tokenizer)
    if layout == "packed":
        return pack(documents, length, end, beginning, beside)
    documents = ([*beginning, *document] for document in documents)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    return pad(documents, length, padding, prompt_tokens + 2, beside)


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
