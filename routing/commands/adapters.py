"""What the adapters of a checkpoint are worth on questions of a split: the task score with each layer replaced alone.

    python -m routing adapters checkpoints/adapters --dataset arithmetic --output runs/adapters

Writes layers.json and layers.png; run it again to continue after an interruption.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from routing.common.cli import below
from routing.common.devices import DTYPES, device_problems, pick_device
from routing.common.errors import UserError, raise_all, run_command
from routing.common.files import file_stamps, unwritable, write_json
from routing.common.parser import Parser
from routing.common.run_info import hardware, made_with
from routing.models.checkpoint import check_adapters, load_checkpoint, training_record
from routing.scoring.context import fitting
from routing.scoring.plain import draw_requests
from routing.scoring.prompting import add_flags, asked, flag_problems, trained_prompting
from routing.tasks import unknown_names
from routing.tasks.examples import SPLITS
from routing.tasks.problems import files_without_splits
from routing.training.adapters.report import plot_worth, print_worth, worth_of_layers


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="dlr adapters", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="checkpoint with adapters")
    parser.add_argument("--dataset", default="arithmetic", help="comma-separated data sets")
    parser.add_argument("--split", default="test", choices=SPLITS, help="split to draw from")
    parser.add_argument("--num_samples", type=int, default=300, help="questions of each data set, at most")
    add_flags(parser)
    parser.add_argument("--batch_size", type=int, default=64, help="paths evaluated together, at most")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    parser.add_argument("--device", default="auto", help="torch device; auto: cuda if there is one, else cpu")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    arguments = parser.parse_args(argv)
    problems = unknown_names(arguments.dataset)
    problems += files_without_splits("dataset", arguments.dataset) + device_problems(arguments.device)
    problems += flag_problems(arguments)
    problems += below(arguments, num_samples=1, batch_size=1)
    problems += unwritable("--output", arguments.output)
    try:
        check_adapters(arguments.checkpoint)
    except UserError as error:
        problems.append(str(error))
    raise_all(problems)
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    folder, output = arguments.checkpoint, arguments.output
    model, tokenizer = load_checkpoint(folder, DTYPES[arguments.dtype], pick_device(arguments.device))
    prompting = asked(trained_prompting(training_record(folder)), arguments)
    requests = fitting(
        draw_requests(arguments.dataset, arguments.split, arguments.num_samples, tokenizer, prompting), model.config
    )
    key = [file_stamps(folder, "*.safetensors", "config.json"), arguments.dtype, hardware()]
    worth = worth_of_layers(model, tokenizer, requests, arguments.batch_size, output / "parts", key)
    record = folder / "adapters.json"
    errors = json.loads(record.read_text(encoding="utf-8"))["errors"] if record.exists() else None
    given = {name: str(value) for name, value in vars(arguments).items()}
    write_json(output / "layers.json", {"errors": errors} | worth | {"arguments": given} | made_with())
    name = training_record(folder)["arguments"]["model_id"]
    plot_worth(worth, errors, output / "layers.png", f"{name}, {arguments.dataset}: {arguments.split} questions")
    print_worth(worth, errors)
    print(f"written to {output / 'layers.json'} and layers.png")


if __name__ == "__main__":
    run_command(main)
