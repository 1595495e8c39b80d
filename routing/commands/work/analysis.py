"""What `dlr analysis` does: kinds of tokens, their layers, and what layers go with."""

from __future__ import annotations

import argparse
import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from routing.common.devices import DTYPES
from routing.common.errors import UserError
from routing.common.files import write_json
from routing.common.parser import file_of
from routing.common.run_info import made_with
from routing.common.statistics import pearson
from routing.evaluation.text_controls import bootstrap
from routing.models.checkpoint import load_checkpoint
from routing.models.placement import place_of
from routing.tasks.corpora import passages
from routing.tasks.sequences import TextBatch, make_sequences, tokenized
from routing.training.end_to_end.validation import batches_of

KINDS = ("punctuation", "stop word", "numeric", "continuation", "frequent", "high-loss")
FREQUENT = 100  # token ids
WORDS = """
a about after all also an and any are as at be because been before but by can could did do does for from had has
have he her him his how i if in into is it its may more most my no not of on one or other our she should so some
such than that the their them then there these they this those through to under up us was we were what when where
which while who will with would you your
"""
STOP_WORDS = frozenset(WORDS.split())


def continues(before: str, piece: str) -> bool:
    """Whether a piece of text goes on with the word that the text before it ends with."""
    start = piece[1:] if piece[:1] in ("'", "’") else piece
    return before[-1:].isalnum() and start[:1].isalnum()


def kinds_of(pieces: Sequence[str]) -> list[set[str]]:
    """Kinds that tell from the text alone, of each piece of a passage.

    Args:
        pieces: texts of the tokens in order, with their leading spaces.
    """
    found = []
    for before, piece, after in zip(["", *pieces], pieces, [*pieces[1:], ""]):
        text, own = piece.strip(), set()
        if text and all(unicodedata.category(letter)[0] in "PS" for letter in text):
            own.add("punctuation")
        if any(letter.isdigit() for letter in text) and not any(letter.isalpha() for letter in text):
            own.add("numeric")
        if continues(before, piece):
            own.add("continuation")
        elif text.lower() in STOP_WORDS and not continues(piece, after):
            own.add("stop word")
        found.append(own)
    return found


def piece_texts(tokenizer, ids: Sequence[int]) -> list[str]:
    """Text of each token alone; a leading space that SentencePiece decodes away is put back."""
    texts = []
    for token, name in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
        text = tokenizer.decode([token])
        texts.append(" " + text if name.startswith("▁") and not text.startswith(" ") else text)
    return texts


def rarity(ids: np.ndarray, counts: Counter, vocabulary: int) -> np.ndarray:
    """-log frequency of tokens in nats; one occurrence is added to each token of the vocabulary."""
    total = sum(counts.values()) + vocabulary
    return np.array([math.log(total / (counts[token] + 1)) for token in ids.tolist()])


@dataclass
class Tokens:
    """Real tokens of passages, one behind the other.

    Attributes:
        ids: token ids.
        layers: executed for each.
        losses: cross-entropy in nats of the prediction made at each; NaN where none counts.
        rows: passage of each.
        executed: [L], how many tokens ran each layer.
    """

    ids: list[int] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    executed: np.ndarray | int = 0


@torch.inference_mode()
def collect(model, batches: Sequence[TextBatch]) -> Tokens:
    """What the model does with each real token of some batches."""
    found, row = Tokens(), 0
    kept = model.config.kept_layers
    for batch in tqdm(batches, desc="passages"):
        logits = model(
            batch.ids, attention_mask=batch.mask, prompt_lengths=batch.prompt_lengths, use_cache=False
        ).logits
        gates = model.model.last_gates
        if gates is None:  # One route for all tokens of a row.
            runs = model.last_routes[:, None].expand(-1, batch.ids.shape[1], -1)
        else:
            runs = torch.nn.functional.pad(gates, (kept, 0), value=True)
        flat = logits.flatten(0, 1).float(), batch.targets.flatten()
        losses = torch.nn.functional.cross_entropy(*flat, reduction="none").view_as(batch.targets)
        losses = losses.masked_fill(~batch.counted, math.nan)
        for ids, mask, own, loss in zip(batch.ids, batch.mask.bool().cpu(), runs.cpu().long(), losses.cpu()):
            real = own[mask]
            found.ids += ids.cpu()[mask].tolist()
            found.layers += real.sum(-1).tolist()
            found.losses += loss[mask].tolist()
            found.rows += [row] * len(real)
            found.executed = found.executed + real.sum(0).numpy()
            row += 1
    return found


