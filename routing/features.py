"""Router inputs, computed once.

Base and labelled route are fixed, so what enters each router is a constant of the example. One pass writes all
of it; the epochs of training then run on it without the base. The pooling is the model's own.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset
from tqdm import tqdm

from routing.files import write_json
from routing.prompts import left_pad
from train_models.routers import pool_windows, window_weights

MANIFEST = "features.json"
SHARD_SIZE = 256  # examples


@dataclass(frozen=True)
class RouterExample:
    """A labelled example as the routers see it: prompt tokens and route (L counts)."""

    prompt_ids: tuple[int, ...]
    route: tuple[int, ...]


@torch.no_grad()
def router_inputs(model, examples: list[RouterExample], pad_id: int) -> dict[str, torch.Tensor]:
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
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    inner = model.model
    states = inner(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        routes=labels,
        use_cache=False,
        output_hidden_states=True,
    ).hidden_states[:-1]
    weights, windows = window_weights(inner.routing_mask(ids, mask, states[0]), inner.config.num_windows)
    features = torch.stack([pool_windows(state, weights.to(state.device)).cpu() for state in states], dim=1)
    return {"features": features, "windows": windows.cpu(), "labels": labels}


def fingerprint(examples: list[RouterExample], **settings) -> str:
    """Hash of everything that the features depend on."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for example in examples:
        digest.update(json.dumps([example.prompt_ids, example.route]).encode())
    return digest.hexdigest()


def cache_features(folder: Path, model, examples: list[RouterExample], pad_id: int, batch_size: int, key: str) -> None:
    """Write the features of all examples as safetensors shards; shards that are there are kept.

    Args:
        folder: emptied first if it holds features with another key.
        key: from `fingerprint`.
    """
    manifest = folder / MANIFEST
    shards = range(0, len(examples), SHARD_SIZE)
    if not manifest.exists() or json.loads(manifest.read_text())["key"] != key:
        for old in folder.glob("*.safetensors"):
            old.unlink()
        write_json(manifest, {"key": key, "examples": len(examples), "shard_size": SHARD_SIZE})
    with tqdm(total=len(examples), desc="router inputs", unit="example") as progress:
        for start in shards:
            part = examples[start : start + SHARD_SIZE]
            path = shard_path(folder, start)
            if not path.exists():
                batches = [
                    router_inputs(model, part[at : at + batch_size], pad_id) for at in range(0, len(part), batch_size)
                ]
                tensors = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
                temporary = path.with_suffix(".tmp")
                save_file(tensors, temporary)
                temporary.replace(path)
            progress.update(len(part))


def shard_path(folder: Path, start: int) -> Path:
    return folder / f"features-{start // SHARD_SIZE:05d}.safetensors"


class CachedFeatures(Dataset):
    """Features of some examples, read from the shards one example at a time."""

    def __init__(self, folder: Path, indices: list[int]):
        self.folder, self.indices = folder, indices
        self._shards: dict[int, object] = {}

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        index = self.indices[item]
        start = index // SHARD_SIZE * SHARD_SIZE
        if start not in self._shards:
            self._shards[start] = safe_open(shard_path(self.folder, start), framework="pt")
        shard = self._shards[start]
        return {name: shard.get_slice(name)[index - start] for name in ("features", "windows", "labels")}


class LiveExamples(Dataset):
    """The examples themselves; the base computes their features in every step, see `live_collator`."""

    def __init__(self, examples: list[RouterExample]):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, item: int) -> RouterExample:
        return self.examples[item]


def live_collator(model, pad_id: int):
    """Collator that runs the base on a batch of `LiveExamples`."""
    return lambda batch: router_inputs(model, batch, pad_id)
