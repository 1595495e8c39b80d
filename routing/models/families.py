"""Model families, and loading of a model's config and tokenizer by its name, with clear errors."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import sys
from functools import cache
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig
from transformers.utils import cached_file
from transformers.utils.hub import resolve_revision

from routing.common.errors import UserError
from routing.models.default_model import DEFAULT_MODEL
from routing.models.wheel_models import NOTICE, WHEEL_MODELS, wheel_model_folder

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


def locate_model(name: str) -> str:
    """What from_pretrained takes: the folder of a model that comes without a hub, other names unchanged."""
    return str(wheel_model_folder(name)) if name in WHEEL_MODELS else name


def commit_of(name: str, revision: str | None = None) -> str | None:
    """Commit of a model on the hub, by what the hub or the cache says of a branch; None for a folder."""
    place = locate_model(name)
    return None if Path(place).exists() else getattr(resolve_revision(place, revision), "resolved", revision)


def base_file(name: str, file: str, revision: str | None = None) -> Path | None:
    """A file of a model, from its folder or from the hub; None where it has none."""
    found = cached_file(
        locate_model(name), file, revision=revision, _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False, _raise_exceptions_for_gated_repo=False,
    )  # fmt: skip
    return None if found is None else Path(found)


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


def load_base_config(name: str, revision: str | None = None) -> PreTrainedConfig:
    """Configuration of a base model, without its weights.

    Args:
        revision: of a model on the hub; default the branch main. The config's `_commit_hash` says what it came to;
            None for a folder.

    Raises:
        UserError: if it cannot be found, is a LoRA, has no decoder layers, or its family is not supported.
    """
    place = locate_model(name)
    try:
        commit = commit_of(name, revision)
        check_no_lora(name, commit)
        config = AutoConfig.from_pretrained(place, revision=commit)
        config._commit_hash = commit
        if commit is None and not Path(place).exists():
            raise OSError("the hub does not say which commit it is at now, and results are tied to a commit.")
    except (OSError, ValueError) as error:
        spelled = "" if Path(place).exists() else "Is it spelled right? "
        reason = str(error).splitlines()[0]
        raise UserError(f"the model {name!r} cannot be loaded: {reason} {spelled}{to_make_whole(name)}") from error
    if config.model_type.startswith("routed_"):
        raise UserError(
            f"the model {name!r} is a routed checkpoint ({config.model_type}). Give the base model it was made from."
        )
    if problem := family_problem(config):
        raise UserError(f"the model {name!r} is of type {config.model_type!r}, {problem}")
    return config


def family_problem(config: PreTrainedConfig) -> str:
    """Why models of a config cannot be routed; "" where they can."""
    supported = f"Supported families: {', '.join(FAMILIES)}."
    text = config.get_text_config(decoder=True)
    if not getattr(text, "num_hidden_layers", None) or config.is_encoder_decoder:
        return f"which has no decoder layers to route. {supported}"
    if config.model_type not in FAMILIES:
        whole = "" if text is config else f"which holds a decoder of text ({text.model_type}) among others, and "
        return (
            f"{whole}which is not supported. {supported} docs/add_a_family.md shows how to add one in about 30 lines."
        )
    if getattr(config, "use_bidirectional_attention", None):
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
    place = locate_model(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision)
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


def vocabulary_rows(name: str, revision: str | None = None) -> int | None:
    """Rows of a model's embedding; None where no config tells."""
    try:
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
