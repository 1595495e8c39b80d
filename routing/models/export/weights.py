"""The weights of a cut: layers in the order of a path, and what stands in for skipped ones merged where it can be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig

from routing.common.errors import UserError
from train_models.decoder_parts import embedding_scale

LAYER = re.compile(r"^(model\.layers\.)(\d+)(\..+)$")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ROWS = 4096  # of the embedding, which go through an adapter at once


def cut_model(model: nn.Module, config: PreTrainedConfig, path: Sequence[int]) -> nn.Module:
    """A stock ...ForCausalLM of the layers of a path, to be saved. It shares its tensors with `model`, but for repeats.

    Args:
        model: a routed or stock ...ForCausalLM.
        config: of `cut_config`; untied if something is merged into the embedding.
    """
    state = cut_state(model.state_dict(), path)
    before = leading_adapters(model, path)
    if before:
        state[HEAD] = state[HEAD].clone()
        state[EMBEDDING] = through_adapters(state[EMBEDDING], before, embedding_scale(model.model))
        config.tie_word_embeddings = False
    with torch.device("meta"):
        cut = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    missing, unexpected = cut.load_state_dict(state, strict=False, assign=True)
    if unexpected or set(missing) - {HEAD}:
        raise UserError(
            f"the weights of the path do not fit a stock {type(cut).__name__}: missing {sorted(missing)[:3]}, too many "
            f"{sorted(unexpected)[:3]}. The model has parts that the stock class lacks, so there is no stock cut of it."
        )
    cut.tie_weights()
    cut.generation_config = model.generation_config
    return cut


def cut_state(state: dict[str, torch.Tensor], path: Sequence[int]) -> dict[str, torch.Tensor]:
    """The weights along a path: step n has those of layer path[n], a repeated layer a copy of its own."""
    found, layers = {}, {}
    for name, tensor in state.items():
        match = LAYER.match(name)
        if match:
            layers.setdefault(int(match[2]), []).append((match[1], match[3], tensor))
        elif not name.startswith(("model.routers.", "model.adapters.")):
            found[name] = tensor
    seen = set()
    for step, layer in enumerate(path):
        for front, back, tensor in layers[layer]:
            found[f"{front}{step}{back}"] = tensor.clone() if layer in seen else tensor
        seen.add(layer)
    return found


@torch.no_grad()
def take_stored(cut: nn.Module, stored: Iterable[tuple[str, torch.Tensor]], path: Sequence[int]) -> None:
    """Give a cut the tensors of files bit for bit, whatever dtype the model was loaded in.

    Args:
        stored: of all layers, by their names in the files. Those that were merged must not be among them.
    """
    own = dict(cut.named_parameters())
    for name, tensor in stored:
        match = LAYER.match(name if name in own or name.startswith("model.") else f"model.{name}")
        if match:
            places = [f"{match[1]}{step}{match[3]}" for step, layer in enumerate(path) if layer == int(match[2])]
        else:
            places = [name if name in own else f"model.{name}"]
        for at, place in enumerate(places):
            if place in own:
                own[place].data = tensor.clone() if at else tensor


def leading_adapters(model: nn.Module, path: Sequence[int]) -> list[nn.Module]:
    """Adapters that stand in for the layers in front of the first one that runs, in order."""
    stand_ins = getattr(model.model, "stand_ins", ())
    return [stand_ins[layer] for layer in range(path[0])] if len(stand_ins) and path else []


def unmergeable_adapters(model: nn.Module, path: Sequence[int]) -> list[int]:
    """Layers whose adapters change the state between two layers of a path, or behind the last one.

    An adapter sees one token alone, so in front of all layers it is a map of the embedding table. Anywhere else it
    maps the whole state, and a stock layer can only add to it.
    """
    stand_ins = getattr(model.model, "stand_ins", ())
    if not len(stand_ins):
        return []
    skipped = set(range(len(stand_ins))) - set(path)
    first = path[0] if path else 0
    return sorted(layer for layer in skipped if layer > first and not _is_identity(stand_ins[layer]))


def _is_identity(adapter: nn.Module) -> bool:
    return not bool(adapter.up.weight.any()) and not bool(adapter.up.bias.any())


@torch.no_grad()
def through_adapters(embedding: torch.Tensor, adapters: Sequence[nn.Module], scale: float = 1.0) -> torch.Tensor:
    """An embedding table [V, D] behind a chain of adapters, in its own dtype.

    Args:
        scale: what the model multiplies the table's rows by; adapters see them so.
    """
    parts = []
    for rows in embedding.split(ROWS):
        rows = rows * scale
        for adapter in adapters:
            rows = adapter(rows)
        parts.append(rows / scale)
    return torch.cat(parts)
