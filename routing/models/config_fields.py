"""Fields of a model's config that hold other values for a while."""

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
