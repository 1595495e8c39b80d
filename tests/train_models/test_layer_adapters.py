"""Adapters in the place of skipped layers: in every way to run a path, in checkpoints, and trained."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import (
    LAYERS,
    LLAMA,
    assert_near,
    entering,
    logits_of,
    naive_layers,
    padded,
    random_rows,
    routed_from,
    save_tiny_base,
    stock_model,
)
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from routing.commands import generate as data_generation
from routing.commands.train import finished
from routing.common.cli import parse
from routing.common.errors import UserError
from routing.models.checkpoint import adapter_weights, load_adapted, save_checkpoint
from routing.models.checkpoint_files import check_adapters
from routing.models.config_fields import config_with
from routing.models.families import load_tokenizer
from routing.scoring.packed import PathEvaluator
from routing.scoring.path_runner import PathRunner
from routing.scoring.plain import Evaluator
from routing.scoring.prefix_store import PrefixStore
from routing.scoring.requests import request_of
from routing.scoring.segments import TokenTree
from routing.search.routes import full_route, to_path
from routing.tasks.answers import CHECKERS
from routing.tasks.examples import Example
from routing.training.adapters.arguments import AdapterArguments
from routing.training.adapters.report import worth_of_layers
from routing.training.adapters.run import run
from routing.training.adapters.states import StoredStates, collect_states, layer_states, right_answers
from routing.training.adapters.training import AdapterStack, layer_errors
from routing.training.end_to_end.arguments import EndToEndArguments
from routing.training.end_to_end.run import run as run_end_to_end
from routing.training.routers.arguments import TrainArguments
from routing.training.routers.run import run as train_on_labels
from train_models import routed_model
from train_models.layer_adapters import LayerAdapter
from train_models.routed_model import small_parts

ROUTES = ((1, 0, 2, 0, 1), (0, 1, 1, 1, 0), (0, 0, 0, 0, 0), (1, 1, 1, 1, 1))
LENGTHS = (7, 3, 12, 5)


def adapted(family, **fields):
    """A routed model whose adapters change what they stand in for."""
    model = routed_with_adapters(family, stock_model(family), **fields)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.model.adapters.parameters():
            parameter.normal_(0.0, 0.3)
    return model


def routed_with_adapters(family, stock, **fields):
    """As `conftest.routed_from`, with fresh adapters."""
    bare = routed_from(family, stock, **fields)
    config = type(bare.config)(**bare.config.to_dict() | {"skip_action": "adapter", "adapter_size": 6})
    config._attn_implementation = bare.config._attn_implementation
    model = family.routed(config).eval()
    missing, unexpected = model.load_state_dict(bare.state_dict(), strict=False)
    assert not unexpected and all(".adapters." in name for name in missing)
    return model


@torch.no_grad()
def oracle(model, row: torch.Tensor, route) -> torch.Tensor:
    """Logits [T, V] of one row: layers one by one, adapters where the route says skip; no cache, no batch."""
    inner, layers = model.model, naive_layers(model, len(row))
    hidden = entering(model, inner.embed_tokens(row[None]))
    for layer, count in enumerate(route):
        if not count:
            own = inner.adapters[layer]
            hidden = hidden + torch.relu(hidden @ own.down.weight.T + own.down.bias) @ own.up.weight.T + own.up.bias
        for _ in range(count):
            hidden = layers[layer](hidden)
    return logits_of(model, inner.norm(hidden))[0]


def test_an_adapter_by_hand():
    adapter = LayerAdapter(2, 1)
    with torch.no_grad():
        adapter.down.weight.copy_(torch.tensor([[1.0, -1.0]]))
        adapter.down.bias.fill_(0.5)
        adapter.up.weight.copy_(torch.tensor([[2.0], [3.0]]))
        adapter.up.bias.copy_(torch.tensor([0.0, 1.0]))
    # 3 - 1 + 0.5 = 2.5 goes through the ReLU; 1 - 3 + 0.5 < 0 does not.
    assert adapter(torch.tensor([[3.0, 1.0], [1.0, 3.0]])).tolist() == [[8.0, 9.5], [1.0, 4.0]]


def test_a_fresh_adapter_is_the_identity_and_has_the_published_spread():
    adapter = LayerAdapter(400, 64)
    adapter.reset_parameters()
    states = torch.randn(3, 400)
    assert torch.equal(adapter(states), states)
    assert adapter.down.weight.std().item() == pytest.approx(400**-0.5, rel=0.02)
    assert not adapter.down.bias.any() and not adapter.up.weight.any() and not adapter.up.bias.any()


@pytest.mark.parametrize("side", ("left", "right"))
@torch.no_grad()
def test_rows_with_routes_of_their_own(any_family, side):
    model = adapted(any_family)
    rows = random_rows(LENGTHS)
    ids, mask = padded(rows, side)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    output = model(ids, attention_mask=mask, position_ids=positions, routes=torch.tensor(ROUTES)).logits
    bare = []
    for row, own, found, route in zip(rows, mask.bool(), output, ROUTES, strict=True):
        expected = oracle(model, row, route)
        assert_near(found[own], expected)
        with config_with(model, skip_action="identity"):
            bare.append(float((model(row[None], routes=torch.tensor([route])).logits[0] - expected).abs().max()))
    assert min(bare[:3]) > 0.1 and bare[3] < 1e-4  # The adapters matter, where something is skipped.


@pytest.mark.parametrize("beams", (1, 2))
@torch.no_grad()
def test_cached_generation_equals_the_whole_forward(family, beams):
    model = adapted(family)
    rows = random_rows(LENGTHS)
    ids, mask = padded(rows)
    routes = torch.tensor(ROUTES)
    output = model.generate(
        ids, attention_mask=mask, routes=routes, max_new_tokens=5, do_sample=False,
        num_beams=beams, pad_token_id=0,
    )  # fmt: skip
    for row, route, found in zip(rows, ROUTES, output[:, ids.shape[1] :], strict=True):
        text = row
        if beams > 1:
            alone = model.generate(
                row[None], routes=torch.tensor([route]), max_new_tokens=5, do_sample=False, num_beams=beams,
                pad_token_id=0, use_cache=False,
            )  # fmt: skip
            assert torch.equal(found, alone[0, len(row) :])
            continue
        for token in found:
            assert oracle(model, text, route)[-1].argmax() == token
            text = torch.cat([text, token[None]])


@torch.no_grad()
def test_a_plan_is_made_once_for_all_decoded_tokens(family, monkeypatch):
    model = adapted(family)
    rows = random_rows((4, 4, 4, 4))
    output = model(torch.stack(rows), routes=torch.tensor(ROUTES), use_cache=True)
    made, plan = [], routed_model.layer_plan
    monkeypatch.setattr(routed_model, "layer_plan", lambda *given: made.append(given) or plan(*given))
    cache, token = output.past_key_values, torch.tensor([[3], [4], [5], [6]])
    for _ in range(3):
        model(token, past_key_values=cache, use_cache=True)
    assert len(made) == LAYERS
    order = torch.tensor([2, 0])  # Rows that change places have other plans.
    cache.batch_select_indices(order)
    found = model(token[order], past_key_values=cache, use_cache=True).logits
    assert len(made) == 2 * LAYERS
    for at, row in enumerate(order.tolist()):
        text = torch.cat([rows[row], *[token[row]] * 4])
        assert_near(found[at, -1], oracle(model, text, ROUTES[row])[-1])


@torch.no_grad()
def test_hidden_states_are_those_behind_adapters(family):
    model, row = adapted(family), random_rows((6,))[0]
    output = model(row[None], routes=torch.tensor([ROUTES[0]]), output_hidden_states=True, use_cache=True)
    states = output.hidden_states
    assert len(states) == LAYERS + 1
    assert_near(states[2], model.model.adapters[1](states[1]))
    again = model(
        row[None, :1], past_key_values=output.past_key_values, use_cache=True, output_hidden_states=True
    ).hidden_states
    assert_near(again[4], model.model.adapters[3](again[3]))


@pytest.mark.parametrize("kind", ("prefix", "prefix_token", "random_token"))
@torch.no_grad()
def test_global_routers_skip_by_adapters_too(family, kind):
    model = adapted(family, router=kind, kept_layers=2, run_probability=0.5)
    torch.manual_seed(3)
    for parameter in model.model.routers.parameters():
        parameter.normal_(0.0, 1.0)
    row = random_rows((9,))[0]
    if kind == "prefix":
        gates = torch.tensor([[True, False, False]])
        found = model(row[None], draw_gates=lambda logits: gates, use_cache=False).logits[0]
        assert_near(found, oracle(model, row, (1, 1, 1, 0, 0)))
        return
    found = model(row[None], use_cache=False).logits[0]
    gates = model.model.last_gates[0]
    assert 0.1 < gates.float().mean() < 0.9
    # The obvious form runs layer and adapter for all tokens and keeps one of them.
    inner, tokens = model.model, len(row)
    hidden, layers = entering(model, inner.embed_tokens(row[None])), naive_layers(model, tokens)
    for layer in range(LAYERS):
        ran = layers[layer](hidden)
        gate = torch.ones(tokens, dtype=torch.bool) if layer < 2 else gates[:, layer - 2]
        hidden = torch.where(gate[None, :, None], ran, inner.adapters[layer](hidden))
    assert_near(found, logits_of(model, inner.norm(hidden))[0])


def test_blended_gates_reach_the_adapters(family):
    model = adapted(family, router="prefix_token", kept_layers=2)
    row = random_rows((5,))[0][None]
    half = model(row, draw_gates=lambda logits: torch.full_like(logits, 0.5), use_cache=False).logits
    half.sum().backward()
    grads = [adapter.up.weight.grad for adapter in model.model.adapters]
    assert all(grad is None for grad in grads[:2]) and all(grad.abs().sum() > 0 for grad in grads[2:])


@torch.no_grad()
def test_the_evaluator_of_the_search_runs_them(any_family):
    model = adapted(any_family)
    rows = random_rows((5, 8, 3))
    runner = PathRunner(model, PrefixStore(2**30))
    nodes = [(TokenTree(row.tolist(), []).root, tuple(to_path(route))) for row in rows for route in ROUTES]
    runner.compute([(node.segment, path) for node, path in nodes])
    found = runner.head(runner.last_hidden(nodes))
    expected = torch.stack([oracle(model, row, route)[-1] for row in rows for route in ROUTES])
    assert_near(found, expected)


# Checkpoints.


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return save_tiny_base(folder / "base", LAYERS, initializer_range=0.4, **sizes)


FIELDS = {"router": "none", "skip_action": "adapter", "adapter_size": 6}


@pytest.fixture(scope="module", params=("copy", "reference"))
def checkpoint(request, base):
    model = LLAMA.routed.from_pretrained(base, **FIELDS)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.model.adapters.parameters():
            parameter.normal_(0.0, 0.3)
    folder = base.parent / request.param
    info = {"arguments": {"model_id": str(base)}, "datasets": []}
    save_checkpoint(folder, str(base), small_parts(model.model), FIELDS, request.param, info)
    return folder, model


@torch.no_grad()
def test_adapters_are_saved_with_the_model(checkpoint, base, tmp_path):
    folder, model = checkpoint
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = model(ids, routes=torch.tensor([ROUTES[0]])).logits
    for place in (folder, tmp_path / "again"):
        loaded = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True)
        assert torch.equal(loaded(ids, routes=torch.tensor([ROUTES[0]])).logits, expected)
        loaded.save_pretrained(tmp_path / "again")
    for name, tensor in adapter_weights(folder).items():
        assert torch.equal(tensor, small_parts(model.model)[name])
    stock = AutoModelForCausalLM.from_pretrained(base)
    assert torch.equal(loaded(ids).logits, stock(ids).logits)  # No router: every layer runs.
    assert load_adapted(folder, torch.float32, torch.device("cpu")).model.stand_ins


def test_a_checkpoint_without_its_adapters_is_refused(checkpoint, tmp_path):
    folder, _ = checkpoint
    if folder.name == "reference":
        return  # Its weights are read with strict names.
    from safetensors.torch import load_file, save_file

    for path in folder.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if ".adapters.3." not in k}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"adapters.*adapters\.3\..*make it again"):
        AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)


def test_adapters_are_asked_for_by_name(checkpoint, base, tmp_path):
    folder, _ = checkpoint
    assert check_adapters(folder, str(base))["adapter_size"] == 6
    with pytest.raises(UserError, match=r"other/model.*Give the same model"):
        check_adapters(folder, "other/model")
    plain = tmp_path / "plain"
    save_checkpoint(plain, str(base), {}, {"router": "none"}, "copy", {"arguments": {"model_id": str(base)}})
    with pytest.raises(UserError, match=r"no adapters.*--objective adapters"):
        check_adapters(plain)


# Training.


@pytest.fixture(scope="module")
def asked(base):
    """(tokenizer, requests) of which about half are answered rightly, since the checker accepts many answers."""
    tokenizer = load_tokenizer(str(base))
    examples = [Example("quiz", f"what is {i}?", r"[\s\S]*[a-m]", checker="regex") for i in range(70)]
    return tokenizer, [request_of(example, "generate", tokenizer) for example in examples]


def test_states_are_what_enters_each_layer_and_what_leaves_the_last(family):
    stock = stock_model(family)
    model = routed_with_adapters(family, stock)
    rows = [row.tolist() for row in random_rows((4, 7))]
    for row, states in zip(rows, layer_states(model, rows), strict=True):
        assert states.shape == (len(row), LAYERS + 1, 32)
        with torch.no_grad():
            # The target of the last adapter is in front of the final norm.
            assert_near(logits_of(stock, stock.model.norm(states[:, -1])), stock(torch.tensor([row])).logits[0])
            assert_near(states[:, 0], entering(stock, stock.model.embed_tokens(torch.tensor(row))))
        normed = stock.model.norm(states[:, -1])
        assert (normed - states[:, -1]).abs().max() > 0.1


def test_states_are_of_right_answers_with_their_prompts(base, asked):
    tokenizer, requests = asked
    model = LLAMA.routed.from_pretrained(base, **FIELDS).eval()
    evaluator = PathEvaluator(model, tokenizer, 32, score="accuracy")
    answers = right_answers(evaluator, requests)
    plain = Evaluator(model, tokenizer, score="accuracy").verdicts(requests, [full_route(LAYERS)] * len(requests))
    assert 10 < sum(answer is not None for answer in answers) < 60
    for request, answer, verdict in zip(requests, answers, plain, strict=True):
        assert (answer is not None) == verdict.correct
        if answer is not None:
            assert answer[: len(request.prompt_ids)] == request.prompt_ids and len(answer) > len(request.prompt_ids)
            text = tokenizer.decode(answer[len(request.prompt_ids) :], clean_up_tokenization_spaces=False)
            assert CHECKERS["regex"](text, request.example)


def collected(folder, base, asked, key: str = "a", count: int = 70):
    tokenizer, requests = asked
    model = LLAMA.routed.from_pretrained(base, **FIELDS).eval()
    return collect_states(folder, model, tokenizer, requests[:count], key, 5, 0.3, 32)


def test_states_on_disk_go_on_where_a_run_was_killed(base, asked, tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    counts = collected(whole, base, asked)
    from routing.training.adapters import states

    def die(*args):
        raise KeyboardInterrupt

    written = states._write_group
    monkeypatch.setattr(
        states, "_write_group", lambda folder, number, *rest: (die if number else written)(folder, number, *rest)
    )
    with pytest.raises(KeyboardInterrupt):
        collected(killed, base, asked)
    (killed / "train-00001.tmp").write_bytes(b"half a shard")
    first = (killed / "train-00000.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(states, "_write_group", written)
    assert collected(killed, base, asked) == counts == {"questions": 70, "right": counts["right"]}
    assert (killed / "train-00000.safetensors").stat().st_mtime_ns == first
    for part in ("train", "held_out"):
        sets = [StoredStates(folder, part) for folder in (whole, killed)]
        assert len(sets[0]) == len(sets[1]) > 0
        batches = [stored.__getitems__(list(range(len(stored)))[::-1])["states"] for stored in sets]
        assert torch.equal(*batches) and batches[0].shape[1:] == (LAYERS + 1, 32)
    assert sum(len(StoredStates(whole, part)) for part in ("train", "held_out")) <= 5 * counts["right"]
    collected(killed, base, asked, key="b", count=10)  # Other states take the place of these.
    assert len(list(killed.glob("group-*.json"))) == 1


def test_too_little_room_is_told_before_anything_is_computed(base, asked, tmp_path, monkeypatch):
    from collections import namedtuple

    from routing.training.adapters import states

    monkeypatch.setattr(states.shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(1000))
    with pytest.raises(UserError, match=r"need up to \d+ bytes .* 1000 free.*--tokens_per_example"):
        collected(tmp_path / "states", base, asked)


def test_all_layers_in_one_pass_have_the_losses_and_gradients_of_each_alone():
    model = routed_with_adapters(LLAMA, stock_model(LLAMA))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.model.adapters.parameters():
            parameter.normal_(0.0, 0.3)
    states = torch.randn(9, LAYERS + 1, 32)
    stack = AdapterStack(model.model.adapters, relative=False)
    output = stack(states)
    output["loss"].backward()
    total = 0.0
    for layer, adapter in enumerate(model.model.adapters):
        loss = (adapter(states[:, layer]) - states[:, layer + 1]).square().mean()
        adapter.zero_grad()
        loss.backward()
        total += float(loss)
        assert_near(stack.down_weight.grad[layer], adapter.down.weight.grad)
        assert_near(stack.up_bias.grad[layer], adapter.up.bias.grad)
        assert output["errors"][:, layer].mean().item() == pytest.approx(float(loss), rel=1e-5)
        assert_near(output["identity"][:, layer], (states[:, layer] - states[:, layer + 1]).square().mean(1))
    assert float(output["loss"]) == pytest.approx(total, rel=1e-5)


def test_relative_errors_count_each_token_alike():
    model = routed_with_adapters(LLAMA, stock_model(LLAMA))
    states = torch.randn(9, LAYERS + 1, 32)
    states[0] *= 1000
    # A fresh adapter is the identity, so each token's relative error is 1.
    assert float(AdapterStack(model.model.adapters, relative=True)(states)["loss"]) == pytest.approx(LAYERS, rel=1e-3)


def words(base, name: str, *more: str) -> list[str]:
    places = [f"--output_dir={base.parent}/checkpoints", f"--work_dir={base.parent}/runs"]
    settings = ["--num_samples=80", "--score_samples=6", "--num_epochs=6", "--learning_rate=1e-3", "--batch_size=32"]
    return [f"--run_name={name}", f"--model_id={base}", "--dataset=openbookqa", *places, *settings, *more]


def trained(base, name: str, *more: str):
    finished(run(parse(AdapterArguments, words(base, name, *more))))
    return base.parent / "checkpoints" / name


@pytest.fixture(scope="module")
def trained_checkpoint(base):
    return trained(base, "one")


def test_training_brings_adapters_nearer_to_their_layers(trained_checkpoint, base):
    record = json.loads((trained_checkpoint / "adapters.json").read_text())
    errors = record["errors"]
    assert len(errors["mse"]) == LAYERS == len(record["layers"])
    assert all(mse < identity for mse, identity in zip(errors["mse"], errors["identity_mse"], strict=True))
    assert (trained_checkpoint / "adapters.png").stat().st_size > 10_000
    card = (trained_checkpoint / "README.md").read_text()
    assert "no router" in card and "bottleneck of 64" in card
    with (
        safe_open(trained_checkpoint / "model.safetensors", "pt") as own,
        safe_open(base / "model.safetensors", "pt") as old,
    ):
        for name in old.keys():  # noqa: SIM118 - the file is no dict
            assert torch.equal(own.get_tensor(name), old.get_tensor(name))  # The base is frozen.


def test_a_run_goes_on_to_the_same_adapters(trained_checkpoint, base, monkeypatch):
    from routing.training.adapters import training

    class Killed(training.AdapterTrainer):
        def _save_checkpoint(self, *args, **kwargs):
            super()._save_checkpoint(*args, **kwargs)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "AdapterTrainer", Killed)
        trained(base, "two")
    found = adapter_weights(trained(base, "two", "--resume"))
    expected = adapter_weights(trained_checkpoint)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_what_a_layer_is_worth_alone(trained_checkpoint, base):
    model = AutoModelForCausalLM.from_pretrained(trained_checkpoint, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    examples = [Example("quiz", f"what is {i}?", r"[\s\S]*[a-m]", checker="regex") for i in range(5)]
    requests = [request_of(example, "generate", tokenizer) for example in examples]
    worth = worth_of_layers(model, tokenizer, requests, 16)
    for row in worth["layers"]:
        route = [1] * LAYERS
        route[row["layer"]] = 0
        for skip_action in ("identity", "adapter"):
            with config_with(model, skip_action=skip_action):
                verdicts = Evaluator(model, tokenizer, 5).verdicts(requests, [tuple(route)] * 5)
            assert row[skip_action]["accuracy"] == sum(verdict.correct for verdict in verdicts) / 5
    gains = [row["adapter"]["accuracy"] - row["identity"]["accuracy"] for row in worth["layers"]]
    over = worth["over_layers"]
    assert worth["n"] == 5 and over["mean_gain"] == pytest.approx(sum(gains) / LAYERS)
    assert (over["better"], over["worse"]) == (sum(g > 0 for g in gains), sum(g < 0 for g in gains))
    assert over["ci95"][0] <= over["mean_gain"] <= over["ci95"][1]


def test_errors_of_layers_by_hand():
    from types import SimpleNamespace

    errors, identity = torch.tensor([[1.0, 2.0], [3.0, 8.0]]), torch.tensor([[2.0, 4.0], [4.0, 4.0]])
    found = layer_errors(SimpleNamespace(predictions=(errors, identity)))
    assert found == {"mse": [2.0, 5.0], "identity_mse": [3.0, 4.0], "relative": [0.5, 0.5]}


def test_all_wrong_arguments_are_named_at_once(base):
    with pytest.raises(UserError) as caught:
        parse(AdapterArguments, ["--run_name=a/b", "--dataset=nothing", "--num_samples=0", "--learning_rate=0"])
    for named in ("--run_name 'a/b'", "--dataset 'nothing'", "--num_samples 0", "--learning_rate 0"):
        assert named in str(caught.value)


def test_a_model_that_answers_nothing_rightly_is_told(base, tmp_path):
    lines = [json.dumps({"question": f"x{i}", "answer": "(?!)", "checker": "regex"}) for i in range(20)]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"0 of 20 questions of .*own\.jsonl rightly.*a data set that the model can do"):
        trained(base, "none", f"--dataset={tmp_path}/own.jsonl", "--eval_fraction=0.4")


# Routers of the other systems skip by adapters too.


def same_adapters(one, other) -> bool:
    first, second = adapter_weights(one), adapter_weights(other)
    return first.keys() == second.keys() and len(first) and all(torch.equal(first[k], second[k]) for k in first)


def test_routers_of_labels_are_trained_with_the_adapters_of_their_labels(trained_checkpoint, base, tmp_path):
    rows = [{"question": f"thing {i}?", "answer": i % 3, "choices": ["red", "big", f"old {i}"]} for i in range(24)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    searched = ["--model", str(base), "--dataset", str(tmp_path / "own.jsonl"), "--num_simulations", "8"]
    searched += ["--adapters", str(trained_checkpoint), "--output_dir", str(tmp_path / "labels")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["data_generation.py", *searched])
        data_generation.main()
    places = [f"--data={tmp_path}/labels", f"--output_dir={tmp_path}", f"--work_dir={tmp_path}/runs"]
    settings = ["--num_epochs=1", "--eval_fraction=0.3", "--num_evaluations=1", "--eval_examples=3"]
    words = [f"--model_id={base}", "--run_name=routed", *places, *settings]
    with pytest.raises(UserError, match="made with adapters .*--adapters is ''.*give those"):
        parse(TrainArguments, words)
    train_on_labels(parse(TrainArguments, [*words, f"--adapters={trained_checkpoint}"]))
    assert same_adapters(tmp_path / "routed", trained_checkpoint)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "routed", trust_remote_code=True)
    assert model.config.router == "per_layer" and model.config.skip_action == "adapter"


def test_routers_trained_end_to_end_keep_the_adapters_they_were_given(trained_checkpoint, base, tmp_path):
    (tmp_path / "corpus.txt").write_text(
        "\n".join(f"passage {i} of a small text " + "about things " * 9 for i in range(60))
    )
    places = [f"--corpus={tmp_path}/corpus.txt", f"--output_dir={tmp_path}", f"--work_dir={tmp_path}/runs"]
    settings = ["--max_steps=2", "--batch_size=2", "--sequence_length=16", "--prompt_tokens=4", "--kept_layers=2"]
    words = [f"--model_id={base}", "--run_name=token", *places, *settings, "--num_evaluations=1"]
    words += [f"--adapters={trained_checkpoint}", "--gradient_accumulation=1"]
    run_end_to_end(parse(EndToEndArguments, words))
    assert same_adapters(tmp_path / "token", trained_checkpoint)  # Frozen, and there.


def test_adapters_can_be_switched_off_when_loading_and_not_on(checkpoint, base, tmp_path):
    folder, _ = checkpoint
    bare = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, skip_action="identity")
    ids, routes = torch.tensor([[5, 6, 7]]), torch.tensor([ROUTES[0]])
    stock = LLAMA.routed.from_pretrained(base, router="none")
    with torch.no_grad():
        assert torch.equal(bare(ids, routes=routes).logits, stock(ids, routes=routes).logits)
    for kind in ("copy", "reference"):
        info = {"arguments": {"model_id": str(base)}}
        save_checkpoint(tmp_path / kind, str(base), {}, {"router": "none"}, kind, info)
        with pytest.raises(ValueError, match="the checkpoint has no adapters. Leave the argument out"):
            AutoModelForCausalLM.from_pretrained(tmp_path / kind, trust_remote_code=True, skip_action="adapter")


def test_a_run_goes_on_with_the_same_states_alone(trained_checkpoint, base):
    with pytest.raises(UserError, match="--num_samples was 80, now 30"):
        trained(base, "one", "--num_samples=30", "--resume")
    note = base.parent / "runs" / "one" / "made_from.json"
    kept = note.read_text()
    note.write_text(json.dumps({"states": "others"}))
    with pytest.raises(UserError, match="data that the run .* have changed since .*states.*Leave --resume out"):
        trained(base, "one", "--resume")
    note.write_text(kept)
