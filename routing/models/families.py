"""Model families, and loading of a model's config and tokenizer by its name, with clear errors.

What can be said of a base by its config.json alone is said without transformers, which takes seconds to import.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from functools import cache
from typing import TYPE_CHECKING

from routing.common.errors import UserError
from routing.models.base_files import (
    base_fields,
    base_file,
    config_fields,
    locate_model,
    not_loaded,
    to_make_whole,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# model_type of the base -> (module of data_models and train_models, prefix of the class names)
FAMILIES = {
    "llama": ("modeling_llama", "Llama"),
    "qwen2": ("modeling_qwen2", "Qwen2"),
    "qwen3": ("modeling_qwen3", "Qwen3"),
    "mistral": ("modeling_mistral", "Mistral"),
    "smollm3": ("modeling_smollm3", "SmolLM3"),
    "gemma3_text": ("modeling_gemma3", "Gemma3"),
    "granite": ("modeling_granite", "Granite"),
    "olmo2": ("modeling_olmo2", "Olmo2"),
    "gemma2": ("modeling_gemma2", "Gemma2"),
    "phi3": ("modeling_phi3", "Phi3"),
    "olmo3": ("modeling_olmo3", "Olmo3"),
    "qwen3_moe": ("modeling_qwen3_moe", "Qwen3Moe"),
    "olmoe": ("modeling_olmoe", "Olmoe"),
}
COUNTS_OF_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")  # names in the configs of other types


def base_config(name: str, revision: str | None = None) -> tuple[dict, str | None]:
    """Fields of a base's config.json, and its commit on the hub or None for a folder.

    Args:
        revision: of a model on the hub; default the branch main.

    Raises:
        UserError: if it cannot be found, is a LoRA, has no decoder layers, or its family is not supported.
    """
    fields, commit = base_fields(name, revision)
    family = str(fields["model_type"])
    if family.startswith("routed_"):
        raise UserError(f"the model {name!r} is a routed checkpoint ({family}). Give the base model it was made from.")
    if problem := family_problem(fields):
        raise UserError(f"the model {name!r} is of type {family!r}, {problem}")
    return fields, commit


def layers_of(name: str) -> int:
    """How many layers a base has."""
    fields, _ = base_config(name)
    # What a config.json leaves out is as its class has it.
    return fields.get("num_hidden_layers") or load_base_config(name).num_hidden_layers


def load_base_config(name: str, revision: str | None = None) -> PreTrainedConfig:
    """Configuration of a base model, without its weights; see `base_config`. Its `_commit_hash` is the commit.

    Raises:
        UserError: also if transformers refuses the values of its fields.
    """
    _, commit = base_config(name, revision)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(locate_model(name), revision=commit)
    except (OSError, ValueError) as error:
        raise not_loaded(name, error) from error
    config._commit_hash = commit
    return config


def family_problem(fields: dict) -> str:
    """Why models with these fields of a config cannot be routed; "" where they can."""
    supported = f"Supported families: {', '.join(FAMILIES)}."
    text, known = fields.get("text_config") or fields, fields["model_type"] in FAMILIES
    layers = any(text.get(count) for count in COUNTS_OF_LAYERS) or (known and "num_hidden_layers" not in fields)
    if not layers or fields.get("is_encoder_decoder"):
        return f"which has no decoder layers to route. {supported}"
    if not known:
        whole = "" if text is fields else f"which holds a decoder of text ({text.get('model_type')}) among others, and "
        return (
            f"{whole}which is not supported. {supported} docs/add_a_family.md shows how to add one in about 30 lines."
        )
    if fields.get("use_bidirectional_attention"):
        return (
            "and its tokens attend to later ones (use_bidirectional_attention), so it does not generate. Give another."
        )
    return ""


def routed_class(model_type: str) -> type:
    """The Routed...ForCausalLM class of a base's model_type."""
    module, prefix = FAMILIES[model_type]
    return getattr(importlib.import_module(f"train_models.{module}"), f"Routed{prefix}ForCausalLM")


@cache
def _told(text: str) -> None:
    """Say something on stderr, once."""
    print(text, file=sys.stderr)


def no_tokenizer(name: str, revision: str | None, error: Exception) -> str:
    """Why a tokenizer cannot be loaded and what to do about it, where transformers says it with `error`."""
    reason = f"{str(error).splitlines()[0].rstrip(' .:')}. {to_make_whole(name)}"
    if base_file(name, "tokenizer.json", revision) is None:
        pieces = base_file(name, "tokenizer.model", revision) is not None
        if pieces and importlib.util.find_spec("sentencepiece") is None:
            reason = (
                "it has a tokenizer.model and no tokenizer.json, and the package that reads it is not installed. "
                "Install it: pip install sentencepiece"
            )
        elif not pieces:  # transformers lists all the classes that it could not make.
            reason = f"there is no tokenizer.json. {to_make_whole(name)}"
    return f"the tokenizer of the model {name!r} cannot be loaded: {reason}"


def load_tokenizer(name: str, revision: str | None = None):
    """Tokenizer of a model, with a pad token that the model has an embedding for (eos where it has none).

    Raises:
        UserError: if it cannot be loaded, has no token to pad with, or puts a token behind every text.
    """
    from transformers import AutoTokenizer, PreTrainedConfig

    place = locate_model(name)
    try:
        # transformers would ask on the terminal whether the code of a checkpoint may run, which no tokenizer needs.
        config = {"config": PreTrainedConfig()} if has_code(name, revision) else {}
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, **config)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(no_tokenizer(name, revision, error)) from error
    rows = vocabulary_rows(name, revision)
    if tokenizer.pad_token_id is not None and rows is not None and tokenizer.pad_token_id >= rows:
        _told(
            f"the model {name!r} has no embedding for its pad token {tokenizer.pad_token!r} (id "
            f"{tokenizer.pad_token_id}, {rows} rows); texts are padded with its eos token, under the mask"
        )
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise UserError(f"the tokenizer of the model {name!r} has neither a pad nor an eos token; set one and save it.")
    check_ends(tokenizer, name)
    return tokenizer


def has_code(name: str, revision: str | None = None) -> bool:
    """Whether a model's config names code that comes with it, as those of checkpoints do.

    Raises:
        OSError, ValueError: if the config cannot be had.
    """
    path = base_file(name, "config.json", revision)
    return path is not None and "auto_map" in json.loads(path.read_text(encoding="utf-8"))


def vocabulary_rows(name: str, revision: str | None = None) -> int | None:
    """Rows of a model's embedding; None where no config tells."""
    from transformers import AutoConfig

    try:
        if has_code(name, revision):
            return config_fields(locate_model(name), revision).get("vocab_size")
        return getattr(AutoConfig.from_pretrained(locate_model(name), revision=revision), "vocab_size", None)
    except (OSError, ValueError):
        return None


def check_ends(tokenizer, name: str) -> None:
    """Refuse a tokenizer that puts a token behind every text: prompts would end before their answers.

    Raises:
        UserError: naming token and remedy.
    """
    bare, whole = (tokenizer.encode("a", add_special_tokens=special) for special in (False, True))
    behind = whole[len(whole) - 1 :] if whole[-1:] != bare[-1:] else []
    if behind:
        raise UserError(
            f"the tokenizer of the model {name!r} puts its end-of-text token {tokenizer.decode(behind)!r} behind every "
            "text, so that every prompt would end before its answer. Load it with AutoTokenizer, set "
            "tokenizer.add_eos_token = False (or leave the token out of the post_processor in tokenizer.json), save it "
            "into the model's folder, and start again."
        )
