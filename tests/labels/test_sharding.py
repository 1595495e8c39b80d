"""Several processes on one label folder: they share its groups, and what a killed one leaves is finished by others."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import fake_search
import psutil
import pytest
from conftest import save_tiny_base
from fake_search import DEPTH, Score, label, make_header, make_request, open_folder

from routing.commands import generate as data_generation
from routing.commands.work import generate as generate_work
from routing.common.errors import UserError
from routing.labels import writing
from routing.labels.arguments import DataGenerationArguments
from routing.labels.reading import HEADER, LABELS
from routing.labels.spans import group_starts
from routing.labels.writing import LOCK, PARTS, LabelFolder
from routing.report.card_labels import CARD
from routing.tasks.drawn import QUESTIONS
from routing.tasks.examples import Example

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}{os.pathsep}{ROOT / 'tests/labels'}",
    "OMP_NUM_THREADS": "1",
}
FINISHED = {HEADER, LABELS, QUESTIONS, LOCK}
REQUESTS = [make_request(index) for index in range(13)]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(writing, "POLL", 0.02)


def wait_for(ready: Callable[[], object], seconds: float = 120):
    """The first true value of `ready()`."""
    deadline = time.monotonic() + seconds
    while not (value := ready()):
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.005)
    return value


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def journals(folder: Path) -> list[Path]:
    """Journals with at least one whole round."""
    return [path for path in (folder / PARTS).glob("*.journal.jsonl") if path.read_bytes().endswith(b"\n")]


def stop_at_work(process: subprocess.Popen, folder: Path) -> Path:
    """Stop a process within a group; the journal of the group.

    The journal is removed before the folder is locked for the merge, so the stopped process holds no other lock.
    """
    while True:
        wait_for(lambda: journals(folder))
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
        if found := journals(folder):
            return found[0]
        process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """Bytes of one process."""
    return share(tmp_path_factory.mktemp("whole"), [Score()])


def share(folder: Path, scores: list[Score], group_size: int = 2) -> bytes:
    """Search in as many threads as there are scorers, each with its own view of the folder."""
    errors = []

    def work(score):
        try:
            fake_search.run(open_folder(folder, group_size, requests=REQUESTS), score, REQUESTS)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=[score]) for score in scores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    return (folder / LABELS).read_bytes()


@pytest.mark.parametrize("group_size", [1, 2, 13])
def test_views_of_one_folder_split_the_groups(whole, tmp_path, group_size):
    scores = [Score(pause=0.002) for _ in range(4)]
    assert share(tmp_path, scores, group_size) == whole
    groups = [tuple(group) for score in scores for group in score.groups]
    ids = [request.example.id for request in REQUESTS]
    assert sorted(groups) == sorted(tuple(ids[at:end]) for at, end in pairwise(group_starts(13, group_size)))
    assert sum(bool(score.groups) for score in scores) > 1
    assert names(tmp_path) == FINISHED


def test_views_of_one_folder_race_to_the_end(whole, tmp_path):
    """Without any work, claims, merges and the removal of the parts come close together."""
    for number in range(10):
        assert share(tmp_path / str(number), [Score() for _ in range(3)], 1) == whole
        assert names(tmp_path / str(number)) == FINISHED


def test_groups_are_claimed_once(tmp_path):
    views = [open_folder(tmp_path) for _ in range(2)]
    claims = [view.groups() for view in views]
    held = [next(claims[0]), next(claims[1]), None]
    assert [group.index for group in held[:2]] == [0, 1]
    views[1].finish(held[1], ["second\n"] * 2)
    assert not (tmp_path / LABELS).exists()
    assert [view.finished() for view in views] == [2, 2]
    assert next(claims[1]).index == 2
    views[0].finish(held[0], ["first\n"] * 2)
    assert (tmp_path / LABELS).read_text() == "first\n" * 2 + "second\n" * 2
    claims[1].close()
    assert next(claims[0]).index == 2
    claims[0].close()


def test_questions_are_drawn_once(tmp_path):
    drawn, views = [], []

    def draw(path):
        drawn.append(path)
        time.sleep(0.05)
        path.write_text((tmp_path / "other" / QUESTIONS).read_text())

    open_folder(tmp_path / "other")
    threads = [
        threading.Thread(target=lambda: views.append(LabelFolder(tmp_path / "one", make_header(), 2, draw)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drawn) == 1 and [len(view) for view in views] == [5] * 4


def test_a_killed_process_leaves_its_group_and_its_rounds(tmp_path):
    content = label(tmp_path / "whole", alone := Score())
    folder = tmp_path / "shared"
    command = [sys.executable, "-m", "fake_search", folder, "2", "0.05"]
    with subprocess.Popen(command, env=ENVIRONMENT) as process:
        try:
            # Stopped, it still holds its group: the other process does the rest, and waits.
            journal = stop_at_work(process, folder)
            rounds = [json.loads(line) for line in journal.read_text().splitlines()]
            score = Score()
            other = threading.Thread(target=label, args=[folder, score])
            other.start()
            assert journal.name.startswith("000000")
            wait_for(lambda: names(folder / PARTS) >= {"000001.jsonl", "000002.jsonl"})
            time.sleep(0.1)
            assert other.is_alive() and len(score.groups) == 2
        finally:
            process.kill()
    other.join(timeout=60)
    assert (folder / LABELS).read_bytes() == content
    known = {(name, tuple(route)) for verdicts in rounds for name, route, _ in verdicts}
    assert known and not known & set(score.asked)
    assert known | set(score.asked) == set(alone.asked)
    assert names(folder) == FINISHED


# Real processes with a real model


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_tiny_base(
        tmp_path_factory.mktemp("base"),
        DEPTH,
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
    )


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Iterator[Path]:
    """A relative path, because the drawing depends on the name: so every run of the tests draws alike."""
    path = Path("colours.jsonl")
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("questions"))
    rng = random.Random(0)
    words = ("red", "green", "blue", "dark", "warm", "cold", "old", "new", "big", "small", "round", "fast", "slow")
    rows = [
        {"question": f"What is thing {number} like?", "answer": rng.randrange(3), "choices": rng.sample(words, 3)}
        for number in range(24)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    yield path
    os.chdir(before)


def arguments(base: Path, questions: Path, output: Path, *others) -> list[str]:
    listed = [
        "--model", base, "--dataset", questions, "--output_dir", output, "--num_simulations", 25, "--group_size", 2,
        "--device", "cpu", *others,
    ]  # fmt: skip
    return list(map(str, listed))


def generate(monkeypatch, *listed) -> None:
    """data_generation.py in this process."""
    monkeypatch.setattr(sys, "argv", ["data_generation.py", *listed])
    data_generation.main()


@pytest.fixture(scope="module")
def single(base, questions, tmp_path_factory) -> bytes:
    """Labels of one process."""
    output = tmp_path_factory.mktemp("single") / "out"
    with pytest.MonkeyPatch.context() as patch:
        generate(patch, *arguments(base, questions, output))
    content = (output / LABELS).read_bytes()
    assert content.count(b"\n") == 24
    return content


@contextmanager
def launched(log: Path, *listed) -> Iterator[subprocess.Popen]:
    """data_generation.py in two processes of `accelerate launch`; all of them are gone afterwards."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no", "--main_process_port", str(port)]
    command = [*launch, *options, str(ROOT / "data_generation.py"), *listed]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=file, stderr=file)
    try:
        yield process
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()


