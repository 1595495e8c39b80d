"""Errors that a person can act on."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user gave is wrong. The message names the value, what is allowed and the remedy."""


def raise_all(problems: list[str]) -> None:
    """Raise one UserError with every problem, or nothing if there is none."""
    if problems:
        raise UserError("\n".join(f"- {problem}" for problem in problems) if len(problems) > 1 else problems[0])


def run_command(main: Callable[[], None]) -> None:
    """Run a script's main function; a UserError ends it with its message on stderr and exit status 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}" if "\n" not in str(error) else f"errors:\n{error}", file=sys.stderr)
        sys.exit(2)
