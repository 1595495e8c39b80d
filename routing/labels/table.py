"""A dense table: the reward of every question along every path of one menu, read from label folders.

Nothing in it is picked with hindsight: each question was answered along all K paths, whatever came out. The labels are
made by `data_generation.py --search menu`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from routing.common.errors import UserError
from routing.common.seen import Seen
from routing.common.spool import Spool
from routing.labels.reading import LABELS, read_header, read_labels
from routing.search.routes import Route, full_route, route_length, to_path

REMEDY = "Make a table with data_generation.py --search menu."


class Records(Sequence):
    """Label records that wait on disk, beside the folder that they are from."""

    def __init__(self, beside: Path):
        self._lines = Spool(beside)

    def append(self, record: dict) -> None:
        self._lines.append(json.dumps(record).encode())

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> dict:
        return json.loads(self._lines[index])


@dataclass(frozen=True)
class Table:
    """Rewards of N questions along K paths.

    Attributes:
        routes: the menu, K routes of L counts; the full one comes first.
        rewards: [N, K], 1 and 0 of right and wrong answers; the scores, where all labels have some.
        datasets: [N] data set of each question.
        ids: [N], all distinct.
        records: [N] label records without `tried` and `valid_paths`: what `routing.scoring.plain.make_request` needs.
            Of a table that was read they are on disk.
        origins: [N] index into `headers` of the folder that a question is from.
        headers: of the label folders.
    """

    routes: list[Route]
    rewards: np.ndarray
    datasets: list[str]
    ids: list[str]
    records: Sequence[dict]
    origins: Sequence[int]
    headers: list[dict]

    @property
    def layers(self) -> np.ndarray:
        """[K] layers that each path runs."""
        return np.array([route_length(route) for route in self.routes])


def read_table(folders: Sequence[Path]) -> Table:
    """The table of some label folders of one menu.

    Raises:
        UserError: for folders of different menus, models or adapters, labels that are not dense, a question that
            comes twice, scores in some labels alone, or damaged files.
    """
    if not folders:
        raise UserError(f"no label folder was given. {REMEDY}")
    headers = [read_header(folder) for folder in folders]
    routes = menu_routes(folders[0], headers[0])
    for folder, header in zip(folders[1:], headers[1:], strict=True):
        if menu_routes(folder, header) != routes:
            raise UserError(
                f"{folder} and {folders[0]} have different menus. A table has one menu: give the folders of one, or "
                "make both with the same --menu."
            )
        if _maker(header) != _maker(headers[0]):
            raise UserError(
                f"{folder} and {folders[0]} are of different models or adapters. A table is of one: make both with the "
                "same --model and --adapters."
            )
    paths = [to_path(route) for route in routes]
    rewards, records, origins = array("d"), Records(folders[0]), array("H")
    ids: list[str] = []
    datasets: list[str] = []
    seen = Seen()
    scored: bool | None = None
    for origin, folder in enumerate(folders):
        for number, record in enumerate(read_labels(folder), 1):
            where = f"{folder / LABELS}, line {number}"
            if not seen.add(hashlib.sha256(record["id"].encode()).digest()):
                before = folders[origins[ids.index(record["id"])]]
                raise UserError(
                    f"{where}: question {record['id']} was in {before} too, and a question counts once. "
                    "Leave one of the folders out, or give the other wording of a table by --again."
                )
            ids.append(record["id"])
            datasets.append(sys.intern(record["dataset"]))  # One text for all questions of a data set.
            if [entry.get("path") for entry in record["tried"]] != paths:
                raise UserError(
                    f"{where}: its {len(record['tried'])} tried paths are not the {len(paths)} of the menu in their "
                    f"order, so the table is not dense. {REMEDY}"
                )
            has_score = all("score" in entry for entry in record["tried"])
            if scored not in (None, has_score):
                raise UserError(f"{where}: some labels have scores and others have none. Give folders of one kind.")
            scored = has_score
            try:
                rewards.extend([float(entry["score" if scored else "correct"]) for entry in record["tried"]])
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{where}: a tried path has no verdict ({error}). The file is damaged.") from error
            records.append({key: value for key, value in record.items() if key not in ("tried", "valid_paths")})
            origins.append(origin)
    known = np.frombuffer(rewards, dtype=np.float64).reshape(-1, len(routes))
    return Table(routes, known, datasets, ids, records, origins, headers)


def _maker(header: dict) -> tuple:
    """What answered the questions of a label folder."""
    return header["model"], header.get("revision"), header["arguments"].get("adapters_sha256")


def menu_routes(folder: Path, header: dict) -> list[Route]:
    """The menu that a label folder was made along.

    Raises:
        UserError: if its labels are those of another search, or the menu is damaged.
    """
    menu, depth = header.get("menu"), header["num_layers"]
    if not isinstance(menu, dict) or not menu.get("routes"):
        search = header["arguments"].get("search", "mcts")
        raise UserError(f"{folder} was made by --search {search}, whose labels are not dense. {REMEDY}")
    routes = [tuple(route) for route in menu["routes"]]
    if any(len(route) != depth or set(route) - {0, 1, 2} for route in routes) or len(set(routes)) < len(routes):
        raise UserError(f"{folder}: its menu is damaged; routes must be distinct, {depth} counts in 0, 1, 2. {REMEDY}")
    if routes[0] != full_route(depth):
        raise UserError(f"{folder}: the first path of its menu is not the full one. {REMEDY}")
    return routes
