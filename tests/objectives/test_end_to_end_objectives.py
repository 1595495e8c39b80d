"""Objectives that train end to end: losses by hand, signs of gradients, padding, the teacher, real skipping."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import LAYERS, LLAMA, PHI3, assert_near, padded, random_rows, routed_from, stock_model
from peft import LoraConfig

from routing.common.errors import UserError
from routing.objectives import losses, reinforce, stochastic_depth
from routing.objectives.gumbel import gumbel_gates, logistic_noise, straight_through
from routing.objectives.table import END_TO_END
from routing.tasks.sequences import text_batch
from routing.training.end_to_end.arguments import EndToEndArguments
from routing.training.end_to_end.lora import (
    add_lora,
    lora_config,
    lora_off,
    lora_state,
    merge_lora,
    shell_of,
    unknown_problems,
)
from routing.training.end_to_end.training import EndToEnd

KEPT = 2
ROUTABLE = LAYERS - KEPT


def arguments_for(objective: str, **given) -> EndToEndArguments:
    fields = {
        "run_name": "test",
        "kept_layers": KEPT,
        "router_sizes": "8",
        "lora_dropout": 0.0,
        "router_bias_init": 0.0,
    }
    return EndToEndArguments(objective=objective, **(fields | given))


def module_for(objective: str, family=LLAMA, **given) -> EndToEnd:
    """A tiny model, its router and adapters drawn at random, ready for a step of training."""
    arguments = arguments_for(objective, **given)
    model = routed_from(family, stock_model(family), **arguments.model_fields(LAYERS))
    model.requires_grad_(False)
    torch.manual_seed(1)
    model.model.init_routers()
    adapters = None
    if arguments.trainable == "lora":
        adapters = add_lora(model, lora_config(arguments))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.05)
    model.model.routers.requires_grad_(True)
    return EndToEnd(model, adapters, arguments).train()


def batch_of(lengths=(9, 5, 12), prompt: int = 2, extra: int = 0):
    """A batch padded on the right, with `extra` columns of padding."""
    ids, mask = padded(random_rows(lengths), "right")
    ids = torch.nn.functional.pad(ids, (0, extra))
    found = text_batch(ids[:, : ids.shape[1] - extra], mask.sum(1), prompt)
    if not extra:
        return found
    wide = [torch.nn.functional.pad(tensor, (0, extra)) for tensor in found[:4]]
    return type(found)(*wide, found.prompt_lengths)


def test_cross_entropy_and_distillation_by_hand():
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.8, 0.1, 0.1]]]))
    targets, counted = torch.tensor([[0, 1, 2]]), torch.tensor([[True, True, False]])
    expected = -(math.log(0.5) + math.log(0.2)) / 2
    assert losses.cross_entropy(logits, targets, counted).item() == pytest.approx(expected, rel=1e-5)
    teacher = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.2, 0.2, 0.6], [0.1, 0.1, 0.8]]]))
    one = 0.2 * math.log(0.2 / 0.1) + 0.6 * math.log(0.6 / 0.7)
    assert losses.distillation(logits, teacher, counted, 1.0).item() == pytest.approx(one / 2, rel=1e-4)
    assert losses.distillation(logits, logits, counted, 2.0).item() == pytest.approx(0, abs=1e-6)

    def softened(row):
        roots = [math.sqrt(p) for p in row]
        return [root / sum(roots) for root in roots]

    q, p = softened((0.2, 0.2, 0.6)), softened((0.1, 0.2, 0.7))
    heated = 4 * sum(a * math.log(a / b) for a, b in zip(q, p)) / 2
    assert losses.distillation(logits, teacher, counted, 2.0).item() == pytest.approx(heated, rel=1e-4)


def test_gate_losses_by_hand_and_by_sign():
    gates = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]])  # the last token is padding
    shares = losses.mean_gates(gates, torch.tensor([[True, True, False]]))
    assert shares.tolist() == [1.0, 0.5]
    assert losses.layer_penalty(shares).item() == 1.5
    assert losses.skip_target(shares, 0.4).item() == pytest.approx((0.25 - 0.4) ** 2)
    for share, sign in ((0.9, 1), (0.3, -1)):  # too many run: the loss falls with fewer, and the other way round
        share = torch.tensor([share], requires_grad=True)
        losses.skip_target(share, 0.4).backward()
        assert torch.sign(share.grad).item() == sign
    half = torch.tensor([0.5, 0.5])
    assert losses.gate_entropy(half).item() == pytest.approx(math.log(2))
    low = torch.tensor([0.1], requires_grad=True)
    losses.gate_entropy(low).backward()
    assert low.grad.item() == pytest.approx(math.log(0.9 / 0.1), rel=1e-4)


@pytest.mark.parametrize("cost, direction", ((2.0, 1), (0.5, -1)))
def test_reinforce_makes_cheap_actions_likelier(cost, direction):
    """Action 1 was taken with p = 0.5; against a baseline of 1, a cost of 2 pushes its logit down."""
    logits = torch.zeros(1, requires_grad=True)
    log_probability = losses.bernoulli_log_probability(logits, torch.ones(1))
    assert log_probability.item() == pytest.approx(math.log(0.5))
    losses.policy_gradient(log_probability, torch.tensor(cost), 1.0).backward()
    assert logits.grad.item() == pytest.approx((cost - 1.0) * 0.5)  # d log sigmoid(0) = 0.5
    assert torch.sign(logits.grad).item() == direction


def test_moving_average_of_costs():
    memory = {"baseline": torch.zeros(()), "costs": torch.zeros((), dtype=torch.long)}
    assert reinforce.moving_average(memory, torch.tensor(4.0)) == 4.0
    assert reinforce.moving_average(memory, torch.tensor(2.0)) == 4.0
    assert memory["baseline"].item() == pytest.approx(3.8) and memory["costs"] == 2


def test_straight_through_is_hard_forward_and_soft_backward():
    logits = torch.tensor([-3.0, 0.1, 2.0], requires_grad=True)
    gates = gumbel_gates(logits, 0.5, torch.tensor([0.0, -0.2, 0.0]))
    assert gates.tolist() == [0.0, 0.0, 1.0]
    gates.sum().backward()
    soft = torch.sigmoid((logits.detach() + torch.tensor([0.0, -0.2, 0.0])) / 0.5)
    assert_near(logits.grad, soft * (1 - soft) / 0.5, 1e-6)
    value = straight_through(torch.tensor([True, False]), torch.rand(2, requires_grad=True))
    assert value.tolist() == [1.0, 0.0]


def test_gates_run_as_often_as_the_sigmoid_says():
    """The difference of two Gumbel variables is logistic."""
    torch.manual_seed(0)
    logits = torch.full((200_000,), 0.7)
    gates = gumbel_gates(logits, 1.0, logistic_noise(logits))
    assert gates.mean().item() == pytest.approx(torch.sigmoid(torch.tensor(0.7)).item(), abs=0.005)


def test_probabilities_of_dropped_layers():
    assert stochastic_depth.drop_probabilities(4, 0.5, "uniform") == [0.5] * 4
    assert stochastic_depth.drop_probabilities(4, 0.5, "linear") == [0.125, 0.25, 0.375, 0.5]
    fields = stochastic_depth.fields(arguments_for("stochastic_depth", residual_scaling=True), LAYERS)
    assert fields == {"residual_scale": [1.0] * KEPT + [0.5] * ROUTABLE}


CASES = [(name, router) for name, plan in END_TO_END.items() for router in plan.routers]
TRAINED = [(*case, "lora") for case in CASES]
# On a frozen base the others have nothing to train, which the arguments refuse.
TRAINED += [(name, router, "router") for name, router in CASES if not END_TO_END[name].trains_base]


@pytest.mark.parametrize("objective, router, trainable", TRAINED)
def test_gradients_reach_what_is_trained_and_nothing_else(family, objective, router, trainable):
    targets = {"lora_targets": "qkv_proj,o_proj"} if family.name == "phi3" else {}  # One projection for all three.
    module = module_for(objective, family, router=router, trainable=trainable, drop_probability=0.2, **targets)
    torch.manual_seed(0)
    touched = set()
    for _ in range(8):  # A layer that is never run gives its adapters no gradient, so several draws.
        found = module(**batch_of()._asdict())
        found["loss"].backward()
        touched |= {n for n, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert touched == {name for name, _ in module.named_parameters()}
    learned = any("/routers/" in name for name in touched)
    assert learned == (router not in ("none", "random_token"))
    assert any("lora" in name for name in touched) == (trainable == "lora")
    frozen = [p for n, p in module.routed.named_parameters() if "lora" not in n and "routers" not in n]
    assert frozen and all(parameter.grad is None for parameter in frozen)


@pytest.mark.parametrize("objective, router", CASES)
def test_padding_changes_nothing(objective, router):
    """Losses, gates and counts of a batch with more padding are the same; noise is drawn alike for the real tokens."""
    module = module_for(objective, router=router, ce_weight=0.5)

    def losses_of(batch):
        noise = torch.rand(3, 40, ROUTABLE, generator=torch.Generator().manual_seed(5))
        original = torch.rand_like

        def fixed(like, **kwargs):
            return noise[:, : like.shape[1]] if like.ndim == 3 else noise[: len(like), 0]

        torch.manual_seed(3)
        module.steps.zero_(), module.costs.zero_()
        try:
            torch.rand_like = fixed
            return module(**batch._asdict())
        finally:
            torch.rand_like = original

    narrow, wide = losses_of(batch_of()), losses_of(batch_of(extra=7))
    assert set(narrow) == set(wide) and {"ce_loss", "kd_loss", "loss"} <= set(narrow)
    for name, value in narrow.items():
        assert_near(value.detach(), wide[name].detach())


def test_prompt_and_padding_are_no_targets():
    batch = batch_of(lengths=(9, 5), prompt=3)
    assert batch.counted.sum(1).tolist() == [6, 2]
    for row, length in zip(range(2), (9, 5)):
        places = batch.counted[row].nonzero()[:, 0]
        assert places.tolist() == list(range(2, length - 1))
        assert torch.equal(batch.targets[row, places], batch.ids[row, places + 1])
    whole = text_batch(batch.ids, torch.tensor([9, 5]), 0)
    assert whole.counted.sum(1).tolist() == [8, 4] and whole.prompt_lengths.tolist() == [9, 5]


@pytest.mark.parametrize("objective, router", CASES)
def test_teacher_logits_are_those_of_the_base(objective, router):
    module = module_for(objective, router=router, residual_scaling=True)
    batch = batch_of()
    base = stock_model(LLAMA)(batch.ids, attention_mask=batch.mask).logits
    teacher = module.teacher_logits(batch)
    real = batch.mask.bool()
    assert_near(teacher[real], base[real].detach())
    assert not teacher.requires_grad
    if module.arguments.trainable == "lora":
        student = module.routed.eval()(batch.ids, attention_mask=batch.mask, routes=torch.ones(3, LAYERS).long()).logits
        assert (student[real] - base[real]).abs().max() > 1e-3  # the adapters are on again


def test_layers_are_really_left_out_in_training():
    """Stochastic depth and REINFORCE run the chosen layers alone, for the whole batch."""
    for objective in ("stochastic_depth", "reinforce"):
        module = module_for(objective, trainable="lora")
        runs = []
        for layer in module.routed.model.layers:
            layer.mlp.register_forward_hook(lambda _, inputs, __, runs=runs: runs.append(len(inputs[0])))
        torch.manual_seed(0)
        for _ in range(6):
            runs.clear()
            module(**batch_of()._asdict())
            assert set(runs) == {3} and len(runs) == module.routed.last_routes[0].sum()
        seen = {tuple(row) for row in module.routed.last_routes.tolist()}
        assert len(seen) == 1


def test_random_gates_change_from_step_to_step_and_are_those_of_a_resumed_run():
    module, batch = module_for("random"), batch_of()
    first, second = (module(**batch._asdict())["loss"].item() for _ in range(2))
    assert first != second
    module.steps.fill_(1)
    assert module(**batch._asdict())["loss"].item() == second
    assert module.routed.config.random_seed == 0


def test_self_critical_baseline_is_the_cost_of_the_greedy_action(monkeypatch):
    module = module_for("reinforce", baseline="self_critical")
    monkeypatch.setattr(torch, "bernoulli", lambda p: (p > 0.5).float())  # the action drawn is the greedy one
    module.routed.eval()  # No dropout between the two.
    found = module(**batch_of()._asdict())
    assert found["gate_loss"].item() == pytest.approx(0, abs=1e-5)


def test_merged_adapters_equal_those_beside_the_weights():
    module = module_for("dense")
    module.eval()
    ids = random_rows((9,))[0][None]
    expected = module.routed(ids).logits.detach()
    fresh = routed_from(LLAMA, stock_model(LLAMA), **module.arguments.model_fields(LAYERS))
    before = fresh(ids).logits.detach()
    merge_lora(fresh, lora_config(module.arguments), lora_state(module._held[1]))
    assert_near(fresh(ids).logits, expected)
    assert (before - expected).abs().max() > 1e-3
    assert not any("lora" in name for name, _ in fresh.named_parameters())


def test_adapters_off_restores_them_after_an_error():
    module = module_for("dense")
    with pytest.raises(RuntimeError), lora_off(module._held[1]):
        raise RuntimeError
    ids = random_rows((9,))[0][None]
    assert (module.routed(ids).logits - stock_model(LLAMA)(ids).logits).abs().max() > 1e-3


def test_unknown_names_of_linear_maps_are_refused():
    model = routed_from(LLAMA, stock_model(LLAMA), router="none")
    with pytest.raises(UserError, match="--lora_targets query.*q_proj"):
        add_lora(model, LoraConfig(target_modules=["query"]))
    # Where one name of several is there, PEFT itself would say nothing.
    fused = routed_from(PHI3, stock_model(PHI3), router="none")
    with pytest.raises(UserError, match="--lora_targets k_proj,q_proj: a phi3 has no .* qkv_proj"):
        add_lora(fused, LoraConfig(target_modules=["q_proj", "k_proj", "o_proj"]))
    add_lora(fused, LoraConfig(target_modules=["qkv_proj", "o_proj"]))
    # Told by the config alone.
    (said,) = unknown_problems(["q_proj", "o_proj"], shell_of(stock_model(PHI3).config))
    assert said.startswith("--lora_targets q_proj: ")


def test_training_state_holds_no_base():
    module = module_for("gumbel")
    names = set(module.state_dict())
    assert names and all("lora" in name or "routers" in name for name in names - {"steps", "baseline", "costs"})


def test_temperature_reaches_the_gates():
    """At a low temperature the gradient of the same gates is steeper around 0."""
    logits = torch.tensor([0.05], requires_grad=True)
    steepness = []
    for temperature in (1.0, 0.5):
        logits.grad = None
        gumbel_gates(logits, temperature, torch.zeros(1)).sum().backward()
        steepness.append(logits.grad.item())
    assert steepness[1] > 1.9 * steepness[0]
