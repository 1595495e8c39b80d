"""Losses, weights and metrics of router training, by arithmetic worked by hand and against scikit-learn."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, recall_score

from routing.objectives.supervised import CLASSES, class_counts, class_weights, focal_loss, route_metrics

PUBLISHED = torch.tensor([4399, 120956, 1457])
LOGITS = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))
LABELS = torch.tensor([0, 1])
WEIGHTS = torch.tensor([2.0, 0.5, 1.0])


def test_focal_loss_by_hand():
    """Two labels with p = 0.5 and 0.2, weights 2 and 0.5, gamma 2."""
    expected = (-2.0 * 0.5**2 * math.log(0.5) - 0.5 * 0.8**2 * math.log(0.2)) / 2
    assert focal_loss(LOGITS, LABELS, WEIGHTS, 2.0).item() == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx(0.430796, abs=1e-5)


def test_gamma_zero_is_weighted_cross_entropy_over_all_labels():
    """torch's own weighted mean divides by the summed weights; this loss divides by the number of labels."""
    expected = torch.nn.functional.cross_entropy(LOGITS, LABELS, WEIGHTS, reduction="sum") / 2
    torch.testing.assert_close(focal_loss(LOGITS, LABELS, WEIGHTS, 0.0), expected)
    assert expected.item() == pytest.approx((2.0 * math.log(2) + 0.5 * math.log(5)) / 2)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]))
def test_focal_loss_is_a_mean_over_any_shape(seed, gamma):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 5, 3, generator=generator)
    labels = torch.randint(3, (4, 5), generator=generator)
    alone = [focal_loss(logits[i, j], labels[i, j], WEIGHTS, gamma) for i in range(4) for j in range(5)]
    torch.testing.assert_close(focal_loss(logits, labels, WEIGHTS, gamma), torch.stack(alone).mean())
    shifted = focal_loss(logits + 7.0, labels, WEIGHTS, gamma)
    torch.testing.assert_close(shifted, focal_loss(logits, labels, WEIGHTS, gamma), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("label", [0, 1, 2])
def test_gradient_pushes_the_right_class_up(label, gamma):
    logits = torch.tensor([[0.3, -0.2, 0.1]], requires_grad=True)
    focal_loss(logits, torch.tensor([label]), torch.ones(3), gamma).backward()
    assert logits.grad[0, label] < 0
    assert all(logits.grad[0, other] > 0 for other in range(3) if other != label)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_gradient_is_finite_when_the_router_is_sure(gamma):
    """Router logits of 100 are p = 1 in float32; every gamma from 0 on may be chosen."""
    logits = torch.tensor([[100.0, 0.0, 0.0], [0.0, 100.0, 0.0]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0, 0]), torch.ones(3), gamma)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_focal_loss_cares_less_for_easy_labels():
    easy, hard = torch.tensor([4.0, 0.0, 0.0]), torch.tensor([0.5, 0.0, 0.0])
    zero = torch.tensor(0)
    share = [
        (focal_loss(easy, zero, torch.ones(3), gamma) / focal_loss(hard, zero, torch.ones(3), gamma)).item()
        for gamma in (0.0, 1.0, 2.0)
    ]
    assert share[0] > 10 * share[1] > 10 * share[2]


def test_class_counts():
    routes = torch.tensor([[1, 1, 0], [1, 2, 1]])
    assert class_counts(routes).tolist() == [1, 4, 1]
    assert class_counts(torch.tensor([[1, 1]])).tolist() == [0, 2, 0]
    assert CLASSES == ("skip", "execute", "repeat")


def test_effective_weights_by_hand():
    """beta 0.5, counts 1, 2, 3: (1 - 0.5) / (1 - 0.5^n) = 1, 2/3, 4/7, which add up to 47/21."""
    weights = class_weights(torch.tensor([1, 2, 3]), "effective", 0.5)
    torch.testing.assert_close(weights, torch.tensor([1.0, 2 / 3, 4 / 7]) * 3 * 21 / 47)


