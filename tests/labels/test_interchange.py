"""Labels to PoLar's files and back, data set cards, and uploading with a stand-in for the hub."""

from __future__ import annotations

import functools
import json
import runpy
import sys
import tracemalloc
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from conftest import save_tiny_base
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from transformers import AutoTokenizer

from routing.commands import labels as main_module
from routing.commands import train
from routing.commands.labels import main
from routing.common import json_stream
from routing.common.errors import UserError
from routing.common.files import write_json, write_text
from routing.labels import polar_export, polar_import
from routing.labels.polar import SAMPLES, dataset_of, find_files, read_samples
from routing.labels.polar_export import NOTE
from routing.labels.polar_import import FileCounts, path_fault
from routing.labels.reading import FORMAT, HEADER, LABELS, read_header, read_labels
from routing.labels.records import FIELDS, label_line
from routing.models.families import load_base_config, load_tokenizer
from routing.report.card_labels import CARD, SCHEMA, complete_card, count_labels, size_category
from routing.scoring.requests import Request
from routing.search.results import SearchResult, Verdict
from routing.search.routes import full_route, to_route
from routing.tasks.examples import Example, split_of
from routing.tasks.prompts import build_prompt
from routing.training.routers.arguments import TrainArguments
from routing.training.routers.data import load_training_data

LAYERS = 4
FULL = list(range(LAYERS))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_tiny_base(
        tmp_path_factory.mktemp("models") / "tiny",
        LAYERS,
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_key_value_heads=1,
    )


@pytest.fixture(autouse=True)
def _one_tokenizer(monkeypatch):
    """Commands find the tokenizer that an earlier one loaded: half of their time."""
    monkeypatch.setattr(main_module, "load_tokenizer", tokenizer_once)


@functools.cache
def tokenizer_once(name: str):
    return load_tokenizer(name)


def questions(count: int, split: str = "search", ending: str = "") -> list[str]:
    """Different questions that belong to a split of DART-Math."""
    found = (f"What is {number} plus one?{ending}" for number in range(100_000))
    chosen = (text for text in found if split_of(Example("dart-1", text, "x")) == split)
    return [next(chosen) for _ in range(count)]


QUESTIONS = questions(40)
(LONG,) = questions(1, ending=" one" * 3000)


def example(level: int, index: int) -> Example:
    return Example(f"dart-{level}", QUESTIONS[index], rf"\frac{{{index}}}{{7}} é", checker="boxed")


def line(asked: Example, *tried: tuple, prompt: str = "?", scoring: str = "generate") -> str:
    """Label of (path, right) pairs, the full path first."""
    verdicts = {to_route(path, LAYERS): Verdict(*verdict) for path, *verdict in tried}
    return label_line(Request(asked, scoring, prompt, ()), SearchResult(verdicts))


def make_header(model: str, **more) -> dict:
    header = {"format": FORMAT, "model": model, "num_layers": LAYERS, "git_commit": "abc", "versions": {"torch": "2"}}
    return header | {"arguments": {"apply_chat_template": False, "seed": 0}} | more


def write_labels(folder: Path, lines: list[str], model: str = "org/tiny", **more) -> Path:
    write_json(folder / HEADER, make_header(model, **more))
    write_text(folder / LABELS, "".join(lines))
    return folder


def dart_lines() -> list[str]:
    """Wrong answers fixed, right ones with shorter paths, ties, repeats, one that nothing answers, of two levels."""
    return [
        line(example(1, 0), (FULL, True), ([0, 1, 3], False), ([0, 2, 3], True), ([0, 1, 2], True)),
        line(example(3, 1), (FULL, False), ([0, 1, 1, 2, 3], True), ([0, 1, 2], False)),
        line(example(1, 2), (FULL, False), ([1, 2, 3], False)),
        line(example(3, 3), (FULL, True)),
        line(example(1, 4), (FULL, False), ([0, 0, 3], True), ([0, 3, 3], True), ([1, 2, 3], True)),
    ]


def write_samples(folder: Path, samples: list, level: int = 1) -> Path:
    """A file where PoLar expects it below a model folder."""
    path = folder / f"dart-math-diff-{level}" / SAMPLES
    write_text(path, json.dumps({"samples": samples}))
    return path


def sample(index: int, valid: list, invalid: list, score: object = 0.0, **more) -> dict:
    return {
        "question": QUESTIONS[index],
        "gt_ans": str(index),
        "initial_score": score,
        "final_valid_transitions": valid,
        "final_invalid_transitions": invalid,
    } | more


def bring(path: Path, output: Path, base: Path, *more) -> list[dict]:
    """Records of an import."""
    main(["import", "--format", "polar", str(path), str(output), "--model", str(base), *map(str, more)])
    return list(read_labels(output))


def error_of(*arguments) -> str:
    with pytest.raises(UserError) as caught:
        main([str(argument) for argument in arguments])
    return str(caught.value)


