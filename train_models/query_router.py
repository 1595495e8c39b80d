"""A router that reads the text of a query and picks the layers to prune, once, for the whole generation.

A sentence encoder (a BERT, all-MiniLM-L6-v2 as published) with masked mean pooling, and two heads Linear(E, 128) -
ReLU: scores of layers, sigmoid(Linear(128, L)), high = prune; and the share of layers to prune, N(mu, sigma) with
mu = sigmoid(Linear(128, 1)) and log sigma = -7 + 2 (tanh(Linear(128, 1)) + 1) in [-7, -3]. r = mu, or drawn;
k = round(r L) within 0..L; the k layers with the highest scores are pruned.

Deviations: the encoder has no dropout, so no decision hangs on train or eval mode; scores and mu are kept as logits,
which decide alike and lose no digits in training; a drawn r comes from a hash of the text, so it is the same each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoTokenizer, BertConfig, BertModel

from .decisions import Prompt, RowDecision, along
from .float32 import StaysFloat32, exact_math
from .query_text import encoder_inputs, query_text
from .routers import RouterLinear

ENCODER_FOLDER = "query_encoder"  # In a checkpoint: the encoder's tokenizer. Its weights are among the router's.
TEXTS_TOGETHER = 32
LOG_STD_RANGE = (-7.0, -3.0)


class QueryScores(NamedTuple):
    """What the heads say of B queries.

    Attributes:
        layers: [B, L] logits, high = prune.
        ratio: [B] logits of mu, the mean share of layers to prune.
        log_std: [B] in [-7, -3], of that share.
    """

    layers: torch.Tensor
    ratio: torch.Tensor
    log_std: torch.Tensor


class QueryHeads(nn.Module):
    """Scores of layers and their share to prune, from sentence embeddings [B, E]."""

    def __init__(self, embedding_size: int, hidden_size: int, depth: int):
        super().__init__()
        self.layers_in, self.layers_out = RouterLinear(embedding_size, hidden_size), RouterLinear(hidden_size, depth)
        self.ratio_in, self.ratio_out = RouterLinear(embedding_size, hidden_size), RouterLinear(hidden_size, 2)

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases."""
        for linear in self.children():
            linear.reset_parameters()

    def forward(self, embeddings: torch.Tensor) -> QueryScores:
        layers = self.layers_out(torch.relu(self.layers_in(embeddings)))
        ratio, spread = self.ratio_out(torch.relu(self.ratio_in(embeddings))).unbind(-1)
        low, high = LOG_STD_RANGE
        return QueryScores(layers, ratio, low + (high - low) / 2 * (torch.tanh(spread) + 1))


def pruned_counts(scores: QueryScores, bias: float = 0.0, noise: torch.Tensor | None = None) -> torch.LongTensor:
    """k [B], how many layers to prune.

    Args:
        bias: taken from the logits of mu: above 0 fewer layers are pruned.
        noise: [B] standard normal, to draw r; None: r = mu.
    """
    share, depth = torch.sigmoid(scores.ratio - bias), scores.layers.shape[1]
    if noise is not None:
        share = share + noise * scores.log_std.exp()
    return (share * depth).round().long().clamp(0, depth)


def pruned_routes(layers: torch.Tensor, counts: torch.LongTensor) -> torch.LongTensor:
    """Routes [B, L] that leave out the k layers of highest score, of equal ones the first.

    Args:
        layers: [B, L] scores.
        counts: [B], k.
    """
    rank = layers.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank >= counts[:, None]).long()


