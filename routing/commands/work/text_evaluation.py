"""What `dlr text_evaluation` does: methods take the same rows of test text in turn."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from tqdm import tqdm

from routing.common.devices import DTYPES
from routing.common.errors import UserError
from routing.common.files import write_json, write_text
from routing.common.run_info import made_with
from routing.common.tables import csv_text, print_table
from routing.evaluation.text_controls import (
    Method,
    at_threshold,
    compare,
    difference,
    fixed,
    full_depth,
    loss_interval,
    random_layers,
    random_tokens,
    routed,
)
from routing.models.bases import load_base
from routing.models.checkpoint import load_checkpoint
from routing.models.checkpoint_files import checkpoint_hash, training_record
from routing.models.placement import place_of
from routing.report.card import TEXT_RESULTS, read_results, usable, write_model_card
from routing.tasks.corpora import passages
from routing.tasks.sequences import Sequences, make_sequences
from routing.training.end_to_end.static import costs_of_layers, static_route
from routing.training.end_to_end.threshold import router_logits, threshold_bias
from routing.training.end_to_end.validation import Measured, batches_of, validate

COLUMNS = (
    "run", "objective", "router", "trainable", "seed", "method", "method_seed", "target", "layers", "skip_ratio",
    "loss", "loss_low", "loss_high", "perplexity", "difference", "difference_low", "difference_high", "speedup",
    "tokens",
)  # fmt: skip
RANKING_TOKENS = 4096  # of training text, by which the static route is chosen
SHOWN = ("method", "method_seed", "layers", "loss", "loss_low", "loss_high", "perplexity", "difference", "speedup")


def text_of(training: dict, tokenizer, part: str, rows: int) -> Sequences:
    """Rows of a part of the corpus that a checkpoint was trained on, laid out as in its training."""
    length, prompt = training["sequence_length"], training["prompt_tokens"]
    texts, count = passages(training["corpus"], part), rows
    while True:  # Of a large corpus no more is tokenized than is needed.
        found = make_sequences(texts[:count], tokenizer, length, training["layout"], prompt)
        if len(found) >= rows or count >= len(texts):
            break
        count *= 2
    if not len(found):
        raise UserError(
            f"the {part} part of {training['corpus']!r} makes no row of {length} tokens; give a larger one."
        )
    return Sequences(found.ids[:rows], found.lengths[:rows])


def controls_of(model, names: list[str], skipped: float, ranking: list, seeds: int) -> list[Method]:
    """Controls that leave out a share of the routable layers: random ones, and the best fixed ones around it."""
    depth, kept = model.config.num_hidden_layers, model.config.kept_layers
    makers = [make for make in (random_tokens, random_layers) if make.__name__ in names]
    methods = [make(model, skipped, seed) for make in makers for seed in range(seeds)]
    if "static" not in names:
        return methods
    count = skipped * (depth - kept)
    costs = costs_of_layers(model, ranking, kept)
    for out in sorted({math.floor(count + 1e-6), math.ceil(count - 1e-6)}):
        methods.append(fixed(model, static_route(costs, depth, out)))
    return methods


def rows_of_table(methods: list[Method], totals: list[Measured], about: dict, kept: int) -> list[dict]:
    """One dict with COLUMNS for each method."""
    named = {method.name: total for method, total in zip(methods, totals)}
    found = []
    for method, total in zip(methods, totals):
        low, high = loss_interval(total)
        routable = total.layer_shares[kept:]
        row = about | {
            "method": method.name,
            "method_seed": method.seed,
            "layers": total.layers,
            "skip_ratio": 1 - sum(routable) / len(routable),
            "loss": total.loss,
            "loss_low": low,
            "loss_high": high,
            "perplexity": math.exp(total.loss),
            "speedup": named["full"].seconds / total.seconds,
            "target": method.target,
            "tokens": total.tokens,
        }
        if "routed" in named and method.name != "routed":
            gap, (below, above) = difference(total, named["routed"])
            row |= {"difference": gap, "difference_low": below, "difference_high": above}
        found.append(row)
    return found


def print_rows(rows: list[dict], title: str) -> None:
    cells = ([row.get(name) for name in SHOWN] for row in rows)
    shown = [["" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in line] for line in cells]
    print_table(title, SHOWN, shown, width=140)


def run(arguments: argparse.Namespace) -> None:
    folder, place = Path(arguments.checkpoint), place_of(arguments)
    record = training_record(folder)
    training, checkpoint_sha256 = record["arguments"], checkpoint_hash(folder)
    model, tokenizer = load_checkpoint(folder, DTYPES[arguments.dtype], place)
    kept, depth = model.config.kept_layers, model.config.num_hidden_layers
    batches, ranking = (
        batches_of(
            text_of(training, tokenizer, part, rows), arguments.batch_size, training["prompt_tokens"], model.device
        )
        for part, rows in (("test", arguments.rows), ("train", max(RANKING_TOKENS // training["sequence_length"], 1)))
    )
    methods = [full_depth(model)]
    if training["trainable"] == "lora":  # Else it is the model at full depth.
        own = (DTYPES[arguments.dtype], record.get("base_revision"), place)
        base = load_base(training["model_id"], *own, router="none", kept_layers=kept)
        methods.append(full_depth(base, "base"))
    decides = model.config.router != "none" or model.config.fixed_route is not None
    skipped = None
    if decides:
        methods.append(routed(model))
        shares = validate(model, batches).layer_shares[kept:]
        skipped = 1 - sum(shares) / len(shares)
    elif arguments.skip is not None:
        skipped = arguments.skip * depth / (depth - kept)
        if skipped > 1:
            raise UserError(
                f"--skip {arguments.skip} is more than the {depth - kept} of {depth} layers that can be skipped; give "
                f"at most {(depth - kept) / depth:.3f}."
            )
    if arguments.thresholds:
        logits = router_logits(model, ranking)
        methods += [at_threshold(model, share, threshold_bias(logits, share)) for share in arguments.thresholds]
    if skipped is not None and arguments.controls:
        methods += controls_of(model, arguments.controls, skipped, ranking, arguments.seeds)
    totals = compare(methods, batches, lambda all_: tqdm(all_, desc="evaluating text"))
    about = {"run": training["run_name"]} | {
        name: training[name] for name in ("objective", "router", "trainable", "seed")
    }
    rows = rows_of_table(methods, totals, about, kept)
    shown = totals[[method.name for method in methods].index("routed" if decides else "full")]
    facts = {"corpus": training["corpus"], "part": "test", "arguments": vars(arguments)} | made_with()
    facts["threads"], facts["checkpoint_sha256"] = torch.get_num_threads(), checkpoint_sha256
    write_json(folder / TEXT_RESULTS, facts | {"rows": rows, "layer_shares": shown.layer_shares})
    write_text(folder / "controls.csv", csv_text(COLUMNS, ([row.get(name) for name in COLUMNS] for row in rows)))
    write_text(folder / "layers.csv", csv_text(("layer", "share"), enumerate(shown.layer_shares)))
    write_model_card(folder, usable(read_results, folder))
    print_rows(rows, f"{training['run_name']}: {len(totals[0].losses)} rows of {training['corpus']}, test part")
