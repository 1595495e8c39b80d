"""Attention where shapes change from call to call: cuDNN's is left out, which builds a plan anew for each shape.

Rows that run a layer, and tokens that do, are another number in each layer, and while decoding one key more with each
token. Measured on an H200 with PyTorch 2.11: some 50 ms for each new shape, where a whole step of a 3B model takes 20
(benchmarks/results/gpu). Flash and memory-efficient attention build nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def changing_shapes(states: torch.Tensor) -> Iterator[None]:
    """PyTorch's attention does without cuDNN inside, where states lie on a GPU; what was set before is set again."""
    if not states.is_cuda or not torch.backends.cuda.cudnn_sdp_enabled():
        yield
        return
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
