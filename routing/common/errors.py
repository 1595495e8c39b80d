"""Errors that a person can act on."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user gave is wrong. The message names the value, what is allowed and the remedy."""


def raise_all(problems: list[str]) -> None:
    """Raise one UserError with every problem, or nothing if there is none."""
    if problems:
        raise UserError("\n".join(f"- {problem}" for problem in problems) if len(problems) > 1 else problems[0])


def run_command(main: Callable[[], None]) -> None:
    """Run a script's main function; a UserError ends it with its message on stderr and exit status 2.

    Where nobody reads any more what it prints, as behind `| head`, it ends without a word, as other programs do.
    """
    try:
        try:
            main()
        finally:
            sys.stdout.flush()  # Else Python would at its end, where nothing can be caught.
    except UserError as error:
        print(f"error: {error}" if "\n" not in str(error) else f"errors:\n{error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        if not _nobody_reads():
            raise  # Another pipe, such as one to a worker.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _nobody_reads() -> bool:
    """Whether standard output is a pipe that nobody reads."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
