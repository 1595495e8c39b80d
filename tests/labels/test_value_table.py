"""Dense tables, read from label folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from routing.common.errors import UserError
from routing.labels.reading import FORMAT, HEADER, LABELS
from routing.labels.table import read_table
from routing.search.routes import to_path
from routing.tasks.examples import Example

ROUTES = [(1, 1, 1, 1), (1, 1, 0, 1), (1, 2, 0, 0)]


def write_folder(
    folder: Path,
    rewards,
    dataset: str = "sums",
    routes=ROUTES,
    first: int = 0,
    scores: bool = False,
    menu=True,
    **extra,
) -> Path:
    """A label folder of a menu, one question a row of `rewards` [N, K]; questions are numbered from `first`."""
    folder.mkdir(parents=True, exist_ok=True)
    header = {"format": FORMAT, "model": "m", "num_layers": len(routes[0]), "arguments": {"apply_chat_template": False}}
    if menu:
        header["menu"] = {"spec": "file", "routes": [list(route) for route in routes]}
    (folder / HEADER).write_text(json.dumps(header))
    lines = []
    for number, row in enumerate(rewards, first):
        example = Example(dataset, f"{number} + 0 =", str(number), checker="number")
        tried = [{"path": to_path(route), "correct": bool(reward)} for route, reward in zip(routes, row)]
        if scores:
            for entry, route, reward in zip(tried, routes, row):
                pruned = [layer for layer, count in enumerate(route) if count == 0]
                entry |= {"pruned_layers": pruned, "score": float(reward), "output": ""}
        record = {
            "id": example.id, "dataset": dataset, "prompt": example.question, "question": example.question,
            "answer": example.answer, "choices": [], "accepted": [], "gold": None, "checker": "number",
            "scoring": "generate", "base_correct": bool(row[0]), "correct": any(row), "route": list(routes[0]),
            "path": to_path(routes[0]), "valid_paths": [], "tried": tried, "evaluations": len(routes),
        }  # fmt: skip
        lines.append(json.dumps(record | extra) + "\n")
    (folder / LABELS).write_text("".join(lines))
    return folder


def test_a_table_of_two_folders(tmp_path):
    first = write_folder(tmp_path / "a", [[1, 0, 1], [0, 0, 1]])
    second = write_folder(tmp_path / "b", [[1, 1, 0]], dataset="others", first=7)
    table = read_table([first, second])
    assert table.routes == ROUTES and table.layers.tolist() == [4, 3, 3]
    assert table.rewards.tolist() == [[1, 0, 1], [0, 0, 1], [1, 1, 0]] and table.rewards.dtype == np.float64
    assert table.datasets == ["sums", "sums", "others"] and list(table.origins) == [0, 0, 1]
    assert [record["question"] for record in table.records] == ["0 + 0 =", "1 + 0 =", "7 + 0 ="]
    assert table.ids == [record["id"] for record in table.records] and "tried" not in table.records[0]


def test_scores_are_the_rewards_where_all_labels_have_some(tmp_path):
    scored = write_folder(tmp_path / "a", [[1, 0.25, 0.5]], scores=True)
    assert read_table([scored]).rewards.tolist() == [[1, 0.25, 0.5]]
    with pytest.raises(UserError, match="some labels have scores and others have none"):
        read_table([scored, write_folder(tmp_path / "b", [[1, 0, 0]], first=5)])


def test_what_is_no_table_is_refused(tmp_path):
    good = write_folder(tmp_path / "good", [[1, 0, 1]])
    with pytest.raises(UserError, match="no label folder was given"):
        read_table([])
    with pytest.raises(UserError, match=r"mcts, whose labels are not dense.*--search menu"):
        read_table([write_folder(tmp_path / "search", [[1, 0, 1]], menu=False)])
    with pytest.raises(UserError, match="different menus"):
        read_table([good, write_folder(tmp_path / "other", [[1, 0]], routes=ROUTES[:2], first=3)])
    with pytest.raises(UserError, match=r"b/labels.jsonl, line 2: question .* was in .*good too"):
        read_table([good, write_folder(tmp_path / "b", [[1, 0, 1], [1, 1, 1]], first=-1)])
    with pytest.raises(UserError, match=r"line 1: its 1 tried paths are not the 3 of the menu"):
        read_table([write_folder(tmp_path / "sparse", [[1, 1, 1]], tried=[{"path": [0, 1, 2, 3], "correct": True}])])
    with pytest.raises(UserError, match="first path of its menu is not the full one"):
        read_table([write_folder(tmp_path / "late", [[1, 1, 1]], routes=ROUTES[::-1])])
    with pytest.raises(UserError, match="distinct, 4 counts"):
        read_table([write_folder(tmp_path / "twice", [[1, 1, 1]], routes=[*ROUTES[:2], ROUTES[1]])])
    adapted = write_folder(tmp_path / "adapted", [[1, 0, 1]], first=5)
    header = json.loads((adapted / HEADER).read_text())
    header["arguments"]["adapters_sha256"] = {"model.safetensors": "0"}
    (adapted / HEADER).write_text(json.dumps(header))
    with pytest.raises(UserError, match=r"adapted and .*good are of different models or adapters"):
        read_table([good, adapted])
    tried = [{"path": to_path(route)} for route in ROUTES]
    with pytest.raises(UserError, match="a tried path has no verdict"):
        read_table([write_folder(tmp_path / "damaged", [[1, 1, 1]], tried=tried)])
