"""Cheap features of a prompt's text: which frequent pieces it has, and its length; no model needed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

MOST = 256  # pieces that count, the most frequent ones
LEAST_SHARE = 0.02  # of prompts that must have a piece, and that must lack it: rarer ones teach nothing but noise
PIECE = re.compile(r"\w+|[^\w\s]")


def text_features(prompts: Sequence[str]) -> np.ndarray:
    """[N, F] features of N prompts: 1 for each piece that a prompt has (words, pairs of neighbouring ones, numbers by
    how many digits they have), then the logs of its numbers of characters, words and digits."""
    split = [PIECE.findall(prompt.casefold()) for prompt in prompts]
    found = [_pieces(words) for words in split]
    frequent = Counter(piece for pieces in found for piece in pieces)
    least = LEAST_SHARE * len(prompts)
    kept = [piece for piece, count in frequent.most_common() if least <= count <= len(prompts) - least][:MOST]
    known = np.array([[piece in pieces for piece in kept] for pieces in found], dtype=float).reshape(len(prompts), -1)
    sizes = [
        (len(prompt), len(words), sum(character.isdigit() for character in prompt))
        for prompt, words in zip(prompts, split, strict=True)
    ]
    return np.concatenate([known, np.log1p(sizes)], axis=1)


def _pieces(words: list[str]) -> set[str]:
    numbers = (f"{at} of {len(word)} digits" for at, word in enumerate(w for w in words if w.isdigit()))
    # A prompt's own numbers stand at its end, behind those of the examples that are shown.
    last = (f"{at} before the end, of {len(w)} digits" for at, w in enumerate(w for w in words[::-1] if w.isdigit()))
    return {*words, *map(" ".join, zip(words, words[1:])), *numbers, *last}