def test_export_by_hand(tmp_path, capsys):
    lines = [
        line(example(1, 0), (FULL, True), ([0, 1, 3], False), ([0, 2, 3], True)),
        line(example(5, 1), (FULL, False), ([0, 1, 1, 2, 3], True), ([0, 1, 2], False, None, True)),
        line(Example("sums", "1 + 1 =", "2", checker="number"), (FULL, True), ([0, 1], False)),
        line(
            Example("quiz", "Which?", "no", ("yes", "no"), 1, "letter"),
            (FULL, True, 0.5),
            ([1], False, -0.5),
            scoring="loglikelihood",
        ),
        line(example(1, 2), (FULL, False)),
    ]
    labels = write_labels(tmp_path / "labels", lines)
    main(["export", "--format", "polar", str(labels), str(tmp_path / "out")])
    files = {str(file.parent.relative_to(tmp_path / "out")): file for file in (tmp_path / "out").rglob(SAMPLES)}
    assert set(files) == {"tiny/dart-math-diff-1", "tiny/dart-math-diff-5", "tiny/sums", "tiny/quiz"}
    read = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items()}
    assert read["tiny/dart-math-diff-1"] == {
        "samples": [
            {
                "question": QUESTIONS[0],
                "gt_ans": r"\frac{0}{7} é",
                "initial_score": 1.0,
                "final_valid_transitions": [[0, 1, 2, 3], [0, 2, 3]],
                "final_invalid_transitions": [[0, 1, 3]],
            },
            {
                "question": QUESTIONS[2],
                "gt_ans": r"\frac{2}{7} é",
                "initial_score": 0.0,
                "final_valid_transitions": [],
                "final_invalid_transitions": [[0, 1, 2, 3]],
            },
        ]
    }
    lucky = read["tiny/dart-math-diff-5"]["samples"][0]
    assert lucky["final_invalid_transitions"] == [FULL, [0, 1, 2]]
    assert lucky["final_valid_transitions"] == [[0, 1, 1, 2, 3]]
    quiz = read["tiny/quiz"]["samples"][0]
    assert (quiz["question"], quiz["gt_ans"]) == ("Which?\nA. yes\nB. no", "B")
    assert f"{files['tiny/dart-math-diff-1']}: 2 samples" in capsys.readouterr().err
    note = json.loads(files["tiny/sums"].with_name(NOTE).read_text())
    assert (note["dataset"], note["samples"], note["num_layers"]) == ("sums", 1, LAYERS)
    assert note["labels"]["model"] == "org/tiny" and {"versions", "git_commit"} <= note.keys()


def test_model_folder(tmp_path):
    labels = write_labels(tmp_path / "labels", dart_lines())
    main(["export", "--format", "polar", str(labels), str(tmp_path / "out"), "--model_folder", "org/tiny"])
    assert (tmp_path / "out/org/tiny/dart-math-diff-3" / SAMPLES).is_file()
    for name in ("", "..", "/tmp/x", "a/../.."):
        assert "--model_folder" in error_of("export", "--format", "polar", labels, tmp_path, "--model_folder", name)


def test_round_trip(base, tmp_path):
    labels = write_labels(tmp_path / "labels", dart_lines(), str(base))
    main(["export", "--format", "polar", str(labels), str(tmp_path / "out")])
    assert (tmp_path / "out/tiny/dart-math-diff-1").is_dir()
    before = {record["id"]: record for record in read_labels(labels)}
    after = bring(tmp_path / "out", tmp_path / "again", base)
    assert len(after) == 5
    tokenizer = load_tokenizer(str(base))
    for record in after:
        old = before[record["id"]]
        for name in ("dataset", "question", "answer", "base_correct", "correct", "route", "path", "valid_paths"):
            assert record[name] == old[name], name
        assert (record["checker"], record["scoring"], record["choices"]) == ("boxed", "generate", [])
        assert record["evaluations"] == old["evaluations"]
        verdicts = [{tuple(entry["path"]): entry["correct"] for entry in each["tried"]} for each in (record, old)]
        assert verdicts[0] == verdicts[1]
        assert record["tried"][0]["path"] == FULL
        asked = Example(record["dataset"], record["question"], record["answer"], checker="boxed")
        assert record["prompt"] == build_prompt(asked, "generate", tokenizer, chat=False)
    header = read_header(tmp_path / "again")
    assert header["model"] == str(base) and header["num_layers"] == LAYERS and header["model_type"] == "llama"
    assert header["arguments"]["apply_chat_template"] is False
    assert [entry["imported"] for entry in header["imported"]["files"]] == [3, 2]
    # And once more: what an import wrote is exported to the same bytes.
    main(["export", "--format", "polar", str(tmp_path / "again"), str(tmp_path / "out2")])
    for level in (1, 3):
        one, two = (tmp_path / out / f"tiny/dart-math-diff-{level}" / SAMPLES for out in ("out", "out2"))
        assert one.read_bytes() == two.read_bytes()


def test_round_trip_of_another_data_set(base, tmp_path):
    asked = Example("sums", "1 + 1 =", "2", checker="number")
    labels = write_labels(tmp_path / "labels", [line(asked, (FULL, True), ([0, 1, 2], True))], str(base))
    main(["export", "--format", "polar", str(labels), str(tmp_path / "out")])
    record = bring(tmp_path / "out", tmp_path / "again", base, "--checker", "number")[0]
    assert (record["id"], record["checker"], record["path"]) == (asked.id, "number", [0, 1, 2])


