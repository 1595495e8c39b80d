"""Query-level pruning from end to end: adapters, exploration, preference-trained routers, comparison with baselines.

    python -m routing prune --output runs/query-pruning

Every stage is the command a user would type, and is told; run it again to continue after an interruption.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path

from routing.common.cli import as_dict, below, read_arguments
from routing.common.devices import DTYPES
from routing.common.errors import UserError, raise_all, run_command
from routing.common.parser import Parser
from routing.common.placing import add_place_arguments, place_problems
from routing.common.stages import done, run_stage
from routing.models.default_model import DEFAULT_MODEL
from routing.models.problems import model_problems
from routing.objectives.table import PREFERENCE
from routing.tasks import unknown_names
from routing.tasks.answers import SCORES
from routing.tasks.problems import files_without_splits, template_problems
from routing.training.adapters.arguments import AdapterArguments
from routing.training.preferences.arguments import PreferenceArguments
from routing.training.run_folder import last_whole_checkpoint

STEPS = 4 + len(PREFERENCE)
# Chosen on validation questions of arithmetic; the published learning rate of 1e-4 needs many more tokens than these.
ADAPTERS = ("--learning_rate", "1e-3", "--lr_schedule", "cosine")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="dlr prune", description=__doc__)
    parser.add_argument("--output", required=True, help="folder of everything that is made")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="base model")
    parser.add_argument("--dataset", default="arithmetic", help="comma-separated data sets with splits")
    parser.add_argument("--score", default="accuracy", choices=sorted(SCORES), help="score of generated answers")
    parser.add_argument("--adapter_samples", type=int, default=5000, help="questions of each data set for adapters")
    parser.add_argument("--adapter_epochs", type=int, default=60, help="epochs of adapter training")
    parser.add_argument("--dfs_samples", type=int, default=300, help="questions of each data set explored by dfs")
    parser.add_argument("--random_samples", type=int, default=150, help="of these also explored at random")
    parser.add_argument("--pair_epochs", type=int, default=10, help="epochs of router training over pairs (dpo, orpo)")
    parser.add_argument("--set_epochs", type=int, default=300, help="epochs over the best layer sets (fbc)")
    parser.add_argument("--test_samples", type=int, default=400, help="test questions of each data set, at most")
    parser.add_argument("--counts", default="1,2,4,6", help="numbers of pruned layers at which methods are compared")
    parser.add_argument("--control_samples", type=int, default=64, help="validation questions that choose static sets")
    parser.add_argument("--apply_chat_template", action="store_true", help="wrap prompts in the chat template")
    parser.add_argument("--chat_template_args", default="", help="arguments of the chat template, a JSON object")
    parser.add_argument("--system_instruction", default="", help="text of a system message in the chat template")
    parser.add_argument("--tools_in_template", action="store_true", help="let the chat template list the functions")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES), help="dtype of the model")
    add_place_arguments(parser)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    problems = unknown_names(arguments.dataset) + files_without_splits("dataset", arguments.dataset)
    counted = ("adapter_samples", "adapter_epochs", "dfs_samples", "random_samples", "pair_epochs", "set_epochs")
    problems += below(arguments, **dict.fromkeys((*counted, "test_samples", "control_samples"), 1))
    problems += template_problems(arguments) + place_problems(arguments)
    raise_all(problems + model_problems(arguments.model))
    return arguments


def train(step: int, title: str, output: Path, name: str, made_from: list[Path], kind: type, *options: str) -> Path:
    """Train into output/checkpoints/name, unless that is done; go on with what a killed run left.

    Args:
        made_from: files that the training reads; where one is newer, all is done anew.
        kind: dataclass of the arguments.

    Raises:
        UserError: if what is there was trained with other arguments.
    """
    checkpoint, work = output / "checkpoints" / name, output / "runs"
    folders = ("--run_name", name, "--output_dir", str(checkpoint.parent), "--work_dir", str(work))
    record = checkpoint / "training.json"
    if done(record, *made_from):
        wanted, old = as_dict(read_arguments(kind, [*options, *folders])), json.loads(record.read_text())["arguments"]
        # An argument that was added since had its default.
        old = {field.name: field.default for field in fields(kind)} | old | {"resume": False}
        changed = [f"--{key} was {old[key]!r}, now {value!r}" for key, value in wanted.items() if old[key] != value]
        if changed:
            raise UserError(f"{checkpoint} was made otherwise: {'; '.join(changed)}. Give another --output.")
        print(f"\n[{step}/{STEPS}] done: {checkpoint}")
        return checkpoint
    last = last_whole_checkpoint(work / name / "trainer")
    resume = ["--resume"] if last and done(last / "trainer_state.json", *made_from) else []
    run_stage(f"{step}/{STEPS}", title, "train.py", *options, *folders, *resume)
    return checkpoint


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    output, seed = Path(arguments.output), ("--seed", str(arguments.seed))
    device = ("--device", arguments.device)
    asked = [f"--{name}" for name in ("apply_chat_template", "tools_in_template") if getattr(arguments, name)]
    asked += ["--dtype", arguments.dtype, *device]
    for name in ("device_map", "max_memory", "offload_folder"):  # Query routers are trained without the base.
        asked += [f"--{name}", getattr(arguments, name)] if getattr(arguments, name) else []
    filling = []  # The comparison finds it in the checkpoints.
    for name in ("chat_template_args", "system_instruction"):
        filling += [f"--{name}", getattr(arguments, name)] if getattr(arguments, name) else []
    adapters = train(
        1, "adapters for skipped layers", output, "adapters", [], AdapterArguments, "--objective", "adapters",
        "--model_id", arguments.model, "--dataset", arguments.dataset, "--num_samples", str(arguments.adapter_samples),
        "--num_epochs", str(arguments.adapter_epochs), *ADAPTERS, *seed, *asked, *filling,
    )  # fmt: skip
    explored = []
    for step, search, samples in ((2, "dfs", arguments.dfs_samples), (3, "random", arguments.random_samples)):
        explored.append(output / "explored" / search)
        run_stage(
            f"{step}/{STEPS}", f"explore layer sets, {search}", "data_generation.py", "--model", arguments.model,
            "--dataset", arguments.dataset, "--search", search, "--score", arguments.score, "--num_samples",
            str(samples), "--adapters", str(adapters), "--output_dir", str(explored[-1]), *seed, *asked,
            *filling,
        )  # fmt: skip
    read = [adapters / "training.json", *(folder / "labels.jsonl" for folder in explored)]
    routers = []
    for step, (objective, plan) in enumerate(PREFERENCE.items(), 4):
        epochs = arguments.pair_epochs if plan.from_pairs else arguments.set_epochs
        options = (
            "--objective", objective, "--router", "query", "--model_id", arguments.model, "--data",
            ",".join(map(str, explored)), "--adapters", str(adapters), "--num_epochs", str(epochs), *seed, *device,
        )  # fmt: skip
        routers.append(
            train(step, f"query router, {objective}", output, objective, read, PreferenceArguments, *options)
        )
    run_stage(
        f"{STEPS}/{STEPS}", "comparison with baselines", "-m", "routing", "compare_pruning", "--adapters",
        str(adapters), "--checkpoints", ",".join(map(str, routers)), "--dataset", arguments.dataset, "--num_samples",
        str(arguments.test_samples), "--score", arguments.score, "--counts", arguments.counts, "--output",
        str(output / "comparison"), "--control_samples", str(arguments.control_samples), *asked,
    )  # fmt: skip


if __name__ == "__main__":
    run_command(main)
