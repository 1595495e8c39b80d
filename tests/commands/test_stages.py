"""The three commands on a tiny random model with the default tokenizer: real processes, real kills, real lm-eval."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import save_tiny_base
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from routing.commands import generate, train
from routing.common.errors import UserError
from routing.labels.arguments import DataGenerationArguments
from routing.labels.reading import HEADER, LABELS
from routing.labels.writing import PARTS
from routing.training.features import CachedFeatures, LiveExamples, cache_features, fingerprint, live_collator
from routing.training.routers.arguments import TrainArguments
from routing.training.routers.trainer import RouterStack, train_routers
from train_models.modeling_llama import RoutedLlamaForCausalLM
from train_models.routed_model import ROUTER_FILE

ROOT = Path(__file__).resolve().parents[2]
LAYERS = 6


def run(script: str, *arguments, folder: Path, check: bool = True) -> subprocess.CompletedProcess:
    """Run a script of the project from another directory."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if check:
        assert result.returncode == 0, result.stderr[-3000:]
    return result


def kill_when(ready, script: str, *arguments, folder: Path) -> bool:
    """Start a script and SIGKILL it once `ready()` holds; whether it was still running then."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and not ready():
        assert time.monotonic() < deadline, "the run neither ended nor came to the point of the kill"
        time.sleep(0.005)
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return running


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_tiny_base(
        tmp_path_factory.mktemp("base"),
        LAYERS,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
    )


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    """Own questions with choices: a random model is right on some, so that labels of all kinds come up."""
    path = tmp_path_factory.mktemp("questions") / "colours.jsonl"
    rng = random.Random(0)
    words = ("red", "green", "blue", "dark", "warm", "cold", "old", "new", "big", "small", "round", "fast", "slow")
    rows = []
    for number in range(60):
        choices = [" ".join(pair) for pair in zip(rng.sample(words, 3), rng.sample(words, 3), strict=True)]
        rows.append({"question": f"What is thing {number} like?", "answer": rng.randrange(3), "choices": choices})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def generation(base: Path, questions: Path, output: Path) -> list:
    return [
        "--model", base, "--dataset", questions, "--output_dir", output, "--num_simulations", 25,
        "--group_size", 20, "--device", "cpu",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def labels(base, questions, tmp_path_factory) -> Path:
    """Labels of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("labels")
    run("data_generation.py", *generation(base, questions, folder / "out"), folder=folder)
    return folder / "out"


def training(base: Path, labels: Path, name: str = "run", **more) -> list:
    arguments = {
        "model_id": base, "data": labels, "run_name": name, "num_epochs": 6, "eval_fraction": 0.3, "batch_size": 8,
        "num_evaluations": 3, "device": "cpu", "eval_examples": 8,
    } | more  # fmt: skip
    return [part for key, value in arguments.items() for part in (f"--{key}", str(value))]


