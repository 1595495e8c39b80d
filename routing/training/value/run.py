"""One run of `train.py --objective value`: folder, training of the router that is asked for, checkpoint, card."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from accelerate import PartialState
from transformers import set_seed

from routing.common.cli import as_dict
from routing.common.devices import is_first_process, pick_device
from routing.common.errors import raise_all
from routing.common.locks import only_run
from routing.common.run_info import git_commit, hardware, today, versions
from routing.labels.reading import label_hashes, read_header
from routing.models.checkpoint import adapter_fields, adapter_weights, save_checkpoint
from routing.models.families import load_base_config, load_tokenizer
from routing.scoring.prompting import common_prompting, recorded
from routing.training.routers.data import foreign_labels
from routing.training.run_folder import prepare_folder
from routing.training.value.arguments import ValueArguments
from routing.training.value.menu import train_menu
from routing.training.value.per_layer import train_per_layer

# --router -> function (arguments, config, tokenizer, folder of the run) -> weights of the router, config fields, and
# what training.json says of them
TRAINED = {"menu": train_menu, "per_layer": train_per_layer}


def run(arguments: ValueArguments) -> Path | None:
    """Train and write the checkpoint folder."""
    config, tokenizer = load_base_config(arguments.model_id), load_tokenizer(arguments.model_id)
    folders = arguments.data_folders()
    raise_all([text for f in folders for text in foreign_labels(f, read_header(f), arguments.model_id, config)])
    work = Path(arguments.work_dir) / arguments.run_name
    processes = PartialState(cpu=pick_device(arguments.device).type == "cpu")
    with only_run(work, together=True):
        if processes.is_main_process:
            prepare_folder(arguments, work, work / "trainer", label_hashes(folders))
        processes.wait_for_everyone()
        set_seed(arguments.seed)
        parts, fields, found = TRAINED[arguments.router](arguments, config, tokenizer, work)
        gc.collect()
        summary = {
            "arguments": as_dict(arguments),
            "num_processes": processes.num_processes,
            "prompting": recorded(common_prompting([read_header(one) for one in arguments.data_folders()])),
            **found,
            "versions": versions(),
            "git_commit": git_commit(),
            "hardware": hardware(),
            "date": today(),
        }
        processes.destroy_process_group()
        if is_first_process():
            fields |= adapter_fields(arguments.adapters)
            if arguments.adapters:
                parts |= adapter_weights(Path(arguments.adapters))
            folder = Path(arguments.output_dir) / arguments.run_name
            save_checkpoint(folder, arguments.model_id, parts, fields, arguments.save_base, summary)
            print(f"checkpoint: {folder}", file=sys.stderr)
            return folder
