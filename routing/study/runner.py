"""Running stages: by any number of processes that share one folder, each stage once; what is done is not done again.

The state of a stage lies in .stages/NAME of its output folder: a lock while it is made, output.log, and then done.json
with the command and the seconds, or failed.txt. A process that is killed, however hard, leaves neither, and the next
one makes the stage again; commands that keep what they have found go on from there.
"""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from routing.common.errors import UserError
from routing.common.files import write_json, write_text
from routing.common.locks import held
from routing.common.ray_workers import Workers
from routing.common.stages import ROOT, call
from routing.study.stages import Stage

DONE, FAILED, LOG, BEGUN = "done.json", "failed.txt", "output.log", "begun.txt"
WAIT = 5.0  # seconds between looks at what other processes make


def run_command_of(stage: Stage, command: list[str], log: Path, output: Path) -> None:
    """Run a stage in a process of its own; one of train.py that was begun goes on."""
    script, *words = command
    if script == "-m":
        call([sys.executable, "-m", *words], log)
        return
    # train.py with --resume starts where there is no run yet.
    resume = ["--resume"] if stage.trains and "--objective=value" not in words else []
    call([sys.executable, str(ROOT / script), *words, *resume], log)


@dataclass(frozen=True)
class Begun:
    """A stage that is being made: its command, and the digest of it and of what it is made from."""

    command: list[str]
    digest: str


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: why it failed, or None, and what it took."""

    failure: str | None
    seconds: float
    cpu_seconds: float


def attempt(stage: Stage, command: list[str], log: Path, output: Path, run=run_command_of) -> Outcome:
    """Make a stage here."""
    began, used, failure = time.perf_counter(), cpu_seconds(), None
    try:
        run(stage, command, log, output)
    except UserError as error:
        failure = str(error)
    return Outcome(failure, round(time.perf_counter() - began, 2), round(cpu_seconds() - used, 2))


def on_worker() -> Callable[..., Outcome]:
    """What a worker of a cluster does."""
    return attempt


@dataclass
class Runner:
    """The stages of a study, as this process sees them.

    Attributes:
        stages: in an order in which each comes behind those that it needs.
        output: folder of the study.
        opened: called before a stage that answers test questions; it may refuse.
        run: makes one stage: (stage, command, log, output).
    """

    stages: Sequence[Stage]
    output: Path
    retry_failed: bool = False
    opened: Callable[[Stage], None] = lambda stage: None
    run: Callable[[Stage, list[str], Path, Path], None] = run_command_of
    wait: float = WAIT
    say: Callable[[str], None] = print
    failed: dict[str, str] = field(default_factory=dict)
    retried: set[str] = field(default_factory=set)

    def state(self, name: str) -> Path:
        return self.output / ".stages" / name

    def record(self, name: str) -> dict | None:
        """What done.json says of a stage; None while it is not done."""
        path = self.state(name) / DONE
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def digest(self, stage: Stage) -> str:
        """Of a stage's command, and of all that it was made from; those must be done."""
        made_from = [(self.record(name) or {}).get("digest") for name in stage.needs]
        own = [portable(stage.command(), self.output), stage.depends, made_from]
        return hashlib.sha256(json.dumps(own).encode()).hexdigest()

    def is_done(self, stage: Stage) -> bool:
        record = self.record(stage.name)
        ready = all(self.record(name) is not None for name in stage.needs)
        return record is not None and ready and record["digest"] == self.digest(stage)

    def settled(self) -> dict[str, bool]:
        """Whether each stage is done, and all that it needs is: the order is that of the list."""
        found: dict[str, bool] = {}
        for stage in self.stages:
            found[stage.name] = all(found.get(need, False) for need in stage.needs) and self.is_done(stage)
        return found

    def ready(self) -> list[Stage]:
        """The stages that are not done, and wait for nothing but somebody who makes them."""
        settled, found = self.settled(), []
        for stage in self.stages:
            if settled[stage.name] or stage.name in self.failed or not all(settled.get(n, False) for n in stage.needs):
                continue
            note = self.state(stage.name) / FAILED
            if note.exists() and not (self.retry_failed and stage.name not in self.retried):
                self.failed[stage.name] = note.read_text(encoding="utf-8").strip()
            else:
                found.append(stage)
        return found

    @contextmanager
    def claimed(self, stage: Stage) -> Iterator[bool]:
        """Whether this process is the one that makes a stage, as long as the block lasts."""
        folder = self.state(stage.name)
        folder.mkdir(parents=True, exist_ok=True)
        with held(folder / "lock", wait=False) as had:
            yield had and not self.is_done(stage)

    def make_all(self) -> None:
        """Make what is not done and nobody else makes; wait for others where their stages are needed.

        Raises:
            UserError: at the end, naming stages that failed and those that needed them.
        """
        while waiting := self.ready():
            for stage in waiting:
                with self.claimed(stage) as mine:
                    if mine:
                        begun = self.begin(stage)
                        made = attempt(stage, begun.command, self.state(stage.name) / LOG, self.output, self.run)
                        self.finish(stage, begun, made)
                        break
            else:
                time.sleep(self.wait)
        self.tell_failures()

    def make_on(self, workers: Workers) -> None:
        """The same by workers of a cluster, which see the output folder as this process does.

        Raises:
            UserError: as for `make_all`.
        """
        claims: dict[str, tuple[ExitStack, Stage, Begun]] = {}

        def task():
            for stage in self.ready():
                if stage.name in claims:
                    continue
                with ExitStack() as stack:
                    if stack.enter_context(self.claimed(stage)):
                        begun = self.begin(stage)
                        claims[stage.name] = stack.pop_all(), stage, begun
                        log = self.state(stage.name) / LOG
                        return stage.name, f"stage {stage.name}", (stage, begun.command, log, self.output)
            return None

        with ExitStack() as every:
            every.callback(lambda: [stack.close() for stack, *_ in claims.values()])
            for name, made in workers.results(task, lambda: not self.ready()):
                stack, stage, begun = claims.pop(name)
                with stack:
                    self.finish(stage, begun, made)
        self.tell_failures()

    def tell_failures(self) -> None:
        """Raise a UserError if stages failed, with those that needed them."""
        if self.failed:
            needing = [name for name, done in self.settled().items() if not done and name not in self.failed]
            told = "\n".join(f"{name}: {why}" for name, why in self.failed.items())
            behind = f" {len(needing)} more need them: {', '.join(needing)}." if needing else ""
            count = f"{len(self.failed)} of {len(self.stages)} stages failed."
            raise UserError(f"{count}{behind} --retry_failed tries them again.\n{told}")

    def begin(self, stage: Stage) -> Begun:
        """Make ready for a stage whose lock is held."""
        folder, begun = self.state(stage.name), Begun(stage.command(), self.digest(stage))
        self.retried.add(stage.name)
        before = folder / BEGUN
        otherwise = before.exists() and before.read_text(encoding="utf-8") != begun.digest
        if otherwise or self.record(stage.name) is not None:  # By another plan, or from parts that were made anew.
            self.say(f"{stage.name} was made otherwise, so it is made anew")
            for path in (self.output / stage.name, self.work(stage)):
                shutil.rmtree(path, ignore_errors=True)
            (folder / DONE).unlink(missing_ok=True)
        (folder / FAILED).unlink(missing_ok=True)
        write_text(before, begun.digest)
        self.say(f"[{self.progress()}] {stage.name}")
        self.opened(stage)
        return begun

    def finish(self, stage: Stage, begun: Begun, made: Outcome) -> None:
        """Note how a stage ended."""
        folder = self.state(stage.name)
        if made.failure is not None:
            write_text(folder / FAILED, f"{made.failure}\n")
            self.failed[stage.name] = made.failure
            self.say(f"{stage.name} failed: {made.failure}")
            return
        shutil.rmtree(self.work(stage), ignore_errors=True)
        own = {"digest": begun.digest, "kind": stage.kind, "seconds": made.seconds, "needs": list(stage.needs)}
        write_json(
            folder / DONE,
            own | {"cpu_seconds": made.cpu_seconds, "command": portable(begun.command, self.output)},
        )

    def work(self, stage: Stage) -> Path:
        """What train.py keeps on its way; not needed once its checkpoint is there."""
        path = self.output / stage.name
        return path.parent / ".work" / path.name

    def progress(self) -> str:
        """How many stages are done, and how long the others will take, as far as some of their kind are done."""
        records = {stage.name: self.record(stage.name) for stage in self.stages}
        done = [record for record in records.values() if record is not None]
        told = f"{len(done)} of {len(self.stages)} stages done"
        if not done:
            return told
        kinds: dict[str, list[float]] = {}
        for record in done:
            kinds.setdefault(record["kind"], []).append(record["seconds"])
        left = [stage.kind for stage in self.stages if records[stage.name] is None]
        known = [sum(kinds[kind]) / len(kinds[kind]) for kind in left if kind in kinds]
        return f"{told}, about {sum(known) / 60:.0f} minutes of work for {len(known)} of the {len(left)} left"


def cpu_seconds() -> float:
    """Of all processes that this one started and that ended: beside other work, they tell more than a clock."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def portable(command: list[str], output: Path) -> list[str]:
    """A command with OUTPUT for the study's folder and PLAN for its file, so that what was moved is done still."""
    words = [word.replace(str(output), "OUTPUT") for word in command]
    return [*words[:3], "PLAN", *words[4:]] if words[:3] == ["-m", "routing", "study"] else words
