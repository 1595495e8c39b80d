"""Router inputs, computed once.

Base and labelled route are fixed, so what enters each router is a constant of the example. One pass writes all
of it; the epochs of training then run on it without the base. The pooling is the model's own.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.utils.data import Dataset
from tqdm import tqdm

from routing.common.errors import UserError
from routing.common.files import write_json
from routing.common.keyed import judging
from routing.common.locks import held
from routing.common.spool import Spool
from routing.scoring.router_inputs import StoredInputs
from routing.tasks.prompts import left_pad
from routing.training.packed_inputs import PackedInputs
from train_models.routers import pool_windows, window_weights

MANIFEST = "features.json"
FORMAT = 1  # of the shards
SHARD_SIZE = 64  # examples; a shard is made in memory, and what several processes share out
HEADERS = 1024  # of shards that are kept
# dtype names of safetensors that shards use
STORED = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "I64": torch.int64,
}


@dataclass(frozen=True)
class RouterExample:
    """A labelled example as the routers see it: prompt tokens and route (L counts)."""

    prompt_ids: tuple[int, ...]
    route: tuple[int, ...]


class RouterExamples(Sequence):
    """Labelled examples that are kept on disk, whatever their number; slices are lists.

    Args:
        beside: where that disk is, see `Spool`.
    """

    def __init__(self, beside: Path | None = None):
        self._rows = Spool(beside)

    def append(self, example: RouterExample) -> None:
        numbers = array("i", [len(example.prompt_ids)])
        numbers.extend(example.prompt_ids)
        numbers.extend(example.route)
        self._rows.append(numbers.tobytes())

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[at] for at in range(len(self))[index]]
        numbers = array("i", self._rows[index])
        end = 1 + numbers[0]
        return RouterExample(tuple(numbers[1:end]), tuple(numbers[end:]))

    def routes(self, indices: Sequence[int]) -> torch.LongTensor:
        """[N, L] of some examples."""
        return torch.tensor([self[index].route for index in indices])


@torch.no_grad()
def router_inputs(model, examples: Sequence[RouterExample], pad_id: int) -> dict[str, torch.Tensor]:
    """Pooled inputs of all routers, the labelled routes being executed (teacher forcing).

    Args:
        model: a Routed...ForCausalLM.
        examples: B of them.
        pad_id: token for left padding.

    Returns:
        features [B, L, W, D] fp32; windows [B, W] bool; labels [B, L].
    """
    padded, masks = left_pad([example.prompt_ids for example in examples], pad_id)
    device = model.device
    ids, mask = torch.tensor(padded, device=device), torch.tensor(masks, device=device)
    labels = torch.tensor([example.route for example in examples])
    executed = labels.clone()
    executed[:, -1] = 0  # No router reads what the last layer puts out.
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    inner = model.model
    states = inner(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        routes=executed,
        use_cache=False,
        output_hidden_states=True,
    ).hidden_states[:-1]
    weights, windows = window_weights(inner.routing_mask(ids, mask, states[0]), inner.config.num_windows)
    # On the device of the first layer, then to the host at once: a copy a layer would make the device wait for each.
    features = torch.stack([pool_windows(state, weights).to(device) for state in states], dim=1)
    return {"features": features.cpu(), "windows": windows.cpu(), "labels": labels}


def fingerprint(examples: Iterable[RouterExample], **settings) -> str:
    """Hash of everything that the features depend on."""
    digest = hashlib.sha256(json.dumps([FORMAT, judging(), settings], sort_keys=True).encode())
    for example in examples:
        digest.update(json.dumps([example.prompt_ids, example.route]).encode())
    return digest.hexdigest()


def feature_bytes(layers: int, windows: int, width: int, dtype: torch.dtype) -> int:
    """Bytes on disk of one example: L * W * D features, W flags and L labels of eight bytes."""
    return layers * windows * width * dtype.itemsize + windows + 8 * layers


def cache_features(
    folder: Path,
    model,
    examples: Sequence[RouterExample],
    pad_id: int,
    batch_size: int,
    key: str,
    dtype: torch.dtype = torch.float32,
    show: bool = True,
    inputs: Callable[..., dict[str, torch.Tensor]] | None = None,
    size: int | None = None,
    stores: Sequence[StoredInputs] = (),
) -> None:
    """Write the features of all examples as safetensors shards; shards that are there are kept.

    Any number of processes may call this at once with the same arguments: each makes shards that no other is at
    work on, and returns when all are there.

    Args:
        folder: emptied first if it holds features with another key.
        key: from `fingerprint`.
        dtype: of the stored features; float32 is exact.
        show: whether to show progress.
        batch_size: examples that `inputs` is given at once.
        inputs: what computes them, called and answering as `router_inputs` does; tensors may be others, but for
            `features`. None: what `router_inputs` gives, to float tolerance, by `PackedInputs`, a shard at once.
        size: bytes of an example on disk; None: as those of `router_inputs`.
        stores: of label folders; what a search left there is not computed again.

    Raises:
        UserError: before anything is computed, if the disk has too little room; for features beyond float16.
    """
    config = model.config
    size = size or feature_bytes(config.num_hidden_layers, config.num_windows, config.hidden_size, dtype)
    with held(folder / ".lock", wait=True):
        _prepare(folder, len(examples), key, size)
    starts = range(0, len(examples), SHARD_SIZE)
    at_once = SHARD_SIZE if inputs is None else batch_size
    packed = cache(lambda: PackedInputs(model))  # Made where a shard is missing only: it reorders the weights.

    def compute(part: list[RouterExample]) -> dict[str, torch.Tensor]:
        if inputs is not None:
            return inputs(model, part, pad_id)
        return with_stored(part, stores, lambda rest: packed()(model, rest, pad_id))

    with tqdm(total=len(examples), desc="router inputs", unit="example", disable=not show) as progress:
        # First what is free, then what another process had: it is finished by now, or its maker died.
        for wait in (False, True):
            for start in starts:
                path = shard_path(folder, start)
                if not path.exists():
                    part = examples[start : start + SHARD_SIZE]
                    _make_shard(path, compute, part, at_once, dtype, wait)
                progress.update(min(SHARD_SIZE, len(examples) - start) if not wait else 0)


def with_stored(
    examples: list[RouterExample], stores: Sequence[StoredInputs], compute: Callable
) -> dict[str, torch.Tensor]:
    """What `router_inputs` gives, some of it stored; `compute` is given the other examples, if any are left."""
    found = [
        next((kept for store in stores if (kept := store.read(e.prompt_ids, e.route)) is not None), None)
        for e in examples
    ]
    if missing := [at for at, kept in enumerate(found) if kept is None]:
        computed = compute([examples[at] for at in missing])
        for row, at in enumerate(missing):
            found[at] = {name: computed[name][row] for name in ("features", "windows")}
    parts = {name: torch.stack([kept[name] for kept in found]) for name in ("features", "windows")}
    return parts | {"labels": torch.tensor([example.route for example in examples])}


def _prepare(folder: Path, count: int, key: str, size: int) -> None:
    """Remove features of another key, and see to it that the missing ones have room; `size` bytes an example."""
    manifest = folder / MANIFEST
    wanted = {"key": key, "examples": count, "shard_size": SHARD_SIZE}
    fits = manifest.exists() and json.loads(manifest.read_text()) == wanted
    if not fits:
        for old in folder.glob("*.safetensors"):
            old.unlink()
    missing = [start for start in range(0, count, SHARD_SIZE) if not shard_path(folder, start).exists()]
    needed = size * sum(min(SHARD_SIZE, count - start) for start in missing)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"the router inputs of {count} examples need {needed} more bytes ({size} an example) and {folder} has "
            f"{free} free. Give a --work_dir on a larger disk, store half the bytes with --features_dtype float16 or "
            "bfloat16, or store none with --features live."
        )
    if not fits:
        write_json(manifest, wanted)


def _make_shard(path: Path, compute: Callable, part: list[RouterExample], batch_size: int, dtype, wait: bool) -> None:
    """Write one shard, unless another process is at work on it and `wait` is not set, or has made it."""
    lock = path.with_suffix(".lock")
    with held(lock, wait) as had:
        if not had:
            return
        if not path.exists():
            temporary = path.with_suffix(".tmp")
            save_file(_shard(compute, part, batch_size, dtype), temporary)
            temporary.replace(path)
        lock.unlink(missing_ok=True)


def _shard(compute: Callable, part: list[RouterExample], batch_size: int, dtype) -> dict[str, torch.Tensor]:
    """Tensors of a shard; examples of like length share a batch, so that little is padding."""
    order = sorted(range(len(part)), key=lambda at: len(part[at].prompt_ids))
    tensors: dict[str, torch.Tensor] = {}
    for first in range(0, len(part), batch_size):
        rows = order[first : first + batch_size]
        for name, tensor in compute([part[row] for row in rows]).items():
            stored = tensor.to(dtype) if name == "features" else tensor
            if name not in tensors:
                tensors[name] = stored.new_empty((len(part), *stored.shape[1:]))
            tensors[name][rows] = stored
    if not tensors["features"].isfinite().all():
        raise UserError(
            f"router inputs are not finite in {dtype}. Store them as --features_dtype bfloat16 or float32; if they are "
            "that already, the base itself overflows, and needs another --dtype."
        )
    return tensors


def shard_path(folder: Path, start: int) -> Path:
    return folder / f"features-{start // SHARD_SIZE:05d}.safetensors"


@lru_cache(maxsize=16)
def _layout(header: bytes) -> tuple[int, dict[str, tuple[torch.dtype, list[int], int]]]:
    """Rows of a shard, and dtype, shape of a row and place in the file of its tensors; the same object for equal ones,
    of which a large set has thousands."""
    entries = json.loads(header)
    entries.pop("__metadata__", None)
    rows = next(iter(entries.values()))["shape"][0]
    return rows, {
        name: (STORED[entry["dtype"]], entry["shape"][1:], 8 + len(header) + entry["data_offsets"][0])
        for name, entry in entries.items()
    }


class Shard:
    """Rows of the tensors of a safetensors file.

    They are read into memory of their own, not mapped: pages of a mapped file count as resident, so a process would
    seem to grow by all it reads.

    Attributes:
        rows: how many.
    """

    __slots__ = ("path", "rows", "tensors")

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            self.rows, self.tensors = _layout(file.read(length))

    def empty(self, rows: int) -> dict[str, torch.Tensor]:
        """Tensors for so many rows, their content not set."""
        return {name: torch.empty((rows, *shape), dtype=dtype) for name, (dtype, shape, _) in self.tensors.items()}

    def read(self, row: int, batch: dict[str, torch.Tensor], at: int) -> None:
        """Read one row of every tensor into row `at` of the tensors of a batch."""
        with self.path.open("rb", buffering=0) as file:
            for name, (_, _, start) in self.tensors.items():
                place = memoryview(batch[name][at].view(torch.uint8).numpy()).cast("B")
                if os.preadv(file.fileno(), [place], start + row * len(place)) != len(place):
                    raise UserError(f"{self.path} is cut short. Remove it and start again with the same arguments.")


class CachedFeatures(Dataset):
    """Features of some examples, read from the shards batch by batch; in memory are the headers of some."""

    def __init__(self, folder: Path, indices: Sequence[int]):
        self.indices = indices
        self._shard = lru_cache(maxsize=HEADERS)(lambda start: Shard(shard_path(folder, start)))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, items: list[int]) -> dict[str, torch.Tensor]:
        """A batch: features [B, L, W, D], fp32; windows [B, W]; labels [B, L]."""
        batch: dict[str, torch.Tensor] = {}
        for at, item in enumerate(items):
            number, row = divmod(self.indices[item], SHARD_SIZE)
            shard = self._shard(number * SHARD_SIZE)
            batch = batch or shard.empty(len(items))
            shard.read(row, batch, at)
        return batch | {"features": batch["features"].float()}

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        return {name: tensor[0] for name, tensor in self.__getitems__([item]).items()}


def read_batch(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Collator of `CachedFeatures`, whose batches are whole as they are read."""
    return batch


class LiveExamples(Dataset):
    """Some examples themselves; the base computes their features in every step, see `live_collator`."""

    def __init__(self, examples: Sequence[RouterExample], indices: Sequence[int]):
        self.examples, self.indices = examples, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> RouterExample:
        return self.examples[self.indices[item]]


def live_collator(model, pad_id: int):
    """Collator that runs the base on a batch of `LiveExamples`."""
    return lambda batch: router_inputs(model, batch, pad_id)