@pytest.fixture(scope="module")
def checkpoint(base, labels, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run("train.py", *training(base, labels), folder=folder)
    return folder / "checkpoints" / "run"


@pytest.mark.slow
def test_killed_search_ends_with_the_same_bytes(base, questions, labels, tmp_path):
    output = tmp_path / "out"
    arguments = generation(base, questions, output)

    def lines(name: str) -> int:
        path = output / name
        return path.read_bytes().count(b"\n") if path.exists() else 0

    first, second = (f"{PARTS}/{group:06d}.journal.jsonl" for group in (0, 1))
    in_first_group = kill_when(lambda: lines(first) >= 3, "data_generation.py", *arguments, folder=tmp_path)
    assert lines(LABELS) == 0
    assert in_first_group
    later = kill_when(
        lambda: lines(LABELS) >= 20 and lines(second) >= 2, "data_generation.py", *arguments, folder=tmp_path
    )
    assert later
    run("data_generation.py", *arguments, folder=tmp_path)
    assert (output / LABELS).read_bytes() == (labels / LABELS).read_bytes()
    assert not (output / PARTS).exists()
    again = run("data_generation.py", *arguments, folder=tmp_path)
    assert "complete" in again.stderr


def test_labels_load_with_datasets(labels):
    from datasets import load_dataset

    rows = load_dataset("json", data_files=str(labels / LABELS), split="train")
    assert len(rows) == 60
    assert {"id", "prompt", "route", "path", "valid_paths", "tried", "base_correct"} <= set(rows.column_names)
    assert all(len(row["route"]) == LAYERS for row in rows)


@pytest.mark.slow
def test_killed_training_ends_with_the_same_routers(base, labels, tmp_path):
    arguments = training(base, labels, features="live", num_epochs=40, num_evaluations=10)
    run("train.py", *arguments, folder=tmp_path)
    whole = load_file(tmp_path / "checkpoints/run/model.safetensors")
    log = json.loads((tmp_path / "checkpoints/run/training.json").read_text())["log"]

    killed = tmp_path / "killed"
    killed.mkdir()

    def second_checkpoint() -> bool:
        return len(list((killed / "runs/run/trainer").glob("checkpoint-*/trainer_state.json"))) >= 2

    assert kill_when(second_checkpoint, "train.py", *arguments, folder=killed)
    assert not (killed / "checkpoints/run").exists()
    # As a kill in the middle of the Trainer's own saving leaves it.
    half = killed / "runs/run/trainer/checkpoint-999999"
    kept = (killed / "runs/run/trainer").glob("checkpoint-*/trainer_state.json")
    resumed_at = max(json.loads(path.read_text())["global_step"] for path in kept if path.parent != half)
    half.mkdir()
    (half / "trainer_state.json").write_text('{"best_')
    run("train.py", *arguments, "--resume", folder=killed)
    resumed = load_file(killed / "checkpoints/run/model.safetensors")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    resumed_log = json.loads((killed / "checkpoints/run/training.json").read_text())["log"]
    losses, resumed = ({e["step"]: e["loss"] for e in entries if "loss" in e} for entries in (log, resumed_log))
    # The Trainer logs means since the last log: the first behind the kill is of the steps since its checkpoint alone.
    first = None if resumed_at in losses else next(step for step in losses if step > resumed_at)
    assert losses.keys() == resumed.keys() and len(losses) > 10
    assert all(losses[step] == resumed[step] for step in losses if step != first)


def test_base_weights_are_bit_identical_in_the_checkpoint(base, checkpoint):
    before, after = load_file(base / "model.safetensors"), load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(".routers." in name for name in after.keys() - before.keys())
    assert len(after.keys() - before.keys()) == 4 * LAYERS


def test_another_number_of_windows_is_refused(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    assert (config["num_windows"], config["trained_num_windows"]) == (8, 8)
    with pytest.raises(ValueError, match="num_windows=4 contradicts the checkpoint"):
        AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True, num_windows=4)


def test_other_folders_are_not_replaced(base, labels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints/run").mkdir(parents=True)
    (tmp_path / "checkpoints/run/thesis.txt").write_text("mine")
    assert "is no checkpoint of train.py" in refusal(monkeypatch, *training(base, labels))
    assert (tmp_path / "checkpoints/run/thesis.txt").read_text() == "mine"


def test_published_metrics_are_logged(checkpoint):
    log = json.loads((checkpoint / "training.json").read_text())["log"]
    names = {name for entry in log for name in entry}
    for name in (
        "macro_f1",
        "f1_skip",
        "f1_execute",
        "f1_repeat",
        "acc_skip",
        "acc_repeat",
        "avg_layers",
        "routers_loss",
    ):
        assert f"eval_{name}" in names
    assert "eval_executed_accuracy" in names


def test_the_kept_checkpoint_has_the_best_executed_accuracy(checkpoint):
    summary = json.loads((checkpoint / "training.json").read_text())
    evaluations = {}
    for entry in summary["log"]:
        evaluations.setdefault(entry["step"], {}).update(
            {name: value for name, value in entry.items() if name.startswith("eval_")}
        )
    ranked = {
        step: (values["eval_executed_accuracy"], values["eval_macro_f1"])
        for step, values in evaluations.items()
        if "eval_executed_accuracy" in values
    }
    assert ranked[summary["kept_step"]] == max(ranked.values())


ISOLATED = r"""
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        blocked = {"routing", "train_models", "data_models", "lm_eval", "datasets", "accelerate", "peft", "wandb"}
        return None if name.split(".")[0] in blocked else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
try:
    AutoModelForCausalLM.from_pretrained(folder)
except ValueError as error:
    print("\nREFUSED", "trust_remote_code" in str(error))
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
inputs = tokenizer(["What is it?", "Colour of thing 7?"], return_tensors="pt", padding=True, padding_side="left")
print("\nTOKENS", model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, -5:].tolist())
print("\nROUTES", model.last_routes.tolist())
"""


def isolated(folder: Path, where: Path, python: str = sys.executable) -> list[str]:
    """What a process prints that has none of the project and none of its other packages."""
    environment = {**os.environ, "HF_MODULES_CACHE": str(where / "modules"), "PYTHONPATH": ""}
    result = subprocess.run(
        [python, "-P", "-c", ISOLATED, str(folder)],
        cwd=where, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return [line for line in result.stdout.splitlines() if line.split(" ")[0] in ("REFUSED", "TOKENS", "ROUTES")]


def test_checkpoint_loads_without_the_project(checkpoint, tmp_path):
    printed = isolated(checkpoint, tmp_path)
    assert printed[0] == "REFUSED True"
    model = RoutedLlamaForCausalLM.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    inputs = tokenizer(["What is it?", "Colour of thing 7?"], return_tensors="pt", padding=True, padding_side="left")
    tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, -5:].tolist()
    assert printed[1:] == [f"TOKENS {tokens}", f"ROUTES {model.last_routes.tolist()}"]


@pytest.mark.slow
def test_checkpoint_loads_in_a_new_environment(checkpoint, tmp_path):
    """The same in a real environment with torch, transformers and safetensors alone."""
    pinned = [
        line
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if line.startswith(("torch==", "transformers==", "safetensors=="))
    ]
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *pinned], check=True)
    assert isolated(checkpoint, tmp_path, python) == isolated(checkpoint, tmp_path)


