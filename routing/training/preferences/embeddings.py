"""Embeddings of queries by a frozen encoder, computed once for all epochs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from routing.common.keyed import judging
from train_models.query_router import TEXTS_TOGETHER, QueryRouter


def fingerprint(router: QueryRouter, texts: list[str]) -> str:
    """Hash of all that the embeddings depend on: the encoder, its weights and tokenizer, the texts, and the code."""
    digest = hashlib.sha256(json.dumps([judging(), router.max_tokens, texts]).encode())
    digest.update(router.encoder.config.to_json_string().encode())
    digest.update(json.dumps(router.tokenizers[1].get_vocab(), sort_keys=True).encode())
    for name, tensor in router.encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def embed_queries(router: QueryRouter, texts: list[str], show: bool = True) -> torch.Tensor:
    """Embeddings [Q, E] of texts, on the CPU; texts of like length share a batch."""
    found = torch.empty(len(texts), router.encoder.config.hidden_size)
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    for start in tqdm(range(0, len(order), TEXTS_TOGETHER), desc="embeddings", unit="batch", disable=not show):
        rows = order[start : start + TEXTS_TOGETHER]
        found[rows] = router.embed_texts([texts[row] for row in rows]).cpu()
    return found


def cached_embeddings(path: Path, router: QueryRouter, texts: list[str], show: bool = True) -> torch.Tensor:
    """Embeddings [Q, E] from a file, or computed and written to it where it holds those of other ones, or none."""
    key = fingerprint(router, texts)
    if path.exists():
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") == key:
                return file.get_tensor("embeddings")
    found = embed_queries(router, texts, show)
    temporary = path.with_suffix(".tmp")
    save_file({"embeddings": found}, temporary, metadata={"key": key})
    temporary.replace(path)
    return found
