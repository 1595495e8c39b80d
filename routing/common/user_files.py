"""Files that users bring, read in one place: lines of text, records (JSON lines, JSON list, CSV, Parquet), JSON, YAML.

Taken are UTF-8 with or without a byte order mark, and line ends of Unix and Windows. All else is refused with file,
line and remedy. Memory stays small, however long the file.
"""

from __future__ import annotations

import csv
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import yaml

from routing.common import strict_json
from routing.common.errors import UserError
from routing.common.json_stream import JsonStream

LONGEST = 16 << 20  # bytes of a line
LOOKED_AT = 10_000  # records of a file that are looked at with the arguments
TABLES = (".csv", ".tsv", ".parquet")
RECORDS = (".jsonl", ".json", ".ndjson", *TABLES)  # ends of names of files that hold records


class Cell(str):
    """A cell of CSV: a text, which does not say whether a number is meant."""


def text_lines(path: Path, blank: bool = False) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1, without line end.

    Args:
        blank: whether blank ones are among them.

    Raises:
        UserError: for a file that cannot be read, or is no UTF-8 text of lines of a length that one can hold.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), 1):
                if number == 1:
                    line = line.removeprefix(BOM_UTF8)
                try:
                    text = _decoded(line, number)
                except ValueError as error:
                    raise UserError(f"{path}, line {number}: {error}.") from error
                if blank or text.strip():
                    yield number, text.rstrip("\r\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from error


def _decoded(line: bytes, number: int) -> str:
    if number == 1 and (line.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) or line[:4].count(0) > 1):
        raise ValueError("the file is UTF-16 or UTF-32; save it as UTF-8, by iconv -f UTF-16 -t UTF-8 OLD > NEW say")
    if len(line) > LONGEST:
        raise ValueError(f"it is longer than {LONGEST >> 20} MiB; give each record or passage a line of its own")
    if number == 1 and b"\r" in line.rstrip(b"\r\n") and b"\n" not in line:
        raise ValueError(r"its lines end in CR alone, as on old Macs; convert it, by tr '\r' '\n' < OLD > NEW say")
    if b"\0" in line:
        raise ValueError("it holds a null byte, which no text has; the file is damaged or of another kind")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"it is no UTF-8 ({error.reason} at its byte {error.start}); save the file as UTF-8, by "
            "iconv -f LATIN1 -t UTF-8 OLD > NEW say"
        ) from error


def records(path: Path, wanted: str) -> Iterator[tuple[str, object]]:
    """Records with their places, "FILE, line N": of JSON lines, of a JSON list, or rows of CSV (.csv, .tsv) or Parquet.

    Rows of tables are objects of their columns without empty cells. A cell of CSV that is a JSON list is that list.

    Args:
        wanted: what a record must be, for errors.

    Raises:
        UserError: for what is no such record.
    """
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    if path.suffix in TABLES:
        yield from _csv(path, wanted)
        return
    if _first_sign(path) == b"[":
        yield from _list(path, wanted)
        return
    for number, line in text_lines(path):
        try:
            record = strict_json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}; {wanted}.") from error
        yield f"{path}, line {number}", record


def beginning_problems(path: Path, reading: Iterable) -> list[str]:
    """What is wrong with the beginning of a file, to be told with the arguments; what stands further on is told when it
    is read. Of Parquet nothing, which takes seconds of imports.

    Args:
        reading: goes through what the file holds, and raises a UserError at what is wrong.
    """
    try:
        for _ in islice(reading if path.suffix != ".parquet" else (), LOOKED_AT):
            pass
    except UserError as error:
        return [str(error).removesuffix(".")]
    return []


def _first_sign(path: Path) -> bytes:
    """The first byte that is no white space; empty where there is none, or the file cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(len(BOM_UTF8))
            start = start.removeprefix(BOM_UTF8).lstrip()
            while not start and (start := file.read(1 << 16)):
                start = start.lstrip()
            return start[:1]
    except OSError:
        return b""  # Whoever reads its lines says so.


def _list(path: Path, wanted: str) -> Iterator[tuple[str, object]]:
    """Items of a JSON list that may stretch over many lines."""
    with path.open(encoding="utf-8-sig") as file:
        stream = JsonStream(file, LONGEST, strict_json.DECODER)
        try:
            items = stream.items()
            while (item := next(items, stream)) is not stream:
                yield f"{path}, line {stream.item_line}", strict_json.check_texts(item)
            if stream.peek():
                raise ValueError("something follows the end of the list")
        except (ValueError, RecursionError) as error:  # No UTF-8 is a ValueError too.
            raise UserError(f"{path}, line {stream.line}: {error}; {wanted}.") from error


def _csv(path: Path, wanted: str) -> Iterator[tuple[str, object]]:
    lines = text_lines(path, blank=True)  # A cell in quotes may hold some; between rows csv leaves them out.
    numbers = [0]

    def texts() -> Iterator[str]:
        for number, line in lines:
            numbers[0] = number
            yield f"{line}\n"  # A cell in quotes may go on in the next line.

    rows = csv.DictReader(texts(), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
    try:
        for row in rows:
            if None in row or None in row.values():
                raise ValueError(f"it has not the {len(rows.fieldnames)} cells of the columns")
            cells = {name: _cell(value) for name, value in row.items()}
            yield f"{path}, line {numbers[0]}", {name: value for name, value in cells.items() if value != ""}
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}, line {numbers[0]}: {error}; {wanted}.") from error


def _cell(text: str):
    """A cell: a list in JSON, or a text."""
    if text.startswith("["):
        try:
            return strict_json.loads(text)
        except ValueError:
            pass
    return Cell(text)


def _parquet(path: Path) -> Iterator[tuple[str, object]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError
    from pyarrow import ArrowException

    try:
        rows = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        for number, row in enumerate(rows, 1):
            yield f"{path}, row {number}", {name: value for name, value in row.items() if value is not None}
    except (OSError, ArrowException, DatasetGenerationError) as error:
        raise UserError(f"{path} cannot be read as Parquet ({error}).") from error


def read_json(path: Path):
    """The value of a JSON file.

    Raises:
        ValueError: says what is wrong with the file, which it does not name.
    """
    return strict_json.loads(read_text(path))


class _Yaml(yaml.SafeLoader):
    """Safe YAML in which no key is there twice."""


def _mapping(loader: _Yaml, node: yaml.MappingNode) -> dict:
    seen = set()
    for key, _ in node.value:  # Before what << merges comes in: that may be overridden.
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"line {line}: a key must be a text, not a list or mapping")
        if key.value in seen:
            raise ValueError(f"line {line}: the key {key.value!r} is there twice")
        seen.add(key.value)
    loader.flatten_mapping(node)
    return {loader.construct_object(key): loader.construct_object(value, deep=True) for key, value in node.value}


_Yaml.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: Path):
    """The value of a YAML file.

    Raises:
        UserError: if it cannot be read, is no YAML, or has a key twice.
    """
    try:
        return yaml.load(read_text(path), _Yaml)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error


def read_text(path: Path) -> str:
    """Text of a file that is short enough for memory.

    Raises:
        ValueError: says what is wrong with the file, which it does not name.
    """
    try:
        with path.open("rb") as file:
            content, part = b"", b" "
            while part and len(content) <= LONGEST:  # To ask for all at once takes the memory of the longest file.
                content += (part := file.read(1 << 20))
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    return _decoded(content.removeprefix(BOM_UTF8), 1).replace("\r\n", "\n")
