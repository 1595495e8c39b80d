"""Checkpoint folders: writing one, with the base weights or with a reference to them, and loading it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.dynamic_module_utils import custom_object_save

from routing.common.errors import UserError
from routing.common.files import sha256, write_json
from routing.models.base_files import copy_notice, locate_model
from routing.models.bases import take_stored_dtypes, weight_files
from routing.models.checkpoint_files import check_adapters, check_checkpoint, check_code, read_config
from routing.models.ends import ends_of
from routing.models.families import load_base_config, load_tokenizer, routed_class
from routing.models.placement import Placement
from routing.models.query_encoder import encoder_tokenizer
from routing.models.templates import fix_time
from train_models.checkpoint_card import CARD
from train_models.query_router import ENCODER_FOLDER
from train_models.routed_model import ROUTER_FILE, load_small_parts


def save_checkpoint(
    folder: Path,
    base: str,
    routers: dict[str, torch.Tensor],
    config_fields: dict,
    save_base: str,
    run_info: dict,
    change: Callable[[torch.nn.Module], None] | None = None,
    dtype: torch.dtype | str = "auto",
    encoder: str | None = None,
) -> None:
    """Write a self-contained folder that loads with trust_remote_code, replacing an older one but for its README.md.

    Args:
        folder: the checkpoint.
        base: the base model's name.
        routers: state dict of `model.model.routers`, with adapters as `small_parts` names them.
        config_fields: fields of RoutingFields that the routers were trained with.
        save_base: copy: the base weights, bit for bit in their own dtype, go into the folder; reference: only
            the routers do, and config.json names the base.
        run_info: saved as training.json.
        change: what is done to a copied base before it is saved (merging adapters, say).
        dtype: of the copied base; auto: its own.
        encoder: of a query router, the name of its sentence encoder, whose tokenizer goes along.
    """
    place, base_config = locate_model(base), load_base_config(base)
    commit = base_config._commit_hash
    where = {} if commit is None else {"revision": commit}
    work = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    routed = routed_class(base_config.model_type)
    config = routed.config_class.from_pretrained(place, **where, **config_fields)
    if save_base == "copy":
        model = routed.from_pretrained(place, config=config, dtype=dtype, **where)
        load_small_parts(model.model, routers)
        if change is None:
            take_stored_dtypes(model, base, commit)
        else:
            change(model)
        model.config.trained_num_windows = config.num_windows
        model.generation_config = GenerationConfig()  # That of the base is written below.
        model.save_pretrained(work)
        if change is None:
            keep_dtype(work, base_config)
    else:
        config.trained_num_windows = config.num_windows
        save_reference(work, routed, config, place, routers, commit)
    tokenizer = load_tokenizer(base, commit)
    # The prompts that the routers learned from told this time, so those of whoever prompts the checkpoint tell it too.
    fix_time(tokenizer, run_info.get("prompting", {}).get("template_time", ""))
    tokenizer.save_pretrained(work)
    save_ends(work, place, config, tokenizer, where)
    copy_notice(base, work, commit)
    if encoder is not None:
        encoder_tokenizer(encoder).save_pretrained(work / ENCODER_FOLDER)
    write_json(work / "training.json", run_info | {"base_revision": commit})
    put_in_place(work, folder)


def keep_dtype(work: Path, base_config) -> None:
    """Let a checkpoint load by default in the dtype that its base does: that of the config, whatever the weights."""
    fields = read_config(work) | {"dtype": base_config.to_dict().get("dtype")}
    write_json(work / "config.json", {name: value for name, value in fields.items() if name != "dtype" or value})


def save_ends(work: Path, place: str, config, tokenizer, where: dict) -> None:
    """Write the base's generation config with every token that ends an answer, so that stock generate() ends there."""
    try:
        generation = GenerationConfig.from_pretrained(place, **where)
    except OSError:  # A base need not have one.
        generation = GenerationConfig.from_model_config(config)
    ends = ends_of(generation, config, tokenizer)
    generation.eos_token_id = list(ends) if len(ends) > 1 else next(iter(ends), None)
    # Not by save_pretrained: it refuses what some bases bring, such as a temperature without do_sample.
    generation.to_json_file(work / "generation_config.json")


def put_in_place(work: Path, folder: Path) -> None:
    """Give a finished checkpoint its name, in place of an older one, whose README.md it takes over."""
    if (folder / CARD).exists():  # It may have been written by hand.
        shutil.copy2(folder / CARD, work)
    swap_in(work, folder)


def swap_in(work: Path, folder: Path) -> None:
    """Give a finished folder its name, in place of an older one."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    work.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def save_reference(
    work: Path, routed: type, config, place: str, routers: dict[str, torch.Tensor], commit: str | None
) -> None:
    """Routers, code and a config that names the base; `commit` is that of a base on the hub."""
    if commit is None:
        base = Path(place).resolve()
        config.base_model, config.base_sha256 = str(base), {path.name: sha256(path) for path in weight_files(base)}
    else:
        config.base_model, config.base_revision = place, commit
    config.architectures = [routed.__name__]
    with torch.device("meta"):
        shell = routed(config)
    custom_object_save(shell, work, config=config)
    config.save_pretrained(work)
    save_file({name: tensor.contiguous() for name, tensor in routers.items()}, work / ROUTER_FILE)


def load_checkpoint(folder: Path, dtype: torch.dtype, place: torch.device | Placement):
    """A routed checkpoint in eval mode, and its tokenizer.

    Raises:
        UserError: for a folder that train.py did not write, or a device map that does not fit.
    """
    check_checkpoint(folder)
    check_code(folder)
    placement = place if isinstance(place, Placement) else Placement(place)
    with placement.telling(str(folder)):
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=dtype, **placement.loading)
    if not hasattr(model.config, "route_bias"):
        raise UserError(f"{folder} was made by a version without route_bias. Make it again with train.py.")
    return placement.put(model).eval(), AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


def load_adapted(folder: Path, dtype: torch.dtype, place: torch.device | Placement):
    """A checkpoint with adapters, in eval mode.

    Raises:
        UserError: for a folder that train.py did not write, or that has no adapters.
    """
    check_adapters(folder)
    return load_checkpoint(folder, dtype, place)[0]


def adapter_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The adapters of a checkpoint, as `small_parts` names them."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - the file is no dict
                if name.removeprefix("model.").startswith("adapters."):
                    found[name.removeprefix("model.")] = file.get_tensor(name)
    return found


def load_adapters(model, folder: str) -> None:
    """Give a model that was made with `adapter_fields` the adapters of that checkpoint."""
    if folder:
        weights = adapter_weights(Path(folder)).items()
        model.model.adapters.load_state_dict({name.removeprefix("adapters."): tensor for name, tensor in weights})
