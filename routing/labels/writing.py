"""Writing a label folder: by any number of processes, on any number of machines that share the folder.

The examples are drawn once, into `questions.jsonl`, and searched in groups of fixed boundaries (`spans`). A process
claims a group by a lock, so what a killed one leaves is free again. While a group is searched, each round of verdicts
goes to its journal: whoever claims it next replays them. Finished groups wait in `labels.parts/` until those before
them are finished too, and are then appended to `labels.jsonl`. So the file has the same bytes, whoever made it and
whatever died on the way.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from routing.common.devices import is_first_process
from routing.common.errors import UserError
from routing.common.files import append_text, write_json, write_text
from routing.common.locks import held
from routing.labels.reading import HEADER, LABELS, read_header
from routing.labels.records import parse_label
from routing.labels.spans import group_starts
from routing.scoring.prompting import SETTLED as OF_PROMPTS
from routing.search.results import Verdict
from routing.search.routes import Route
from routing.tasks.drawn import QUESTIONS, DrawnExamples
from routing.tasks.examples import Example

PARTS, LOCK = "labels.parts", ".lock"
# Packages whose release may change a verdict; of another one it is told and the run goes on.
DECIDING = ("torch", "transformers")
INFORMATIVE = ("git_commit",)  # header fields that may differ when a file is continued
SETTLED = ("menu", "shrinking_groups", *OF_PROMPTS)  # header fields that are made once, from what the arguments name
TOGETHER = 1 << 24  # characters of finished groups that are appended at a time
POLL = 0.5  # seconds between looks at groups that other processes are searching


@dataclass
class Group:
    """A claimed group of examples.

    Attributes:
        index: its place in the file.
        examples: its questions.
        path: of its files, but for the suffix.
    """

    index: int
    examples: list[Example]
    path: Path

    @property
    def journal(self) -> Path:
        return self.path.with_suffix(".journal.jsonl")

    @property
    def part(self) -> Path:
        return self.path.with_suffix(".jsonl")

    def read_journal(self) -> dict[tuple[str, Route], Verdict]:
        """Verdicts that a killed process left; a torn last line is dropped."""
        if not self.journal.exists():
            return {}
        verdicts = {}
        content = self.journal.read_bytes()
        for number, line in enumerate(content.split(b"\n")[:-1], 1):
            try:
                verdicts |= {(example, tuple(route)): Verdict(*verdict) for example, route, verdict in json.loads(line)}
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"{self.journal}, line {number}: {error}. The file is damaged; remove it, and the examples in "
                    "flight are searched again."
                ) from error
        if not content.endswith(b"\n"):
            write_text(self.journal, content[: content.rfind(b"\n") + 1].decode())
        return verdicts

    def write_round(self, verdicts: list[tuple[str, Route, Verdict]]) -> None:
        """Note a round of verdicts."""
        append_text(self.journal, json.dumps(verdicts) + "\n")

    @property
    def lock(self) -> Path:
        return self.path.with_suffix(".lock")

    def drop_journal(self) -> None:
        self.journal.unlink(missing_ok=True)


class LabelFolder:
    """A label folder that is being written.

    Args:
        folder: where the files are, or will be.
        header: what makes them; written first, and compared on later runs.
        group_size: examples in a group, at most.
        draw: writes the questions to a given file, if they are not drawn yet.
        settle: makes the header's SETTLED fields, once for all processes and later runs.

    Attributes:
        questions: the examples, on disk.
        header: as it is on disk.

    Raises:
        UserError: if the folder holds labels made otherwise, or a damaged line.
    """

    def __init__(
        self,
        folder: Path,
        header: dict,
        group_size: int,
        draw: Callable[[Path], None],
        settle: Callable[[], dict] = dict,
    ):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with self._lock():
            if (folder / HEADER).exists():
                self._compare(header)
            elif (folder / LABELS).exists():
                raise UserError(f"{folder / LABELS} has no {HEADER} beside it. Give another --output_dir.")
            known = (folder / HEADER).exists()
            # Without a header the questions may be those of other arguments: of a run killed right after drawing.
            if not known:
                shutil.rmtree(folder / PARTS, ignore_errors=True)
            if not known or not (folder / QUESTIONS).exists():
                draw(folder / QUESTIONS)
            if not known:
                write_json(folder / HEADER, header | settle() | {"shrinking_groups": True})
            self.header = read_header(folder)
            self.questions = DrawnExamples(folder / QUESTIONS)
            # Folders of older versions lack the field; parts of theirs have groups of one size.
            self._starts = group_starts(len(self.questions), group_size, self.header.get("shrinking_groups", False))
            self._merged, self._size = 0, 0  # lines of labels.jsonl that were seen, and their bytes
        # Not under the lock: it may take minutes, and whole lines never change.
        if is_first_process():
            self._check(header["num_layers"])
        with self._lock():
            self._merge()

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def group_count(self) -> int:
        return len(self._starts) - 1

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with held(self.folder / LOCK, wait=True):
            yield

    def _span(self, group: int) -> range:
        return range(self._starts[group], self._starts[group + 1])

    @property
    def _next(self) -> int:
        """The group that is merged next."""
        return bisect_left(self._starts, self._merged)

    def _path(self, group: int) -> Path:
        return self.folder / PARTS / f"{group:06d}"

    def _compare(self, header: dict) -> None:
        old = read_header(self.folder)
        old, new = ({**h, **h.get("arguments", {})} for h in (old, header))
        differences = [
            f"{key}: was {old.get(key)!r}, now {new.get(key)!r}"
            for key in sorted(old.keys() | new.keys())
            if key not in (*INFORMATIVE, *SETTLED, "arguments", "versions") and old.get(key) != new.get(key)
        ]
        was, now = old.get("versions") or {}, new.get("versions") or {}
        changed = [name for name in sorted(was.keys() | now.keys()) if was.get(name) != now.get(name)]
        told = {name: f"{name}: was {was.get(name)!r}, now {now.get(name)!r}" for name in changed}
        differences += [text for name, text in told.items() if name in DECIDING]
        if others := [text for name, text in told.items() if name not in DECIDING]:
            print(f"warning: {self.folder} was begun with other versions; {'; '.join(others)}", file=sys.stderr)
        if differences:
            raise UserError(
                f"{self.folder} holds labels made otherwise; {'; '.join(differences)}. Give another --output_dir, "
                "or the same arguments to continue."
            )

    def _check(self, depth: int) -> None:
        """Refuse damaged and foreign lines of what is there; a torn last one is no damage."""
        path = self.folder / LABELS
        if not path.exists():
            return
        questions = iter(self.questions)
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    record = parse_label(line.decode(), depth)
                    example = next(questions, None)
                    if example is None or record["id"] != example.id:
                        raise ValueError(f"it is example {record['id']}, which does not belong here")
                except ValueError as error:
                    raise UserError(
                        f"{path}, line {number}: {error}. The file is damaged or foreign; remove it, or give "
                        "another --output_dir."
                    ) from error

    def _merge(self) -> None:
        """Append what is finished and next in line; the lock is held."""
        self._count(self.folder / LABELS)
        group = self._next
        while group < self.group_count and self._path(group).with_suffix(".jsonl").exists():
            parts, contents = [], []
            # Many at once: to flush a file to disk is what takes time.
            while group < self.group_count and sum(map(len, contents)) < TOGETHER:
                part = self._path(group).with_suffix(".jsonl")
                if not part.exists():
                    break
                parts.append(part)
                contents.append(part.read_text(encoding="utf-8"))
                group += 1
            self._append("".join(contents))
            for part in parts:
                part.unlink()
        if self._merged == len(self):
            shutil.rmtree(self.folder / PARTS, ignore_errors=True)

    def _append(self, content: str) -> None:
        """Append the lines of whole groups; the lock is held."""
        append_text(self.folder / LABELS, content)
        self._merged += content.count("\n")
        self._size += len(content.encode())

    def _count(self, path: Path) -> None:
        """Count the lines that others appended; cut what a killed process left of an unfinished append."""
        if not path.exists() or path.stat().st_size < self._size:
            self._merged, self._size = 0, 0  # Lines that were there are gone.
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._size)
            lines, size = self._merged, self._size
            for line in file:
                if not line.endswith(b"\n"):
                    break
                lines, size = lines + 1, size + len(line)
                if self._starts[bisect_left(self._starts, lines)] == lines:
                    self._merged, self._size = lines, size
        if path.stat().st_size != self._size:
            with path.open("r+b") as file:
                file.truncate(self._size)

    def _parts(self) -> set[int]:
        """Groups that are finished and not merged yet."""
        try:
            return {int(path.stem) for path in (self.folder / PARTS).glob("??????.jsonl")}
        except FileNotFoundError:
            return set()  # All was merged and the folder removed while it was read.

    def finished(self) -> int:
        """Examples that are done, by all processes."""
        parts = (len(self._span(group)) for group in self._parts() if self._starts[group] >= self._merged)
        return self._merged + sum(parts)

    def groups(self) -> Iterator[Group]:
        """Claim one group after the other until all are finished, by this process or by others.

        A group is held while the caller works on it. While other processes hold all that is left, this waits: it
        takes over what a killed one leaves.
        """
        while True:
            with ExitStack() as stack:
                group = self.claim(stack)
                if group is not None:
                    yield group
                    continue
            if self.complete():
                return
            time.sleep(POLL)

    def complete(self) -> bool:
        """Whether all groups are finished and merged."""
        with self._lock():
            self._merge()
        return self._merged == len(self)

    def claim(self, stack: ExitStack, besides: Collection[int] = ()) -> Group | None:
        """A group that nobody works on, held until the stack is closed; None if there is none now.

        Args:
            besides: groups that the caller holds, whose locks need not be tried.
        """
        try:
            (self.folder / PARTS).mkdir(exist_ok=True)
        except FileExistsError:
            return None  # It was there, and was removed, all being merged, before mkdir looked again.
        done = self._parts()
        for index in range(self._next, self.group_count):
            if index in done or index in besides:
                continue
            attempt = stack.enter_context(ExitStack())
            try:
                had = attempt.enter_context(held(self._path(index).with_suffix(".lock"), wait=False))
            except FileNotFoundError:
                return None  # All is merged and the folder removed.
            # Perhaps it was finished, or even merged, since we looked.
            if had and not self._path(index).with_suffix(".jsonl").exists():
                with self._lock():
                    self._merge()
                if self._starts[index] >= self._merged:
                    return Group(index, self.questions.part(self._span(index)), self._path(index))
            attempt.close()
        return None

    def finish(self, group: Group, lines: list[str]) -> None:
        """Keep the lines of a finished group."""
        content = "".join(lines)
        with self._lock():
            self._count(self.folder / LABELS)
            next_in_line = self._starts[group.index] == self._merged
            if next_in_line:  # It needs no file of its own.
                self._append(content)
        if not next_in_line:
            write_text(group.part, content)
        group.drop_journal()
        # Who gets hold of a lock looks whether the group is finished, so this one is needed no more.
        group.lock.unlink(missing_ok=True)
        with self._lock():
            self._merge()
