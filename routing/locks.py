"""One run at a time in an output folder: two would overwrite one another's work."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from routing.errors import UserError


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Hold the folder while the block runs; the lock goes with the process, however it ends.

    Raises:
        UserError: if another process holds it, or this is one of several processes of `accelerate launch`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"started as {os.environ['WORLD_SIZE']} processes, but this stage runs as one. Start it with python."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another run is writing to {folder}. Wait for it, or give another output folder."
            ) from error
        yield