def workers(launcher: subprocess.Popen, folder: Path) -> list[psutil.Process]:
    """Processes of a launcher that hold a group, with a round of it noted."""
    held = []
    for child in psutil.Process(launcher.pid).children(recursive=True):
        try:
            files = {Path(file.path) for file in child.open_files()}
        except psutil.Error:
            continue
        if any(journal.with_name(f"{journal.name[:6]}.lock") in files for journal in journals(folder)):
            held.append(child)
    return held


@pytest.mark.slow
def test_accelerate_gives_the_bytes_of_one_process(base, questions, single, tmp_path):
    output, log = tmp_path / "out", tmp_path / "log"
    with launched(log, *arguments(base, questions, output)) as launcher:
        assert launcher.wait(timeout=120) == 0, log.read_text()[-3000:]
    assert (output / LABELS).read_bytes() == single
    assert names(output) == FINISHED | {CARD}
    reports = [line for line in log.read_text().splitlines() if "searched by this process" in line]
    done = [int(line.split(" examples; ")[1].split()[0]) for line in reports]
    # The one that came too late may have found nothing to do.
    assert sum(done) == 24 and (len(done) == 2 or "is complete" in log.read_text())


@pytest.mark.slow
def test_a_killed_worker_of_accelerate(base, questions, single, tmp_path, monkeypatch):
    output, log = tmp_path / "out", tmp_path / "log"
    listed = arguments(base, questions, output)
    with launched(log, *listed) as launcher:
        wait_for(lambda: launcher.poll() is not None or workers(launcher, output))[0].kill()
        assert launcher.wait(timeout=60) != 0
    done = (output / LABELS).read_bytes() if (output / LABELS).exists() else b""
    assert len(done) < len(single)
    generate(monkeypatch, *listed)
    assert (output / LABELS).read_bytes() == single
    assert names(output) == FINISHED | {CARD}


