"""What large sets are kept in: keys that were seen, and sequences on disk."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path
from random import Random

import pytest

from routing.common.seen import EMPTY, Seen
from routing.common.spool import Spool, existing_folder


def digest(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def test_seen_is_a_set():
    seen, oracle, rng = Seen(), set(), Random(0)
    for _ in range(6000):
        key = digest(rng.randrange(3000))
        assert seen.add(key) == (key not in oracle)
        oracle.add(key)
    assert len(seen) == len(oracle) > 2000


def test_keys_that_share_their_place_are_told_apart():
    seen = Seen()
    keys = [bytes(8) + bytes([number]) * 8 for number in range(1, 200)]
    assert all(map(seen.add, keys)) and not any(map(seen.add, keys))
    assert EMPTY not in keys


def test_seen_takes_a_third_of_a_set():
    def memory(kind, add) -> int:
        tracemalloc.start()
        made = kind()
        for number in range(5_000):
            add(made, digest(number))
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return held

    assert memory(Seen, Seen.add) < 36 * 5_000 < memory(set, set.add) / 3


def test_spool(tmp_path):
    spool, items = Spool(tmp_path / "not" / "there"), [b"one", b"", "zwölf".encode(), b"x" * 100_000]
    for at, item in enumerate(items):
        spool.append(item)
        assert spool[at] == item and len(spool) == at + 1
    assert list(spool) == items and spool[-1] == items[-1]
    with pytest.raises(IndexError):
        spool[4]
    assert not list(tmp_path.iterdir()), "the file has no name"


def test_a_spool_lies_beside_what_it_is_for(tmp_path):
    (tmp_path / "file").write_text("")
    assert existing_folder(tmp_path / "file") == existing_folder(tmp_path / "a" / "b") == tmp_path
    assert existing_folder(Path("no such folder")) == Path.cwd()
