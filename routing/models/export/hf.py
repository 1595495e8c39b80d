"""--format hf: a path as a smaller stock checkpoint, which gets its name once it is shown to be the routed model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_models.path_notation import write_path
from routing.common.errors import UserError
from routing.common.files import write_json, write_text
from routing.models.base_files import copy_notice
from routing.models.checkpoint import keep_dtype
from routing.models.export.asked import RECORD
from routing.models.export.config import cut_config, stock_config
from routing.models.export.equality import Equality, measure
from routing.models.export.source import Source, along, stored_weights
from routing.models.export.weights import EMBEDDING, cut_model, leading_adapters, take_stored
from routing.models.families import no_tokenizer

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [dynamic-layer-routing, layer-pruning]
---

# {name}

The layers {path} of {source}, {executed} of {depth}, as a stock `{model_class}`: no remote code, and every stack that
loads this class serves it.

    AutoModelForCausalLM.from_pretrained("{name}")

Measured against the routed model along this path before the folder was named: {words}.
"""


def export_path(source: Source, model: nn.Module, path: Sequence[int], folder: Path, facts: dict) -> Equality:
    """Write one path into a folder, which must not exist, and compare it with the routed model.

    Args:
        model: of `load_model`.
        facts: saved in export.json beside what is known here.

    Raises:
        UserError: if the stock model that was written is not the routed one; the folder is removed then.
    """
    config = stock_config(model.config)
    cut = cut_model(model, cut_config(config, path), path)
    if facts["arguments"]["dtype"] == "auto":
        merged = (EMBEDDING, EMBEDDING.removeprefix("model.")) if leading_adapters(model, path) else ()
        take_stored(cut, ((name, tensor) for name, tensor in stored_weights(source) if name not in merged), path)
    cut.save_pretrained(folder)
    if facts["arguments"]["dtype"] == "auto":
        keep_dtype(folder, source.config)
    kind = type(cut).__name__
    del cut
    save_tokenizer(source, folder)
    copy_notice(source.place, folder, getattr(source.config, "_commit_hash", None))
    written = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype).eval()
    found = measure(along(source, model, path), written)
    if not found.holds:
        shutil.rmtree(folder)
        raise UserError(
            f"path {write_path(path)}: the stock model that was written is not the routed model: {found.words()}. "
            "Nothing was kept. The family may compute something that hangs on the index of a layer; "
            "docs/export.md tells what is re-indexed."
        )
    record = {"source": source.name, "path": write_path(path), "layers": len(path), "of": source.depth}
    write_json(folder / RECORD, record | {"format": "hf", "equality": found.record()} | facts)
    words = {"source": source.name, "path": write_path(path), "executed": len(path), "depth": source.depth}
    write_text(folder / "README.md", CARD.format(name=facts["name"], model_class=kind, words=found.words(), **words))
    return found


def save_tokenizer(source: Source, folder: Path) -> None:
    """The tokenizer as it is, chat template included.

    Raises:
        UserError: if it cannot be loaded: a model without one cannot be served.
    """
    # With a stock config beside it transformers has no reason to run a checkpoint's own code.
    config, commit = stock_config(source.config), getattr(source.config, "_commit_hash", None)
    where = {"revision": commit} if commit else {}
    try:
        AutoTokenizer.from_pretrained(source.place, config=config, **where).save_pretrained(folder)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(no_tokenizer(source.name, commit, error)) from error
