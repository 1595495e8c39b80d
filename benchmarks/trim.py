"""What does trimming give? A path chosen on validation, healed and exported, beside the dense model and plain cuts.

    .venv/bin/python benchmarks/trim.py --output runs/trim --json benchmarks/results/trim.json

The commands of the recipe in docs/export.md: a table of validation questions along a few paths, of which the one with
most right answers at --layers layers or fewer is taken; healing on search questions with their answers, taught by the
full model; export; then test questions, asked of the dense model, of the path before healing, of a plain cut, and of
the exported folder. What is finished is not done again. Intervals are Wilson's; differences are paired, with McNemar's
exact test.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from data_models.path_notation import write_path
from routing.common.errors import UserError, run_command
from routing.common.files import write_json, write_text
from routing.common.run_info import git_commit, hardware, today, versions
from routing.common.stages import done, run_stage
from routing.common.statistics import lower_bound, mcnemar, wilson_interval
from routing.labels.table import Table, read_table
from routing.models.default_model import DEFAULT_MODEL
from routing.models.families import load_tokenizer
from routing.search.routes import to_path
from routing.tasks import load_examples
from routing.tasks.prompts import build_prompt

STEPS = 5


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="base model")
    parser.add_argument("--dataset", default="procedural", help="data set with splits")
    parser.add_argument("--menu", default="divergence:0,2,4+influence:2,4", help="SPEC of the paths to choose from")
    parser.add_argument("--layers", type=int, default=26, help="of the chosen path, at most")
    parser.add_argument("--beside", default="influence:4", help="SPEC of a plain cut to compare with, not healed")
    parser.add_argument("--validation", type=int, default=304, help="questions that choose")
    parser.add_argument("--healing", type=int, default=1500, help="search questions that heal")
    parser.add_argument("--max_steps", type=int, default=200, help="updates of healing, of 16 rows of 128 tokens")
    parser.add_argument("--heal", default="--learning_rate 1e-3", help="more options of train.py")
    parser.add_argument("--test", type=int, default=608, help="test questions")
    parser.add_argument("--output", type=Path, default=Path("runs/trim"), help="folder of all that is made")
    parser.add_argument("--json", type=Path, help="file for the results")
    return parser.parse_args()


def table_of(arguments, step: int, model: str, menu: str, split: str, name: str) -> Table:
    """Questions of a split along the paths of a menu."""
    folder = arguments.output / name
    run_stage(
        f"{step}/{STEPS}", f"{split} questions, {model}", "data_generation.py", "--model", model, "--search", "menu",
        "--menu", menu, "--dataset", arguments.dataset, "--split", split, "--num_samples",
        str(getattr(arguments, split)), "--output_dir", str(folder),
    )  # fmt: skip
    return read_table([folder])


def write_corpus(arguments, path: Path) -> None:
    """Search questions with their answers, as the model is asked them."""
    tokenizer = load_tokenizer(arguments.model)
    examples = load_examples(arguments.dataset, "search", arguments.healing, seed=0)
    texts = [f"{build_prompt(e, 'generate', tokenizer, False)} {e.answer}\n" for e in examples]
    write_text(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))


def row(name: str, path: list[int], table: Table, at: int, dense: dict[str, bool]) -> dict:
    """One model on the test questions, beside the dense one."""
    own = dict(zip(table.ids, (table.rewards[:, at] > 0).tolist()))
    right = sum(own.values())
    return {
        "name": name, "path": write_path(path), "layers": len(path), "accuracy": right / len(own),
        "ci95": wilson_interval(right, len(own)), "minus_dense": (right - sum(dense.values())) / len(own),
        "lower_bound": lower_bound(dense, own), "paired_with_dense": mcnemar(dense, own),
    }  # fmt: skip


def main() -> None:
    arguments = parse_arguments()
    output = arguments.output
    table = table_of(arguments, 1, arguments.model, arguments.menu, "validation", "validation")
    rewards = table.rewards.mean(0)
    short = [at for at in range(1, len(rewards)) if table.layers[at] <= arguments.layers]
    if not short:
        raise UserError(
            f"--menu {arguments.menu} has no path of --layers {arguments.layers} or fewer; give one of both"
        )
    chosen = max(short, key=rewards.__getitem__)
    paths = [to_path(route) for route in table.routes]
    print(
        f"chosen: {write_path(paths[chosen])}, {rewards[chosen]:.3f} of validation questions; all: {rewards.round(3)}"
    )
    healed, corpus = output / "healed", output / "corpus.jsonl"
    if not corpus.exists():
        write_corpus(arguments, corpus)
    if not done(healed / "training.json", corpus):
        run_stage(
            f"2/{STEPS}", "healing", "train.py", "--objective", "static", "--model_id", arguments.model, "--path",
            write_path(paths[chosen]), "--corpus", str(corpus), "--ce_weight", "0", "--sequence_length", "128",
            "--prompt_tokens", "0", "--num_evaluations", "1", "--max_steps", str(arguments.max_steps), "--run_name",
            "healed", "--output_dir", str(output), "--work_dir", str(output / "runs"), *arguments.heal.split(),
        )  # fmt: skip
    exported = output / "exported"
    if not done(exported / "export.json", healed / "training.json"):
        run_stage(f"3/{STEPS}", "export", "-m", "routing", "export", str(healed), "--output", str(exported))
    menu = f"path:{write_path(paths[chosen])}+{arguments.beside}"
    plain = table_of(arguments, 4, arguments.model, menu, "test", "test")
    trimmed = table_of(arguments, 5, str(exported), "influence:0", "test", "test-exported")
    dense = dict(zip(plain.ids, (plain.rewards[:, 0] > 0).tolist()))
    rows = [row("dense", paths[0], plain, 0, dense), row("healed and exported", paths[chosen], trimmed, 0, dense)]
    for at, path in enumerate(map(to_path, plain.routes)):
        if at:
            rows.append(row("not healed" if path == paths[chosen] else arguments.beside, path, plain, at, dense))
    for found in rows:
        low, high = found["ci95"]
        print(
            f"{found['name']:20} {found['layers']:3} {found['accuracy']:.3f} ({low:.3f} to {high:.3f}) {found['path']}"
        )
    if arguments.json:
        about = {
            "arguments": {name: str(value) for name, value in vars(arguments).items()},
            "command": " ".join(["python", "benchmarks/trim.py", *sys.argv[1:]]), "hardware": hardware(),
            "date": today(), "versions": versions(), "git_commit": git_commit(),
        }  # fmt: skip
        chosen_on = {"questions": len(table.ids), "paths": [write_path(path) for path in paths]}
        chosen_on |= {"accuracies": np.asarray(rewards).tolist(), "chosen": chosen}
        write_json(arguments.json, about | {"questions": len(plain.ids), "validation": chosen_on, "rows": rows})


if __name__ == "__main__":
    run_command(main)
