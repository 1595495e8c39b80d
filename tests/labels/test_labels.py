"""Label files: their content, and that a run killed anywhere ends with the bytes of an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random

import datasets
import pytest
from fake_search import (
    DEPTH,
    IDS,
    REQUESTS,
    SETTINGS,
    Killed,
    Score,
    label,
    make_header,
    open_folder,
    run,
)

from routing.common.errors import UserError
from routing.common.locks import held, only_run
from routing.labels import writing
from routing.labels.labelling import Counts, Labeller, example_rng
from routing.labels.reading import HEADER, LABELS, read_header, read_labels
from routing.labels.records import FIELDS, example_of, label_line, parse_label
from routing.labels.writing import LOCK, PARTS, Group, LabelFolder
from routing.search.mcts import SearchSettings, search
from routing.search.results import SearchResult, Verdict, run_search
from routing.tasks.drawn import QUESTIONS

ROOT = Path(__file__).resolve().parents[2]
JOURNAL = f"{PARTS}/000000.journal.jsonl"
RIGHT, WRONG = Verdict(True), Verdict(False)


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
    result = SearchResult(
        {(1, 1, 1, 1): RIGHT, (1, 1, 0, 0): WRONG, (2, 1, 0, 1): RIGHT, (1, 0, 0, 1): Verdict(True, 0.5)}
        | {(0, 0, 0, 1): Verdict(False, -0.25, lucky=True)}
    )
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
            {"path": [0, 3], "correct": True, "margin": 0.5},
            {"path": [3], "correct": False, "margin": -0.25, "lucky": True},
        ],
        "evaluations": 5,
    }
    assert set(json.loads(line)) == set(FIELDS)
    assert parse_label(line, DEPTH) == json.loads(line)
    assert example_of(parse_label(line, DEPTH)) == example


def test_an_example_that_nothing_answers_right_is_kept():
    """Dropping it would make the accuracy after the search 100 % by construction."""
    record = json.loads(label_line(REQUESTS[0], SearchResult({(1, 1, 1, 1): WRONG, (1, 1, 0, 1): WRONG})))
    assert (record["base_correct"], record["correct"], record["valid_paths"]) == (False, False, [])
    assert record["route"] == [1, 1, 1, 1] and record["gold"] is None and record["accepted"] == ["nought"]


def test_the_file_has_every_example_in_order(whole, tmp_path):
    content, score = whole
    found = records(content)
    assert [record["id"] for record in found] == IDS
    for record, request in zip(found, REQUESTS, strict=True):
        verdicts = {tuple(t["path"]): t["correct"] for t in record["tried"]}
        searching = search(DEPTH, SETTINGS, example_rng(0, record["id"]))
        alone = run_search(searching, lambda route, i=record["id"]: score.verdict(i, route))
        assert label_line(request, alone) == json.dumps(record, ensure_ascii=False) + "\n"
        assert record["evaluations"] == len(verdicts) == len(record["tried"])
    assert {record["correct"] for record in found} == {True, False}
    assert len(score.asked) == len(set(score.asked)) == sum(record["evaluations"] for record in found)


def test_header_and_files(tmp_path):
    label(tmp_path, Score())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([HEADER, LABELS, QUESTIONS, LOCK])
    assert read_header(tmp_path) == make_header() | {"shrinking_groups": True}
    assert list(read_labels(tmp_path)) == records((tmp_path / LABELS).read_bytes())


def test_load_dataset_reads_the_file(tmp_path):
    content = label(tmp_path, Score())
    files = str(tmp_path / LABELS)
    loaded = datasets.load_dataset("json", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.column_names == list(FIELDS)
    assert list(loaded) == records(content)


def test_labels_are_checked_by_the_first_process_and_not_under_the_lock(tmp_path, monkeypatch):
    """It may take minutes, in which the others would wait."""
    label(tmp_path, Score())
    free = []

    def check(self, depth):
        with held(tmp_path / LOCK, wait=False) as had:
            free.append(had)

    monkeypatch.setattr(LabelFolder, "_check", check)
    open_folder(tmp_path)
    assert free == [True]
    monkeypatch.setenv("RANK", "1")
    open_folder(tmp_path)
    assert free == [True]


def test_counts_of_a_run(tmp_path):
    score = Score()
    counts = run(open_folder(tmp_path), score)
    found = list(read_labels(tmp_path))
    assert counts == Counts(
        examples=5,
        evaluations=len(score.asked),
        base_correct=sum(r["base_correct"] for r in found),
        fixed=sum(r["correct"] and not r["base_correct"] for r in found),
        shortened=sum(r["base_correct"] and len(r["path"]) < DEPTH for r in found),
        lucky=0,
    )
    assert counts.fixed > 0


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
        assert not (folder / PARTS).exists()


def test_killed_again_and_again(whole, tmp_path):
    content, score = whole
    asked = []
    for _ in range(score.rounds - 1):
        with pytest.raises(Killed):
            label(tmp_path, once := Score(limit=1))
        asked += once.asked
    assert label(tmp_path, last := Score(limit=1)) == content
    assert asked + last.asked == score.asked


@contextmanager
def killed_at_removing(name: str, monkeypatch):
    unlink = Path.unlink

    def die(path, missing_ok=False):
        if path.name == name:
            raise Killed
        unlink(path, missing_ok)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "unlink", die)
        yield


@pytest.mark.parametrize("name", ["000001.journal.jsonl", "000001.lock"])
def test_killed_while_a_finished_group_is_tidied_up(whole, tmp_path, monkeypatch, name):
    """The group is in the file already, and the journal may still tell of it."""
    content, score = whole
    with killed_at_removing(name, monkeypatch):
        label(tmp_path, first := Score())
    assert (tmp_path / PARTS / name).exists() and not (tmp_path / PARTS / "000001.jsonl").exists()
    assert (tmp_path / LABELS).read_bytes().count(b"\n") == 4
    assert len(open_folder(tmp_path)) == 5
    second = Score()
    assert label(tmp_path, second) == content
    assert first.asked + second.asked == score.asked


@pytest.mark.parametrize("name", ["000001.journal.jsonl", "000001.lock", "000001.jsonl"])
def test_killed_while_a_group_that_waits_is_tidied_up(whole, tmp_path, monkeypatch, name):
    """A group that is finished before the one in front of it waits in a part, and is appended together with it."""
    lines = whole[0].decode().splitlines(keepends=True)
    folder = open_folder(tmp_path)
    with ExitStack() as stack, killed_at_removing(name, monkeypatch):
        first = folder.claim(stack)
        second = folder.claim(stack, {first.index})
        second.write_round([])
        folder.finish(second, lines[2:4])
        folder.finish(first, lines[:2])
    assert (tmp_path / PARTS / "000001.jsonl").exists()
    done = 4 if name == "000001.jsonl" else 0
    assert (tmp_path / LABELS).read_bytes().count(b"\n") == 4 if done else not (tmp_path / LABELS).exists()
    score = Score()
    assert label(tmp_path, score) == whole[0]
    assert {asked for asked, _ in score.asked} == {*IDS[: 0 if done else 2], IDS[4]}


def test_many_parts_are_appended_with_one_flush(whole, tmp_path, monkeypatch):
    lines, flushed = whole[0].decode().splitlines(keepends=True), []
    append = writing.append_text
    folder = open_folder(tmp_path, 1)
    monkeypatch.setattr(writing, "append_text", lambda path, text: flushed.append(append(path, text)))
    with ExitStack() as stack:
        groups: list[Group] = []
        while (group := folder.claim(stack, [own.index for own in groups])) is not None:
            groups.append(group)
        for group in groups[::-1]:
            folder.finish(group, [lines[group.index]])
    assert (tmp_path / LABELS).read_bytes() == whole[0] and len(groups) == 5
    assert len(flushed) == 2, "the first group, and all that waited for it"


def test_killed_while_labels_are_written(whole, tmp_path, monkeypatch):
    """A torn group is cut off and written again from the journal, without a question asked."""
    content, score = whole
    append = writing.append_text
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
            patch.setattr(writing, "append_text", torn)
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
        open_folder(folder, 5)
        (folder / PARTS).mkdir()
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


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_other_arguments_are_refused_and_named(tmp_path):
    with pytest.raises(Killed):
        label(tmp_path, Score(limit=9))
    files = contents(tmp_path)
    with pytest.raises(UserError) as caught:
        label(tmp_path, Score(), header=make_header(num_simulations=8) | {"model": "other"})
    message = str(caught.value)
    assert "num_simulations" in message and "7" in message and "8" in message
    assert "model" in message and "'m'" in message and "'other'" in message and "--output_dir" in message
    assert contents(tmp_path) == files


def test_only_what_differs_is_named(tmp_path):
    """Of some twenty arguments, a person should not have to look for the one that changed."""
    open_folder(tmp_path)
    with pytest.raises(UserError) as caught:
        open_folder(tmp_path, header=make_header(seed=1))
    assert "seed" in str(caught.value) and "widening" not in str(caught.value)


def test_another_commit_may_continue(whole, tmp_path):
    with pytest.raises(Killed):
        label(tmp_path, Score(limit=9))
    assert label(tmp_path, Score(), header=make_header() | {"git_commit": "def"}) == whole[0]
    assert read_header(tmp_path)["git_commit"] == "abc"


def test_killed_between_the_questions_and_the_header(whole, tmp_path):
    """The questions may have been drawn with other arguments: they are drawn anew."""
    open_folder(tmp_path, requests=REQUESTS[3:])
    (tmp_path / HEADER).unlink()
    assert label(tmp_path, Score()) == whole[0]


def test_refused_questions_leave_an_empty_folder(whole, tmp_path):
    def refuse(path):
        raise UserError("no such questions")

    with pytest.raises(UserError, match="no such"):
        writing.LabelFolder(tmp_path, make_header(seed=1), 2, refuse)
    assert label(tmp_path, Score()) == whole[0]


@pytest.mark.parametrize("left", [0, 3])
def test_labels_that_vanish_during_a_run_are_searched_again(whole, tmp_path, left):
    folder = open_folder(tmp_path)

    class Vandal(Score):
        def prepare(self, requests):
            super().prepare(requests)
            if len(self.groups) == 2:
                lines = (tmp_path / LABELS).read_bytes().splitlines(keepends=True)
                (tmp_path / LABELS).unlink()
                if left:
                    (tmp_path / LABELS).write_bytes(lines[0][:left])

    run(folder, Vandal())
    assert (tmp_path / LABELS).read_bytes() == whole[0]


def test_margins_are_never_put_together_from_two_runs(tmp_path):
    """Their last digits hang on the batch, so that a killed group starts over."""

    class Margins(Score):
        def verdict(self, example_id, route):
            return super().verdict(example_id, route)._replace(margin=-sum(route) / 8)

    others = {"settings": SearchSettings(num_simulations=7, reward="margin"), "replays": False, "margins": True}
    run(open_folder(tmp_path / "whole", 5), whole := Margins(), **others)
    with pytest.raises(Killed):
        run(open_folder(tmp_path / "killed", 5), Margins(limit=3), **others)
    run(open_folder(tmp_path / "killed", 5), again := Margins(), **others)
    assert again.asked == whole.asked
    assert (tmp_path / "killed" / LABELS).read_bytes() == (tmp_path / "whole" / LABELS).read_bytes()
    record = next(read_labels(tmp_path / "killed"))
    assert [entry["margin"] for entry in record["tried"]] == [-len(entry["path"]) / 8 for entry in record["tried"]]


def test_labels_of_a_binary_reward_hold_no_margins(whole, tmp_path):
    class Margins(Score):
        def verdict(self, example_id, route):
            return super().verdict(example_id, route)._replace(margin=-sum(route) / 8)

    assert label(tmp_path, Margins()) == whole[0]


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
    open_folder(tmp_path)
    with pytest.raises(UserError, match="no labels yet"):
        list(read_labels(tmp_path))
    (tmp_path / LABELS).touch()
    with pytest.raises(UserError, match="no labels yet"):
        list(read_labels(tmp_path))


def search_two(known: dict, priors=(None, None)) -> tuple[list[SearchResult], list, Score]:
    """Results of a group of two examples, the rounds that were noted, and the scorer."""
    score, rounds = Score(share=0.0), []
    labeller = Labeller(DEPTH, SearchSettings(num_simulations=3), 0, score, lambda requests: priors)
    results = labeller.search_group(REQUESTS[:2], known, rounds.append)
    assert score.groups == [IDS[:2]] and sorted(score.finished) == sorted(IDS[:2])
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

    run(open_folder(tmp_path), Score(), prior=prior)
    assert asked == [IDS[:2], IDS[2:4], IDS[4:]]
    # Layer 0 is of least influence; where the full path is right, it goes together with its neighbour.
    second = {tuple(r["tried"][1]["path"]): r["base_correct"] for r in read_labels(tmp_path) if r["evaluations"] > 1}
    assert second and all(path == ((2, 3) if right else (1, 2, 3)) for path, right in second.items())


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
        "import sys, time; from pathlib import Path; from routing.common.locks import only_run\n"
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
