"""Tiny random models of every family, and the naive forward that the tests compare the real ones with."""

from __future__ import annotations

import gc
import json
import os
import shutil
import tempfile

# Read when transformers is imported: the code of saved checkpoints is copied here, and must not stay behind.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="hf_modules_")
os.environ["HF_HUB_OFFLINE"] = "1"
# Of the hub the tests see what they put there themselves.
os.environ["HF_HUB_CACHE"] = tempfile.mkdtemp(prefix="hf_hub_")
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import importlib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.utils.collect_env
import transformers
from hypothesis import settings
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from routing.models import families
from routing.models.checkpoint import save_checkpoint
from routing.models.default_model import default_model_folder
from train_models.modeling_llama import RoutedLlamaForCausalLM

# Models take longer than hypothesis' deadline on a busy core; every run tries the same examples.
settings.register_profile("models", deadline=None, database=None, derandomize=True, max_examples=6)
settings.load_profile("models")

# lm-eval describes the machine behind every evaluation, by pip and other programs: a second or more each time.
torch.utils.collect_env.get_pretty_env_info = lambda: "not looked at"

LAYERS, VOCAB, WINDOW = 5, 97, 4
WIDE = 64  # tokens of a window that no test fills
TINY_WORDS = 1024
TOLERANCE = 1e-4


# Real processes and kills: few tests, long ones. They go first, or one worker would end with them alone.
LONG_FILES = ("test_stages.py", "test_sharding.py", "test_end_to_end_training.py", "test_evaluation.py")


# Families that add little to the code of the others run all shared tests in the slow run, a short form in every run.
LATE_FAMILIES = ("mistral", "smollm3", "gemma", "granite", "olmo", "phi3", "qwen3_moe")
SHORT_FORM = "test_families.py"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG_FILES)
    for item in items:
        parameters = item.name.lower().partition("[")[2]
        late = any(name in parameters for name in LATE_FAMILIES)
        if late and item.path.name != SHORT_FORM:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish():
    """All that was imported stays to the end: the collector, which the Trainer calls by name, need not look at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _remove_caches():
    yield
    for name in ("HF_MODULES_CACHE", "HF_HUB_CACHE"):
        shutil.rmtree(os.environ[name], ignore_errors=True)


@dataclass(frozen=True)
class Family:
    """The classes of one model family; `overrides` are config fields of a variant of it."""

    name: str
    config: type
    stock: type
    routed_config: type
    routed: type
    path: type
    overrides: tuple[tuple[str, object], ...] = ()

    def __str__(self) -> str:
        return self.name


def known(model_type: str, **overrides) -> Family:
    """A family of the toolkit by its row in the table of families."""
    module, prefix = families.FAMILIES[model_type]
    stock, routed = getattr(transformers, f"{prefix}ForCausalLM"), families.routed_class(model_type)
    path = getattr(importlib.import_module(f"data_models.{module}"), f"Path{prefix}ForCausalLM")
    name = module.removeprefix("modeling_")
    return Family(name, stock.config_class, stock, routed.config_class, routed, path, tuple(overrides.items()))


LLAMA, QWEN2, QWEN3 = known("llama"), known("qwen2"), known("qwen3")
MISTRAL = known("mistral", sliding_window=None)
# Layers 1 and 3 have no rotary embedding.
SMOLLM3 = known("smollm3", no_rope_layers=[1, 0, 1, 0, 1], layer_types=["full_attention"] * LAYERS)
KINDS = {"f": "full_attention", "s": "sliding_attention"}
# A rotary embedding for each type of layer, a cap on logits.
GEMMA3 = known(
    "gemma3_text", sliding_window=WIDE, layer_types=[KINDS[letter] for letter in "ssfsf"],
    final_logit_softcapping=20.0, query_pre_attn_scalar=16,
)  # fmt: skip
GRANITE = known(
    "granite", embedding_multiplier=3.0, residual_multiplier=0.5, attention_multiplier=0.3, logits_scaling=2.0
)
OLMO2 = known("olmo2")
# Caps on attention and logits; eager attention alone knows the former.
GEMMA2 = known(
    "gemma2", sliding_window=WIDE, layer_types=[KINDS[letter] for letter in "sfsfs"], attn_logit_softcapping=5.0,
    final_logit_softcapping=20.0, query_pre_attn_scalar=16,
)  # fmt: skip
# One map for queries, keys and values; half of each head is turned.
PHI3 = known("phi3", rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5})
OLMO3 = known(
    "olmo3", sliding_window=WIDE, layer_types=[KINDS[letter] for letter in "ssfsf"],
    rope_parameters={
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32,
        },
    },
)  # fmt: skip
# Layer 1 has no experts.
QWEN3_MOE = known(
    "qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, mlp_only_layers=[1],
    norm_topk_prob=True,
)  # fmt: skip
OLMOE = known("olmoe", num_experts=4, num_experts_per_tok=2, clip_qkv=3.0)
LATE = (MISTRAL, SMOLLM3, GEMMA3, GRANITE, OLMO2, GEMMA2, PHI3, OLMO3, QWEN3_MOE, OLMOE)
FAMILIES = (LLAMA, QWEN2, QWEN3, *LATE)


def sliding(family: Family, layer_types: str) -> Family:
    """A variant with one letter a layer: f for full and s for sliding-window attention."""
    overrides = (
        ("use_sliding_window", True),
        ("sliding_window", WINDOW),
        ("layer_types", [KINDS[letter] for letter in layer_types]),
    )
    return Family(f"{family.name}-{layer_types}", *list(vars(family).values())[1:6], overrides)


def narrow(family: Family) -> Family:
    """A variant whose windows are shorter than the tests' texts."""
    overrides = dict(family.overrides) | {"sliding_window": WINDOW}
    return replace(family, name=f"{family.name}-window", overrides=tuple(overrides.items()))


