"""Supervised routers: focal loss on the labelled route (Dr.LLM, arXiv 2510.12773, section 3).

Focal loss: Lin et al., arXiv 1708.02002, equation 5. Effective number of samples: Cui et al., arXiv 1901.05555,
section 4. Deviation: class counts come from the training labels, where published code fixes them.
"""

from __future__ import annotations

import torch

CLASSES = ("skip", "execute", "repeat")


def class_counts(routes: torch.LongTensor) -> torch.LongTensor:
    """How often each class occurs in labels of any shape; [3]."""
    return torch.bincount(routes.flatten(), minlength=len(CLASSES))


def class_weights(counts: torch.LongTensor, weighting: str, beta: float) -> torch.Tensor:
    """Weights [3] with mean 1 over the classes that occur; a class without a label has weight 0.

    Args:
        counts: labels of each class, [3].
        weighting: effective: (1 - beta) / (1 - beta ** n); inverse: 1 / n; none: equal.
        beta: of the effective number of samples. With 0.999 and thousands of labels per class the weights are
            nearly equal (0.92 / 0.90 / 1.18 on the published counts); a beta nearer to 1 rebalances more.
    """
    number = counts.double()
    if weighting == "effective":
        weights = (1 - beta) / (1 - beta**number)
    elif weighting == "inverse":
        weights = 1 / number
    else:
        weights = torch.ones_like(number)
    occurs = counts > 0
    weights = torch.where(occurs, weights, 0.0)
    return (weights * occurs.sum() / weights.sum()).float()


def focal_loss(logits: torch.Tensor, labels: torch.LongTensor, weights: torch.Tensor, gamma: float) -> torch.Tensor:
    """Mean over all labels of -w_y (1 - p_y)^gamma log p_y.

    Args:
        logits: [..., 3].
        labels: [...] in {0, 1, 2}.
        weights: [3].
        gamma: 0 gives the weighted cross-entropy, divided by the number of labels.
    """
    log_p = torch.log_softmax(logits, dim=-1).gather(-1, labels[..., None])[..., 0]
    # At p = 1 the power has no gradient for gamma below 1.
    error = (1 - log_p.exp()).clamp_min(torch.finfo(log_p.dtype).tiny)
    return (-weights[labels] * error**gamma * log_p).mean()


def route_metrics(predicted: torch.LongTensor, labels: torch.LongTensor) -> dict[str, float]:
    """Agreement of predicted with labelled counts, both [N, L].

    Returns:
        f1 of each class and their mean over the classes that occur in either; acc_skip and acc_repeat, the share
        of such labels that were predicted so (0 where there are none); avg_layers, predicted executions an input.
    """
    f1, present = {}, []
    recall = {}
    for index, name in enumerate(CLASSES):
        hit = int(((predicted == index) & (labels == index)).sum())
        said, wanted = int((predicted == index).sum()), int((labels == index).sum())
        f1[f"f1_{name}"] = 2 * hit / (said + wanted) if said + wanted else 0.0
        recall[name] = hit / wanted if wanted else 0.0
        if said + wanted:
            present.append(f1[f"f1_{name}"])
    return {
        "macro_f1": sum(present) / len(present),
        **f1,
        "acc_skip": recall["skip"],
        "acc_repeat": recall["repeat"],
        "avg_layers": float(predicted.sum(1).double().mean()),
    }
