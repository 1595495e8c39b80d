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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from routing.common.errors import UserError
from routing.common.files import write_json, write_text
from routing.common.locks import held
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

    def make_all(self) -> None:
        """Make what is not done and nobody else makes; wait for others where their stages are needed.

        Raises:
            UserError: at the end, naming stages that failed and those that needed them.
        """
        retried: set[str] = set()
        while True:
            left, made, taken = [], False, False
            # A stage is done if those that it needs are done as well, so the order is that of the list.
            settled = {}
            for stage in self.stages:
                settled[stage.name] = all(settled.get(need, False) for need in stage.needs) and self.is_done(stage)
            for stage in self.stages:
                if settled[stage.name] or stage.name in self.failed:
                    continue
                left.append(stage.name)
                if not all(settled.get(need, False) for need in stage.needs):
                    continue
                folder = self.state(stage.name)
                folder.mkdir(parents=True, exist_ok=True)
                if (folder / FAILED).exists() and not (self.retry_failed and stage.name not in retried):
                    self.failed[stage.name] = (folder / FAILED).read_text(encoding="utf-8").strip()
                    continue
                with held(folder / "lock", wait=False) as had:
                    if not had:
                        taken = True
                        continue
                    if not self.is_done(stage):
                        retried.add(stage.name)
                        self.make(stage)
                settled[stage.name] = self.is_done(stage)
                made = True
            if not left:
                break
            if not made and not taken:
                break  # What is left needs what failed.
            if not made:
                time.sleep(self.wait)
        if self.failed:
            needing = [name for name in left if name not in self.failed]
            told = "\n".join(f"{name}: {why}" for name, why in self.failed.items())
            behind = f" {len(needing)} more need them: {', '.join(needing)}." if needing else ""
            count = f"{len(self.failed)} of {len(self.stages)} stages failed."
            raise UserError(f"{count}{behind} --retry_failed tries them again.\n{told}")

    def make(self, stage: Stage) -> None:
        """Make one stage, whose lock is held, and note how it ended."""
        folder, command, digest = self.state(stage.name), stage.command(), self.digest(stage)
        begun = folder / BEGUN
        otherwise = begun.exists() and begun.read_text(encoding="utf-8") != digest
        if otherwise or self.record(stage.name) is not None:  # By another plan, or from parts that were made anew.
            self.say(f"{stage.name} was made otherwise, so it is made anew")
            for path in (self.output / stage.name, self.work(stage)):
                shutil.rmtree(path, ignore_errors=True)
            (folder / DONE).unlink(missing_ok=True)
        (folder / FAILED).unlink(missing_ok=True)
        write_text(begun, digest)
        self.say(f"[{self.progress()}] {stage.name}")
        self.opened(stage)
        began, used = time.perf_counter(), cpu_seconds()
        try:
            self.run(stage, command, folder / LOG, self.output)
        except UserError as error:
            write_text(folder / FAILED, f"{error}\n")
            self.failed[stage.name] = str(error)
            self.say(f"{stage.name} failed: {error}")
            return
        seconds = round(time.perf_counter() - began, 2)
        shutil.rmtree(self.work(stage), ignore_errors=True)
        own = {"digest": digest, "kind": stage.kind, "seconds": seconds, "needs": list(stage.needs)}
        cpu = round(cpu_seconds() - used, 2)
        write_json(folder / DONE, own | {"cpu_seconds": cpu, "command": portable(command, self.output)})

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
