"""Bases on several devices or offloaded: every stage gives what it gives on one device, or refuses by name."""

from __future__ import annotations

import gc
import json
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from combinations import EVALUATED, LABELS
from combinations import TRAINED as NAMES
from conftest import LAYERS, LLAMA, padded, random_rows, routed_from, save_tiny_base, stock_model
from faked_devices import FakedDevices, put
from safetensors.torch import load_file
from test_query_router import make_checkpoint

from routing.commands import calibrate, evaluate, generate, text_evaluation, train
from routing.common.cli import parse
from routing.common.errors import UserError
from routing.common.placing import map_of, memory_of
from routing.evaluation.arguments import EvaluationArguments
from routing.labels.arguments import DataGenerationArguments
from routing.models.bases import load_base
from routing.models.placement import Placement
from routing.scoring import packed_layers
from routing.scoring.path_runner import PathRunner
from routing.scoring.prefix_store import PrefixStore
from routing.scoring.segments import Node, chain
from routing.tasks.sequences import text_batch
from routing.training.end_to_end.arguments import EndToEndArguments
from routing.training.end_to_end.lora import add_lora, lora_config
from routing.training.end_to_end.training import EndToEnd
from routing.training.features import RouterExample, router_inputs
from routing.training.language_model.arguments import LanguageModelArguments
from routing.training.packed_inputs import PackedInputs
from routing.training.preferences.arguments import PreferenceArguments
from train_models.offloading import device_of, weight_of

PLACES = {"model.embed_tokens": "disk", "model.norm": "disk", "model.rotary_emb": "cpu", "lm_head": "disk"}
PLACES |= {f"model.layers.{layer}": "cpu" if layer % 2 else "disk" for layer in range(LAYERS)}
CPU = torch.device("cpu")


def loaded(family, tmp_path, **fields):
    """The same routed model, in memory and offloaded."""
    base = tmp_path / "base"
    stock_model(family).save_pretrained(base)
    model = family.routed.from_pretrained(base, num_windows=3, **fields).eval()
    torch.manual_seed(0)
    for part in (model.model.routers, model.model.adapters):
        for parameter in part.parameters():
            parameter.data.normal_()
    offloaded = family.routed.from_pretrained(
        base, num_windows=3, device_map=PLACES | {"model.routers": "disk", "model.adapters": "cpu"},
        offload_folder=tmp_path / "weights", **fields,
    ).eval()  # fmt: skip
    for part in ("routers", "adapters"):
        getattr(offloaded.model, part).load_state_dict(getattr(model.model, part).state_dict())
    assert offloaded.model.layers[0].self_attn.o_proj.weight.device.type == "meta"
    return model, offloaded


@pytest.fixture
def plain_weights(monkeypatch):
    """No weights in the processor's own order, which changes the last digits: offloaded then equals in memory."""
    monkeypatch.setattr(packed_layers, "LARGEST_PREPACKED", 0)


@torch.no_grad()
def test_packed_layers_fetch_what_is_offloaded(family, tmp_path, plain_weights):
    """States along paths, logits, and inputs of routers, with adapters in the place of skipped layers."""
    pair = loaded(family, tmp_path, skip_action="adapter")
    prompts = [tuple(row.tolist()) for row in random_rows([9, 4, 7])]
    routes = [(1, 0, 2, 1, 1), (1, 1, 1, 1, 1), (0, 1, 1, 2, 0)]
    examples = [RouterExample(*both) for both in zip(prompts, routes)]
    found = []
    for model in pair:
        runner = PathRunner(model, PrefixStore(2**20))
        asked = [(chain(prompt), path) for prompt, path in zip(prompts, [(0, 2, 2, 3, 4), (0, 1, 2, 3, 4), (1, 2)])]
        runner.compute(asked, whole=True)
        states = runner.last_hidden([(Node(segment, len(segment) - 1), path) for segment, path in asked])
        found.append([states, runner.head(states), PackedInputs(model)(model, examples, 0)["features"],
                      router_inputs(model, examples, 0)["features"]])  # fmt: skip
    for plain, offloaded in zip(*found, strict=True):
        assert torch.equal(plain, offloaded)


