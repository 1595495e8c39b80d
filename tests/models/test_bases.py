"""Bases with the habits of real ones: loaded whole and in their own dtypes, or refused by name with the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3TextConfig,
    StableLmConfig,
    T5Config,
    Trainer,
    TrainingArguments,
)
from zoo import ANIMALS, COMMITS, bring, copy_of, edit_config, edit_weights, put_into_hub

from routing.common.errors import UserError
from routing.models import families
from routing.models.bases import load_base, load_stock, stored_tensors, weight_stamps
from routing.models.checkpoint import load_checkpoint, save_checkpoint
from routing.models.families import layers_of, load_base_config, load_tokenizer, routed_class
from routing.models.problems import check_base
from train_models.configuration_routing import MADE_FOR, check_transformers
from train_models.routed_model import small_parts

IDS = torch.tensor([[5, 77, 90, 12, 140, 31]])
EARLY = [name for name, animal in ANIMALS.items() if animal.refused and name not in ("overflows", "prefixed_weights")]
EARLY.remove("missing_weights")
PASSING = [name for name, animal in ANIMALS.items() if not animal.refused]
SHAPES = ("plain", "plain_qwen2", "plain_qwen3", "untied", "attention_bias", "padded_vocabulary", "lying_dtype")
FILES = ("mixed_dtypes", "sharded", "torch_file", "hub_id", "odd_folder")


def routers(base: str, **fields) -> dict[str, torch.Tensor]:
    """Routers that decide differently from prompt to prompt."""
    model = load_base(base, torch.float32, **fields)
    torch.manual_seed(1)
    return {name: torch.randn_like(tensor) for name, tensor in small_parts(model.model).items()}


def checkpoint(base: str, folder: Path, save_base: str = "copy", **fields) -> Path:
    save_checkpoint(folder, base, routers(base, **fields), fields, save_base, {"arguments": {"model_id": base}})
    return folder


def loaded(folder: Path, **arguments):
    """By the repository's own class, whose code the checkpoint has too: importing that anew takes most of the time."""
    family = json.loads((folder / "config.json").read_text())["model_type"].removeprefix("routed_")
    return routed_class(family).from_pretrained(folder, **arguments).eval()


@pytest.mark.parametrize("name", EARLY)
def test_a_base_that_no_stage_can_work_on_is_refused_by_its_small_files(name):
    with pytest.raises(UserError, match=ANIMALS[name].refused):
        check_base(bring(name))


