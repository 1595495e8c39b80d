"""What `decode.py` and `prefill.py` share: models, fixed routes, the check that they are exact, timing, tables, plots.

Dense is the stock transformers model. Routes are fixed, with a share of the layers skipped, the same in all rows or
another in each. `ideal` is L / executed layers; `share` is the measured speed-up over it. Two controls say how much of
that any implementation could reach:
- `pruned`, for one route in all rows: a stock model that has the executed layers alone. A model also embeds tokens and
  computes logits, which no route skips.
- `fewer_rows`, for another route in each: the stock model on as many rows as run a layer on average. A layer's weights
  are read if any row needs it, so a small batch does not get cheaper with its rows.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from routing.common.devices import DTYPES, pick_device
from routing.common.errors import UserError
from routing.common.files import write_json
from routing.common.run_info import git_commit, hardware, today, versions
from routing.models.base_files import locate_model
from routing.models.default_model import DEFAULT_MODEL
from routing.models.families import load_base_config, routed_class

SHARES = (0.0, 0.1, 0.25, 0.4)
# Largest difference of log-probabilities from a stock model that has the executed layers alone.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}


def arguments_of(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="base model: hub id, folder, or the default")
    parser.add_argument("--batch", default="1,8,32", help="batch sizes")
    parser.add_argument("--prompt_tokens", default="64,512,2048", help="lengths of the prompts")
    parser.add_argument("--skipped", default=",".join(map(str, SHARES)), help="shares of layers skipped")
    parser.add_argument("--repeats", type=int, default=10, help="timed runs of each, taken in turn")
    parser.add_argument("--tokens_at_most", type=int, default=16384, help="batch times prompt tokens; more is left out")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    parser.add_argument("--device", default="auto", help="torch device; auto: cuda if there is one, else cpu")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--plot", help="file for the plot")
    arguments = parser.parse_args()
    for name, kind in (("batch", int), ("prompt_tokens", int), ("skipped", float)):
        try:
            setattr(arguments, name, [kind(part) for part in getattr(arguments, name).split(",")])
        except ValueError as error:
            raise UserError(f"--{name} takes numbers with commas between them ({error}).") from error
    return arguments


class Models:
    """The stock model and the routed one over the same weights; `fields` are config fields of the latter."""

    def __init__(self, arguments: argparse.Namespace, **fields):
        self.device, self.dtype = pick_device(arguments.device), DTYPES[arguments.dtype]
        place = locate_model(arguments.model)
        self.dense = AutoModelForCausalLM.from_pretrained(place, dtype=self.dtype).to(self.device).eval()
        kind = routed_class(load_base_config(arguments.model).model_type)
        self.routed = kind.from_pretrained(place, dtype=self.dtype, **fields).to(self.device).eval()
        own = dict(self.dense.named_parameters())
        for name, parameter in self.routed.named_parameters():
            if name in own:
                parameter.data = own[name].data
        self.depth = self.dense.config.num_hidden_layers

    def pruned(self, route: Sequence[int]):
        """A stock model that has the layers of a route alone."""
        memo = {id(parameter): parameter for parameter in self.dense.parameters()}
        model = copy.deepcopy(self.dense, memo)
        kept = [copy.deepcopy(layer, memo) for layer, count in zip(model.model.layers, route) for _ in range(count)]
        model.model.layers = nn.ModuleList(kept)
        for index, layer in enumerate(kept):
            layer.self_attn.layer_idx = index
        model.config.num_hidden_layers = len(kept)
        if getattr(model.config, "layer_types", None):
            types = zip(self.dense.config.layer_types, route)
            model.config.layer_types = [kind for kind, count in types for _ in range(count)]
        return model

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def prompts(self, batch: int, tokens: int) -> torch.LongTensor:
        generator = torch.Generator().manual_seed(tokens)
        return torch.randint(10, self.dense.config.vocab_size, (batch, tokens), generator=generator).to(self.device)


def make_routes(depth: int, batch: int, share: float, mixed: bool) -> torch.LongTensor:
    """[B, L] routes that skip a share of the layers; with `mixed` other ones in each row."""
    rng = Random(f"{depth}/{share}")
    routes = torch.ones(batch, depth, dtype=torch.long)
    for row in range(batch):
        if row == 0 or mixed:
            skipped = rng.sample(range(depth), round(share * depth))
        routes[row, skipped] = 0
    return routes


def rows_a_layer(route: torch.LongTensor) -> int:
    """How many of B rows run a layer, on average over the layers of [B, L] routes; at least 1."""
    return max(round(float(route.float().sum(0).mean())), 1)


@torch.inference_mode()
def check_exact(models: Models, prompts: torch.LongTensor, routes: torch.LongTensor, new_tokens: int = 3) -> float:
    """Largest difference of log-probabilities, in prefill and decoding, from stock models with the executed layers.

    Raises:
        UserError: if it is more than floats explain.
    """
    sequence = torch.cat([prompts, prompts[:, :new_tokens]], dim=1)
    size = prompts.shape[1]
    output = models.routed(prompts, routes=routes, use_cache=True, logits_to_keep=1)
    found = [output.logits]
    for at in range(new_tokens):
        token = sequence[:, size + at : size + at + 1]
        found.append(models.routed(token, past_key_values=output.past_key_values, logits_to_keep=1).logits)
    found = torch.cat(found, dim=1).float().log_softmax(-1)
    worst = 0.0
    for row in range(min(len(prompts), 4)):
        stock = models.pruned(routes[row].tolist())
        expected = stock(sequence[row : row + 1], use_cache=False, logits_to_keep=new_tokens + 1).logits[0]
        worst = max(worst, float((expected.float().log_softmax(-1) - found[row]).abs().max()))
    if worst > TOLERANCE[models.dtype]:
        raise UserError(f"routes {routes[0].tolist()} are not exact: log-probabilities differ by {worst:.2g}.")
    return worst


def in_turn(
    calls: Sequence[Callable[[], object]], repeats: int, synchronize: Callable[[], None], warm: int | None = None
) -> list[list[float]]:
    """Seconds of each call, all of them in turn, so that they see the same noise of the machine.

    Args:
        warm: how many of the calls, from the first on, are made once before any is timed; None: all.
    """
    seconds: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats + 1):
        for index, call in enumerate(calls if repeat else calls[:warm]):
            synchronize()
            start = time.perf_counter()
            call()
            synchronize()
            if repeat:  # The first warms up.
                seconds[index].append(time.perf_counter() - start)
    return seconds


def speedup(dense: Sequence[float], other: Sequence[float]) -> float:
    """Median of the ratios of neighbouring runs."""
    return statistics.median(a / b for a, b in zip(dense, other, strict=True))


def cases(models: Models, arguments: argparse.Namespace, name: str) -> Iterator[tuple]:
    """(batch, prompt tokens, prompts, [(share, mixed, routes)]) of each case, its routes checked to be exact."""
    sizes = [(b, t) for b in arguments.batch for t in arguments.prompt_tokens if b * t <= arguments.tokens_at_most]
    for batch, tokens in tqdm(sizes, desc=name):
        prompts = models.prompts(batch, tokens)
        routes = [
            (share, mixed, make_routes(models.depth, batch, share, mixed))
            for share in arguments.skipped
            for mixed in ((False, True) if batch > 1 and share else (False,))
        ]
        for _, _, route in routes:
            check_exact(models, prompts, route)
        yield batch, tokens, prompts, routes


def run(phase: str, arguments: argparse.Namespace, measure: Callable[[Models, torch.LongTensor, list], list[dict]]):
    """All rows of a benchmark, printed as they come; JSON and plot.

    Args:
        measure: maps (models, prompts, [(share, mixed, routes)]) to one dict a route.
    """
    torch.set_num_threads(arguments.threads)
    models = Models(arguments)
    rows: list[dict] = []
    for batch, tokens, prompts, routes in cases(models, arguments, phase):
        for (share, mixed, route), measured in zip(routes, measure(models, prompts, routes), strict=True):
            ideal = models.depth / float(route.sum(1).float().mean())
            row = {"phase": phase, "batch": batch, "prompt_tokens": tokens, "skipped_fraction": share, "mixed": mixed}
            rows.append(row | {"ideal": ideal, "share": measured["speedup"] / ideal} | measured)
        if arguments.json:
            write_json(Path(arguments.json), about(arguments) | {"rows": rows})
    print_rows(rows, f"{phase}: stock model against routed model, in turn")
    if arguments.plot:
        plot(rows, Path(arguments.plot), f"{phase}, {arguments.model}, {arguments.dtype}, {hardware()}")


def about(arguments: argparse.Namespace) -> dict:
    names = ("model", "dtype", "threads", "repeats")
    given = {name: getattr(arguments, name) for name in names}
    return given | {"hardware": hardware(), "date": today(), "versions": versions(), "git_commit": git_commit()}


def print_rows(rows: list[dict], title: str, hidden: tuple[str, ...] = ("phase",)) -> None:
    """A table with a column for each key that some row has."""
    columns = [column for column in dict.fromkeys(key for row in rows for key in row) if column not in hidden]
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        cells = (row.get(column) for column in columns)
        table.add_row(*("" if c is None else f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells))
    Console(width=160).print(table)


def plot(rows: list[dict], path: Path, title: str) -> None:
    """Measured over ideal speed-up, one panel for each batch size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    batches = sorted({row["batch"] for row in rows})
    lengths = sorted({row["prompt_tokens"] for row in rows})
    figure, panels = plt.subplots(
        1, len(batches), figsize=(4.5 * len(batches), 4.2), layout="constrained", squeeze=False, sharey=True
    )
    for axes, batch in zip(panels[0], batches):
        top = max(row["ideal"] for row in rows)
        axes.plot([1, top], [1, top], color="black", linewidth=0.8, label="ideal, L / executed")
        for tokens, color in zip(lengths, plt.cm.viridis([0.1, 0.5, 0.85, 0.99] * len(lengths))):
            for mixed, style in ((False, "o-"), (True, "s--")):
                own = [
                    row
                    for row in rows
                    if (row["batch"], row["prompt_tokens"]) == (batch, tokens)
                    and (row["mixed"] == mixed or not row["skipped_fraction"])
                ]
                if any(row["mixed"] == mixed for row in own) and not (mixed and batch == 1):
                    label = f"{tokens} tokens, {'a route a row' if mixed else 'one route'}"
                    points = [[row[key] for row in own] for key in ("ideal", "speedup")]
                    axes.plot(*points, style, color=color, markersize=4, label=label)
        axes.set(title=f"batch {batch}", xlabel="ideal speed-up")
        axes.legend(fontsize=7)
    panels[0][0].set_ylabel("measured speed-up over the stock model")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)
