"""Label files: their content, and that a run killed anywhere ends with the bytes of an undisturbed one."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import datasets
import pytest

from routing import labels as labels_module
from routing.errors import UserError
from routing.labelling import example_rng, label_all, search_group
from routing.labels import (
    FIELDS,
    FORMAT,
    HEADER,
    JOURNAL,
    LABELS,
    LabelWriter,
    example_of,
    label_line,
    parse_label,
    read_header,
    read_labels,
)
from routing.locks import only_run
from routing.scoring import Request
from routing.search.mcts import Node, SearchResult, SearchSettings, run_search
from routing.tasks.examples import Example

ROOT = Path(__file__).resolve().parents[1]
DEPTH = 4
SETTINGS = SearchSettings(num_simulations=7, stop_saving=3)


def make_request(index: int) -> Request:
    """Every other question has choices: their records must fit into one file."""
    if index % 2:
        example = Example("quiz", f"Which, {index}? é", "no", ("yes", "no"), 1, "letter")
        return Request(example, "loglikelihood", f"Question: {example.question}\nAnswer:", (1, 2), ((3,), (4,)))
    example = Example("sums", f"{index} + 0 =", str(index), checker="number", accepted=("nought",) if not index else ())
    return Request(example, "generate", f"{example.question}", (1, 2, 3), max_new_tokens=4, stop="\n")


REQUESTS = [make_request(index) for index in range(5)]
IDS = [request.example.id for request in REQUESTS]


class Killed(Exception):
    """The process ends here."""


class Score:
    """Verdicts that depend on example and route alone; with `limit`, dies when it is asked once more."""

    def __init__(self, limit: int | None = None, share: float = 0.07):
        self.limit, self.share, self.rounds, self.asked = limit, share, 0, []

    def __call__(self, requests, routes):
        if self.rounds == self.limit:
            raise Killed
        self.rounds += 1
        self.asked += [(request.example.id, route) for request, route in zip(requests, routes, strict=True)]
        return [self.verdict(request.example.id, route) for request, route in zip(requests, routes, strict=True)]

    def verdict(self, example_id: str, route) -> bool:
        digest = hashlib.sha256(f"{example_id}{route}".encode()).digest()
        return digest[0] / 256 < self.share


def make_header(**arguments) -> dict:
    chosen = {"num_simulations": 7, "seed": 0, "widening": 0.5} | arguments
    return {"format": FORMAT, "model": "m", "num_layers": DEPTH, "arguments": chosen, "git_commit": "abc"}


def label(folder: Path, score: Score, group_size: int = 2, header: dict | None = None, seed: int = 0) -> bytes:
    """A run of stage 1, without a model."""
    writer = LabelWriter(folder, header or make_header(), IDS, group_size)
    label_all(REQUESTS, DEPTH, SETTINGS, seed, score, writer)
    return (folder / LABELS).read_bytes()


@pytest.fixture(autouse=True)
def _no_flush_to_disk(monkeypatch):
    """Runs die here by an exception, never by a power cut: waiting for the disk would only take time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[bytes, Score]:
    """Bytes of an undisturbed run, and the score function that saw it."""
    score = Score()
    return label(tmp_path_factory.mktemp("whole"), score), score


def records(content: bytes) -> list[dict]:
    return [json.loads(line) for line in content.decode().splitlines()]


def test_content_by_hand():
    example = REQUESTS[1].example
    verdicts = {(1, 1, 1, 1): True, (1, 1, 0, 0): False, (2, 1, 0, 1): True, (1, 0, 0, 1): True}
    result = SearchResult(True, verdicts, (1, 0, 0, 1), Node((1, 1, 1, 1)))
    line = label_line(REQUESTS[1], result)
    assert line.endswith("}\n") and line.count("\n") == 1 and "é" in line
    assert json.loads(line) == {
        "id": example.id,
        "dataset": "quiz",
        "prompt": "Question: Which, 1? é\nAnswer:",
        "question": "Which, 1? é",
        "answer": "no",
        "choices": ["yes", "no"],
        "accepted": [],
        "gold": 1,
        "checker": "letter",
        "scoring": "loglikelihood",
        "base_correct": True,
        "correct": True,
        "route": [1, 0, 0, 1],
        "path": [0, 3],
        "valid_paths": [[0, 1, 2, 3], [0, 0, 1, 3], [0, 3]],
        "tried": [
            {"path": [0, 1, 2, 3], "correct": True},
            {"path": [0, 1], "correct": False},
            {"path": [0, 0, 1, 3], "correct": True},
            {"path": [0, 3], "correct": True},
        ],
        "evaluations": 4,
    }
    assert set(json.loads(line)) == set(FIELDS)
    assert parse_label(line, DEPTH) == json.loads(line)
    assert example_of(parse_label(line, DEPTH)) == example


