"""evaluation.py: who is routed how, what is reported, interruptions, processes, the check; stock lm_eval beside it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import save_tiny_checkpoint
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM

from routing.commands import evaluate as evaluation
from routing.common import keyed
from routing.common.errors import UserError
from routing.evaluation import check, comparison, methods
from routing.evaluation.arguments import EvaluationArguments
from routing.evaluation.lm import Key, PromptRoutedLM
from routing.evaluation.methods import Settings, evaluate
from routing.evaluation.tasks import check_tasks
from routing.models.checkpoint import load_checkpoint
from routing.models.checkpoint_files import training_record
from routing.models.families import load_tokenizer, vocabulary_rows

LAYERS = 6
ROOT = Path(__file__).resolve().parents[2]
TASK, CHOICES = "routed_arithmetic", "routed_openbookqa"
TEXTS = ["1 + 1 =", "Question: what is 3 + 4 + 5 + 6?\nAnswer:", "2", "Name a colour:", "7 - 2 =", "1 + 1 ="]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("models"), LAYERS, {"datasets": ["arithmetic"]})


@pytest.fixture
def checkpoint(trained, tmp_path) -> Path:
    shutil.copytree(trained, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture(scope="module")
def loaded(trained):
    """(routed model, tokenizer)."""
    return load_checkpoint(trained, torch.float32, torch.device("cpu"))


def run(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluation.py", *map(str, words)])
    evaluation.main()


def route_alone(model, tokenizer, text: str) -> tuple[int, ...]:
    """What the routers decide for one prompt by itself."""
    model(torch.tensor([tokenizer.encode(text)]))
    return tuple(model.last_routes[0].tolist())


def scoring_requests() -> list[Instance]:
    """Choices of several lengths behind prompts of several lengths, not in the order of their batches."""
    choices = [" yes", " no, not at all", " 12"]
    return [
        Instance("loglikelihood", {}, (text, choice), idx, metadata=(TASK, number, 1))
        for number, text in enumerate(TEXTS)
        for idx, choice in enumerate(choices)
    ]


def generation_requests() -> list[Instance]:
    """Two kinds of settings, mixed."""
    return [
        Instance("generate_until", {}, (text, {"until": ["\n"], "max_gen_toks": 2 + number % 2}), 0, (TASK, number, 1))
        for number, text in enumerate(TEXTS)
    ]


def prompts_alone(model, tokenizer) -> dict[str, tuple[int, ...]]:
    found = {text: route_alone(model, tokenizer, text) for text in TEXTS}
    assert len(set(found.values())) > 2
    return found


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_each_request_is_routed_by_its_prompt_alone(loaded, batch_size):
    model, tokenizer = loaded
    alone = prompts_alone(model, tokenizer)
    lm = PromptRoutedLM(model, tokenizer, batch_size)
    for requests, ask in ((scoring_requests(), lm.loglikelihood), (generation_requests(), lm.generate_until)):
        lm.start(None)
        ask(requests, disable_tqdm=True)
        assert {key: row.route for key, row in lm.rows.items()} == {
            Key(request.doc_id, request.idx): alone[request.args[0]] for request in requests
        }
        lengths = {key: row.prompt_tokens for key, row in lm.rows.items()}
        assert lengths == {Key(r.doc_id, r.idx): len(tokenizer.encode(r.args[0])) for r in requests}
    assert {row.other_tokens for row in lm.rows.values()} <= {1, 2, 3}
    assert lm.seconds > 0


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_forced_routes_reach_their_requests(loaded, batch_size):
    """Answers are those of the model along each request's own route, alone."""
    model, tokenizer = loaded
    lm = PromptRoutedLM(model, tokenizer, batch_size)

    def forced(key: Key) -> tuple[int, ...]:
        return tuple((key.question + key.choice + layer) % 3 for layer in range(LAYERS))

    lm.start(forced)
    requests = scoring_requests()
    scores = lm.loglikelihood(requests, disable_tqdm=True)
    texts = lm.generate_until(generation_requests(), disable_tqdm=True)
    assert all(row.route == forced(key) for key, row in lm.rows.items())
    for request, (score, _) in zip(requests, scores, strict=True):
        context = tokenizer.encode(request.args[0])
        whole = torch.tensor([tokenizer.encode(request.args[0] + request.args[1])])
        routes = torch.tensor([forced(Key(request.doc_id, request.idx))])
        logprobs = model(whole, routes=routes).logits[0].log_softmax(-1)
        expected = logprobs[len(context) - 1 : -1].gather(1, whole[0, len(context) :, None]).sum()
        assert score == pytest.approx(expected.item(), abs=1e-4)
    for request, text in zip(generation_requests(), texts, strict=True):
        ids = torch.tensor([tokenizer.encode(request.args[0])])
        routes = torch.tensor([forced(Key(request.doc_id, 0))])
        new = request.args[1]["max_gen_toks"]
        tokens = model.generate(ids, routes=routes, max_new_tokens=new, do_sample=False)[0, ids.shape[1] :]
        assert text == tokenizer.decode(tokens).split("\n")[0]


