"""Do the tests notice when the code is changed? Small changes of core files, a sample of them, each against its tests.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/mutants.py --minutes 55 --json benchmarks/results/mutants.json

Changed are comparisons, and/or/not, arithmetic, numbers and truth values, returned values, and calls and raises, which
are left out. Files take turns, each in an order drawn by --seed; --only takes those whose path begins so. The tests of
a file are those of its room that name its module and end within --longest seconds. A mutant survives where all of them
pass, and is killed where one fails or three times their time is over. The JSON is written after each mutant; what it
holds of an unchanged line is not run again, unless it survived, so a call goes on where the last one ended. Nothing is
changed in the working tree: all happens in a copy of it. docs/mutants.md says why those that survive do.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

# Nothing of this project may be imported here: each fork imports this file first, and is to find the changed copy.
ROOT = Path(__file__).resolve().parents[1]
CHANGED = [
    "train_models", "routing/search", "routing/scoring", "routing/labels", "routing/objectives", "routing/training",
    "routing/common/statistics.py", "routing/common/paired_bounds.py", "routing/evaluation/methods.py",
    "routing/evaluation/comparison.py", "routing/evaluation/headroom.py", "routing/evaluation/calibration.py",
]  # fmt: skip
# Loaded once; each run of tests is a fork that has them already.
LOADED = ["torch", "transformers", "accelerate", "datasets", "lm_eval", "numpy", "scipy.stats", "hypothesis", "pytest"]
OTHER = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
}  # fmt: skip


def changes(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Each node below that can be changed, and the text in its place."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in OTHER:
        other = ast.Compare(node.left, [OTHER[type(node.ops[0])]()], node.comparators)
        yield node, f"({ast.unparse(other)})"
    elif isinstance(node, ast.BoolOp):
        yield node, f"({ast.unparse(ast.BoolOp(OTHER[type(node.op)](), node.values))})"
    elif isinstance(node, ast.BinOp) and type(node.op) in OTHER:
        yield node, f"({ast.unparse(ast.BinOp(node.left, OTHER[type(node.op)](), node.right))})"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node, f"({ast.unparse(node.operand)})"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        yield node, repr(not node.value if isinstance(node.value, bool) else node.value + 1)
    elif isinstance(node, ast.Return) and node.value is not None:
        yield node, "return None"
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) or isinstance(node, ast.Raise | ast.Continue):
        yield node, "pass"
    if isinstance(
        node, ast.Raise | ast.JoinedStr
    ):  # Words of messages; positions in f-strings are not those of the file.
        return
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list", "keywords" if _is_raised(node) else ""):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and getattr(child, "arg", None) != "strict":  # of zip: says, does not do
                    yield from changes(child)


def _is_raised(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("UserError", "ValueError", "print")


def mutants_of(path: str, source: str) -> list[dict]:
    """All mutants of a file: file, line, the line as it is, old and new text, start and end of the old one in bytes."""
    data, starts, found = source.encode(), [0], []
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node, new in changes(ast.parse(source)):
        start, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        old, line = data[start:end].decode(), source.splitlines()[node.lineno - 1].strip()
        found.append({"file": path, "line": node.lineno, "code": line, "old": old, "new": new, "span": [start, end]})
    return found


def run_tests(tree: Path, files: list[str]) -> None:
    """In a process of its own, group included: pytest's answer is its exit code."""
    os.setsid()
    os.chdir(tree)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    # Compiled files are told apart by seconds and size, which mutants may share.
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.path.insert(0, str(tree))
    import pytest

    sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *files]))


def outcome(context, tree: Path, files: list[str], limit: float) -> tuple[str, float]:
    """survived, killed or timeout, and seconds."""
    start, process = time.perf_counter(), context.Process(target=run_tests, args=(tree, files))
    process.start()
    process.join(limit)
    over = process.is_alive()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # Processes that a test has left behind too.
    process.join()
    return "timeout" if over else "killed" if process.exitcode else "survived", time.perf_counter() - start


def tests_of(path: str, tests: dict[str, str]) -> list[str]:
    """Test files, of {path: text}, that name a module: of its room, or of all rooms where none of its room does."""
    *package, name = Path(path).with_suffix("").parts
    words = (f"{'.'.join([*package, name])} import", f"from {'.'.join(package)} import {name}\n")
    found = [file for file, text in tests.items() if any(word in text for word in words)]
    room = f"tests/{package[1] if len(package) > 1 else package[0]}/"
    return [file for file in found if file.startswith(room)] or found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/mutants.json"), help="results")
    parser.add_argument("--minutes", type=float, default=55, help="no mutant is begun after this time")
    parser.add_argument("--longest", type=float, default=30, help="seconds that a test file may take")
    parser.add_argument("--only", nargs="+", default=CHANGED, metavar="PATH", help="files or folders to change")
    parser.add_argument("--seed", type=int, default=0)
    own = parser.parse_args()
    end = time.monotonic() + 60 * own.minutes
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    listed = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    tests = {n: (ROOT / n).read_text() for n in listed if n.startswith("tests/") and Path(n).name.startswith("test_")}
    context, rng = multiprocessing.get_context("forkserver"), Random(own.seed)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}  # Read when what is loaded is imported.
    context.set_forkserver_preload(LOADED)
    record = json.loads(own.json.read_text()) if own.json.exists() else {"seconds": {}, "mutants": []}
    tried = tuple(own.only)
    record["mutants"] = [m for m in record["mutants"] if m["result"] != "survived" or not m["file"].startswith(tried)]
    known = {(m["file"], m["code"], m["old"], m["new"]) for m in record["mutants"]}
    queues = []
    for name in listed:
        if name.endswith(".py") and name.startswith(tried):
            queues.append(mutants_of(name, (ROOT / name).read_text()))
            rng.shuffle(queues[-1])
    turns = sorted((turn, place) for place, queue in enumerate(queues) for turn in range(len(queue)))
    with tempfile.TemporaryDirectory(prefix="mutants_") as folder:
        tree = Path(folder)
        for name in listed:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
        for turn, place in turns:
            mutant = queues[place][turn]
            if time.monotonic() > end:
                break
            if (mutant["file"], mutant["code"], mutant["old"], mutant["new"]) in known:
                continue
            seconds, files = record["seconds"], tests_of(mutant["file"], tests)
            for file in files:
                if file not in seconds:
                    told, taken = outcome(context, tree, [file], 4 * own.longest)
                    seconds[file] = taken if told == "survived" else None  # None: fails or takes too long as it is.
            files = sorted((f for f in files if (seconds[f] or own.longest) < own.longest), key=lambda f: seconds[f])
            target, limit = tree / mutant["file"], 10 + 3 * sum(seconds[file] for file in files)
            source, (start, stop) = target.read_bytes(), mutant.pop("span")
            target.write_bytes(source[:start] + mutant["new"].encode() + source[stop:])
            told, taken = outcome(context, tree, files, limit) if files else ("untested", 0.0)
            target.write_bytes(source)
            if files:
                record["mutants"].append(mutant | {"result": told, "seconds": round(taken, 1), "tests": files})
            own.json.parent.mkdir(parents=True, exist_ok=True)
            own.json.write_text(json.dumps(record, indent=1) + "\n")
            print(f"{told:9}{mutant['file']}:{mutant['line']} {mutant['old']!r} -> {mutant['new']!r}", flush=True)
    counts = {told: sum(m["result"] == told for m in record["mutants"]) for told in ("killed", "timeout", "survived")}
    print(", ".join(f"{count} {told}" for told, count in counts.items()))


if __name__ == "__main__":
    main()
