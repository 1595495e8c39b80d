"""Tiny random models of every family, and the naive forward that the tests compare the real ones with."""

from __future__ import annotations

import os
import shutil
import tempfile

# Read when transformers is imported: the code of saved checkpoints is copied here, and must not stay behind.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="hf_modules_")
os.environ["HF_HUB_OFFLINE"] = "1"
# Of the hub the tests see what they put there themselves.
os.environ["HF_HUB_CACHE"] = tempfile.mkdtemp(prefix="hf_hub_")
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import settings
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from data_models.modeling_llama import PathLlamaForCausalLM
from data_models.modeling_mistral import PathMistralForCausalLM
from data_models.modeling_qwen2 import PathQwen2ForCausalLM
from data_models.modeling_qwen3 import PathQwen3ForCausalLM
from data_models.modeling_smollm3 import PathSmolLM3ForCausalLM
from routing.models.checkpoint import save_checkpoint
from routing.models.default_model import default_model_folder
from train_models.configuration_llama import RoutedLlamaConfig
from train_models.configuration_mistral import RoutedMistralConfig
from train_models.configuration_qwen2 import RoutedQwen2Config
from train_models.configuration_qwen3 import RoutedQwen3Config
from train_models.configuration_smollm3 import RoutedSmolLM3Config
from train_models.modeling_llama import RoutedLlamaForCausalLM
from train_models.modeling_mistral import RoutedMistralForCausalLM
from train_models.modeling_qwen2 import RoutedQwen2ForCausalLM
from train_models.modeling_qwen3 import RoutedQwen3ForCausalLM
from train_models.modeling_smollm3 import RoutedSmolLM3ForCausalLM

# Models take longer than hypothesis' deadline on a busy core; every run tries the same examples.
settings.register_profile("models", deadline=None, database=None, derandomize=True, max_examples=6)
settings.load_profile("models")

LAYERS, VOCAB, WINDOW = 5, 97, 4
TOLERANCE = 1e-4


# Real processes and kills: few tests, long ones. They go first, or one worker would end with them alone.
LONG_FILES = ("test_stages.py", "test_sharding.py", "test_end_to_end_training.py", "test_evaluation.py")


# Families that add little to the code of the others run all shared tests in the slow run, and these in every run.
LATE_FAMILIES = ("mistral", "smollm3")
EVERY_FAMILY = ("test_routed_models.py", "test_data_models.py", "test_export.py", "test_grouped.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG_FILES)
    for item in items:
        late = any(name in item.name.lower() for name in LATE_FAMILIES)
        if late and item.path.name not in EVERY_FAMILY:
            item.add_marker(pytest.mark.slow)


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


LLAMA = Family("llama", LlamaConfig, LlamaForCausalLM, RoutedLlamaConfig, RoutedLlamaForCausalLM, PathLlamaForCausalLM)
QWEN2 = Family("qwen2", Qwen2Config, Qwen2ForCausalLM, RoutedQwen2Config, RoutedQwen2ForCausalLM, PathQwen2ForCausalLM)
QWEN3 = Family("qwen3", Qwen3Config, Qwen3ForCausalLM, RoutedQwen3Config, RoutedQwen3ForCausalLM, PathQwen3ForCausalLM)
MISTRAL = Family(
    "mistral", MistralConfig, MistralForCausalLM, RoutedMistralConfig, RoutedMistralForCausalLM, PathMistralForCausalLM,
    (("sliding_window", None),),
)  # fmt: skip
# Layers 1 and 3 have no rotary embedding.
SMOLLM3 = Family(
    "smollm3", SmolLM3Config, SmolLM3ForCausalLM, RoutedSmolLM3Config, RoutedSmolLM3ForCausalLM, PathSmolLM3ForCausalLM,
    (("no_rope_layers", [1, 0, 1, 0, 1]), ("layer_types", ["full_attention"] * LAYERS)),
)  # fmt: skip
FAMILIES = (LLAMA, QWEN2, QWEN3, MISTRAL, SMOLLM3)


def sliding(family: Family, layer_types: str) -> Family:
    """A variant with one letter a layer: f for full and s for sliding-window attention."""
    kinds = {"f": "full_attention", "s": "sliding_attention"}
    overrides = (
        ("use_sliding_window", True),
        ("sliding_window", WINDOW),
        ("layer_types", [kinds[letter] for letter in layer_types]),
    )
    return Family(f"{family.name}-{layer_types}", *list(vars(family).values())[1:6], overrides)


# A window in every layer, and no list of layer types.
MISTRAL_WINDOW = replace(MISTRAL, name="mistral-window", overrides=(("sliding_window", WINDOW),))
SLIDING_FAMILIES = (sliding(QWEN2, "fssfs"), sliding(QWEN3, "sfsfs"), MISTRAL_WINDOW)
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
    return fields | dict(family.overrides) | overrides


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


def save_tiny_base(folder, layers: int, **fields):
    """A tiny random Llama with the default tokenizer, saved in a folder, for tests of commands."""
    tokenizer = AutoTokenizer.from_pretrained(default_model_folder())
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
    fields["attn_implementation"] = stock.config._attn_implementation
    model = family.routed(family.routed_config(**(fields | {"router_hidden_size": 16} | overrides))).eval()
    missing, unexpected = model.load_state_dict(stock.state_dict(), strict=False)
    assert not unexpected and all(".routers." in name for name in missing)
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


def oracle_states(stock, embeddings: torch.Tensor, path) -> list[torch.Tensor]:
    """What enters each step of a path and the normalised end, [1, T, D] each: no cache, no batch, no padding."""
    tokens = embeddings.shape[1]
    positions = torch.arange(tokens)[None]
    rotary = stock.model.rotary_emb(embeddings, positions)
    distance = positions.T - positions
    kinds = kinds_of_attention(stock.config)
    hidden, states = embeddings, []
    for layer in path:
        visible = distance >= 0
        if kinds[layer] == "sliding_attention":
            visible = visible & (distance < stock.config.sliding_window)
        mask = torch.zeros(1, 1, tokens, tokens).masked_fill(~visible, torch.finfo(torch.float32).min)
        states.append(hidden)
        hidden = stock.model.layers[layer](
            hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary
        )
    return [*states, stock.model.norm(hidden)]


def oracle_logits(stock, row: torch.Tensor, path) -> torch.Tensor:
    """Logits [T, V] of one row of tokens [T] along a path."""
    return stock.lm_head(oracle_states(stock, stock.model.embed_tokens(row[None]), path)[-1])[0]


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
