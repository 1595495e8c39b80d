"""Files of users: what is taken in every reader, and what is refused with file, line and remedy."""

from __future__ import annotations

import json
import os
import threading
import tracemalloc
from pathlib import Path

import datasets
import pytest

from routing.commands.show import make_parser, text_of
from routing.commands.sweep import read_grid
from routing.common import user_files
from routing.common.cli import expanded
from routing.common.errors import UserError
from routing.common.user_files import read_json, records, text_lines
from routing.labels.reading import FORMAT, HEADER, LABELS, read_header, read_labels
from routing.search.menu import read_routes
from routing.tasks import load_examples, name_of_file, unknown_names
from routing.tasks.corpora import corpus_problems, passages
from routing.tasks.local import local_examples
from routing.tasks.prompt_files import is_prompt_file, prompt_file
from routing.training.language_model.configurations import read_fields

LONG = "word " * 30


def questions(path):
    return sorted((example.question, example.answer) for example in load_examples(str(path), "search", None, seed=0))


def corpus(path):
    return sorted(text for part in ("train", "validation", "test") for text in some(path, part))


def some(path, part):
    try:
        return passages(str(path), part)
    except UserError as error:
        if "no " + part in str(error):
            return []
        raise


def labels(path):
    """Labels in the place of a path: the folder that it is in."""
    header = {"format": FORMAT, "num_layers": 1, "model": "m", "arguments": {}}
    (path.parent / HEADER).write_text(json.dumps(header))
    path.replace(path.parent / LABELS)
    return list(read_labels(path.parent))


# Each reader of records: a function, and lines that it takes.
READERS = {
    "questions": (questions, [{"question": "2 + 3?", "answer": 5}, {"question": "Où?", "answer": "là"}]),
    "corpus": (corpus, [{"text": f"{LONG}é{n}"} for n in range(12)]),
    "prompts": (prompt_file, [{"prompt": "Où?"}, {"prompt": "Hm"}]),
}
BOM = "\ufeff"


def written(path, lines, encoding="utf-8", end="\n", start=""):
    text = start + "".join(json.dumps(line, ensure_ascii=False) + end for line in lines)
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("reader", READERS)
def test_marks_line_ends_lists_and_tables_change_nothing(tmp_path, reader):
    read, lines = READERS[reader]
    plain = read(written(tmp_path / "own.jsonl", lines))
    assert len(plain) == len(lines)
    assert read(written(tmp_path / "own.jsonl", lines, start=BOM)) == plain
    assert read(written(tmp_path / "own.jsonl", lines, end="\r\n", start=BOM)) == plain
    for name in ("own.json", "own.jsonl"):  # a list, on one line and on many
        for indent in (None, 2):
            (tmp_path / name).write_text(BOM + json.dumps(lines, indent=indent), encoding="utf-8")
            assert read(tmp_path / name) == plain
    columns = list(lines[0])
    for suffix, sign in (("csv", ","), ("tsv", "\t")):
        rows = [sign.join(columns), *(sign.join(f'"{line[name]}"' for name in columns) for line in lines)]
        (tmp_path / f"own.{suffix}").write_text(BOM + "\r\n".join(rows), encoding="utf-8", newline="")
        assert read(tmp_path / f"own.{suffix}") == plain
    texts = [{name: str(value) for name, value in line.items()} for line in lines]  # a column has one type
    datasets.Dataset.from_list(texts).to_parquet(tmp_path / "own.parquet")
    assert len(read(tmp_path / "own.parquet")) == len(plain)


