"""Workers of a Ray cluster: actors that build something once, such as a model, and then do one task after another.

A worker that dies, or whose node does, is replaced, and its task is done again by another one. Ray is an optional
package (https://docs.ray.io): nothing here imports it before a cluster is asked for.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from routing.common.errors import UserError

VERSION = "2.60.0"
ROOT = Path(__file__).resolve().parents[2]
TRIES = 3  # of a task: what ends that many workers is not the fault of a machine.
NUMBERS = count(1)  # of the workers of this process, whose names differ
POLL = 1.0  # seconds between looks for new tasks while none can be had

Key = Hashable
Work = Callable[..., object]
Task = tuple[Key, str, tuple]  # key, name on the dashboard, arguments


def ray_problems(engine: str, address: str | None, workers: int | None) -> list[str]:
    """What is wrong with --engine, --address and --workers; Ray is not imported."""
    found = [] if workers is None or workers >= 1 else [f"--workers {workers} must be at least 1"]
    if engine == "ray":
        if importlib.util.find_spec("ray") is None:
            found.append(f"--engine ray: Ray is not installed; pip install 'ray[default]=={VERSION}'")
        return found
    given = {"address": address, "workers": workers}
    return found + [
        f"--{name} {value} is for --engine ray; give both or neither"
        for name, value in given.items()
        if value is not None
    ]


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Be connected to a cluster: one that runs, or one of this machine alone, which ends with the block.

    Args:
        address: HOST:PORT of its head node, "auto" for one that this machine belongs to, None to start one.

    Raises:
        UserError: if there is no cluster at the address.
    """
    _check_address(address)
    import ray

    # A worker finds the code where the driver has it; nodes without this folder have the package installed.
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false"}
    here = {} if address else {"include_dashboard": False}
    try:
        # Without an address Ray would take a cluster that happens to run here.
        ray.init(address or "local", runtime_env={"env_vars": environment}, log_to_driver=False, **here)
    except ConnectionError as error:
        raise UserError(no_cluster(address, error)) from error
    try:
        yield
    finally:
        ray.shutdown()


def no_cluster(address: str | None, error: Exception) -> str:
    reason = next(iter(str(error).splitlines()), "")
    return (
        f"--address {address}: no Ray cluster answers ({reason}). Start one with `ray start --head`, or leave "
        "--address out to use this machine alone."
    )


def _check_address(address: str | None) -> None:
    """Refuse an address where nobody listens: Ray itself waits for minutes."""
    if address in (None, "auto"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--address {address} must be auto, or HOST:PORT such as 10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(no_cluster(address, error)) from error


class Workers:
    """Workers of the cluster this process is connected to.

    Args:
        build: called once on each worker; what it returns is called with the arguments of each task. It must be found
            by its name on every node (a function of a module, or a `functools.partial` of one).
        title: what they do, as Ray's dashboard shows it.
        number: of workers; default one for each GPU of the cluster, or for each CPU where it has none.
    """

    def __init__(self, build: Callable[[], Work], title: str, number: int | None = None):
        import ray

        class Worker:
            def __repr__(self) -> str:
                return title  # Stands in front of what the worker prints.

            def start(self, build: Callable[[], Work], place: str) -> None:
                # Not when it is made: an error there would look as if the worker had died.
                if os.path.isdir(place):  # Relative paths are those of the command.
                    os.chdir(place)
                self.work = build()

            def do(self, *arguments) -> object:
                return self.work(*arguments)

        self._ray = ray
        resources = ray.cluster_resources()
        gpus = resources.get("GPU", 0) >= 1
        self.count = number or max(int(resources.get("GPU" if gpus else "CPU", 1)), 1)
        self._kind = ray.remote(num_cpus=1, num_gpus=int(gpus))(Worker)
        self._build, self._title = build, title
        self._starting: dict = {}  # reference -> worker
        self._running: dict = {}  # reference -> (worker, task)
        self._idle: list = []
        self._again: list[Task] = []
        self._deaths: Counter[Key] = Counter()
        for _ in range(self.count):
            self._start_one()

    def _start_one(self) -> None:
        worker = self._kind.options(name=f"{self._title} {os.getpid()}-{next(NUMBERS)}").remote()
        self._starting[worker.start.remote(self._build, os.getcwd())] = worker

    def results(self, task: Callable[[], Task | None], over: Callable[[], bool]) -> Iterator:
        """(key, result) of each task, as they are done.

        Args:
            task: the next one: its key, its name on the dashboard, and the arguments. None: there is none just now.
            over: whether there will be none any more, asked while none is being done and there is none.

        Raises:
            UserError: as a worker raised it, or if a task ended three workers. Other errors of tasks come as they are.
        """
        while True:
            while self._idle and (given := self._next(task)):
                worker = self._idle.pop()
                self._running[worker.do.options(name=given[1]).remote(*given[2])] = (worker, given)
            # A free worker found nothing to do.
            if self._idle and not self._running and over():
                return
            flight = [*self._running, *self._starting]
            if not flight:
                time.sleep(POLL)  # Other processes are at work on what is left.
                continue
            for reference in self._ray.wait(flight, num_returns=1, timeout=POLL)[0]:
                yield from self._finished(reference)

    def _next(self, task: Callable) -> Task | None:
        return self._again.pop() if self._again else task()

    def _finished(self, reference) -> Iterator:
        started = self._starting.pop(reference, None)
        worker, given = (started, None) if started is not None else self._running.pop(reference)
        try:
            result = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            if given is None:
                raise UserError(
                    f"a worker cannot start: {error.cause!r}. Every node needs the toolkit, the same packages and the "
                    "model."
                ) from error
            raise
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.NodeDiedError) as error:
            self._lost(given, error)
            return
        self._idle.append(worker)
        if given is None:
            self._deaths[None] = 0
        else:
            yield given[0], result

    def _lost(self, given: Task | None, error: Exception) -> None:
        key, name = (given[0], given[1]) if given else (None, "its start")
        self._deaths[key] += 1
        reason = str(error).strip().splitlines()[0]
        if self._deaths[key] >= TRIES * (1 if given else self.count):
            raise UserError(
                f"{name} ended {self._deaths[key]} workers: {reason}. Perhaps a node has too little memory; what was "
                "finished is kept, and the same command goes on."
            )
        print(f"\na worker was lost at {name} ({reason}); another one takes its place", file=sys.stderr)
        if given:
            self._again.append(given)
        self._start_one()
