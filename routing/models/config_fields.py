"""Fields of a model's config: other values for a while, and what they say of each layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def config_with(model, **fields) -> Iterator[None]:
    """The model with other config fields while inside, whatever happens there."""
    before = {name: getattr(model.config, name) for name in fields}
    try:
        for name, value in fields.items():
            setattr(model.config, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(model.config, name, value)


def attention_windows(config) -> list[int | None]:
    """Tokens that a token of each layer attends to, itself included; None for all before it.

    Without `layer_types` all layers are alike: a model with a window (Mistral) has it in every layer.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]
