"""--check gguf: cuts that a conversion to GGUF would get wrong: llama.cpp knows some things by layer index alone.

Read off llama.cpp's loaders: for SmolLM3 `n_no_rope_layer_step = 4` (a layer il has no rotary embedding where
(il + 1) % 4 == 0), and `set_swa_pattern(n)` for models with sliding windows (a layer il is full where il % n == n - 1).
Neither is written into the file, so a cut that moves layers off their period loads without a word and computes another
model. Other loaders take every layer alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedConfig

# model_type -> (field, value of the layers il with il % period == period - 1, period)
PERIODS = {
    "smollm3": ("no_rope_layers", 0, 4),
    "gemma2": ("layer_types", "full_attention", 2),
    "gemma3_text": ("layer_types", "full_attention", 6),
    "olmo3": ("layer_types", "full_attention", 4),
}


def gguf_problems(config: PreTrainedConfig, path: Sequence[int]) -> list[str]:
    """Why llama.cpp would run another model than a cut.

    Args:
        config: of the cut, see `cut_config`.
    """
    found = []
    family = config.model_type
    kinds = getattr(config, "layer_types", None) or []
    if family in PERIODS:
        field, value, period = PERIODS[family]
        values = list(getattr(config, field))
        wrong = [at for at, own in enumerate(values) if (own == value) != (at % period == period - 1)]
        if wrong:
            found.append(
                f"--check gguf: llama.cpp has no field for {field} of {family}: it takes every layer whose index is "
                f"{period - 1} modulo {period} for {value!r} and all others not. In the cut layer {wrong[0]} is layer "
                f"{path[wrong[0]]} of the model, with {values[wrong[0]]!r}"
                f"{f', and so are {len(wrong) - 1} others wrong' if len(wrong) > 1 else ''}. Cut whole periods of "
                f"{period} layers, such as 0:{period},{2 * period}:{3 * period}, or serve the folder without GGUF."
            )
    elif "sliding_attention" in kinds or (not kinds and getattr(config, "sliding_window", None)):
        found.append(
            f"--check gguf: llama.cpp runs full attention in every layer of a {family}, and the cut has layers with a "
            f"sliding window of {config.sliding_window} tokens, so longer prompts would give other tokens. Serve the "
            "folder without GGUF."
        )
    if getattr(config, "mlp_only_layers", None):
        found.append(
            f"--check gguf: llama.cpp takes every layer of a {family} for one with experts, and layers "
            f"{config.mlp_only_layers[:4]} of the cut have none. Serve the folder without GGUF."
        )
    return found