def test_chat_template(base, tmp_path):
    path = write_samples(tmp_path / "polar", [sample(0, [FULL], [], 1.0)])
    record = bring(path, tmp_path / "out", base, "--apply_chat_template")[0]
    assert record["prompt"].startswith("<|im_start|>") and QUESTIONS[0] in record["prompt"]
    assert read_header(tmp_path / "out")["arguments"]["apply_chat_template"] is True


def test_paths_that_are_no_routes(base, tmp_path, capsys):
    path = write_samples(
        tmp_path / "polar",
        [
            sample(0, [FULL, [0, 2, 1, 3], [0, 1, 1, 1, 2, 3], [0, 1, 3]], [[0, 1, 2, 3, 4], [-1, 0], [3, 0]], 1.0),
            # Nothing is left of this one; its full path is not listed.
            sample(1, [[1, 0]], [[0, 0, 0]], 1.0),
            # The segment [1, 2] twice in a row, as PoLar repeats.
            sample(2, [[0, 1, 2, 1, 2, 3], [0, 2, 3, 3]], [FULL, [], [0, "1"], [0, True], [1.0], 7, {"path": [0, 3]}]),
        ],
        level=4,
    )
    records = bring(path, tmp_path / "out", base)
    assert [(r["dataset"], r["path"], r["base_correct"]) for r in records] == [
        ("dart-4", [0, 1, 3], True),
        ("dart-4", [0, 2, 3, 3], False),
    ]
    assert records[0]["tried"] == [{"path": FULL, "correct": True}, {"path": [0, 1, 3], "correct": True}]
    assert records[1]["tried"] == [
        {"path": FULL, "correct": False},
        {"path": [0, 2, 3, 3], "correct": True},
        {"path": [0, 3], "correct": False},
    ]
    printed = capsys.readouterr().err
    assert f"{path}: 2 of 3 samples imported; left out 1 without a usable path; of their 18 paths left out" in printed
    for reason in (
        "4 out of order",
        "2 that run a layer more than twice",
        "2 outside the layers 0..3",
        "5 that are no lists of layers",
    ):
        assert reason in printed
    entry = read_header(tmp_path / "out")["imported"]["files"][0]
    assert entry["paths_left_out"]["out of order"] == 4 and entry["left_out"] == {"without a usable path": 1}
    assert entry["file"] == f"polar/dart-math-diff-4/{SAMPLES}"


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ([0, 1, 2, 3], None),
        ([3], None),
        ([0, 0, 3, 3], None),
        ([0, 2, 1], "out of order"),
        ([2, 2, 2], "that run a layer more than twice"),
        ([1, 1, 0, 1], "out of order"),
        ([4], "outside the layers 0..3"),
        ([-1, 0], "outside the layers 0..3"),
        ([], "that are no lists of layers"),
        ([True], "that are no lists of layers"),
        ("0123", "that are no lists of layers"),
        (None, "that are no lists of layers"),
    ],
)
def test_path_fault(path, fault):
    assert path_fault(path, LAYERS) == fault


@pytest.mark.parametrize(
    ("score", "right"), [(0, False), (0.0, False), (False, False), (0.4, False), (0.5, True), (1, True), (True, True)]
)
def test_initial_score(base, tmp_path, score, right):
    records = bring(write_samples(tmp_path / "p", [sample(0, [[0, 1, 3]], [], score)]), tmp_path / "out", base)
    assert records[0]["base_correct"] is right
    assert records[0]["tried"][0] == {"path": FULL, "correct": right}


def test_verdict_of_the_full_path(base, tmp_path, capsys):
    """From the score or the lists; where they contradict each other the sample is left out."""
    unknown = sample(4, [[0, 1, 3]], [], None)
    other_name = sample(5, [[0, 1, 3]], [], None, initial_transition_metric=1.0)
    samples = [
        sample(0, [[0, 1, 3], FULL], [], None),
        sample(1, [[0, 1, 3]], [FULL], None),
        sample(2, [[0, 1, 3]], [FULL], 1.0),
        sample(3, [[0, 1, 3], FULL], [FULL], 1.0),
        unknown,
        other_name,
    ]
    records = bring(write_samples(tmp_path / "p", samples), tmp_path / "out", base)
    assert [(r["question"], r["base_correct"]) for r in records] == [
        (QUESTIONS[0], True), (QUESTIONS[1], False), (QUESTIONS[3], True), (QUESTIONS[5], True)
    ]  # fmt: skip
    assert all(record["tried"][0]["path"] == FULL for record in records)
    printed = capsys.readouterr().err
    assert '1 whose "initial_score" contradicts the verdict of the full path' in printed
    assert "1 malformed" in printed
    assert 'the first malformed one is samples[4]: it has no "initial_score", and the full path is in' in printed
    assert "2 listed as valid and as invalid" in printed


def test_the_best_path(base, tmp_path):
    """Fewest executions, then fewest distinct layers, then the first that is listed."""
    valid = [[0, 1, 3], [0, 2, 3], [0, 0, 3], [1, 1, 3], [0, 1, 2]]
    records = bring(write_samples(tmp_path / "p", [sample(0, valid, [FULL])]), tmp_path / "out", base)
    assert records[0]["path"] == [0, 0, 3] and records[0]["route"] == [2, 0, 0, 1]
    assert records[0]["valid_paths"] == valid


