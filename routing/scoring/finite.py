"""Numbers of a model that are no numbers: an error that names the dtype, never a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from transformers import LogitsProcessor

from routing.common.errors import UserError


def check_finite(values: Iterable[float], dtype: torch.dtype) -> None:
    """Refuse to go on from scores that are not finite; values are on the host already, so this takes no time.

    Raises:
        UserError: naming dtype and remedy.
    """
    if all(map(math.isfinite, values)):
        return
    name = str(dtype).removeprefix("torch.")
    remedy = (
        "Its numbers overflow there: use --dtype bfloat16, or float32."
        if dtype == torch.float16
        else "Its weights may be damaged: compare the files with those it was downloaded from."
    )
    raise UserError(f"the model gives logits that are not finite in {name}, so no answer can be judged. {remedy}")


class FiniteLogits(LogitsProcessor):
    """Watches the largest logit of each step of generate(), on the device; `check` asks once, at the end."""

    def __init__(self):
        self.largest: torch.Tensor | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        step = scores.amax().abs()  # NaN wins every comparison of amax and maximum.
        self.largest = step if self.largest is None else torch.maximum(self.largest, step)
        return scores

    def check(self, dtype: torch.dtype) -> None:
        """Raise a UserError if one was not finite."""
        if self.largest is not None:
            check_finite([float(self.largest)], dtype)
