"""Everything that needs a GPU, in one command: is it exact there, and how fast is it?

    make gpu          on a machine with a card: all sections, at most 8 minutes
    make gpu-smoke    on any machine: every section at tiny shapes on the processor, under 2 minutes

Sections come in order of worth (see SECTIONS below and gpu_sections/). Each runs in a process of its own under a time
limit of its own and writes <output>/<card>/<section>.json row by row: what is cut off keeps what it had. A section that
fails says so in its JSON, with the error, and the next one starts. Models have random weights at real shapes: nothing
is fetched. `--page` makes the page of all results, and runs nothing.

With --wheels FOLDER (from `make gpu-wheels`) packages that the machine lacks are installed from there, into a folder
of their own that is removed at the end. Nothing else of this file needs more than Python until then.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# name -> seconds it may take; in order of worth
SECTIONS = {
    "exact": 40,
    "decode": 95,
    "prefill": 65,
    "search": 60,
    "training": 50,
    "tokens": 35,
    "hybrid": 85,
    "quantized": 35,
}
SECONDS = 480
# What sections import, by the names of their distributions; transformers exactly as pinned, others as they are.
NEEDED = (
    "torch", "transformers", "accelerate", "safetensors", "tokenizers", "huggingface_hub", "numpy", "scipy", "tqdm",
    "rich", "PyYAML", "regex",
)  # fmt: skip
OPTIONAL = ("triton", "flash_attn", "bitsandbytes", "fla-core", "flash-linear-attention", "causal_conv1d", "peft")


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def pinned(name: str) -> str:
    """The version that requirements.txt pins."""
    return re.search(rf"^{name}==(\S+)$", (ROOT / "requirements.txt").read_text(), re.M).group(1)


def missing_packages() -> str | None:
    """What keeps the sections from running, in one line; None if nothing does."""
    found = [f"{name} is not installed" for name in NEEDED if installed(name) is None]
    here, wanted = installed("transformers"), pinned("transformers")
    if here not in (None, wanted):
        found.append(f"transformers is {here}, needed is {wanted}")
    if not found:
        return None
    return (
        f"{'; '.join(found)}. Run `make gpu-wheels` on a machine with a package index and bring the folder .gpu-wheels "
        "along, or install requirements.txt."
    )


def install_wheels(folder: Path, target: Path) -> None:
    """Install all wheels of a folder into a place of its own, and look there first from now on."""
    wheels = sorted(map(str, folder.glob("*.whl")))
    if not wheels:
        sys.exit(f"--wheels {folder} holds no wheels. Make them with `make gpu-wheels`, or leave the option out.")
    options = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--quiet", "--target", str(target)]
    done = subprocess.run([sys.executable, "-m", "pip", "install", *options, *wheels])
    if done.returncode:
        sys.exit(f"the wheels in {folder} could not be installed; are they for Python {sys.version.split()[0]}?")
    sys.path.insert(0, str(target))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(target), os.environ.get("PYTHONPATH"))))
    importlib.invalidate_caches()


def git_commit() -> str | None:
    found = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else None


def section_process(name: str, go, options: dict) -> None:
    """What runs in the process of a section: it imports what it needs, and waits until it is its turn."""
    from gpu_sections.job import Job

    section, parent = importlib.import_module(f"gpu_sections.{name}"), os.getppid()
    while not go.wait(1):
        if os.getppid() != parent:
            return  # The whole was killed.
    with Job(name, **options) as job:
        section.run(job)


def run_sections(names: list[str], arguments: argparse.Namespace, folder: Path, facts: dict) -> list[str]:
    """Run sections one after the other; returns those that did not end well."""
    from gpu_sections.job import cut_off

    if arguments.device == "cpu":
        # Slow imports, once for all processes; with a card some of them touch it, and forked processes could not.
        import routing.scoring.packed
        import routing.training.routers.trainer  # noqa: F401
    deadline = time.monotonic() + arguments.seconds
    context = multiprocessing.get_context("fork" if arguments.device == "cpu" else "spawn")
    waiting, bad = {}, []
    for name in names:
        path, go = folder / f"{name}.json", context.Event()
        path.unlink(missing_ok=True)
        limit = (120 if arguments.smoke else SECTIONS[name]) if arguments.limit is None else arguments.limit
        options = {"path": path, "device": arguments.device, "smoke": arguments.smoke, "limit": limit, "facts": facts}
        waiting[name] = context.Process(target=section_process, args=(name, go, options)), go, path, limit
        waiting[name][0].start()
    for name, (process, go, path, limit) in waiting.items():
        start = time.monotonic()
        limit = min(limit, deadline - start)
        if limit >= 5:
            go.set()
            process.join(limit)
        why = None
        if process.is_alive():
            process.kill()
            process.join()
            why = f"cut off after {limit:.0f} s" if limit >= 5 else "no time left"
        elif not path.exists() or process.exitcode not in (0, 1):
            why = f"the process ended with code {process.exitcode}"
        status = cut_off(path, name, facts, why)
        print(f"{name}: {status}, {time.monotonic() - start:.0f} s of {limit:.0f} s", flush=True)
        if status != "done":
            bad.append(name)
    return bad


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", default=",".join(SECTIONS), help="sections to run, with commas between them")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for the whole")
    parser.add_argument("--limit", type=float, help="time for each section; default: see SECTIONS")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes: does the script work?")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda, and cpu with --smoke")
    parser.add_argument("--wheels", help="folder of wheels to install first, into a place of their own")
    parser.add_argument("--output", default=str(ROOT / "benchmarks" / "results" / "gpu"), help="folder of the results")
    parser.add_argument("--commit", help="commit that is measured, where there is no git")
    parser.add_argument("--page", action="store_true", help="make the page of the results in --output, and run nothing")
    return parser


def main() -> None:
    parser = make_parser()
    arguments = parser.parse_args()
    names = [name.strip() for name in arguments.sections.split(",") if name.strip()]
    if unknown := sorted({*names} - {*SECTIONS}) or not names:
        parser.error(f"--sections {arguments.sections}: allowed are {', '.join(SECTIONS)}; got {unknown}")
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    output = Path(arguments.output)
    if arguments.page:
        from gpu_sections.page import write_page

        print(write_page(output))
        return
    with tempfile.TemporaryDirectory(prefix="gpu-packages-") as place:
        if arguments.wheels:
            install_wheels(Path(arguments.wheels), Path(place))
        if (problem := missing_packages()) is not None:
            sys.exit(problem)
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import torch

        arguments.device = arguments.device or ("cpu" if arguments.smoke else "cuda")
        if arguments.device == "cuda" and not torch.cuda.is_available():
            sys.exit("there is no CUDA card here. `make gpu-smoke` runs every section at tiny shapes on the processor.")
        from gpu_sections.job import about, slug

        facts = about(arguments.device, NEEDED + OPTIONAL, arguments.commit or git_commit())
        folder = output / slug(facts["card"])
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{facts['card']}, driver {facts['driver']}, torch {facts['versions']['torch']}: results in {folder}")
        bad = run_sections(names, arguments, folder, facts)
    if bad:
        sys.exit(f"not done: {', '.join(bad)}; their JSON says why")


if __name__ == "__main__":
    main()
