"""What a section is given: device, size, time left, and the JSON that it fills row by row."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from routing.common.files import write_json
from routing.common.run_info import hardware, today

ROOT = Path(__file__).resolve().parents[2]


def about(device: str, packages: tuple[str, ...], commit: str | None) -> dict:
    """What results depend on besides the code of a section."""
    versions = {"python": sys.version.split()[0]}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    card, driver = hardware() if device == "cpu" else "", None
    if device != "cpu":
        # Asked of the driver's own tool, since this process must not touch the card.
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        first = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
        card, driver, memory = (part.strip() for part in first.split(","))
        versions["memory"] = memory
    command = " ".join(["python", "benchmarks/gpu.py", *_without_places(sys.argv[1:])])
    return {"card": card, "driver": driver, "versions": versions, "date": today(), "commit": commit, "command": command}


def _without_places(arguments: list[str]) -> list[str]:
    """Arguments but for those that name folders of one machine, or the commit, which stands beside them."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument not in ("--output", "--wheels", "--commit"):
            kept.append(argument)
        skip = argument in ("--output", "--wheels", "--commit")
    return kept


def slug(card: str) -> str:
    """Name of a folder for a card."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")


def cut_off(path: Path, name: str = "", facts: dict | None = None, why: str | None = None) -> str:
    """The status in the JSON of a section; with `why`, it is set to that first."""
    found = json.loads(path.read_text()) if path.exists() else {"section": name, "rows": []} | (facts or {})
    if why is not None:
        found["status"] = why
        write_json(path, found)
    return found["status"]


class Job:
    """One run of one section.

    Attributes:
        device: torch device.
        smoke: tiny shapes on the processor.
        rows: measurements and checks; `facts`: what holds for all of them.
    """

    def __init__(self, name: str, path: Path, device: str, smoke: bool, limit: float, facts: dict):
        self.name, self.path, self.smoke = name, path, smoke
        self.device, self.about = torch.device(device), facts
        self.rows: list[dict] = []
        self.facts: dict = {}
        self._start, self._limit = time.monotonic(), limit

    def __enter__(self) -> Job:
        if self.smoke:
            torch.set_num_threads(1)
        torch.manual_seed(0)
        if self.device.type == "cuda" and self.name != "exact":
            # It builds a plan for each new shape, so whoever comes first would pay for all that are measured behind.
            torch.backends.cuda.enable_cudnn_sdp(False)
            self.facts["attention"] = "without cuDNN's, in all models"
        self.write("running")
        return self

    def __exit__(self, kind, error, trace) -> bool:
        if error is None:
            failed = [row["check"] for row in self.rows if row.get("passed") is False]
            self.write(f"failed: {', '.join(dict.fromkeys(failed))}" if failed else "done")
            return False
        lines = traceback.format_exception(error)[-12:]
        self.facts["error"] = [line.replace(f"{ROOT}/", "") for line in lines]
        self.write(f"failed: {kind.__name__}: {str(error)[:300]}")
        traceback.print_exception(error)
        sys.exit(1)

    def seconds_left(self) -> float:
        return self._limit - (time.monotonic() - self._start)

    def row(self, **fields) -> None:
        """Note a measurement, and print it."""
        self.rows.append(fields)
        cells = (
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in fields.items()
        )
        print(f"  {self.name}: {', '.join(cells)}", flush=True)
        self.write("running")

    def check(self, name: str, difference: float, allowed: float, **fields) -> None:
        """Note a check: a difference that must not be above what is allowed."""
        passed = bool(difference <= allowed)  # NaN fails.
        self.row(check=name, difference=float(difference), allowed=float(allowed), passed=passed, **fields)

    def left_out(self, what: str) -> None:
        """Note what there was no time or memory for."""
        self.facts.setdefault("left_out", []).append(what)
        print(f"  {self.name}: left out {what}", flush=True)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak_mib(self) -> float | None:
        """Most that was allocated since the last call."""
        if self.device.type != "cuda":
            return None
        found = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
        return found

    def write(self, status: str) -> None:
        seconds = round(time.monotonic() - self._start, 1)
        head = {"section": self.name, "status": status, "seconds": seconds, "smoke": self.smoke}
        write_json(self.path, head | self.about | self.facts | {"rows": self.rows})
