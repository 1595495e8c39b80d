"""Reading label folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from routing.common.errors import UserError
from routing.common.files import sha256
from routing.common.user_files import read_json
from routing.labels.records import parse_label

LABELS, HEADER = "labels.jsonl", "labels.header.json"
FORMAT = "dlr-labels-1"


def read_header(folder: Path) -> dict:
    """Header of a label folder.

    Raises:
        UserError: if the folder holds no label file or the header is damaged.
    """
    path = folder / HEADER
    if not path.is_file():
        raise UserError(f"{folder} holds no labels ({HEADER} is missing). Make them with data_generation.py.")
    try:
        header = read_json(path)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}). Make the labels again with data_generation.py.") from error
    needed = {"num_layers", "model", "arguments"}
    if not isinstance(header, dict) or header.get("format") != FORMAT or needed - header.keys():
        raise UserError(f"{path} is not a header of this project's label files (format {FORMAT}).")
    return header


def read_labels(folder: Path) -> Iterator[dict]:
    """Checked records of a label folder, streamed.

    Raises:
        UserError: for a damaged or foreign line, with its number, and for an empty file.
    """
    depth = read_header(folder)["num_layers"]
    path = folder / LABELS
    number = 0
    if path.is_file():
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield parse_label(line.decode("utf-8-sig" if number == 1 else "utf-8"), depth)
                except ValueError as error:
                    raise UserError(
                        f"{path}, line {number}: {error}. The file is damaged or foreign; remove it and run "
                        "data_generation.py again."
                    ) from error
    if not number:
        raise UserError(f"{path} holds no labels yet. Run data_generation.py to its end.")


def label_hashes(folders: list[Path]) -> dict[str, str]:
    """SHA-256 of the label file of each folder."""
    return {str(folder): sha256(folder / LABELS) for folder in folders}