def test_a_stock_model_is_measured_alike(trained):
    base = AutoModelForCausalLM.from_pretrained(trained.parent / "base")
    _, tokenizer = load_checkpoint(trained, torch.float32, torch.device("cpu"))
    ours, stock = PromptRoutedLM(base, tokenizer, 4), HFLM(pretrained=base, tokenizer=tokenizer, batch_size=4)
    scores = [[s for s, _ in lm.loglikelihood(scoring_requests(), disable_tqdm=True)] for lm in (ours, stock)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    texts = [lm.generate_until(generation_requests(), disable_tqdm=True) for lm in (ours, stock)]
    assert texts[0] == texts[1]
    assert all(row.route is None for row in ours.rows.values()) and len(ours.rows) == 18


# The command.


def test_the_tokenizer_of_a_checkpoint_loads_without_its_code(trained, capsys):
    """Else transformers asks on the terminal, and waits, in each evaluation."""
    tokenizer = load_tokenizer(str(trained))
    told = capsys.readouterr()
    assert "custom code" not in told.out + told.err and "to instantiate" not in told.err
    base = load_tokenizer(str(trained.parent / "base"))
    assert type(tokenizer) is type(base) and tokenizer.pad_token_id == base.pad_token_id
    assert tokenizer(TEXTS)["input_ids"] == base(TEXTS)["input_ids"]
    assert vocabulary_rows(str(trained)) == vocabulary_rows(str(trained.parent / "base"))


def test_everything_is_reported(checkpoint, monkeypatch, capsys):
    words = ["--checkpoint", checkpoint, "--tasks", f"{TASK},{CHOICES}", "--limit", 6, "--batch_size", 5]
    run(monkeypatch, *words, "--controls", "static,random", "--seeds", 2, "--control_samples", 5)
    results = json.loads((checkpoint / "evaluation.json").read_text())
    assert [result["task"] for result in results] == [TASK, CHOICES]
    for result, inputs in zip(results, (6, 24), strict=True):
        assert result["n"] == 6 and result["base"]["layers"] == LAYERS
        routed, controls = result["routed"], {control["name"]: control for control in result["controls"]}
        assert routed["inputs"] == result["base"]["inputs"] == inputs == len(result["routes"])
        assert routed["layers"] == pytest.approx(sum(map(sum, result["routes"])) / inputs)
        assert sum(result["layers_histogram"].values()) == inputs
        assert 0 < result["rerouted"] <= 1
        assert [controls[f"random, seed {seed}"]["layers"] for seed in (0, 1)] == [routed["layers"]] * 2
        statics = [control["layers"] for name, control in controls.items() if name.startswith("static")]
        wanted = [n for n in {int(routed["layers"] // 1), -int(-routed["layers"] // 1)} if 1 <= n < LAYERS]
        assert sorted(statics) == sorted(wanted)
        for control in controls.values():
            assert set(control["paired_with_base"]) == {"difference", "gained", "lost", "p"}
            assert control["paired_with_routed"]["difference"] == pytest.approx(
                control["accuracy"] - routed["accuracy"]
            )
        assert routed["seconds"] > 0 and routed["gflops"] > 0
    assert "random, seed 1" in capsys.readouterr().out
    page, card = (checkpoint / "evaluation.html").read_text(), (checkpoint / "README.md").read_text()
    assert TASK in page and "static" in page and CHOICES in card


def test_without_base_and_controls(checkpoint, monkeypatch):
    output = checkpoint.parent / "elsewhere" / "found.json"
    run(monkeypatch, "--checkpoint", checkpoint, "--tasks", TASK, "--limit", 3, "--no_base", "--output", output)
    (result,) = json.loads(output.read_text())
    assert result["base"] is None and result["paired"] is None and result["controls"] == []
    assert output.with_suffix(".html").exists()


@pytest.mark.slow
def test_a_rerun_repeats_nothing_and_other_settings_all(checkpoint, monkeypatch):
    asked = []

    def counting(model, task, manager, settings, forced=None):
        asked.append((task, model.routed, forced is not None))
        if len(asked) == stop:
            raise KeyboardInterrupt
        return evaluate(model, task, manager, settings, forced)

    monkeypatch.setattr(comparison, "evaluate", counting)
    words = ["--checkpoint", checkpoint, "--tasks", TASK, "--limit", 4, "--controls", "random", "--seeds", 2]
    stop = 3
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, *words)
    stop = None
    run(monkeypatch, *words)
    # Base and routed were done; the first random control, in which it was stopped, is done again.
    assert asked == [
        (TASK, False, False),
        (TASK, True, False),
        (TASK, True, True),
        (TASK, True, True),
        (TASK, True, True),
    ]
    before = json.loads((checkpoint / "evaluation.json").read_text())
    run(monkeypatch, *words)
    assert len(asked) == 5 and json.loads((checkpoint / "evaluation.json").read_text()) == before
    words[5] = 3
    run(monkeypatch, *words)
    assert len(asked) == 9
    config = json.loads((checkpoint / "config.json").read_text()) | {"route_bias": 0.5}
    (checkpoint / "config.json").write_text(json.dumps(config))
    run(monkeypatch, *words)
    assert len(asked) == 13


def test_kept_results_hang_on_all_that_decides_them(checkpoint, monkeypatch):
    """Code that judges, versions, weights, tokenizer, prompting, and the base at its commit."""
    record = training_record(checkpoint)

    def key(**arguments) -> str:
        found = comparison.Comparison(EvaluationArguments(str(checkpoint), base=False, **arguments), record).key
        return json.dumps(found, default=str)

    found = [key(), key(apply_chat_template=True), key(batch_size=3)]
    assert key() == found[0]
    with monkeypatch.context() as patch:
        patch.setattr(keyed, "version", lambda name: "0")
        found.append(key())
    with monkeypatch.context() as patch:
        patch.setattr(keyed, "code_hash", lambda: "another")
        found.append(key())
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "weight_stamps", lambda name, revision: [revision])
        found.append(key())
        record["base_revision"] = "abc"
        found.append(key())
    for name in ("tokenizer_config.json", "config.json", "model.safetensors"):
        os.utime(checkpoint / name, (1, 1))
        found.append(key())
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (
            ["--controls", "static,best", "--seeds", "0", "--limit", "0", "--output", "x.txt"],
            ["--controls best: unknown", "--seeds 0 must", "--limit 0 must", "'x.txt' must end in .json"],
        ),
        (["--control_data", "nothing"], ["--control_data 'nothing' is unknown"]),
        (["--tasks", ","], ["names no task"]),
    ],
)
def test_wrong_arguments_are_refused_all_at_once(checkpoint, monkeypatch, words, messages):
    monkeypatch.setattr(comparison, "load_checkpoint", None)
    with pytest.raises(UserError) as error:
        run(monkeypatch, "--checkpoint", checkpoint, *words)
    assert all(message in str(error.value) for message in messages)


