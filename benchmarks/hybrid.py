"""Where does linear attention pay? Time and memory of hybrid models by context, prefill and decode, in turn.

    .venv/bin/python benchmarks/hybrid.py --contexts 256,512,1024,2048,4096,8192 --repeats 5 \\
        --json benchmarks/results/hybrid.json --plot benchmarks/results/hybrid.png

Random weights of equal widths: what is timed does not depend on what was learned.
- static: three of four blocks Gated DeltaNet, the last softmax attention.
- dynamic: Gated DeltaNet, two routed blocks, softmax. Each token takes softmax with probability --random_share, drawn
  by hashing; the router's linear map, 4 D multiplications a token, is not in it.
- all-softmax: what the others are compared with. all-gdn: what no softmax block would cost.
A speed-up is the median of the ratios of neighbouring runs, all-softmax over the other: above 1 the other is faster.
The crossing is the context from which it stays above 1, between two contexts in a line over the logarithm. `cache_mib`
is what a cache of the context holds, `peak_mib` what a prefill allocates at most beside the weights (GPU alone).
Nothing is timed unless a prefill and two decoded tokens have the log-probabilities of an uncached forward, and routed
blocks those of the form that computes both branches for every token.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from routed_speed import TOLERANCE, in_turn, print_rows, speedup
from tqdm import tqdm

from routing.common.devices import DTYPES, pick_device
from routing.common.errors import UserError, raise_all, run_command
from routing.common.files import write_json
from routing.common.run_info import git_commit, hardware, today, versions
from routing.training.language_model.configurations import PATTERNS, pattern_of
from routing.training.language_model.parameters import parameter_counts
from train_models.configuration_gdn_hybrid import GdnHybridConfig
from train_models.modeling_gdn_hybrid import GdnHybridForCausalLM

REFERENCE = "all-softmax"
# Tokens by which a model is checked: many chunks of the delta rule, more queries than routed_mixer takes at a time.
CHECKED = 1200
SIZES = ("batch", "hidden_size", "num_layers", "num_heads", "intermediate_size", "vocab_size", "repeats", "threads")
GIVEN = (
    "hidden_size", "num_layers", "num_heads", "intermediate_size", "vocab_size", "random_share", "batch", "dtype",
    "threads", "repeats",
)  # fmt: skip


def config_fields(name: str, arguments: argparse.Namespace) -> dict:
    return {
        "vocab_size": arguments.vocab_size,
        "hidden_size": arguments.hidden_size,
        "num_attention_heads": arguments.num_heads,
        "intermediate_size": arguments.intermediate_size,
        "pattern": pattern_of("dynamic" if name == "random" else name, arguments.num_layers),
        "router": "random",
        "random_share": arguments.random_share,
    }


def make_model(name: str, arguments: argparse.Namespace, device: torch.device, **fields) -> GdnHybridForCausalLM:
    """A model of a named configuration, in evaluation mode."""
    torch.manual_seed(0)
    model = GdnHybridForCausalLM(GdnHybridConfig(**(config_fields(name, arguments) | fields)))
    return model.to(device, DTYPES[arguments.dtype]).eval()


def furthest(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference of log-probabilities of two logits [B, T, V], by rows, since these may be large."""
    pairs = zip(found, expected, strict=True)
    return max(float((a.float().log_softmax(-1) - b.float().log_softmax(-1)).abs().max()) for a, b in pairs)


@torch.inference_mode()
def check(model: GdnHybridForCausalLM, name: str, arguments: argparse.Namespace, ids: torch.LongTensor) -> float:
    """Largest difference of log-probabilities between cached and uncached forward, and with routed blocks from the
    form that computes both branches for every token.

    Raises:
        UserError: if it is more than floats explain.
    """
    whole = model(ids, use_cache=False)
    start = model(ids[:, :-2], use_cache=True, logits_to_keep=1)
    found = [start.logits]
    for at in (-2, -1):
        token = ids[:, at:][:, :1]
        found.append(model(token, past_key_values=start.past_key_values, use_cache=True).logits)
    worst = furthest(torch.cat(found, 1), whole.logits[:, -3:])
    if whole.mechanisms is not None:
        naive = make_model(name, arguments, ids.device, router="learned")
        naive.load_state_dict(model.state_dict(), strict=False)
        gates = torch.nn.functional.one_hot(whole.mechanisms, 2).to(whole.logits.dtype)
        both = naive(ids, use_cache=False, draw_mechanisms=lambda logits: gates).logits
        worst = max(worst, furthest(both, whole.logits))
    if not worst <= TOLERANCE[model.dtype]:
        raise UserError(f"{name} is not exact: log-probabilities differ by {worst:.2g}.")
    return worst


