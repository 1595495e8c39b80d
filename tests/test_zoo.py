"""The zoo itself: each animal is made, and has the habit that it is there for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from jinja2 import TemplateError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from zoo import ANIMALS, COMMITS, CONTEXT, bring, make_tokenizer

WHOLE = [name for name, animal in ANIMALS.items() if not animal.refused]


def tokens(name: str):
    tokenizer = AutoTokenizer.from_pretrained(bring(name))
    return tokenizer, tokenizer("item 123").input_ids


@pytest.mark.parametrize("name", WHOLE)
def test_an_animal_loads_with_stock_transformers(name):
    tokenizer = AutoTokenizer.from_pretrained(bring(name))
    model = AutoModelForCausalLM.from_pretrained(bring(name))
    assert model.config.model_type == ANIMALS[name].family
    logits = model(torch.tensor([tokenizer("item 123").input_ids])).logits
    assert logits.isfinite().all()


def test_tokenizers_have_their_habits():
    ids = {name: tokens(name) for name in ANIMALS if name not in ("spm_alone", "hub_config_alone", "hub_not_cached")}
    for name, (tokenizer, found) in ids.items():
        assert (found[0] == tokenizer.bos_token_id) == (name in ("bos_added", "bos_in_template")), name
        assert (found[-1] == tokenizer.eos_token_id) == (name == "eos_added"), name
    assert len(ids["bos_added"][1]) < len(ids["plain"][1]) + 1  # threes take fewer tokens, even with BOS
    assert ids["pad_missing"][0].pad_token_id is None
    assert ids["pad_outside"][0].pad_token_id == AutoConfig.from_pretrained(bring("pad_outside")).vocab_size
    assert ids["pad_is_zero"][0].pad_token_id == 0
    assert ids["pad_is_eos"][0].pad_token_id == ids["pad_is_eos"][0].eos_token_id


def test_configs_have_their_habits():
    configs = {name: AutoConfig.from_pretrained(bring(name)) for name in WHOLE}
    assert configs["short_context"].max_position_embeddings < CONTEXT
    assert configs["padded_vocabulary"].vocab_size == len(make_tokenizer()) + 64
    kinds = {name: config.rope_parameters["rope_type"] for name, config in configs.items() if name.startswith("rope")}
    assert kinds == {"rope_llama3": "llama3", "rope_yarn": "yarn", "rope_dynamic": "dynamic", "rope_long": "longrope"}
    assert set(configs["sliding_window"].layer_types) == {"full_attention", "sliding_attention"}
    assert configs["lying_dtype"].dtype == torch.bfloat16


def test_shapes_and_ends_have_their_habits():
    configs = {
        name: AutoConfig.from_pretrained(bring(name)) for name in ("plain", "untied", "attention_bias", "head_size")
    }
    assert configs["plain"].tie_word_embeddings and not configs["untied"].tie_word_embeddings
    assert configs["attention_bias"].attention_bias and not configs["plain"].attention_bias
    assert configs["head_size"].head_dim * configs["head_size"].num_attention_heads > configs["head_size"].hidden_size
    ends = {name: GenerationConfig.from_pretrained(bring(name)) for name in ("many_eos", "eos_disagrees", "samples")}
    assert len(set(ends["many_eos"].eos_token_id)) == 3 and ends["samples"].do_sample
    tokenizer, config = tokens("eos_disagrees")[0], AutoConfig.from_pretrained(bring("eos_disagrees"))
    assert tokenizer.eos_token_id != config.eos_token_id == ends["eos_disagrees"].eos_token_id


def written(name: str, *messages: tuple[str, str], **more) -> str:
    tokenizer = AutoTokenizer.from_pretrained(bring(name))
    said = [{"role": role, "content": text} for role, text in messages or [("user", "?")]]
    return tokenizer.apply_chat_template(said, tokenize=False, **({"add_generation_prompt": True} | more))


def test_templates_have_their_habits():
    thinking, closed = (written("thinking_template", **more) for more in ({}, {"enable_thinking": False}))
    assert thinking.endswith("<think>\n") and closed.endswith("</think>\n\n")
    assert "26 Jul" in written("dated_template", date_string="26 Jul") and "20" in written("dated_template")
    with pytest.raises(TemplateError, match="System role not supported"):
        written("no_system_template", ("system", "Be short."), ("user", "?"))
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    assert '"add"' in written("tools_template", tools=[tool]) and "Tools" not in written("tools_template")
    name = "no_generation_prompt"
    assert written(name) == written(name, add_generation_prompt=False) != written("plain")
    assert written("bos_in_template").startswith("<s>")
    assert AutoTokenizer.from_pretrained(bring("no_template")).chat_template is None


def test_the_hub_holds_what_it_should():
    old = AutoModelForCausalLM.from_pretrained(bring("hub_two_commits"), revision=COMMITS[1])
    new = AutoModelForCausalLM.from_pretrained(bring("hub_two_commits"))
    assert not torch.equal(old.model.layers[0].self_attn.q_proj.weight, new.model.layers[0].self_attn.q_proj.weight)


def test_files_have_their_habits():
    assert len(list(Path(bring("sharded")).glob("*.safetensors"))) > 1
    assert not list(Path(bring("torch_file")).glob("*.safetensors"))
    kinds = {tensor.dtype for tensor in load_file(Path(bring("mixed_dtypes")) / "model.safetensors").values()}
    assert kinds == {torch.bfloat16, torch.float32} and Path(bring("odd_folder")).name == "日本"
    stored = {n: load_file(Path(bring(n)) / "model.safetensors") for n in ("prefixed_weights", "missing_weights")}
    assert all(name.startswith("_orig_mod.") for name in stored["prefixed_weights"])
    assert not any(".layers.3." in name for name in stored["missing_weights"])
    broken = AutoModelForCausalLM.from_pretrained(bring("overflows"), dtype=torch.float16)
    assert not broken(torch.tensor([[5, 6, 7]])).logits.isfinite().all()
    for name in ("lora_folder", "lora_beside_base"):  # transformers itself takes the LoRA along.
        model = AutoModelForCausalLM.from_pretrained(bring(name))
        assert any("lora_A" in part for part, _ in model.named_parameters())
