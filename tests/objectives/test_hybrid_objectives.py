"""Gates, balance loss and entropy of a hybrid's routers: arithmetic by hand, and signs of gradients."""

from __future__ import annotations

import math

import pytest
import torch

from routing.objectives.hybrid import (
    balance_loss,
    gumbel_noise,
    mechanism_gates,
    routing_entropy,
    temperature_at,
)


def logits_of(*first: float) -> torch.Tensor:
    """[1, T, 1, 2] logits with these probabilities of the first mechanism."""
    p = torch.tensor(first)
    return torch.stack([p.log(), (1 - p).log()], -1)[None, :, None]


def test_balance_loss_by_hand():
    """Three of four tokens choose the first mechanism: f = (0.75, 0.25), P = (0.6, 0.4)."""
    assert balance_loss(logits_of(0.8, 0.7, 0.6, 0.3)).item() == pytest.approx(2 * (0.75 * 0.6 + 0.25 * 0.4))
    assert balance_loss(logits_of(0.9, 0.1)).item() == pytest.approx(1.0)  # balanced
    assert balance_loss(logits_of(1 - 1e-6, 1 - 1e-6)).item() == pytest.approx(2.0, abs=1e-4)  # one takes all


def test_balance_loss_is_a_mean_over_blocks_not_over_all_tokens():
    """Two blocks that each collapse, to other mechanisms, are not balanced."""
    collapsed = torch.cat([logits_of(0.9, 0.9), logits_of(0.1, 0.1)], 2)
    assert balance_loss(collapsed).item() == pytest.approx(2 * 0.9)


def test_padding_is_in_no_mean():
    padded, real = logits_of(0.8, 0.7, 0.6, 0.3, 0.01, 0.01), torch.tensor([[True] * 4 + [False] * 2])
    for function in (balance_loss, routing_entropy):
        assert function(padded, real).item() == pytest.approx(function(padded[:, :4]).item())


def test_the_gradient_of_the_balance_loss_favours_the_rare_mechanism():
    logits = logits_of(0.8, 0.7, 0.6, 0.3).requires_grad_()
    balance_loss(logits).backward()
    assert (logits.grad[..., 0] > 0).all() and (logits.grad[..., 1] < 0).all()  # A step down: fewer of the first.
    balanced = logits_of(0.9, 0.1).requires_grad_()
    balance_loss(balanced).backward()
    assert balanced.grad.abs().max() < 1e-6


def test_entropy_by_hand():
    assert routing_entropy(logits_of(0.5, 0.5)).item() == pytest.approx(math.log(2))
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert routing_entropy(logits_of(0.25, 0.75)).item() == pytest.approx(expected)


def test_gates_are_hard_and_their_gradient_that_of_the_softmax():
    logits = torch.tensor([[[[0.2, 0.1], [-1.0, 2.0]]]], requires_grad=True)
    noise = torch.tensor([[[[0.0, 0.4], [0.0, 0.0]]]])  # It turns the first choice over.
    gates = mechanism_gates(logits, 0.5, noise)
    assert torch.equal(gates.detach(), torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]]))
    gates[..., 1].sum().backward()
    p = torch.softmax((logits.detach() + noise) / 0.5, -1)[..., 1]
    torch.testing.assert_close(logits.grad[..., 1], p * (1 - p) / 0.5)
    torch.testing.assert_close(logits.grad[..., 0], -p * (1 - p) / 0.5)


def test_noise_draws_the_softmax():
    """The argmax of logits plus Gumbel noise is a draw of their softmax, at any temperature."""
    torch.manual_seed(0)
    logits = logits_of(0.3).expand(1, 20_000, 1, 2)
    share = mechanism_gates(logits, 0.5, gumbel_noise(logits))[..., 0].mean().item()
    assert share == pytest.approx(0.3, abs=0.015)


def test_the_temperature_falls_in_a_line():
    assert [temperature_at(progress, 1.0, 0.5) for progress in (0, 0.5, 1, 2)] == [1.0, 0.75, 0.5, 0.5]