BAD = {
    "half a surrogate": (b'"\\ud83d here"', "half of a character"),
    "an escaped null": (b'"a\\u0000b"', "null character"),
    "a null byte": (b'"a\0b"', "null byte"),
    "latin 1": ('"café"'.encode("latin-1"), "no UTF-8.*iconv -f LATIN1"),
    "NaN": (b"NaN", "NaN is no number"),
    "Infinity": (b"-Infinity", "-Infinity is no number"),
    "a number too large": (b"1e999", "1e999 is too large"),
    "nesting": (b"[" * 100_000, "nested too deeply|recursion depth"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("what", BAD)
def test_what_is_no_json_is_refused_with_its_line(tmp_path, reader, what):
    read, lines = READERS[reader]
    value, message = BAD[what]
    first = json.dumps(lines[0]).encode()
    for key in [*lines[0], "other"]:
        line = b"{" + b", ".join(f'"{k}": '.encode() + value for k in [key]) + b"}"
        for name, content in (("own.jsonl", first + b"\n" + line), ("own.json", b"[" + first + b",\n" + line + b"]")):
            (tmp_path / name).write_bytes(content)
            if name == "own.json" and what in ("a null byte", "latin 1"):
                continue  # Read as a text: test_lists_that_are_no_text.
            with pytest.raises(UserError, match=rf"own\.jsonl?, line 2: .*({message})"):
                read(tmp_path / name)


@pytest.mark.parametrize("reader", READERS)
def test_keys_that_are_there_twice(tmp_path, reader):
    read, lines = READERS[reader]
    twice = json.dumps(lines[0])[:-1] + f", {json.dumps(lines[1])[1:]}"
    name = next(iter(lines[0]))
    for start, sign, end in (("", "\n", ""), ("[", ",\n", "]")):
        (tmp_path / "own.jsonl").write_text(f"{start}{json.dumps(lines[0])}{sign}{twice}{end}")
        with pytest.raises(UserError, match=f"line 2: the key '{name}' is there twice"):
            read(tmp_path / "own.jsonl")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("encoding", ("utf-16", "utf-16-le", "utf-16-be", "utf-32"))
@pytest.mark.parametrize("name", ("own.jsonl", "own.csv"))
def test_utf_16_is_refused_with_the_remedy(tmp_path, reader, encoding, name):
    read, lines = READERS[reader]
    path = written(tmp_path / name, lines, encoding)
    with pytest.raises(UserError, match=f"{name}, line 1: the file is UTF-16 or UTF-32.*iconv"):
        read(path)


def test_lists_that_are_no_text(tmp_path):
    first = json.dumps({"prompt": "a"}).encode()
    for value in (b'"a\0b"', '"café"'.encode("latin-1")):
        (tmp_path / "own.json").write_bytes(b"[" + first + b',\n{"prompt": ' + value + b"}]")
        with pytest.raises(UserError, match=r"own\.json, line \d"):
            prompt_file(tmp_path / "own.json")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("shape", ('{"text": "%s"}\n', '[{"text": "%s"}]'))
def test_a_line_of_100_mb_needs_no_memory(tmp_path, reader, shape, monkeypatch):
    """Refused, with a limit that is small here: what is held is some times the limit, not the line."""
    monkeypatch.setattr(user_files, "LONGEST", 1 << 16)
    (tmp_path / "own.jsonl").write_text(shape % ("x" * (20 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="line 1: .*is longer than"):
            READERS[reader][0](tmp_path / "own.jsonl")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_text_files(tmp_path):
    path = tmp_path / "own.txt"
    lines = [f"{LONG}é{n} " for n in range(9)]
    path.write_bytes((BOM + "\r\n\r\n".join(lines)).encode())
    assert [line for _, line in text_lines(path)] == lines
    assert corpus(path) == sorted(line.strip() for line in lines), "a byte order mark is no part of the text"
    assert prompt_file(path) == lines and is_prompt_file(str(path))
    path.write_bytes(b"fine\n" + "Un café\n".encode("latin-1"))
    for read in (corpus, prompt_file):
        with pytest.raises(UserError, match=r"own\.txt, line 2: it is no UTF-8"):
            read(path)


def test_tables(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(
        'question,answer,choices\n"Which, then?",b,"[""a"", ""b""]"\n"On\ntwo lines",007,\nHow many?,7,\n',
    )
    found = {example.question: example for example in load_examples(str(path), "search", None, seed=0)}
    assert found["Which, then?"].choices == ("a", "b") and found["Which, then?"].gold == 1
    assert (found["On\ntwo lines"].answer, found["On\ntwo lines"].checker) == ("007", "exact")
    assert (found["How many?"].answer, found["How many?"].checker) == ("7", "number")
    path.write_text("question,answer\nfine,1\nshort\n")
    with pytest.raises(UserError, match=r"own\.csv, line 3: it has not the 2 cells"):
        questions(path)
    path.write_text("frage,antwort\nfine,1\n")
    with pytest.raises(UserError, match=r'own\.csv, line 2: "question" must be a text'):
        questions(path)
    (tmp_path / "own.parquet").write_bytes(b"no such thing")
    with pytest.raises(UserError, match=r"own\.parquet cannot be read as Parquet"):
        questions(tmp_path / "own.parquet")
    path.write_text("question,answer,text\nfine,1,a passage\n")
    assert not unknown_names(str(path)) and not corpus_problems("corpus", str(path))
    path.write_text("question\nno answer\n")
    assert "line 2" in unknown_names(str(path))[0] and "line 2" in corpus_problems("corpus", str(path))[0]
    assert not unknown_names(str(tmp_path / "own.parquet")), "that is read later: it takes imports of seconds"


def test_labels_are_read_as_strictly(tmp_path):
    label = {"id": "x"}
    for line, message in ((b'{"id": NaN}', "NaN"), (b'{"id": "\\ud83d"}', "half"), (b'{"a": 1, "a": 2}', "twice")):
        (tmp_path / "own").write_bytes(line)
        with pytest.raises(UserError, match=f"line 1: .*{message}"):
            labels(tmp_path / "own")
    written(tmp_path / "own", [label], start=BOM)
    with pytest.raises(UserError, match="line 1: it has no field"):  # read, past the mark
        labels(tmp_path / "own")
    (tmp_path / HEADER).write_text('{"format": "a", "format": "b"}')
    with pytest.raises(UserError, match="twice"):
        read_header(tmp_path)


def test_menus(tmp_path):
    path = tmp_path / "menu.json"
    path.write_text(BOM + "[[0, 1],\r\n[1]]", encoding="utf-8")
    assert read_routes(path, 2) == [(1, 1), (0, 1)]
    for content, message in ((b'{"routes": [[1, 1]], "routes": []}', "twice"), (b"[[NaN]]", "NaN")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"menu.json.*{message}"):
            read_routes(path, 2)
    path.write_text("[[0]]", encoding="utf-16")
    with pytest.raises(ValueError, match="menu.json.*UTF-16"):
        read_routes(path, 2)
    with pytest.raises(ValueError, match="No such file"):
        read_json(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("read", "content"),
    (
        (lambda path: expanded([str(path)]), "objective: gumbel"),
        (lambda path: read_grid(path), "runs: [{objective: gumbel}]"),
        (lambda path: read_fields(path), "hidden_size: 8"),
    ),
    ids=("arguments", "grid", "configuration"),
)
def test_yaml_files(tmp_path, read, content):
    path = tmp_path / "own.yaml"
    path.write_text(content)
    plain = read(path)
    path.write_bytes((BOM + content + "\r\n").encode())
    assert read(path) == plain
    path.write_text(content, encoding="utf-16")
    with pytest.raises(UserError, match=r"own\.yaml cannot be read: the file is UTF-16"):
        read(path)
    path.write_text(f"{content}\n{content}\n")
    with pytest.raises(UserError, match=r"own\.yaml cannot be read: line 2: the key '\w+' is there twice"):
        read(path)
    with pytest.raises(UserError, match=r"none\.yaml cannot be read: No such file"):
        read(tmp_path / "none.yaml")


def test_texts_of_show(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes((BOM + "one\r\ntwo").encode())
    arguments = make_parser().parse_args(["checkpoint", "--file", str(path)])
    assert text_of(arguments) == "one\ntwo"
    path.write_text("one", encoding="utf-16")
    with pytest.raises(UserError, match="cannot be read as text.*UTF-16"):
        text_of(arguments)


def test_a_file_named_like_a_data_set_is_not_that_data_set(tmp_path):
    assert name_of_file(tmp_path / "mine.jsonl") == "mine"
    path = written(tmp_path / "arithmetic.jsonl", [{"question": "2 + 3 =", "answer": 5}])
    (example,) = load_examples(str(path), "search", None, seed=0)
    assert example.dataset == "arithmetic.jsonl" and not example.shots


def test_records_tell_their_lines(tmp_path):
    path = tmp_path / "own.json"
    path.write_text('[\n\n{"a":\n1},\n{"b": 2}]\n')
    assert [place.rpartition(" ")[2] for place, _ in records(path, "")] == ["3", "5"]
    path.write_text('[{"a": 1}]\n{"b": 2}')
    with pytest.raises(UserError, match="line 2: something follows"):
        list(records(path, ""))


def test_only_a_first_word_without_a_dash_is_a_file_of_arguments(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("pattern: [gdn, softmax]\n")  # a configuration, which is no file of arguments
    words = [f"--config={path}", "--objective", "lm"]
    assert expanded(words) == words
    with pytest.raises(UserError, match="must hold one `name: value` a line"):
        expanded([str(path), *words])


def examples(path: Path) -> list:
    return list(local_examples(path, "own"))


def test_cells_of_csv_keep_blank_lines_and_what_looks_like_a_number(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text('question,answer,choices\n"First.\n\nSecond.",yes,\n1234,12,\n5 + 5 =,007,\n')
    found = examples(path)
    assert [(e.question, e.answer, e.checker) for e in found] == [
        ("First.\n\nSecond.", "yes", "exact"), ("1234", "12", "number"), ("5 + 5 =", "007", "exact"),
    ]  # fmt: skip
    assert {type(text) for e in found for text in (e.question, e.answer)} == {str}
    # The right choice itself goes before an index; an index is one where no choice has that text.
    path.write_text('question,answer,choices\nA?,2,"[""1"", ""2"", ""3""]"\nB?,2,"[""x"", ""y"", ""z""]"\n')
    assert [e.answer for e in examples(path)] == ["2", "z"]


def test_a_long_list_on_one_line_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(user_files, "LONGEST", 1000)
    path = tmp_path / "own.json"
    path.write_text(json.dumps([{"question": f"{number}?", "answer": "a"} for number in range(200)]))
    assert path.stat().st_size > 5000 and len(examples(path)) == 200


def test_lines_that_end_in_cr_alone_are_refused(tmp_path):
    path = tmp_path / "own.txt"
    path.write_bytes(b"one\rtwo\r")
    with pytest.raises(UserError, match="line 1: its lines end in CR alone"):
        list(user_files.text_lines(path))


def test_a_text_from_a_pipe_is_read_whole(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("hello world, and more",))
    writer.start()
    assert user_files.read_text(pipe) == "hello world, and more"
    writer.join()


def test_yaml_merges_may_be_overridden_and_keys_are_texts(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("base: &b {a: 1, c: 2}\nown:\n  <<: *b\n  a: 3\n")
    assert user_files.read_yaml(path)["own"] == {"a": 3, "c": 2}
    path.write_text("own:\n  [1, 2]: 3\n")
    with pytest.raises(UserError, match="line 2: a key must be a text"):
        user_files.read_yaml(path)
