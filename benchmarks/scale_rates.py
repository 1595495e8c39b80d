"""What `scale.py` rests on, as it was measured: rates of a card, bytes of labels and inputs, seconds of the driver."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np

from routing.common.errors import UserError
from routing.labels.records import label_line
from routing.scoring.requests import Request
from routing.search.mcts import SearchSettings, search
from routing.search.results import SearchResult, Verdict
from routing.tasks.examples import Example

# (layers, width) of models; the toolkit's default, and Llama's
SHAPES = {"135M": (30, 576), "1B": (16, 2048), "3B": (28, 3072), "8B": (32, 4096)}
WINDOWS = 8  # that router inputs are pooled in, as train.py does unless it is told otherwise
WORDS = 40  # of a question whose label is measured; DART's have some


def read_json(path: Path, made_by: str) -> dict:
    """A file of results.

    Raises:
        UserError: if there is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); {made_by} writes it") from error


def card_rates(search: dict) -> list[dict]:
    """Paths a second of a card by what was varied, from the JSON of `gpu_sections/search.py`; the first row has all."""
    rows: list[dict] = []
    naive = None
    for row in search["rows"]:
        naive = row.get("naive_per_second", naive)
        rows.append(
            {"card": search["card"], "scoring": row["scoring"], "varied": row.get("varied", "64 in flight, batch 64")}
            | {"paths_a_second": row.get("ours_per_second", row["ratio"] * naive)}
        )
        if "shape" in row:
            rows[-1] |= {"shape": row["shape"], "layer_tokens_of_a_path": row["layer_tokens_per_path"]}
    return rows


def whole_share(first_rounds: dict, whole: dict, scoring: str = "loglikelihood") -> float:
    """What is left of the evaluator's gain over one path at a time in whole searches, whose later paths share less.

    Args:
        first_rounds, whole: of search.json and whole_search.json, which were measured on a processor.
    """
    own = next(row for row in whole["rows"] if row["scoring"] == scoring)
    return own["ratio"] / first_rounds["scorings"][scoring]["ratio"]


def prefill_ratios(prefill: dict) -> list[dict]:
    """How much sooner the smaller model has read the same tokens: what is known of other sizes than that searched."""
    full = [row for row in prefill["rows"] if row.get("skipped") == 0]
    sizes = {(row["shape"], row["batch"], row["prompt_tokens"]): row["dense_ms"] for row in full}
    return [
        {"batch": batch, "tokens": tokens, "ms_3B": ms, "ms_1B": sizes["1B", batch, tokens]}
        for (shape, batch, tokens), ms in sizes.items()
        if shape == "3B" and ("1B", batch, tokens) in sizes
    ]


def searched(depth: int, simulations: int, count: int = 60, right: float = 0.3) -> list[SearchResult]:
    """Results of tree searches whose paths are right by chance."""
    found, rng = [], Random(0)
    for _ in range(count):
        running = search(depth, SearchSettings(num_simulations=simulations), rng)
        try:
            next(running)
            while True:
                running.send(Verdict(rng.random() < right))
        except StopIteration as stop:
            found.append(stop.value)
    return found


def label_bytes(depth: int, paths: float, simulations: int) -> float:
    """Bytes of a label with so many tried paths: by a line through the labels of `searched`."""
    question = " ".join(["word"] * WORDS)
    example = Example("dart-3", question, "12", checker="boxed")
    request = Request(example, "generate", f"{question}\nAnswer:", (1,))
    results = searched(depth, simulations)
    sizes = [len(label_line(request, result).encode()) for result in results]
    a_path, rest = np.polyfit([len(result.verdicts) for result in results], sizes, 1)
    return float(rest + a_path * paths)


def input_bytes(shape: str) -> int:
    """Bytes of the router inputs of one question: 4 * L * W * D."""
    layers, width = SHAPES[shape]
    return 4 * layers * WINDOWS * width


def driver_seconds(rows: Sequence[dict], workers: int, size: int) -> float:
    """Seconds of the driver for a group of so many questions while so many groups are in flight.

    Of the numbers of workers that were measured the next one above counts, or the largest; over sizes of groups it is
    a line through the smallest and the largest, no smaller one costing less.
    """
    known = sorted({row["workers"] for row in rows})
    nearest = next((count for count in known if count >= workers), known[-1])
    own = sorted((row["group_size"], row["seconds_a_group"]) for row in rows if row["workers"] == nearest)
    (small, least), (large, most) = own[0], own[-1]
    return least + max(size - small, 0) * (most - least) / (large - small)
