"""Where a generated answer ends: at any token by which the model or its tokenizer ends a text or a turn."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from routing.models.templates import end_of_turn


def end_ids(model, tokenizer) -> tuple[int, ...]:
    """Ids of all tokens at which an answer of a model ends, see `ends_of`."""
    return ends_of(model.generation_config, model.config, tokenizer)


def ends_of(generation_config, config, tokenizer) -> tuple[int, ...]:
    """Ids of all end tokens: of both configs, of the tokenizer, and of what its template puts behind an answer.

    They often differ. A fine-tune may end its turns by another token than the one that its base's files name.
    """
    named = [getattr(one, "eos_token_id", None) for one in (generation_config, config, tokenizer)]
    named.append(end_of_turn(tokenizer))
    found = [id for one in named for id in (one if isinstance(one, list) else [one])]
    return tuple(sorted({id for id in found if id is not None}))


def before_end(tokens: Sequence[int], ends: Collection[int]) -> list[int]:
    """The tokens before the first end token."""
    place = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
    return list(tokens[:place])