@pytest.mark.slow
def test_reference_checkpoint_loads_the_same_way(base, labels, checkpoint, tmp_path):
    run("train.py", *training(base, labels, name="small", save_base="reference"), folder=tmp_path)
    folder = tmp_path / "checkpoints" / "small"
    assert (folder / ROUTER_FILE).is_file()
    assert not (folder / "model.safetensors").exists()
    assert isolated(folder, tmp_path) == isolated(checkpoint, tmp_path)

    # Saved again it is a whole checkpoint, which needs no base beside it.
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    model.save_pretrained(tmp_path / "whole")
    assert json.loads((tmp_path / "whole/config.json").read_text())["base_model"] is None

    config = json.loads((folder / "config.json").read_text())
    config["base_sha256"]["model.safetensors"] = "0" * 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is not the file that the routers were trained with"):
        RoutedLlamaForCausalLM.from_pretrained(folder)
    config["base_model"] = str(tmp_path / "nowhere")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileNotFoundError, match="edit base_model"):
        RoutedLlamaForCausalLM.from_pretrained(folder)


@pytest.mark.slow
def test_stock_lm_eval_runs_from_any_directory(checkpoint, tmp_path):
    model = f"pretrained={checkpoint},trust_remote_code=True,dtype=float32,num_windows=8"
    command = [
        sys.executable, "-P", "-m", "lm_eval", "run", "--model", "hf", "--model_args", model,
        "--tasks", "routed_arithmetic,routed_openbookqa", "--include_path", str(ROOT / "eval_configs"),
        "--limit", "6", "--batch_size", "4", "--device", "cpu", "--output_path", str(tmp_path / "results"),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": "", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    written = json.loads(next((tmp_path / "results").rglob("results*.json")).read_text())
    assert set(written["results"]) == {"routed_arithmetic", "routed_openbookqa"}


def stack_losses(stack: RouterStack) -> list[float]:
    """A list that fills with the loss of every training step."""
    losses = []

    def note(module, _, output):
        if module.training:
            losses.append(output["loss"].item())

    stack.register_forward_hook(note)
    return losses


def test_cached_features_give_the_losses_of_live_training(base, labels, tmp_path, monkeypatch):
    from routing.models.families import load_base_config, load_tokenizer
    from routing.training.routers.data import load_training_data
    from routing.training.routers.run import make_sets

    losses, final = {}, {}
    original = RouterStack.__init__

    def spying(self, *args, **kwargs):
        original(self, *args, **kwargs)
        losses[mode] = stack_losses(self)

    monkeypatch.setattr(RouterStack, "__init__", spying)
    for mode in ("cached", "live"):
        arguments = TrainArguments(
            run_name=mode, model_id=str(base), data=str(labels), num_epochs=3, eval_fraction=0.3, batch_size=8,
            num_evaluations=1, device="cpu", eval_examples=1,
        )  # fmt: skip
        config, tokenizer = load_base_config(str(base)), load_tokenizer(str(base))
        data = load_training_data(arguments, config, tokenizer)
        torch.manual_seed(0)
        model = RoutedLlamaForCausalLM.from_pretrained(base).eval().requires_grad_(False)
        model.model.init_routers()
        model.model.routers.requires_grad_(True)
        train_set, eval_set, collator = make_sets(
            TrainArguments(**{**vars(arguments), "features": mode}), model, data, tokenizer.pad_token_id, tmp_path
        )
        assert isinstance(train_set, CachedFeatures if mode == "cached" else LiveExamples)
        train_routers(
            arguments, model.model.routers, torch.ones(3), train_set, eval_set, collator,
            lambda: {"executed_accuracy": 0.0, "executed_examples": 1}, tmp_path / mode,
        )  # fmt: skip
        final[mode] = model.model.routers.state_dict()
    assert len(losses["live"]) > 6
    assert losses["cached"] == pytest.approx(losses["live"], abs=1e-5)
    assert losses["cached"][0] != pytest.approx(losses["cached"][-1], abs=1e-3)


def test_searches_keep_what_training_reads(base, questions, labels, tmp_path, monkeypatch):
    """The labels are the same; training on them runs no base, and has the inputs that the base would give."""
    from routing.models.families import load_base_config, load_tokenizer
    from routing.training import features
    from routing.training.routers.data import load_training_data
    from routing.training.routers.run import make_sets

    words = [*generation(base, questions, tmp_path / "labels"), "--store_features", 8]
    monkeypatch.setattr(sys, "argv", ["data_generation.py", *map(str, words)])
    generate.main()
    assert (tmp_path / "labels" / LABELS).read_bytes() == (labels / LABELS).read_bytes()

    def data_of(windows: int, work: Path):
        arguments = TrainArguments(
            run_name="r", model_id=str(base), data=str(tmp_path / "labels"), eval_fraction=0.3, num_windows=windows
        )
        tokenizer = load_tokenizer(str(base))
        data = load_training_data(arguments, load_base_config(str(base)), tokenizer)
        model = RoutedLlamaForCausalLM.from_pretrained(base, num_windows=windows).eval()
        work.mkdir()
        return make_sets(arguments, model, data, tokenizer.pad_token_id, work)[0], data, model

    def refuse(model):
        raise AssertionError("the base is run")

    monkeypatch.setattr(features, "PackedInputs", refuse)
    found, data, model = data_of(8, tmp_path / "work")
    live = live_collator(model, 2)([data.examples[at] for at in data.train_indices])
    for name, tensor in found.__getitems__(list(range(len(found)))).items():
        torch.testing.assert_close(tensor, live[name], rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError, match="the base is run"):
        data_of(4, tmp_path / "other")


def test_a_disk_without_room_for_inputs_is_noticed_before_the_search(base, questions, tmp_path, monkeypatch):
    words = [*generation(base, questions, tmp_path), "--store_features", 10**15]
    monkeypatch.setattr(sys, "argv", ["data_generation.py", *map(str, words)])
    with pytest.raises(UserError, match=r"--store_features 1000000000000000 needs up to \d+ bytes .* has \d+ free"):
        generate.main()


def test_inputs_are_kept_along_labelled_paths_alone():
    arguments = DataGenerationArguments(store_features=8, search="dfs")
    assert any("--store_features 8 keeps" in problem for problem in arguments.problems())


def test_cached_features_resume_and_notice_other_settings(base, tmp_path):
    from routing.training.features import RouterExample

    model = RoutedLlamaForCausalLM.from_pretrained(base).eval()
    examples = [RouterExample((5, 6, 7 + i), (1, 0, 2, 1, 1, 1)) for i in range(3)]
    key = fingerprint(examples, num_windows=8)
    cache_features(tmp_path, model, examples, 2, 2, key)
    shard = next(tmp_path.glob("*.safetensors"))
    stamp = shard.stat().st_mtime_ns
    cache_features(tmp_path, model, examples, 2, 2, key)
    assert shard.stat().st_mtime_ns == stamp
    cache_features(tmp_path, model, examples, 2, 2, fingerprint(examples, num_windows=4))
    assert shard.stat().st_mtime_ns != stamp
    direct = live_collator(model, 2)([examples[1]])
    stored = CachedFeatures(tmp_path, [1])[0]
    for name in ("features", "windows", "labels"):
        torch.testing.assert_close(stored[name].float(), direct[name][0].float(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_gradient_accumulation_averages(base, labels, tmp_path):
    """Two accumulated batches of 4 take the same step as one of 8: the loss is not summed over them."""
    for size, steps in ((8, 1), (4, 2)):
        arguments = training(
            base, labels, name=f"b{size}", batch_size=size, gradient_accumulation=steps, num_epochs=2,
            num_evaluations=1,
        )  # fmt: skip
        run("train.py", *arguments, folder=tmp_path)
    one, two = (load_file(tmp_path / f"checkpoints/b{size}/model.safetensors") for size in (8, 4))
    grown = max(float((one[n] - two[n]).abs().max()) for n in one if ".routers." in n)
    assert grown < 2e-3


def refusal(monkeypatch, *arguments) -> str:
    """The UserError of train.py's main."""
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    with pytest.raises(UserError) as caught:
        train.main()
    return str(caught.value)


def test_labels_of_another_model_are_refused(base, labels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "deeper"
    config = LlamaConfig.from_pretrained(base, num_hidden_layers=LAYERS + 1)
    LlamaForCausalLM(config).save_pretrained(other)
    AutoTokenizer.from_pretrained(base).save_pretrained(other)
    assert f"of {LAYERS} layers" in refusal(monkeypatch, *training(other, labels))
    config = LlamaConfig.from_pretrained(base)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "twin")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "twin")
    assert "was made with --model" in refusal(monkeypatch, *training(tmp_path / "twin", labels))


def test_damaged_labels_are_refused_with_line_and_reason(base, labels, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / HEADER).write_bytes((labels / HEADER).read_bytes())
    lines = (labels / LABELS).read_text().splitlines(keepends=True)
    (folder / LABELS).write_text("".join([*lines[:4], lines[4][:50] + "\n", *lines[5:]]))
    message = refusal(monkeypatch, *training(base, folder))
    assert "line 5" in message
    assert "no JSON" in message


def test_resume_with_other_arguments_is_refused(base, labels, checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint.parents[1])
    message = refusal(monkeypatch, *training(base, labels, learning_rate=0.5), "--resume")
    assert "--learning_rate was 0.001, now 0.5" in message


def test_unsupported_models_are_refused(tmp_path, monkeypatch, labels):
    from transformers import GPT2Config

    monkeypatch.chdir(tmp_path)
    GPT2Config(n_layer=2).save_pretrained(tmp_path / "gpt2")
    assert "Supported families: llama, qwen2, qwen3" in refusal(monkeypatch, *training(tmp_path / "gpt2", labels))
    assert "cannot be loaded" in refusal(monkeypatch, *training("no/such-model", labels))
