"""Is routing on, and is it exact? Proofs on a few requests, against a forward that is as plain as can be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lm_eval.tasks import TaskManager

from routing.evaluation.check_global import plain_global_route
from routing.evaluation.check_menu import plain_menu_route
from routing.evaluation.check_query import plain_query_route
from routing.evaluation.lm import PromptRoutedLM
from routing.models.config_fields import attention_windows, config_with
from routing.search.routes import Route
from routing.tasks.prompts import left_pad
from train_models.decoder_parts import of_type, rotary_embeddings, scaled
from train_models.router_kinds import LEARNED, TOKEN_ROUTERS
from train_models.routers import REPEAT

# Largest difference that floats explain, of log-probabilities with and without cache and of router logits.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}
NEW_TOKENS = 8
SHARE = 1e-6  # Shares of tokens that differ by less are the same number of tokens.


@dataclass(frozen=True)
class Proof:
    """A statement about the model, whether it holds, and what was seen."""

    statement: str
    holds: bool
    seen: str


def check_prompts(
    model: PromptRoutedLM, task: str, manager: TaskManager, count: int, chat: bool, system: str | None = None
) -> list[list[int]]:
    """Token ids of the first prompts of a task, as lm-eval sends them.

    Args:
        chat: whether they are in the chat form; `system`: text of a system message in it.
    """
    chosen = manager.load(task)["tasks"][task]
    template = model.apply_chat_template if chat else None
    chosen.build_all_requests(
        limit=count,
        system_instruction=system,
        apply_chat_template=chat,
        fewshot_as_multiturn=True,
        chat_template=template,
        tokenizer_name="",
    )
    prompts = dict.fromkeys(instance.args[0].rstrip() for instance in chosen.instances)
    return [model.tok_encode(prompt) for prompt in prompts][:count]


@torch.inference_mode()
def plain_route(base, routed, prompt: list[int]) -> tuple[Route, float]:
    """The route of a prompt, found the slow way: the stock layers one by one, windows cut out by hand.

    Also how near a tie its decisions came: the least by which the logits of a choice exceed the next ones.
    """
    hidden = scaled(base.model, base.model.embed_tokens(torch.tensor([prompt], device=base.device)))
    positions = torch.arange(len(prompt), device=base.device)[None]
    rotary, kinds = rotary_embeddings(base.model, hidden, positions), getattr(base.config, "layer_types", None)
    windows = min(routed.config.num_windows, len(prompt))
    cuts = [-(-window * len(prompt) // windows) for window in range(windows + 1)]
    mask = torch.full((len(prompt),) * 2, torch.finfo(base.dtype).min, dtype=base.dtype, device=base.device).triu(1)
    route, margin = [], float("inf")
    layers = zip(base.model.layers, routed.model.routers, attention_windows(base.config), strict=True)
    for layer, router, window_size in layers:
        pooled = torch.stack([hidden[0, a:b].float().mean(0) for a, b in zip(cuts, cuts[1:])])
        logits = router.down(torch.nn.functional.gelu(router.up(pooled))).mean(0)
        bias = routed.config.route_bias - routed.config.cost
        logits = logits + bias * torch.arange(3, device=logits.device)
        route.append(int(logits.argmax()))
        best, second, _ = logits.sort(descending=True).values.tolist()
        margin = min(margin, best - second)
        seen = mask
        if window_size is not None:
            far = torch.ones_like(mask, dtype=torch.bool).tril(-window_size)
            seen = mask.masked_fill(far, torch.finfo(base.dtype).min)
        if not route[-1] and len(routed.model.stand_ins):
            hidden = routed.model.stand_ins[len(route) - 1](hidden)
        for _ in range(route[-1]):
            turns = of_type(rotary, kinds, len(route) - 1)
            hidden = layer(hidden, attention_mask=seen[None, None], position_ids=positions, position_embeddings=turns)
    return tuple(route), margin


# `config.router` -> function (stock model, checkpoint, prompt) -> route, and how near a tie it came.
PLAIN = {
    "per_layer": plain_route,
    "query": lambda base, routed, prompt: plain_query_route(routed, prompt),
    "menu": plain_menu_route,
}


@torch.inference_mode()
def proofs(base, routed, prompts: list[list[int]], pad_id: int, name: str = "the base") -> list[Proof]:
    """What `evaluation.py --check` shows.

    Args:
        base: a stock model with the weights of the checkpoint.
        routed: the checkpoint.
        prompts: token ids of a few prompts.
        pad_id: for left padding.
        name: of the stock model.
    """
    ids, mask = (torch.tensor(part, device=routed.device) for part in left_pad(prompts, pad_id))
    decisions, static = _decisions(base, routed, prompts, ids, mask), _static(base, routed, ids, mask, name)
    return [decisions, static, _cache(routed, ids, mask)]


def _decisions(base, routed, prompts, ids, mask) -> Proof:
    routed.generate(ids, attention_mask=mask, max_new_tokens=1, do_sample=False, pad_token_id=0)
    found = [tuple(route) for route in routed.last_routes.tolist()]
    alike = ties = 0
    for prompt, route in zip(prompts, found, strict=True):
        if routed.config.router in LEARNED:
            expected, slack = plain_global_route(base, routed, prompt, TOLERANCE[routed.dtype])
        else:  # A tie changes the whole path, or what all layers behind it read, or which other one is pruned.
            expected, margin = PLAIN[routed.config.router](base, routed, prompt)
            slack = [REPEAT if margin < TOLERANCE[routed.dtype] else 0.0] * len(expected)
        off = [abs(a - b) for a, b in zip(expected, route, strict=True)]
        alike += max(off) < SHARE
        ties += max(off) >= SHARE and all(a < b + SHARE for a, b in zip(off, slack))
    rerouted = sum(set(route) != {1} for route in found)
    depth = routed.config.num_hidden_layers
    seen = (
        f"{alike} of {len(found)} routes are those of the plain forward ({ties} others hang on a near tie); "
        f"{rerouted} are not the identity; "
        f"{sum(map(sum, found)) / len(found):.2f} of {depth} layers run on average"
    )
    if not rerouted:
        seen += ". No request is routed otherwise than dense: routing is off (is_static_routing?) or says run always"
    return Proof("routing is on and decides as the routers say", alike + ties == len(found) and rerouted > 0, seen)


def _static(base, routed, ids, mask, name: str) -> Proof:
    with config_with(routed, is_static_routing=True):
        found = routed(ids, attention_mask=mask).logits
    expected = base(ids, attention_mask=mask).logits
    real = mask.bool()
    worst = float((found[real].float() - expected[real].float()).abs().max())
    same = torch.equal(found[real], expected[real])
    return Proof(f"is_static_routing=True is {name}, bit for bit", same, f"largest difference of logits {worst:.3g}")


def _cache(routed, ids, mask) -> Proof:
    by_token = routed.config.router in TOKEN_ROUTERS  # Then nothing is fixed at prefill.
    arguments = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    output = routed.generate(ids, attention_mask=mask, return_dict_in_generate=True, output_logits=True, **arguments)
    routes, width = None if by_token else routed.last_routes, ids.shape[1]
    whole = torch.cat([mask, torch.ones(len(ids), NEW_TOKENS, dtype=mask.dtype, device=mask.device)], dim=1)
    positions = (whole.cumsum(1) - 1).clamp(min=0)
    again = routed(
        output.sequences, attention_mask=whole, position_ids=positions, routes=routes, use_cache=False
    ).logits[:, width - 1 : -1]
    cached = torch.stack(output.logits, dim=1)
    difference = (cached.float().log_softmax(-1) - again.float().log_softmax(-1)).abs()
    worst = float(difference.max())
    return Proof(
        "decoding with a cache equals the forward without one",
        worst <= TOLERANCE[routed.dtype],
        f"largest difference of log-probabilities {worst:.3g} over {NEW_TOKENS} tokens of {len(ids)} requests, "
        f"allowed {TOLERANCE[routed.dtype]:g}",
    )
