"""Probabilities of pruned sets: sums by brute force, far tails, gradients, and the mistakes that are known."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.objectives.set_probability import (
    gumbel_marginals,
    log_count_mass,
    log_policy,
    log_set_probability,
    sinkhorn_logits,
)
from routing.objectives.table import TOP_K
from train_models.query_router import QueryHeads, QueryScores

DEPTH = 6


def mask_of(layers, depth: int = DEPTH) -> torch.Tensor:
    return torch.tensor([layer in layers for layer in range(depth)])


def every_set(depth: int, size: int) -> torch.Tensor:
    """All sets of a size, [N, L]."""
    return torch.stack([mask_of(chosen, depth) for chosen in combinations(range(depth), size)])


def count_masses(mean: float, log_std: float, depth: int, dtype=torch.float32) -> torch.Tensor:
    """Logarithms of the probabilities of all k, [L + 1]."""
    rows = torch.full((depth + 1,), mean, dtype=dtype), torch.full((depth + 1,), log_std, dtype=dtype)
    return log_count_mass(*rows, torch.arange(depth + 1), depth)


@pytest.mark.parametrize("depth", (1, 6, 30))
@pytest.mark.parametrize("mean", (0.0, 0.03, 0.5, 0.731, 1.0))
@pytest.mark.parametrize("log_std", (-7.0, -5.0, -3.0))
def test_masses_of_all_counts_sum_to_one(depth, mean, log_std):
    masses = count_masses(mean, log_std, depth)
    assert (masses <= 0).all() and masses.isfinite().all()
    assert masses.double().exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_mass_by_hand():
    """L = 10, mu = 0.3, sigma = e^-3: k = 3 is half a layer, 0.05, to either side; the tails go to the ends."""
    sigma = math.exp(-3)

    def below(x: float) -> float:
        return 0.5 * (1 + math.erf((x - 0.3) / sigma / math.sqrt(2)))

    expected = [below(0.05), *(below((k + 0.5) / 10) - below((k - 0.5) / 10) for k in range(1, 10)), 1 - below(0.95)]
    found = count_masses(0.3, -3.0, 10, torch.float64).exp()
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_a_narrow_distribution_has_mass_of_at_most_one_where_its_density_is_above():
    """The density at the mean is 437 for sigma = e^-7: taken for a probability it would make log pi positive."""
    density = torch.distributions.Normal(torch.tensor(0.5), torch.tensor(math.exp(-7.0))).log_prob(torch.tensor(0.5))
    assert density > 6
    assert count_masses(0.5, -7.0, 10)[5].item() == pytest.approx(0, abs=1e-6)
    assert (count_masses(0.5, -7.0, 10) <= 0).all()


def test_far_tails_are_finite_and_pull_to_the_count():
    """Up to 1000 sigmas away: logarithms fall with the distance, and the gradient points to k / L."""
    depth = 12
    for mean, sign in ((0.0, 1), (1.0, -1)):
        middle = torch.full((depth + 1,), mean, requires_grad=True)
        log_std = torch.full((depth + 1,), -7.0, requires_grad=True)
        masses = log_count_mass(middle, log_std, torch.arange(depth + 1), depth)
        masses.sum().backward()
        assert masses.isfinite().all() and middle.grad.isfinite().all() and log_std.grad.isfinite().all()
        ordered = masses if mean == 1 else masses.flip(0)
        assert (ordered.diff() > 0).all() and masses.min() < -4e5
        wrong = torch.arange(depth + 1) != round(mean * depth)
        assert (torch.sign(middle.grad[wrong]) == sign).all() and (log_std.grad[wrong] > 0).all()
    # Half a square of the distance to the near end of the interval, in sigmas.
    distance = (1 - 0.5 / depth) / math.exp(-7)
    assert count_masses(0.0, -7.0, depth)[depth].item() == pytest.approx(-(distance**2) / 2, rel=1e-4)


@pytest.mark.parametrize("count", range(6))
def test_gradient_of_the_mass(count):
    mean = torch.tensor([0.1, 0.5, 0.83], dtype=torch.float64, requires_grad=True)
    log_std = torch.tensor([-3.0, -4.0, -3.5], dtype=torch.float64, requires_grad=True)
    counts = torch.full((3,), count)
    assert torch.autograd.gradcheck(lambda m, s: log_count_mass(m, s, counts, 5), (mean, log_std), atol=1e-4)


def test_a_column_against_a_row_is_refused():
    """[B, 1] against [B] would become [B, B] without a word."""
    column, row, counts = torch.full((3, 1), 0.5), torch.full((3,), -3.0), torch.tensor([1, 2, 3])
    for wrong in ((column, row, counts), (row, column, counts), (row, row, counts[:, None]), (column, column, counts)):
        with pytest.raises(ValueError, match=r"must all be \[B\]"):
            log_count_mass(*wrong, DEPTH)
    assert [scores.shape for scores in QueryHeads(8, 4, DEPTH)(torch.randn(3, 8))] == [(3, DEPTH), (3,), (3,)]


@pytest.mark.parametrize("depth", range(1, 7))
def test_sets_of_one_size_sum_to_one_and_are_those_of_brute_force(depth):
    logits = torch.randn(depth, dtype=torch.float64, generator=torch.Generator().manual_seed(depth)) * 3
    for size in range(depth + 1):
        masks = every_set(depth, size)
        weights = (masks * logits).sum(1)
        found = log_set_probability(logits.expand(len(masks), -1), masks)
        torch.testing.assert_close(found, weights - torch.logsumexp(weights, 0))
        assert found.exp().sum().item() == pytest.approx(1)


def test_no_layer_and_all_layers_are_certain():
    logits = torch.tensor([[40.0, -3.0, 1e4], [0.0, 1e-4, -1e4]])
    for mask in (torch.zeros(2, 3, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)):
        assert log_set_probability(logits, mask).tolist() == [0.0, 0.0]


def test_gradient_of_the_set_probability():
    """Of the set minus the marginals: by numbers, and by what a conditional Bernoulli's marginals are."""
    logits = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mask = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 1, 0], [1, 1, 1, 1, 0]]).bool()
    assert torch.autograd.gradcheck(lambda x: log_set_probability(x, mask), (logits,))
    log_set_probability(logits, mask)[0].backward()
    masks = every_set(5, 2)
    chances = torch.softmax((masks * logits[0].detach()).sum(1), 0)
    torch.testing.assert_close(logits.grad[0], mask[0].double() - (masks * chances[:, None]).sum(0))


