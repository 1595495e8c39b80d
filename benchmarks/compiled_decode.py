"""What does torch.compile bring to decoding? Stock and routed model, plain and compiled, in turn.

    .venv/bin/python benchmarks/compiled_decode.py --json benchmarks/results/compiled_decode.json

One token a step for all rows, behind a prompt that is in the cache. Of the routed model the layers are compiled
(`model.compile()`), of the stock model the whole forward, with the dynamic cache and with the static one, which routed
models refuse. `speedup` is over the plain stock model, `compile_seconds` is what the first steps took longer. What is
not exact is not timed: the plain routed model is compared with a stock model that has the executed layers alone, and
what is compiled with the same model uncompiled, step by step.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from decode import Decoder
from routed_speed import TOLERANCE, Models, about, arguments_of, cases, in_turn, print_rows, speedup
from transformers import StaticCache

from routing.common.errors import UserError, run_command
from routing.common.files import write_json
from routing.common.run_info import hardware

CHECKED_STEPS = 8  # Several, since a cache that grows is compiled for its first length, then for all.


class StaticDecoder(Decoder):
    """A stock model that decodes into a static cache of `size` tokens."""

    def __init__(self, model, prompts: torch.LongTensor, size: int):
        self.model, self.token = model, prompts[:, -1:]
        self.cache = StaticCache(model.config, max_cache_len=size)
        model(prompts, past_key_values=self.cache, logits_to_keep=1)


def twin(model):
    """Another model over the same weights."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def first_steps(decoder: Decoder, script: torch.LongTensor, synchronize: Callable) -> tuple[torch.Tensor, float]:
    """Log-probabilities [B, N, V] behind each of N scripted tokens [B, N], and the seconds they took."""
    synchronize()
    start, found = time.perf_counter(), []
    for token in script.split(1, dim=1):
        # As it will be when it is timed: a view would be compiled for its strides.
        token = token.clone(memory_format=torch.contiguous_format)
        logits = decoder.model(token, past_key_values=decoder.cache, use_cache=True).logits
        found.append(logits.float().log_softmax(-1))
    synchronize()
    return torch.cat(found, dim=1), time.perf_counter() - start


def refuse_difference(name: str, found: torch.Tensor, plain: torch.Tensor, tolerance: float) -> None:
    """Raise a UserError unless compiled log-probabilities are the plain ones and the same tokens are picked.

    Where the best two tokens of the plain model are nearer to one another than floats can tell, either may be.
    """
    worst = float((found - plain).abs().max())
    best = plain.topk(2, dim=-1).values
    clear = best[..., 0] - best[..., 1] > 2 * tolerance
    others = int((clear & (found.argmax(-1) != plain.argmax(-1))).sum())
    if worst > tolerance or others:
        raise UserError(f"{name} is not exact: {others} other tokens, log-probabilities differ by {worst:.2g}.")


@torch.inference_mode()
def measure(models: Models, prompts: torch.LongTensor, routes: list, repeats: int) -> list[dict]:
    """One dict for each way of decoding: the stock ones, then plain and compiled along each route."""
    torch._dynamo.reset()
    script = prompts[:, :CHECKED_STEPS]
    size = prompts.shape[1] + script.shape[1] + repeats + 1
    dense, static, routed = twin(models.dense), twin(models.dense), twin(models.routed)
    dense.forward = torch.compile(dense.forward, dynamic=True)
    static.forward = torch.compile(static.forward)
    routed.compile(dynamic=True)
    # name, share, mixed, decoder with a filled cache, the compiled model that goes on from there
    ways = [
        ("stock", 0.0, False, Decoder(models.dense, prompts), None),
        ("stock, compiled", 0.0, False, Decoder(models.dense, prompts), dense),
        ("stock, compiled, static cache", 0.0, False, StaticDecoder(models.dense, prompts, size), static),
    ]
    for share, mixed, route in routes:
        ways.append(("routed", share, mixed, Decoder(models.routed, prompts, routes=route), None))
        ways.append(("routed, compiled", share, mixed, Decoder(models.routed, prompts, routes=route), routed))
    rows = []
    for name, share, mixed, decoder, compiled in ways:
        row = {"model": name, "skipped_fraction": share, "mixed": mixed, "compile_seconds": 0.0}
        decoder.model = compiled or decoder.model
        found, seconds = first_steps(decoder, script, models.synchronize)
        if compiled is None:
            plain, plain_seconds = found, seconds
        else:
            refuse_difference(f"{name} {share:.0%}", found, plain, TOLERANCE[models.dtype])
            row["compile_seconds"] = seconds - plain_seconds
        rows.append(row)
    timed = in_turn([way[3] for way in ways], repeats, models.synchronize)
    for row, seconds in zip(rows, timed, strict=True):
        row |= {"milliseconds": 1000 * statistics.median(seconds), "speedup": speedup(timed[0], seconds)}
    return rows


def run(arguments: argparse.Namespace) -> list[dict]:
    torch.set_num_threads(arguments.threads)
    models = Models(arguments)
    rows: list[dict] = []
    for batch, tokens, prompts, routes in cases(models, arguments, "compiled decode"):
        case = {"batch": batch, "prompt_tokens": tokens}
        rows += [case | row for row in measure(models, prompts, routes, arguments.repeats)]
        if arguments.json:
            write_json(Path(arguments.json), about(arguments) | {"rows": rows})
    return rows


def plot(rows: list[dict], path: Path, title: str) -> None:
    """Speed-up over the plain stock model by share of layers skipped, one panel for each batch and prompt."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cases = list(dict.fromkeys((row["batch"], row["prompt_tokens"]) for row in rows))
    figure, panels = plt.subplots(
        1, len(cases), figsize=(4.5 * len(cases), 4.2), layout="constrained", squeeze=False, sharey=True
    )
    for axes, case in zip(panels[0], cases):
        own = [row for row in rows if (row["batch"], row["prompt_tokens"]) == case]
        for name in dict.fromkeys(row["model"] for row in own):
            for mixed, style in ((False, "o-"), (True, "s--")):
                line = [row for row in own if row["model"] == name and row["mixed"] == mixed]
                if line:
                    label = f"{name}, a route a row" if mixed else name
                    points = [[row[key] for row in line] for key in ("skipped_fraction", "speedup")]
                    axes.plot(*points, style, markersize=4, label=label)
        axes.set(title=f"batch {case[0]}, prompt {case[1]}", xlabel="share of layers skipped")
        axes.legend(fontsize=7)
    panels[0][0].set_ylabel("speed-up over the plain stock model")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    arguments = arguments_of(__doc__)
    rows = run(arguments)
    print_rows(rows, "decoding a token, plain and compiled, in turn")
    if arguments.plot:
        plot(rows, Path(arguments.plot), f"{arguments.model}, {arguments.dtype}, {hardware()}")


if __name__ == "__main__":
    run_command(main)
