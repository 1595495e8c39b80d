"""Data sets by name."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path

from routing.common.errors import UserError
from routing.common.spool import Spool
from routing.common.user_files import RECORDS, beginning_problems
from routing.tasks import function_calls, hub, offline, procedural
from routing.tasks.examples import SPLITS, Example, distinct, from_line, to_line
from routing.tasks.local import local_examples

HUB = {
    "arc_easy": hub.arc("ARC-Easy"),
    "arc_challenge": hub.arc("ARC-Challenge"),
    **{f"dart-{level}": hub.dart(level) for level in range(1, 6)},
    "squadv2": hub.squadv2,
    "commonsense_qa": hub.commonsense_qa,
    "xlam": function_calls.xlam,
}
OFFLINE = {
    "arithmetic": offline.arithmetic,
    "procedural": procedural.procedural,
    **{name: offline.from_wheel(name) for name in offline.FILES},
    "tool_calls": function_calls.tool_calls,
    "short_tool_calls": function_calls.short_tool_calls,
    **{name: function_calls.berkeley(name) for name in function_calls.FILES},
}
GROUPS = {
    "arc": ("arc_easy", "arc_challenge"),
    "dart": tuple(f"dart-{level}" for level in range(1, 6)),
    "bfcl": ("bfcl_simple", "bfcl_multiple", "bfcl_parallel"),
}


def expand_names(names: str) -> list[str]:
    """Data set names of a comma-separated list, groups resolved, each once, in order."""
    listed = [name.strip() for name in names.split(",") if name.strip()]
    return list(dict.fromkeys(member for name in listed for member in GROUPS.get(name, (name,))))


def unknown_names(names: str) -> list[str]:
    """What is wrong with a list of data set names, or with the beginning of files among them, as sentences."""
    problems = [] if expand_names(names) else [f"--dataset {names!r} names no data set"]
    for name in expand_names(names):
        if name in HUB or name in OFFLINE:
            continue
        if name.endswith(RECORDS) or "/" in name:
            if not Path(name).is_file():
                problems.append(f"--dataset {name!r}: there is no such file")
            else:
                problems += beginning_problems(Path(name), local_examples(Path(name), name))
            continue
        problems.append(
            f"--dataset {name!r} is unknown; from the hub: {', '.join([*GROUPS, *HUB])}; offline: "
            f"{', '.join(OFFLINE)}; or the path of a JSONL file of your own (or {', '.join(RECORDS[1:])})"
        )
    return problems


def name_of_file(path: Path) -> str:
    """The name of the data set in a user's own file: the file's without its end, unless a known data set is so called.

    Else the labels of arithmetic.jsonl would pass for those of arithmetic, and controls be chosen on its questions.
    """
    known = {*HUB, *OFFLINE, *GROUPS}
    return path.name if path.stem in known else path.stem


def _source(name: str) -> Callable | None:
    return HUB.get(name) or OFFLINE.get(name)


@lru_cache(maxsize=1)
def _streaming(load_dataset: Callable) -> Callable:
    """`load_dataset` of rows that are read as they come, without a copy of them all on disk: the same rows in the same
    order. One object for one `load_dataset`, by which a source knows what it has read."""
    return partial(load_dataset, streaming=True)


def iterate(name: str, split: str, streaming: bool = False) -> Iterator[Example]:
    """Examples of one data set and split, duplicates left out, in the order of the source.

    Args:
        streaming: whether a data set of the hub is read row by row, without a copy of it on disk. Without, a later
            call finds that copy.

    Raises:
        UserError: if the data cannot be had, or the split is unknown.
    """
    if split not in SPLITS:
        raise UserError(f"--split {split!r} is unknown; allowed are {', '.join(SPLITS)}.")
    if _source(name) is None:
        if split != "search":
            raise UserError(
                f"--split {split}: {name} is a file of your own and has no splits; --split search takes all of it. "
                "Keep test questions in a file of their own."
            )
        yield from distinct(local_examples(Path(name), name_of_file(Path(name))))
        return
    import httpx
    from datasets import load_dataset

    try:
        yield from distinct(_source(name)(split, _streaming(load_dataset) if streaming else load_dataset))
    except (OSError, httpx.HTTPError) as error:  # Of a stream that breaks off too.
        if name not in HUB:
            raise
        raise UserError(
            f"data set {name!r} comes from the HuggingFace hub, which this machine cannot reach ({error}). Without "
            f"hub access use one of {', '.join(OFFLINE)}, or the path of a JSONL file."
        ) from error


def sampled(name: str, split: str, num_samples: int | None, seed: int, beside: Path | None = None) -> Iterator[Example]:
    """Up to `num_samples` examples of one data set, in the order in which they are drawn.

    All of them wait on disk until it is known how many there are; of the hub's nothing is kept where a sample is asked
    for.

    Args:
        beside: where that disk is, see `Spool`.

    Raises:
        UserError: if the data cannot be had, or there are none.
    """
    everything = Spool(beside)
    for example in iterate(name, split, streaming=num_samples is not None):
        everything.append(to_line(example, ascii_only=True).encode())
    for index in order_of(name, split, len(everything), seed)[:num_samples]:
        yield from_line(everything[index])


def load_examples(names: str, split: str, num_samples: int | None, seed: int) -> list[Example]:
    """Up to `num_samples` examples of each data set, drawn with `seed`; duplicates over data sets left out.

    Args:
        names: comma-separated names.
        split: one of SPLITS.
        num_samples: examples a data set, None for all.
        seed: of the drawing; the same seed gives the same examples in the same order.
    """
    drawn = (sampled(name, split, num_samples, seed) for name in expand_names(names))
    return list(distinct(example for own in drawn for example in own))


def order_of(name: str, split: str, count: int, seed: int) -> array:
    """The order in which the `count` examples of a data set are drawn.

    Raises:
        UserError: if there are none.
    """
    if not count:
        raise UserError(f"data set {name!r} has no example in the split {split!r}.")
    order = array("Q", range(count))
    random.Random(f"{seed}/{name}").shuffle(order)
    return order
