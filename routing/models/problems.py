"""What is wrong with a base model or adapters, by their small files alone, before weights are loaded."""

from __future__ import annotations

from pathlib import Path

from routing.common.errors import UserError
from routing.models.checkpoint_files import check_adapters
from routing.models.families import base_config, load_base_config, load_tokenizer
from routing.models.wheel_models import WHEEL_MODELS


def check_base(name: str) -> None:
    """Refuse a base that no stage could work on, by its config, its tokenizer and the names of its files.

    Raises:
        UserError: what is wrong and what to do.
    """
    config = load_base_config(name)
    load_tokenizer(name, config._commit_hash)


def model_problems(name: str) -> list[str]:
    """What is wrong with a base model by its config.json; those that come without a hub are known to fit. Its tokenizer
    is read, and may be refused, by the stage itself, once transformers is imported."""
    if name in WHEEL_MODELS:
        return []
    try:
        base_config(name)
    except UserError as error:
        return [str(error)]
    return []


def adapter_problems(folder: str, model: str) -> list[str]:
    """What is wrong with a checkpoint that shall bring the adapters of a model; none is needed."""
    try:
        if folder:
            check_adapters(Path(folder), model)
    except UserError as error:
        return [f"--adapters: {error}"]
    return []
