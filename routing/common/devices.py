"""Devices and dtypes by their names; torch is imported when one is asked for, so that arguments are read without it."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
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


# Kinds of torch's devices, as it lists them for a wrong name.
KINDS = "cpu cuda ipu xpu mkldnn opengl opencl ideep hip ve fpga maia xla lazy vulkan mps meta hpu mtia privateuseone"
FORM = re.compile(rf"({KINDS.replace(' ', '|')})(:(0|[1-9]\d*))?")


def device_problems(name: str) -> list[str]:
    """What is wrong with --device; torch is imported where there may be a GPU and one is asked for."""
    if name != "auto" and not FORM.fullmatch(name):
        return [f"--device {name!r} is no torch device, such as cpu or cuda:0"]
    if name.startswith("cuda") and not has_gpu():
        return [f"--device {name!r}: this machine has no usable GPU; give cpu or auto"]
    return []


def has_gpu() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")  # Of the driver; without it torch finds no GPU of NVIDIA.
    except OSError:
        if not Path("/dev/kfd").exists():  # Nor one of AMD without this.
            return False
    import torch

    return torch.cuda.is_available()


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