def test_an_example_that_nothing_answers_right_is_kept():
    """Dropping it would make the accuracy after the search 100 % by construction."""
    verdicts = {(1, 1, 1, 1): False, (1, 1, 0, 1): False}
    record = json.loads(label_line(REQUESTS[0], SearchResult(False, verdicts, None, Node((1, 1, 1, 1)))))
    assert (record["base_correct"], record["correct"], record["valid_paths"]) == (False, False, [])
    assert record["route"] == [1, 1, 1, 1] and record["gold"] is None and record["accepted"] == ["nought"]


def test_the_file_has_every_example_in_order(whole, tmp_path):
    content, score = whole
    found = records(content)
    assert [record["id"] for record in found] == IDS
    for record, request in zip(found, REQUESTS, strict=True):
        verdicts = {tuple(t["path"]): t["correct"] for t in record["tried"]}
        alone = run_search(
            lambda route, i=record["id"]: score.verdict(i, route), DEPTH, SETTINGS, example_rng(0, record["id"])
        )
        assert label_line(request, alone) == json.dumps(record, ensure_ascii=False) + "\n"
        assert record["evaluations"] == len(verdicts) == len(record["tried"])
    assert {record["correct"] for record in found} == {True, False}
    assert len(score.asked) == len(set(score.asked)) == sum(record["evaluations"] for record in found)


def test_header_and_files(tmp_path):
    label(tmp_path, Score())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([HEADER, LABELS])
    assert read_header(tmp_path) == make_header()
    assert list(read_labels(tmp_path)) == records((tmp_path / LABELS).read_bytes())


