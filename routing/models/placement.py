"""Where a model goes when it is loaded, and where its parts compute: on one device, or by a device map on several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from routing.common.devices import pick_device
from routing.common.errors import UserError
from routing.common.placing import map_of, memory_of


@dataclass(frozen=True)
class Placement:
    """A device, or a device map of accelerate's, by whose hooks weights and inputs meet.

    Attributes:
        device: of inputs, and of all that is trained beside the model.
        device_map, max_memory, offload_folder: as `from_pretrained` takes them; None: the whole model on the device.
    """

    device: torch.device
    device_map: str | dict | None = None
    max_memory: dict | None = None
    offload_folder: str | None = None

    @property
    def loading(self) -> dict:
        """Arguments of `from_pretrained`."""
        if self.device_map is None:
            return {}
        own = {"device_map": self.device_map, "max_memory": self.max_memory, "offload_folder": self.offload_folder}
        return {name: value for name, value in own.items() if value is not None}

    def put(self, model: nn.Module) -> nn.Module:
        """A model that was loaded so, where it belongs."""
        return model if self.device_map is not None else model.to(self.device)

    @contextmanager
    def telling(self, name: str) -> Iterator[None]:
        """Around the loading of a model: a device map that does not fit is the user's to mend."""
        try:
            yield
        except ValueError as error:
            if self.device_map is None:
                raise
            raise UserError(f"{name} cannot be loaded by --device_map {self.device_map}: {error}") from error


IN_MEMORY = Placement(torch.device("cpu"))


def refuse_tensor_parallel(model: nn.Module) -> None:
    """Refuse a model of which each process has a part of every layer, where processes do not compute in step.

    Raises:
        UserError: naming the remedy.
    """
    size = getattr(getattr(model.config, "distributed_config", None), "tp_size", 1)
    if size > 1:
        raise UserError(
            f"a model that tensor parallelism spreads over {size} processes routes, generates and is saved by all of "
            "them together; it is not searched, trained or calibrated, which takes a process of its own. Load it with "
            "--device_map auto in one process."
        )


def place_of(arguments) -> Placement:
    """Of checked arguments of a stage: device, device_map, max_memory and offload_folder."""
    device = pick_device(arguments.device)
    if not arguments.device_map:
        return Placement(device)
    return Placement(
        device, map_of(arguments.device_map), memory_of(arguments.max_memory), arguments.offload_folder or None
    )
