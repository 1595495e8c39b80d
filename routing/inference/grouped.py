"""Generation for many prompts, in batches of rows that take like routes.

A batch whose rows have different routes reads every layer that any of them runs, at every token. So prompts are
prefilled first, a window of them at a time; each row's route is known then, and its keys and values are kept. Rows with
like routes are then decoded together, from what their prefill left. Answers come back in the order of the prompts.

Each row is computed as if it stood alone, up to the rounding of floats that any batching brings. Positions that change
with the longest row of a batch (rope types dynamic and longrope) would break that, so rows within the first context
and beyond it never share a batch, and beyond it each stands alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from routing.common.errors import UserError
from routing.inference.cached_rows import CachedRow, cache_class, joined, taken_out
from routing.inference.groups import grouped
from routing.models.context import shared_tokens
from routing.tasks.prompts import left_pad
from train_models.decoder_parts import rotary_embeddings
from train_models.router_kinds import kind_of

WINDOW = 16  # batches whose prompts are prefilled before any is decoded
CACHE_GIB = 2.0
# What stock generate() takes and a group cannot: argument -> what to do about it.
MADE_HERE = "is made by grouped generation itself; leave it out, or call model.generate"
REFUSED = dict.fromkeys(
    ("past_key_values", "prompt_lengths", "attention_mask", "input_ids", "inputs_embeds", "streamer", "use_cache"),
    MADE_HERE,
) | {
    "max_length": "counts the padding of a group; give max_new_tokens",
    "min_length": "counts the padding of a group; give min_new_tokens",
    "return_dict_in_generate": "gives what rows of a group do not have alone; leave it out, or call model.generate",
    "prompt_lookup_num_tokens": "decodes one row alone; leave it out, or call model.generate",
    "assistant_model": "decodes one row alone; leave it out, or call model.generate",
    "stop_strings": "ends a group by texts; cut the answers behind it, or give stopping_criteria",
}


@dataclass(frozen=True)
class Generated:
    """The answer to one prompt.

    Attributes:
        index: of the prompt.
        tokens: generated ones, without padding behind the first token that ends an answer.
        text: of these, without special tokens.
        route: counts of the layers that were executed; None where each token has a route, or nothing is routed.
    """

    index: int
    tokens: tuple[int, ...]
    text: str
    route: tuple[int, ...] | None


def generate_grouped(
    model,
    tokenizer,
    prompts: Sequence[str | Sequence[int]],
    batch_size: int = 8,
    window: int | None = None,
    cache_gib: float = CACHE_GIB,
    routes: Sequence[Sequence[int]] | None = None,
    progress: bool = False,
    **generation,
) -> list[Generated]:
    """The answers to all prompts, in their order.

    Args:
        model: a routed model; any other one is run in plain batches.
        tokenizer: its tokenizer; a pad token is needed.
        prompts: texts, or their tokens.
        batch_size: rows that are prefilled, or decoded, together.
        window: prompts that are prefilled before rows are grouped; default 16 batches. More give better groups.
        cache_gib: a window is closed earlier where its keys and values take more than this.
        routes: counts of layers to force, one route a prompt; default: as the model decides.
        progress: whether a bar on stderr shows how many are answered.
        generation: arguments of `model.generate`, such as max_new_tokens; one sequence a prompt.

    Raises:
        UserError: for prompts without a token, and arguments that cannot be.
    """
    found = stream_grouped(model, tokenizer, prompts, batch_size, window, cache_gib, routes, **generation)
    bar = tqdm(found, total=len(prompts), desc="generating", unit="prompt", disable=not progress)
    return sorted(bar, key=lambda answer: answer.index)


def stream_grouped(
    model,
    tokenizer,
    prompts: Sequence[str | Sequence[int]],
    batch_size: int = 8,
    window: int | None = None,
    cache_gib: float = CACHE_GIB,
    routes: Sequence[Sequence[int]] | None = None,
    **generation,
) -> Iterator[Generated]:
    """The answers as groups are finished, in no particular order; arguments as for `generate_grouped`."""
    ids = [_tokens(tokenizer, prompt) for prompt in prompts]
    window = WINDOW * batch_size if window is None else window
    _check(ids, batch_size, window, cache_gib, generation)
    if routes is not None and len(routes) != len(ids):
        raise UserError(f"routes= has {len(routes)} routes for {len(ids)} prompts; give one for each")
    pad = tokenizer.pad_token_id
    if pad is None:
        raise UserError("the tokenizer has no pad token, so rows cannot stand side by side; set tokenizer.pad_token")
    if routes is not None and cache_class(model) is None:
        raise UserError(f"routes= cannot be forced on a {type(model).__name__}, which routes nothing; leave it out")
    if _new_tokens(model, generation) is None:
        raise UserError("how long may an answer be? give max_new_tokens")
    for index, route in enumerate(routes or ()):
        if len(route) != model.config.num_hidden_layers or not set(route) <= {0, 1, 2}:
            raise UserError(
                f"route {index} is {list(route)}; give {model.config.num_hidden_layers} counts, each 0 (skip), 1 (run) "
                "or 2 (repeat)"
            )
    return _answers(model, tokenizer, ids, batch_size, window, cache_gib * 2**30, pad, routes, generation)


def _tokens(tokenizer, prompt: str | Sequence[int]) -> tuple[int, ...]:
    return tuple(tokenizer(prompt).input_ids if isinstance(prompt, str) else prompt)


def _check(ids, batch_size: int, window: int, cache_gib: float, generation: dict) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} must be at least 1")
    if window < batch_size:
        raise UserError(f"window={window} must be at least batch_size={batch_size}")
    if cache_gib <= 0:
        raise UserError(f"cache_gib={cache_gib} must be more than 0")
    if empty := [index for index, row in enumerate(ids) if not row]:
        raise UserError(f"prompt {empty[0]} has no token; leave empty prompts out")
    if given := [name for name in REFUSED if name in generation]:
        raise UserError(f"{given[0]}= {REFUSED[given[0]]}")
    for name in ("num_beams", "num_return_sequences"):
        if generation.get(name, 1) != 1:
            raise UserError(f"{name}={generation[name]}: grouped generation gives one sequence a prompt; leave it out")


@torch.no_grad()
def _answers(model, tokenizer, ids, batch_size: int, window: int, limit: float, pad: int, forced, generation: dict):
    config, kind = model.config, cache_class(model)
    by_token = forced is None and kind_of(config).decides_for == "token" and not config.is_static_routing
    # Prompts of like lengths stand side by side, so little is padded.
    order = sorted(range(len(ids)), key=lambda index: (len(ids[index]), index))
    shared = shared_tokens(config)
    alone = [] if shared is None else [i for i in order if len(ids[i]) + _new_tokens(model, generation) > shared]
    parts = [order[: len(order) - len(alone)], *([index] for index in alone)]
    for number, part in enumerate(parts):
        if number:
            _forget_lengths(model)
        if kind is None or by_token:
            for start in range(0, len(part), batch_size):
                group = part[start : start + batch_size]
                yield from _decode(model, tokenizer, [ids[i] for i in group], group, None, pad, generation)
        else:
            yield from _in_windows(
                model, kind, tokenizer, ids, part, batch_size, window, limit, pad, forced, generation
            )


def _forget_lengths(model) -> None:
    """Let dynamic positions begin anew: transformers keeps those of the longest text until a short one comes."""
    device = model.device
    zeros = torch.zeros(1, 1, 1, device=device), torch.zeros(1, 1, dtype=torch.long, device=device)
    rotary_embeddings(model.model, *zeros)


def _in_windows(model, kind, tokenizer, ids, order, batch_size, window, limit, pad, forced, generation):
    while order:
        rows, order = _prefilled(model, kind, ids, order, batch_size, window, limit, pad, forced)
        indices = [*rows]
        for group in grouped([rows[index].route for index in indices], batch_size):
            own = [indices[at] for at in group]
            cached = [rows.pop(index) for index in own]
            yield from _decode(model, tokenizer, [ids[index] for index in own], own, cached, pad, generation)


def _prefilled(
    model, kind, ids, order, batch_size, window, limit, pad, forced
) -> tuple[dict[int, CachedRow], list[int]]:
    """Rows of the next window, and the prompts that are left."""
    rows: dict[int, CachedRow] = {}
    while order and len(rows) < window and sum(row.bytes for row in rows.values()) < limit:
        part, order = order[:batch_size], order[batch_size:]
        cache = kind(model.config)
        cache.activate_past_recording()
        tokens, mask = _padded(model, [ids[index] for index in part], pad)
        places = (mask.cumsum(1) - 1).clamp(min=0)
        own = None if forced is None else torch.tensor([list(forced[index]) for index in part])
        model.model(input_ids=tokens, attention_mask=mask, position_ids=places, past_key_values=cache, routes=own)
        rows.update(zip(part, taken_out(cache, [len(ids[index]) for index in part]), strict=True))
    return rows, order


def _padded(model, rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, mask = left_pad(rows, pad)
    return torch.tensor(tokens, device=model.device), torch.tensor(mask, device=model.device)


def _decode(model, tokenizer, prompts, indices, rows: list[CachedRow] | None, pad: int, generation: dict):
    """Answers of one group; the last token of each prompt goes through the model again, and gives the first one."""
    tokens, mask = _padded(model, prompts, pad)
    routes = None if rows is None else [row.route for row in rows]
    more = {}
    if rows is not None and any(row.tokens for row in rows):
        more["past_key_values"] = joined(rows, cache_class(model), model.config)
        rows.clear()
    elif rows is not None:
        more["routes"] = torch.tensor(routes)
    options = more | generation | {"use_cache": True}
    output = model.generate(input_ids=tokens, attention_mask=mask, pad_token_id=pad, **options)
    ends = _ends(model, generation)
    for at, (index, new) in enumerate(zip(indices, output[:, tokens.shape[1] :].tolist(), strict=True)):
        last = next((place for place, token in enumerate(new) if token in ends), len(new))
        own = tuple(new[: last + 1])
        yield Generated(index, own, tokenizer.decode(own, skip_special_tokens=True), routes and routes[at])


def _new_tokens(model, generation: dict) -> int | None:
    """How many tokens are asked for, by argument or generation config."""
    config = generation.get("generation_config") or model.generation_config
    return generation.get("max_new_tokens") or config.max_new_tokens


def _ends(model, generation: dict) -> set[int]:
    """Tokens that end an answer."""
    found = generation.get("eos_token_id", getattr(generation.get("generation_config"), "eos_token_id", None))
    if found is None:
        found = model.generation_config.eos_token_id
    return set(found if isinstance(found, (list, tuple)) else [found]) - {None}
