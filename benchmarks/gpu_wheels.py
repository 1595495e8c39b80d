"""Gather the wheels that a machine with a card but without a package index lacks, for `make gpu`.

    make gpu-wheels     into .gpu-wheels, for Python 3.12 on 64-bit Linux

That machine is taken to have PyTorch for its card and what comes with it, accelerate and safetensors; what is pinned
here and younger than there, or missing, goes along. flash-attn and causal-conv1d have no wheels on the package index.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from gpu import ROOT, pinned

MOST_MIB = 60
# fla: fused kernels of Gated DeltaNet. Exact versions, as in requirements.txt where they are there.
WHEELS = (
    f"transformers=={pinned('transformers')}",
    "bitsandbytes==0.50.2",
    "fla-core==0.6.0",
    "flash-linear-attention==0.6.0",
)
PLATFORMS = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_24", "manylinux_2_17", "manylinux2014")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default=str(ROOT / ".gpu-wheels"), help="folder, emptied first")
    parser.add_argument("--python", default="3.12", help="Python of the machine with the card")
    parser.add_argument("--machine", default="x86_64", help="its processor")
    arguments = parser.parse_args()
    folder = Path(arguments.output)
    shutil.rmtree(folder, ignore_errors=True)
    options = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", arguments.python]
    for platform in PLATFORMS:
        options += ["--platform", f"{platform}_{arguments.machine}"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *options]
    done = subprocess.run([*command, "--dest", str(folder), *WHEELS])
    if done.returncode:
        sys.exit("the wheels could not be had; is the package index within reach?")
    sizes = {path.name: path.stat().st_size / 2**20 for path in sorted(folder.glob("*.whl"))}
    for name, size in sizes.items():
        print(f"{size:6.1f} MiB  {name}")
    total = sum(sizes.values())
    print(f"{total:6.1f} MiB in {folder}")
    if total > MOST_MIB:
        sys.exit(f"that is more than {MOST_MIB} MiB; leave some out of WHEELS in {Path(__file__).name}")


if __name__ == "__main__":
    main()
