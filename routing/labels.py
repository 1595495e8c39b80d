"""Label files: what the search found, one JSON line an example, and a header file beside them.

`labels.jsonl` loads with `datasets.load_dataset("json", data_files=…)`. `labels.header.json` says how it was
made; a file is only continued by a run with the same header. While a group of examples is searched, each round
of verdicts goes to `labels.journal.jsonl`: a run that was killed replays them and goes on where it was, so the
finished file has the same bytes as that of an uninterrupted run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from routing.answers import CHECKERS
from routing.errors import UserError
from routing.files import append_text, write_json, write_text
from routing.prompts import SCORINGS
from routing.scoring import Request
from routing.search.mcts import SearchResult
from routing.search.routes import Route, full_route, to_path, to_route
from routing.tasks.examples import Example

LABELS, HEADER, JOURNAL = "labels.jsonl", "labels.header.json", "labels.journal.jsonl"
FORMAT = "dlr-labels-1"
INFORMATIVE = ("git_commit",)  # header fields that may differ when a file is continued


def label_line(request: Request, result: SearchResult) -> str:
    """One line of a label file, with its newline."""
    example = request.example
    depth = len(result.root.route)
    route = full_route(depth) if result.best is None else result.best
    record = {
        "id": example.id,
        "dataset": example.dataset,
        "prompt": request.prompt,
        "question": example.question,
        "answer": example.answer,
        "choices": list(example.choices),
        "accepted": list(example.accepted),
        "gold": example.gold,
        "checker": example.checker,
        "scoring": request.scoring,
        "base_correct": result.base_correct,
        "correct": result.best is not None,
        "route": list(route),
        "path": to_path(route),
        "valid_paths": [to_path(tried) for tried, right in result.verdicts.items() if right],
        "tried": [{"path": to_path(tried), "correct": right} for tried, right in result.verdicts.items()],
        "evaluations": len(result.verdicts),
    }
    return json.dumps(record, ensure_ascii=False) + "\n"


def example_of(record: dict) -> Example:
    """The question of a label record."""
    return Example(
        dataset=record["dataset"],
        question=record["question"],
        answer=record["answer"],
        choices=tuple(record["choices"]),
        gold=record["gold"],
        checker=record["checker"],
        accepted=tuple(record["accepted"]),
    )


FIELDS = {
    "id": str,
    "dataset": str,
    "prompt": str,
    "question": str,
    "answer": str,
    "choices": list,
    "accepted": list,
    "gold": (int, type(None)),
    "checker": str,
    "scoring": str,
    "base_correct": bool,
    "correct": bool,
    "route": list,
    "path": list,
    "valid_paths": list,
    "tried": list,
    "evaluations": int,
}


def parse_label(line: str, depth: int) -> dict:
    """Record of a line; raises a ValueError that says what is wrong with it."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"it is a {type(record).__name__}, no object")
    for name, kind in FIELDS.items():
        if name not in record:
            raise ValueError(f'it has no field "{name}"')
        if not isinstance(record[name], kind):
            raise ValueError(f'"{name}" is {record[name]!r}')
    for name in ("route", "path"):
        if not all(type(number) is int for number in record[name]):
            raise ValueError(f'"{name}" must hold whole numbers, got {record[name]!r}')
    if record["scoring"] not in SCORINGS[1:] or record["checker"] not in CHECKERS:
        raise ValueError(f'unknown "scoring" {record["scoring"]!r} or "checker" {record["checker"]!r}')
    if record["choices"] and (record["gold"] is None or not 0 <= record["gold"] < len(record["choices"])):
        raise ValueError(f'"gold" {record["gold"]!r} is no index of "choices"')
    if record["scoring"] != "generate" and not record["choices"]:
        raise ValueError(f'"choices" is empty, which the scoring {record["scoring"]!r} needs')
    if len(record["route"]) != depth:
        raise ValueError(f'"route" has {len(record["route"])} counts; the model has {depth} layers')
    if set(record["route"]) - {0, 1, 2}:
        raise ValueError(f'"route" has counts other than 0, 1 and 2: {record["route"]}')
    if to_route(record["path"], depth) != tuple(record["route"]):
        raise ValueError('"path" and "route" do not agree')
    return record


