"""Loss of a hybrid model on held-out text and what its tokens chose. No noise, no balance loss, no padding."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from routing.objectives.hybrid import balance_loss, routing_entropy
from routing.tasks.sequences import TextBatch
from routing.training.end_to_end.alarms import entropy


@dataclass
class Measured:
    """Sums over rows of text.

    Attributes:
        nats: cross-entropy of all predicted tokens.
        predicted: how many they are.
        tokens: real tokens.
        softmax: [R], how many of them took softmax attention in each routed block; empty where nothing is routed.
        balance: balance loss of each batch, times its tokens; 0 where no router learns.
        entropy: entropy in nats of the probabilities of each token, mean over blocks; 0 where no router learns.
        seconds: inside the model.
    """

    nats: float
    predicted: int
    tokens: int
    softmax: torch.Tensor
    balance: float
    entropy: float
    seconds: float

    def __add__(self, other: Measured) -> Measured:
        return Measured(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    @property
    def loss(self) -> float:
        """Nats a predicted token: the language model alone."""
        return self.nats / self.predicted

    @property
    def shares(self) -> list[float]:
        """Share of the tokens that took softmax attention in each routed block."""
        return (self.softmax / self.tokens).tolist()

    def facts(self) -> dict[str, float]:
        """What is logged of it; figures of routing where there is any."""
        found = {
            "loss": self.loss,
            "perplexity": math.exp(self.loss) if self.loss < 700 else math.inf,  # of a run that diverges
            "tokens_per_second": self.tokens / self.seconds,
        }
        if self.shares:
            found["share_entropy"] = sum(map(entropy, self.shares)) / len(self.shares)
        if self.balance:
            found |= {"balance_loss": self.balance / self.tokens, "routing_entropy": self.entropy / self.tokens}
        return found


def needed_mask(mask: torch.LongTensor) -> torch.LongTensor | None:
    """None where there is no padding, which saves the model the work around it."""
    return None if bool(mask.all()) else mask


@torch.inference_mode()
def measure(model, batch: TextBatch) -> Measured:
    """One batch through a model in evaluation mode."""
    if batch.ids.device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    output = model(batch.ids, attention_mask=needed_mask(batch.mask), use_cache=False)
    if batch.ids.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    counted, real = batch.counted, batch.mask.bool()
    nats = torch.nn.functional.cross_entropy(output.logits[counted].float(), batch.targets[counted], reduction="sum")
    tokens = int(real.sum())
    softmax, balance, uncertain = torch.zeros(0), 0.0, 0.0
    if output.mechanisms is not None:
        softmax = output.mechanisms[real].double().sum(0).cpu()
    if learns_to_route(model.config):
        balance = float(balance_loss(output.router_logits, real)) * tokens
        uncertain = float(routing_entropy(output.router_logits, real)) * tokens
    return Measured(float(nats), int(counted.sum()), tokens, softmax, balance, uncertain, seconds)


def learns_to_route(config) -> bool:
    """Whether a router with weights decides in some block."""
    return "routed" in config.pattern and config.router == "learned"


def validate(model, batches: Sequence[TextBatch]) -> Measured:
    """All batches, one or more, in evaluation mode."""
    training = model.training
    model.eval()
    first, *rest = (measure(model, batch) for batch in batches)
    model.train(training)
    return sum(rest, first)
