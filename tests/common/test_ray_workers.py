"""Workers of a cluster, with a stand-in for Ray; tests/labels/test_on_cluster.py has the real one."""

from __future__ import annotations

import sys
from collections import Counter

import pytest
from fake_ray import Dies, FakeRay

from routing.common import ray_workers
from routing.common.errors import UserError
from routing.common.ray_workers import Workers


@pytest.fixture
def ray(monkeypatch) -> FakeRay:
    fake = FakeRay(CPU=2)
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def squares(deaths: dict[int, int]):
    """Work that ends its worker so many times at a number."""
    left = Counter(deaths)

    def work(number: int) -> int:
        if left[number]:
            left[number] -= 1
            raise Dies(f"at {number}")
        if number == 5:
            raise UserError("five is refused")
        return number * number

    return work


def done(numbers: list[int], deaths: dict[int, int] | None = None, count: int | None = None) -> dict[int, int]:
    work, left = squares(deaths or {}), list(numbers)

    def task():
        return (left[0], f"square of {left[0]}", (left.pop(0),)) if left else None

    # Nothing is over before a worker was there to take it.
    found = list(Workers(lambda: work, "squares", count).results(task, lambda: True))
    assert len(found) == len(numbers), "each once"
    return dict(found)


@pytest.mark.parametrize("count", [None, 1, 5])
def test_each_task_is_done_once(ray, count):
    assert done([1, 2, 3, 4], count=count) == {1: 1, 2: 4, 3: 9, 4: 16}
    assert len(ray.workers) == (count or 2) and len(set(ray.workers)) == len(ray.workers)
    assert ray.log.count("square of 3") == 1 and ray.log.count("start") == len(ray.workers)


def test_the_version_is_that_of_the_package():
    assert f'ray = ["ray[default]=={ray_workers.VERSION}"]' in (ray_workers.ROOT / "pyproject.toml").read_text()


def test_no_tasks_at_all(ray):
    assert done([]) == {}


def test_a_gpu_each_where_the_cluster_has_some(monkeypatch):
    fake = FakeRay(CPU=16, GPU=3)
    monkeypatch.setitem(sys.modules, "ray", fake)
    done([1])
    assert len(fake.workers) == 3 and fake.asked == {"num_cpus": 1, "num_gpus": 1}


def test_what_a_lost_worker_had_is_done_by_another(ray, capsys):
    assert done([1, 2, 3], {2: 2, 3: 1}) == {1: 1, 2: 4, 3: 9}
    assert len(ray.workers) == 2 + 3 and ray.log.count("square of 2") == 3
    told = capsys.readouterr().err
    assert "a worker was lost at square of 2 (it died: at 2)" in told and "more lines" not in told


def test_the_last_task_is_not_given_up(ray):
    assert done([7], {7: 1}, count=1) == {7: 49}


def test_what_ends_three_workers_is_an_error(ray):
    with pytest.raises(UserError, match=r"^square of 2 ended 3 workers: it died: at 2\..*the same command goes on"):
        done([1, 2, 3], {2: 9})
    assert ray.log.count("square of 2") == 3


def test_an_error_of_a_task_is_told_as_it_is(ray):
    with pytest.raises(UserError, match="^five is refused$"):
        done([1, 5, 3])


def test_an_error_at_the_start_is_told_with_what_nodes_need(ray):
    def build():
        raise ModuleNotFoundError("No module named 'routing'")

    with pytest.raises(UserError, match="a worker cannot start: ModuleNotFoundError.*'routing'.*Every node needs"):
        list(Workers(build, "squares").results(lambda: (1, "one", (1,)), lambda: True))


def test_workers_that_never_start_are_an_error(ray):
    def build():
        raise Dies("no memory")

    with pytest.raises(UserError, match="its start ended 6 workers"):
        list(Workers(build, "squares").results(lambda: (1, "one", (1,)), lambda: True))


def test_it_waits_while_others_have_what_is_left(ray, monkeypatch):
    waits = []
    monkeypatch.setattr(ray_workers.time, "sleep", waits.append)
    workers = Workers(lambda: squares({}), "squares")
    assert list(workers.results(lambda: None, lambda: len(waits) == 3)) == []
    assert waits == [ray_workers.POLL] * 3


@pytest.mark.parametrize(
    ("address", "said"),
    [("127.0.0.1:1", "no Ray cluster answers .*refused"), ("somewhere", "must be auto, or HOST:PORT")],
)
def test_no_cluster_at_an_address(address, said):
    with pytest.raises(UserError, match=said), ray_workers.cluster(address):
        pass