def test_effective_weights_on_the_published_counts():
    """Nearly no rebalancing, although there are 83 times as many labels of one class as of another."""
    weights = class_weights(PUBLISHED, "effective", 0.999)
    torch.testing.assert_close(weights, torch.tensor([0.92, 0.91, 1.18]), atol=0.01, rtol=0)
    assert class_weights(PUBLISHED, "effective", 0.99999)[2] > 2


def test_inverse_and_equal_weights():
    torch.testing.assert_close(
        class_weights(torch.tensor([1, 2, 4]), "inverse", 0.999), torch.tensor([12 / 7, 6 / 7, 3 / 7])
    )
    assert class_weights(PUBLISHED, "none", 0.999).tolist() == [1.0, 1.0, 1.0]
    torch.testing.assert_close(class_weights(PUBLISHED, "effective", 0.0), torch.ones(3))


@pytest.mark.parametrize("weighting", ["effective", "inverse", "none"])
@pytest.mark.parametrize("counts", [[0, 5, 9], [3, 7, 0], [0, 4, 0], [4399, 120956, 1457]])
def test_weights_have_mean_one_over_the_classes_that_occur(weighting, counts):
    weights = class_weights(torch.tensor(counts), weighting, 0.999)
    assert weights.dtype == torch.float32 and torch.isfinite(weights).all()
    assert [weight == 0 for weight in weights.tolist()] == [count == 0 for count in counts]
    assert weights[torch.tensor(counts) > 0].mean().item() == pytest.approx(1.0)


def test_rarer_classes_weigh_more():
    for weighting in ("effective", "inverse"):
        skip, execute, repeat = class_weights(torch.tensor([50, 500, 5]), weighting, 0.999).tolist()
        assert repeat > skip > execute


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([(0, 1, 2), (0, 1), (1, 2), (1,)]), st.sampled_from([(0, 1, 2), (1,)]))
def test_metrics_are_those_of_scikit_learn(seed, labelled, said):
    """Classes that occur in neither are no part of the mean, as in scikit-learn; absent ones score 0."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(labelled)[torch.randint(len(labelled), (6, 5), generator=generator)]
    predicted = torch.tensor(said)[torch.randint(len(said), (6, 5), generator=generator)]
    metrics = route_metrics(predicted, labels)
    flat = {"y_true": labels.flatten().numpy(), "y_pred": predicted.flatten().numpy(), "zero_division": 0}
    assert metrics["macro_f1"] == pytest.approx(f1_score(average="macro", **flat))
    each = f1_score(average=None, labels=[0, 1, 2], **flat)
    assert [metrics[f"f1_{name}"] for name in CLASSES] == pytest.approx(each.tolist())
    recall = recall_score(average=None, labels=[0, 1, 2], **flat)
    assert (metrics["acc_skip"], metrics["acc_repeat"]) == pytest.approx((recall[0], recall[2]))
    assert metrics["avg_layers"] == pytest.approx(predicted.sum().item() / 6)


def test_metrics_by_hand():
    labels = torch.tensor([[0, 1, 1, 2], [1, 1, 1, 1]])
    predicted = torch.tensor([[0, 1, 0, 1], [1, 1, 1, 1]])
    metrics = route_metrics(predicted, labels)
    assert metrics["f1_skip"] == pytest.approx(2 / 3)
    assert metrics["f1_execute"] == pytest.approx(2 * 5 / (6 + 6))
    assert metrics["f1_repeat"] == 0
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 5 / 6) / 3)
    assert (metrics["acc_skip"], metrics["acc_repeat"], metrics["avg_layers"]) == (1.0, 0.0, 3.0)


def test_a_router_that_always_runs_is_seen_through():
    """Accuracy would be 90 %: macro-F1 and the recall of skips show that nothing was learned."""
    labels = torch.ones(10, 10, dtype=torch.long)
    labels[:, 3] = 0
    metrics = route_metrics(torch.ones_like(labels), labels)
    assert metrics["macro_f1"] < 0.5 and metrics["acc_skip"] == 0 and metrics["avg_layers"] == 10
