"""How much faster is a model whose tokens each skip layers? Gathered against masked and the stock model, in turn.

    .venv/bin/python benchmarks/token_routing.py --batch 1,8 --prompt_tokens 512 --skipped 0,0.2,0.4,0.6 --repeats 5 \\
        --json benchmarks/results/token_routing.json --plot benchmarks/results/token_routing.png

Gates are random: each token skips each routable layer (all behind the first 4) with probability `skipped_fraction`.
- gathered: how models of this project run. Keys and values of all tokens, the rest of a layer for those that run.
- masked: each layer for every token, kept where the gate is on: what training does, and published code.
Both include a prefix_token router. `ideal` is the arithmetic of the stock model over what must be computed: keys,
values and router for all tokens, query, attention, output and MLP for those that run, the vocabulary for the last one.
`share` is the measured speed-up over the ideal. Nothing is timed unless the first 64 tokens and one decoded behind them
have the log-probabilities of the masked form.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from routed_speed import TOLERANCE, Models, about, arguments_of, in_turn, print_rows, speedup
from tqdm import tqdm

from routing.common.errors import UserError, run_command
from routing.common.files import write_json
from routing.common.run_info import hardware

KEPT = 4


class Work:
    """Multiplications and additions of a forward of T tokens behind P tokens in the cache, a row.

    Raises:
        UserError: for layers with experts, or with one projection for queries, keys and values.
    """

    def __init__(self, model):
        config, layer = model.config, model.model.layers[0]
        if getattr(config, "num_experts", 0) or not hasattr(layer.self_attn, "q_proj"):
            raise UserError(
                f"the work of a {config.model_type} is not counted: it has experts, or one projection for queries, "
                "keys and values. Give a base of another family, such as Llama or Qwen3."
            )
        sizes = {
            name: module.weight.numel() for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)
        }
        self.always = sum(size for name, size in sizes.items() if name.endswith(("k_proj", "v_proj")))
        self.rest = sum(sizes.values()) - self.always
        self.attention = 2 * layer.self_attn.q_proj.out_features  # a query and key
        self.logits = config.hidden_size * config.vocab_size  # of one token
        self.router = sum(linear.weight.numel() for linear in model.model.routers.linears)
        self.depth = config.num_hidden_layers

    def of(self, tokens: int, past: int, skip: float) -> float:
        """Work where a share of the routable layers is skipped; a causal token attends to itself and all before it."""
        attended = tokens * past + tokens * (tokens + 1) / 2
        own = tokens * self.rest + attended * self.attention
        layers = KEPT + (self.depth - KEPT) * (1 - skip)
        return self.depth * tokens * self.always + layers * own + self.logits

    def ideal(self, tokens: int, past: int, skip: float) -> float:
        return self.of(tokens, past, 0.0) / (self.of(tokens, past, skip) + tokens * self.router)


class Gates:
    """Random gates in place of the router's, which is computed all the same."""

    def __init__(self, skip: float, hard: bool):
        self.skip, self.hard, self.generator = skip, hard, None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        if self.generator is None:
            self.generator = torch.Generator(logits.device).manual_seed(0)
        gates = torch.rand(logits.shape, generator=self.generator, device=logits.device) >= self.skip
        return gates if self.hard else gates.float()


@torch.inference_mode()
def check(models: Models, prompts: torch.LongTensor, skip: float) -> float:
    """Largest difference of log-probabilities between the gathered and the masked form, of a prompt and a token behind.

    Raises:
        UserError: if it is more than floats explain.
    """
    found = []
    for hard in (True, False):
        gates = Gates(skip, hard)
        output = models.routed(prompts, use_cache=True, logits_to_keep=1, draw_gates=gates)
        after = models.routed(prompts[:, :1], past_key_values=output.past_key_values, draw_gates=gates)
        found.append(torch.cat([output.logits, after.logits], 1).float().log_softmax(-1))
    worst = float((found[0] - found[1]).abs().max())
    if worst > TOLERANCE[models.dtype]:
        raise UserError(f"{skip:.0%} skipped: gathered and masked log-probabilities differ by {worst:.2g}.")
    return worst


