"""Weights of experts: one by one in files, together in a model; transformers translates for its own classes alone."""

from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping


def translate_as(model_type: str, name: str) -> None:
    """Let transformers translate between files and models as it does for a stock family.

    Args:
        name: model_type or class that is to be treated so.
    """
    register_checkpoint_conversion_mapping(name, get_checkpoint_conversion_mapping(model_type), overwrite=True)
