"""One run of `train.py --objective value`: folder, training of the router that is asked for, checkpoint, card."""

from __future__ import annotations

from pathlib import Path

from routing.common.errors import raise_all
from routing.labels.reading import label_hashes, read_header
from routing.models.checkpoint import adapter_weights, save_checkpoint
from routing.models.checkpoint_files import adapter_fields
from routing.models.families import load_base_config, load_tokenizer
from routing.scoring.prompting import common_prompting, recorded
from routing.training.routers.data import foreign_labels
from routing.training.skeleton import Run, Save, training_run
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
    headers = [read_header(folder) for folder in folders]
    foreign = (foreign_labels(f, header, arguments.model_id, config) for f, header in zip(folders, headers))
    raise_all([text for found in foreign for text in found])

    def train(run: Run) -> Save:
        parts, fields, found = TRAINED[arguments.router](arguments, config, tokenizer, run.work)
        summary = run.summary(prompting=recorded(common_prompting(headers)), **found)

        def save(folder: Path) -> None:
            own = parts | (adapter_weights(Path(arguments.adapters)) if arguments.adapters else {})
            own_fields = fields | adapter_fields(arguments.adapters)
            save_checkpoint(folder, arguments.model_id, own, own_fields, arguments.save_base, summary)

        return save

    return training_run(arguments, lambda: label_hashes(folders), train)