def test_bad_samples_are_counted(base, tmp_path, capsys):
    good = sample(0, [FULL], [], 1.0)
    samples = [
        {key: value for key, value in good.items() if key != "question"},
        good | {"gt_ans": None},
        good | {"final_valid_transitions": "all"},
        good | {"final_invalid_transitions": {}},
        good | {"initial_score": "1.0"},
        good | {"initial_score": float("nan")},
        good | {"question": {"question": "?"}},
        good | {"question": "\ud800"},
        # Its first paths are unusable, so the second time counts.
        sample(1, [[1, 0]], [], 0.0),
        sample(1, [[0, 1, 3]], [], 0.0),
        sample(1, [[0, 2, 3]], [], 0.0),
        sample(2, [FULL], [], 1.0, question=questions(1, "test")[0]),
        sample(4, [FULL], [], 1.0, question=LONG),
        # Only the names differ, as PoLar's reader allows.
        {
            "sample_info": {"question": QUESTIONS[3], "answer": 7},
            "initial_transition_metric": 1.0,
            "final_valid_transitions": [{"path": FULL}],
        },
    ]
    folder = tmp_path / "p"
    write_samples(folder, samples, level=1)
    write_samples(folder, [sample(1, [[0, 3]], [], 0.0), good], level=2)
    records = bring(folder, tmp_path / "out", base)
    assert [(r["dataset"], r["question"], r["answer"], r["path"]) for r in records] == [
        ("dart-1", QUESTIONS[1], "1", [0, 1, 3]),
        ("dart-1", QUESTIONS[3], "7", FULL),
        ("dart-2", QUESTIONS[0], "0", FULL),
    ]
    first, second = [text for text in capsys.readouterr().err.splitlines() if SAMPLES in text]
    assert "2 of 14 samples imported; left out 8 malformed, 1 without a usable path, 1 asked before" in first
    assert "1 of another split than search, 1 longer than the 2048 tokens that the model takes" in first
    assert '; the first malformed one is samples[0]: "question" must be a text, got None' in first
    assert "1 of 2 samples imported; left out 1 asked before" in second


def test_other_splits(base, tmp_path):
    samples = [
        sample(0, [FULL], [], 1.0, question=questions(1, split)[0]) for split in ("search", "validation", "test")
    ]
    path = write_samples(tmp_path / "p", samples)
    for split, count in (("search", 1), ("validation", 1), ("test", 1), ("all", 3)):
        assert len(bring(path, tmp_path / "out", base, "--split", split)) == count
    # The folder of another data set says nothing about splits.
    path.rename(tmp_path / SAMPLES)
    assert len(bring(tmp_path / SAMPLES, tmp_path / "out", base, "--dataset", "mine")) == 3
    assert next(read_labels(tmp_path / "out"))["dataset"] == "mine"


def test_where_files_are_found(tmp_path):
    root = tmp_path / "root"
    one = [write_samples(root / "org/one", [], level) for level in (1, 5)]
    other = write_samples(root / "org/one", [], 3)
    deep = root / "org/one/dart-math-diff-5/merged" / SAMPLES
    write_text(deep, "[]")
    files = sorted([*one, other, deep])
    assert find_files(root, "any") == files
    assert find_files(root / "org/one", "any") == files
    assert find_files(root / "org/one/dart-math-diff-1", "any") == [one[0]]
    assert find_files(deep, "any") == [deep]
    assert [dataset_of(file) for file in files] == ["dart-1", "dart-3", "dart-5", "dart-5"]
    assert dataset_of(root / "sums" / SAMPLES) == "sums" and dataset_of(root / "mine.json") == "mine"

    two = write_samples(root / "two", [], 1)
    assert find_files(root, "somebody/two") == [two]
    assert find_files(root, str(tmp_path / "models/one")) == files
    with pytest.raises(UserError, match=r"several models \(org/one, two\)\. Give the folder of one"):
        find_files(root, "three")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"empty holds no {SAMPLES}"):
        find_files(tmp_path / "empty", "any")
    with pytest.raises(UserError, match="nowhere does not exist"):
        find_files(tmp_path / "nowhere", "any")


SHAPES = {
    "samples": '{"samples": [%s, %s]}',
    "samples among others": '\ufeff {"metadata": {"samples": [1]}, "n": -1.5e1 , "samples" :[%s ,%s] , "end": null}\n',
    "list": " [ %s,\n%s ]",
    "by name": '{"0": %s, "1": %s}',
}


@pytest.mark.parametrize("chunk", [1, 3, 64, 1 << 20])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_files(tmp_path, monkeypatch, shape, chunk):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    written = [sample(0, [FULL, [0, 12]], [], 0.25, question='"}], \\ é 🙂'), {"a": {"b": [[], {}]}}]
    path = tmp_path / SAMPLES
    path.write_text(SHAPES[shape] % tuple(json.dumps(each) for each in written), encoding="utf-8")
    assert list(read_samples(path)) == list(enumerate(written))
    for empty in ('{"samples": []}', "[]", "{}", " [ ] "):
        path.write_text(empty)
        assert list(read_samples(path)) == []


