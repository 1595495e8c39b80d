"""Small modules that compute in float32 whatever is done to the model around them: .to(dtype), .half(), autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


class StaysFloat32:
    """Mixin of a module whose floating-point weights stay float32 when the model's dtype is changed."""

    def _apply(self, fn, recurse=True):
        def kept(tensor: torch.Tensor) -> torch.Tensor:
            changed = fn(tensor)
            if not changed.is_floating_point() or changed.dtype == torch.float32:
                return changed
            return tensor.to(changed.device, torch.float32)

        return super()._apply(kept, recurse)


def exact_math(device: torch.device) -> AbstractContextManager:
    """Without autocast on a device, where a decision must be the same as without it."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