class QueryRouter(StaysFloat32, nn.Module):
    """Sentence encoder and heads.

    Attributes:
        tokenizers: of the language model and of the encoder, which no state dict holds; a checkpoint folder does.
    """

    def __init__(self, config):
        super().__init__()
        # fp32 as all routers, also where the model around it is made in half precision.
        self.encoder = BertModel(BertConfig(**config.query_encoder), add_pooling_layer=False).float()
        self.heads = QueryHeads(self.encoder.config.hidden_size, config.router_hidden_size, config.num_hidden_layers)
        self.max_tokens = config.query_max_tokens
        self.tokenizers: tuple | None = None

    def reset_parameters(self) -> None:
        """Draw the heads anew; the encoder stays what it is."""
        self.heads.reset_parameters()

    def load_tokenizers(self, place: str, **hub) -> None:
        """Both tokenizers of a checkpoint folder, or of its name on the hub."""
        inner = "/".join(part for part in (hub.get("subfolder"), ENCODER_FOLDER) if part)
        # Whoever gets here has trusted the checkpoint's code already; without saying so transformers would ask.
        own = AutoTokenizer.from_pretrained(place, trust_remote_code=True, **hub)
        self.tokenizers = own, AutoTokenizer.from_pretrained(place, **hub | {"subfolder": inner})

    def save_tokenizers(self, folder) -> None:
        """Write both where `load_tokenizers` finds them; none if there are none."""
        if self.tokenizers is not None:
            self.tokenizers[0].save_pretrained(folder)
            self.tokenizers[1].save_pretrained(Path(folder) / ENCODER_FOLDER)

    def texts(self, input_ids: torch.LongTensor, mask: torch.BoolTensor) -> list[str]:
        """The text of each row [B, T], of its tokens in a mask."""
        if self.tokenizers is None:
            raise ValueError(
                "the query router has no tokenizers to read its prompts with. Load the checkpoint with "
                "AutoModelForCausalLM.from_pretrained, or give it both: model.model.routers.tokenizers = (tokenizer, "
                "encoder tokenizer)."
            )
        rows = zip(input_ids.tolist(), mask.tolist(), strict=True)
        return [query_text(self.tokenizers[0], [t for t, real in zip(*row, strict=True) if real]) for row in rows]

    def embed(self, input_ids: torch.LongTensor, mask: torch.LongTensor) -> torch.Tensor:
        """Mean states [B, E] of the encoder over the tokens [B, S] of a mask."""
        device = next(self.encoder.parameters()).device
        input_ids, mask = input_ids.to(device), mask.to(device)
        # Counted from the first real token, as an encoder that was trained with padding on the right knows them.
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        states = self.encoder(
            input_ids=input_ids, attention_mask=mask, position_ids=positions, token_type_ids=torch.zeros_like(input_ids)
        ).last_hidden_state
        weights = mask[..., None].to(states)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings [B, E] of texts."""
        parts = [texts[start : start + TEXTS_TOGETHER] for start in range(0, len(texts), TEXTS_TOGETHER)]
        return torch.cat([self.embed(*encoder_inputs(self.tokenizers[1], part, self.max_tokens)) for part in parts])

    @torch.no_grad()
    def decide(self, texts: Sequence[str], config) -> torch.LongTensor:
        """Routes [B, L] of queries, on the CPU; see `RoutingFields` for what of a config counts."""
        with exact_math(next(self.encoder.parameters()).device):
            scores = self.heads(self.embed_texts(texts))
        noise = None
        if config.sample_ratio:
            drawn = [_standard_normal(text, config.random_seed) for text in texts]
            noise = torch.tensor(drawn, device=scores.ratio.device)
        counts = pruned_counts(scores, config.route_bias, noise)
        if config.pruned_layers is not None:
            counts = torch.full_like(counts, config.pruned_layers)
        return pruned_routes(scores.layers, counts).cpu()


def decide_by_text(router: QueryRouter, prompt: Prompt, config) -> RowDecision:
    """Routes before the first layer. Rows without prompt run every layer once."""
    if prompt.input_ids is None:
        raise ValueError(
            "a query router reads the prompt's text, which inputs_embeds do not tell. Give input_ids or routes."
        )
    routes = router.decide(router.texts(prompt.input_ids, prompt.mask), config)
    return along(torch.where(prompt.mask.any(1, keepdim=True).cpu(), routes, 1).tolist())


def _standard_normal(text: str, seed: int) -> float:
    """A number drawn from N(0, 1) by hashing text and seed."""
    digest = hashlib.sha256(f"{seed}/{text}".encode()).digest()
    return NormalDist().inv_cdf((int.from_bytes(digest[:6], "big") + 0.5) / 2**48)
