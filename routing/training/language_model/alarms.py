"""Signs that the choice between mechanisms collapsed: a block that takes one for all, or a router that is certain."""

from __future__ import annotations

from collections.abc import Sequence

from routing.training.end_to_end.alarms import LOW, RARE, entropy

CERTAIN = 0.01  # nats; a router that gives 0.1 % to the other mechanism for every token has an entropy of 0.008


def alarms(shares: Sequence[float], blocks: Sequence[int], routing_entropy: float | None = None) -> list[str]:
    """What is wrong with shares of tokens that take softmax in each routed block, as sentences; nothing if all is well.

    Args:
        blocks: indices of these blocks.
        routing_entropy: mean entropy of a token's probabilities, in nats, where a router learns.
    """
    found = []
    for block, share in zip(blocks, shares, strict=True):
        if share < RARE:
            found.append(f"block {block} collapsed to gdn: {share:.2%} of the tokens take softmax")
        elif share > 1 - RARE:
            found.append(f"block {block} collapsed to softmax: {1 - share:.2%} of the tokens take gdn")
    if shares and (mean := sum(map(entropy, shares)) / len(shares)) < LOW:
        found.append(
            f"low entropy of shares: {mean:.3f} nats a block, so nearly all tokens have the same route; raise "
            "--balance_weight, or lower --learning_rate"
        )
    if routing_entropy is not None and routing_entropy < CERTAIN:
        found.append(
            f"low entropy of routing: {routing_entropy:.4f} nats a token, so the router is certain of every token and "
            "noise explores nothing (tau changes gradients, no draw); lower --learning_rate, or raise --balance_weight"
        )
    return found
