"""reinforce: a policy over the routable layers, one action for the whole batch, learned from its cost.

The router reads the mean raw embedding over the prompt tokens of the batch; a ~ Bernoulli(sigmoid(z)); the layers that
were chosen run, no others. Cost = CE + lambda sum(a), without gradient; policy loss -(baseline - cost) log pi(a). The
adapters learn from the language-model loss of the same forward. Source: Williams 1992; DLR, lambda 0.05. Deviation: a
baseline, the moving average of costs or the cost of the greedy action (self-critical, Rennie et al., arXiv 1612.00563).
"""

from __future__ import annotations

import torch

from routing.objectives.end_to_end import TrainingStep
from routing.objectives.losses import bernoulli_log_probability, cross_entropy, policy_gradient
from train_models.decoder_parts import scaled
from train_models.global_routers import masked_mean

DECAY = 0.9  # of the moving average


def policy_logits(step: TrainingStep) -> torch.Tensor:
    """[R], of the mean embedding (as the first layer gets it) of all prompt tokens of the batch."""
    batch = step.batch
    prompt = batch.mask.bool() & (
        torch.arange(batch.ids.shape[1], device=batch.ids.device) < batch.prompt_lengths[:, None]
    )
    embedded = scaled(step.model.model, step.model.get_input_embeddings()(batch.ids))
    prompt = prompt.to(embedded.device)
    return step.model.model.routers(masked_mean(embedded.flatten(0, 1)[None], prompt.flatten()[None]))[0]


def moving_average(memory: dict[str, torch.Tensor], cost: torch.Tensor) -> torch.Tensor:
    """The average before this cost, which it then takes in; the first cost is its own baseline."""
    baseline = torch.where(memory["costs"] > 0, memory["baseline"], cost)
    memory["baseline"].copy_(DECAY * baseline + (1 - DECAY) * cost)
    memory["costs"] += 1
    return baseline


def loss(step: TrainingStep) -> dict[str, torch.Tensor]:
    arguments, batch = step.arguments, step.batch
    z = policy_logits(step).to(batch.ids.device)  # The router of a model on several devices may have another.
    actions = torch.bernoulli(torch.sigmoid(z.detach()))
    losses = step.language_losses(step.logits(routes=step.same_route(actions)))
    cost = losses["ce_loss"].detach() + arguments.layer_penalty * actions.sum()
    if arguments.baseline == "self_critical":
        greedy = z > 0
        with torch.no_grad():
            logits = step.logits(routes=step.same_route(greedy))
            baseline = cross_entropy(logits, batch.targets, batch.counted) + arguments.layer_penalty * greedy.sum()
    else:
        baseline = moving_average(step.memory, cost)
    policy = policy_gradient(bernoulli_log_probability(z, actions), cost, baseline)
    quality = losses["quality"] if losses["quality"].requires_grad else 0.0  # A frozen base learns nothing from it.
    run_shares = (z.detach() > 0).float()
    return losses | {"gate_loss": policy, "run_shares": run_shares, "loss": quality + policy}
