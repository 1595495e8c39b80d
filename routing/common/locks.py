"""Locks between processes: they go with the process that holds them, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from routing.common.errors import UserError


@contextmanager
def held(path: Path, wait: bool) -> Iterator[bool]:
    """Hold a lock file while the block runs; gives whether it was had.

    Args:
        path: the lock file, made if it is missing.
        wait: wait until it is free; otherwise give up at once.

    Raises:
        UserError: if the file system knows no locks.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            raise UserError(
                f"the file system of {path.parent} has no file locks ({error}), so several processes cannot share "
                "the folder. Give an output folder on a local disk, or on one that is mounted with locks."
            ) from error
        yield True


@contextmanager
def only_run(folder: Path, together: bool = False) -> Iterator[None]:
    """Hold a folder that one run at a time may write to.

    Args:
        folder: made if it is missing.
        together: several processes of one `accelerate launch` may run. The first of them holds the folder; the others
            are to wait for it before they touch anything.

    Raises:
        UserError: if another run holds it, or this is one of several processes and `together` is not set.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not together:
        raise UserError(
            f"started as {os.environ['WORLD_SIZE']} processes, but this stage runs as one. Start it with python."
        )
    folder.mkdir(parents=True, exist_ok=True)
    if int(os.environ.get("RANK", "0")) > 0:
        yield
        return
    with held(folder / ".lock", wait=False) as had:
        if not had:
            raise UserError(f"another run is writing to {folder}. Wait for it, or give another output folder.")
        yield
