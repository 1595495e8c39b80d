"""States of right answers, collected once: what enters each layer, and what the last one puts out.

Kept in safetensors shards, one pair for each group of questions (training and held out), and streamed from there.
A group is done when its note is there, which is written last; a rerun makes what is missing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file
from torch.utils.data import Dataset
from tqdm import tqdm

from routing.common.errors import UserError
from routing.common.files import write_json
from routing.common.keyed import judging
from routing.scoring.own_answers import own_answers
from routing.scoring.packed import PathEvaluator
from routing.scoring.requests import Request
from routing.tasks.examples import held_out, held_out_key
from routing.training.features import Shard

GROUP = 64  # questions
FORMAT = 2  # of what is stored; of another one all is collected anew
PARTS = ("train", "held_out")


def right_answers(evaluator: PathEvaluator, requests: Sequence[Request]) -> list[tuple[int, ...] | None]:
    """Tokens of prompt and answer of each request that the full model answers rightly, else None."""
    return [tokens if correct else None for tokens, correct in own_answers(evaluator, requests)]


@torch.inference_mode()
def layer_states(model, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """States [T, L + 1, D] of each row of tokens at full depth: what enters each layer, then the last layer's output.

    The last one is taken in front of the final norm: an adapter in the place of the last layer comes before it too.
    """
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    last: list[torch.Tensor] = []
    hook = model.model.norm.register_forward_pre_hook(lambda module, inputs: last.append(inputs[0]))
    try:
        routes = torch.ones(len(rows), model.config.num_hidden_layers, dtype=torch.long)
        output = model.model(
            input_ids=ids, attention_mask=mask, routes=routes, use_cache=False, output_hidden_states=True
        )
    finally:
        hook.remove()
    states = torch.stack([state.cpu() for state in (*output.hidden_states[:-1], last[0])], dim=2)
    return [state[: len(row)] for state, row in zip(states, rows)]


def states_key(requests: Sequence[Request], **settings) -> str:
    """Hash of everything that the states depend on."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for request in requests:
        digest.update(json.dumps([request.example.id, *request.key()]).encode())
    return digest.hexdigest()


def collect_states(
    folder: Path,
    model,
    tokenizer,
    requests: Sequence[Request],
    key: str,
    tokens_per_example: int,
    eval_fraction: float,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, int]:
    """Write the states of all requests that the model answers rightly; groups that are there are kept.

    Args:
        folder: emptied first if it holds states with another key.
        key: from `states_key`.
        tokens_per_example: of each prompt and answer, drawn at random.
        eval_fraction: share of the questions that are held out.

    Returns:
        how many questions there were, and how many were answered rightly.

    Raises:
        UserError: before anything is computed, if the disk has too little room.
    """
    _prepare(folder, model.config, len(requests), key, tokens_per_example, dtype)
    evaluator = PathEvaluator(model, tokenizer, batch_size, score="accuracy")
    notes = []
    with tqdm(total=len(requests), desc="states", unit="question") as progress:
        for start in range(0, len(requests), GROUP):
            part, note = requests[start : start + GROUP], folder / f"group-{start // GROUP:05d}.json"
            if not note.exists():
                rng = Random(f"{seed}/{start}")
                number, sizes = start // GROUP, (tokens_per_example, eval_fraction, dtype)
                right = _write_group(folder, number, evaluator, part, *sizes, rng)
                write_json(note, {"questions": len(part), "right": right})
            notes.append(json.loads(note.read_text()))
            progress.update(len(part))
    return {name: sum(note[name] for note in notes) for name in ("questions", "right")}


def _prepare(folder: Path, config, count: int, key: str, tokens: int, dtype: torch.dtype) -> None:
    manifest = folder / "manifest.json"
    wanted = {"key": key, "judging": judging(), "questions": count}
    known = json.loads(manifest.read_text()) if manifest.exists() else {}
    if [known.get(name) for name in ("key", "judging")] != [key, wanted["judging"]]:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    there = sum(json.loads(note.read_text())["questions"] for note in folder.glob("group-*.json"))
    needed = (count - there) * tokens * (config.num_hidden_layers + 1) * config.hidden_size * dtype.itemsize
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"the states of {count - there} questions need up to {needed} bytes and {folder} has {free} free. Give a "
            "--work_dir on a larger disk, fewer --num_samples or --tokens_per_example, or --states_dtype bfloat16."
        )
    write_json(manifest, wanted)


def _write_group(folder, number, evaluator, part, tokens_per_example, eval_fraction, dtype, rng) -> int:
    answers = right_answers(evaluator, part)
    right = [(request, row) for request, row in zip(part, answers) if row is not None]
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in PARTS}
    for first in range(0, len(right), evaluator.batch_size):
        batch = right[first : first + evaluator.batch_size]
        for (request, row), states in zip(batch, layer_states(evaluator.model, [row for _, row in batch])):
            chosen = sorted(rng.sample(range(len(row)), min(len(row), tokens_per_example)))
            aside = held_out(held_out_key(request.example), eval_fraction)
            kept[PARTS[aside]].append(states[chosen].to(dtype))
    for name, states in kept.items():
        if states and not all(own.isfinite().all() for own in states):
            raise UserError(
                f"states are not finite in {dtype}. Store them as --states_dtype bfloat16 or float32; if they are that "
                "already, the model itself overflows and needs another --dtype."
            )
        if states:
            path = folder / f"{name}-{number:05d}.safetensors"
            save_file({"states": torch.cat(states)}, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
    return len(right)


class StoredStates(Dataset):
    """Tokens of one part, read from the shards batch by batch: states [L + 1, D] each."""

    def __init__(self, folder: Path, part: str):
        self.places: list[tuple[Shard, int]] = []
        for path in sorted(folder.glob(f"{part}-*.safetensors")):
            shard = Shard(path)
            self.places += [(shard, row) for row in range(shard.rows)]

    def __len__(self) -> int:
        return len(self.places)

    def __getitems__(self, items: list[int]) -> dict[str, torch.Tensor]:
        """A batch: states [B, L + 1, D], fp32."""
        batch = self.places[0][0].empty(len(items))
        for at, item in enumerate(items):
            shard, row = self.places[item]
            shard.read(row, batch, at)
        return {"states": batch["states"].float()}

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        return {"states": self.__getitems__([item])["states"][0]}
