"""Stages run one after the other, each the command that a user would type; what is finished is not done again."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


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
