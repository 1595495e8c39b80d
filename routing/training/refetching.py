"""A backward through offloaded layers that keeps none of their weights: autograd notes which they were, and they are
fetched again."""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from train_models.offloading import hooks_of


class Away(NamedTuple):
    """A view of an offloaded weight, in place of its numbers."""

    hook: object
    name: str
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def fetch(self) -> torch.Tensor:
        value = self.hook.weights_map[self.name].to(self.hook.execution_device, self.dtype)
        return value.as_strided(self.size, self.stride, self.offset)


class Refetching:
    """Of a model that a device map spreads; `forward()` is the context of a forward with gradients.

    Args:
        model: without offloaded weights the context does nothing.
    """

    def __init__(self, model: nn.Module):
        # By the address of a weight that is there: whose it is. It is gone, and the address another's, soon after.
        self.there: dict[int, tuple[weakref.ref, object, str]] = {}
        self.active = False
        for module in model.modules():
            for hook in hooks_of(module):
                if getattr(hook, "offload", False):
                    self.active = True
                    self._watch(hook)

    def _watch(self, hook) -> None:
        fetch = hook.pre_forward

        def fetch_and_note(module, *args, **kwargs):
            found = fetch(module, *args, **kwargs)
            for name, weight in module.named_parameters(recurse=False):
                self.there[weight.untyped_storage().data_ptr()] = weakref.ref(weight), hook, name
            return found

        hook.pre_forward = fetch_and_note

    def forward(self) -> AbstractContextManager:
        self.there.clear()
        return saved_tensors_hooks(self._pack, self._unpack) if self.active else nullcontext()

    def _pack(self, tensor: torch.Tensor):
        address = tensor.untyped_storage().data_ptr()
        reference, hook, name = self.there.get(address, (lambda: None, None, ""))
        weight = reference()
        if weight is None or weight.untyped_storage().data_ptr() != address:
            return tensor
        return Away(hook, name, weight.dtype, tensor.size(), tensor.stride(), tensor.storage_offset())

    @staticmethod
    def _unpack(kept):
        return kept.fetch() if isinstance(kept, Away) else kept
