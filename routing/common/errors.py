"""Errors that a person can act on."""

from __future__ import annotations

import hashlib
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SAME_LAUNCH = 60  # seconds; what was told longer ago is of another launch, by a launcher with the same number


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
        if not _told_already(str(error)):
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


def _told_already(message: str) -> bool:
    """Whether another process of the same `accelerate launch` told the same on this machine: the first one tells it."""
    if "LOCAL_RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False  # Schedulers export WORLD_SIZE alone.
    digest = hashlib.sha256(message.encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"dlr-error-{os.getuid()}-{os.getppid()}-{digest}"
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        if time.time() - path.stat().st_mtime < SAME_LAUNCH:
            return True
        path.touch()
    except OSError:
        pass  # Told several times rather than not at all.
    return False
