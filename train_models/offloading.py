"""Where a module computes when a device map spreads a model: there accelerate's hooks bring inputs and weights."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import nn


def hooks_of(module: nn.Module) -> list:
    """Hooks of accelerate on a module alone."""
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", (hook,)))


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: on the device of its hooks, else on that of its weights (without any: on the CPU)."""
    for part in module.modules():
        for hook in hooks_of(part):
            if (place := getattr(hook, "execution_device", None)) is not None:
                return torch.device(place)
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def weight_of(linear: nn.Module) -> torch.Tensor:
    """The weight of a linear map, fetched where it is offloaded; for what needs it outside of a call."""
    if linear.weight.device.type == "meta":
        for hook in hooks_of(linear):
            with suppress(KeyError, TypeError):  # A hook without weights of its own.
                return hook.weights_map["weight"].to(hook.execution_device)
    return linear.weight
