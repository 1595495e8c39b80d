"""What a prompt took, layer by layer: a row for it or for each of its tokens, and what the paths of a menu are worth.

The rewards that a menu router estimates are caught in the very forward that decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from routing.models.checkpoint_files import HYBRID
from train_models.menu_router import best_paths, path_values
from train_models.router_kinds import kind_of

COUNTS = ("skip", "run", "repeat")
MECHANISMS = ("gdn", "softmax")


@dataclass(frozen=True)
class Row:
    """What one row of a table of routes took.

    Attributes:
        name: the prompt, or the text of a token.
        part: prompt or answer.
        marks: for each layer skip, run, repeat or adapter; for each block of a hybrid gdn or softmax.
        layers: executed.
    """

    name: str
    part: str
    marks: tuple[str, ...]
    layers: int


@dataclass(frozen=True)
class MenuPath:
    """One path of a menu, for this prompt.

    Attributes:
        marks, layers: as in `Row`.
        reward: estimated.
        worth: the reward less the price of the layers and the caution; the path of most worth is taken.
        taken: whether this one was.
    """

    marks: tuple[str, ...]
    layers: int
    reward: float
    worth: float
    taken: bool


def rows_and_paths(
    model, tokenizer, prompt: Sequence[int], answer: Sequence[int]
) -> tuple[tuple[Row, ...], tuple[MenuPath, ...]]:
    """What the prompt took, or each token of prompt and answer; and the paths of a menu."""
    if model.config.model_type == HYBRID:
        return _token_rows(tokenizer, prompt, answer, _mechanisms(model, [*prompt, *answer])), ()
    skipped = "adapter" if model.config.skip_action == "adapter" else "skip"
    if kind_of(model.config).decides_for == "token" and not model.config.fixed_route:
        # A token's route hangs on that token's state alone, so one forward of all decides as decoding did.
        model.model(torch.tensor([[*prompt, *answer]], device=model.device), use_cache=False)
        gates = torch.nn.functional.pad(model.model.last_gates[0].int(), (model.config.kept_layers, 0), value=1)
        return _token_rows(tokenizer, prompt, answer, [_marks(row, skipped) for row in gates.tolist()]), ()
    with _estimates(model) as caught:
        model.model(torch.tensor([prompt], device=model.device), use_cache=False)
    route = model.last_routes[0].tolist()
    paths = _paths(model.config, skipped, *caught[0]) if caught else ()
    return (Row("prompt", "prompt", _marks(route, skipped), sum(route)),), paths


def _marks(route: Sequence[int], skipped: str) -> tuple[str, ...]:
    return tuple(COUNTS[count] if count else skipped for count in route)


def _mechanisms(model, ids: list[int]) -> list[tuple[str, ...]]:
    """For each token what it took in each block."""
    pattern, routed = model.config.pattern, list(model.config.routed_blocks)
    found = model(torch.tensor([ids], device=model.device), use_cache=False, logits_to_keep=1).mechanisms
    own = [] if found is None else found[0].T.tolist()
    columns = [
        [MECHANISMS[took] for took in own[routed.index(block)]] if block in routed else [kind] * len(ids)
        for block, kind in enumerate(pattern)
    ]
    return list(zip(*columns, strict=True))


def _token_rows(tokenizer, prompt, answer, marks: Sequence[tuple[str, ...]]) -> tuple[Row, ...]:
    parts = ["prompt"] * len(prompt) + ["answer"] * len(answer)
    texts = pieces(tokenizer, [*prompt, *answer])
    # Each block of a hybrid runs once, by one mechanism or the other.
    layers = [sum(mark not in ("skip", "adapter") for mark in row) for row in marks]
    return tuple(Row(*row) for row in zip(texts, parts, marks, layers, strict=True))


def pieces(tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token; a character that several tokens share stands at the last of them."""
    found, before = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        whole = text.rstrip("�") if end < len(ids) else text
        found.append(whole[len(before) :])
        before = whole
    return found


@contextmanager
def _estimates(model) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Catches what a menu router estimates: ([B, K] rewards, [K] errors) of each decision."""
    caught: list = []
    if not kind_of(model.config).has_menu or model.config.fixed_route:
        yield caught
        return
    hook = model.model.routers.register_forward_hook(lambda module, inputs, output: caught.append(output))
    try:
        yield caught
    finally:
        hook.remove()


def _paths(config, skipped: str, estimates: torch.Tensor, errors: torch.Tensor) -> tuple[MenuPath, ...]:
    layers = torch.tensor([sum(route) for route in config.menu], device=estimates.device)
    values = path_values(estimates, errors, layers, config.cost - config.route_bias, config.caution)
    taken = int(best_paths(values)[0])
    numbers = zip(config.menu, layers.tolist(), estimates[0].tolist(), values[0].tolist(), strict=True)
    return tuple(
        MenuPath(_marks(route, skipped), count, reward, worth, at == taken)
        for at, (route, count, reward, worth) in enumerate(numbers)
    )
