"""Records of explored layer sets, one a scored path: what preferences between layer sets are made from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from routing.common.errors import UserError
from routing.common.files import streamed
from routing.labels.reading import LABELS, read_labels


def exploration_records(folder: Path) -> Iterator[dict]:
    """Records {id, pruned_layers, output, score} of a label folder, streamed: of an example the full path comes first.

    Raises:
        UserError: for damaged labels, and for those of a search that asked for no scores.
    """
    for label in read_labels(folder):
        for tried in label["tried"]:
            if "score" not in tried:
                raise UserError(
                    f"{folder / LABELS}, example {label['id']}: its paths have no scores. Make the labels with "
                    "data_generation.py --search dfs or random."
                )
            yield {"id": label["id"]} | {name: tried[name] for name in ("pruned_layers", "output", "score")}


def write_records(folder: Path, path: Path) -> int:
    """Write the records of a label folder as JSON lines; returns how many there are.

    Raises:
        UserError: see `exploration_records`; the file is left as it was then.
    """
    count = 0
    with streamed(path) as file:
        for record in exploration_records(folder):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count