# Mistral has a window in every layer, and no list of layer types.
SLIDING_FAMILIES = (sliding(QWEN2, "fssfs"), sliding(QWEN3, "sfsfs"), narrow(MISTRAL), narrow(GEMMA3))
# No layer whose cache knows the whole length; tested where the cache is, not everywhere.
ALL_SLIDING = sliding(QWEN3, "sssss")


@pytest.fixture(params=FAMILIES, ids=str)
def family(request) -> Family:
    return request.param


@pytest.fixture(params=FAMILIES + SLIDING_FAMILIES, ids=str)
def any_family(request) -> Family:
    return request.param


def config_fields(family: Family, **overrides) -> dict:
    """Fields of a tiny config with grouped-query attention and no special tokens."""
    fields = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        "attn_implementation": "sdpa",
    }
    fields |= dict(family.overrides) | overrides
    if not family.stock._supports_sdpa:  # Its softcap is in eager attention alone.
        fields["attn_implementation"] = "eager"
    return fields


def four_dimensional(visible: torch.Tensor, model) -> torch.Tensor:
    """A mask [B, 1, T, T] as a model's attention takes it, of which tokens are visible."""
    if model.config._attn_implementation != "eager":
        return visible
    return torch.zeros_like(visible, dtype=torch.float).masked_fill(~visible, torch.finfo(torch.float32).min)


def stock_model(family: Family, seed: int = 0, **overrides):
    """A stock model whose layers matter: with transformers' small initial weights, a wrong path hardly shows."""
    model = family.stock(family.config(**config_fields(family, **overrides))).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.normal_(1.0, 0.2)
            else:
                parameter.normal_(0.0, 0.3)
    return model


