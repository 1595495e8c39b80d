"""What do the decisions of routers cost? Their share of a prefill, for routers of layers and of a menu, in turn.

    OMP_NUM_THREADS=2 .venv/bin/python benchmarks/router_share.py --json benchmarks/results/router_share.json

The shares are told by the clock within the same prefill: a difference of two prefills would drown in noise. All layers
run, whatever the routers say, so the share is that of a full prefill. Nothing is timed whose decisions differ from
those of the definition: window by window and path by path, in float64, on the states that the routers read.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from prefill import RouterClock
from routed_speed import Models, about, print_rows
from tqdm import tqdm

from routing.common.devices import DTYPES
from routing.common.errors import UserError, run_command
from routing.common.files import write_json
from routing.models.default_model import DEFAULT_MODEL

CASES = ((1, 64), (1, 128), (1, 512), (1, 2048), (8, 64), (32, 64))
PATHS = 8  # of the menu, at most


def menu_fields(depth: int) -> dict:
    """Config fields of a menu router that reads embeddings and the states behind a few layers.

    Its menu is the full path, and paths without one or more of the last layers but one.
    """
    kept = min(4, depth // 2)
    skipped = range(min(PATHS, depth - kept))
    menu = [[1] * (depth - 1 - count) + [0] * count + [1] for count in skipped]
    return {"router": "menu", "menu": menu, "kept_layers": kept, "router_reads": [0, kept]}


@torch.no_grad()
def draw(models: Models, kind: str) -> None:
    """Routers that decide at random."""
    models.routed.init_routers()
    router = models.routed.model.routers
    if kind == "menu":
        router.errors.zero_()


def layer_counts(router, hidden: torch.Tensor, windows: int) -> int:
    """The decision of a router of a layer on one row without padding, by its definition."""
    state, size = hidden.double(), len(hidden)
    logits = []
    for window in range(windows):
        own = [token for token in range(size) if token * windows // size == window]
        if own:
            features = torch.nn.functional.gelu(
                router.up.weight.double() @ state[own].mean(0) + router.up.bias.double()
            )
            logits.append(router.down.weight.double() @ features + router.down.bias.double())
    return int(torch.stack(logits).mean(0).argmax())


def menu_route(router, states: list[torch.Tensor], menu: list[list[int]]) -> list[int]:
    """The decision of a menu router on one row without padding, by its definition, at no price."""
    read = torch.cat([part for state in states for part in (state.double().mean(0), state[-1].double())])
    read = (read - router.mean.double()) / router.scale.double()
    linear = router.linears[0]
    return menu[int((linear.weight.double() @ read + linear.bias.double()).argmax())]


@torch.inference_mode()
def check(models: Models, prompts: torch.LongTensor, kind: str) -> None:
    """Refuse decisions that are not those of the definition.

    Raises:
        UserError: naming how many differ.
    """
    output = models.routed(prompts, use_cache=False, logits_to_keep=1, output_hidden_states=True)
    inner, found = models.routed.model, models.routed.last_routes.tolist()
    wrong = 0
    for row, route in enumerate(found[:4]):
        states = [state[row].cpu() for state in output.hidden_states]
        if kind == "menu":
            config = inner.config
            wrong += menu_route(inner.routers, [states[at] for at in config.router_reads], config.menu) != route
        else:
            expected = [layer_counts(r, s, inner.config.num_windows) for r, s in zip(inner.routers, states)]
            wrong += sum(one != other for one, other in zip(expected, route, strict=True))
    if wrong:
        raise UserError(f"{wrong} decisions of {kind} routers differ from those of the definition; nothing is timed.")


@torch.no_grad()
def run_all_layers(models: Models, kind: str) -> None:
    """Let the routers decide for the full path, whatever they read."""
    if kind == "menu":
        linear = models.routed.model.routers.linears[0]
        linear.weight.zero_()
        linear.bias.zero_()
        linear.bias[0] = 1.0
        return
    for router in models.routed.model.routers:
        router.down.weight.zero_()
        router.down.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="base model: hub id, folder, or the default")
    parser.add_argument("--repeats", type=int, default=20, help="prefills of each router and size, in turn")
    parser.add_argument("--seconds", type=float, default=60, help="for each size, at most, after two prefills of each")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    parser.add_argument("--device", default="auto", help="torch device; auto: cuda if there is one, else cpu")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--json", help="file for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    per_layer = Models(arguments)
    kinds = {"per_layer": per_layer, "menu": Models(arguments, **menu_fields(per_layer.depth))}
    for kind, models in kinds.items():
        draw(models, kind)
        for size in ((2, 64), (2, 5)):
            check(models, models.prompts(*size), kind)
        run_all_layers(models, kind)
    rows = []
    for batch, tokens in tqdm(CASES, desc="router_share"):
        rows += measure(kinds, batch, tokens, arguments.repeats, arguments.seconds)
        if arguments.json:
            write_json(Path(arguments.json), about(arguments) | {"rows": rows})
    print_rows(rows, "share of a prefill that the routers' decisions take (median)", hidden=("phase",))


@torch.inference_mode()
def measure(kinds: dict[str, Models], batch: int, tokens: int, repeats: int, seconds: float) -> list[dict]:
    """A row for each kind of router, their prefills in turn."""
    prompts = next(iter(kinds.values())).prompts(batch, tokens)
    clocks = {
        kind: RouterClock(models, lambda model=models.routed: model(prompts, use_cache=True, logits_to_keep=1))
        for kind, models in kinds.items()
    }
    end = time.perf_counter() + seconds
    for repeat in range(repeats + 1):
        if repeat > 2 and time.perf_counter() > end:
            break
        for clock in clocks.values():
            clock()
    return [
        {"router": kind, "batch": batch, "prompt_tokens": tokens, "router_share": clock.share,
         "prefill_seconds": clock.seconds, "prefills": len(clock.shares) - 1}
        for kind, clock in clocks.items()
    ]  # fmt: skip


if __name__ == "__main__":
    run_command(main)