def read_header(folder: Path) -> dict:
    """Header of a label folder.

    Raises:
        UserError: if the folder holds no label file or the header is damaged.
    """
    path = folder / HEADER
    if not path.is_file():
        raise UserError(f"{folder} holds no labels ({HEADER} is missing). Make them with data_generation.py.")
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
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
                    yield parse_label(line.decode(), depth)
                except ValueError as error:
                    raise UserError(
                        f"{path}, line {number}: {error}. The file is damaged or foreign; remove it and run "
                        "data_generation.py again."
                    ) from error
    if not number:
        raise UserError(f"{path} holds no labels yet. Run data_generation.py to its end.")


class LabelWriter:
    """Continues a label folder, group by group.

    Examples are searched in groups of fixed boundaries; a group's lines are appended together once it is
    finished. What a killed run left of an unfinished append is cut off and written again from the journal.

    Args:
        folder: where the files are, or will be.
        header: what made them; written first, and compared on later runs.
        ids: ids of all examples, in order.
        group_size: examples in a group.

    Raises:
        UserError: if the folder holds labels made otherwise, or a damaged line.
    """

    def __init__(self, folder: Path, header: dict, ids: list[str], group_size: int):
        self.folder, self.ids, self.group_size = folder, ids, group_size
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / HEADER).exists():
            self._compare(header)
        elif (folder / LABELS).exists():
            raise UserError(f"{folder / LABELS} has no {HEADER} beside it. Give another --output_dir.")
        else:
            write_json(folder / HEADER, header)
        self.written = self._recover(header["num_layers"])
        if self.written == len(ids):
            self.journal.unlink(missing_ok=True)  # Left by a kill right after the last append.

    def _compare(self, header: dict) -> None:
        old = read_header(self.folder)
        old, new = ({**h, **h.get("arguments", {})} for h in (old, header))
        differences = [
            f"{key}: was {old.get(key)!r}, now {new.get(key)!r}"
            for key in sorted(old.keys() | new.keys())
            if key not in (*INFORMATIVE, "arguments") and old.get(key) != new.get(key)
        ]
        if differences:
            raise UserError(
                f"{self.folder} holds labels made otherwise; {'; '.join(differences)}. Give another --output_dir, "
                "or the same arguments to continue."
            )

    def _recover(self, depth: int) -> int:
        """How many examples are done; cuts the file to whole groups, refuses damaged lines."""
        path = self.folder / LABELS
        if not path.exists():
            return 0
        kept, done, boundary, finished = 0, 0, 0, 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break  # A torn append: the run was killed while writing.
                try:
                    record = parse_label(line.decode(), depth)
                    if number > len(self.ids) or record["id"] != self.ids[number - 1]:
                        raise ValueError(f"it is example {record['id']}, which does not belong here")
                except ValueError as error:
                    raise UserError(
                        f"{path}, line {number}: {error}. The file is damaged or foreign; remove it, or give "
                        "another --output_dir."
                    ) from error
                done, boundary = number, boundary + len(line)
                if done % self.group_size == 0 or done == len(self.ids):
                    kept, finished = boundary, done
        if path.stat().st_size != kept:
            with path.open("r+b") as file:
                file.truncate(kept)
        return finished

    @property
    def journal(self) -> Path:
        return self.folder / JOURNAL

    def read_journal(self) -> dict[tuple[str, Route], bool]:
        """Verdicts of the unfinished group that a killed run left; a torn last line is dropped."""
        if not self.journal.exists():
            return {}
        verdicts = {}
        content = self.journal.read_bytes()
        for number, line in enumerate(content.split(b"\n")[:-1], 1):
            try:
                verdicts |= {(example, tuple(route)): correct for example, route, correct in json.loads(line)}
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"{self.journal}, line {number}: {error}. The file is damaged; remove it, and the examples in "
                    "flight are searched again."
                ) from error
        if not content.endswith(b"\n"):
            write_text(self.journal, content[: content.rfind(b"\n") + 1].decode())
        return verdicts

    def write_round(self, verdicts: list[tuple[str, Route, bool]]) -> None:
        """Note a round of verdicts of the group being searched."""
        append_text(self.journal, json.dumps(verdicts) + "\n")

    def write_group(self, lines: list[str]) -> None:
        """Append the lines of a finished group and forget its journal."""
        append_text(self.folder / LABELS, "".join(lines))
        self.written += len(lines)
        self.journal.unlink(missing_ok=True)