@pytest.mark.parametrize(
    "config, words",
    [
        (StableLmConfig(), "is of type 'stablelm', which is not supported.*docs/add_a_family.md"),
        (Gemma3Config(), r"holds a decoder of text \(gemma3_text\) among others.*docs/add_a_family.md"),
        (Gemma3TextConfig(use_bidirectional_attention=True), "attend to later ones"),
        (T5Config(), "no decoder layers to route"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_a_family_that_is_not_there_is_refused_with_the_page_that_adds_one(tmp_path, config, words):
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=words):
        check_base(str(tmp_path))
    assert (Path(__file__).parents[2] / "docs" / "add_a_family.md").exists()


@pytest.mark.parametrize("name", ["prefixed_weights", "missing_weights"])
def test_a_base_that_lacks_weights_is_refused_with_their_number_and_the_first_name(name):
    number, first = (39, "lm_head.weight") if name == "prefixed_weights" else (11, "model.layers.3")
    for load in (load_base, load_stock):
        with pytest.raises(UserError, match=f"lack {number} weights that the model needs, {first}"):
            load(bring(name), torch.float32)


@pytest.mark.parametrize("name", PASSING)
def test_a_base_that_works_is_not_refused(name):
    check_base(bring(name))


MAKE_WHOLE = {
    True: "Where the hub can be reached, `hf download zoo/",
    False: "Save or download the model into the folder",
}
LACKING = {"tokenizer.json": "there is no tokenizer.json", "model.safetensors": "no file named|have a file named"}


@pytest.mark.parametrize("file", LACKING)
@pytest.mark.parametrize("hub", MAKE_WHOLE, ids=lambda hub: "hub" if hub else "folder")
def test_a_base_that_lacks_a_file_is_refused_with_the_remedy(hub, file, tmp_path):
    name = str(copy_of("plain", tmp_path / "base"))
    (tmp_path / "base" / file).unlink()
    if hub:
        name = put_into_hub(tmp_path / "base", f"zoo/lacks-{file.split('.')[0]}")
    load = load_tokenizer if file == "tokenizer.json" else lambda name: load_base(name, torch.float32)
    with pytest.raises(UserError, match=LACKING[file]) as caught:
        load(name)
    assert MAKE_WHOLE[hub] in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name, file", [("plain", "model.safetensors"), ("torch_file", "pytorch_model.bin")])
def test_a_file_that_was_cut_off_is_refused_with_the_remedy(name, file, tmp_path):
    path = copy_of(name, tmp_path / "base") / file
    path.write_bytes(path.read_bytes()[:3000])
    for load in (load_base, load_stock):
        with pytest.raises(UserError, match="cannot be loaded: .*" + MAKE_WHOLE[False]):
            load(str(tmp_path / "base"), torch.float32)


def test_what_a_lora_needs_is_said():
    with pytest.raises(UserError, match="without its base .*merge_and_unload"):
        check_base(bring("lora_folder"))
    with pytest.raises(UserError, match="beside a base .*remove adapter_config.json"):
        check_base(bring("lora_beside_base"))


def test_padding_without_an_embedding_is_replaced_and_told(capsys):
    families._told.cache_clear()
    tokenizer = load_tokenizer(bring("pad_outside"))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id < load_base_config(bring("pad_outside")).vocab_size
    load_tokenizer(bring("pad_outside"))
    assert capsys.readouterr().err.count("no embedding for its pad token '[PAD]'") == 1  # once a process


@pytest.mark.parametrize("name", SHAPES + FILES)
def test_a_copy_holds_the_base_bit_for_bit_and_computes_what_it_does(name, tmp_path):
    base = bring(name)
    folder = checkpoint(base, tmp_path / "copy")
    own = dict(stored_tensors(str(folder)))
    stored = {key: tensor for key, tensor in stored_tensors(base) if key != "lm_head.weight" or key in own}
    assert stored and all(torch.equal(own[key], t) and own[key].dtype == t.dtype for key, t in stored.items())
    assert json.loads((folder / "config.json").read_text())["dtype"] == str(load_base_config(base).dtype)[6:]
    for arguments in ({}, {"dtype": torch.float32}):
        stock = AutoModelForCausalLM.from_pretrained(base, **arguments)
        routed = loaded(folder, is_static_routing=True, **arguments)
        assert routed.dtype == stock.dtype and torch.equal(routed(IDS).logits, stock(IDS).logits)


def test_experts_are_copied_bit_for_bit(tmp_path):
    """They lie one by one in files, and the config says another dtype than theirs."""
    base = copy_of("plain_qwen3_moe", tmp_path / "base")
    edit_config(base, dtype="bfloat16")
    own = dict(stored_tensors(str(checkpoint(str(base), tmp_path / "copy"))))
    stored = dict(stored_tensors(str(base)))
    assert "model.layers.0.mlp.experts.gate_up_proj" in stored and stored["model.norm.weight"].dtype == torch.float32
    assert all(torch.equal(own[key], tensor) and own[key].dtype == tensor.dtype for key, tensor in stored.items())


@pytest.mark.parametrize("name", ["plain", "torch_file", "sharded", "hub_two_commits", "odd_folder"])
def test_a_reference_computes_what_the_copy_does(name, tmp_path):
    base = bring(name)
    copy, reference = (loaded(checkpoint(base, tmp_path / kind, kind)) for kind in ("copy", "reference"))
    assert torch.equal(copy(IDS).logits, reference(IDS).logits)
    assert torch.equal(copy.last_routes, reference.last_routes)


def test_the_commit_of_a_base_on_the_hub_is_found_and_recorded(tmp_path):
    base = bring("hub_two_commits")
    assert load_base_config(base)._commit_hash == COMMITS[0]
    assert load_base_config(base, COMMITS[1])._commit_hash == COMMITS[1]
    assert weight_stamps(base) != weight_stamps(base, COMMITS[1])
    assert load_base_config(bring("plain"))._commit_hash is None
    for kind in ("copy", "reference"):
        folder = checkpoint(base, tmp_path / kind, kind)
        assert json.loads((folder / "training.json").read_text())["base_revision"] == COMMITS[0]
    assert json.loads((folder / "config.json").read_text())["base_revision"] == COMMITS[0]
    old, new = load_stock(base, torch.float32, COMMITS[1]), load_stock(base, torch.float32)
    assert not torch.equal(old(IDS).logits, new(IDS).logits)


KINDS = {
    "per_layer": {},
    "token": {"router": "prefix_token", "kept_layers": 1},
    "embedding": {"router": "embedding", "kept_layers": 1},
    "menu": {
        "router": "menu",
        "kept_layers": 1,
        "router_reads": [1],
        "menu": [[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 2]],
    },
    "adapter": {"skip_action": "adapter"},
}


@pytest.mark.parametrize("save_base", ["copy", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_routers_and_adapters_decide_and_compute_alike_when_offloaded(kind, save_base, tmp_path):
    folder = checkpoint(bring("plain"), tmp_path / "ck", save_base, **KINDS[kind])
    places = dict.fromkeys(("model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    places |= {"model.routers": "disk"} | ({"model.adapters": "disk"} if kind == "adapter" else {})
    ids = torch.randint(5, 300, (8, 6), generator=torch.Generator().manual_seed(0))
    whole, offloaded = loaded(folder), loaded(folder, device_map=places, offload_folder=tmp_path / "off")
    assert torch.equal(whole(ids).logits, offloaded(ids).logits)
    assert torch.equal(whole.last_routes, offloaded.last_routes)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "menu"])
def test_routers_decide_in_float32_when_the_model_is_cast_or_runs_under_autocast(kind, tmp_path):
    folder = checkpoint(bring("plain"), tmp_path / "ck", **KINDS[kind])
    ids = torch.randint(5, 300, (64, 12), generator=torch.Generator().manual_seed(0))
    right, cast = loaded(folder, dtype=torch.bfloat16), loaded(folder).to(torch.bfloat16)
    half = loaded(folder).half()
    for model in (cast, half):
        assert {p.dtype for p in model.model.routers.parameters()} == {torch.float32}
        assert {p.dtype for p in model.model.adapters.parameters()} <= {torch.float32}
    logits = right(ids).logits
    assert torch.equal(cast(ids).logits, logits) and torch.equal(cast.last_routes, right.last_routes)
    with torch.autocast("cpu", torch.bfloat16):
        right(ids)
    assert torch.equal(cast.last_routes, right.last_routes)
    exact = loaded(folder)
    exact(ids)
    routes = exact.last_routes
    with torch.autocast("cpu", torch.bfloat16):
        exact(ids)
    # States of float32 models differ under autocast, so decisions near a tie may; those that read embeddings do not.
    same = (exact.last_routes == routes).float().mean()
    assert same == 1 if kind == "embedding" else same > 0.9


def test_predictions_under_the_stock_trainer_are_the_logits_alone(tmp_path):
    model = loaded(checkpoint(bring("plain"), tmp_path / "ck"))
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}] * 4
    arguments = TrainingArguments(output_dir=str(tmp_path / "t"), use_cpu=True, report_to="none")
    predictions = Trainer(model=model, args=arguments).predict(rows).predictions
    assert predictions.shape == (4, 4, model.config.vocab_size)


@pytest.mark.parametrize("kind", ("per_layer", "token", "embedding", "prefix"))
def test_untrained_routers_say_so_once(kind, tmp_path):
    """Menu routers: tests/train_models/test_menu_router.py."""
    base, fields = bring("plain"), KINDS.get(kind, {"router": "prefix", "kept_layers": 1})
    model = load_base(base, torch.float32, **fields)
    with pytest.warns(UserWarning, match="never trained and decide at random"):
        model(IDS)
    trained = loaded(checkpoint(base, tmp_path / "ck", **fields))
    forced = load_base(base, torch.float32, **({} if kind == "token" else fields))  # A token's own is not forced.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: pytest.fail("warned"))
        model(IDS)
        trained(IDS)
        forced(IDS, routes=[[1, 1, 1, 1]])


def test_other_model_code_than_this_version_s_is_told(tmp_path, capsys):
    folder = checkpoint(bring("plain"), tmp_path / "ck")
    load_checkpoint(folder, torch.float32, torch.device("cpu"))
    assert "model code" not in capsys.readouterr().err
    with (folder / "routers.py").open("a") as file:
        file.write("# of another version\n")
    load_checkpoint(folder, torch.float32, torch.device("cpu"))
    assert "1 of its files differ from those of this version (routers.py)" in capsys.readouterr().err


def test_another_transformers_is_named():
    check_transformers(f"{MADE_FOR}.4")
    with pytest.warns(UserWarning, match=f"made for transformers {MADE_FOR}, and 4.57.1 is installed"):
        check_transformers("4.57.1")


def test_files_that_are_changed_are_noticed(tmp_path):
    base = copy_of("plain", tmp_path / "base")
    before = weight_stamps(str(base))
    edit_weights(base, lambda old: {name: tensor + 1 for name, tensor in old.items()})
    assert weight_stamps(str(base)) != before and len(weight_stamps(bring("torch_file"))) == 1
    edit_config(base, model_type="gpt2")
    with pytest.raises(UserError, match="not supported"):
        check_base(str(base))


def test_layers_that_a_config_leaves_out_are_those_of_its_class(tmp_path):
    for fields, layers in (({}, 32), ({"num_hidden_layers": 4}, 4)):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"} | fields))
        assert layers_of(str(tmp_path)) == layers