def test_a_process_finishes_what_a_killed_one_beside_it_held(base, questions, single, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    listed = arguments(base, questions, output)
    command = [sys.executable, str(ROOT / "data_generation.py"), *listed]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
        held = []

        def kill_in_the_end() -> None:
            try:
                parts = {f"{group:06d}.jsonl" for group in range(held[0] + 1, 12)}
                wait_for(lambda: parts <= names(output / PARTS))
            finally:
                process.kill()

        killer = threading.Thread(target=kill_in_the_end)
        try:
            held.append(int(stop_at_work(process, output).name[:6]))
            killer.start()
            generate(monkeypatch, *listed)
        finally:
            process.kill()
            killer.join()
    assert (output / LABELS).read_bytes() == single
    assert names(output) == FINISHED | {CARD}
    assert f"{24 - 2 * held[0]} of them searched by this process" in capsys.readouterr().err


# Many examples

STREAM = """
import resource, sys, tracemalloc
from pathlib import Path
from fake_search import DEPTH, make_header
from routing.labels.labelling import Labeller, label_all
from routing.labels.writing import LabelFolder
from routing.scoring.requests import Request
from routing.search.mcts import SearchSettings
from routing.search.results import Verdict
from routing.tasks.drawn import draw

class AtOnce:
    prepare = finish = staticmethod(lambda requests: None)
    verdicts = staticmethod(lambda requests, routes: [Verdict(True)] * len(requests))

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - start

start = 0
start = peak()
questions, folder = sys.argv[1], Path(sys.argv[2])
header = make_header()
folder = LabelFolder(folder, header, 64, lambda path: draw(questions, "search", None, 0, path))
drawn = peak()
if sys.argv[3] == "traced":
    tracemalloc.start()
labeller = Labeller(DEPTH, SearchSettings(num_simulations=1), 0, AtOnce())
label_all(folder, lambda e: Request(e, "generate", e.question, (1,), max_new_tokens=1), labeller, show=False)
print(drawn, peak() if sys.argv[3] == "rss" else tracemalloc.get_traced_memory()[1])
"""


def stream(folder: Path, count: int, kind: str) -> tuple[int, int]:
    """Bytes that drawing and labelling so many examples takes at most."""
    folder.mkdir()
    with (folder / "questions.jsonl").open("w") as file:
        for number in range(count):
            file.write(json.dumps({"question": f"{number} is what? {'x' * 300}", "answer": str(number)}) + "\n")
    command = [sys.executable, "-c", STREAM, folder / "questions.jsonl", folder / "out", kind]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    with (folder / "out" / LABELS).open("rb") as file:
        assert sum(1 for _ in file) == count
    drawn, labelled = map(int, result.stdout.split())
    return drawn, labelled


@pytest.mark.slow
def test_labelling_holds_one_group_at_a_time(tmp_path):
    """A question and its label would be more than 1 KB."""
    peaks = [stream(tmp_path / str(count), count, "traced")[1] for count in (256, 768)]
    assert peaks[1] - peaks[0] < 300 * (768 - 256)


@pytest.mark.slow
def test_a_hundred_thousand_examples_fit_into_little_memory(tmp_path):
    """Kept of each example are its place on disk and its hash; with its text and label it would be 2 KB and more."""
    drawn, labelled = stream(tmp_path / "many", 100_000, "rss")
    assert drawn < 100 * 2**20 and labelled < 110 * 2**20


# Labels with re-tests and margins


def entries(output: Path) -> list[dict]:
    return [entry for line in (output / LABELS).read_text().splitlines() for entry in json.loads(line)["tried"]]


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("paraphrase", []),
        ("permute", ["--scoring", "generate"]),
        ("alone", []),
        ("paraphrase", ["--reward", "margin", "--scoring", "loglikelihood_bytes", "--move_order", "late"]),
        ("none", ["--reward", "margin", "--scoring", "loglikelihood_bytes", "--move_order", "late"]),
    ],
)
def test_verified_labels(base, questions, single, tmp_path, monkeypatch, capsys, name, others):
    output = tmp_path / "out"
    generate(monkeypatch, *arguments(base, questions, output, "--num_samples", 12, "--verify", name, *others))
    header = json.loads((output / HEADER).read_text())
    assert header["arguments"]["verify"] == name
    tried, report = entries(output), capsys.readouterr().err
    lucky = sum(entry.get("lucky", False) for entry in tried)
    assert not any(entry.get("lucky") and entry["correct"] for entry in tried)
    assert (f"{lucky} right paths failed the re-test" in report) == (name != "none")
    if "margin" in others:
        # Both compare choices by their bytes here, and a path counts as right where it is ahead both times.
        assert all(entry["correct"] == (entry["margin"] > 0) for entry in tried if entry["margin"])
        assert {entry["correct"] for entry in tried} == {True, False}
    else:
        assert not any("margin" in entry for entry in tried)
    if name == "paraphrase" and not others:
        assert lucky > 0
    if name == "alone":
        # In float32 nothing is lucky: the labels are those without a re-test.
        assert lucky == 0 and single.startswith((output / LABELS).read_bytes())