@cache
def tiny_tokenizer():
    """The default tokenizer with its first words alone: with all 49,152 a tiny model is hardly more than its head."""
    folder = Path(tempfile.mkdtemp(prefix="tokenizer_"))
    for path in Path(default_model_folder()).iterdir():
        if path.name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(path, folder)
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    model = whole["model"]
    model["vocab"] = {word: number for word, number in model["vocab"].items() if number < TINY_WORDS}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    path.write_text(json.dumps(whole), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    shutil.rmtree(folder)
    return tokenizer


def save_tiny_base(folder, layers: int, **fields):
    """A tiny random Llama with a small tokenizer, saved in a folder, for tests of commands."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=layers,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **({"initializer_range": 0.3} | fields),
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_checkpoint(folder, layers: int, run_info: dict | None = None):
    """A checkpoint whose random routers decide differently from prompt to prompt, and its base beside it."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    base = save_tiny_base(folder / "base", layers, initializer_range=0.5, **sizes)
    routed = RoutedLlamaForCausalLM.from_pretrained(base)
    routers = {name: torch.randn_like(tensor) for name, tensor in routed.model.routers.state_dict().items()}
    information = {"arguments": {"model_id": str(base)}} | (run_info or {})
    save_checkpoint(folder / "checkpoint", str(base), routers, {}, "copy", information)
    return folder / "checkpoint"


def routed_from(family: Family, stock, router_seed: int | None = None, **overrides):
    """The routed model with the weights of `stock`; with `router_seed`, its routers take varied decisions."""
    fields = config_fields(family, tie_word_embeddings=stock.config.tie_word_embeddings)
    own = {"attn_implementation": stock.config._attn_implementation, "router_hidden_size": 16} | overrides
    if not family.stock._supports_sdpa:
        own["attn_implementation"] = "eager"
    model = family.routed(family.routed_config(**(fields | own))).eval()
    missing, unexpected = model.load_state_dict(stock.state_dict(), strict=False)
    assert not unexpected and all(".routers." in name or ".adapters." in name for name in missing)
    if router_seed is not None:
        torch.manual_seed(router_seed)
        with torch.no_grad():
            for parameter in model.model.routers.parameters():
                parameter.normal_(0.0, 1.0)
    return model


def path_from(family: Family, stock):
    """The model of data_models with the weights of `stock`."""
    fields = config_fields(family, tie_word_embeddings=stock.config.tie_word_embeddings)
    fields["attn_implementation"] = stock.config._attn_implementation
    model = family.path(family.config(**fields)).eval()
    model.load_state_dict(stock.state_dict())
    return model


def models(family: Family, seed: int = 0, **overrides):
    """(stock, routed, path) models with the same weights."""
    stock = stock_model(family, seed, **overrides)
    return stock, routed_from(family, stock), path_from(family, stock)


def random_rows(lengths, seed: int = 0) -> list[torch.Tensor]:
    """One prompt [T] for each length, without the padding id 0."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCAB, (length,), generator=generator) for length in lengths]


def padded(rows, side: str = "left") -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, each [B, T], of rows of different lengths; padded with 0."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for line, real, row in zip(ids, mask, rows, strict=True):
        place = slice(len(line) - len(row), None) if side == "left" else slice(len(row))
        line[place], real[place] = row, 1
    return ids, mask


def route_path(route) -> list[int]:
    """The layer indices of a route of counts, in order."""
    return [layer for layer, count in enumerate(route) for _ in range(int(count))]


def kinds_of_attention(config) -> list[str]:
    """Of each layer; in a model without a list of them all layers have a window, or none has."""
    alike = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    return getattr(config, "layer_types", None) or [alike] * config.num_hidden_layers


def rotary_of(stock, hidden: torch.Tensor, positions: torch.Tensor) -> list:
    """(cos, sin) for each layer."""
    rotary, kinds = stock.model.rotary_emb, kinds_of_attention(stock.config)
    if not hasattr(rotary, "layer_types"):
        return [rotary(hidden, positions)] * len(kinds)
    return [rotary(hidden, positions, kind) for kind in kinds]


def entering(stock, embeddings: torch.Tensor) -> torch.Tensor:
    """What the first layer gets, of what the embedding gives."""
    return embeddings * getattr(stock.config, "embedding_multiplier", 1.0)


def logits_of(stock, states: torch.Tensor) -> torch.Tensor:
    """Logits of normalised states."""
    logits = stock.lm_head(states) / getattr(stock.config, "logits_scaling", 1.0)
    cap = getattr(stock.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def naive_layers(model, tokens: int) -> list:
    """The layers as functions of states [1, T, D], with their own positions and masks: no cache, no batch."""
    positions = torch.arange(tokens)[None]
    distance = positions.T - positions

    def runs(layer: int):
        visible = distance >= 0
        if kinds_of_attention(model.config)[layer] == "sliding_attention":
            visible = visible & (distance < model.config.sliding_window)
        mask = torch.zeros(1, 1, tokens, tokens).masked_fill(~visible, torch.finfo(torch.float32).min)
        arguments = {"attention_mask": mask, "position_ids": positions}

        def run(hidden: torch.Tensor) -> torch.Tensor:
            rotary = rotary_of(model, hidden, positions)[layer]
            return model.model.layers[layer](hidden, position_embeddings=rotary, **arguments)

        return run

    return [runs(layer) for layer in range(model.config.num_hidden_layers)]


def oracle_states(stock, embeddings: torch.Tensor, path) -> list[torch.Tensor]:
    """What enters each step of a path and the normalised end, [1, T, D] each: no cache, no batch, no padding."""
    layers = naive_layers(stock, embeddings.shape[1])
    hidden, states = entering(stock, embeddings), []
    for layer in path:
        states.append(hidden)
        hidden = layers[layer](hidden)
    return [*states, stock.model.norm(hidden)]


def oracle_logits(stock, row: torch.Tensor, path) -> torch.Tensor:
    """Logits [T, V] of one row of tokens [T] along a path."""
    return logits_of(stock, oracle_states(stock, stock.model.embed_tokens(row[None]), path)[-1])[0]


@torch.no_grad()
def oracle_generate(stock, row: torch.Tensor, path, new_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy tokens [N] and their logits [N, V]; everything is computed anew for each token."""
    logits = []
    for _ in range(new_tokens):
        logits.append(oracle_logits(stock, row, path)[-1])
        row = torch.cat([row, logits[-1].argmax()[None]])
    return row[-new_tokens:], torch.stack(logits)


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    """Equal to an absolute tolerance."""
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)
