"""The frozen base shared out over processes by FSDP2, where accelerate's configuration asks for it.

Each process holds a share of every layer's weights; a layer is gathered while it computes, forward and backward. What
is trained, router and LoRA, is small and stays whole in each process, where the Trainer averages its gradients as it
does without. So training states and checkpoints have the form that they have without, and the weights too.

All processes gather each layer, in the same order, whether their tokens run it or not: one that skipped it alone would
let the others wait for ever.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from routing.common.sharding import FSDP, is_on


@dataclass(frozen=True)
class Sharding:
    """Of accelerate's configuration: whether a layer's weights are let go behind its forward, and whether shares lie in
    the processor's memory."""

    reshard: bool
    offload: bool

    def share_out(self, model: nn.Module, device: torch.device, processes: int) -> tuple[int, int]:
        """Share the weights of a routed model out, in place, but for its router, adapters and what gets gradients.

        Args:
            model: whole, on the CPU.
            device: where it computes.

        Returns:
            how many numbers this process holds of the shared weights, and how many there are.
        """
        inner = model.model
        whole = {*inner.routers.parameters(), *inner.adapters.parameters()}
        whole |= {parameter for parameter in model.parameters() if parameter.requires_grad}
        for parameter in whole:
            parameter.data = parameter.data.to(device)
        given = {
            "mesh": init_device_mesh(device.type, (processes,)),
            "reshard_after_forward": self.reshard,
            # Pinned memory is for a GPU to read.
            "offload_policy": CPUOffloadPolicy(device.type != "cpu") if self.offload else OffloadPolicy(),
            "ignored_params": whole,
        }
        for layer in inner.layers:
            fully_shard(layer, **given)
        fully_shard(model, **given)

        @contextmanager
        def gathered(layer: int) -> Iterator[None]:
            inner.layers[layer].unshard()
            try:
                yield
            finally:
                if self.reshard:
                    inner.layers[layer].reshard()

        inner.around = gathered
        shared = [parameter for parameter in model.parameters() if isinstance(parameter, DTensor)]
        return sum(one.to_local().numel() for one in shared), sum(one.numel() for one in shared)


def take_sharding() -> Sharding | None:
    """What the configuration asks for, None for nothing. It is taken out of the environment: transformers would leave
    the weights of all processes but the first empty, and the Trainer share out what is trained."""
    if not is_on(FSDP):
        return None
    plugin = FullyShardedDataParallelPlugin()
    del os.environ[FSDP]
    return Sharding(bool(plugin.reshard_after_forward), isinstance(plugin.cpu_offload, CPUOffloadPolicy))
