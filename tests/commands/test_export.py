"""dlr export: stock folders, mergekit recipes and PEFT folders that are the routed model along its path."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from conftest import FAMILIES, GEMMA3, GRANITE, LAYERS, QWEN2, QWEN3, SLIDING_FAMILIES, SMOLLM3, config_fields, sliding
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from zoo import ANIMALS, bring, make_tokenizer

from data_models.path_notation import parse_path, ranges_of, write_path
from routing.commands.export import main
from routing.common.errors import UserError
from routing.models.bases import stored_tensors
from routing.models.checkpoint import save_checkpoint
from routing.models.default_model import DEFAULT_MODEL
from routing.models.export import hf
from routing.models.export.config import cut_config, differing_layers
from routing.models.export.gguf import PERIODS, gguf_problems
from routing.models.export.recipes import mergekit_recipe
from routing.models.export.source import find_source, frozen_base
from routing.models.families import FAMILIES as SUPPORTED

TOKENIZER = make_tokenizer()
IDS = torch.randint(1, len(TOKENIZER), (2, 24), generator=torch.Generator().manual_seed(3))


def save_base(folder: Path, family, **overrides) -> Path:
    """A stock base whose layers matter, with a tokenizer."""
    fields = config_fields(family, vocab_size=len(TOKENIZER), eos_token_id=TOKENIZER.eos_token_id, **overrides)
    torch.manual_seed(0)
    model = family.stock(family.config(**fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0, 0.2) if name.endswith("norm.weight") else parameter.normal_(0.0, 0.15)
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folder of a base by family and whether its head is tied, made when it is first asked for."""
    place, made = tmp_path_factory.mktemp("bases"), {}

    def base(family, tied: bool = False) -> Path:
        key = f"{family}-{'tied' if tied else 'untied'}"
        if key not in made:
            made[key] = save_base(place / key, family, tie_word_embeddings=tied)
        return made[key]

    return base


def export(*words) -> Path:
    main([str(word) for word in words])
    return Path(words[words.index("--output") + 1])


def refused(*words) -> str:
    """What a refusal says; it leaves nothing behind."""
    output = Path(words[words.index("--output") + 1])
    before = sorted(output.parent.glob("*"))
    with pytest.raises(UserError) as error:
        main([str(word) for word in words])
    assert sorted(output.parent.glob("*")) == before
    return str(error.value)


@torch.no_grad()
def by_hand(base: Path, path: list[int], ids: torch.Tensor = IDS) -> torch.Tensor:
    """Logits of a stock model whose layers are put in the order of a path, without a cache."""
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    model.model.layers = torch.nn.ModuleList(model.model.layers[layer] for layer in path)
    model.config.num_hidden_layers = len(path)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[layer] for layer in path]
    return model(ids, use_cache=False).logits


@torch.no_grad()
def stock_logits(folder: Path, ids: torch.Tensor = IDS) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits


# Notation.


@pytest.mark.parametrize(
    "text, path",
    [
        ("0:3,4", [0, 1, 2, 4]),
        ("0:2,1,2:5", [0, 1, 1, 2, 3, 4]),
        (" 0 : 2 , 3: ", [0, 1, 3, 4]),
        (":2", [0, 1]),
        ("3,1", [3, 1]),
    ],
)
def test_notation_is_read(text, path):
    assert parse_path(text, LAYERS) == path
    assert parse_path(write_path(path), LAYERS) == path


WRONG = {"": "''", "0:6": "layer 5", "3:3": "empty", "2:1": "empty", "-1": "'-1'", "1;2": "'1;2'", "0,,1": "''",
         "0:1:2": "'0:1:2'", "½": "'½'"}  # fmt: skip


@pytest.mark.parametrize("text, named", WRONG.items())
def test_wrong_notation_is_refused(text, named):
    with pytest.raises(ValueError, match="the path") as error:
        parse_path(text, LAYERS)
    assert named in str(error.value)


def test_ranges_are_the_longest():
    assert ranges_of([0, 1, 2, 2, 3, 5, 4]) == [(0, 3), (2, 4), (5, 6), (4, 5)]