@pytest.mark.parametrize("shape", SHAPES)
def test_a_file_cut_anywhere_is_damaged(tmp_path, shape):
    """Cut behind the end of the samples' list too: a torn download must not pass for a whole file."""
    written = [sample(0, [FULL], []), sample(1, [FULL], [])]
    text = (SHAPES[shape] % tuple(json.dumps(each) for each in written)).strip()
    path = tmp_path / SAMPLES
    for cut in range(len(text)):
        path.write_bytes(text[:cut].encode())
        read = []
        with pytest.raises(UserError) as caught:
            read += read_samples(path)
        assert f"{path} is damaged at samples[" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "index", "reason"),
    [
        (b'{"samples": [{"question": "a"}, {"question": "b"', 1, "Expecting"),
        (b'{"samples": [{"question": "a"} {"question": "b"}]}', 1, "',' or ']' is missing before '{'"),
        (b'{"samples": [{"question": "a"}, 7]}', 1, "it is a int, no object"),
        (b'{"samples": {"a": {}}}', 0, "'[' is missing before '{'"),
        (b'{"samples": []} []', 0, "something follows its end"),
        (b'{"samples" []}', 0, "':' is missing"),
        (b'"samples"', 0, "it holds no list of samples"),
        (b"", 0, "it holds no list of samples"),
        (b"[[1, 2]]", 0, "it is a list, no object"),
        (b"[" * 100_000, 0, ""),
        (b'[{"question": "\xff"}]', 0, "can't decode byte"),
        (b'[{"n": ' + b"1" * 5000 + b"}]", 0, "integer"),
    ],
)
def test_damaged_files_are_named(base, tmp_path, content, index, reason):
    path = tmp_path / "dart-math-diff-1" / SAMPLES
    path.parent.mkdir()
    path.write_bytes(content)
    message = error_of("import", "--format", "polar", path, tmp_path / "out", "--model", base)
    assert message.startswith(f"{path} is damaged at samples[{index}]: ") and reason in message
    assert "Get the file again, or remove it to import the others." in message
    assert not (tmp_path / "out" / LABELS).exists() and not (tmp_path / "out" / HEADER).exists()


def test_nothing_usable(base, tmp_path):
    write_samples(tmp_path / "p", [sample(0, [[1, 0]], [])], level=1)
    write_samples(tmp_path / "p", [], level=2)
    message = error_of("import", "--format", "polar", tmp_path / "p", tmp_path / "out", "--model", base)
    assert "no sample can be used; nothing was written" in message
    assert f"diff-1/{SAMPLES}: 0 of 1 samples imported; left out 1 without a usable path" in message
    assert "1 out of order" in message and f"diff-2/{SAMPLES}: 0 of 0 samples imported" in message
    assert not (tmp_path / "out" / LABELS).exists()


def test_paths_of_another_depth(base, tmp_path):
    """A deeper model's paths leave the model; a shallower one's full path would pass for a path with skips."""
    deep = write_samples(tmp_path / "deep", [sample(0, [[0, 1, 2, 3, 4, 5]], [[0, 2, 3, 4, 5], [0, 1]])])
    message = error_of("import", "--format", "polar", deep, tmp_path / "out", "--model", base)
    assert "2 of 3 paths run layers that --model" in message and "it has 4" in message
    shallow = write_samples(tmp_path / "shallow", [sample(0, [[0, 1, 2]], [[0, 2]])])
    message = error_of("import", "--format", "polar", shallow, tmp_path / "out", "--model", base)
    assert "no path runs layer 3, the last of --model" in message and "the highest is 2" in message


def test_only_an_earlier_import_is_replaced(base, tmp_path):
    path, output = write_samples(tmp_path / "p", [sample(0, [FULL], [], 1.0)]), tmp_path / "out"
    assert len(bring(path, output, base)) == 1
    write_samples(tmp_path / "p", [sample(0, [FULL], [], 1.0), sample(1, [FULL], [], 1.0)])
    assert len(bring(path, output, base)) == 2
    assert {file.name for file in output.iterdir()} == {LABELS, HEADER, ".lock"}
    before = {name: (output / name).read_bytes() for name in (LABELS, HEADER)}
    path.write_text('{"samples": [{}, ')
    error_of("import", "--format", "polar", path, output, "--model", base)
    assert {name: (output / name).read_bytes() for name in (LABELS, HEADER)} == before

    write_samples(tmp_path / "p", [sample(0, [FULL], [], 1.0)])
    searched = write_labels(tmp_path / "searched", dart_lines())
    alone = tmp_path / "alone"
    write_text(alone / LABELS, "mine")
    for folder in (searched, alone):
        content = (folder / LABELS).read_bytes()
        message = error_of("import", "--format", "polar", path, folder, "--model", base)
        assert f"{folder} holds labels that were not imported" in message and "another output folder" in message
        assert (folder / LABELS).read_bytes() == content
    message = error_of("import", "--format", "polar", path, path, "--model", base)
    assert f"{path} is a file. Give a folder" in message


def test_only_an_earlier_export_is_replaced(tmp_path):
    labels, out = write_labels(tmp_path / "labels", dart_lines()), tmp_path / "out"
    for _ in range(2):
        main(["export", "--format", "polar", str(labels), str(out)])
    files = sorted(out.rglob(SAMPLES))
    before = [file.read_bytes() for file in files]
    files[1].with_name(NOTE).unlink()
    write_labels(labels, dart_lines()[:2])
    message = error_of("export", "--format", "polar", labels, out)
    assert f"{files[1]} exists and was not written by this command" in message and "another output folder" in message
    assert [file.read_bytes() for file in files] == before
    assert not list(out.rglob("*.tmp"))


