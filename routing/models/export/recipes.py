"""Exports that name a base in place of holding weights: a mergekit YAML, and a PEFT folder with layer_replication."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from data_models.path_notation import ranges_of, write_path
from routing.common.errors import UserError
from routing.models.bases import load_stock
from routing.models.export.config import differing_layers
from routing.models.export.equality import Equality, measure
from routing.models.export.source import Source, along

MERGEKIT = "mergekit.yaml"


def recipe_problems(source: Source, path: Sequence[int], kind: str) -> list[str]:
    """Why a recipe would make another model than the path: mergekit and PEFT leave lists of layers in the config."""
    listed = differing_layers(source.config)
    if listed:
        return [
            f"--format {kind}: the layers of {source.name} are not all of one kind ({', '.join(listed)}), and {kind} "
            "does not re-index that. Give --format hf, which does."
        ]
    if kind == "peft" and getattr(source.config, "layer_types", None) and len(path) > source.depth:
        return [
            f"--format peft: path {write_path(path)} runs {len(path)} layers, and PEFT leaves the {source.depth} "
            f"layer_types of a {source.config.model_type.removeprefix('routed_')} as they are, so stock transformers "
            "finds none for the others. Give --format hf, or a path of no more layers than the model has."
        ]
    return []


def mergekit_recipe(base: str, commit: str | None, path: Sequence[int], dtype: str) -> str:
    """YAML of a passthrough merge; ranges are half-open."""
    named = f"{base}@{commit}" if commit else base
    slices = [{"sources": [{"model": named, "layer_range": [start, end]}]} for start, end in ranges_of(path)]
    return yaml.safe_dump({"slices": slices, "merge_method": "passthrough", "dtype": dtype}, sort_keys=False)


def save_peft(
    source: Source, base: str, commit: str | None, model, path: Sequence[int], rank: int, folder: Path
) -> Equality:
    """A LoRA folder that changes nothing yet, over the layers of a path; repeats share the base's weights.

    Args:
        base, commit: the stock model it belongs to.
        model: of `load_model`, for the comparison.
        rank: of the LoRA, in front of training.

    Raises:
        UserError: if what PEFT loads from the folder is not the routed model.
    """

    def stock():
        return load_stock(base, model.dtype, commit)

    attention = model.model.layers[0].self_attn
    targets = [name for name, part in attention.named_children() if isinstance(part, nn.Linear)]
    config = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules=targets,
        layer_replication=ranges_of(path), base_model_name_or_path=base, revision=commit,
    )  # fmt: skip
    torch.manual_seed(0)
    get_peft_model(stock(), config).save_pretrained(folder)
    found = measure(along(source, model, path), PeftModel.from_pretrained(stock(), folder).eval())
    if not found.holds:
        raise UserError(
            f"--format peft, path {write_path(path)}: what PEFT makes of it is not the routed model: {found.words()}. "
            "Give --format hf."
        )
    return found