@torch.inference_mode()
def measure(models: dict[str, GdnHybridForCausalLM], ids: torch.LongTensor, repeats: int) -> list[dict]:
    """A row for each model and phase, at a context of all of `ids` [B, T]."""
    device = ids.device

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def prefill(model):
        return lambda: model(ids, use_cache=True, logits_to_keep=1)

    def decode(model, cache):
        return lambda: model(ids[:, -1:], past_key_values=cache, use_cache=True)

    caches, held, peaks = [], [], []
    for model in models.values():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        caches.append(prefill(model)().past_key_values)
        held.append(caches[-1].memory_bytes())
        peaks.append((torch.cuda.max_memory_allocated() - before) / 2**20 if device.type == "cuda" else None)
    calls = {
        "prefill": [prefill(model) for model in models.values()],
        "decode": [decode(model, cache) for model, cache in zip(models.values(), caches, strict=True)],
    }
    rows = []
    for phase, own in calls.items():
        seconds = dict(zip(models, in_turn(own, repeats, synchronize), strict=True))
        for name, size, peak in zip(models, held, peaks, strict=True):
            rows.append(
                {
                    "phase": phase,
                    "config": name,
                    "context": ids.shape[1],
                    "ms": statistics.median(seconds[name]) * 1000,
                    "speedup": speedup(seconds[REFERENCE], seconds[name]),
                    "cache_mib": size / 2**20,
                    "peak_mib": peak if phase == "prefill" else None,
                }
            )
    return rows


def crossing(contexts: Sequence[int], speedups: Sequence[float]) -> float | None:
    """The context from which a speed-up stays above 1; the first context if it is so from there on; None if never."""
    if speedups[-1] <= 1:
        return None
    last = max((at for at, value in enumerate(speedups) if value <= 1), default=None)
    if last is None:
        return float(contexts[0])
    low, high = speedups[last], speedups[last + 1]
    start, end = math.log(contexts[last]), math.log(contexts[last + 1])
    return math.exp(start + (1 - low) / (high - low) * (end - start))


def crossings(rows: list[dict]) -> dict[str, dict[str, float | None]]:
    """By phase and configuration."""
    found: dict[str, dict[str, float | None]] = {}
    for phase in dict.fromkeys(row["phase"] for row in rows):
        for name in dict.fromkeys(row["config"] for row in rows if row["config"] != REFERENCE):
            own = [row for row in rows if (row["phase"], row["config"]) == (phase, name)]
            at = crossing([row["context"] for row in own], [row["speedup"] for row in own])
            found.setdefault(phase, {})[name] = at
    return found


def in_words(found: dict[str, dict[str, float | None]], contexts: Sequence[int]) -> list[str]:
    lines = []
    for phase, own in found.items():
        for name, at in own.items():
            if at is None:
                lines.append(f"{phase}: {name} is not faster than {REFERENCE} at {contexts[-1]:,} tokens")
            elif at == contexts[0]:
                lines.append(f"{phase}: {name} is faster than {REFERENCE} from {contexts[0]:,} tokens on, or before")
            else:
                lines.append(f"{phase}: {name} is faster than {REFERENCE} from some {at:,.0f} tokens on")
    return lines


