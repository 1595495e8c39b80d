"""What a process of torchrun does for test_tensor_parallel.py: loads checkpoints whole and in parts, and compares.

torchrun --nproc_per_node 2 tests/big_bases/tensor_parallel.py FOLDER...

Prints on the first process a JSON line for each folder: the largest differences, and what is equal.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from routing.common.errors import UserError
from routing.scoring.packed_layers import packed_layers

NEW = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


@torch.no_grad()
def compared(folder: Path, written: Path) -> dict:
    """Of one checkpoint; `written` is a folder that all processes know, for the gathered weights."""
    given = {"trust_remote_code": True}
    whole = AutoModelForCausalLM.from_pretrained(folder, **given).eval()
    parts = AutoModelForCausalLM.from_pretrained(
        folder, distributed_config=DistributedConfig(tp_plan="auto"), **given
    ).eval()
    split = [name for name, parameter in parts.named_parameters() if isinstance(parameter, DTensor)]
    ids = torch.randint(5, 300, (4, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :4] = mask[2, :2] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    found = {"logits": gap(whole(**inputs).logits[mask.bool()], parts(**inputs).logits[mask.bool()])}
    same = {"routes": torch.equal(whole.last_routes, parts.last_routes)}
    varied = len({tuple(route) for route in whole.last_routes.tolist()})
    route = [[1, 0, 2, 1], [1, 1, 1, 1], [0, 1, 1, 2], [1, 2, 0, 0]]
    forced = torch.tensor([(row * whole.config.num_hidden_layers)[: whole.config.num_hidden_layers] for row in route])
    if whole.config.router not in ("prefix_token", "random_token"):
        found["forced"] = gap(*(m(**inputs, routes=forced).logits[mask.bool()] for m in (whole, parts)))
    same["tokens"] = torch.equal(*(m.generate(**inputs, **NEW) for m in (whole, parts)))
    parts.save_pretrained(written)
    refused = ""
    try:
        packed_layers(parts)
    except UserError as error:
        refused = str(error)
    if torch.distributed.get_rank() == 0:
        own, other = load_file(folder / "model.safetensors"), load_file(written / "model.safetensors")
        # A tied head is written beside the embedding: gathered, they are two.
        same["names"] = set(other) - set(own) <= {"lm_head.weight"}
        same["weights"] = all(torch.equal(own[name], other[name]) for name in own)
        same["config"] = AutoConfig.from_pretrained(written, **given).to_dict().keys() == whole.config.to_dict().keys()
    return {"gaps": found, "same": same, "split": split, "varied": varied, "refused": refused}


def main() -> None:
    written = Path(sys.argv[1])
    for folder in sys.argv[2:]:
        found = compared(Path(folder), written / Path(folder).parent.name)
        if torch.distributed.get_rank() == 0:
            print(json.dumps({"folder": folder} | found), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
