"""The default model, SmolLM2-135M-Instruct, which comes without a hub."""

from __future__ import annotations

from pathlib import Path

from routing.models.wheel_models import wheel_model_folder

DEFAULT_MODEL = "smollm2-135m-instruct"


def default_model_folder() -> Path:
    """Folder with the default model as plain float32 weights, converted if it is not there yet."""
    return wheel_model_folder(DEFAULT_MODEL)