@torch.inference_mode()
def measure(models: Models, prompts: torch.LongTensor, skips: list[float], repeats: int, decode: bool) -> list[dict]:
    """A row for each share of skipped layers: medians of the ratios of neighbouring runs."""

    def caller(model, **given):
        if not decode:
            return lambda: model(prompts, use_cache=True, logits_to_keep=1, **given)
        cache, token = model(prompts, use_cache=True, logits_to_keep=1, **given).past_key_values, prompts[:, -1:]
        return lambda: model(token, past_key_values=cache, use_cache=True, **given)

    calls = [caller(models.dense)]
    for skip in skips:
        calls += [caller(models.routed, draw_gates=Gates(skip, hard)) for hard in (True, False)]
    dense, *others = in_turn(calls, repeats, models.synchronize)
    work, rows = Work(models.routed), []
    size = (1, prompts.shape[1]) if decode else (prompts.shape[1], 0)
    for skip, gathered, masked in zip(skips, others[::2], others[1::2], strict=True):
        ideal, fast = work.ideal(*size, skip), speedup(dense, gathered)
        rows.append(
            {
                "phase": "decode" if decode else "prefill",
                "batch": len(prompts),
                "prompt_tokens": prompts.shape[1],
                "skipped_fraction": skip,
                "ideal": ideal,
                "share": fast / ideal,
                "speedup": fast,
                "masked": speedup(dense, masked),
                "over_masked": speedup(masked, gathered),
            }
        )
    return rows


def plot(rows: list[dict], path: Path, title: str) -> None:
    """Speed-up over the stock model by share of layers skipped, a panel for each phase and batch."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cases = list(dict.fromkeys((row["phase"], row["batch"], row["prompt_tokens"]) for row in rows))
    figure, panels = plt.subplots(
        1, len(cases), figsize=(3.6 * len(cases), 3.8), layout="constrained", squeeze=False, sharey=True
    )
    for axes, case in zip(panels[0], cases, strict=True):
        own = [row for row in rows if (row["phase"], row["batch"], row["prompt_tokens"]) == case]
        for name, style in (("ideal", "k--"), ("speedup", "o-"), ("masked", "s:")):
            label = {"ideal": "ideal", "speedup": "gathered", "masked": "masked"}[name]
            axes.plot(
                [row["skipped_fraction"] for row in own], [row[name] for row in own], style, label=label, markersize=4
            )
        axes.axhline(1, color="grey", linewidth=0.7)
        axes.set(title=f"{case[0]}, batch {case[1]}, {case[2]} tokens", xlabel="share of routable layers skipped")
        axes.title.set_fontsize(9)
    panels[0][0].set_ylabel("speed-up over the stock model")
    panels[0][0].legend()
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def run(arguments: argparse.Namespace) -> list[dict]:
    torch.set_num_threads(arguments.threads)
    models = Models(arguments, router="prefix_token", kept_layers=KEPT)
    models.routed.model.init_routers()
    sizes = [(b, t) for b in arguments.batch for t in arguments.prompt_tokens if b * t <= arguments.tokens_at_most]
    rows: list[dict] = []
    for decode in (False, True):
        for batch, tokens in tqdm(sizes, desc="decode" if decode else "prefill"):
            prompts = models.prompts(batch, tokens)
            for skip in arguments.skipped:
                check(models, prompts[:, :64], skip)
            rows += measure(models, prompts, arguments.skipped, arguments.repeats, decode)
            if arguments.json:
                write_json(Path(arguments.json), about(arguments) | {"kept_layers": KEPT, "rows": rows})
    return rows


def main() -> None:
    arguments = arguments_of(__doc__)
    rows = run(arguments)
    print_rows(rows, "stock model against tokens that each skip layers, in turn", hidden=())
    if arguments.plot:
        plot(rows, Path(arguments.plot), f"{arguments.model}, {arguments.dtype}, {hardware()}")


if __name__ == "__main__":
    run_command(main)