def damaged(record: str, **changes) -> str:
    return json.dumps(json.loads(record) | changes) + "\n"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tried": [7]}, "\"tried\" holds 7"),
        ({"tried": [{"path": FULL, "correct": 1}]}, '"tried" holds'),
        ({"tried": [{"correct": True}]}, '"tried" holds'),
        ({"route": [1]}, "line 2"),
        ({"dataset": "../x"}, "data set named '../x'"),
        ({"dataset": "dart-math-diff-2"}, "data set named 'dart-math-diff-2'"),
    ],
)  # fmt: skip
def test_damaged_labels_are_not_exported(tmp_path, change, reason):
    lines = dart_lines()
    labels = write_labels(tmp_path / "labels", [lines[0], damaged(lines[1], **change)])
    assert reason in error_of("export", "--format", "polar", labels, tmp_path / "out")
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_file()]


def test_all_problems_at_once(base, tmp_path):
    file = tmp_path / "file"
    file.touch()
    message = error_of("export", "--format", "polar", tmp_path, file, "--model_folder", "..")
    assert all(part in message for part in ("holds no labels", "file is a file", "--model_folder '..'"))
    message = error_of("import", "--format", "polar", tmp_path / "no", file, "--model", tmp_path, "--dataset", " ")
    assert all(part in message for part in ("no does not exist", "cannot be loaded", "is a file", "--dataset ' '"))
    for level in (1, 2):
        write_samples(tmp_path / "p", [], level)
    message = error_of("import", "--format", "polar", tmp_path / "p", tmp_path / "o", "--model", base, "--dataset", "x")
    assert "--dataset 'x' would name 2 files" in message
    message = error_of("card", tmp_path, "--push", "--repo_id", "a b")
    assert "holds no labels" in message and "--repo_id 'a b' must be OWNER/NAME" in message
    message = error_of("card", tmp_path, "--public")
    assert "--public goes with --push" in message
    assert "--push needs --repo_id" in error_of("card", tmp_path, "--push")


def test_no_chat_template(base, tmp_path):
    plain = tmp_path / "plain"
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(plain)
    (plain / "config.json").write_bytes((base / "config.json").read_bytes())
    path = write_samples(tmp_path / "p", [sample(0, [FULL], [], 1.0)])
    command = ("import", "--format", "polar", path, tmp_path / "out", "--model", plain)
    assert "has no chat template" in error_of(*command, "--apply_chat_template")


def test_errors_end_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["routing.labels", "card", str(tmp_path)])
    monkeypatch.delitem(sys.modules, "routing.commands.labels")
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("routing.commands.labels", run_name="__main__")
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} holds no labels")


def test_long_files_are_streamed(base, tmp_path, monkeypatch):
    """Both ways with a small part of the file in memory."""
    monkeypatch.setattr(json_stream, "CHUNK", 1 << 14)
    tried = [(FULL, False), *(([0] * a + [1] * b + [3], True) for a in (0, 1, 2) for b in (1, 2))]
    count = 1500
    lines = [
        line(Example("sums", f"{n}: " + "x" * 3000, "1", checker="number"), *tried, prompt="p") for n in range(count)
    ]
    labels = write_labels(tmp_path / "labels", lines, str(base))
    size = sum(map(len, lines))
    del lines
    assert size > 4_000_000
    settings, config = polar_import.ImportSettings(str(base)), load_base_config(str(base))
    tokenizer = load_tokenizer(str(base))
    monkeypatch.setattr(polar_import, "encode", lambda tokenizer, text: [1])  # It takes most of the time.
    polar_export.versions(), polar_export.git_commit()  # Their modules are loaded once, and are not counted.
    tracemalloc.start()
    try:
        polar_export.export_polar(labels, tmp_path / "out", "tiny")
        path = tmp_path / "out/tiny/sums" / SAMPLES
        counts = polar_import.import_polar([path], tmp_path / "again", settings, config, tokenizer)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert counts[path].imported == count and path.stat().st_size > 4_000_000
    assert peak < size / 3


def test_imported_labels_train(base, tmp_path, monkeypatch):
    """Through the real files of both stages: headers, prompts and routes are those that training wants."""
    lines = []
    for index, _ in enumerate(QUESTIONS):
        short = [layer for layer in FULL if layer != index % 3]
        lines.append(line(example(1 + index % 5, index), (FULL, index % 2 == 0), (short, True)))
    labels = write_labels(tmp_path / "labels", lines, str(base))
    main(["export", "--format", "polar", str(labels), str(tmp_path / "polar")])
    assert len(bring(tmp_path / "polar", tmp_path / "imported", base)) == 40

    settings = {"model_id": str(base), "data": str(tmp_path / "imported"), "run_name": "run", "eval_fraction": 0.2}
    data = load_training_data(TrainArguments(**settings), load_base_config(str(base)), load_tokenizer(str(base)))
    assert len(data.examples) == 40 and data.held_out_indices and len(data.held_out_requests) < 20
    assert {each.route for each in data.examples} == {(0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1)}

    settings |= {"num_epochs": 2, "num_evaluations": 1, "eval_examples": 2, "device": "cpu"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *(f"--{key}={value}" for key, value in settings.items())])
    train.main()
    summary = json.loads((tmp_path / "checkpoints/run/training.json").read_text())
    assert summary["train_examples"] + summary["held_out_examples"] == 40
    assert summary["class_counts"]["skip"] == summary["train_examples"]


