"""Stands in for Ray: workers of this process, which do what they are given when somebody waits for it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace


class TaskError(Exception):
    def __init__(self, cause: Exception):
        super().__init__(str(cause))
        self.cause = cause


class ActorError(Exception):
    pass


class NodeError(Exception):
    pass


class Dies(Exception):
    """A task that raises it ends its worker."""


class Method:
    def __init__(self, function: Callable, log: list[str]):
        self.function, self.log, self.name = function, log, function.__name__

    def options(self, name: str) -> Method:
        self.name = name
        return self

    def remote(self, *arguments) -> Callable:
        self.log.append(self.name)
        return lambda: self.function(*arguments)


class FakeRay:
    """Attributes: log: names of what was asked of workers; workers: names of those that were made."""

    exceptions = SimpleNamespace(RayTaskError=TaskError, RayActorError=ActorError, NodeDiedError=NodeError)

    def __init__(self, **resources: float):
        self.resources, self.log, self.workers = resources, [], []

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def remote(self, **resources):
        self.asked = resources

        def kind(cls):
            def options(name: str):
                def remote(*arguments):
                    self.workers.append(name)
                    worker = cls(*arguments)
                    return SimpleNamespace(start=Method(worker.start, self.log), do=Method(worker.do, self.log))

                return SimpleNamespace(remote=remote)

            return SimpleNamespace(options=options)

        return kind

    def wait(self, flight: list, num_returns: int, timeout: float):
        return flight[:1], flight[1:]

    def get(self, reference: Callable):
        try:
            return reference()
        except Dies as error:
            raise ActorError(f"it died: {error}\nand more lines") from error
        except Exception as error:
            raise TaskError(error) from error
