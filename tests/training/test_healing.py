"""Adapters in closed form, and healing: exact algebra, paths, gradients, resume, several processes, the report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import healing as healing_benchmark
import pytest
import torch
from conftest import LAYERS, LLAMA, assert_near, random_rows, save_tiny_base, stock_model
from safetensors import safe_open
from test_layer_adapters import adapted, oracle, routed_with_adapters
from zoo import bring

from routing.common.cli import parse
from routing.common.errors import UserError
from routing.models.checkpoint import adapter_weights
from routing.models.config_fields import config_with
from routing.models.families import load_base_config, load_tokenizer
from routing.models.head import Head
from routing.objectives.divergence import divergence
from routing.scoring.context import needed_tokens
from routing.search.routes import SKIP
from routing.tasks.prompt_files import is_prompt_file, prompt_file
from routing.training.adapters.arguments import AdapterArguments
from routing.training.adapters.data import AdapterData, draw, draw_prompts
from routing.training.adapters.heal_paths import HealPaths, heal_paths, menu_problems, menu_routes, path_name
from routing.training.adapters.heal_texts import collect_texts
from routing.training.adapters.healing import Healing, RowBatches, heal, path_divergences, right_padded
from routing.training.adapters.least_squares import RIDGES, Moments, fit_adapters, reduced_rank
from routing.training.adapters.run import run
from routing.training.adapters.stages import paired, worth_of_stages
from routing.training.adapters.training import held_out_errors

ROUTES = ((1, 0, 1, 0, 1), (1, 0, 0, 0, 1), (1, 2, 1, 0, 1))
REPO = Path(__file__).resolve().parents[2]

# Closed form.


class Held:
    """States in memory, read as StoredStates are."""

    def __init__(self, states: torch.Tensor):
        self.states = states

    def __len__(self) -> int:
        return len(self.states)

    def __getitems__(self, items):
        return {"states": self.states[items]}


def some_states(tokens: int = 40, width: int = 8, layers: int = 2, seed: int = 0) -> torch.Tensor:
    """States [T, L + 1, D] whose moves are mostly linear, with one huge token as models have them."""
    generator = torch.Generator().manual_seed(seed)
    states = [torch.randn(tokens, width, generator=generator)]
    for layer in range(layers):
        maps = torch.randn(width, width, generator=torch.Generator().manual_seed(layer)) / width**0.5
        noise = 0.1 * torch.randn(tokens, width, generator=generator)
        states.append(states[-1] @ maps + torch.relu(states[-1]) + layer + noise)
    found = torch.stack(states, 1)
    found[0] *= 50
    return found


def lstsq(given: torch.Tensor, moves: torch.Tensor, ridge: float, weights: torch.Tensor, rank: int):
    """The same by torch.linalg.lstsq on rows of tokens and rows of the penalty; the rank by the SVD of what it fits."""
    given, moves, weights = given.double(), moves.double(), weights.double() / weights.double().sum()
    mean_x, mean_d = weights @ given, weights @ moves
    x, d = (given - mean_x) * weights.sqrt()[:, None], (moves - mean_d) * weights.sqrt()[:, None]
    strength = ridge * x.square().sum() / x.shape[1]
    rows = torch.cat([x, torch.eye(x.shape[1], dtype=x.dtype) * strength.sqrt()])
    full = torch.linalg.lstsq(rows, torch.cat([d, torch.zeros(x.shape[1], d.shape[1], dtype=d.dtype)])).solution
    kept = torch.linalg.svd(rows @ full).Vh[:rank]
    best = full @ kept.T @ kept
    return best, mean_d - mean_x @ best


@pytest.mark.parametrize("ridge", (1e-4, 0.3))
@pytest.mark.parametrize("rank", (2, 8))
@pytest.mark.parametrize("relative", (False, True))
def test_the_closed_form_is_that_of_lstsq(ridge, rank, relative):
    states = some_states()
    moments = Moments(2, 8)
    for part in states.split(7):
        moments.add(part, relative)
    for layer in range(2):
        given, moves = states[:, layer], states[:, layer + 1] - states[:, layer]
        weights = 1 / moves.square().mean(-1) if relative else torch.ones(len(states))
        expected, bias = lstsq(given, moves, ridge, weights, rank)
        inward, outward, found = reduced_rank(moments, layer, ridge, rank)
        assert_near((outward @ inward).T, expected, 1e-6)
        assert_near(found, bias, 1e-6)
        # The error by moments is that by tokens.
        missed = moves.double() - given.double() @ (outward @ inward).T - found
        by_tokens = (weights.double() / weights.double().sum()) @ missed.square().sum(-1)
        assert moments.error(layer, inward, outward, found) == pytest.approx(float(by_tokens), rel=1e-6)


def test_no_map_of_the_rank_is_better_than_the_closed_form():
    states = some_states()
    moments = Moments(2, 8)
    moments.add(states, False)
    best = reduced_rank(moments, 0, 1e-9, 3)
    least = moments.error(0, *best)
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        other = [part + 0.05 * torch.randn(part.shape, generator=generator, dtype=part.dtype) for part in best]
        assert moments.error(0, *other) > least


@pytest.mark.parametrize("size", (3, 8, 11))
def test_an_adapter_holds_a_map_of_the_rank_of_its_whole_bottleneck(size):
    model = LLAMA.routed(LLAMA.routed_config(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=4, skip_action="adapter", adapter_size=size, router="none",
    ))  # fmt: skip
    adapters, states = model.model.adapters, some_states()
    ridges = fit_adapters(adapters, Held(states), Held(some_states(seed=5)), False, batch_size=16)
    assert all(ridge in RIDGES for ridge in ridges)
    moments, aside = Moments(2, 8), Moments(2, 8)
    moments.add(states, False)
    aside.add(some_states(seed=5), False)
    for layer, adapter in enumerate(adapters):
        tried = {ridge: reduced_rank(moments, layer, ridge, size) for ridge in RIDGES}
        assert ridges[layer] == min(RIDGES, key=lambda one: aside.error(layer, *tried[one]))
        inward, outward, bias = tried[ridges[layer]]
        given = states[:, layer]
        expected = given.double() + given.double() @ (outward @ inward).T + bias
        found = adapter(given)
        assert ((found - expected).abs() <= 1e-5 * (1 + expected.abs().max())).all()
    errors = held_out_errors(adapters, Held(states), 16)
    assert all(own < identity for own, identity in zip(errors["mse"], errors["identity_mse"], strict=True))
    with torch.no_grad():
        missed = float((adapters[1](states[:, 1]) - states[:, 2]).square().mean())
    assert errors["mse"][1] == pytest.approx(missed, rel=1e-5)


# Paths.


def test_paths_are_drawn_as_the_shares_say():
    paths = heal_paths(((1,) * 5, *ROUTES), 0.25, "menu")
    assert paths == HealPaths(ROUTES, (1, 2, 3), 0.25)  # The full path has no adapter.
    drawn = [paths.draw(Random(seed)) for seed in range(4000)]
    # Random paths skip 1 to 3 of the layers 1 to 3: three sets of one and of two, one of three.
    sets = {tuple(layer for layer, count in enumerate(route) if count == SKIP) for route in drawn}
    assert sets == {(1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)}
    share = sum(2 in route for route in drawn) / len(drawn)
    assert share == pytest.approx(0.75 / 3, abs=0.03)
    assert sum(route == (1, 0, 0, 0, 1) for route in drawn) / 4000 == pytest.approx(0.75 / 3 + 0.25 / 3, abs=0.03)
    assert heal_paths(ROUTES, 0.5, "all").layers == (0, 1, 2, 3, 4)
    assert heal_paths(ROUTES, 0.5, "all", kept=2).layers == (2, 3, 4)
    assert all(HealPaths(ROUTES, (1,), 0.0).draw(Random(i)) in ROUTES for i in range(20))
    with pytest.raises(UserError, match="none of its 1 paths skips a layer"):
        heal_paths([(1, 2, 1)], 0.5, "menu")


def test_a_template_that_tells_the_time_is_refused():
    asking = AdapterArguments(apply_chat_template=True)
    with pytest.raises(UserError, match="the chat template tells the time.*--chat_template_args"):
        draw(asking, "arithmetic", "search", 1, load_tokenizer(bring("dated_template")), None)


def test_what_a_run_is_made_from(tmp_path):
    data = AdapterData([], [], [], [], "states", "texts")
    assert data.made_from(AdapterArguments(heal_epochs=0)) == {"states": "states"}
    menu = tmp_path / "menu.json"
    menu.write_text("[]")
    healed = [data.made_from(AdapterArguments(heal_epochs=1, heal_menu=str(path))) for path in (menu, tmp_path)]
    assert all(own["states"] == "states" and own["texts"] == "texts" for own in healed)
    menu.write_text("[[0]]")
    assert data.made_from(AdapterArguments(heal_epochs=1, heal_menu=str(menu)))["menu"] != healed[0]["menu"]


def test_menus_of_influence_files_and_labels(tmp_path):
    order = [3, 1, 0, 2, 4]
    full = (1,) * 5
    assert menu_routes("influence:0,1,2", 5, lambda: order) == (full, (1, 1, 1, 0, 1), (1, 0, 1, 0, 1))
    assert menu_routes("influence:2", 5, lambda: order, kept=2) == (full, (1, 1, 0, 0, 1))
    assert menu_routes("influence:4", 5, lambda: order) == (full, (0, 0, 0, 0, 1))  # One layer runs, which may be.
    (tmp_path / "menu.json").write_text(json.dumps({"routes": [list(ROUTES[0])]}))
    (tmp_path / "paths.json").write_text(json.dumps([[0, 1, 1, 2, 4]]))
    (tmp_path / "labels.header.json").write_text(json.dumps({"menu": {"spec": "x", "routes": [[1] * 5, [*ROUTES[1]]]}}))
    never = None  # Block influence is computed where it is asked for alone.
    assert menu_routes(str(tmp_path / "menu.json"), 5, never) == (full, ROUTES[0])
    assert menu_routes(str(tmp_path / "paths.json"), 5, never) == (full, (1, 2, 1, 0, 1))
    assert menu_routes(str(tmp_path), 5, never) == (full, ROUTES[1])
    with pytest.raises(UserError, match=r"--heal_menu .*menu\.json.*counts"):
        menu_routes(str(tmp_path / "menu.json"), 7, never)
    with pytest.raises(UserError, match="the model has 5 layers"):
        menu_routes("influence:2,5", 5, lambda: order)
    with pytest.raises(UserError, match="--heal_kept 3"):
        menu_routes("influence:3", 5, lambda: order, kept=3)
    assert "influence" in menu_problems("influence:x")[0] and "holds no labels" in menu_problems(str(REPO / "tests"))[0]
    assert "make labels with it" in menu_problems("greedy:2")[0] and not menu_problems("influence:1,2")
    assert [path_name(route) for route in (full, ROUTES[0], ROUTES[2])] == ["full", "without 1,3", "without 3 twice 1"]


# The loss, and what it changes.


def by_hand(model, rows, route) -> float:
    """Mean over real tokens of KL(full || path), row by row, of the plain forward of layers and adapters."""
    total = 0.0
    for row in rows:
        full, path = (torch.log_softmax(oracle(model, row, own), -1) for own in ((1,) * LAYERS, route))
        total += float((full.exp() * (full - path)).sum())
    return total / sum(map(len, rows))


def test_the_divergence_counts_real_tokens_alone(any_family, monkeypatch):

    monkeypatch.setattr("routing.objectives.divergence.ROWS", 5)  # Several portions, the last one smaller.
    model, rows = adapted(any_family), random_rows((7, 3, 12))
    expected = [by_hand(model, rows, route) for route in ROUTES]
    assert min(expected) > 0.05
    batches = [[row.tolist() for row in rows]]
    assert path_divergences(model, batches, ROUTES) == pytest.approx(expected, rel=1e-3)
    alone = Healing(model, HealPaths((ROUTES[0],), (1, 3), 0.0), seed=0)(**right_padded(batches[0]))["loss"]
    assert float(alone.detach()) == pytest.approx(expected[0], rel=1e-3)


@pytest.mark.parametrize("scaling, softcap", [(1.0, None), (3.0, None), (1.0, 0.7)])
def test_the_divergence_has_the_gradient_of_the_plain_formula(scaling, softcap):
    torch.manual_seed(0)
    head, teacher = Head(torch.nn.Linear(6, 9, bias=False), scaling, softcap), torch.randn(600, 6)
    grads = []
    for chunked in (True, False):
        student = torch.randn(600, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        if chunked:
            loss = divergence(student, teacher, head)
        else:
            q, p = torch.softmax(head(teacher), -1), torch.softmax(head(student), -1)
            loss = (q * (q / p).log()).sum()
        loss.backward()
        grads.append((student.grad, loss.detach()))
    assert_near(grads[0][0], grads[1][0], 1e-5)
    assert float(grads[0][1]) == pytest.approx(float(grads[1][1]), rel=1e-4)


def test_a_step_changes_the_adapters_of_its_path_and_nothing_else():
    model = adapted(LLAMA)
    model.requires_grad_(False)
    model.model.adapters.requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    module = Healing(model, HealPaths((ROUTES[0],), (1, 3), 0.0), seed=0)
    assert len(list(module.parameters())) == 4 * LAYERS  # No copy of the base in a training state.
    optimizer = torch.optim.AdamW(module.parameters(), 0.01, weight_decay=0.0)
    batch = right_padded([row.tolist() for row in random_rows((7, 3, 12))])
    losses = []
    for _ in range(20):
        loss = module(**batch)["loss"]
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    for name, tensor in model.state_dict().items():
        on_path = name.startswith(("model.adapters.1.", "model.adapters.3."))
        assert torch.equal(tensor, before[name]) != on_path, name


def test_batches_hold_rows_of_like_length_each_once():
    rows = [[i] * (1 + i % 5) for i in range(23)]
    batches = RowBatches(rows, 4, seed=0)
    assert sorted(row for batch in batches.batches for row in batch) == sorted(rows) and len(batches) == 6
    lengths = [len(row) for batch in batches.batches for row in batch]
    assert lengths == sorted(lengths)
    assert batches.batches != RowBatches(rows, 4, seed=1).batches


# Prompts.


def test_files_of_prompts(tmp_path):
    text, lines, questions = (tmp_path / name for name in ("a.txt", "b.jsonl", "c.jsonl"))
    text.write_text("one\n\ntwo\none\n")
    lines.write_text('{"prompt": "one\\nmore"}\n')
    questions.write_text('{"question": "q", "answer": "a"}\n')
    assert [is_prompt_file(str(path)) for path in (text, lines, questions)] == [True, True, False]
    assert not is_prompt_file("arithmetic")
    assert prompt_file(text) == ["one", "two"] and prompt_file(lines) == ["one\nmore"]
    lines.write_text('{"prompt": "one"}\n{"text": "x"}\n')
    with pytest.raises(UserError, match=r"b\.jsonl, line 2: each line must be"):
        prompt_file(lines)


# Whole runs.


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("healing")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return save_tiny_base(folder / "base", LAYERS, initializer_range=0.4, **sizes)


def words(base, name: str, *more: str) -> list[str]:
    places = [f"--output_dir={base.parent}/checkpoints", f"--work_dir={base.parent}/runs", f"--model_id={base}"]
    settings = ["--dataset=openbookqa", "--num_samples=40", "--score_samples=4", "--num_epochs=0", "--batch_size=32"]
    healing = ["--start=least_squares", "--heal_epochs=3", "--heal_menu=influence:1,2,3", "--heal_samples=24"]
    healing += ["--heal_batch_size=8", "--num_evaluations=3", "--heal_learning_rate=0.003", "--eval_fraction=0.2"]
    return [f"--run_name={name}", *places, *settings, *healing, *more]


def trained(base, name: str, *more: str) -> Path:
    run(parse(AdapterArguments, words(base, name, *more)))
    return base.parent / "checkpoints" / name


@pytest.fixture(scope="module")
def healed(base):
    return trained(base, "one")


def test_healing_lowers_the_held_out_divergence_and_leaves_the_base(healed, base):
    record = json.loads((healed / "adapters.json").read_text())["healing"]
    assert record["kept_step"] > 0 and record["prompts"] == 24
    assert sum(record["kl_after"]) < sum(record["kl_before"])
    assert [path["skipped"] for path in record["paths"]] == [1, 2, 3] and record["n"] == 4
    assert list(record["paths"][0]["stages"]) == ["nothing", "least squares", "healed"]
    assert list(record["paths"][0]["brought"]) == ["least squares - nothing", "healed - least squares"]
    assert (healed / "healing.png").stat().st_size > 10_000
    table = (base.parent / "runs/one/trainer/healing.csv").read_text().splitlines()
    assert table[0] == "step,epoch,validation_loss,kl_0,kl_1,kl_2" and len(table) >= 3
    with safe_open(healed / "model.safetensors", "pt") as own, safe_open(base / "model.safetensors", "pt") as old:
        for name in old.keys():  # noqa: SIM118 - the file is no dict
            assert torch.equal(own.get_tensor(name), old.get_tensor(name))


def test_a_healing_that_does_harm_is_not_kept(tmp_path):
    model = routed_with_adapters(LLAMA, stock_model(LLAMA))
    model.requires_grad_(False)
    for layer in model.model.layers[1:4]:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    model.model.init_adapters()
    for adapter in model.model.adapters:
        adapter.up.bias.fill_(0.01)  # All but right: a small step would help, a large one not.
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    arguments = AdapterArguments(heal_epochs=1, heal_learning_rate=10.0, heal_batch_size=4, device="cpu")
    rows = [row.tolist() for row in random_rows((7, 3, 12, 5, 6, 9))]
    found = heal(arguments, model, HealPaths(ROUTES[:2], (1, 2, 3), 0.5), rows, rows[:2], tmp_path / "healing")
    assert found["kept_step"] == 0 and found["kl_after"] == found["kl_before"]
    logged = [entry["eval_validation_loss"] for entry in found["log"] if "eval_validation_loss" in entry]
    assert min(logged) > 0.1 > 0.01 > sum(found["kl_before"]) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def same(one: Path, other: Path) -> bool:
    first, second = adapter_weights(one), adapter_weights(other)
    return first.keys() == second.keys() and len(first) and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.slow
def test_healing_goes_on_to_the_same_adapters(healed, base, monkeypatch):
    from routing.training.adapters import healing

    class Killed(healing.HealingTrainer):
        def _save_checkpoint(self, *args, **kwargs):
            super()._save_checkpoint(*args, **kwargs)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(healing, "HealingTrainer", Killed)
        trained(base, "two")
    assert same(trained(base, "two", "--resume"), healed)
    with pytest.raises(UserError, match="--heal_samples was 24, now 20"):
        trained(base, "two", "--heal_samples=20", "--resume")


def test_prompts_without_answers_serve(base, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("\n".join(f"tell me about {i} and" for i in range(70)))
    given = [f"--heal_dataset={tmp_path}/prompts.txt,openbookqa", "--heal_answer_tokens=4", "--heal_samples=66"]
    arguments = parse(AdapterArguments, words(base, "text", *given))
    tokenizer = load_tokenizer(str(base))
    config = load_base_config(str(base))
    prompts = draw_prompts(arguments, tokenizer, config)
    assert len(prompts) == 132 and not prompts[0].choice_ids and prompts[-1].choice_ids
    config.max_position_embeddings = max(map(needed_tokens, prompts)) - 1
    assert 0 < len(draw_prompts(arguments, tokenizer, config)) < 132
    assert "of openbookqa questions: longer than" in capsys.readouterr().err
    prompts = prompts[:66]
    model = LLAMA.routed.from_pretrained(base, router="none").eval()
    path = tmp_path / "texts.json"
    rows = collect_texts(path, model, tokenizer, prompts, "key", 0.2, 32)
    assert len(rows["train"]) + len(rows["held_out"]) == 66 and rows["held_out"]
    kept = json.loads(path.read_text())
    for request, row in list(zip(prompts, kept["rows"], strict=True))[:3]:
        size = len(request.prompt_ids)
        greedy = model.generate(torch.tensor([request.prompt_ids]), max_new_tokens=4, do_sample=False, pad_token_id=0)[
            0, size:
        ]
        own = tokenizer.decode(greedy, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert tuple(row[:size]) == request.prompt_ids
        assert tokenizer.decode(row[size:], clean_up_tokenization_spaces=False) == own
    # A rerun makes what is missing, and nothing again.
    path.write_text(json.dumps(kept | {"rows": kept["rows"][:64]}))
    assert collect_texts(path, model, tokenizer, prompts, "key", 0.2, 32) == rows


def test_wrong_arguments_of_healing_are_named_at_once(base):
    given = ["--heal_random_share=2", "--heal_menu=nonsense", "--heal_dataset=nothing", "--heal_learning_rate=0"]
    with pytest.raises(UserError) as caught:
        parse(AdapterArguments, words(base, "x", *given))
    for named in (
        "--heal_random_share 2", "--heal_menu 'nonsense'", "--heal_dataset 'nothing'", "--heal_learning_rate 0",
    ):  # fmt: skip
        assert named in str(caught.value)
    with pytest.raises(UserError, match="--num_epochs 0 leaves random adapters"):
        parse(AdapterArguments, words(base, "x", "--start=random", "--heal_epochs=0"))


def launch(base, name: str, *more: str, processes: int = 1) -> subprocess.Popen:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={processes}"]
        command += ["--main_process_port=0"]
    command += ["train.py", "--objective=adapters", *words(base, name, *more)]
    environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=REPO, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_after_kill_9_it_goes_on_to_the_same_adapters(healed, base):
    states = base.parent / "runs/killed/trainer/healing"
    process = launch(base, "killed")
    try:
        while process.poll() is None and not list(states.glob("checkpoint-*/trainer_state.json")):
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = launch(base, "killed", "--resume")
    output = resumed.communicate()[0].decode()
    assert resumed.returncode == 0, output[-3000:]
    assert same(base.parent / "checkpoints/killed", healed)


@pytest.mark.slow
def test_two_processes_heal_together(base):
    process = launch(base, "both", processes=2)
    output = process.communicate()[0].decode()
    assert process.returncode == 0, output[-3000:]
    record = json.loads((base.parent / "checkpoints/both/adapters.json").read_text())["healing"]
    assert record["kept_step"] > 0 and sum(record["kl_after"]) < sum(record["kl_before"])


# What is reported.


def test_worth_of_stages_by_hand():
    routes = [(1, 1, 1), (1, 0, 1)]
    right = {
        "nothing": [[True, True, False, False], [False, False, False, False]],
        "least squares": [[True, True, False, False], [True, False, False, True]],
        "healed": [[True, True, False, False], [True, True, True, False]],
    }
    worth = worth_of_stages(right, routes)
    assert worth["n"] == 4 and worth["base"]["accuracy"] == 0.5
    (path,) = worth["paths"]
    assert path["layers"] == 2 and path["path"] == "without 1"
    assert [path["stages"][name]["accuracy"] for name in right] == [0, 0.5, 0.75]
    gain = path["brought"]["healed - least squares"]
    assert (gain["gained"], gain["lost"], gain["difference"]) == (2, 1, 0.25)
    # Differences of the four questions: 0, 1, 1, -1: mean 1/4, variance (3 - 1/4) / 4.
    half = 1.96 * ((3 - 1 / 4) / 4 / 4) ** 0.5
    assert gain["ci95"] == pytest.approx([0.25 - half, 0.25 + half])
    assert path["stages"]["healed"]["minus_full"]["difference"] == 0.25
    assert paired([True], [True])["ci95"] == [0, 0]


def test_adapters_of_a_fresh_model_are_the_identity_for_healing():
    model = routed_with_adapters(LLAMA, stock_model(LLAMA))
    rows = [row.tolist() for row in random_rows((5, 9))]
    model.model.init_adapters()
    found = path_divergences(model, [rows], ROUTES)
    with config_with(model, skip_action="identity"):
        assert path_divergences(model, [rows], ROUTES) == pytest.approx(found, rel=1e-4) and min(found) > 0.1


@pytest.mark.slow
def test_the_benchmark_runs_over_seeds_and_goes_on(base, tmp_path):
    given = [f"--model={base}", "--dataset=openbookqa", "--split=validation", "--num_samples=6", "--train_samples=80"]
    given += ["--heal_samples=24", "--menu=influence:1,2", "--num_epochs=2", "--heal_epochs=1", "--seeds=2"]
    given += [f"--work_dir={tmp_path}/work", f"--json={tmp_path}/healing.json", f"--plot={tmp_path}/healing.png"]
    healing_benchmark.main(given)
    found = json.loads((tmp_path / "healing.json").read_text())
    assert found["seeds"] == 2 and found["n"] == 6 and [path["skipped"] for path in found["paths"]] == [1, 2]
    stages = ("nothing", "least squares", "least squares healed", "mse", "mse healed")
    assert all(tuple(path["stages"]) == stages for path in found["paths"])
    gain = found["paths"][0]["brought"]["mse healed - mse"]
    assert gain["ci95"][0] <= gain["difference"] <= gain["ci95"][1] and len(gain["p_by_seed"]) == 2
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work/checkpoints").glob("*/model.safetensors")}
    healing_benchmark.main(given)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert json.loads((tmp_path / "healing.json").read_text())["paths"] == found["paths"]
