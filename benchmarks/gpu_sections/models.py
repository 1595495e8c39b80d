"""Models with random weights at real shapes: the stock one and the routed one over the same weights."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from routed_speed import Models
from transformers import LlamaConfig, LlamaForCausalLM

from train_models.configuration_llama import RoutedLlamaConfig
from train_models.modeling_llama import RoutedLlamaForCausalLM

TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "max_position_embeddings": 65536}
SHAPES = {
    # Llama-3.2-1B and -3B
    "1B": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "3B": {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 256, "tie_word_embeddings": True,
    },
    # Small enough for checks in float32, with layers that matter.
    "checks": {
        "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 1024, "tie_word_embeddings": False,
    },
}  # fmt: skip


@contextmanager
def made_in(dtype: torch.dtype, device: torch.device):
    """Modules are made in this dtype on this device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


class RandomModels(Models):
    """`dense` and `routed` over the same random weights, in eval mode; see `routed_speed.Models`.

    Args:
        fields: config fields of the routed model.
        lively: weights so large that a wrong path shows, for checks.
    """

    def __init__(
        self,
        shape: str,
        dtype: torch.dtype,
        device: torch.device,
        attention: str = "sdpa",
        lively: bool = False,
        **fields,
    ):
        self.device, self.dtype = device, dtype
        sizes = SHAPES[shape] | TOKENS | {"attn_implementation": attention, "dtype": dtype}
        torch.manual_seed(0)
        with made_in(dtype, device):
            self.dense = LlamaForCausalLM(LlamaConfig(**sizes)).eval().requires_grad_(False)
            self.routed = RoutedLlamaForCausalLM(RoutedLlamaConfig(**sizes, **fields)).eval().requires_grad_(False)
        if lively:
            for name, parameter in self.dense.named_parameters():
                if name.endswith("norm.weight"):
                    parameter.normal_(1.0, 0.2)
                elif parameter.ndim == 2:
                    parameter.normal_(0.0, 1.5 * parameter.shape[1] ** -0.5)
        own = dict(self.dense.named_parameters())
        for name, parameter in self.routed.named_parameters():
            if name in own:
                parameter.data = own[name].data
        self.depth = self.dense.config.num_hidden_layers


def empty_memory() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
