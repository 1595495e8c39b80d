"""Devices and dtypes by their names; torch is imported when one is asked for, so that arguments are read without it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class _Dtypes(Mapping):
    """Name -> torch.dtype; the names alone need no torch."""

    names = ("float32", "bfloat16", "float16")

    def __getitem__(self, name: str) -> torch.dtype:
        if name not in self.names:
            raise KeyError(name)
        import torch

        return getattr(torch, name)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


DTYPES = _Dtypes()


def device_problems(name: str) -> list[str]:
    if name in ("auto", "cpu"):
        return []
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        return [f"--device {name!r} is no torch device, such as cpu or cuda:0"]
    if device.type == "cuda" and not torch.cuda.is_available():
        return [f"--device {name!r}: this machine has no usable GPU; give cpu or auto"]
    return []


def pick_device(name: str) -> torch.device:
    """The device of a name; auto: of several processes on a machine each takes a GPU of its own."""
    import torch

    if name != "auto":
        return torch.device(name)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def is_first_process() -> bool:
    """Whether this is the process of `accelerate launch` that speaks, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0