OPEN = Example("own", "Capital of France?", "Paris")
CHOOSING = Example("quiz", "Which is cold?", "a tundra", ("a marsh", "a tundra"), 1, "letter")
COMPARES = "--scoring {} compares choices, and own has questions without any; use --scoring generate or auto"
GRADED = (
    "--reward margin compares the loglikelihoods of choices, and {} is scored by generated answers; use --reward binary"
)
LISTS = (
    "--verify permute changes the order of choices that a prompt lists, and those of {} list none; use --verify "
    "paraphrase, or --scoring generate for questions with choices"
)


@pytest.mark.parametrize(
    ("example", "given", "expected"),
    [
        (OPEN, {}, []),
        (OPEN, {"scoring": "loglikelihood"}, [COMPARES.format("loglikelihood")]),
        (OPEN, {"scoring": "loglikelihood_norm"}, [COMPARES.format("loglikelihood_norm")]),
        (OPEN, {"reward": "margin"}, [GRADED.format("own")]),
        (OPEN, {"reward": "margin", "verify": "permute"}, [GRADED.format("own"), LISTS.format("own")]),
        (OPEN, {"verify": "paraphrase"}, []),
        (CHOOSING, {"reward": "margin", "verify": "paraphrase"}, []),
        (CHOOSING, {"scoring": "loglikelihood_bytes", "reward": "margin", "verify": "alone"}, []),
        (CHOOSING, {"reward": "margin", "scoring": "generate"}, [GRADED.format("quiz")]),
        (CHOOSING, {"verify": "permute"}, [LISTS.format("quiz")]),
        (CHOOSING, {"verify": "permute", "scoring": "generate"}, []),
    ],
)
def test_what_cannot_be_scored_is_said(example, given, expected):
    assert generate_work.scoring_problems(example, DataGenerationArguments(**given)) == expected


def test_refused_questions_leave_nothing_behind(base, questions, tmp_path, monkeypatch):
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text(questions.read_text() + json.dumps({"question": "Capital of France?", "answer": "Paris"}) + "\n")
    output = tmp_path / "out"
    with pytest.raises(UserError) as caught:
        listed = arguments(base, mixed, output, "--reward", "margin", "--verify", "permute")
        generate(monkeypatch, *listed)
    assert set(str(caught.value).splitlines()) == {f"- {text.format('mixed')}" for text in (GRADED, LISTS)}
    assert names(output) == {LOCK}
    # The refused arguments bind nothing.
    generate(monkeypatch, *arguments(base, mixed, output, "--num_samples", "1"))
    assert (output / LABELS).read_text().count("\n") == 1
