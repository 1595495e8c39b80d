"""What the routers read along a path, pooled: taken from the states of the search's evaluator, and kept in files.

A search has computed what enters each router along the path that becomes a label. Pooled, it is all that training needs
(`routing.training.features`), so that training need not run the base again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from routing.common.errors import UserError
from routing.common.keyed import judging
from routing.models.bases import weight_stamps
from routing.models.checkpoint_files import adapter_hashes
from routing.scoring.path_runner import PathRunner
from routing.scoring.segments import Segment
from routing.search.routes import Route, to_path
from train_models.routers import pool_windows, prompt_mask, window_weights

FOLDER = "features"  # in a label folder


def pooling(inner, prompt: Sequence[int], windows: int, device: torch.device) -> tuple[torch.Tensor, torch.BoolTensor]:
    """`window_weights` [1, W, T] and the windows used [1, W], of a prompt alone.

    Args:
        inner: the decoder, a RoutedModel.
    """
    ids = torch.tensor([prompt], device=device)
    return window_weights(prompt_mask(ids, None, tuple(ids.shape), device, inner.padding_ids()), windows)


@torch.inference_mode()
def inputs_along(
    runner: PathRunner, segment: Segment, prompt: Sequence[int], route: Route, windows: int
) -> dict[str, torch.Tensor]:
    """features [L, W, D] in fp32 and windows [W] bool of one prompt, on the CPU.

    What is stored of the path is not computed again.

    Args:
        segment: whose line begins with the prompt.
        route: [L] counts. What the last layer puts out is read by no router.
    """
    inner, path = runner.model.model, tuple(to_path((*route[:-1], 0)))
    runner.compute([(segment, path)], whole=True)
    weights, used = pooling(inner, prompt, windows, runner.model.device)

    def state(done: int) -> torch.Tensor:
        hidden = torch.cat([member.states[path[:done]].hidden for member in segment.line])[: len(prompt)]
        return hidden.to(weights.device)  # That of the embedding: layers may compute on several.

    hidden, done, features = state(0), 0, []
    for layer, count in enumerate(route):
        features.append(pool_windows(hidden[None], weights)[0])
        if layer + 1 == len(route):
            break
        done += count
        if count:
            hidden = state(done)
        elif len(inner.stand_ins):
            hidden = inner.stand_ins[layer](hidden).to(hidden.device)
    return {"features": torch.stack(features).cpu(), "windows": used[0].cpu()}


class StoredInputs:
    """Files of router inputs, one for each prompt and route.

    Args:
        folder: of labels.
        model: name of the base.
        windows: W.
        dtype: name of the dtype that the base runs in.
        adapters: folder of the adapters, or empty.
    """

    def __init__(self, folder: Path, model: str, windows: int, dtype: str, adapters: str):
        made_with = [model, weight_stamps(model), windows, dtype, adapter_hashes(adapters), judging()]
        self.folder, self.key = folder / FOLDER, _hashed(made_with)

    def path(self, prompt: Sequence[int], route: Sequence[int]) -> Path:
        return self.folder / f"{_hashed([self.key, list(prompt), list(route)])}.safetensors"

    def write(self, prompt: Sequence[int], route: Sequence[int], inputs: dict[str, torch.Tensor]) -> None:
        """Keep inputs; of several processes that do so at once any may win."""
        self.folder.mkdir(exist_ok=True)
        path = self.path(prompt, route)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        save_file(inputs, temporary)
        temporary.replace(path)

    def read(self, prompt: Sequence[int], route: Sequence[int]) -> dict[str, torch.Tensor] | None:
        """What was kept, or None.

        Raises:
            UserError: for a damaged file.
        """
        path = self.path(prompt, route)
        if not path.exists():
            return None
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is damaged ({error}). Remove it; training then computes what it held.") from error


def _hashed(value) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
