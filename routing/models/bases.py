"""Base models with their weights: loaded whole or refused, and their weights as they are in the files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM

from routing.common.errors import UserError
from routing.common.files import file_stamps
from routing.models.base_files import base_file, commit_of, locate_model, to_make_whole
from routing.models.families import load_base_config, routed_class
from routing.models.placement import IN_MEMORY, Placement
from train_models.routed_model import lacking_weights

EXPERT = re.compile(r"^(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight$")


def load_base(
    name: str, dtype: torch.dtype | str, revision: str | None = None, placement: Placement = IN_MEMORY, **fields
):
    """The routed model over the weights of a base, in eval mode; its routers and adapters are drawn at random.

    Args:
        name: of the base.
        dtype: of the model; auto: what the base's config says.
        revision: of a base on the hub; default the branch main.
        placement: where it goes.
        fields: of RoutingFields, and arguments of from_pretrained.

    Raises:
        UserError: if it cannot be loaded whole.
    """
    config = load_base_config(name, revision)
    given = _place(name, config._commit_hash) | placement.loading | fields
    model = _loaded(name, lambda: routed_class(config.model_type).from_pretrained(dtype=dtype, **given))
    return placement.put(model)


def load_stock(name: str, dtype: torch.dtype | str, revision: str | None = None, placement: Placement = IN_MEMORY):
    """The stock model of a base, in eval mode; see `load_base`."""
    config = load_base_config(name, revision)

    def load():
        given = _place(name, config._commit_hash) | placement.loading
        model, info = AutoModelForCausalLM.from_pretrained(**given, dtype=dtype, output_loading_info=True)
        if info["missing_keys"]:
            raise ValueError(lacking_weights(name, info["missing_keys"]))
        return model

    return placement.put(_loaded(name, load))


def _place(name: str, commit: str | None) -> dict[str, str]:
    where = {"pretrained_model_name_or_path": locate_model(name)}
    return where if commit is None else where | {"revision": commit}


def _loaded(name: str, load):
    try:
        return load().eval()
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"the model {name!r} cannot be loaded: {reason}. {to_make_whole(name)}") from error
    except ValueError as error:
        raise UserError(f"the model {name!r} cannot be loaded: {error}") from error
    except RuntimeError as error:
        if "PytorchStreamReader" not in str(error):
            raise
        raise UserError(
            f"the model {name!r} cannot be loaded: a torch file is damaged. {to_make_whole(name)}"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """Files with the weights of a model, sorted by name: safetensors, or torch's where there are none of these."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def weight_stamps(name: str, revision: str | None = None) -> list:
    """What tells that the weights of a base changed: names, sizes and times of its files, or its commit on the hub."""
    place, commit = Path(locate_model(name)), commit_of(name, revision)
    return [commit] if commit else file_stamps(place, *(path.name for path in weight_files(place)))


def stored_tensors(name: str, revision: str | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a base's weight files, one by one, in their own dtypes and by their names there; those of experts are
    put together as a model has them, and come last."""
    experts: dict[str, dict[tuple[str, int], torch.Tensor]] = {}
    for key, tensor in _tensors_of_files(name, revision):
        match = EXPERT.match(key)
        if match is None:
            yield key, tensor
        else:
            experts.setdefault(match[1], {})[match[3], int(match[2])] = tensor
    while experts:
        place, parts = experts.popitem()
        count = 1 + max(number for _, number in parts)
        gates, ups, downs = ([parts[kind, number] for number in range(count)] for kind in ("gate", "up", "down"))
        yield f"{place}.gate_up_proj", torch.stack([torch.cat(pair) for pair in zip(gates, ups, strict=True)])
        yield f"{place}.down_proj", torch.stack(downs)


def _tensors_of_files(name: str, revision: str | None) -> Iterator[tuple[str, torch.Tensor]]:
    config = base_file(name, "config.json", commit_of(name, revision))
    for path in weight_files(config.parent):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - the file is no dict
                    yield key, file.get_tensor(key)
        else:
            yield from torch.load(path, map_location="cpu", weights_only=True, mmap=True).items()


@torch.no_grad()
def take_stored_dtypes(model: nn.Module, name: str, revision: str | None = None) -> None:
    """Give a loaded model the tensors of its base's files bit for bit, whatever dtype it was loaded in."""
    own = dict(model.named_parameters())
    for key, tensor in stored_tensors(name, revision):
        parameter = own.get(key, own.get(f"model.{key}"))  # A base may have been saved without its head.
        if parameter is not None and parameter.shape == tensor.shape:
            parameter.data = tensor
