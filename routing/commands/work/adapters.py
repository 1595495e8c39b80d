"""What `dlr adapters` does: each layer replaced alone, scored, drawn and told."""

from __future__ import annotations

import argparse
import json

from routing.common.devices import DTYPES
from routing.common.files import file_stamps, write_json
from routing.common.run_info import hardware, made_with
from routing.models.checkpoint import load_checkpoint
from routing.models.checkpoint_files import training_record
from routing.models.placement import place_of
from routing.scoring.context import fitting
from routing.scoring.prompting import asked, trained_prompting
from routing.scoring.requests import draw_requests
from routing.training.adapters.report import plot_worth, print_worth, worth_of_layers


def run(arguments: argparse.Namespace) -> None:
    folder, output = arguments.checkpoint, arguments.output
    model, tokenizer = load_checkpoint(folder, DTYPES[arguments.dtype], place_of(arguments))
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
