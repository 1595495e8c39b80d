"""The decoder layers of a model, made ready for packed tokens and for speed; the model itself stays as it is."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import SiLUActivation

from routing.models.head import Head
from routing.models.placement import refuse_tensor_parallel
from routing.scoring.packed_attention import NAME, PackedStep
from train_models.decoder_parts import LayerParts
from train_models.offloading import device_of

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


class FusedMLP(nn.Module):
    """A gated SiLU MLP and the residual: what follows a product of matrices is done while it is at hand."""

    def __init__(self, mlp: nn.Module):
        super().__init__()
        self.gate, self.up, self.down = mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight

    @staticmethod
    def fits(mlp: nn.Module) -> bool:
        """Whether it is such an MLP, of reordered weights without bias."""
        linears = [getattr(mlp, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
        plain = all(isinstance(linear, PrepackedLinear) and linear.bias is None for linear in linears)
        return plain and isinstance(mlp.act_fn, (nn.SiLU, SiLUActivation))

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        linear = torch.ops.mkldnn._linear_pointwise
        gate = linear(x, self.gate, None, "swish", [], "")
        return linear.binary(linear.binary(x, gate, self.up, None, "mul"), residual, self.down, None, "add")


class PackedLayer(nn.Module):
    """A decoder layer over packed tokens.

    The MLP runs on the tokens alone whose state is asked for; keys and values are those of all.

    Attributes:
        place: device that it computes on; weights that are offloaded come there when their modules are called.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        for name, child in layer.named_children():
            self.add_module(name, child)
        self.place = device_of(layer)
        self.parts = LayerParts.of(layer)
        self.fused = FusedMLP(layer.mlp) if FusedMLP.fits(layer.mlp) and self.parts.is_plain else None

    def forward(self, hidden: torch.Tensor, packed: PackedStep, **kwargs) -> torch.Tensor:
        """States [1, n, D] to [1, m, D], of the tokens `packed.kept`, or of all."""
        parts = self.parts
        attended, _ = self.self_attn(hidden_states=parts.before_attention(hidden), packed=packed, **kwargs)
        if packed.kept is not None:
            hidden, attended = hidden[:, packed.kept], attended[:, packed.kept]
        hidden = parts.with_attention(hidden, attended)
        if not hidden.shape[1]:
            return hidden
        normed = parts.before_mlp(hidden)
        return parts.with_mlp(hidden, self.mlp(normed)) if self.fused is None else self.fused(normed, hidden)


def packed_layers(model: PreTrainedModel) -> tuple[nn.ModuleList, Head]:
    """Decoder layers that attend within segments of packed tokens, and the language-model head.

    They share the model's weights, but for reordered copies in fp32 on a processor, and accelerate's hooks of a device
    map, which fetch the weights of the modules that they are on.
    """
    refuse_tensor_parallel(model)
    config = copy.deepcopy(model.config)
    config._attn_implementation = NAME
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())} | {id(model.config): config}
    # A hook holds the offloaded weights of its whole model.
    memo |= {id(hook): hook for part in model.modules() if (hook := getattr(part, "_hf_hook", None)) is not None}
    layers, head = copy.deepcopy(model.model.layers, memo), model.lm_head
    if _prepackable(model):
        for layer in layers:
            for name, module in list(layer.named_modules()):
                if type(module) is nn.Linear:
                    layer.set_submodule(name, PrepackedLinear(module))
        head = PrepackedLinear(head)
    return nn.ModuleList(map(PackedLayer, layers)), Head.of(model, head)


def _prepackable(model: PreTrainedModel) -> bool:
    weights = list(model.parameters())
    return (
        torch.backends.mkldnn.is_available()
        and all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
        and sum(weight.nbytes for weight in weights) <= LARGEST_PREPACKED
    )
