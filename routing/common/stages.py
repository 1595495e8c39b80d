"""Stages run one after the other, each the command that a user would type; what is finished is not done again."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from routing.common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def run_stage(step: str, title: str, script: str, *arguments: str) -> None:
    """Run one script, or module (`-m`, then its name); end with its exit status if it fails.

    Args:
        step: which one of how many, as 1/4.
    """
    print(f"\n[{step}] {title}\n      python {script} {' '.join(arguments)}", flush=True)
    start = time.perf_counter()
    place = script if script == "-m" else str(ROOT / script)
    result = subprocess.run([sys.executable, place, *arguments])
    if result.returncode:
        sys.exit(result.returncode)
    print(f"      {time.perf_counter() - start:.0f} s", flush=True)


def done(output: Path, *inputs: Path) -> bool:
    """Whether an output is there and no older than what it was made from."""
    return output.exists() and all(output.stat().st_mtime >= path.stat().st_mtime for path in inputs)


def environment() -> dict[str, str]:
    """Of a stage's own process: alone, on the GPU of this one."""
    own = {key: value for key, value in os.environ.items() if key not in LAUNCHER and not key.startswith("ACCELERATE_")}
    if "LOCAL_RANK" in os.environ:
        import torch  # Only for those whom a launcher started.

        if count := torch.cuda.device_count():
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
            own["CUDA_VISIBLE_DEVICES"] = visible[int(os.environ["LOCAL_RANK"]) % count]
    return own


def _end_with_parent() -> None:
    """A stage ends with the process that started it, or two might write to one folder; Linux alone can be asked so."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def call(command: list[str], log: Path) -> None:
    """Run a command, its output in a file.

    Raises:
        UserError: with the end of the output, if it fails.
    """
    with log.open("a", encoding="utf-8") as file:
        result = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment(), preexec_fn=_end_with_parent
        )
    if result.returncode:
        end = log.read_text(encoding="utf-8", errors="replace")[-1500:]
        raise UserError(f"{' '.join(command)} failed with status {result.returncode}; {log} ends with:\n{end}")
