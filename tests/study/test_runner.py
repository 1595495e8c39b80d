"""Stages: each is made once, by any number of processes, and what a kill cut off is made again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_ray import Dies, FakeRay

from routing.common.errors import UserError
from routing.common.locks import held
from routing.common.ray_workers import Workers
from routing.study.runner import FAILED, Runner, attempt
from routing.study.stages import Later, Stage

ROOT = Path(__file__).resolve().parents[2]
STAGES = [
    Stage("m/seed-0/a", "a", ("train.py", "--x=1"), trains=True),
    Stage("m/seed-0/b", "b", ("train.py", "--x=2"), ("m/seed-0/a",)),
    Stage("m/seed-0/c", "c", ("train.py", "--x=3"), ("m/seed-0/b",)),
]


class Fake:
    """A runner of stages that makes a file for each, and notes which."""

    def __init__(self, failing=()):
        self.made, self.failing = [], list(failing)

    def __call__(self, stage, command, log, output):
        self.made.append(stage.name[-1])
        if stage.name[-1] in self.failing:
            raise UserError("the loss is not finite")
        (output / stage.name).mkdir(parents=True, exist_ok=True)
        (output / stage.name / "result.txt").write_text(" ".join(command))


def runner(tmp_path, fake, stages=STAGES, **options):
    return Runner(stages, tmp_path, run=fake, wait=0.01, say=lambda text: None, **options)


def test_stages_are_made_once_in_order(tmp_path):
    fake = Fake()
    runner(tmp_path, fake).make_all()
    runner(tmp_path, fake).make_all()
    assert fake.made == ["a", "b", "c"]
    record = json.loads((tmp_path / ".stages/m/seed-0/a/done.json").read_text())
    assert record["command"] == ["train.py", "--x=1"] and record["seconds"] >= 0


def test_a_changed_stage_and_all_behind_it_are_made_anew(tmp_path):
    fake = Fake()
    runner(tmp_path, fake).make_all()
    changed = [STAGES[0], replace(STAGES[1], words=("train.py", "--x=9")), STAGES[2]]
    runner(tmp_path, fake, changed).make_all()
    assert fake.made == ["a", "b", "c", "b", "c"]
    assert (tmp_path / "m/seed-0/b/result.txt").read_text() == "train.py --x=9"
    # What a stage rests on beside its command counts as well.
    runner(tmp_path, fake, [*changed[:2], replace(STAGES[2], depends="other questions")]).make_all()
    assert fake.made[5:] == ["c"]


def test_what_was_begun_otherwise_is_not_gone_on_with(tmp_path):
    """A kill in the middle of a stage, then another plan: train.py would refuse to resume."""
    fake = Fake(failing=["a"])
    with pytest.raises(UserError):
        runner(tmp_path, fake).make_all()
    begun = tmp_path / "m/seed-0/.work/a"
    for changed in (STAGES[0], replace(STAGES[0], words=("train.py", "--x=7"))):
        begun.mkdir(parents=True)
        with pytest.raises(UserError):
            runner(tmp_path, fake, [changed], retry_failed=True).make_all()
        if changed is STAGES[0]:
            assert begun.exists(), "the same run goes on"
            begun.rmdir()
    assert not begun.exists()


def test_a_study_that_was_moved_is_done_still(tmp_path):
    fake, first, second = Fake(), tmp_path / "first", tmp_path / "second"
    words = [("train.py", f"--output_dir={first}"), ("-m", "routing", "study", "/a/plan.yaml", "--only", "b")]
    stages = [replace(stage, words=own) for stage, own in zip(STAGES, words)]
    first.mkdir()
    runner(first, fake, stages).make_all()
    first.rename(second)
    words = [("train.py", f"--output_dir={second}"), ("-m", "routing", "study", "/b/plan.yaml", "--only", "b")]
    runner(second, fake, [replace(stage, words=own) for stage, own in zip(STAGES, words)]).make_all()
    assert fake.made == ["a", "b"]


def test_a_word_that_another_stage_finds_is_read_when_it_is_done(tmp_path):
    found = tmp_path / "found.json"

    class Finding(Fake):
        def __call__(self, stage, command, log, output):
            found.write_text('{"6": "0:3"}')
            super().__call__(stage, command, log, output)

    fake = Finding()
    stages = [STAGES[0], replace(STAGES[1], words=("train.py", "--path", Later(found, "6")))]
    runner(tmp_path, fake, stages).make_all()
    assert (tmp_path / "m/seed-0/b/result.txt").read_text() == "train.py --path 0:3"


def test_a_failure_stops_what_needs_it_and_no_more(tmp_path):
    other = Stage("m/seed-0/d", "d", ("train.py",))
    fake = Fake(failing=["b"])
    told = (
        r"(?s)1 of 4 stages failed\. 1 more need them: m/seed-0/c\. --retry_failed.*m/seed-0/b: the loss is not finite"
    )
    with pytest.raises(UserError, match=told):
        runner(tmp_path, fake, [*STAGES, other]).make_all()
    assert fake.made == ["a", "b", "d"]
    with pytest.raises(UserError, match="1 of 4 stages failed"):
        runner(tmp_path, fake, [*STAGES, other]).make_all()
    assert fake.made == ["a", "b", "d"], "what failed is not tried again unasked"
    fake.failing = []
    runner(tmp_path, fake, [*STAGES, other], retry_failed=True).make_all()
    assert fake.made == ["a", "b", "d", "b", "c"]
    assert not list(tmp_path.rglob(FAILED))


def test_a_retried_stage_that_fails_again_ends(tmp_path):
    fake = Fake(failing=["a"])
    for _ in range(2):
        with pytest.raises(UserError, match="1 of 3 stages failed"):
            runner(tmp_path, fake, retry_failed=True).make_all()
    assert fake.made == ["a", "a"]


def test_workers_of_a_cluster_make_each_stage_once_behind_what_it_needs(tmp_path, monkeypatch):
    ray, fake, deaths = FakeRay(CPU=2), Fake(failing="d"), ["b"]
    monkeypatch.setitem(sys.modules, "ray", ray)
    aside = [Stage("m/seed-0/d", "d", ("train.py", "--x=4")), Stage("m/seed-0/e", "e", ("x",), ("m/seed-0/d",))]

    def work(stage, command, log, output):
        if stage.name[-1] in deaths:
            deaths.remove(stage.name[-1])
            raise Dies("out of memory")
        return attempt(stage, command, log, output, fake)

    def share():
        runner(tmp_path, fake, [*STAGES, *aside]).make_on(Workers(lambda: work, "stages"))

    with pytest.raises(UserError, match="1 of 5 stages failed. 1 more need them: m/seed-0/e[.] "):
        share()
    assert [name for name in fake.made if name != "d"] == ["a", "b", "c"] and fake.made.count("d") == 1
    assert "stage m/seed-0/b" in ray.log
    assert json.loads((tmp_path / ".stages/m/seed-0/c/done.json").read_text())["command"] == ["train.py", "--x=3"]
    fake.failing = []
    with pytest.raises(UserError, match="--retry_failed"):
        share()
    assert fake.made.count("d") == 1  # Not tried again unasked.
    runner(tmp_path, fake, [*STAGES, *aside], retry_failed=True).make_on(Workers(lambda: work, "stages"))
    assert fake.made[-2:] == ["d", "e"]


def test_what_another_process_makes_is_waited_for(tmp_path):
    fake = Fake()
    own = runner(tmp_path, fake)
    own.state("m/seed-0/a").mkdir(parents=True)
    with held(own.state("m/seed-0/a") / "lock", wait=False):
        waited = []

        def other(seconds):  # The other process ends while this one waits.
            waited.append(seconds)
            if len(waited) == 2:
                own.state("m/seed-0/a").joinpath("done.json").write_text(
                    json.dumps({"digest": own.digest(STAGES[0]), "kind": "a", "seconds": 1.0})
                )

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("routing.study.runner.time.sleep", other)
            own.make_all()
    assert fake.made == ["b", "c"] and len(waited) == 2


def test_the_test_is_opened_before_its_stage_runs(tmp_path):
    order = []

    def refuse(stage):
        order.append(stage.name[-1])
        if stage.name.endswith("b"):
            raise UserError("the plan was changed")

    fake = Fake()
    with pytest.raises(UserError, match="the plan was changed"):
        runner(tmp_path, fake, opened=refuse).make_all()
    assert order == ["a", "b"] and fake.made == ["a"]


def test_progress_tells_how_long_the_rest_takes(tmp_path):
    own = runner(tmp_path, Fake())
    assert own.progress() == "0 of 3 stages done"
    own.state("m/seed-0/a").mkdir(parents=True)
    own.state("m/seed-0/a").joinpath("done.json").write_text('{"kind": "b", "seconds": 120, "digest": ""}')
    # A b took 120 s, so the other takes as long; of c nothing is known.
    assert own.progress() == "1 of 3 stages done, about 2 minutes of work for 1 of the 2 left"


PROGRAM = """
import sys, time
from pathlib import Path
from routing.study.runner import Runner
from routing.study.stages import Stage

output = Path(sys.argv[1])

def run(stage, command, log, output):
    with (output / "made.txt").open("a") as file:
        file.write(stage.name + "\\n")
    if stage.name == "m/seed-0/3" and not (output / "go").exists():
        (output / "begun").touch()
        time.sleep(60)
    time.sleep(0.03)

stages = [Stage(f"m/seed-0/{n}", "x", ("train.py", str(n)), (f"m/seed-0/{n - 1}",) if n % 4 else ()) for n in range(12)]
Runner(stages, output, run=run, wait=0.02, say=lambda text: None).make_all()
"""


def start(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], env=environment, stderr=subprocess.PIPE)


def made(tmp_path):
    return (tmp_path / "made.txt").read_text().split()


def test_two_processes_share_a_folder_and_a_killed_one_is_replaced(tmp_path):
    first = start(tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert made(tmp_path) == [f"m/seed-0/{n}" for n in range(4)]
    (tmp_path / "go").touch()
    both = [start(tmp_path), start(tmp_path)]
    for process in both:
        assert process.wait(60) == 0, process.stderr.read()
    assert sorted(made(tmp_path)) == sorted([f"m/seed-0/{n}" for n in range(12)] + ["m/seed-0/3"])