def test_folders_that_train_py_did_not_write_are_refused(checkpoint, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="config.json cannot be read"):
        run(monkeypatch, "--checkpoint", tmp_path)
    (checkpoint / "training.json").write_text("{")
    with pytest.raises(UserError, match="training.json is damaged"):
        run(monkeypatch, "--checkpoint", checkpoint)
    (checkpoint / "training.json").unlink()
    with pytest.raises(UserError, match="holds no training.json"):
        run(monkeypatch, "--checkpoint", checkpoint)


def test_static_controls_need_data(checkpoint, monkeypatch):
    record = json.loads((checkpoint / "training.json").read_text())
    del record["datasets"]
    (checkpoint / "training.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="--control_data"):
        run(monkeypatch, "--checkpoint", checkpoint, "--controls", "static", "--limit", 2)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(checkpoint, tmp_path):
    """Seven questions, so that one process has a request more than the other."""
    tasks = ["--tasks", f"{TASK},{CHOICES}", "--limit", "7", "--controls", "static,random", "--seeds", "1"]
    words = ["--checkpoint", str(checkpoint), *tasks, "--control_samples", "4", "--batch_size", "3"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    found = {}
    for name, start in {"one": [sys.executable], "two": launch}.items():
        output = tmp_path / f"{name}.json"
        result = subprocess.run(
            [*start, str(ROOT / "evaluation.py"), *words, "--output", str(output)],
            cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-3000:]
        found[name] = json.loads(output.read_text())
    for one, two in zip(*found.values(), strict=True):
        for side in [
            one,
            two,
            one["base"],
            two["base"],
            one["routed"],
            two["routed"],
            *one["controls"],
            *two["controls"],
        ]:
            side.pop("seconds", None)
            side["gflops"] = round(side.get("gflops", 0), 6)
        assert one == two


# The check.


def test_the_check_passes(checkpoint, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "--checkpoint", checkpoint, "--tasks", CHOICES, "--check")
    printed = capsys.readouterr().out
    assert end.value.code == 0 and printed.count("PASS") == 3 and "8 of 8 routes are those" in printed
    assert not (checkpoint / "evaluation.json").exists()


def test_the_check_fails_where_routing_is_off(checkpoint, monkeypatch, capsys):
    config = json.loads((checkpoint / "config.json").read_text()) | {"is_static_routing": True}
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "--checkpoint", checkpoint, "--check")
    assert end.value.code == 1
    assert "FAIL  routing is on" in (printed := capsys.readouterr().out) and "routing is off" in printed


@pytest.mark.parametrize("broken", ["routes", "base", "cache"])
def test_each_proof_can_fail(trained, monkeypatch, broken):
    base = AutoModelForCausalLM.from_pretrained(trained.parent / "base")
    routed, tokenizer = load_checkpoint(trained, torch.float32, torch.device("cpu"))
    prompts = [tokenizer.encode(text) for text in TEXTS]
    if broken == "routes":  # Decided with another bias than the config says.
        plain = check.plain_route
        monkeypatch.setitem(check.PLAIN, "per_layer", lambda *given: (plain(*given)[0][::-1], 1.0))
    elif broken == "base":
        with torch.no_grad():
            base.model.layers[-1].mlp.down_proj.weight[0, 0] += 1e-3
    else:
        inner = routed.model
        replay = type(inner)._replay
        monkeypatch.setattr(type(inner), "_replay", lambda self, hidden, *rest: replay(self, hidden, *rest).roll(1, -1))
    holds = [proof.holds for proof in check.proofs(base, routed, prompts, 0)]
    assert holds[{"routes": 0, "base": 1, "cache": 2}[broken]] is False
    assert sum(holds) == 2


# Stock lm_eval.


@pytest.mark.parametrize("task", [TASK, CHOICES])
def test_stock_lm_eval_agrees_at_every_batch_size(checkpoint, task):
    """Same loglikelihoods, texts and accuracies alone and in batches; `auto` finds a size by itself."""
    found = {}
    for size in (1, 4, 16, "auto"):
        output = methods.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(checkpoint), "trust_remote_code": True, "dtype": "float32", "max_length": 96},
            tasks=[task], limit=10, batch_size=size, max_batch_size=8, device="cpu", bootstrap_iters=0,
            task_manager=check_tasks([task]), log_samples=True,
        )  # fmt: skip
        samples = sorted(output["samples"][task], key=lambda sample: sample["doc_id"])
        found[size] = [sample["filtered_resps"] for sample in samples], [sample["acc"] for sample in samples]
    answers, accuracies = found.pop(1)
    for other_answers, other_accuracies in found.values():
        assert other_accuracies == accuracies
        if task == CHOICES:
            scores = [[float(score) for score, _ in choices] for choices in answers]
            others = [[float(score) for score, _ in choices] for choices in other_answers]
            assert [pytest.approx(row, abs=1e-4) for row in scores] == others
        else:
            assert other_answers == answers


def test_generation_tasks_agree_with_stock_lm_eval(checkpoint, loaded):
    """There is nothing but the prompt to route by."""
    model, tokenizer = loaded
    ours = evaluate(PromptRoutedLM(model, tokenizer, 4), TASK, check_tasks([TASK]), Settings(limit=10))
    stock = methods.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4), tasks=[TASK], limit=10, bootstrap_iters=0,
        task_manager=check_tasks([TASK]), log_samples=True,
    )  # fmt: skip
    assert ours.correct == {sample["doc_id"]: bool(sample["acc"]) for sample in stock["samples"][TASK]}
