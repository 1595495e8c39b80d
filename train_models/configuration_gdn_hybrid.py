"""Configuration of the hybrid model of Gated DeltaNet and softmax attention.

Its own `model_type` keeps it from being loaded as a stock Qwen3-Next model, whose mixers are of other widths.
"""

from __future__ import annotations

import math

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

MECHANISMS = ("gdn", "softmax")  # By their index in router logits, gates and mechanisms.
BLOCKS = (*MECHANISMS, "routed")
ROUTERS = ("learned", "random")
CACHE_TYPES = {"gdn": "linear_attention", "softmax": "full_attention", "routed": "hybrid"}
# What follows from other fields.
DERIVED = {
    "num_hidden_layers": "the length of pattern",
    "layer_types": "told by pattern",
    "num_key_value_heads": "num_attention_heads",
    "linear_num_key_heads": "num_attention_heads",
    "linear_num_value_heads": "num_attention_heads",
    "linear_key_head_dim": "head_dim",
    "linear_value_head_dim": "head_dim",
}


def _whole(value, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _finite(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class GdnHybridConfig(PreTrainedConfig):
    """Fields of the hybrid; the defaults are the four-block configuration of docs/results/hybrid.md.

    Both mixers have `num_attention_heads` heads of `head_dim` for queries, keys and values, so that each of their
    projections is D x D. (Qwen3-Next's own defaults make its Gated DeltaNet several times wider than its attention.)

    Attributes:
        vocab_size, hidden_size, intermediate_size: V, D, width of the SwiGLU MLP.
        pattern: the mixer of each block, `gdn`, `softmax` or `routed` (each token takes one of the two).
        num_attention_heads: H, of both mixers.
        head_dim: of both mixers; None: D / H.
        router: who decides in routed blocks: `learned`, one linear map on the output of block 0; or `random`, a
            control: each token takes softmax with probability `random_share`, drawn by hashing.
        random_share, random_seed: of the random router; the share may be a list with one for each routed block.
        linear_conv_kernel_dim: taps of the short convolution, in tokens.
        rope_parameters: as in transformers; `rope_theta` (1e4 when left out) may be given alone.

    Raises:
        ValueError: that names every wrong field.
    """

    model_type = "gdn_hybrid"
    keys_to_ignore_at_inference = ["past_key_values", "router_logits", "mechanisms"]

    vocab_size: int = 49152
    hidden_size: int = 768
    intermediate_size: int = 3072
    pattern: list | None = None
    num_attention_heads: int = 12
    head_dim: int | None = None
    router: str = "learned"
    random_share: float | list = 0.5
    random_seed: int = 0
    linear_conv_kernel_dim: int = 4
    hidden_act: str = "silu"
    max_position_embeddings: int = 8192
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    tie_word_embeddings: bool = True
    rope_parameters: dict | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list | None = None

    def __post_init__(self, **kwargs):
        if self.pattern is None:
            self.pattern = ["gdn", "routed", "routed", "softmax"]
        problems = [f"{name} is {DERIVED[name]}; leave it out" for name in DERIVED if name in kwargs]
        problems += self._problems() + self._type_problems(kwargs.get("rope_theta"))
        if problems:
            raise ValueError("; ".join(problems) + ".")
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)

    def _problems(self) -> list[str]:
        found = []
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "max_position_embeddings")
        for name in sizes:
            if not _whole(getattr(self, name), 1):
                found.append(f"{name} must be a whole number >= 1, got {getattr(self, name)!r}")
        if not _whole(self.linear_conv_kernel_dim, 2):
            found.append(f"linear_conv_kernel_dim must be a whole number >= 2, got {self.linear_conv_kernel_dim!r}")
        if not found:
            found += self._width_problems()
        pattern = self.pattern
        if not isinstance(pattern, (list, tuple)) or not pattern or not set(map(str, pattern)) <= set(BLOCKS):
            found.append(f"pattern must be a list with one of {', '.join(BLOCKS)} for each block, got {pattern!r}")
        elif pattern[0] == "routed":
            found.append(
                "pattern starts with 'routed', but the decisions are taken from the output of block 0. Begin with "
                f"'gdn' or 'softmax', got {pattern!r}"
            )
        if self.router not in ROUTERS:
            found.append(f"router must be one of {', '.join(ROUTERS)}, got {self.router!r}")
        shares = self.random_share if isinstance(self.random_share, (list, tuple)) else [self.random_share]
        if not all(_finite(share) and 0 <= share <= 1 for share in shares):
            found.append(f"random_share must lie between 0 and 1, got {self.random_share!r}")
        elif shares is self.random_share and isinstance(pattern, (list, tuple)):
            routed = sum(kind == "routed" for kind in pattern)
            if len(shares) != routed:
                found.append(f"random_share has {len(shares)} numbers for {routed} routed blocks; give one or {routed}")
        if not _whole(self.random_seed, 0):
            found.append(f"random_seed must be a whole number >= 0, got {self.random_seed!r}")
        return found

    def _type_problems(self, theta) -> list[str]:
        """Of fields that transformers takes as they come, and fails over later.

        Args:
            theta: rope_theta where it was given alone.
        """
        rope = self.rope_parameters
        numbers = {name: getattr(self, name) for name in ("rms_norm_eps", "initializer_range")}
        if isinstance(rope, dict):
            theta = rope.get("rope_theta", theta)
        if theta is not None:
            numbers["rope_theta"] = theta
        found = [
            f"{name} must be a number above 0, got {value!r} (YAML reads 1e-5 as text, and 1.0e-5 as a number)"
            for name, value in numbers.items()
            if not (_finite(value) and value > 0)
        ]
        if not (_finite(self.attention_dropout) and 0 <= self.attention_dropout < 1):
            found.append(f"attention_dropout must lie between 0 and 1, 1 excluded, got {self.attention_dropout!r}")
        if self.hidden_act not in ACT2FN:
            found.append(f"hidden_act must be one of {', '.join(sorted(ACT2FN))}, got {self.hidden_act!r}")
        if not isinstance(rope, (dict, type(None))):
            found.append(f"rope_parameters must be a mapping such as {{rope_theta: 1.0e+4}}, got {rope!r}")
        for name in ("use_cache", "tie_word_embeddings", "attention_bias"):
            if not isinstance(getattr(self, name), bool):
                found.append(f"{name} must be true or false, got {getattr(self, name)!r}")
        return found

    def _width_problems(self) -> list[str]:
        width, heads = self.hidden_size, self.num_attention_heads
        if width % heads or self.head_dim not in (None, width // heads):
            return [
                f"head_dim x num_attention_heads must be hidden_size, so that both mixers have equal width; got "
                f"{self.head_dim!r} x {heads} and {width}. Leave head_dim out, with a number of heads that divides "
                "hidden_size"
            ]
        if width // heads % 2:
            return [f"head_dim must be even for rotary positions, got {width // heads}. Change num_attention_heads"]
        return []

    @property
    def routed_blocks(self) -> list[int]:
        """Indices of the R routed blocks."""
        return [index for index, kind in enumerate(self.pattern) if kind == "routed"]

    @property
    def num_hidden_layers(self) -> int:
        return len(self.pattern)

    @property
    def layer_types(self) -> list[str]:
        """The pattern in transformers' words, which say what a block's cache holds."""
        return [CACHE_TYPES[kind] for kind in self.pattern]

    @property
    def num_key_value_heads(self) -> int:
        return self.num_attention_heads

    linear_num_key_heads = linear_num_value_heads = num_key_value_heads

    @property
    def linear_key_head_dim(self) -> int:
        return self.head_dim

    linear_value_head_dim = linear_key_head_dim


GdnHybridConfig.register_for_auto_class()
