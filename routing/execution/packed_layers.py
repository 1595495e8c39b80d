"""The decoder layers of a model, made ready for packed tokens and for speed; the model itself stays as it is."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

from routing.execution.packed_attention import NAME

# Weights in the processor's own order take as much memory again, so only for models up to this size (bytes).
LARGEST_PREPACKED = 4 * 2**30
EXPECTED_TOKENS = 256  # in one call; the order of the weights is chosen for it


class PrepackedLinear(nn.Module):
    """A linear layer for inference on a processor, its weight reordered once (oneDNN) instead of in every call."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), EXPECTED_TOKENS)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def packed_layers(model: PreTrainedModel) -> tuple[nn.ModuleList, nn.Module]:
    """Decoder layers that attend within segments of packed tokens, and the language-model head.

    They share the model's weights, but for reordered copies in fp32 on a processor.
    """
    config = copy.deepcopy(model.config)
    config._attn_implementation = NAME
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())} | {id(model.config): config}
    layers, head = copy.deepcopy(model.model.layers, memo), model.lm_head
    if _prepackable(model):
        for layer in layers:
            for name, module in list(layer.named_modules()):
                if type(module) is nn.Linear:
                    layer.set_submodule(name, PrepackedLinear(module))
        head = PrepackedLinear(head)
    return layers, head


def _prepackable(model: PreTrainedModel) -> bool:
    weights = list(model.parameters())
    return (
        torch.backends.mkldnn.is_available()
        and all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
        and sum(weight.nbytes for weight in weights) <= LARGEST_PREPACKED
    )
