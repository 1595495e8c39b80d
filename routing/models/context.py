"""How long a text a model can take, and where rows of a batch begin to depend on one another."""

from __future__ import annotations

# Rope types whose positions change for all rows of a batch where one is longer than the first context.
CHANGING = ("dynamic", "longrope")


def _rope(config) -> dict:
    return getattr(config, "rope_parameters", None) or {}


def context_tokens(config) -> int:
    """Tokens of the longest text whose every row a model computes as it would alone.

    With longrope a text longer than the first context changes the positions of all rows beside it.
    """
    if _rope(config).get("rope_type") == "longrope":
        return min(config.max_position_embeddings, _rope(config)["original_max_position_embeddings"])
    return config.max_position_embeddings


def shared_tokens(config) -> int | None:
    """Tokens up to which rows of one batch have the positions of each alone; None where they always have."""
    return context_tokens(config) if _rope(config).get("rope_type") in CHANGING else None