def plot(rows: list[dict], path: Path, title: str) -> None:
    """Milliseconds of prefill and decode, and the cache, by context."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    figure, panels = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    shown = (("prefill", "ms", "prefill, ms"), ("decode", "ms", "a decoded token, ms"),
             ("decode", "cache_mib", "cache, MiB"))  # fmt: skip
    names = list(dict.fromkeys(row["config"] for row in rows))
    colors = dict(zip(PATTERNS, ("#0072B2", "#D55E00", "#009E73", "#CC79A7")))
    for axes, (phase, key, label) in zip(panels, shown, strict=True):
        for name in names:
            own = [row for row in rows if (row["phase"], row["config"]) == (phase, name)]
            axes.plot([row["context"] for row in own], [row[key] for row in own], "o-", color=colors[name], label=name,
                      markersize=4)  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="context, tokens", title=label)
        contexts = sorted({row["context"] for row in rows})
        axes.set_xticks(contexts, [str(context) for context in contexts], fontsize=8)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.grid(alpha=0.3)
    panels[0].legend()
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def run(arguments: argparse.Namespace) -> list[dict]:
    torch.set_num_threads(arguments.threads)
    device = pick_device(arguments.device)
    models = {name: make_model(name, arguments, device) for name in arguments.configs}
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(arguments.vocab_size, (arguments.batch, max(arguments.contexts)), generator=generator)
    ids = ids.to(device)
    exact = {name: check(model, name, arguments, ids[:, :CHECKED]) for name, model in models.items()}
    about = {name: getattr(arguments, name) for name in GIVEN} | {
        "parameters": {name: parameter_counts(model.config)["total"] for name, model in models.items()},
        "largest_difference": exact,
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else hardware(),
        "date": today(),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    rows: list[dict] = []
    for context in tqdm(arguments.contexts, desc="contexts"):
        rows += measure(models, ids[:, :context], arguments.repeats)
        if arguments.json:
            write_json(Path(arguments.json), about | {"crossings": crossings(rows), "rows": rows})
    return rows


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--configs", default="static,dynamic,all-softmax", help="configurations, all-softmax among them"
    )
    parser.add_argument("--contexts", default="256,512,1024,2048,4096,8192", help="tokens of the context, rising")
    parser.add_argument("--batch", type=int, default=1, help="rows")
    parser.add_argument("--hidden_size", type=int, default=768, help="width D")
    parser.add_argument("--num_layers", type=int, default=4, help="blocks")
    parser.add_argument("--num_heads", type=int, default=12, help="heads of either mechanism")
    parser.add_argument("--intermediate_size", type=int, default=3072, help="width of the MLPs")
    parser.add_argument("--vocab_size", type=int, default=49152, help="tokens of the vocabulary")
    parser.add_argument("--random_share", type=float, default=0.5, help="probability of softmax in routed blocks")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each, taken in turn")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    parser.add_argument("--device", default="auto", help="torch device; auto: cuda if there is one, else cpu")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--plot", help="file for the plot")
    return parser


def arguments_of(argv: list[str] | None = None) -> argparse.Namespace:
    arguments = make_parser().parse_args(argv)
    problems = []
    arguments.configs = [name.strip() for name in arguments.configs.split(",")]
    if unknown := sorted({*arguments.configs} - ({*PATTERNS} - {"random"})):
        problems.append(f"--configs {', '.join(unknown)}: unknown; allowed are static, dynamic, all-gdn, all-softmax")
    if REFERENCE not in arguments.configs:
        problems.append(f"--configs must have {REFERENCE}, which the others are compared with")
    try:
        arguments.contexts = sorted({int(part) for part in arguments.contexts.split(",")})
    except ValueError as error:
        problems.append(f"--contexts takes numbers with commas between them ({error})")
    else:
        if arguments.contexts[0] < 4:
            problems.append(f"--contexts {arguments.contexts[0]} must be at least 4 tokens")
    sizes = {name: getattr(arguments, name) for name in SIZES}
    small = [f"--{name} {size} must be at least 1" for name, size in sizes.items() if size < 1]
    problems += small
    if not small:
        try:
            GdnHybridConfig(**config_fields("dynamic", arguments))
        except ValueError as error:
            problems.append(f"sizes: {error}")
    for name in ("json", "plot"):
        path = getattr(arguments, name)
        if path and not Path(path).parent.is_dir():
            problems.append(f"--{name} {path}: there is no folder {Path(path).parent}")
    raise_all(problems)
    return arguments


def main() -> None:
    arguments = arguments_of()
    rows = run(arguments)
    print_rows(rows, f"hybrid models by context, in turn; {REFERENCE} is the reference", hidden=())
    for line in in_words(crossings(rows), arguments.contexts):
        print(line)
    if arguments.plot:
        plot(rows, Path(arguments.plot), f"width {arguments.hidden_size}, {arguments.dtype}, {hardware()}")


if __name__ == "__main__":
    run_command(main)