def card_labels(folder: Path) -> Path:
    quiz = Example("quiz|1", "Which?", "no", ("yes", "no"), 1, "letter", accepted=("nope",))
    lucky = line(quiz, (FULL, False, -0.5), ([0, 1], True, 0.25), ([0], False, 0.1, True), scoring="loglikelihood")
    return write_labels(folder, [*dart_lines(), lucky], "org/tiny", revision="r5")


def test_card_loads_with_its_features(tmp_path):
    """Also where a guess from the data would be wrong: columns that are empty everywhere."""
    expected = datasets.Features(
        {name: datasets.Value("string") for name in ("id", "dataset", "prompt", "question", "answer")}
        | {name: datasets.List(datasets.Value("string")) for name in ("choices", "accepted")}
        | {"gold": datasets.Value("int64")}
        | {name: datasets.Value("string") for name in ("checker", "tools", "scoring")}
        | {name: datasets.Value("bool") for name in ("base_correct", "correct")}
        | {name: datasets.List(datasets.Value("int64")) for name in ("route", "path")}
        | {
            "valid_paths": datasets.List(datasets.List(datasets.Value("int64"))),
            "tried": datasets.List(
                {
                    "path": datasets.List(datasets.Value("int64")),
                    "correct": datasets.Value("bool"),
                    "margin": datasets.Value("float64"),
                    "lucky": datasets.Value("bool"),
                    "pruned_layers": datasets.List(datasets.Value("int64")),
                    "score": datasets.Value("float64"),
                    "output": datasets.Value("string"),
                }
            ),
            "evaluations": datasets.Value("int64"),
        }
    )
    for folder in (card_labels(tmp_path / "mixed"), write_labels(tmp_path / "dart", dart_lines()[2:3])):
        main(["card", str(folder)])
        rows = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
        assert rows.features == expected
        for row, record in zip(rows, read_labels(folder), strict=True):
            unsaid = dict.fromkeys(("margin", "lucky", "pruned_layers", "score", "output"))
            tried = [unsaid | entry for entry in record["tried"]]
            assert row == {"tools": None} | record | {"tried": tried}
    assert set(SCHEMA) == {*FIELDS, "tools"}