@torch.no_grad()
def test_an_offloaded_model_says_where_inputs_go_and_gives_its_weights(tmp_path):
    model, offloaded = loaded(LLAMA, tmp_path)
    assert next(offloaded.parameters()).device.type == "meta" and offloaded.device == CPU
    assert device_of(offloaded.model.layers[0]) == device_of(offloaded.model.layers[1]) == CPU
    assert torch.equal(weight_of(offloaded.lm_head), model.lm_head.weight)


def on_two_devices(model):
    """A model whose first two layers are on a faked cuda:0, the others, head and routers on cuda:1, by accelerate's own
    hooks."""
    inner = model.model
    for place, parts in {
        "cuda:0": [inner.embed_tokens, inner.rotary_emb, *inner.layers[:2]],
        "cuda:1": [*inner.layers[2:], inner.norm, model.lm_head, inner.routers, inner.adapters],
    }.items():
        for part in parts:
            for tensor in (*part.parameters(), *part.buffers()):
                put(tensor, place)
            for module in part.modules():
                add_hook_to_module(module, Placed(place))
    add_hook_to_module(model, Placed("cuda:0", io_same_device=True))
    return model


class Placed(AlignDevicesHook):
    """Of a module that lies where it belongs already."""

    def init_hook(self, module):
        return module


ON_TWO = {
    "per_layer": {"skip_action": "adapter"},
    "token": {"router": "prefix_token", "kept_layers": 1},
    "embedding": {"router": "embedding", "kept_layers": 3},
}


@pytest.mark.parametrize("kind", ON_TWO)
@torch.no_grad()
def test_layers_on_several_devices_get_all_they_need_there(kind, plain_weights):
    """Packed, pooled, decided and generated, on devices that are faked; as on one."""
    found = []
    for two in (False, True):
        model = routed_from(LLAMA, stock_model(LLAMA), router_seed=5, num_windows=3, **ON_TWO[kind])
        ids, mask = padded(random_rows([9, 4, 7]))
        with FakedDevices() if two else nullcontext():
            model = on_two_devices(model) if two else model
            runner = PathRunner(model, PrefixStore(2**20))
            asked = [(chain((5, 6, 7)), (0, 2, 2, 3, 4)), (chain((8, 9)), (0, 1))]
            runner.compute(asked, whole=True)
            states = runner.last_hidden([(Node(segment, len(segment) - 1), path) for segment, path in asked])
            own = [runner.head(states), model(ids.to(model.device), attention_mask=mask.to(model.device)).logits]
            if kind == "per_layer":
                example = [RouterExample((5, 6, 7), (1, 0, 2, 1, 1))]
                own += [inputs(model, example, 0)["features"] for inputs in (PackedInputs(model), router_inputs)]
            given = {"attention_mask": mask.to(model.device), "max_new_tokens": 4, "do_sample": False}
            own.append(model.generate(ids.to(model.device), pad_token_id=0, **given))
            if two:
                assert own[0].device == torch.device("cuda:1") and own[1].device == torch.device("cuda:0")
                assert asked[1][0].states[0, 1].keys.device == torch.device("cuda:0")
        found.append(own)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_step_of_gumbel_training_goes_over_several_devices():
    """The router's device is neither that of the loss nor that of the first layers."""
    arguments = EndToEndArguments(run_name="r", objective="gumbel", ce_weight=0.5, trainable="router", noise_steps=0)
    found = []
    for two in (False, True):
        model = routed_from(LLAMA, stock_model(LLAMA), router_seed=5, router="prefix_token", kept_layers=1)
        model.requires_grad_(False).model.routers.requires_grad_(True)
        with FakedDevices() if two else nullcontext():
            module = EndToEnd(on_two_devices(model) if two else model, None, arguments)
            batch = text_batch(torch.arange(1, 17).view(2, 8), torch.tensor([8, 6]), 2)
            loss = module(**{name: tensor.to(model.device) for name, tensor in batch._asdict().items()})["loss"]
            assert loss.device == torch.device("cuda:0" if two else "cpu")
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in model.model.routers.parameters())])
    for one, other in zip(*found, strict=True):  # Gradients are added up in another order.
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@torch.no_grad()
def test_an_offloaded_query_router_reads_the_same(tmp_path):
    """Its encoder and heads come back to memory; routers of other kinds are in test_bases.py."""
    folder = make_checkpoint(tmp_path, "copy")
    ids = torch.randint(20, 300, (6, 9), generator=torch.Generator().manual_seed(0))
    parts = ("embed_tokens", "layers", "norm", "rotary_emb", "routers", "adapters")
    places = {f"model.{part}": "disk" for part in parts} | {"lm_head": "disk"}
    found = []
    for given in ({}, {"device_map": places, "offload_folder": tmp_path / "weights"}):
        model = LLAMA.routed.from_pretrained(folder, **given).eval()
        found.append((model(ids).logits, model.last_routes))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert len({tuple(route) for route in found[0][1].tolist()}) > 1


