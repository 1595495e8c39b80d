"""Parameters of hybrid models: how many there are, and how many a token uses.

A mixer of either kind has 5 D^2 parameters and less than 1 % more. A routed block holds both, so a pattern with routed
blocks is larger than one without of the same depth and width. "Equal parameters" can mean that a token uses equally
many, or that there are equally many, which `matched` brings about.
"""

from __future__ import annotations

import torch

from routing.common.errors import UserError
from routing.training.language_model.configurations import pattern_of
from train_models.configuration_gdn_hybrid import GdnHybridConfig
from train_models.modeling_gdn_hybrid import GdnHybridForCausalLM

# Parts of mixers that are for reading alone; tokens of a routed block that read the other memory do not use them.
READS = {"gdn": ("in_proj_z", "norm", "out_proj"), "softmax": ("q_proj", "q_norm", "o_proj")}
MIXERS = {"gdn": "linear_attn", "softmax": "self_attn"}


def parameter_counts(config: GdnHybridConfig) -> dict[str, int]:
    """Numbers of parameters of a model of this configuration; no weights are made.

    Keys: `total`, whose parts are `embeddings` (with those of the output, counted once where tied), `gdn`, `softmax`
    (mixers, of static and routed blocks), `mlp`, `router` and `norms`; `gdn_token` and `softmax_token`: what a token
    uses that takes this mechanism in all routed blocks, embeddings included.
    """
    with torch.device("meta"):
        model = GdnHybridForCausalLM(config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}

    def count(*parts: str) -> int:
        return sum(size for name, size in sizes.items() if any(f".{part}." in f".{name}" for part in parts))

    found = {kind: count(name) for kind, name in MIXERS.items()}
    found |= {"mlp": count("mlp"), "router": count("router"), "embeddings": count("embed_tokens", "lm_head")}
    total = sum(sizes.values())
    idle = {
        kind: sum(count(*(f"layers.{block}.{MIXERS[kind]}.{part}" for part in parts)) for block in config.routed_blocks)
        for kind, parts in READS.items()
    }
    tokens = {"gdn_token": total - idle["softmax"], "softmax_token": total - idle["gdn"]}
    return {"total": total} | found | {"norms": total - sum(found.values())} | tokens


def matched(fields: dict) -> GdnHybridConfig:
    """A configuration whose MLPs have the width at which the model has about as many parameters as the static one of
    these sizes: to within half a unit of that width.

    Raises:
        UserError: if no width is narrow enough.
    """

    def total(config: GdnHybridConfig) -> int:
        return parameter_counts(config)["total"]

    config = GdnHybridConfig(**fields)
    static = GdnHybridConfig(**(fields | {"pattern": pattern_of("static", len(config.pattern))}))
    a_unit = 3 * config.hidden_size * len(config.pattern)
    width = config.intermediate_size + round((total(static) - total(config)) / a_unit)
    if width < 1:
        raise UserError(
            f"--match_parameters: mixers of {'-'.join(config.pattern)} alone have more parameters than the static "
            "model; give a larger --intermediate_size."
        )
    return GdnHybridConfig(**(fields | {"intermediate_size": width}))
