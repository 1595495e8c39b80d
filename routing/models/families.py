"""Model families, and loading of a model by name with clear errors."""

from __future__ import annotations

import importlib
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from routing.common.errors import UserError
from routing.models.default_model import DEFAULT_MODEL, default_model_folder

# model_type of the base -> (module of data_models and train_models, prefix of the class names)
FAMILIES = {
    "llama": ("modeling_llama", "Llama"),
    "qwen2": ("modeling_qwen2", "Qwen2"),
    "qwen3": ("modeling_qwen3", "Qwen3"),
}


def locate_model(name: str) -> str:
    """What from_pretrained takes: the folder of the default model for its name, other names unchanged."""
    return str(default_model_folder()) if name == DEFAULT_MODEL else name


def load_base_config(name: str) -> PreTrainedConfig:
    """Configuration of a base model, without its weights.

    Raises:
        UserError: if it cannot be found, has no decoder layers, or its family is not supported.
    """
    place = locate_model(name)
    try:
        config = AutoConfig.from_pretrained(place)
    except (OSError, ValueError) as error:
        offline = (
            ""
            if Path(place).exists()
            else (
                f" Is it spelled right and can this machine reach the hub? Without hub access give a local folder, "
                f"or {DEFAULT_MODEL!r}, which comes from the package index."
            )
        )
        raise UserError(f"the model {name!r} cannot be loaded: {str(error).splitlines()[0]}{offline}") from error
    supported = ", ".join(FAMILIES)
    if config.model_type.startswith("routed_"):
        raise UserError(
            f"the model {name!r} is a routed checkpoint ({config.model_type}). Give the base model it was made from."
        )
    if config.model_type not in FAMILIES:
        layers = getattr(config, "num_hidden_layers", None)
        why = "has no decoder layers to route" if not layers or config.is_encoder_decoder else "is not supported"
        raise UserError(
            f"the model {name!r} is of type {config.model_type!r}, which {why}. Supported families: {supported}. "
            "train_models/README.md shows how to add one in about 30 lines."
        )
    return config


def routed_class(model_type: str) -> type:
    """The Routed...ForCausalLM class of a base's model_type."""
    module, prefix = FAMILIES[model_type]
    return getattr(importlib.import_module(f"train_models.{module}"), f"Routed{prefix}ForCausalLM")


def load_tokenizer(name: str):
    """Tokenizer of a model, with a pad token (eos if it has none)."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(locate_model(name))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the tokenizer of the model {name!r} cannot be loaded: {reason}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise UserError(f"the tokenizer of the model {name!r} has neither a pad nor an eos token; set one and save it.")
    return tokenizer
