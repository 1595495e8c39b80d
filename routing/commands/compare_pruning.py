"""Query routers beside baselines on test questions: score, pruned layers, measured speed; run it again to continue.

    python -m routing compare_pruning --adapters checkpoints/adapters --checkpoints checkpoints/orpo --output runs/p

Baselines, each with adapters and without: the same k layers for all queries, chosen greedily on validation questions
(static) or by block influence; k random layers for each query. A router is shown as it decides by itself, and with the
number of pruned layers fixed. Test questions are those that nothing was searched, trained or chosen on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from routing.common.cli import below
from routing.common.devices import DTYPES
from routing.common.errors import UserError, raise_all, run_command
from routing.common.files import unwritable
from routing.common.parser import Parser
from routing.common.placing import add_place_arguments, place_problems
from routing.models.checkpoint_files import check_adapters, check_checkpoint, stored_adapters, training_record
from routing.scoring.prompting import add_flags, flag_problems
from routing.tasks import unknown_names
from routing.tasks.answers import SCORES
from routing.tasks.problems import files_without_splits, template_problems


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="dlr compare_pruning", description=__doc__)
    parser.add_argument("--adapters", required=True, help="checkpoint of train.py --objective adapters")
    parser.add_argument("--checkpoints", default="", help="comma-separated checkpoints with query routers")
    parser.add_argument("--dataset", default="arithmetic", help="comma-separated data sets")
    parser.add_argument("--num_samples", type=int, default=400, help="test questions of each data set, at most")
    parser.add_argument("--control_samples", type=int, default=64, help="validation questions that choose static sets")
    parser.add_argument("--counts", default="1,2,4,6", help="numbers of pruned layers, with commas between")
    parser.add_argument(
        "--max_static", type=int, default=8, help="static sets at a router's own number of layers up to so many layers"
    )
    parser.add_argument("--score", default="accuracy", choices=sorted(SCORES), help="score of generated answers")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of random layers")
    add_flags(parser, tools=True)
    parser.add_argument("--speed_prompts", type=int, default=8, help="test prompts on which speed is measured; 0: none")
    parser.add_argument("--speed_tokens", default="4,32", help="tokens generated for each of them, with commas between")
    parser.add_argument("--repeats", type=int, default=3, help="times each of them is measured; the fastest counts")
    parser.add_argument("--batch_size", type=int, default=64, help="paths evaluated together, at most")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    add_place_arguments(parser)
    parser.add_argument("--output", required=True, help="folder for comparison.json, .md and .png")
    arguments = parser.parse_args(argv)
    raise_all(problems_of(arguments))
    return arguments


def _numbers(name: str, text: str, most: float = float("inf")) -> tuple[list[int], list[str]]:
    """Whole numbers with commas between, and what is wrong with them."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    wrong = [word for word in words if not (word.isdecimal() and 1 <= int(word) <= most)]
    if wrong:
        return [], [f"--{name} {', '.join(wrong)}: give whole numbers from 1" + (f" to {most}" if most < 1e9 else "")]
    return list(map(int, dict.fromkeys(words))), []


def problems_of(arguments: argparse.Namespace) -> list[str]:
    """What is wrong; the comma-separated arguments become lists."""
    found, base, depth = [], None, float("inf")
    try:
        depth = check_adapters(Path(arguments.adapters))["num_hidden_layers"] - 1
        base = training_record(Path(arguments.adapters))["arguments"]["model_id"]
    except UserError as error:
        found.append(f"--adapters: {error}")
    arguments.checkpoints = [Path(name.strip()) for name in arguments.checkpoints.split(",") if name.strip()]
    names = [folder.name for folder in arguments.checkpoints]
    if len(set(names)) < len(names):
        found.append(f"--checkpoints {', '.join(names)}: folders of the same name cannot be told apart in a table")
    for folder in arguments.checkpoints:
        try:
            if check_checkpoint(folder).get("router") != "query":
                found.append(f"--checkpoints: {folder} has no query router; make one with train.py --objective orpo")
            elif base not in (None, training_record(folder)["arguments"]["model_id"]):
                found.append(f"--checkpoints: {folder} is not of {base!r}, the model of --adapters")
            elif base is not None and not _same_adapters(folder, Path(arguments.adapters)):
                found.append(
                    f"--checkpoints: {folder} has other adapters than --adapters {arguments.adapters}, so its answers "
                    "would be others; give the adapters that it was trained with"
                )
        except UserError as error:
            found.append(f"--checkpoints: {error}")
    for name, most in (("counts", depth), ("speed_tokens", float("inf"))):
        numbers, wrong = _numbers(name, getattr(arguments, name), most)
        setattr(arguments, name, numbers)
        found += wrong
    found += below(arguments, num_samples=1, control_samples=1, seeds=1, repeats=1, batch_size=1, speed_prompts=0)
    found += template_problems(arguments) + flag_problems(arguments)
    found += unknown_names(arguments.dataset)
    found += files_without_splits("dataset", arguments.dataset)
    found += unwritable("--output", Path(arguments.output))
    return found + place_problems(arguments)


def _same_adapters(folder: Path, adapters: Path) -> bool:
    """Whether a checkpoint has the very adapters of another one, or none that it would use."""
    if check_checkpoint(folder).get("skip_action") != "adapter":
        return True
    return stored_adapters(folder) == stored_adapters(adapters)


def main() -> None:
    arguments = parse_arguments()
    from routing.commands.work.compare_pruning import run  # Takes seconds to import.

    run(arguments)


if __name__ == "__main__":
    run_command(main)
