"""What a checkpoint folder is by its small files, without torch: its config, its record, its adapters, its own code."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import train_models
from routing.common.devices import is_first_process
from routing.common.errors import UserError
from routing.common.files import sha256

HYBRID = "gdn_hybrid"  # model_type of the language models of train.py --objective lm


def read_config(folder: Path) -> dict:
    """Fields of the config of any checkpoint.

    Raises:
        UserError: if there is none.
    """
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / 'config.json'} cannot be read ({error}). Give the folder of a checkpoint of train.py."
        ) from error
    if not isinstance(fields, dict) or "model_type" not in fields:
        raise UserError(f"{folder / 'config.json'} has no model_type. Give the folder of a checkpoint of train.py.")
    return fields


def check_checkpoint(folder: Path) -> dict:
    """Fields of the config of a checkpoint of trained routers.

    Raises:
        UserError: if it is none.
    """
    fields = read_config(folder)
    if fields.get("model_type") == HYBRID:
        raise UserError(
            f"{folder} is a hybrid language model of --objective lm, which has no base and skips no layers. Give a "
            "checkpoint of another objective. Hybrids are measured by their training (training.json, test), compared "
            "by python -m routing report, shown by python -m routing show and evaluated by stock lm_eval "
            f"(--model_args pretrained={folder},trust_remote_code=True)."
        )
    if fields.get("trained_num_windows") is None:
        raise UserError(f"{folder} holds no trained routers. Give the folder of a checkpoint of train.py.")
    return fields


def config_of(folder: Path) -> dict:
    """Fields of the config of a checkpoint of routers, or of a hybrid language model.

    Raises:
        UserError: if it is neither.
    """
    fields = read_config(folder)
    return fields if fields["model_type"] == HYBRID else check_checkpoint(folder)


def training_record(folder: Path) -> dict:
    """What train.py wrote beside the weights.

    Raises:
        UserError: if the folder is no checkpoint of train.py.
    """
    path = folder / "training.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no training.json, so it is no checkpoint of train.py.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["arguments"]["model_id"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); make the checkpoint again with train.py.") from error
    return record


def checkpoint_hash(folder: Path, besides: tuple[str, ...] = ()) -> str:
    """SHA-256 of what decides what a checkpoint does: its weights, and the fields of its config.

    Args:
        besides: fields that do not count.
    """
    fields = {k: v for k, v in read_config(folder).items() if k not in ("transformers_version", *besides)}
    weights = {path.name: sha256(path) for path in sorted(folder.glob("*.safetensors"))}
    return hashlib.sha256(json.dumps([fields, weights], sort_keys=True).encode()).hexdigest()


def check_adapters(folder: Path, base: str | None = None) -> dict:
    """Fields of the config of a checkpoint with adapters.

    Args:
        base: name of the model that they must be of.

    Raises:
        UserError: if it is none.
    """
    fields = check_checkpoint(folder)
    if fields.get("skip_action") != "adapter":
        raise UserError(f"{folder} has no adapters. Give a checkpoint of train.py --objective adapters.")
    made_of = training_record(folder)["arguments"]["model_id"]
    if base not in (None, made_of):
        raise UserError(f"{folder} has adapters of {made_of!r}, and the model is {base!r}. Give the same model.")
    return fields


def adapter_fields(folder: str) -> dict:
    """Config fields by which a model has the adapters of a checkpoint; none for no folder."""
    if not folder:
        return {}
    adapted = check_adapters(Path(folder))
    return {name: adapted[name] for name in ("skip_action", "adapter_size")}


def adapter_hashes(folder: str) -> dict[str, str]:
    """SHA-256 of each weight file of a checkpoint with adapters, as headers of labels hold them; none for no folder."""
    return {path.name: sha256(path) for path in sorted(Path(folder).glob("*.safetensors"))} if folder else {}


def check_code(folder: Path) -> None:
    """Say on stderr where a checkpoint brings other model code than this version's; it is its own that runs."""
    own = Path(train_models.__file__).parent
    brought = sorted(folder.glob("*.py"))
    other = [p.name for p in brought if not (own / p.name).exists() or (own / p.name).read_bytes() != p.read_bytes()]
    if other and is_first_process():
        print(
            f"{folder} brings its own model code, and {len(other)} of its files differ from those of this version "
            f"({', '.join(other[:3])}{', …' if len(other) > 3 else ''}); what runs is the checkpoint's. To run this "
            "version's, make the checkpoint again with train.py.",
            file=sys.stderr,
        )


def stored_adapters(folder: Path) -> dict[str, tuple]:
    """Dtype, shape and SHA-256 of each tensor of a checkpoint's adapters, by the names that the model has inside."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:  # As safetensors are: the size of a JSON header, the header, the bytes.
            size = int.from_bytes(file.read(8), "little")
            for name, entry in json.loads(file.read(size)).items():
                if name.removeprefix("model.").startswith("adapters."):
                    first, last = entry["data_offsets"]
                    file.seek(8 + size + first)
                    digest = hashlib.sha256(file.read(last - first)).hexdigest()
                    found[name.removeprefix("model.")] = (entry["dtype"], entry["shape"], digest)
    return found