# Stock folders.


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES + SLIDING_FAMILIES, ids=str)
def test_a_path_leaves_as_a_stock_model(bases, tmp_path, capsys, family, tied):
    base, path = bases(family, tied), [0, 2, 3, 3, 4]
    folder = export(base, "--path", "0,2:4,3:5", "--output", tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == family.config.model_type and config["num_hidden_layers"] == len(path)
    assert "auto_map" not in config and not list(folder.rglob("*.py"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model) is family.stock
    torch.testing.assert_close(stock_logits(folder), by_hand(base, path), atol=1e-5, rtol=0)
    weights, own = load_file(folder / "model.safetensors"), load_file(base / "model.safetensors")
    assert ("lm_head.weight" in weights) == (not tied)
    for at, layer in enumerate(path):
        name = "model.layers.{}.self_attn.o_proj.weight"
        assert torch.equal(weights[name.format(at)], own[name.format(layer)])
    assert AutoTokenizer.from_pretrained(folder).chat_template == TOKENIZER.chat_template
    assert "greatest difference of logits" in capsys.readouterr().out
    record = json.loads((folder / "export.json").read_text())
    assert record["path"] == "0,2:4,3:5" and record["equality"]["difference"] <= 1e-5 * record["equality"]["scale"]


def test_types_of_layers_move_along(bases, tmp_path):
    family = sliding(QWEN3, "sfsfs")
    folder = export(bases(family), "--path", "1:3,4", "--output", tmp_path / "out")
    config = AutoConfig.from_pretrained(folder)
    assert config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    assert config.max_window_layers == 1


def test_what_hangs_on_the_index_of_a_layer_is_listed():
    from transformers import Qwen3MoeConfig, SmolLM3Config

    config = cut_config(SmolLM3Config(num_hidden_layers=8), [0, 3, 3, 7, 5])
    assert config.no_rope_layers == [1, 0, 0, 0, 1]
    fields = {"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3], "num_experts": 4}
    config = cut_config(Qwen3MoeConfig(**fields), [1, 2, 3, 5])
    assert (config.decoder_sparse_step, config.mlp_only_layers) == (1, [1, 2])


def test_an_unknown_list_of_layers_is_refused():
    config = FAMILIES[0].config(**config_fields(FAMILIES[0]), strange=[1.0] * LAYERS)
    with pytest.raises(UserError, match="lists strange with 5 entries"):
        cut_config(config, [0, 1])


def test_any_order_leaves_too(bases, tmp_path):
    base, path = bases(QWEN2), [3, 1, 1, 1, 2]
    folder = export(base, "--path", "3,1,1,1,2", "--output", tmp_path / "out")
    torch.testing.assert_close(stock_logits(folder), by_hand(base, path), atol=1e-5, rtol=0)


def test_own_dtypes_stay(tmp_path):
    base = save_base(tmp_path / "base", FAMILIES[0], dtype="bfloat16")
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    folder = export(base, "--path", "1:", "--output", tmp_path / "out")
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert AutoConfig.from_pretrained(folder).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["mixed_dtypes", "lying_dtype", "sharded", "torch_file", "odd_folder", "rope_yarn"])
def test_weights_leave_bit_for_bit_whatever_the_files_are(tmp_path, name):
    base = bring(name)
    folder = export(base, "--path", "0,2,2,3", "--output", tmp_path / "out")
    own, found = dict(stored_tensors(base)), load_file(folder / "model.safetensors")
    for key, tensor in found.items():
        at = re.match(r"(model\.layers\.)(\d)(.*)", key)
        stored = own[key if at is None else f"{at[1]}{[0, 2, 2, 3][int(at[2])]}{at[3]}"]
        assert stored.dtype == tensor.dtype and torch.equal(stored, tensor), key
    read = [AutoConfig.from_pretrained(place) for place in (base, folder)]
    assert read[0].dtype == read[1].dtype and read[0].rope_parameters == read[1].rope_parameters


# What is wrong with a prompt is nothing to a copy.
BAD = [name for name, animal in ANIMALS.items() if animal.refused and not animal.flags and name != "eos_added"]


@pytest.mark.parametrize("name", BAD)
def test_bases_that_cannot_be_used_are_refused(tmp_path, name):
    assert re.search(ANIMALS[name].refused, refused(bring(name), "--path", "0,2", "--output", tmp_path / "a" / "out"))
    assert not [*tmp_path.glob("a/*"), *tmp_path.glob("a/.*")]


def test_a_wrong_export_gets_no_name(bases, tmp_path, monkeypatch):
    """The measurement can fail: an export whose layers stand in another order is refused, and nothing is left."""
    right = hf.take_stored
    monkeypatch.setattr(hf, "take_stored", lambda cut, stored, path: right(cut, stored, [*path[1:], path[0]]))
    said = refused(bases(FAMILIES[0]), "--path", "0:3", "--output", tmp_path / "out" / "x")
    assert "is not the routed model: greatest difference of logits" in said
    monkeypatch.undo()
    right = hf.cut_model
    monkeypatch.setattr(hf, "cut_model", lambda model, config, path: right(model, config, [*path[1:], path[0]]))
    said = refused(bases(FAMILIES[0]), "--path", "0:3", "--dtype", "float32", "--output", tmp_path / "out" / "x")
    assert "is not the routed model: greatest difference of logits" in said


def test_an_older_export_is_replaced_and_other_folders_are_not(bases, tmp_path):
    base, folder = bases(FAMILIES[0]), tmp_path / "out"
    for path in ("0:3", "0:2"):
        export(base, "--path", path, "--output", folder)
    assert AutoConfig.from_pretrained(folder).num_hidden_layers == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    other = tmp_path / "mine"
    other.mkdir()
    assert "is no export, so it is not replaced" in refused(base, "--path", "0", "--output", other)


# Routed checkpoints.


def checkpoint(folder: Path, base: Path, save_base: str = "copy", given: dict | None = None, **fields) -> Path:
    """A checkpoint with drawn adapters where `fields` ask for some."""
    family = max((own for own in FAMILIES if own.name in base.name), key=lambda own: len(own.name))
    routed = family.routed.from_pretrained(base, **fields)
    torch.manual_seed(1)
    parts = {f"adapters.{name}": 0.1 * torch.randn_like(t) for name, t in routed.model.adapters.state_dict().items()}
    parts |= {name: t.clone() for name, t in routed.model.routers.state_dict().items()}
    information = {"arguments": {"model_id": str(base)} | (given or {})}
    save_checkpoint(folder, str(base), parts, fields, save_base, information)
    return folder


@torch.no_grad()
def routed_logits(folder: Path, path: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    route = [[path.count(layer) for layer in range(LAYERS)]] * len(IDS)
    return model(IDS, routes=torch.tensor(route)).logits


@pytest.mark.parametrize("save_base", ["copy", "reference"])
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_static_checkpoint_brings_its_path(bases, tmp_path, family, save_base):
    static = checkpoint(tmp_path / "static", bases(family), save_base, router="none", fixed_route=[1, 0, 2, 1, 0])
    folder = export(static, "--output", tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config["num_hidden_layers"] == 4 and "fixed_route" not in config and "trained_num_windows" not in config
    expected = routed_logits(static, [0, 2, 2, 3])
    torch.testing.assert_close(stock_logits(folder), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(by_hand(bases(family), [0, 2, 2, 3]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "family, tied", [(QWEN2, False), (QWEN2, True), (GEMMA3, True), (GRANITE, False)], ids=lambda value: str(value)
)
def test_adapters_in_front_of_all_layers_go_into_the_embedding(bases, tmp_path, family, tied):
    """Where a family multiplies its embeddings, adapters see them multiplied."""
    base = bases(family, tied)
    adapted = checkpoint(tmp_path / "adapted", base, router="none", skip_action="adapter", adapter_size=8)
    folder = export(adapted, "--path", "2:5", "--output", tmp_path / "out")
    expected = routed_logits(adapted, [2, 3, 4])
    torch.testing.assert_close(stock_logits(folder), expected, atol=1e-4, rtol=0)
    assert (by_hand(base, [2, 3, 4]) - expected).abs().max() > 0.1  # the adapters matter
    assert AutoConfig.from_pretrained(folder).tie_word_embeddings is False


def test_adapters_between_layers_are_refused_with_the_remedy(bases, tmp_path):
    base = bases(FAMILIES[0])
    adapted = checkpoint(tmp_path / "adapted", base, router="none", skip_action="adapter", adapter_size=8)
    said = refused(adapted, "--path", "0:2,4", "--output", tmp_path / "a" / "out")
    assert "adapters stand in for layers 2:4" in said
    assert "train.py --objective static --path 0:2,4" in said and "--skip_action identity" in said
    folder = export(adapted, "--path", "0:2,4", "--skip_action", "identity", "--output", tmp_path / "out")
    torch.testing.assert_close(stock_logits(folder), by_hand(base, [0, 1, 4]), atol=1e-5, rtol=0)
    said = refused(adapted, "--path", "4,3,2,1,0", "--output", tmp_path / "a" / "out")
    assert "runs layers in their order" in said


def test_what_scales_layers_is_refused(bases, tmp_path):
    scaled = checkpoint(tmp_path / "scaled", bases(FAMILIES[0]), router="none", residual_scale=[1, 0.5, 1, 1, 1])
    assert "layers 1 scale what they change" in refused(scaled, "--output", tmp_path / "a" / "out")
    export(scaled, "--path", "0,2:", "--output", tmp_path / "out")


MENU = [[1] * LAYERS, [1, 1, 0, 1, 1], [1, 0, 0, 1, 2]]


def menu_checkpoint(folder: Path, base: Path) -> Path:
    return checkpoint(folder, base, router="menu", menu=MENU, kept_layers=1, router_reads=[0, 1])


def test_every_path_of_a_menu_leaves(bases, tmp_path, capsys):
    menu = menu_checkpoint(tmp_path / "menu", bases(FAMILIES[2]))
    folder = export(menu, "--menu", "--output", tmp_path / "out")
    manifest = json.loads((folder / "menu.json").read_text())
    assert [row["route"] for row in manifest["paths"]] == MENU
    assert [row["path"] for row in manifest["paths"]] == ["0:5", "0:2,3:5", "0,3:5,4"]
    for row in manifest["paths"]:
        path = parse_path(row["path"], LAYERS)
        torch.testing.assert_close(stock_logits(folder / row["folder"]), routed_logits(menu, path), atol=1e-5, rtol=0)
    out = capsys.readouterr().out
    assert out.count("greatest difference") == len(MENU)
    assert "custom code" not in out  # no question whether the checkpoint's code may run


def test_who_must_say_the_path(bases, tmp_path):
    base, output = bases(FAMILIES[0]), tmp_path / "a" / "out"
    routed = checkpoint(tmp_path / "routed", base)
    menu = menu_checkpoint(tmp_path / "menu", base)
    assert "say which layers to run" in refused(base, "--output", output)
    assert "has a router (per_layer)" in refused(routed, "--output", output)
    assert "give --menu for all of them" in refused(menu, "--output", output)
    assert "has no menu of paths" in refused(base, "--menu", "--output", output)
    assert "--menu exports every path, --path one" in refused(menu, "--menu", "--path", "0", "--output", output)
    assert "layer 5" in refused(base, "--path", "0:6", "--output", output)
    assert "is a base, which has no adapters" in refused(
        base, "--path", "0", "--skip_action", "identity", "--output", output
    )
    output = tmp_path / "routed" / "config.json" / "x"
    assert "so nothing can be written below it" in refused(base, "--path", "0", "--output", output)


# GGUF.


def test_gguf_takes_what_it_takes_alike(bases, tmp_path):
    export(bases(QWEN2), "--path", "0,2:5", "--check", "gguf", "--output", tmp_path / "out")


def test_gguf_cuts_that_a_conversion_gets_wrong_are_refused(bases, tmp_path):
    output = tmp_path / "a" / "out"
    said = refused(bases(sliding(QWEN3, "sfsfs")), "--path", "0:3", "--check", "gguf", "--output", output)
    assert "llama.cpp runs full attention in every layer of a qwen3" in said
    export(bases(sliding(QWEN3, "sfsfs")), "--path", "1,3", "--check", "gguf", "--output", tmp_path / "full")


def test_gguf_periods_of_layers():
    from transformers import (
        Gemma2Config,
        Gemma3TextConfig,
        MistralConfig,
        Olmo3Config,
        Phi3Config,
        Qwen3MoeConfig,
        SmolLM3Config,
    )

    smol = SmolLM3Config(num_hidden_layers=12)
    assert not gguf_problems(cut_config(smol, [0, 1, 2, 3, 8, 9, 10, 11]), [0, 1, 2, 3, 8, 9, 10, 11])
    (said,) = gguf_problems(cut_config(smol, [0, 2, 3, 4]), [0, 2, 3, 4])
    assert "no_rope_layers of smollm3" in said and "layer 2 is layer 3" in said and "whole periods of 4 layers" in said
    for family in (Gemma2Config, Gemma3TextConfig, Olmo3Config):
        config = family(num_hidden_layers=12)
        assert not gguf_problems(config, range(12))
        assert "whole periods" in gguf_problems(cut_config(config, range(1, 12)), range(1, 12))[0]
    assert set(PERIODS) <= set(SUPPORTED)
    for config in (MistralConfig(), Phi3Config(sliding_window=4096)):
        assert "sliding window of 4096" in gguf_problems(config, range(32))[0]
    assert "with experts" in gguf_problems(Qwen3MoeConfig(mlp_only_layers=[0]), range(24))[0]


# Recipes.


def test_mergekit_recipe(bases, tmp_path):
    base = bases(FAMILIES[0])
    folder = export(base, "--format", "mergekit", "--path", "0:2,1,3:", "--output", tmp_path / "out")
    recipe = yaml.safe_load((folder / "mergekit.yaml").read_text())
    assert recipe["merge_method"] == "passthrough" and recipe["dtype"] == "float32"
    assert [part["sources"] for part in recipe["slices"]] == [
        [{"model": str(base), "layer_range": bounds}] for bounds in ([0, 2], [1, 2], [3, 5])
    ]


def test_recipes_name_the_default_model_by_its_folder():
    name, commit = frozen_base(find_source(DEFAULT_MODEL, ""))
    assert AutoConfig.from_pretrained(name).num_hidden_layers == 30 and commit is None
    assert "@" not in mergekit_recipe(name, commit, [0, 1], "float32")
    assert "model: o/m@abc\n" in mergekit_recipe("o/m", "abc", [0, 1], "float32")


def is_mixed(family) -> bool:
    """Whether its layers are not all of one kind."""
    return bool(differing_layers(family.config(**config_fields(family))))


@pytest.mark.parametrize("family", [family for family in FAMILIES if not is_mixed(family)], ids=str)
def test_peft_repeats_layers_and_shares_their_weights(bases, tmp_path, family):
    base, path = bases(family), [0, 1, 1, 4]
    folder = export(base, "--format", "peft", "--path", "0:2,1,4", "--rank", 2, "--output", tmp_path / "out")
    stock = AutoModelForCausalLM.from_pretrained(base)
    model = PeftModel.from_pretrained(stock, folder).eval()
    layers = model.base_model.model.model.layers
    assert layers[1].post_attention_layernorm.weight is layers[2].post_attention_layernorm.weight
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, by_hand(base, path), atol=1e-5, rtol=0)


def test_recipes_that_would_make_another_model_are_refused(bases, tmp_path):
    output, base = tmp_path / "a" / "out", bases(FAMILIES[0])
    mixed = {"layer_types": bases(sliding(QWEN3, "sfsfs")), "no_rope_layers": bases(SMOLLM3)}
    for kind, field in itertools.product(("mergekit", "peft"), mixed):
        said = refused(mixed[field], "--format", kind, "--path", "0:3", "--output", output)
        assert f"not all of one kind ({field})" in said and "--format hf" in said
    said = refused(bases(QWEN2), "--format", "peft", "--path", "0:5,0:2", "--output", output)
    assert "runs 7 layers, and PEFT leaves the 5 layer_types" in said
    healed = checkpoint(
        tmp_path / "healed", base, given={"trainable": "lora"}, router="none", fixed_route=[1, 1, 0, 1, 1]
    )
    assert "has LoRA merged" in refused(healed, "--format", "mergekit", "--output", output)
    frozen = checkpoint(tmp_path / "frozen", base, router="none", fixed_route=[1, 1, 0, 1, 1])
    folder = export(frozen, "--format", "mergekit", "--output", tmp_path / "out")
    assert yaml.safe_load((folder / "mergekit.yaml").read_text())["slices"][0]["sources"][0]["model"] == str(base)
