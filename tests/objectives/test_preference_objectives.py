"""Losses of query routers: arithmetic by hand, signs of gradients, stability near certainty."""

from __future__ import annotations

import math

import pytest
import torch

from routing.objectives.preference import dpo_loss, fbc_loss, log_odds, orpo_loss
from routing.objectives.set_probability import log_policy
from train_models.query_router import QueryScores


def scores_of(layers, ratio, log_std=-3.0, dtype=torch.float64) -> QueryScores:
    layers, ratio = torch.tensor(layers, dtype=dtype), torch.tensor(ratio, dtype=dtype)
    parts = layers, ratio, torch.full_like(ratio, log_std)
    return QueryScores(*(part.requires_grad_() for part in parts))


def test_fbc_by_hand():
    scores = scores_of([[math.log(3), 0.0], [0.0, -math.log(4)]], [0.0, math.log(3)])
    mask = torch.tensor([[True, False], [True, False]])
    ratios = ((0.5 - 0.5) ** 2 + (0.75 - 0.5) ** 2) / 2
    layers = -(math.log(0.75) + math.log(0.5) + math.log(0.5) + math.log(0.8)) / 4
    loss = fbc_loss(scores, mask)
    assert loss.item() == pytest.approx(ratios + layers)
    loss.backward()
    assert scores.ratio.grad.tolist() == pytest.approx([0, 0.25 * 0.75 * 0.25])  # too much is pruned in the second
    assert (scores.layers.grad[mask] < 0).all() and (scores.layers.grad[~mask] > 0).all()


def test_fbc_takes_the_means_of_rows_alone():
    """A column of mu against a row of k / L would compare each query with all the others."""
    mask = torch.tensor([[True, True, True, False], [False, False, False, True]])
    perfect = scores_of([[1e3, 1e3, 1e3, -1e3], [-1e3, -1e3, -1e3, 1e3]], [math.log(3), -math.log(3)])
    assert fbc_loss(perfect, mask).item() == pytest.approx(0, abs=1e-12)


def test_dpo_by_hand():
    better, worse = torch.tensor([-1.0, -3.0], requires_grad=True), torch.tensor([-3.0, -1.0], requires_grad=True)
    loss = dpo_loss(better, worse, 0.5)
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1))) / 2, rel=1e-6)
    loss.backward()
    pulls = [-0.5 * (1 - 1 / (1 + math.exp(-m))) / 2 for m in (1, -1)]  # -beta (1 - sigmoid(margin)) / B
    assert better.grad.tolist() == pytest.approx(pulls, rel=1e-5)
    assert worse.grad.tolist() == pytest.approx([-pull for pull in pulls], rel=1e-5)
    assert dpo_loss(better, better, 0.1).item() == pytest.approx(math.log(2))


def test_log_odds_by_hand_and_near_certainty():
    p = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    assert log_odds(p.log()).tolist() == pytest.approx([math.log(0.25), 0, math.log(9)])
    x = torch.tensor([-1e5, -200.0, -0.5, -1e-6, -1e-12, 0.0], requires_grad=True)
    odds = log_odds(x)
    odds.sum().backward()
    assert odds.isfinite().all() and x.grad.isfinite().all() and (x.grad > 0).all()
    assert (odds.diff() >= 0).all()
    assert odds[:2].tolist() == [-1e5, -200.0] and x.grad[:2].tolist() == [1, 1]
    assert odds[3].item() == pytest.approx(math.log(1e6), rel=1e-5) and x.grad[3].item() == pytest.approx(1e6, rel=1e-4)


def test_orpo_by_hand():
    better, worse = torch.tensor([math.log(0.6)]), torch.tensor([math.log(0.2)])
    expected = -math.log(1 / (1 + (0.2 / 0.8) / (0.6 / 0.4))) + 0.1 * 2.0
    assert orpo_loss(better, worse, torch.tensor(2.0), 0.1).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ("fbc", "dpo", "orpo"))
def test_gradients_of_whole_losses(name):
    """Through the policy, by numbers."""
    winner = torch.tensor([[True, False, False, True], [False, True, False, False]])
    loser = torch.tensor([[True, True, False, True], [False, False, False, True]])

    def loss(layers, ratio, log_std):
        scores = QueryScores(layers, ratio, log_std)
        better, worse = log_policy(scores, winner), log_policy(scores, loser)
        if name == "dpo":
            return dpo_loss(better, worse, 0.1)
        return fbc_loss(scores, winner) if name == "fbc" else orpo_loss(better, worse, fbc_loss(scores, winner), 0.1)

    torch.manual_seed(0)
    layers, ratio = torch.randn(2, 4, dtype=torch.float64), torch.tensor([0.1, -1.1], dtype=torch.float64)
    parts = layers.requires_grad_(), ratio.requires_grad_(), torch.full((2,), -3.0).double().requires_grad_()
    assert torch.autograd.gradcheck(loss, parts, atol=1e-4)


@pytest.mark.parametrize("loss", ("dpo", "orpo"))
def test_a_step_makes_the_winner_likelier_than_the_loser(loss):
    """Also from a router that is sure of the loser, in float32."""
    winner, loser = torch.tensor([[True, False, False, False]]), torch.tensor([[False, True, True, True]])
    for layers, ratio in (([[0.0, 0, 0, 0]], [0.0]), ([[-30.0, 30, 30, 30]], [math.log(3)])):
        scores = scores_of(layers, ratio, log_std=-7.0, dtype=torch.float32)
        better, worse = log_policy(scores, winner), log_policy(scores, loser)
        value = dpo_loss(better, worse, 0.1) if loss == "dpo" else orpo_loss(better, worse, torch.tensor(0.0), 0.1)
        value.backward()
        assert value.isfinite() and value > 0
        assert scores.layers.grad[0, 0] < 0 and scores.ratio.grad.item() > 0  # prune layer 0, and less
        assert (scores.layers.grad[0, 1:] > 0).all()
