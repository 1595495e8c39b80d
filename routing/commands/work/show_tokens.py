"""What `dlr show_tokens` does: the routes of a text's tokens, as colours."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text
from transformers import AutoTokenizer

from routing.common.errors import UserError
from routing.common.files import write_text
from routing.models.checkpoint import load_checkpoint
from routing.models.checkpoint_files import HYBRID, read_config
from routing.report.page import page
from routing.tasks.prompts import encode
from train_models.modeling_gdn_hybrid import GdnHybridForCausalLM

LOW, HIGH = (86, 180, 233), (230, 159, 0)  # Okabe and Ito (2008): told apart by colour-blind readers.


@dataclass(frozen=True)
class Line:
    """One line of colours.

    Attributes:
        title: which block or layer, and what the colours say.
        shares: of each token, 0 to 1: taking softmax, or running layers.
        names: what 0 and 1 are called.
    """

    title: str
    shares: list[float]
    names: tuple[str, str]


def hybrid_lines(model, ids: torch.LongTensor) -> dict[int, Line]:
    """A line for each routed block, by its index.

    Raises:
        UserError: if the model has none.
    """
    blocks = model.config.routed_blocks
    if not blocks:
        raise UserError(
            f"no block of this model chooses, its pattern is {'-'.join(model.config.pattern)}; give a checkpoint of "
            "--config dynamic or random."
        )
    with torch.inference_mode():
        mechanisms = model(ids, use_cache=False).mechanisms[0].float()  # [T, R]
    found = {}
    for place, block in enumerate(blocks):
        shares = mechanisms[:, place].tolist()
        title = f"block {block}: {sum(shares) / len(shares):.1%} of {len(shares)} tokens take softmax"
        found[block] = Line(title, shares, ("gdn", "softmax"))
    return found


def skipping_lines(model, ids: torch.LongTensor) -> dict[int | None, Line]:
    """Of a router that skips layers by token: a line of all routable layers, under None, and one for each."""
    with torch.inference_mode():
        model(ids, use_cache=False, logits_to_keep=1)
    gates = model.model.last_gates[0].float()  # [T, R]
    first, names = model.config.kept_layers, ("skips", "runs")
    title = f"layers from {first} on: {gates.mean():.1%} of them run, {len(gates)} tokens"
    found: dict[int | None, Line] = {None: Line(title, gates.mean(1).tolist(), ("all skipped", "all run"))}
    for layer, column in enumerate(gates.T, first):
        found[layer] = Line(f"layer {layer}: {column.mean():.1%} of the tokens run it", column.tolist(), names)
    return found


def color(share: float) -> tuple[int, int, int]:
    """Between LOW, share 0, and HIGH, share 1."""
    return tuple(round(low + share * (high - low)) for low, high in zip(LOW, HIGH, strict=True))


def pieces(tokenizer, ids: list[int]) -> list[str]:
    """The text of each token; a character that several tokens share stands at the last of them."""
    found, before = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False)
        whole = text.rstrip("�") if end < len(ids) else text
        found.append(whole[len(before) :])
        before = whole
    return found


def console_text(tokens: list[str], line: Line) -> Text:
    """A line for a terminal: the title, then the text on the colours of its tokens."""
    found = Text(f"{line.title}\n", style="bold")
    for token, share in zip(tokens, line.shares, strict=True):
        red, green, blue = color(share)
        found.append(token, style=f"not bold black on rgb({red},{green},{blue})")
    return found


def html_page(tokens: list[str], lines: list[Line], title: str) -> str:
    """A page that needs nothing beside it; the share of a token stands in its tooltip."""
    parts = []
    for line in lines:
        marked = "".join(
            f'<span style="background:rgb{color(share)}" title="{share:.2f}">{escape(token)}</span>'
            for token, share in zip(tokens, line.shares, strict=True)
        )
        key = " ".join(
            f'<span style="background:rgb{color(share)}; padding: 0 .4em">{name}</span>'
            for share, name in zip((0.0, 1.0), line.names, strict=True)
        )
        parts.append(
            f'<section>\n<h2>{escape(line.title)}</h2>\n<p>{key}</p>\n<p style="white-space: pre-wrap; line-height: '
            f'1.9">{marked}</p>\n</section>'
        )
    return page(title, "\n".join(parts))


def lines_of(folder: Path, text: str, max_tokens: int) -> tuple[list[str], dict[int | None, Line]]:
    """Tokens of a text and the lines that a checkpoint gives it.

    Raises:
        UserError: if the checkpoint decides nothing for tokens, or the text is empty.
    """
    if read_config(folder)["model_type"] == HYBRID:
        model = GdnHybridForCausalLM.from_pretrained(folder).eval()
        # With the config: without it transformers asks whether to run the code of the folder.
        tokenizer, lines = AutoTokenizer.from_pretrained(folder, config=model.config), hybrid_lines
    else:
        model, tokenizer = load_checkpoint(folder, torch.float32, torch.device("cpu"))
        lines = skipping_lines
    ids = encode(tokenizer, text)[:max_tokens]
    return pieces(tokenizer, ids), lines(model, torch.tensor([ids]))


def run(arguments: argparse.Namespace, text: str) -> None:
    tokens, lines = lines_of(arguments.checkpoint, text, arguments.max_tokens)
    if arguments.layer is not None and arguments.layer not in lines:
        raise UserError(
            f"--layer {arguments.layer}: nothing is decided there; give one of "
            f"{', '.join(str(layer) for layer in lines if layer is not None)}."
        )
    if arguments.layer is not None:
        shown = [lines[arguments.layer]]
    else:
        shown = [lines[None]] if None in lines else list(lines.values())
    console = Console(highlight=False)
    for line in shown:
        console.print(console_text(tokens, line), end="\n\n")
    low, high = shown[0].names
    key = Text.assemble((f" {low} ", f"black on rgb{LOW}"), " ", (f" {high} ", f"black on rgb{HIGH}"))
    console.print(key)
    if arguments.html:
        name = arguments.checkpoint.resolve().name
        write_text(arguments.html, html_page(tokens, shown, f"Tokens by what they took: {name}"))
        print(f"written to {arguments.html}", file=sys.stderr)
