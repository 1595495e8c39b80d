"""Routers and the pooling of their input, used by the model's own routing and by router training alike.

Source: Dr.LLM, arXiv 2510.12773, section 3 (router: Linear(D, 128) - GELU - Linear(128, 3); input pooled in
W contiguous windows; argmax once per sequence). Deviations:
- windows are split so that every prompt token is in one, where T // W tokens each would lose the last ones;
- prompts with fewer than W tokens get one window for each token;
- pooling and routers compute in fp32 whatever the dtype of the model.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import initialization as init

from .float32 import StaysFloat32

SKIP, RUN, REPEAT = 0, 1, 2


class RouterLinear(StaysFloat32, nn.Linear):
    """Always fp32; a class of its own, so that `_init_weights` finds it before the rule for any nn.Linear."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, dtype=torch.float32)

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases."""
        init.xavier_uniform_(self.weight)
        init.zeros_(self.bias)


class RouterBlock(nn.Module):
    """Decides for one layer how often it runs: logits over {0 skip, 1 run, 2 repeat}."""

    def __init__(self, hidden_size: int, router_hidden_size: int):
        super().__init__()
        self.up = RouterLinear(hidden_size, router_hidden_size)
        self.down = RouterLinear(router_hidden_size, 3)

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases."""
        self.up.reset_parameters()
        self.down.reset_parameters()

    def forward(self, pooled: torch.Tensor, windows: torch.Tensor, shares: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [B, 3], the mean over windows.

        Args:
            pooled: [B, W, D], the mean hidden state of each window.
            windows: [B, W] bool, which windows hold a token.
            shares: [B, 1, W], `window_shares` of them, where all routers of a forward share it.
        """
        up, down = self.up, self.down
        shares = window_shares(windows) if shares is None else shares
        # At short prompts a decision costs what its operations cost to call. So functions in the place of modules and
        # of matmul; and a transposed tensor for gelu: on a CPU a contiguous one goes to oneDNN, which is slow to call.
        features = nn.functional.linear(pooled.to(up.weight.dtype), up.weight, up.bias)
        features = nn.functional.gelu(features.mT).mT
        # The mean of what a linear layer gives is what it gives for the mean, at a W-th of the work.
        return nn.functional.linear(torch.bmm(shares, features)[:, 0], down.weight, down.bias)


def is_padding(input_ids: torch.LongTensor, padding_ids: tuple[int, ...]) -> torch.BoolTensor:
    """[B, T], which tokens have one of the padding ids. Compared one by one: a tensor of the ids would have to be sent
    to the device, for which the host waits."""
    found = torch.zeros_like(input_ids, dtype=torch.bool)
    for padding_id in padding_ids:
        found |= input_ids == padding_id
    return found


def prompt_mask(
    input_ids: torch.LongTensor | None,
    attention_mask: torch.Tensor | None,
    shape: tuple[int, int],
    device: torch.device,
    padding_ids: tuple[int, ...],
    prompt_lengths: torch.LongTensor | None = None,
) -> torch.BoolTensor:
    """Which tokens the routers see: [B, T], True for the tokens of the prompt.

    Callers such as lm-eval pad on the right and give no mask, so a run of padding ids at the end of a row
    never counts, with or without a mask: thus a row is routed alike in any batch. A row of nothing but
    padding ids keeps them.

    Args:
        input_ids: [B, T], or None when embeddings were given (then no padding is recognised).
        attention_mask: [B, T'] with T' >= T (the last T columns count), or None.
        shape: (B, T).
        padding_ids: token ids that are padding at the end of a row.
        prompt_lengths: [B], how many real tokens of each row belong to the prompt; the others (a continuation
            that is being scored, say) are hidden from the routers.

    Raises:
        ValueError: for masks that are not two-dimensional, and for prompt lengths below 1 or of wrong shape.
    """
    batch, tokens = shape
    if attention_mask is None:
        real = torch.ones(shape, dtype=torch.bool, device=device)
    elif isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        real = attention_mask[:, -tokens:].to(device=device, dtype=torch.bool)
    else:
        raise ValueError(
            "routing needs an attention_mask of shape [B, T] to tell prompt from padding, and got "
            f"{type(attention_mask).__name__} {tuple(getattr(attention_mask, 'shape', ()))}. "
            "Give the 2-D mask, or force the routes with routes=."
        )
    if input_ids is not None and padding_ids:
        content = real & ~is_padding(input_ids, padding_ids)
        # Reversed running maximum: True up to the last token that is no padding.
        up_to_last = content.flip(1).cummax(1).values.flip(1)
        real = real & (up_to_last | ~content.any(1, keepdim=True))
    if prompt_lengths is None:
        return real
    prompt_lengths = torch.as_tensor(prompt_lengths, device=device)
    if prompt_lengths.shape != (batch,) or bool((prompt_lengths < 1).any()):
        raise ValueError(
            f"prompt_lengths must hold one length >= 1 for each of {batch} rows, got {prompt_lengths.tolist()}."
        )
    return real & (real.cumsum(1) <= prompt_lengths[:, None])


def window_weights(mask: torch.BoolTensor, num_windows: int) -> tuple[torch.Tensor, torch.BoolTensor]:
    """Averaging weights of W contiguous windows over the prompt tokens of each row.

    Token j of n lies in window floor(j W / n), so the windows cover all tokens and differ by one at most.

    Args:
        mask: [B, T] bool, the prompt tokens.
        num_windows: W.

    Returns:
        weights [B, W, T], fp32, each row of a used window summing to 1; and which windows are used, [B, W].
    """
    total = mask.sum(1, keepdim=True).clamp(min=1)
    window = (mask.cumsum(1) - 1).clamp(min=0) * num_windows // total
    member = (window[:, None] == torch.arange(num_windows, device=mask.device)[:, None]) & mask[:, None]
    size = member.sum(2, keepdim=True)
    return member / size.clamp(min=1).float(), size[..., 0] > 0


def window_shares(windows: torch.BoolTensor) -> torch.Tensor:
    """[B, 1, W] fp32, the part that each window has in a mean over those used, of windows [B, W]."""
    used = windows.float()
    return (used / used.sum(1, keepdim=True).clamp(min=1))[:, None]


def pool_windows(hidden: torch.Tensor, weights: torch.Tensor, padded: bool = True) -> torch.Tensor:
    """Window means [B, W, D] in fp32 of hidden states [B, T, D].

    Args:
        weights: [B, W, T], from `window_weights`.
        padded: whether some tokens may be in no window; whatever they hold, NaN included, cannot leak in.
    """
    weights, hidden = weights.to(hidden.device), hidden.float()
    if padded:
        hidden = torch.where(weights.any(1)[..., None], hidden, 0.0)
    return torch.bmm(weights, hidden)
