"""KL divergence of next tokens from a teacher's, without ever holding all logits."""

from __future__ import annotations

import torch
from torch import nn

from routing.models.head import Head

ROWS = 256  # tokens whose logits are in memory at once: each row is as wide as the vocabulary


def divergence(student: torch.Tensor, teacher: torch.Tensor, head: Head) -> torch.Tensor:
    """Sum over tokens of KL(teacher || student) in nats, of normalised states [N, D].

    Logits are made ROWS at a time. Their gradient is p - q, so that of the states is known with the value, and no
    logits are kept or made again: they are a third of all work of a small model.

    Args:
        head: frozen.
    """
    value, slopes = 0.0, []
    with torch.no_grad():
        for own, target in zip(student.split(ROWS), teacher.split(ROWS), strict=True):
            logits = head(own).float()
            log_p, log_q = torch.log_softmax(logits, -1), torch.log_softmax(head(target).float(), -1)
            value += nn.functional.kl_div(log_p, log_q, reduction="sum", log_target=True)
            if student.requires_grad:
                slopes.append(head.pulled_back(log_p.exp() - log_q.exp(), logits))
    if not slopes:
        return value
    linear = (student * torch.cat(slopes)).sum()
    return value + linear - linear.detach()