def sinkhorn_by_iterations(logits: torch.Tensor, count: int, temperature: float, rounds: int = 4000) -> torch.Tensor:
    """Marginals [L] by scaling rows and columns of the transport plan in turn (Cuturi, arXiv 1306.0895)."""
    masses = torch.tensor([count, len(logits) - count], dtype=logits.dtype).log()
    plan = torch.stack([logits / temperature, torch.zeros_like(logits)], 1)
    for _ in range(rounds):
        plan = plan - torch.logsumexp(plan, 0) + masses
        plan = plan - torch.logsumexp(plan, 1, keepdim=True)
    return plan[:, 0].exp()


@pytest.mark.parametrize("count", (1, 3, 5))
@pytest.mark.parametrize("temperature", (0.5, 1.0, 3.0))
def test_marginals_are_those_of_sinkhorns_iterations(count, temperature):
    """Their values and, since those iterations are differentiable, their gradients."""
    logits = torch.randn(DEPTH, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    weights = torch.arange(DEPTH, dtype=torch.float64)
    grads, values = [], []
    for iterated in (True, False):
        own = logits.clone().requires_grad_()
        if iterated:
            marginals = sinkhorn_by_iterations(own, count, temperature)
        else:
            marginals = torch.sigmoid(sinkhorn_logits(own[None], torch.tensor([count]), temperature, 60)[0])
        (marginals * weights).sum().backward()
        values.append(marginals.detach())
        grads.append(own.grad)
    torch.testing.assert_close(*values, atol=1e-9, rtol=0)
    torch.testing.assert_close(*grads, atol=1e-7, rtol=0)
    assert values[1].sum().item() == pytest.approx(count)


def test_cold_marginals_are_the_highest_scores():
    logits = torch.tensor([[3.0, -1.0, 2.0, 0.0, 1.0, -2.0]])
    cold = torch.sigmoid(sinkhorn_logits(logits, torch.tensor([2]), 0.02, 40))
    torch.testing.assert_close(cold, torch.tensor([[1.0, 0, 1, 0, 0, 0]]), atol=1e-4, rtol=0)
    warm = torch.sigmoid(sinkhorn_logits(logits, torch.tensor([2]), 1e4, 40))
    torch.testing.assert_close(warm, torch.full((1, DEPTH), 1 / 3), atol=1e-3, rtol=0)


def test_gumbel_marginals_are_smoothed_shares_of_hard_sets():
    """A layer far above is in every sample, and one far below in none; each sample has k."""
    logits = torch.tensor([[100.0, 0.0, 0.0, 0.0, -100.0]], requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    found = gumbel_marginals(logits, torch.tensor([2]), 1.0, 40, 400, generator)
    assert found[0, 0].item() == pytest.approx(401 / 402) and found[0, 4].item() == pytest.approx(1 / 402)
    assert found.sum().item() == pytest.approx((400 * 2 + 5) / 402)
    torch.testing.assert_close(found[0, 1:4], torch.full((3,), 1 / 3), atol=0.08, rtol=0)
    found[0, 1].backward()
    signs = torch.sign(logits.grad[0, 1:4])  # more of one layer, less of those that compete with it
    assert signs.tolist() == [1, -1, -1]
    again = gumbel_marginals(logits, torch.tensor([2]), 1.0, 40, 400, torch.Generator().manual_seed(0))
    assert torch.equal(found, again)


def scores_of(layers: torch.Tensor, ratio: torch.Tensor, log_std: torch.Tensor) -> QueryScores:
    return QueryScores(*(part.clone().requires_grad_() for part in (layers, ratio, log_std)))


def test_policy_by_brute_force_sums_to_one_over_all_sets():
    masks = torch.cat([every_set(4, size) for size in range(5)])
    logits = torch.tensor([0.3, -1.2, 2.0, 0.1]).expand(len(masks), -1)
    ratio, log_std = torch.full((len(masks),), -0.4), torch.full((len(masks),), -3.0)
    found = log_policy(QueryScores(logits, ratio, log_std), masks)
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-6)
    for method in ("sinkhorn", "gumbel"):
        torch.manual_seed(0)
        assert log_policy(QueryScores(logits, ratio, log_std), masks, method).exp().sum().item() < 1


@pytest.mark.parametrize("method", TOP_K)
def test_a_set_is_made_likelier_by_its_own_gradient(method):
    scores = scores_of(torch.zeros(1, DEPTH), torch.zeros(1), torch.full((1,), -3.0))
    mask = mask_of({0, 4})[None]
    torch.manual_seed(0)
    log_policy(scores, mask, method).sum().backward()
    assert (scores.layers.grad[mask] > 0).all() and (scores.layers.grad[~mask] < 0).all()
    assert scores.ratio.grad.item() < 0  # from a half down to a third


NUMBERS = st.one_of(
    st.floats(-1e4, 1e4, width=32), st.floats(-3, 3, width=32), st.sampled_from((0.0, -1e4, 1e4, 88.0, -104.0))
)


@st.composite
def policies(draw):
    depth = draw(st.integers(1, 9))
    layers = draw(st.lists(NUMBERS, min_size=depth, max_size=depth))
    mask = draw(st.lists(st.booleans(), min_size=depth, max_size=depth))
    return layers, mask, draw(NUMBERS), draw(st.floats(-7, -3, width=32))


@settings(max_examples=300, deadline=None)
@given(policies(), st.sampled_from(TOP_K))
def test_log_policies_are_never_above_zero_and_have_finite_gradients(policy, method):
    layers, mask, ratio, log_std = policy
    scores = scores_of(torch.tensor([layers]), torch.tensor([ratio]), torch.tensor([log_std]))
    found = log_policy(scores, torch.tensor([mask]), method, temperature=0.5)
    found.sum().backward()
    assert found.item() <= 0 and found.isfinite()
    assert all(part.grad.isfinite().all() for part in scores)
