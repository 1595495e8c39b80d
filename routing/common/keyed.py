"""What every kept verdict depends on beside its model and its question: the versions and the code that judge.

A result that is kept on disk has a key of all that it depends on, and is made again where the key differs. The part of
the key that all of them share is made here, so that no cache forgets a piece of it.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DECIDING = ("torch", "transformers", "lm_eval")  # packages whose release may change a verdict
# Files that decide a verdict: how models run, prompts are built and answers judged; what lm-eval is asked.
JUDGES = (
    "train_models/*.py",
    "routing/tasks/*.py",
    "routing/scoring/*.py",
    "routing/models/*.py",
    "routing/evaluation/lm.py",
    "routing/evaluation/methods.py",
    "routing/evaluation/flops.py",
    "eval_configs/*",
)


@cache
def code_hash(patterns: tuple[str, ...] = JUDGES, root: Path = ROOT) -> str:
    """SHA-256 of the names and contents of files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in root.glob(pattern) if path.is_file()):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def judging() -> dict:
    """The part of a key that all kept verdicts share."""
    return {"versions": {name: version(name) for name in DECIDING}, "code": code_hash()}
