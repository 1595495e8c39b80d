"""Hybrid language models trained as a person does it: losses apart, kills, alarms, checkpoints, sweeps, reports."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from routing.commands.report import main as report
from routing.commands.sweep import check_runs, runs_of
from routing.commands.train import finished
from routing.common.cli import parse
from routing.common.errors import UserError
from routing.models.checkpoint_files import check_checkpoint
from routing.report.card import is_ours
from routing.tasks.corpora import passages
from routing.tasks.sequences import make_sequences
from routing.training.end_to_end.validation import batches_of
from routing.training.language_model import run as one_run
from routing.training.language_model import training
from routing.training.language_model.alarms import alarms
from routing.training.language_model.arguments import LanguageModelArguments
from routing.training.language_model.configurations import pattern_of
from routing.training.language_model.parameters import matched, parameter_counts
from routing.training.language_model.run import run, save_language_model
from routing.training.language_model.training import COLUMNS, LanguageModelTrainer
from routing.training.language_model.validation import validate

ROOT = Path(__file__).resolve().parents[2]
LENGTH = 24
SETTINGS = (
    "--hidden_size=16", "--num_heads=2", "--intermediate_size=24", f"--sequence_length={LENGTH}",
    "--train_passages=12", "--validation_passages=3", "--test_passages=3", "--batch_size=2", "--max_steps=6",
    "--num_evaluations=3", "--learning_rate=1e-2",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language_model")
    text = [passage[:300] for passage in passages("wikipedia", "train", 40)]
    (folder / "corpus.txt").write_text("\n".join(line.replace("\n", " ") for line in text))
    return folder


def words(place: Path, name: str, *more: str) -> list[str]:
    places = [f"--output_dir={place}/checkpoints", f"--work_dir={place}/runs", f"--corpus={place}/corpus.txt"]
    return ["--objective=lm", f"--run_name={name}", *places, *SETTINGS, *more]


def train(place: Path, name: str, *more: str) -> Path:
    finished(run(parse(LanguageModelArguments, words(place, name, *more))))
    return place / "checkpoints" / name


@pytest.fixture(scope="module")
def trained(place) -> Path:
    return train(place, "dynamic", "--config=dynamic")


def metrics(place: Path, name: str) -> list[dict]:
    with (place / "runs" / name / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def record(folder: Path) -> dict:
    return json.loads((folder / "training.json").read_text())


def rows_of_text(place: Path, checkpoint: Path, part: str = "validation"):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=True)
    rows = make_sequences(passages(str(place / "corpus.txt"), part, 3), tokenizer, LENGTH, "packed", 0)
    return batches_of(rows, 2, 0, torch.device("cpu"))


def load(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


def test_metrics_hold_the_losses_apart(place, trained):
    rows = metrics(place, "dynamic")
    assert tuple(rows[0]) == (*COLUMNS, "softmax_share_1", "softmax_share_2")
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    for row in rows:
        assert all(row.values())
        assert math.exp(float(row["validation_loss"])) == pytest.approx(float(row["perplexity"]), rel=1e-3)
        assert 0.9 < float(row["validation_balance_loss"]) <= 2
        shares = [float(row[f"softmax_share_{block}"]) for block in (1, 2)]
        assert sum(shares) / 2 == pytest.approx(float(row["softmax_share"]), abs=1e-5)
    assert [float(row["temperature"]) for row in rows] == pytest.approx([1 - 2 / 12, 1 - 4 / 12, 0.5])
    losses = [entry for entry in record(trained)["log"] if "objective" in entry]
    assert len(losses) == 6 and not any("loss" in entry for entry in losses)
    for entry in losses:
        assert entry["objective"] == pytest.approx(entry["lm_loss"] + 0.1 * entry["balance_loss"], abs=2e-3)


def test_validation_is_of_the_language_model_alone_without_noise(place, trained):
    """A reloaded checkpoint has the loss of training, by a plain cross-entropy; the balance loss has no part in it."""
    model, batches = load(trained), rows_of_text(place, trained)
    nats = count = 0
    for batch in batches:
        with torch.no_grad():
            logits = model(batch.ids).logits[:, :-1].flatten(0, 1)
        nats += torch.nn.functional.cross_entropy(logits, batch.ids[:, 1:].flatten(), reduction="sum").item()
        count += batch.ids[:, 1:].numel()
    found = record(trained)
    assert nats / count == pytest.approx(found["validation_loss"], abs=1e-4)
    first, second = validate(model, batches), validate(model, batches)
    assert first.loss == second.loss and torch.equal(first.softmax, second.softmax)
    assert found["test"]["loss"] == pytest.approx(validate(model, rows_of_text(place, trained, "test")).loss, abs=1e-4)
    assert load_file(trained / "model.safetensors").keys() == model.state_dict().keys() - {"lm_head.weight"}


def test_the_checkpoint_is_chosen_by_the_loss_of_the_language_model(place, monkeypatch):
    """A balance loss that falls all along must not outweigh a language-model loss that is lowest in the middle."""
    real, told = LanguageModelTrainer._measured, iter([5.0, 3.0, 4.0])

    def measured(self):
        found = real(self)
        found.nats, found.balance = next(told) * found.predicted, found.tokens * (10 - self.state.global_step)
        return found

    monkeypatch.setattr(LanguageModelTrainer, "_measured", measured)
    found = record(train(place, "chosen", "--config=dynamic", "--balance_weight=0.5"))
    assert found["kept_step"] == 4 and found["validation_loss"] == pytest.approx(3.0)
    best = load_file(place / "runs" / "chosen" / "trainer" / "checkpoint-4" / "model.safetensors")
    kept = load_file(place / "checkpoints" / "chosen" / "model.safetensors")
    assert all(torch.equal(best[name], tensor) for name, tensor in kept.items())


@pytest.mark.parametrize(("asked", "used"), [(100, 6), (4, 4), (0, 0)])
def test_warming_up_takes_a_tenth_of_all_updates_at_most(place, tmp_path, asked, used):
    arguments = parse(LanguageModelArguments, words(place, "warm", "--max_steps=60", f"--warmup_steps={asked}"))
    assert training.training_arguments(arguments, 1e-2, tmp_path, 12, 1).warmup_steps == used


def test_noise_is_drawn_in_training_and_the_router_learns(place, trained, monkeypatch):
    """Without noise alone a run ends elsewhere; where nothing but the text can move the router, it moves."""

    def router(name: str, step: int) -> torch.Tensor:
        weights = load_file(place / "runs" / name / "trainer" / f"checkpoint-{step}" / "model.safetensors")
        return weights["model.router.weight"]

    train(place, "of_text", "--config=dynamic", "--balance_weight=0", "--weight_decay=0")
    assert (router("of_text", 6) - router("of_text", 4)).abs().max() > 1e-4
    monkeypatch.setattr(training, "gumbel_noise", torch.zeros_like)
    train(place, "quiet", "--config=dynamic")
    assert (router("dynamic", 6) - router("quiet", 6)).abs().max() > 1e-4


@pytest.mark.parametrize("config", ("static", "all-gdn", "all-softmax", "random"))
def test_every_configuration_leaves_a_checkpoint_that_loads(place, config):
    folder = train(place, config, f"--config={config}", "--max_steps=2", "--random_share=0.25")
    model, row = load(folder), metrics(place, config)[-1]
    measured = validate(model, rows_of_text(place, folder))
    assert measured.loss == pytest.approx(record(folder)["validation_loss"], abs=1e-4)
    assert row["balance_loss"] == row["validation_balance_loss"] == row["temperature"] == row["routing_entropy"] == ""
    assert model.config.pattern == pattern_of(config, 4)
    if config == "random":
        assert 0.05 < float(row["softmax_share"]) < 0.5
    else:
        assert row["softmax_share"] == ""
    assert is_ours(folder / "README.md")


def test_a_file_holds_config_fields(place, tmp_path):
    path = tmp_path / "three.yaml"
    path.write_text("pattern: [softmax, routed, gdn]\nintermediate_size: 40\n")
    folder = train(place, "three", f"--config={path}", "--max_steps=1")
    config = load(folder).config
    assert (config.pattern, config.intermediate_size, config.router) == (["softmax", "routed", "gdn"], 40, "learned")
    assert "softmax_share_1" in metrics(place, "three")[0]
    assert record(folder)["model"]["intermediate_size"] == 40
    path.write_text("pattern: [softmax, routed, gdn]\nintermediate_size: 48\n")
    with pytest.raises(UserError, match="files or data that the run .* have changed since"):
        train(place, "three", f"--config={path}", "--max_steps=1", "--resume")
    path.write_text("vocab_size: 100\n")
    with pytest.raises(UserError, match="vocab_size 100 is less than the .* tokens of the tokenizer"):
        train(place, "small", f"--config={path}")


def test_divergence_is_told(place, monkeypatch):
    real = LanguageModelTrainer._measured

    def measured(self):
        found = real(self)
        found.nats = math.nan
        return found

    monkeypatch.setattr(LanguageModelTrainer, "_measured", measured)
    with pytest.raises(UserError, match="no validation had a finite loss.*lower --learning_rate"):
        train(place, "diverged", "--config=static", "--max_steps=2")


def test_what_a_kill_left_half_written_is_in_nobodys_way(trained, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(trained, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    (tmp_path / ".saved.tmp" / "old").mkdir(parents=True)
    save_language_model(tmp_path / "saved", model, tokenizer, trained / "metrics.csv", {})
    assert [path.name for path in tmp_path.iterdir()] == ["saved"] and not (tmp_path / "saved" / "old").exists()


def test_random_shares(place):
    def shares(given: str) -> float | list[float]:
        own = parse(LanguageModelArguments, words(place, "x", "--config=random", f"--random_share={given}"))
        return own.model_fields()["random_share"]

    assert shares("0.25") == 0.25 and shares("0.3,0.6") == [0.3, 0.6]
    assert LanguageModelArguments().random_share == 0.5  # A number, as records of runs have it.
    assert LanguageModelArguments(random_share=0.25).random_share == 0.25
    for wrong in ("often", "0.3,x", "nan", "-0.1"):
        with pytest.raises(UserError, match=f"--random_share {wrong} must be a number from 0 to 1"):
            shares(wrong)
    with pytest.raises(UserError, match="random_share has 3 numbers for 2 routed blocks"):
        shares("0.1,0.2,0.3")


def test_stock_lm_eval_runs_the_checkpoint(place, trained):
    """lm-eval pads on the right without a mask; each row has its own loglikelihood."""
    lm = HFLM(pretrained=str(trained), trust_remote_code=True, batch_size=3, device="cpu")
    text = passages(str(place / "corpus.txt"), "train", 3)
    requests = [
        Instance("loglikelihood", {}, (passage[:40], passage[40 : 60 + 30 * number]), number)
        for number, passage in enumerate(text)
    ]
    found = [score for score, _ in lm.loglikelihood(requests, disable_tqdm=True)]
    model = load(trained)
    for request, score in zip(requests, found, strict=True):
        context, choice = lm._encode_pair(*request.args)
        with torch.no_grad():
            logits = model(torch.tensor([context + choice])).logits[0].log_softmax(-1)
        expected = sum(logits[len(context) + at - 1, token].item() for at, token in enumerate(choice))
        assert score == pytest.approx(expected, abs=2e-3)


@pytest.mark.slow
def test_a_resumed_run_has_the_same_losses(place, trained):
    """`kill -9` behind the first state; losses of training, noise and all, go on as if nothing had happened."""
    again = words(place, "killed", "--config=dynamic")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *again],
        cwd=place,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    states = place / "runs" / "killed" / "trainer"
    while not list(states.glob("checkpoint-2/trainer_state.json")):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (place / "checkpoints" / "killed").exists()
    resumed = train(place, "killed", "--config=dynamic", "--resume")
    logs = [
        [
            (entry["step"], entry.get("lm_loss"), entry.get("balance_loss"), entry.get("eval_validation_loss"))
            for entry in record(folder)["log"]
            if "lm_loss" in entry or "eval_validation_loss" in entry
        ]
        for folder in (trained, resumed)
    ]
    assert len(logs[0]) == len(logs[1]) == 9
    for old, new in zip(*logs):
        assert old == pytest.approx(new, abs=1e-5)
    for name, tensor in load_file(trained / "model.safetensors").items():
        torch.testing.assert_close(load_file(resumed / "model.safetensors")[name], tensor, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="--balance_weight was 0.1, now 0.2"):
        train(place, "killed", "--config=dynamic", "--balance_weight=0.2", "--resume")


def test_alarms_of_collapse():
    assert alarms([0.4, 0.6], [1, 2], 0.5) == [] == alarms([], [])
    one = alarms([0.005, 0.5], [1, 2], 0.5)
    assert len(one) == 1 and one[0].startswith("block 1 collapsed to gdn: 0.50%")
    both = alarms([0.995, 0.0], [1, 2], 0.001)
    assert [text.split(":")[0] for text in both] == [
        "block 1 collapsed to softmax", "block 2 collapsed to gdn", "low entropy of shares", "low entropy of routing",
    ]  # fmt: skip


def test_collapse_raises_an_alarm(place, monkeypatch, capsys):
    """A router whose biases send every token to softmax."""
    real = training.train_language_model

    def biased(model, *args):
        with torch.no_grad():
            model.model.router.weight.zero_()
            model.model.router.bias.copy_(torch.tensor([-30.0, 30.0] * 2))
        return real(model, *args)

    monkeypatch.setattr(one_run, "train_language_model", biased)
    folder = train(place, "collapsed", "--config=dynamic", "--max_steps=2", "--num_evaluations=1")
    err = capsys.readouterr().err
    assert "ALARM at step 2: block 1 collapsed to softmax" in err and "ALARM: alarms in 1 validations" in err
    found = record(folder)
    assert [text.split(":")[0] for text in found["alarms"]["2"]][0] == "block 1 collapsed to softmax"
    assert found["warnings"] == found["alarms"]["2"] and "collapsed to softmax" in (folder / "README.md").read_text()


def test_all_wrong_arguments_are_named_at_once():
    wrong = [
        "--config=best", "--random_share=2", "--corpus=books", "--learning_rate=0", "--batch_size=0", "--max_steps=0",
        "--temperature=0", "--balance_weight=-1",
    ]  # fmt: skip
    with pytest.raises(UserError) as error:
        parse(LanguageModelArguments, wrong)
    for part in (
        "--run_name", "--config 'best'", "--random_share 2", "--corpus 'books'", "--learning_rate 0", "--batch_size 0",
        "--max_steps 0", "--temperature 0", "--balance_weight -1",
    ):  # fmt: skip
        assert part in str(error.value), part


def test_wrong_sizes_and_fields_are_refused_before_a_model_is_made(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text("pattern: [routed, gdn]\nexperts: 4\n")
    with pytest.raises(UserError, match="(?s)no field 'experts'.*pattern starts with 'routed'"):
        parse(LanguageModelArguments, ["--run_name=x", f"--config={path}"])
    with pytest.raises(UserError, match="head_dim x num_attention_heads must be hidden_size"):
        parse(LanguageModelArguments, ["--run_name=x", "--hidden_size=100", "--num_heads=3"])
    path.write_text("- pattern\n")
    with pytest.raises(UserError, match="must hold one `name: value`"):
        parse(LanguageModelArguments, ["--run_name=x", f"--config={path}"])


def test_published_learning_rates():
    for config, rate in (("static", 1e-3), ("dynamic", 2e-3), ("random", 1e-3), ("all-gdn", 1e-3)):
        own = LanguageModelArguments(run_name="x", config=config)
        assert own.peak_rate(own.model_fields()) == rate
    own = LanguageModelArguments(run_name="x", learning_rate=3e-4)
    assert own.peak_rate(own.model_fields()) == 3e-4


def test_patterns_are_repeated_for_deeper_models():
    assert pattern_of("static", 6) == ["gdn", "gdn", "gdn", "softmax", "gdn", "gdn"]
    assert pattern_of("dynamic", 4) == ["gdn", "routed", "routed", "softmax"]


def test_matched_configurations_have_equally_many_parameters():
    totals = []
    for config in ("static", "dynamic", "all-gdn", "all-softmax", "random"):
        own = LanguageModelArguments(run_name="x", config=config, hidden_size=64, num_heads=4, intermediate_size=192)
        totals.append(parameter_counts(matched(own.model_fields() | {"vocab_size": 512}))["total"])
    assert max(totals) - min(totals) <= 3 * 64 * 4  # a unit of the MLPs' width
    own = LanguageModelArguments(run_name="x", hidden_size=64, num_heads=4, intermediate_size=8)
    with pytest.raises(UserError, match="larger --intermediate_size"):
        matched(own.model_fields())


def test_a_hybrid_is_refused_where_layers_are_skipped(trained):
    with pytest.raises(UserError, match="hybrid language model of --objective lm.*stock lm_eval"):
        check_checkpoint(trained)


def test_names_of_runs_of_a_grid():
    grid = {"arguments": {"objective": "lm"}, "runs": [{"config": "static"}, {"seeds": [3]}]}
    assert list(runs_of(grid)) == ["static-s0", "dynamic-s3"]
    shared = {"arguments": {"objective": "lm", "config": "random"}, "runs": [{"random_share": [0.3, 0.5]}]}
    assert list(runs_of(shared)) == ["random-random_share=0.3-s0", "random-random_share=0.5-s0"]
    with pytest.raises(UserError, match="evaluation: runs of objective lm measure themselves"):
        runs_of(grid | {"evaluation": {"rows": 4}})


@pytest.mark.slow
def test_a_sweep_of_language_models_and_its_report(place, tmp_path, monkeypatch, capsys):
    shared = dict(word.removeprefix("--").split("=") for word in SETTINGS)
    shared |= {"objective": "lm", "corpus": str(place / "corpus.txt"), "max_steps": 2, "match_parameters": True}
    shared |= {"intermediate_size": 64}
    grid = {"arguments": shared, "seeds": [0, 1], "runs": [{"config": "static"}, {"config": "dynamic"}]}
    assert list(runs_of(grid)) == ["static-s0", "dynamic-s0", "static-s1", "dynamic-s1"]
    with pytest.raises(UserError, match="some runs are of objective lm"):
        runs_of(grid | {"runs": [{"config": "static"}, {"objective": "dense"}]})
    with pytest.raises(UserError, match="run static-s0: --batch_size 0"):
        check_runs(runs_of(grid | {"arguments": shared | {"batch_size": 0}}), tmp_path)
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid | {"keep_checkpoints": False}))
    command = [
        sys.executable,
        "-m",
        "routing",
        "sweep",
        str(tmp_path / "grid.yaml"),
        "--output",
        str(tmp_path / "sweep"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    done = (tmp_path / "sweep" / "runs" / "static-s0" / "result.json").stat().st_mtime_ns
    (tmp_path / "sweep" / "runs" / "dynamic-s1" / "result.json").unlink()
    (tmp_path / "sweep" / "runs" / "static-s0" / "trainer").mkdir()  # As a kill behind the last file leaves it.
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "sweep" / "runs" / "static-s0" / "result.json").stat().st_mtime_ns == done
    assert (tmp_path / "sweep" / "runs" / "dynamic-s1" / "result.json").exists()
    assert not list((tmp_path / "sweep" / "runs").glob("*/trainer"))

    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "sweep"), "--output", str(tmp_path / "report")])
    report()
    with (tmp_path / "report" / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["group"], row["seeds"]) for row in rows] == [("static", "2"), ("dynamic", "2")]
    losses = [
        json.loads((tmp_path / "sweep" / "runs" / f"dynamic-s{seed}" / "result.json").read_text())["validation_loss"]
        for seed in (0, 1)
    ]
    assert float(rows[1]["validation_loss"]) == pytest.approx(sum(losses) / 2, rel=1e-4)
    assert float(rows[1]["validation_low"]) < min(losses) and rows[0]["softmax_share"] == ""
    assert {path.stem for path in (tmp_path / "report").glob("*.png")} == {
        "validation_loss", "perplexity", "train_loss", "final_loss", "test_loss", "routing_share", "routing_entropy",
        "balance_loss", "temperature", "training_speed", "reading_speed",
    }  # fmt: skip
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<script" not in page and "language model alone" in page
