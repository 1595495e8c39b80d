"""How long a text a model can take, and where rows of a batch begin to depend on one another."""

from __future__ import annotations

# Rope types whose positions change for all rows of a batch where one is longer than the first context.
CHANGING = ("dynamic", "longrope")


def _ropes(config) -> list[dict]:
    """How positions are told: once, or once for each type of layer."""
    found = getattr(config, "rope_parameters", None) or {}
    return [own for own in found.values() if own] if found and "rope_type" not in found else [found]


def _types(config) -> set[str]:
    return {rope.get("rope_type") for rope in _ropes(config)}


def context_tokens(config) -> int:
    """Tokens of the longest text whose every row a model computes as it would alone.

    With longrope a text longer than the first context changes the positions of all rows beside it.
    """
    first = [rope["original_max_position_embeddings"] for rope in _ropes(config) if rope.get("rope_type") == "longrope"]
    return min([config.max_position_embeddings, *first])


def shared_tokens(config) -> int | None:
    """Tokens up to which rows of one batch have the positions of each alone; None where they always have."""
    return context_tokens(config) if _types(config) & set(CHANGING) else None
