"""Tensor parallelism of transformers over two processes: routes, logits and texts are those of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, save_tiny_base, stock_model, tiny_tokenizer
from test_query_router import make_checkpoint

from routing.models.bases import load_base
from routing.models.checkpoint import save_checkpoint
from train_models.routed_model import small_parts

ROOT = Path(__file__).resolve().parents[2]
LAYERS = 5
MENU = [[1, 1, 1, 1, 1], [1, 0, 1, 1, 1], [1, 1, 0, 2, 1]]
KINDS = {
    "per_layer": {},
    "adapters": {"skip_action": "adapter"},
    "prefix": {"router": "prefix", "kept_layers": 1},
    "prefix_token": {"router": "prefix_token", "kept_layers": 1},
    "random_token": {"router": "random_token", "kept_layers": 1},
    "embedding": {"router": "embedding", "kept_layers": 1},
    "menu": {"router": "menu", "kept_layers": 1, "router_reads": [1], "menu": MENU},
}


def checkpoint(place: Path, base: Path, fields: dict) -> Path:
    """One whose random routers decide differently from prompt to prompt."""
    model = load_base(str(base), torch.float32, **fields)
    torch.manual_seed(1)
    parts = {name: torch.randn_like(tensor) for name, tensor in small_parts(model.model).items()}
    save_checkpoint(place / "checkpoint", str(base), parts, fields, "copy", {"arguments": {"model_id": str(base)}})
    return place / "checkpoint"


@pytest.mark.slow
def test_two_processes_route_compute_and_generate_as_one(tmp_path):
    """Every router kind on Llama, the routers of layers on every other family; saved weights are whole again."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    base = save_tiny_base(tmp_path / "base", LAYERS, **sizes)
    folders = {kind: checkpoint(tmp_path / kind, base, fields) for kind, fields in KINDS.items()}
    folders["query"] = make_checkpoint(tmp_path / "query", "copy")
    for family in FAMILIES[1:]:
        place = tmp_path / f"base-{family}"
        stock_model(family, vocab_size=len(tiny_tokenizer())).save_pretrained(place)
        tiny_tokenizer().save_pretrained(place)
        folders[str(family)] = checkpoint(tmp_path / str(family), place, {})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(Path(__file__).with_name("tensor_parallel.py")), str(tmp_path / "written")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, *map(str, folders.values())], capture_output=True, text=True, env=environment, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [Path(one["folder"]) for one in found] == list(folders.values())
    for one in found:
        assert max(one["gaps"].values()) < 3e-4, one
        assert all(one["same"].values()), one
        assert any("o_proj" in name for name in one["split"]) and not any("routers" in name for name in one["split"])
        assert "tensor parallelism spreads over 2 processes" in one["refused"], one
    assert sum(one["varied"] > 1 for one in found) > len(found) // 2
