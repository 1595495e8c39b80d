"""Files of a base model by its name, from its folder or the hub, and what they say without transformers or torch."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from routing.common.errors import UserError
from routing.models.default_model import DEFAULT_MODEL
from routing.models.wheel_models import NOTICE, WHEEL_MODELS, wheel_model_folder


def locate_model(name: str) -> str:
    """What from_pretrained takes: the folder of a model that comes without a hub, other names unchanged."""
    return str(wheel_model_folder(name)) if name in WHEEL_MODELS else name


def commit_of(name: str, revision: str | None = None) -> str | None:
    """Commit of a model on the hub, by what the hub or the cache says of a branch; None for a folder."""
    place = locate_model(name)
    if Path(place).exists():
        return None
    from huggingface_hub import HfApi, is_offline_mode
    from huggingface_hub.errors import HfHubHTTPError, RevisionResolutionError

    try:
        return HfApi().resolve_revision(place, revision=revision, local_files_only=is_offline_mode()).resolved
    # The hub's, the connection's (its bases), a name's: reading the files tells them better, or finds them cached.
    except (RevisionResolutionError, ValueError, *HfHubHTTPError.__bases__):
        return revision


def base_file(name: str, file: str, revision: str | None = None) -> Path | None:
    """A file of a model, from its folder or from the hub; None where it has none, or the hub cannot be asked.

    Raises:
        OSError, ValueError: if there cannot be, or is not, such a model on the hub.
    """
    place = locate_model(name)
    if os.path.isdir(place):
        return Path(place, file) if Path(place, file).is_file() else None
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        return _from_hub(place, file, revision)
    except RepositoryNotFoundError as error:
        if isinstance(error, GatedRepoError):
            return None
        raise OSError(
            f"{name} is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'"
        ) from error
    except (EntryNotFoundError, HfHubHTTPError):
        return None


def _from_hub(place: str, file: str, revision: str | None) -> Path | None:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):  # The cache knows what a commit lacks, too.
        known = try_to_load_from_cache(place, file, revision=revision)
        if known is not None:
            return Path(known) if isinstance(known, str) else None
    return Path(hf_hub_download(place, file, revision=revision))


def copy_notice(name: str, folder: Path, revision: str | None = None) -> None:
    """The NOTICE of a model, where it has one, goes with what is derived from it: terms such as Gemma's ask for it."""
    found = base_file(name, NOTICE, revision)
    if found is not None:
        shutil.copyfile(found, folder / NOTICE)


def to_make_whole(name: str) -> str:
    """What to do about a base of which files are missing or damaged."""
    if Path(locate_model(name)).exists():
        return (
            "Save or download the model into the folder again, with the files of its config (config.json), its "
            "tokenizer (tokenizer.json, tokenizer_config.json) and its weights (model.safetensors)."
        )
    return (
        f"Where the hub can be reached, `hf download {name}` completes what the cache has of it; without it give a "
        f"local folder, or {DEFAULT_MODEL!r}, which comes from the package index."
    )


def not_loaded(name: str, reason: object) -> UserError:
    """The error of a base that cannot be loaded, where `reason` says why."""
    spelled = "" if Path(locate_model(name)).exists() else "Is it spelled right? "
    return UserError(
        f"the model {name!r} cannot be loaded: {str(reason).splitlines()[0]} {spelled}{to_make_whole(name)}"
    )


def check_no_lora(name: str, revision: str | None = None) -> None:
    """Refuse a LoRA, with or without its base: some calls of transformers would load it along, others would not.

    Raises:
        UserError: naming the remedy.
    """
    path = base_file(name, "adapter_config.json", revision)
    if path is None:
        return
    base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    beside = base_file(name, "config.json", revision) is not None
    raise UserError(
        f"the model {name!r} "
        + ("holds a LoRA beside a base" if beside else "is a LoRA without its base")
        + f" (adapter_config.json, made on {base!r}). Merge the LoRA into its base (merge_and_unload() of peft, then "
        "save_pretrained into a new folder) and give that folder"
        + ("; or remove adapter_config.json, to route the base as it is." if beside else ".")
    )


def base_fields(name: str, revision: str | None = None) -> tuple[dict, str | None]:
    """Fields of a base's config.json, `model_type` among them, and its commit on the hub or None for a folder.

    Raises:
        UserError: if they cannot be had, or the base is a LoRA.
    """
    place = locate_model(name)
    try:
        commit = commit_of(name, revision)
        check_no_lora(name, commit)
        fields = config_fields(place, commit)
    except (OSError, ValueError) as error:
        raise not_loaded(name, error) from error
    if commit is None and not Path(place).exists():
        raise not_loaded(name, "the hub does not say which commit it is at now, and results are tied to a commit.")
    return fields, commit


def config_fields(place: str, revision: str | None = None) -> dict:
    """Fields of the config.json of any model, `model_type` among them.

    Args:
        place: its folder, or name on the hub.

    Raises:
        OSError, ValueError: whose first line says why there are none.
    """
    path = base_file(place, "config.json", revision)
    if path is None and not Path(place).exists():
        raise OSError("We couldn't connect to the hub to load its files, and couldn't find them in the cached files.")
    try:
        fields = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except ValueError as error:
        raise ValueError(f"It looks like the config file at '{path}' is not a valid JSON file.") from error
    if not isinstance(fields, dict) or not fields.get("model_type"):
        raise ValueError(f"Unrecognized model in {place}. Should have a `model_type` key in its config.json.")
    return fields