def pearson_of_clusters(first: np.ndarray, second: np.ndarray, rows: np.ndarray) -> dict:
    """Pearson's r of pairs of numbers; tokens of one passage are not independent, so its interval is over passages.

    Args:
        rows: the passage of each pair.

    Returns:
        as `pearson`.
    """
    found = pearson(first, second)
    passages_ = np.unique(rows)
    if found["r"] is None or len(passages_) < 4:
        return found | {"ci95": None}
    # n, sums, squares and products of each passage; r of any passages comes of their sums.
    parts = np.stack([np.ones_like(first), first, second, first * first, second * second, first * second], 1)
    sums = np.stack([parts[rows == row].sum(0) for row in passages_])

    def r_of(chosen: np.ndarray) -> float:
        n, x, y, xx, yy, xy = sums[chosen].sum(0)
        spread = (n * xx - x * x) * (n * yy - y * y)
        return (n * xy - x * y) / math.sqrt(spread) if spread > 0 else 0.0

    return found | {"ci95": bootstrap(r_of, len(passages_))}


def summary(tokens: Tokens, kinds: Sequence[set[str]], counts: Counter, vocabulary: int) -> dict:
    """Means and correlations.

    Args:
        kinds: of each token, from its text.
        counts: of token ids in other text, for frequent and rare ones.
        vocabulary: how many token ids there are.
    """
    ids, layers, losses = np.array(tokens.ids), np.array(tokens.layers), np.array(tokens.losses)
    rows = np.array(tokens.rows)
    frequent = {token for token, _ in counts.most_common(FREQUENT)}
    of_kind = {name: np.array([name in own for own in kinds]) for name in KINDS[:4]}
    of_kind["frequent"] = np.isin(ids, list(frequent))
    of_kind["high-loss"] = losses >= np.nanquantile(losses, 0.75)  # False for NaN
    categories = {"all": _mean_of(layers)} | {name: _mean_of(layers[of_kind[name]]) for name in KINDS}
    passages_ = [rows == row for row in np.unique(rows)]
    by_row = [float(layers[own].mean()) for own in passages_]
    perplexities = [float(np.exp(np.nanmean(losses[own]))) for own in passages_]
    return {
        "tokens": len(ids),
        "predicted_tokens": int((~np.isnan(losses)).sum()),
        "passages": len(passages_),
        "mean_layers": float(layers.mean()),
        "categories": categories,
        "correlations": {
            "passage_length": pearson([int(own.sum()) for own in passages_], by_row),
            "passage_perplexity": pearson(perplexities, by_row),
            "token_rarity": pearson_of_clusters(rarity(ids, counts, vocabulary), layers, rows),
        },
        "layer_skip_rates": (1 - tokens.executed / len(ids)).tolist(),
    }


def _mean_of(layers: np.ndarray) -> dict:
    return {"tokens": len(layers), "layers": float(layers.mean()) if len(layers) else None}


def run(arguments: argparse.Namespace) -> None:
    folder, place = Path(arguments.checkpoint), place_of(arguments)
    model, tokenizer = load_checkpoint(folder, DTYPES[arguments.dtype], place)
    texts = passages(arguments.corpus, "validation", arguments.passages)
    rows = make_sequences(texts, tokenizer, arguments.sequence_length, "padded", arguments.prompt_tokens)
    if not len(rows):
        raise UserError(
            f"no validation passage of {arguments.corpus!r} has more than --prompt_tokens {arguments.prompt_tokens} "
            "tokens; give more passages or fewer prompt tokens."
        )
    tokens = collect(model, batches_of(rows, arguments.batch_size, arguments.prompt_tokens, model.device))
    kinds = []
    for ids, length in zip(rows.ids.tolist(), rows.lengths.tolist()):
        kinds += kinds_of(piece_texts(tokenizer, ids[:length]))
    known = tokenized(passages(arguments.corpus, "train", arguments.train_passages), tokenizer)
    counts = Counter(token for document in known for token in document)
    about = {
        "router": model.config.router,
        "kept_layers": model.config.kept_layers,
        "arguments": vars(arguments),
    } | made_with()
    found = summary(tokens, kinds, counts, len(tokenizer))
    output = file_of(arguments.output, "analysis.json")
    write_json(output, found | about)
    for name, own in found["categories"].items():
        layers = "no token" if own["layers"] is None else f"{own['layers']:.2f} layers"
        print(f"{name}: {layers}, n {own['tokens']}")
    print(f"written to {output}")
