"""Loss of a routed model on held-out text, with what it executed and how long that took. No noise, no padding."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from routing.tasks.sequences import Sequences, TextBatch, text_batch


@dataclass
class Measured:
    """Sums over rows of text.

    Attributes:
        losses: cross-entropy in nats of each row, summed over its predicted tokens.
        predicted: predicted tokens of each row.
        tokens: real tokens of all rows.
        executed: [L], how many of them ran each layer.
        seconds: inside the model.
    """

    losses: list[float] = field(default_factory=list)
    predicted: list[int] = field(default_factory=list)
    tokens: int = 0
    executed: torch.Tensor | None = None
    seconds: float = 0.0

    @property
    def loss(self) -> float:
        """Nats a predicted token."""
        return sum(self.losses) / sum(self.predicted)

    @property
    def layer_shares(self) -> list[float]:
        """Share of the tokens that ran each layer."""
        return (self.executed / self.tokens).tolist()

    @property
    def layers(self) -> float:
        """Layers executed a token."""
        return float(self.executed.sum() / self.tokens)

    def add(self, other: Measured) -> None:
        self.losses += other.losses
        self.predicted += other.predicted
        self.tokens += other.tokens
        self.executed = other.executed if self.executed is None else self.executed + other.executed
        self.seconds += other.seconds

    def facts(self) -> dict:
        return {"loss": self.loss, "layers": self.layers, "tokens_per_second": self.tokens / self.seconds}


class Batches(Sequence):
    """All rows, in batches on a device, each made when it is asked for; slices are such sequences too.

    Args:
        starts: first row of each batch.
        make: the batch that begins with a row.
    """

    def __init__(self, starts: range, make: Callable[[int], TextBatch]):
        self._starts, self._make = starts, make

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Batches(self._starts[index], self._make)
        return self._make(self._starts[index])


def batches_of(rows: Sequences, batch_size: int, prompt_tokens: int, device: torch.device) -> Batches:
    """All rows, in batches on a device."""

    def make(start: int) -> TextBatch:
        part = slice(start, start + batch_size)
        batch = text_batch(rows.ids[part], rows.lengths[part], prompt_tokens)
        return TextBatch(*(tensor.to(device) for tensor in batch))

    return Batches(range(0, len(rows), batch_size), make)


@torch.no_grad()  # Not in inference mode: weights that processes share would be tensors of it.
def measure(model, batch: TextBatch, routes: torch.LongTensor | None = None) -> Measured:
    """One batch through a routed model, along its own routes or the given ones [B, L]."""
    if batch.ids.device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    logits = model(
        batch.ids, attention_mask=batch.mask, prompt_lengths=batch.prompt_lengths, routes=routes, use_cache=False
    ).logits
    if batch.ids.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    losses = []
    for row, targets, counted in zip(logits, batch.targets, batch.counted, strict=True):
        loss = torch.nn.functional.cross_entropy(row[counted].float(), targets[counted], reduction="sum")
        losses.append(float(loss))
    lengths = batch.mask.sum(1).cpu()
    executed = (model.last_routes.cpu().double() * lengths[:, None]).sum(0)
    return Measured(losses, batch.counted.sum(1).tolist(), int(lengths.sum()), executed, seconds)


def validate(model, batches: Sequence[TextBatch], routes: Callable[[int], torch.LongTensor] | None = None) -> Measured:
    """All batches, in evaluation mode; `routes` gives those of the n-th batch."""
    total, training = Measured(), model.training
    model.eval()
    for number, batch in enumerate(batches):
        total.add(measure(model, batch, None if routes is None else routes(number)))
    model.train(training)
    return total
