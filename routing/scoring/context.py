"""Does a request fit into the model's context? What does not is left out before any search, and counted."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable

from routing.common.errors import UserError
from routing.models.context import context_tokens
from routing.scoring.requests import Request


def needed_tokens(request: Request) -> int:
    """Tokens of a request with its longest continuation."""
    longest = max(map(len, request.choice_ids), default=request.max_new_tokens)
    return len(request.prompt_ids) + longest


class Fitting:
    """Tells which requests a model can take, and counts the others by their data set.

    Args:
        config: of the model.
    """

    def __init__(self, config):
        self.context, self.rows = context_tokens(config), config.vocab_size
        self.left_out: Counter[str] = Counter()
        self.longest = self.fitting = 0

    def __call__(self, request: Request) -> bool:
        """Whether a request fits.

        Raises:
            UserError: if a token of it has no row in the model's embedding.
        """
        largest = max(request.prompt_ids)
        if largest >= self.rows:
            raise UserError(
                f"a prompt of {request.example.dataset} has the token {largest}, and the model has {self.rows} rows in "
                "its embedding. Give the tokenizer that the model was trained with, or resize the embedding."
            )
        needed = needed_tokens(request)
        if needed <= self.context:
            self.fitting += 1
            return True
        self.left_out[request.example.dataset] += 1
        self.longest = max(self.longest, needed)
        return False

    def tell(self) -> None:
        """Say on stderr what was left out.

        Raises:
            UserError: if nothing fits.
        """
        if not self.left_out:
            return
        counts = ", ".join(f"{count} of {name}" for name, count in self.left_out.items())
        words = f"longer than the {self.context} tokens that the model takes, the longest with {self.longest}"
        if not self.fitting:
            raise UserError(f"all questions ({counts}) are {words}. Give shorter ones, or a model with more context.")
        print(f"left out {counts} questions: {words}", file=sys.stderr)


def fitting(requests: Iterable[Request], config) -> list[Request]:
    """Requests that fit; the others are counted on stderr.

    Raises:
        UserError: if none does.
    """
    fits = Fitting(config)
    kept = [request for request in requests if fits(request)]
    fits.tell()
    return kept
