"""What an export starts from: a base or a routed checkpoint, the path that it takes, and a model that runs it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedConfig

from data_models.path_notation import write_path
from routing.common.errors import UserError
from routing.models.base_files import locate_model
from routing.models.bases import load_base, stored_tensors
from routing.models.checkpoint_files import training_record
from routing.models.export.asked import source_fields
from routing.models.export.config import stock_config
from routing.models.export.weights import unmergeable_adapters
from routing.models.families import FAMILIES, load_base_config, routed_class


@dataclass(frozen=True)
class Source:
    """A base or a checkpoint, by its configuration.

    Attributes:
        name: as given.
        place: what from_pretrained takes.
        config: of a base stock, of a checkpoint routed.
        routed: the class of its family.
    """

    name: str
    place: str
    config: PreTrainedConfig
    routed: type

    @property
    def is_checkpoint(self) -> bool:
        return self.config.model_type.startswith("routed_")

    @property
    def depth(self) -> int:
        return self.config.num_hidden_layers


def find_source(name: str, skip_action: str = "") -> Source:
    """A base or a checkpoint by its name, see `source_fields`; no weights are loaded."""
    family = source_fields(name, skip_action)["model_type"]
    if not family.startswith("routed_"):
        config = load_base_config(name)
        return Source(name, locate_model(name), config, routed_class(config.model_type))
    place, routed = locate_model(name), routed_class(family.removeprefix("routed_"))
    config = routed.config_class.from_pretrained(place, **({"skip_action": skip_action} if skip_action else {}))
    return Source(name, place, config, routed)


def load_model(source: Source, dtype: torch.dtype | str) -> nn.Module:
    """The Routed...ForCausalLM of a source, with its adapters, in eval mode.

    Raises:
        UserError: if it cannot be loaded whole.
    """
    if not source.is_checkpoint:
        return load_base(source.name, dtype, source.config._commit_hash, router="none")
    try:
        model = source.routed.from_pretrained(source.place, dtype=dtype, skip_action=source.config.skip_action)
    except (OSError, ValueError) as error:
        raise UserError(f"the checkpoint {source.name} cannot be loaded: {error}") from error
    return model.eval()


def stored_weights(source: Source) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a source as they are in its files, which a copy must not change."""
    named = source.config.base_model if source.is_checkpoint and source.config.base_model else source.name
    return stored_tensors(named, getattr(source.config, "base_revision", None))


def path_problems(source: Source, model: nn.Module, path: Sequence[int]) -> list[str]:
    """Why a path of a loaded model cannot be a stock model."""
    found = []
    scales = getattr(source.config, "residual_scale", None)
    scaled = [layer for layer in dict.fromkeys(path) if scales is not None and scales[layer] != 1]
    if scaled:
        found.append(
            f"layers {write_path(scaled)} scale what they change (residual_scale), which a stock layer cannot. Train "
            "without --residual_scaling."
        )
    layers = unmergeable_adapters(model, path)
    if layers:
        found.append(
            f"path {write_path(path)}: adapters stand in for layers {write_path(layers)}. They map the whole state "
            "between two layers, and a stock layer can only add to it, so they cannot be merged (in front of all "
            "layers they can, into the embedding). Heal the path with LoRA, which can: train.py --objective static "
            f"--path {write_path(path)}; or give --skip_action identity for the model without its adapters."
        )
    if len(getattr(model.model, "stand_ins", ())) and not _is_route(path):
        found.append(
            f"path {write_path(path)}: a model with adapters runs layers in their order, each at most twice. Give such "
            "a path, or --skip_action identity."
        )
    return found


def _is_route(path: Sequence[int]) -> bool:
    return list(path) == sorted(path) and all(path.count(layer) <= 2 for layer in path)


def along(source: Source, model: nn.Module, path: Sequence[int]) -> nn.Module:
    """A model that runs a path with the weights of `model`: itself on a fixed route, else one of data_models."""
    if _is_route(path):
        model.config.fixed_route = [path.count(layer) for layer in range(source.depth)]
        model.config.is_static_routing = False
        return model
    config = stock_config(model.config)
    module, prefix = FAMILIES[config.model_type]
    with torch.device("meta"):
        given = getattr(importlib.import_module(f"data_models.{module}"), f"Path{prefix}ForCausalLM")(config)
    given.load_state_dict(
        {
            name: t
            for name, t in model.state_dict().items()
            if not name.startswith(("model.routers.", "model.adapters."))
        },
        assign=True,
    )
    # What they hold besides weights: frequencies, and a scale in the families that have one.
    given.model.rotary_emb, given.model.embed_tokens = model.model.rotary_emb, model.model.embed_tokens
    given.model.layer_indices = list(path)
    return given.eval()


def frozen_base(source: Source) -> tuple[str, str | None]:
    """A stock model with the very weights of a source, for recipes that name one: folder or hub id, and its commit.

    Raises:
        UserError: for a checkpoint whose weights were trained.
    """
    name, commit = source.name, getattr(source.config, "_commit_hash", None)
    if source.is_checkpoint:
        record = training_record(Path(source.place))
        if record["arguments"].get("trainable") == "lora":
            raise UserError(
                f"{source.name} has LoRA merged into its weights, so no stock model has them. Export it with --format "
                "hf first, --path 0: for all of its layers, and give that folder."
            )
        name = source.config.base_model or record["arguments"]["model_id"]
        commit = source.config.base_revision or record.get("base_revision")
    return locate_model(name), commit  # Others do not know the default model by its name here.