def test_load_dataset_reads_the_file(tmp_path):
    content = label(tmp_path, Score())
    files = str(tmp_path / LABELS)
    loaded = datasets.load_dataset("json", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.column_names == list(FIELDS)
    assert list(loaded) == records(content)


def test_counts_of_a_run(tmp_path):
    score = Score()
    writer = LabelWriter(tmp_path, make_header(), IDS, 2)
    counts = label_all(REQUESTS, DEPTH, SETTINGS, 0, score, writer)
    found = list(read_labels(tmp_path))
    assert counts == {
        "examples": 5,
        "evaluations": len(score.asked),
        "base_correct": sum(r["base_correct"] for r in found),
        "fixed": sum(r["correct"] and not r["base_correct"] for r in found),
        "shortened": sum(r["base_correct"] and len(r["path"]) < DEPTH for r in found),
    }
    assert counts["fixed"] > 0


def test_group_size_changes_no_result(whole, tmp_path):
    for group_size in (1, 3, 5, 99):
        assert label(tmp_path / str(group_size), Score(), group_size) == whole[0]


def test_seed_changes_the_paths(whole, tmp_path):
    other = label(tmp_path, Score(), seed=1)
    assert [r["tried"] for r in records(other)] != [r["tried"] for r in records(whole[0])]
    assert [r["id"] for r in records(other)] == IDS


def test_every_example_has_its_own_chance():
    draws = {(seed, name): example_rng(seed, name).random() for seed in (0, 1) for name in ("a", "b")}
    assert len(set(draws.values())) == 4
    assert draws[0, "a"] == example_rng(0, "a").random()


def test_a_finished_file_is_left_alone(whole, tmp_path):
    label(tmp_path, Score())
    idle = Score(limit=0)
    assert label(tmp_path, idle) == whole[0]


def test_killed_in_any_round(whole, tmp_path):
    """The rerun asks for no verdict that the killed run had."""
    content, score = whole
    assert score.rounds > 15
    for limit in range(score.rounds):
        folder = tmp_path / str(limit)
        first, second = Score(limit), Score()
        with pytest.raises(Killed):
            label(folder, first)
        assert label(folder, second) == content
        assert first.asked + second.asked == score.asked
        assert not (folder / JOURNAL).exists()


def test_killed_again_and_again(whole, tmp_path):
    content, score = whole
    asked = []
    for _ in range(score.rounds - 1):
        with pytest.raises(Killed):
            label(tmp_path, once := Score(limit=1))
        asked += once.asked
    assert label(tmp_path, last := Score(limit=1)) == content
    assert asked + last.asked == score.asked


def test_killed_between_the_labels_and_the_journal(whole, tmp_path, monkeypatch):
    """The group is in the file, and the journal still tells of it."""
    content, score = whole

    def die(path, missing_ok=False):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", die)
        with pytest.raises(Killed):
            label(tmp_path, first := Score())
    second = Score()
    assert (tmp_path / JOURNAL).exists()
    assert label(tmp_path, second) == content
    assert first.asked + second.asked == score.asked


def test_killed_while_labels_are_written(whole, tmp_path, monkeypatch):
    """A torn group is cut off and written again from the journal, without a question asked."""
    content, score = whole
    append = labels_module.append_text
    group = len(b"".join(content.splitlines(keepends=True)[:2]))
    for part in (1, 10, group // 3, group // 2, group - 1, group):

        def torn(path, text, part=part):
            if path.name == LABELS:
                with path.open("ab") as file:
                    file.write(text.encode()[:part])
                raise Killed
            append(path, text)

        folder = tmp_path / str(part)
        with monkeypatch.context() as patch:
            patch.setattr(labels_module, "append_text", torn)
            with pytest.raises(Killed):
                label(folder, first := Score())
        second = Score()
        assert label(folder, second) == content
        assert first.asked + second.asked == score.asked


def test_a_file_cut_anywhere_is_finished(whole, tmp_path):
    content = whole[0]
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    cuts = sorted({*range(0, len(content), 151), *ends, *(end - 1 for end in ends), *(end + 1 for end in ends[:-1])})
    label(tmp_path, Score())
    for cut in cuts:
        (tmp_path / LABELS).write_bytes(content[:cut])
        again = Score()
        assert label(tmp_path, again) == content
        whole_groups = sum(end <= cut for end in ends) // 2 * 2 if cut < len(content) else len(IDS)
        assert {example_id for example_id, _ in again.asked} == set(IDS[whole_groups:])


def test_a_journal_cut_anywhere_is_continued(whole, tmp_path):
    one_group = Score()
    assert label(tmp_path / "whole", one_group, group_size=5) == whole[0]
    with pytest.raises(Killed):
        label(tmp_path, Score(limit=5), group_size=5)
    journal = (tmp_path / JOURNAL).read_bytes()
    assert journal.count(b"\n") == 5 and not (tmp_path / LABELS).exists()
    ends = [i + 1 for i, byte in enumerate(journal) if byte == ord("\n")]
    for cut in sorted({*range(0, len(journal), 53), *ends, *(end - 1 for end in ends)}):
        folder = tmp_path / str(cut)
        LabelWriter(folder, make_header(), IDS, 5)
        (folder / JOURNAL).write_bytes(journal[:cut])
        again = Score()
        assert label(folder, again, group_size=5) == whole[0]
        assert again.rounds == one_group.rounds - sum(end <= cut for end in ends)


def test_a_torn_journal_is_mended_before_it_goes_on(whole, tmp_path):
    """What comes after a torn line must not be written behind it: the run may be killed once more."""
    with pytest.raises(Killed):
        label(tmp_path, Score(limit=4), group_size=5)
    journal = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(journal[:-9])
    with pytest.raises(Killed):
        label(tmp_path, Score(limit=2), group_size=5)
    assert (tmp_path / JOURNAL).read_bytes().startswith(journal)
    assert label(tmp_path, Score(), group_size=5) == whole[0]


def damage(line: str, **changes) -> str:
    return json.dumps(json.loads(line) | changes) + "\n"


def without(line: str, name: str) -> str:
    record = json.loads(line)
    del record[name]
    return json.dumps(record) + "\n"


DAMAGES = {
    "garbage": (lambda line: "\x00garbage\x00\n", "no JSON"),
    "half a line": (lambda line: line[: len(line) // 2] + "\n", "no JSON"),
    "empty line": (lambda line: "\n", "no JSON"),
    "a list": (lambda line: "[1]\n", "list"),
    "no route": (lambda line: without(line, "route"), '"route"'),
    "no prompt": (lambda line: without(line, "prompt"), '"prompt"'),
    "text for a verdict": (lambda line: damage(line, base_correct="yes"), '"base_correct"'),
    "other depth": (lambda line: damage(line, route=[1] * 5, path=[0, 1, 2, 3, 4]), "5 counts; the model has 4"),
    "count of three": (lambda line: damage(line, route=[3, 1, 1, 1], path=[0, 0, 0, 1, 2, 3]), "0, 1 and 2"),
    "nested route": (lambda line: damage(line, route=[[1], 1, 1, 1]), '"route"'),
    "text in the path": (lambda line: damage(line, path=["0", 1, 2, 3]), '"path"'),
    "path of another route": (lambda line: damage(line, route=[1, 1, 1, 1], path=[0, 1, 2]), "do not agree"),
    "path out of order": (lambda line: damage(line, route=[1, 1, 1, 1], path=[0, 2, 1, 3]), "order"),
    "path outside": (lambda line: damage(line, route=[1, 1, 1, 1], path=[0, 1, 2, 4]), "outside 0..3"),
}


def damaged_folder(folder: Path, change, number: int = 2) -> Path:
    lines = label(folder, Score()).decode().splitlines(keepends=True)
    lines[number - 1] = change(lines[number - 1])
    (folder / LABELS).write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_line_is_named(tmp_path, name):
    change, reason = DAMAGES[name]
    folder = damaged_folder(tmp_path, change)
    before = (folder / LABELS).read_bytes()
    for read in (lambda: label(folder, Score()), lambda: list(read_labels(folder))):
        with pytest.raises(UserError) as caught:
            read()
        assert f"{folder / LABELS}, line 2:" in str(caught.value) and reason in str(caught.value)
    assert (folder / LABELS).read_bytes() == before


def test_line_that_is_no_text_is_named(tmp_path):
    folder = damaged_folder(tmp_path, lambda line: line)
    content = (folder / LABELS).read_bytes().split(b"\n")
    (folder / LABELS).write_bytes(b"\n".join([content[0], b"\xff\xfe", *content[2:]]))
    with pytest.raises(UserError, match="line 2"):
        label(folder, Score())
    with pytest.raises(UserError, match="line 2"):
        list(read_labels(folder))


@pytest.mark.parametrize("change", [lambda lines: lines[1::-1] + lines[2:], lambda lines: lines + lines[:1]])
def test_foreign_example_is_named(tmp_path, change):
    lines = label(tmp_path, Score()).decode().splitlines(keepends=True)
    (tmp_path / LABELS).write_text("".join(change(lines)), encoding="utf-8")
    with pytest.raises(UserError, match=r"line (1|6): it is example .* does not belong here"):
        label(tmp_path, Score())


def test_other_arguments_are_refused_and_named(tmp_path):
    with pytest.raises(Killed):
        label(tmp_path, Score(limit=9))
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError) as caught:
        label(tmp_path, Score(), header=make_header(num_simulations=8) | {"model": "other"})
    message = str(caught.value)
    assert "num_simulations" in message and "7" in message and "8" in message
    assert "model" in message and "'m'" in message and "'other'" in message and "--output_dir" in message
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_only_what_differs_is_named(tmp_path):
    """Of some twenty arguments, a person should not have to look for the one that changed."""
    LabelWriter(tmp_path, make_header(), IDS, 2)
    with pytest.raises(UserError) as caught:
        LabelWriter(tmp_path, make_header(seed=1), IDS, 2)
    assert "seed" in str(caught.value) and "widening" not in str(caught.value)


def test_another_commit_may_continue(whole, tmp_path):
    with pytest.raises(Killed):
        label(tmp_path, Score(limit=9))
    assert label(tmp_path, Score(), header=make_header() | {"git_commit": "def"}) == whole[0]
    assert read_header(tmp_path)["git_commit"] == "abc"


def test_labels_without_a_header_are_not_continued(tmp_path):
    label(tmp_path, Score())
    (tmp_path / HEADER).unlink()
    with pytest.raises(UserError, match=HEADER):
        label(tmp_path, Score())
    with pytest.raises(UserError, match="holds no labels"):
        list(read_labels(tmp_path))


@pytest.mark.parametrize("content", ["{", "[]", '{"format": "other"}'])
def test_damaged_header(tmp_path, content):
    label(tmp_path, Score())
    (tmp_path / HEADER).write_text(content)
    for read in (lambda: label(tmp_path, Score()), lambda: list(read_labels(tmp_path))):
        with pytest.raises(UserError, match=HEADER):
            read()


def test_reading_labels_that_are_not_there_yet(tmp_path):
    with pytest.raises(UserError, match="data_generation.py"):
        list(read_labels(tmp_path))
    LabelWriter(tmp_path, make_header(), IDS, 2)
    with pytest.raises(UserError, match="no labels yet"):
        list(read_labels(tmp_path))
    (tmp_path / LABELS).touch()
    with pytest.raises(UserError, match="no labels yet"):
        list(read_labels(tmp_path))


def search_two(known: dict, priors=(None, None)) -> tuple[list[SearchResult], list, Score]:
    """Results of a group of two examples, the rounds that were noted, and the score function."""
    score, rounds, finished = Score(share=0.0), [], []
    settings = SearchSettings(num_simulations=3)
    results = search_group(
        REQUESTS[:2], DEPTH, settings, 0, score, known, rounds.append, finished.append, priors=priors
    )
    assert len(finished) == 2 and all(any(a is b for b in results) for a in finished)
    return results, rounds, score


def test_each_example_has_its_own_prior():
    """The first move after the full path edits the layer of least influence."""
    results, _, _ = search_two({}, priors=([1, 2, 3, 4], [4, 3, 2, 1]))
    assert [list(result.verdicts)[1] for result in results] == [(0, 1, 1, 1), (1, 1, 1, 0)]


def test_priors_are_asked_for_a_group(tmp_path):
    """A rerun asks again for those of unfinished groups alone, and a prior changes the paths."""
    asked = []

    def prior(requests):
        asked.append([request.example.id for request in requests])
        return [[1, 2, 3, 4]] * len(requests)

    writer = LabelWriter(tmp_path, make_header(), IDS, 2)
    label_all(REQUESTS, DEPTH, SETTINGS, 0, Score(), writer, prior)
    assert asked == [IDS[:2], IDS[2:4], IDS[4:]]
    assert all(record["tried"][1]["path"] == [1, 2, 3] for record in read_labels(tmp_path) if record["evaluations"] > 1)


def test_replay_takes_whole_rounds_only():
    """A round of which one verdict is missing is scored as a whole: batches may matter to the last bit."""
    done, rounds, _ = search_two({})
    known = {(name, route): right for verdicts in rounds for name, route, right in verdicts}
    for missing in rounds:
        name, route, _ = missing[0]
        again, noted, score = search_two({key: right for key, right in known.items() if key != (name, route)})
        assert [result.verdicts for result in again] == [result.verdicts for result in done]
        assert noted == [missing] and score.asked == [(name, route) for name, route, _ in missing]


def test_one_run_at_a_time(tmp_path):
    mine, other = tmp_path / "mine", tmp_path / "other"
    with only_run(mine), only_run(other), pytest.raises(UserError, match="another run is writing"), only_run(mine):
        pytest.fail("two runs hold one folder")
    with only_run(mine):
        pass


def test_the_lock_goes_with_a_killed_process(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from routing.locks import only_run\n"
        "with only_run(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            with pytest.raises(UserError, match=str(tmp_path)), only_run(tmp_path):
                pytest.fail("two processes hold one folder")
        finally:
            process.send_signal(signal.SIGKILL)
    with only_run(tmp_path):
        pass


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes"), only_run(tmp_path):
        pytest.fail("several processes write one file")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with only_run(tmp_path):
        pass


def test_chance_comes_from_the_seed_alone(whole, tmp_path):
    Random(5).random()
    assert label(tmp_path, Score()) == whole[0]
