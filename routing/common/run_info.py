"""What is saved beside every output: versions, git commit, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "transformers", "lm_eval", "accelerate", "datasets", "safetensors")


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def git_commit() -> str | None:
    """Commit of this project's checkout; None where it was installed without one, or there is no git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        result = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    except OSError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def hardware() -> str:
    """Processor or GPU in words."""
    import torch  # Seconds, which those who ask for a version or a commit need not wait.

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # Not Linux: the generic name serves.
    return f"{model}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"


def today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


def made_with() -> dict:
    """What tells of a result where it comes from."""
    return {"hardware": hardware(), "date": today(), "versions": versions(), "git_commit": git_commit()}
