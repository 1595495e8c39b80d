"""Devices and dtypes by their names."""

from __future__ import annotations

import os

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device_problems(name: str) -> list[str]:
    if name == "auto":
        return []
    try:
        device = torch.device(name)
    except RuntimeError:
        return [f"--device {name!r} is no torch device, such as cpu or cuda:0"]
    if device.type == "cuda" and not torch.cuda.is_available():
        return [f"--device {name!r}: this machine has no usable GPU; give cpu or auto"]
    return []


def pick_device(name: str) -> torch.device:
    """The device of a name; auto: of several processes on a machine each takes a GPU of its own."""
    if name != "auto":
        return torch.device(name)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def is_first_process() -> bool:
    """Whether this is the process of `accelerate launch` that speaks, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0
