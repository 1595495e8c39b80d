"""LoRA adapters (PEFT) on a routed model: switched off for the teacher, merged into the weights of the checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig, LoraModel
from peft.tuners.tuners_utils import cast_adapter_dtype
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from routing.common.errors import raise_all
from train_models.offloading import device_of

NAME = "default"


def lora_config(arguments) -> LoraConfig:
    targets = [name.strip() for name in arguments.lora_targets.split(",") if name.strip()]
    return LoraConfig(
        r=arguments.lora_rank,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=targets,
        exclude_modules=r".*routers.*",
    )


def tied_problems(targets: str, config) -> list[str]:
    """Why linear maps cannot have a LoRA: merging one would change the tensor of another module that shares it."""
    tied = sorted({"lm_head", "embed_tokens"} & set(targets.split(","))) if config.tie_word_embeddings else []
    if not tied:
        return []
    return [
        f"--lora_targets {','.join(tied)}: the head of this model and its embedding are one tensor "
        "(tie_word_embeddings), so a LoRA of the one would be merged into both; leave it out"
    ]


def shell_of(config: PreTrainedConfig) -> nn.Module:
    """A stock model of a config, without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def add_lora(model: nn.Module, config: LoraConfig) -> LoraModel:
    """Put adapters into a model, in place; they alone get gradients.

    Raises:
        UserError: if no linear map has one of the names, or its weight is that of another module too.
    """
    raise_all(tied_problems(",".join(config.target_modules), model.config))
    raise_all(unknown_problems(config.target_modules, model))
    with there(model, config.target_modules):
        adapters = LoraModel(model, config, NAME)
    # Adapters of a base in half precision stay in float32: steps of the size of a learning rate would round to nothing.
    cast_adapter_dtype(model, NAME)
    return adapters


@contextmanager
def there(model: nn.Module, targets: Iterable[str]) -> Iterator[None]:
    """Linear maps whose weights a device map offloads as if they were where they compute, while inside: PEFT puts the
    LoRA where the weight is, and meta is no place. A stand-in has the shape and takes no memory."""
    away = {}
    for name, part in model.named_modules():
        if name.split(".")[-1] in set(targets) and isinstance(part, nn.Linear) and part.weight.device.type == "meta":
            away[part] = part.weight
            empty = torch.empty(1, 1, dtype=part.weight.dtype, device=device_of(part)).expand_as(part.weight)
            part.weight = nn.Parameter(empty, requires_grad=False)
    try:
        yield
    finally:
        for part, weight in away.items():
            part.weight = weight


def unknown_problems(targets: Iterable[str], model: nn.Module) -> list[str]:
    """Names that no linear map of a model has: PEFT would leave them out without a word where another is found."""
    inside = {name.split(".")[-1] for name, part in model.model.layers.named_modules() if isinstance(part, nn.Linear)}
    unknown = sorted(set(targets) - inside - {"lm_head", "embed_tokens"})
    if not unknown:
        return []
    return [
        f"--lora_targets {','.join(unknown)}: a {model.config.model_type.removeprefix('routed_')} has no linear map of "
        f"that name; those of its layers are {', '.join(sorted(inside))}"
    ]


@contextmanager
def lora_off(adapters: LoraModel | None) -> Iterator[None]:
    """The base as it was, while inside."""
    if adapters is None:
        yield
        return
    adapters.disable_adapter_layers()
    try:
        yield
    finally:
        adapters.enable_adapter_layers()


def merge_lora(model: nn.Module, config: LoraConfig, state: dict[str, torch.Tensor]) -> None:
    """Add trained adapters to the weights of another copy of their base, in place."""
    adapters = add_lora(model, config)
    set_peft_model_state_dict(adapters, state, NAME)
    adapters.merge_and_unload(safe_merge=True)


def lora_state(adapters: LoraModel) -> dict[str, torch.Tensor]:
    """Weights of the adapters, on the CPU."""
    state = get_peft_model_state_dict(adapters, adapter_name=NAME)
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
