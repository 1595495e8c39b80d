"""Do two commits give the same results? Labels, router weights and an evaluation of short runs, as hashes.

    python benchmarks/same_results.py --tree PATH --json before.json
    python benchmarks/same_results.py --json after.json --compare before.json

Give trees of commits that have the arguments of these commands.

The commands of the three scripts at the top run in a tree (a checkout of any commit; default this one) with the Python
that runs this file: a tree search and a menu on the default model, routers trained on their labels, and an evaluation.
Labels and weights are compared byte for byte; of an evaluation accuracy, layers, operations and routes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from routing.common.run_info import hardware, today, versions

ROOT = Path(__file__).resolve().parents[1]
SEARCH = ["--dataset", "arithmetic", "--num_samples", "12", "--num_simulations", "20", "--move_order", "random"]
MENU = ["--dataset", "arithmetic", "--num_samples", "24", "--search", "menu", "--menu", "influence:0,2,4"]
TRAIN = ["--num_epochs", "3", "--learning_rate", "1e-3", "--eval_fraction", "0.3", "--save_base", "reference"]
EVALUATE = ["--tasks", "routed_arithmetic", "--limit", "12", "--controls", "random", "--seeds", "1"]
KEPT = ("accuracy", "layers", "gflops")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def results_of(tree: Path, work: Path) -> dict:
    """Hashes and figures of all runs in a tree."""

    def run(script: str, *words) -> None:
        environment = os.environ | {"PYTHONPATH": str(tree)}
        subprocess.run([sys.executable, str(tree / script), *map(str, words)], cwd=work, env=environment, check=True)

    found = {}
    for name, options in (("search", SEARCH), ("menu", MENU)):
        run("data_generation.py", *options, "--output_dir", work / name)
        found[f"labels of {name}"] = digest((work / name / "labels.jsonl").read_bytes())
    places = ("--output_dir", work / "checkpoints", "--work_dir", work / "runs", *TRAIN[-2:])
    run("train.py", "--data", work / "search", "--run_name", "supervised", *TRAIN[:-2], *places)
    run("train.py", "--objective", "value", "--data", work / "menu", "--run_name", "value", *places)
    for name in ("supervised", "value"):
        (weights,) = (work / "checkpoints" / name).glob("*.safetensors")
        found[f"weights of {name}"] = digest(weights.read_bytes())
        run("evaluation.py", "--checkpoint", work / "checkpoints" / name, *EVALUATE)
        (result,) = json.loads((work / "checkpoints" / name / "evaluation.json").read_text())
        methods = {"base": result["base"], "routed": result["routed"]} | {c["name"]: c for c in result["controls"]}
        found[f"evaluation of {name}"] = {
            "methods": {method: {key: own[key] for key in KEPT} for method, own in methods.items()},
            "routes": digest(json.dumps(result["routes"]).encode()),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=ROOT, help="checkout whose scripts run")
    parser.add_argument("--json", type=Path, required=True, help="file for what was found")
    parser.add_argument("--compare", type=Path, help="file of another tree; exit 1 where they differ")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = results_of(arguments.tree.resolve(), Path(work))
    commit = subprocess.run(["git", "-C", arguments.tree, "rev-parse", "HEAD"], capture_output=True, text=True)
    runs = {"search": SEARCH, "menu": MENU, "train": TRAIN, "evaluate": EVALUATE}
    result = {"commit": commit.stdout.strip(), "found": found, "arguments": runs}
    result |= {"hardware": hardware(), "date": today(), "versions": versions()}
    differing = []
    if arguments.compare:
        before = json.loads(arguments.compare.read_text())
        known = before["found"]
        differing = [name for name in sorted(found.keys() | known.keys()) if found.get(name) != known.get(name)]
        result |= {"compared_with": before["commit"], "differing": differing}
        print(f"{len(found) - len(differing)} of {len(found)} alike" + (f"; differ: {differing}" if differing else ""))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