def test_questions_of_several_kinds_load_whatever_comes_first(tmp_path):
    """What is read first holds open questions alone: choices, numbers of choices and functions come later."""
    numbers = [line(Example("sums", f"{n}?", "1", checker="number"), (FULL, True)) for n in range(40)]
    choice = line(Example("quiz", "Which?", "no", ("yes", "no"), 1, "letter"), (FULL, True))
    calls = json.loads(line(Example("calls", "Call!", '[{"f": {"x": [1]}}]', checker="calls"), (FULL, True))) | {
        "tools": "[]"
    }
    folder = write_labels(tmp_path / "labels", [*numbers, choice, json.dumps(calls) + "\n"], "org/tiny")
    read = functools.partial(datasets.load_dataset, split="train", chunksize=4096, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(datasets.exceptions.DatasetGenerationError):  # as files of over 10 MB do by default
        read("json", data_files=str(folder / LABELS))
    complete_card(folder)
    rows = read(str(folder))
    assert (len(rows), rows[0]["gold"], rows[40]["choices"], rows[41]["tools"]) == (42, None, ["yes", "no"], "[]")
    (folder / CARD).write_text("mine")
    complete_card(folder)
    assert (folder / CARD).read_text() == "mine"


def test_card_text(tmp_path):
    folder = card_labels(tmp_path / "labels")
    main(["card", str(folder), "--repo_id", "me/paths"])
    text = (folder / CARD).read_text(encoding="utf-8")
    assert "license:" not in text and "None is claimed here" in text
    for part in (
        'load_dataset("me/paths", split="train")',
        "| dart-1 | 3 | 1 | 1 | 1 | 1 | 3.00 |",
        "| dart-3 | 2 | 1 | 0 | 1 | 0 | 4.50 |",
        "| quiz\\|1 | 1 | 0 | 0 | 1 | 0 | 2.00 |",
        "| all | 6 | 2 | 1 | 3 | 1 | 3.40 |",
        "| 0 | 0 | 4 | 1 |",
        "| 2 | 2 | 3 | 0 |",
        "| all | 5 | 13 | 2 |",
        "| `tried` | list of {path: list of int64, correct: bool, margin: float64, lucky: bool, "
        "pruned_layers: list of int64, score: float64, output: string} |",
        "- model: `org/tiny`, revision r5",
        "- versions: torch 2",
        "- commit of the code: abc",
        '"seed": 0',
        "found with hindsight",
        "size_categories:\n- n<1K",
    ):
        assert part in text, part
    for name in SCHEMA:
        assert f"| `{name}` |" in text
    assert "imported from files" not in text
    main(["card", str(folder), "--license", "mit"])
    text = (folder / CARD).read_text(encoding="utf-8")
    assert 'load_dataset("path/of/this/folder"' in text
    assert "\nlicense: mit\n" in text and "\nmit. The questions and answers keep the license" in text


def test_card_of_imported_labels_says_so(base, tmp_path):
    bring(write_samples(tmp_path / "p", [sample(0, [FULL], [], 1.0)]), tmp_path / "out", base)
    main(["card", str(tmp_path / "out")])
    assert "imported from files of the format polar" in (tmp_path / "out" / CARD).read_text(encoding="utf-8")


def test_counts_without_a_right_path(tmp_path):
    counts = count_labels(write_labels(tmp_path, [dart_lines()[2]]))
    assert vars(counts.total()) == {
        "examples": 1, "base_correct": 0, "correct": 0, "fixed": 0, "shortened": 0, "layers": 0
    }  # fmt: skip
    main(["card", str(tmp_path)])
    assert "| dart-1 | 1 | 0 | 0 | 0 | 1 | none |" in (tmp_path / CARD).read_text(encoding="utf-8")


def test_size_categories():
    named = {1: "n<1K", 999: "n<1K", 1000: "1K<n<10K", 10_000: "10K<n<100K", 123_456: "100K<n<1M"}
    assert {count: size_category(count) for count in named} == named


def test_a_readme_of_somebody_else_stays(tmp_path):
    folder = write_labels(tmp_path, dart_lines())
    (folder / CARD).write_text("my notes")
    assert f"{folder / CARD} was not written by this command" in error_of("card", folder)
    assert (folder / CARD).read_text() == "my notes"


def test_an_unknown_field_is_refused(tmp_path):
    folder = write_labels(tmp_path, [damaged(dart_lines()[0], weather="fine")])
    message = error_of("card", folder)
    assert "['weather'] are no fields of a label" in message and "evaluations" in message
    assert not (folder / CARD).exists()


class FakeHub:
    """Stands in for HfApi: takes what is uploaded, with the hub's own rule for patterns left out."""

    def __init__(self, private: bool = True, error: Exception | None = None):
        self.private, self.error, self.calls = private, error, []

    def create_repo(self, repo_id, *, repo_type, private, exist_ok):
        if self.error:
            raise self.error
        self.calls.append(("create", repo_id, repo_type, private, exist_ok))
        return f"https://hub.example/datasets/{repo_id}"

    def repo_info(self, repo_id, *, repo_type):
        return self

    def upload_folder(self, *, repo_id, repo_type, folder_path, allow_patterns, commit_message):
        self.calls.append(("upload", repo_id, repo_type, sorted(allow_patterns)))
        self.card = (Path(folder_path) / CARD).read_text(encoding="utf-8")


def pushed(monkeypatch, folder: Path, hub: FakeHub, *more) -> list:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    main(["card", str(folder), "--repo_id", "me/paths", "--push", *more])
    return hub.calls


def test_push(tmp_path, monkeypatch, capsys):
    folder = write_labels(tmp_path, dart_lines())
    upload = ("upload", "me/paths", "dataset", sorted([LABELS, HEADER, CARD]))
    hub = FakeHub()
    assert pushed(monkeypatch, folder, hub) == [("create", "me/paths", "dataset", True, True), upload]
    assert 'load_dataset("me/paths"' in hub.card
    assert "uploaded to https://hub.example/datasets/me/paths" in capsys.readouterr().err
    hub = FakeHub(private=False)
    assert pushed(monkeypatch, folder, hub, "--public") == [("create", "me/paths", "dataset", False, True), upload]


def test_nothing_is_published_by_accident(tmp_path, monkeypatch):
    hub = FakeHub(private=False)
    with pytest.raises(UserError, match=r"me/paths is public already.*--public"):
        pushed(monkeypatch, write_labels(tmp_path, dart_lines()), hub)
    assert [call[0] for call in hub.calls] == ["create"]


class Refused(HfHubHTTPError):
    """The hub's answer, without the response that the real one wants."""

    def __init__(self, text: str):
        Exception.__init__(self, text)

    def __str__(self) -> str:
        return self.args[0]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            HTTPError("[Errno -2] Name or service not known"),
            "cannot be reached to upload 'me/paths': [Errno -2] Name or",
        ),
        (ConnectionError("offline mode is enabled.\nmore"), "offline mode is enabled. The card is written"),
        (OSError(), "OSError"),
        (Refused("401 Client Error."), "refuses --repo_id 'me/paths': 401 Client Error. Log in with `hf auth login`"),
    ],
)
def test_the_hub_fails(tmp_path, monkeypatch, error, said):
    folder = write_labels(tmp_path, dart_lines())
    with pytest.raises(UserError) as caught:
        pushed(monkeypatch, folder, FakeHub(error=error))
    assert said in str(caught.value)
    assert (folder / CARD).exists()


def test_an_unreachable_hub(tmp_path, monkeypatch):
    """The real client, in the offline mode that all tests run in."""
    folder = write_labels(tmp_path, dart_lines())
    message = error_of("card", folder, "--repo_id", "me/paths", "--push")
    assert "the hub cannot be reached to upload 'me/paths'" in message and "run the same command again" in message


def test_counts_in_words():
    counts = FileCounts(samples=2, imported=2, paths=3)
    assert str(counts) == "2 of 2 samples imported"
    assert full_route(2) == (1, 1)
