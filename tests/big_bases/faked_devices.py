"""GPUs that are not there: tensors keep their numbers and are told where they lie; an operation over two places raises.

    with FakedDevices():
        model.lm_head.weight.to("cuda:1")   # says that it is on cuda:1; computing with a tensor on cuda:0 raises

Only calls from Python are watched, not what autograd computes by itself.
"""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CPU = torch.device("cpu")
INDEXING = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)  # May be by tensors on the processor.
COPIES = (torch.Tensor.copy_,)
ANYWHERE = ("device", "requires_grad", "shape", "dtype", "grad_fn", "data")


def place_of(tensor: torch.Tensor) -> torch.device:
    return getattr(tensor, "_faked", CPU)


def put(tensor: torch.Tensor, place) -> torch.Tensor:
    tensor._faked = torch.device(place)
    return tensor


class FakedDevices(TorchFunctionMode):
    """While active, tensors lie where they were made or moved to."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if getattr(func, "__self__", None) is torch.Tensor.device:
            return place_of(args[0])
        if name == "to" or name == "cpu":
            return self._moved(args[0], "cpu" if name == "cpu" else None, args[1:], kwargs)
        tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
        asked = kwargs.pop("device", None)
        places = {place_of(one) for one in tensors if one.ndim or place_of(one) != CPU}
        if func in INDEXING:
            places = {place_of(args[0])} | {place for place in places if place != CPU}
        if len(places) > 1 and func not in COPIES:
            raise RuntimeError(f"{name} over {sorted(map(str, places))}")
        found = func(*args, **kwargs)
        place = asked if asked is not None else next(iter(places), CPU)

        def told(one):
            if isinstance(one, torch.Tensor) and all(one is not other for other in tensors):
                put(one, place)
            return one

        return tree_map(told, found) if name not in ANYWHERE else found

    def _moved(self, tensor, place, given, kwargs):
        others = []
        for one in given:
            if isinstance(one, torch.Tensor):
                place, one = place_of(one), one.dtype
            if isinstance(one, (str, torch.device)):
                place = one
            else:
                others.append(one)
        place = kwargs.pop("device", place)
        place = place_of(tensor) if place is None else torch.device(place)
        kwargs.pop("non_blocking", None)
        dtype = next((one for one in others if isinstance(one, torch.dtype)), kwargs.get("dtype", tensor.dtype))
        if place == place_of(tensor) and dtype == tensor.dtype:
            return tensor
        with torch._C.DisableTorchFunction():
            moved = tensor.to(dtype) if dtype != tensor.dtype else tensor.view_as(tensor)
        return put(moved, place)
