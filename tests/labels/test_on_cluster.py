"""Labels by workers of a Ray cluster: the bytes of one process, whatever is killed on the way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import fake_search
import pytest
from conftest import save_tiny_base
from fake_ray import Dies, FakeRay
from fake_search import open_folder

from routing.commands import generate as data_generation
from routing.common import ray_workers
from routing.common.cli import parse
from routing.common.errors import UserError
from routing.labels import writing
from routing.labels.arguments import DataGenerationArguments
from routing.labels.labelling import Labeller
from routing.labels.on_cluster import Found, label_on
from routing.labels.reading import HEADER, LABELS
from routing.labels.records import label_line
from routing.labels.writing import LOCK, PARTS
from routing.report.card_labels import CARD
from routing.tasks.drawn import QUESTIONS

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS_ASKED = 40


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return save_tiny_base(tmp_path_factory.mktemp("model") / "base", 6, **sizes)


def arguments(base: Path, output: Path) -> list[str]:
    words = ["--model", base, "--dataset", "arithmetic", "--num_samples", QUESTIONS_ASKED, "--num_simulations", 12]
    return [str(word) for word in [*words, "--group_size", 4, "--output_dir", output]]


@pytest.fixture(scope="module")
def single(base, tmp_path_factory) -> bytes:
    output = tmp_path_factory.mktemp("single") / "out"
    data_generation.main(arguments(base, output))
    return (output / LABELS).read_bytes()


def test_a_wrong_engine_is_refused_before_anything_starts(base, tmp_path, monkeypatch):
    words = arguments(base, tmp_path)
    with pytest.raises(UserError, match="--workers 2 is for --engine ray"):
        parse(DataGenerationArguments, [*words, "--workers", "2"])
    with pytest.raises(UserError, match="--address auto is for --engine ray"):
        parse(DataGenerationArguments, [*words, "--address", "auto"])
    with pytest.raises(UserError, match="--store_features 8 writes beside the labels"):
        parse(DataGenerationArguments, [*words, "--engine", "ray", "--store_features", "8"])
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ray\[default\]==2\.60\.0'"):
        parse(DataGenerationArguments, [*words, "--engine", "ray"])


@contextmanager
def nodes(count: int) -> Iterator:
    """A cluster of so many nodes with a CPU each, on this machine; the first is the head and has none."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        yield cluster, [cluster.add_node(num_cpus=1) for _ in range(count)]
    finally:
        cluster.shutdown()


def driver(cluster, words: list[str], log: Path) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "data_generation.py"), *words, "--engine", "ray"]
    command += ["--address", cluster.address]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log.open("ab") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file)


def wait_for(ready: Callable[[], object], process: subprocess.Popen, log: Path, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)


def some_are_done(output: Path) -> bool:
    parts = list((output / PARTS).glob("??????.jsonl"))
    return bool(parts) or (output / LABELS).exists()


def lines(output: Path) -> int:
    return (output / LABELS).read_bytes().count(b"\n") if (output / LABELS).exists() else 0


@pytest.mark.slow
def test_two_nodes_one_of_which_is_lost(base, single, tmp_path):
    output, log = tmp_path / "out", tmp_path / "log"
    with nodes(2) as (cluster, (first, _)):
        process = driver(cluster, arguments(base, output), log)
        wait_for(lambda: "2 workers" in log.read_text() and some_are_done(output), process, log)
        cluster.remove_node(first, allow_graceful=False)
        assert lines(output) < QUESTIONS_ASKED, "the node was lost too late"
        assert process.wait(timeout=240) == 0, log.read_text()[-3000:]
    assert "a worker was lost" in log.read_text()
    assert (output / LABELS).read_bytes() == single
    assert {path.name for path in output.iterdir()} == {HEADER, LABELS, QUESTIONS, LOCK, CARD}


@pytest.mark.slow
def test_a_lost_driver_goes_on(base, single, tmp_path):
    output, log = tmp_path / "out", tmp_path / "log"
    with nodes(1) as (cluster, _):
        process = driver(cluster, arguments(base, output), log)
        wait_for(lambda: lines(output), process, log)
        process.kill()
        process.wait()
        kept = (output / LABELS).read_bytes()
        assert 0 < kept.count(b"\n") < QUESTIONS_ASKED
        process = driver(cluster, arguments(base, output), log)
        assert process.wait(timeout=240) == 0, log.read_text()[-3000:]
    assert (output / LABELS).read_bytes() == single
    assert single.startswith(kept)
    searched = int(log.read_text().split(f"{QUESTIONS_ASKED} examples; ")[1].split()[0])
    assert searched == QUESTIONS_ASKED - kept.count(b"\n")


def ends(pid_file: str, number: int) -> int:
    """A task that ends its worker for one number, always, and for another one the first time."""
    if number == 13 or (number == 7 and not Path(pid_file).exists()):
        Path(pid_file).write_text(str(os.getpid()))
        os._exit(1)
    if number == 5:
        raise UserError("five is refused")
    return number * number


def made(pid_file: str) -> Callable[[int], int]:
    return partial(ends, pid_file)


@pytest.mark.slow
def test_workers_replace_one_another(tmp_path):
    pytest.importorskip("ray")

    def done(numbers: list[int], pid_file: str) -> dict[int, int]:
        left = list(numbers)
        workers = ray_workers.Workers(partial(made, str(tmp_path / pid_file)), "squares", 2)
        task = lambda: (left[-1], f"square of {left[-1]}", (left.pop(),)) if left else None  # noqa: E731
        return dict(workers.results(task, lambda: not left))

    path = str(ROOT / "tests/labels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([path, *(str(ROOT / f"tests{room}") for room in ("", "/common"))]))
        with ray_workers.cluster(None):
            assert done([1, 2, 7, 3], "once") == {1: 1, 2: 4, 7: 49, 3: 9}
            with pytest.raises(UserError, match="square of 13 ended 3 workers"):
                done([13], "always")
            with pytest.raises(UserError, match="^five is refused$"):
                done([5], "refused")


def test_the_folder_is_the_same_with_workers(tmp_path, monkeypatch):
    """With a stand-in for Ray and for the search: one group ends its worker, another is taken by another process."""
    monkeypatch.setitem(sys.modules, "ray", FakeRay(CPU=3))
    monkeypatch.setattr(writing, "POLL", 0.01)
    requests = [fake_search.make_request(index) for index in range(23)]
    whole = open_folder(tmp_path / "whole", 3, requests=requests)
    fake_search.run(whole, fake_search.Score(), requests)
    by_id, ended = {request.example.id: request for request in requests}, []

    def build():
        def search(examples):
            if len(ended) == 0 and examples[0].id == requests[3].example.id:
                ended.append(1)
                raise Dies("once")
            labeller = Labeller(fake_search.DEPTH, fake_search.SETTINGS, 0, fake_search.Score())
            own = [by_id[example.id] for example in examples]
            found = labeller.search_group(own, {}, lambda verdicts: None)
            return Found([label_line(*pair) for pair in zip(own, found)], labeller.counts)

        return search

    folder = open_folder(tmp_path / "shared", 3, requests=requests)
    whole_labels = tmp_path / "whole" / LABELS
    with ExitStack() as other:
        group = folder.claim(other)
        folder.finish(group, whole_labels.read_text().splitlines(keepends=True)[: len(group.examples)])
    counts = label_on(folder, ray_workers.Workers(build, "searching"))
    assert (tmp_path / "shared" / LABELS).read_bytes() == whole_labels.read_bytes()
    assert counts.examples == len(requests) - len(group.examples) and ended
    assert not (tmp_path / "shared" / PARTS).exists()