def test_a_backward_keeps_no_offloaded_weight_and_has_the_same_gradients(tmp_path):
    """Of the weights that came for the forward none is there when it has ended."""
    arguments = EndToEndArguments(run_name="r", objective="gumbel", ce_weight=0.5, noise_steps=0, lora_dropout=0.0)
    found = []
    for model in loaded(LLAMA, tmp_path, router="prefix_token", kept_layers=1):
        torch.manual_seed(3)
        adapters = add_lora(model.requires_grad_(False), lora_config(arguments))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # Which begins at 0.
                parameter.data.fill_(0.01)
        module = EndToEnd(model, adapters, arguments)
        batch = text_batch(torch.arange(1, 17).view(2, 8), torch.tensor([8, 6]), 2)
        loss = module(**batch._asdict())["loss"]
        gc.collect()
        alive = [reference() for reference, _, _ in module.refetching.there.values()]
        assert not any(weight is not None for weight in alive)
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in module.parameters())])
    assert len(found[0]) > 40 and module.refetching.there
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base, questions, and a device map of it."""
    folder = tmp_path_factory.mktemp("big")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    save_tiny_base(folder / "base", LAYERS, **sizes)
    (folder / "map.json").write_text(json.dumps(PLACES))
    rows = [{"question": f"Which, {n}?", "choices": [str(n), str(n + 3), "x"], "answer": n % 3} for n in range(40)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "corpus.txt").write_text(
        "\n".join(f"passage {n} tells of {n * n} things and more" * 6 for n in range(40))
    )
    return folder


def both(main, words, output: str, place: Path) -> list[Path]:
    """A command in memory and by a device map: its two output folders; in `words` {} is the folder above."""
    found = []
    for name in ("plain", "mapped"):
        folder = place / name / output
        given = [str(word).format(folder.parent) for word in words]
        if name == "mapped":
            given += ["--device_map", str(place / "map.json"), "--offload_folder", str(place / "weights")]
        with patch.object(sys, "argv", ["command", *given]), patch.object(packed_layers, "LARGEST_PREPACKED", 0):
            main()
        found.append(folder)
    return found


def same_weights(*folders: Path) -> None:
    one, other = (load_file(folder / "model.safetensors") for folder in folders)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def search(place: Path, kind: str) -> tuple:
    menu = ["--menu", "influence:0,1,2", "--menu_samples", 8, "--scoring", "loglikelihood"] if kind == "menu" else []
    return (
        generate.main,
        ["--model", place / "base", "--dataset", place / "questions.jsonl", "--search", kind, "--num_simulations", 8,
         "--output_dir", "{}/" + kind, *menu],
        kind,
    )  # fmt: skip


@pytest.fixture(scope="module")
def labels(place):
    """Labels of both kinds of search, made both ways; the search comes once for all tests that learn from them."""
    return {kind: both(*search(place, kind), place) for kind in ("mcts", "menu")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LABELS)
def test_search_gives_the_same_labels(labels, kind):
    plain, mapped = ((folder / "labels.jsonl").read_text() for folder in labels[kind])
    assert plain == mapped and plain.count("\n") == 40


TRAINED = {
    "supervised, cached": ["--data", "{}/mcts", "--num_epochs", 2],
    "supervised, live": ["--data", "{}/mcts", "--num_epochs", 2, "--features", "live"],
    "value, menu": ["--objective", "value", "--data", "{}/menu"],
    "value, per layer": ["--objective", "value", "--router", "per_layer", "--data", "{}/mcts", "--num_epochs", 2],
    "adapters, healed": [
        "--objective", "adapters", "--dataset", "QUESTIONS", "--num_epochs", 2, "--heal_epochs", 1, "--heal_menu",
        "influence:1", "--heal_dataset", "QUESTIONS", "--num_samples", 40,
    ],
    "adapters, closed form": [
        "--objective", "adapters", "--dataset", "QUESTIONS", "--num_epochs", 0, "--start", "least_squares",
    ],
}  # fmt: skip
TEXT = [
    "--corpus", "CORPUS", "--sequence_length", 24, "--prompt_tokens", 4, "--kept_layers", 2, "--batch_size", 2,
    "--gradient_accumulation", 2, "--max_steps", 3, "--num_evaluations", 1, "--learning_rate", "1e-2", "--lora_rank", 4,
]  # fmt: skip
for objective in ("gumbel", "reinforce", "static", "stochastic_depth", "random", "dense"):
    TRAINED[objective] = ["--objective", objective, *TEXT]
TRAINED["gumbel, inputs, frozen"] = ["--objective", "gumbel", "--router", "prefix", "--trainable", "router", *TEXT]


@pytest.mark.slow
@pytest.mark.parametrize("what", NAMES)
def test_training_gives_the_same_checkpoint(place, labels, what):
    named = {"QUESTIONS": place / "questions.jsonl", "CORPUS": place / "corpus.txt"}
    words = [named.get(word, word) for word in TRAINED[what]]
    name = what.replace(", ", "-").replace(" ", "-")
    words += ["--model_id", place / "base", "--run_name", name, "--output_dir", "{}", "--work_dir", "{}/runs"]
    same_weights(*both(train.main, words, name, place))


@pytest.fixture(scope="module")
def trained(place, labels) -> dict[str, list[Path]]:
    """A checkpoint of each of some kinds of routers, twice."""
    found = {}
    for kind, words in {"supervised": TRAINED["supervised, cached"], "menu": TRAINED["value, menu"],
                        "token": TRAINED["gumbel"]}.items():  # fmt: skip
        words = [place / "corpus.txt" if word == "CORPUS" else word for word in words]
        words = [str(word).replace("{}", str(place / "plain")) for word in words]
        given = ["--model_id", place / "base", "--run_name", kind, "--output_dir", place / "made", "--work_dir",
                 place / "made" / "runs"]  # fmt: skip
        with patch.object(sys, "argv", ["train.py", *map(str, [*words, *given])]):
            train.main()
        found[kind] = []
        for name in ("plain", "mapped"):
            (place / name / "checkpoints").mkdir(parents=True, exist_ok=True)
            found[kind].append(Path(shutil.copytree(place / "made" / kind, place / name / "checkpoints" / kind)))
    return found


def results(path: Path) -> dict:
    """What an evaluation found, without times and places."""
    (task,) = json.loads(path.read_text())
    return {name: task[name] for name in ("base", "routed", "paired", "controls")}


def without_time(found):
    """A result without what differs from run to run."""
    if isinstance(found, dict):
        return {
            name: without_time(value) for name, value in found.items() if "second" not in name and name != "speedup"
        }
    return [without_time(value) for value in found] if isinstance(found, list) else found


@pytest.mark.slow
@pytest.mark.parametrize("kind", EVALUATED)
def test_evaluation_gives_the_same_answers(place, trained, kind):
    words = ["--checkpoint", "{}/" + kind, "--tasks", "routed_openbookqa", "--limit", 6, "--controls", "random"]
    plain, mapped = both(evaluate.main, [*words, "--seeds", 1], f"checkpoints/{kind}", place)
    assert without_time(results(plain / "evaluation.json")) == without_time(results(mapped / "evaluation.json"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ("supervised", "menu"))
def test_calibration_finds_the_same_setting(place, trained, kind):
    words = ["{}/" + kind, "--target_layers", 4, "--num_samples", 6, "--tolerance", 0.5, "--dataset", "openbookqa"]
    plain, mapped = both(calibrate.main, words, f"checkpoints/{kind}", place)
    assert (plain / "config.json").read_text() == (mapped / "config.json").read_text()


@pytest.mark.slow
def test_text_is_evaluated_alike(place, trained):
    plain, mapped = both(text_evaluation.main, ["{}/token", "--rows", 4], "checkpoints/token", place)
    losses = [json.loads((one / "text_evaluation.json").read_text())["layer_shares"] for one in (plain, mapped)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "kind, words, named",
    [
        (DataGenerationArguments, ["--max_memory", "cpu=1GB"], "cpu=1GB says how a --device_map is filled"),
        (DataGenerationArguments, ["--device_map", "auto", "--device", "cpu"], "both say where the model goes"),
        (DataGenerationArguments, ["--device_map", "auto", "--engine", "ray"], "worker of --engine ray has one device"),
        (DataGenerationArguments, ["--device_map", "auto", "--max_memory", "gpu=3"], "--max_memory gpu=3: give a GPU"),
        (EvaluationArguments, ["--device_map", "other"], "'other' is none of the automatic ones"),
        (EvaluationArguments, ["--device_map", "auto", "--check"], "--check takes the stock model apart"),
        (EndToEndArguments, ["--device_map", "auto", "--load_in_4bit"], "--load_in_4bit puts the base on one device"),
        (LanguageModelArguments, ["--device_map", "auto"], "--objective lm trains a whole model from scratch"),
        (PreferenceArguments, ["--device_map", "auto"], "--objective orpo learns from labels alone"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_a_model_is_loaded(kind, words, named):
    with pytest.raises(UserError) as caught:
        parse(kind, words)
    assert named in str(caught.value)


def test_several_processes_with_a_device_map_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="each of the 2 processes would fill the same devices; start one process"):
        parse(DataGenerationArguments, ["--device_map", "auto"])


@pytest.mark.parametrize(
    "places, named",
    [
        ('["cpu"]', "holds no object of parts and places"),
        ('{"lm_head": "tape"}', "lm_head: tape: a place is cpu, disk, or a GPU"),
        ('{"lm_head": 0}', "names 0: this machine has no usable GPU"),
    ],
)
def test_files_of_device_maps_are_checked(tmp_path, monkeypatch, places, named):
    monkeypatch.setattr("routing.common.placing.has_gpu", lambda: False)
    (tmp_path / "map.json").write_text(places)
    with pytest.raises(UserError) as caught:
        parse(DataGenerationArguments, ["--device_map", str(tmp_path / "map.json")])
    assert named in str(caught.value)


def test_routers_go_with_the_embedding_where_a_map_leaves_them_out(tmp_path):
    path = tmp_path / "map.json"
    path.write_text('{"model.embed_tokens": "cpu", "model.routers": "disk", "lm_head": 1}')
    assert map_of(str(path)) == {
        "model.embed_tokens": "cpu", "model.routers": "disk", "lm_head": 1, "model.adapters": "cpu",
    }  # fmt: skip
    path.write_text('{"model": 0, "lm_head": 1}')
    assert map_of(str(path)) == {"model": 0, "lm_head": 1} and map_of("auto") == "auto"
    assert memory_of("0=20GiB, cpu=1.5TB") == {0: "20GiB", "cpu": "1.5TB"} and memory_of("") is None


def test_a_map_that_leaves_parts_out_is_refused_by_their_names(place):
    with pytest.raises(UserError, match="model.layers.0"):
        load_base(str(place / "base"), torch.float32, None, Placement(CPU, {"model.embed_tokens": "disk"}))
