"""Training end to end as a person starts it, on a tiny model: checkpoint, metrics, kills, sweeps, errors."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import save_tiny_base
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from routing.commands import evaluate as evaluation
from routing.commands import export
from routing.commands.sweep import read_grid, runs_of
from routing.commands.train import finished
from routing.common.cli import parse
from routing.common.errors import UserError
from routing.evaluation import check
from routing.evaluation.budget import decided_routes, find_bias, mean_layers
from routing.evaluation.text_controls import bootstrap, difference
from routing.models.checkpoint import load_checkpoint
from routing.models.config_fields import config_with
from routing.models.placement import Placement
from routing.objectives.table import END_TO_END
from routing.tasks.corpora import passages
from routing.tasks.sequences import Sequences, make_sequences
from routing.training.end_to_end import run as run_module
from routing.training.end_to_end.alarms import alarms, entropy
from routing.training.end_to_end.arguments import EndToEndArguments
from routing.training.end_to_end.run import load_trainable, run
from routing.training.end_to_end.static import costs_of_layers, static_route
from routing.training.end_to_end.threshold import threshold_bias
from routing.training.end_to_end.training import COLUMNS
from routing.training.end_to_end.validation import Measured, batches_of, validate

ROOT = Path(__file__).resolve().parents[2]
LAYERS = 5
SETTINGS = (
    "--sequence_length=24", "--prompt_tokens=4", "--train_passages=12", "--validation_passages=4", "--kept_layers=2",
    "--batch_size=2", "--gradient_accumulation=2", "--max_steps=6", "--num_evaluations=3", "--learning_rate=1e-2",
    "--lora_rank=4", "--router_sizes=8", "--router_bias_init=0.2",
)  # fmt: skip
TINY = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("end_to_end")
    save_tiny_base(folder / "base", LAYERS, **TINY)
    text = [passage[:300] for passage in passages("wikipedia", "train", 40)]
    (folder / "corpus.txt").write_text("\n".join(line.replace("\n", " ") for line in text))
    return folder


def words(place: Path, name: str, *more: str) -> list[str]:
    places = [f"--output_dir={place}/checkpoints", f"--work_dir={place}/runs", f"--corpus={place}/corpus.txt"]
    return [f"--model_id={place}/base", f"--run_name={name}", *places, *SETTINGS, *more]


def train(place: Path, name: str, *more: str) -> Path:
    finished(run(parse(EndToEndArguments, words(place, name, *more))))
    return place / "checkpoints" / name


@pytest.fixture(scope="module")
def trained(place) -> Path:
    return train(place, "token", "--objective=gumbel", "--ce_weight=0.5")


def metrics(place: Path, name: str) -> list[dict]:
    with (place / "runs" / name / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_metrics_have_all_columns_and_a_row_for_each_validation(place, trained):
    rows = metrics(place, "token")
    assert tuple(rows[0]) == COLUMNS and [row["step"] for row in rows] == ["2", "4", "6"]
    for row in rows:
        assert all(row[name] for name in COLUMNS)
        assert math.exp(float(row["validation_loss"])) == pytest.approx(float(row["perplexity"]), rel=1e-4)
        routable = (float(row["active_layers"]) - 2) / (LAYERS - 2)
        assert 1 - routable == pytest.approx(float(row["skip_ratio"]), abs=1e-4)
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates == sorted(rates, reverse=True)


def rows_of_text(place: Path, checkpoint: Path):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    rows = make_sequences(passages(str(place / "corpus.txt"), "validation", 4), tokenizer, 24, "packed", 4)
    return batches_of(rows, 2, 4, torch.device("cpu"))


def test_a_reloaded_checkpoint_has_the_loss_of_training_with_routing_on(place, trained):
    """The last row of metrics.csv was measured with adapters beside the weights; here they are merged."""
    last = metrics(place, "token")[-1]
    model = AutoModelForCausalLM.from_pretrained(trained, trust_remote_code=True)
    model.eval()
    batches = rows_of_text(place, trained)
    first, second = validate(model, batches), validate(model, batches)
    assert first.losses == second.losses and torch.equal(first.executed, second.executed)  # no noise
    assert first.loss == pytest.approx(float(last["validation_loss"]), abs=2e-4)
    assert first.layers == pytest.approx(float(last["active_layers"]), abs=2e-4) and first.layers < LAYERS
    other = AutoModelForCausalLM.from_pretrained(trained, trust_remote_code=True, route_bias=50.0).eval()
    dense = validate(other, batches)
    assert dense.layers == LAYERS and abs(dense.loss - first.loss) > 1e-4  # routing is what made the difference


def test_stock_lm_eval_runs_the_checkpoint_with_routing_on(place, trained):
    """lm-eval pads on the right without a mask; it gets each row's own loglikelihood, and layers are skipped."""
    lm = HFLM(pretrained=str(trained), trust_remote_code=True, batch_size=3, device="cpu")
    lm.model.model.count_layers()
    text = passages(str(place / "corpus.txt"), "validation", 3)
    requests = [
        Instance("loglikelihood", {}, (passage[:40], passage[40 : 60 + 30 * number]), number)
        for number, passage in enumerate(text)
    ]
    found = [score for score, _ in lm.loglikelihood(requests, disable_tqdm=True)]
    totals = lm.model.model.totals
    assert 0 < totals.layers < LAYERS * totals.inputs
    model = AutoModelForCausalLM.from_pretrained(trained, trust_remote_code=True).eval()
    for request, score in zip(requests, found, strict=True):
        context, choice = lm._encode_pair(*request.args)
        with torch.no_grad():
            logits = model(torch.tensor([context + choice])).logits[0].log_softmax(-1)
        expected = sum(logits[len(context) + at - 1, token].item() for at, token in enumerate(choice))
        assert score == pytest.approx(expected, abs=2e-3)


def test_generation_from_the_checkpoint_skips_layers(trained):
    model = AutoModelForCausalLM.from_pretrained(trained, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained)
    model.model.count_layers()
    inputs = tokenizer("The railway was opened", return_tensors="pt")
    cached = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert torch.equal(cached, model.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=False))
    assert model.model.totals.layers < LAYERS * model.model.totals.inputs


def evaluate(monkeypatch, *more) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluation.py", *map(str, more)])
    evaluation.main()


@pytest.mark.slow
def test_evaluation_py_proves_and_evaluates_routing_by_token(trained, monkeypatch, capsys):
    """The adapters were merged, so the stock model that the check compares with has the checkpoint's weights."""
    words = ("--checkpoint", trained, "--tasks", "routed_arithmetic", "--limit", 4)
    with pytest.raises(SystemExit) as ended:
        evaluate(monkeypatch, *words, "--check")
    out = capsys.readouterr().out
    assert ended.value.code == 0 and out.count("PASS") == 3 and "FAIL" not in out
    assert "is_static_routing=True is the stock model with these weights" in out
    evaluate(monkeypatch, *words, "--controls", "random", "--seeds", 1)
    (result,) = json.loads((trained / "evaluation.json").read_text())
    assert 2 < result["routed"]["layers"] < LAYERS == result["base"]["layers"]
    assert result["routed"]["gflops"] < result["base"]["gflops"]
    assert sum(result["route_share"].values()) == pytest.approx(1)
    assert abs(result["controls"][0]["layers"] - result["routed"]["layers"]) <= 1
    assert "decides for each token" in (trained / "README.md").read_text()


def test_a_check_of_wrong_decisions_fails(trained, monkeypatch, capsys):
    """The plain forward asks another router than the one that decides."""
    real = check.plain_global_route

    def other(stock, routed, prompt, tolerance):
        with config_with(routed, route_bias=routed.config.route_bias + 0.3):
            return real(stock, routed, prompt, tolerance)

    monkeypatch.setattr(check, "plain_global_route", other)
    with pytest.raises(SystemExit) as ended:
        evaluate(monkeypatch, "--checkpoint", trained, "--tasks", "routed_arithmetic", "--limit", 4, "--check")
    assert ended.value.code == 1 and "FAIL  routing is on and decides" in capsys.readouterr().out


def test_a_check_of_nothing_is_refused(place, trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "none")
    config = json.loads((tmp_path / "none" / "config.json").read_text()) | {"router": "none"}
    (tmp_path / "none" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="--check: .*router 'none'"):
        evaluate(monkeypatch, "--checkpoint", tmp_path / "none", "--check")


def test_a_budget_is_set_by_the_threshold(trained):
    model, tokenizer = load_checkpoint(trained, torch.float32, torch.device("cpu"))
    prompts = [tokenizer.encode(text) for text in ("The railway was opened in 1890", "A castle", "Iron is a metal")]

    def layers_at(bias: float) -> float:
        model.config.route_bias = bias
        return mean_layers(decided_routes(model, tokenizer, prompts, 2))

    bias, tried = find_bias(layers_at, 4.0, tolerance=0.2)
    assert abs(tried[bias] - 4.0) <= 0.2
    assert sorted(tried.values()) == [tried[bias] for bias in sorted(tried)]


@pytest.mark.parametrize("objective", sorted(set(END_TO_END) - {"gumbel"}))
def test_every_objective_leaves_a_checkpoint_that_loads(place, objective):
    folder = train(place, objective, f"--objective={objective}", "--target_skip=0.34", "--max_steps=2")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    last, measured = metrics(place, objective)[-1], validate(model, rows_of_text(place, folder))
    assert measured.loss == pytest.approx(float(last["validation_loss"]), abs=2e-4)
    expected = {"dense": LAYERS, "stochastic_depth": LAYERS, "static": LAYERS - 1}.get(objective)
    assert measured.layers < LAYERS if expected is None else measured.layers == expected
    record = json.loads((folder / "training.json").read_text())
    assert record["arguments"]["objective"] == objective and (folder / "README.md").exists()


def test_a_given_path_is_healed_and_leaves_as_a_stock_model(place, tmp_path):
    """The full model is the teacher; the LoRA that was trained is in the weights that leave."""
    folder = train(place, "healed", "--objective=static", "--path=0:3,4", "--ce_weight=0", "--max_steps=2")
    assert json.loads((folder / "config.json").read_text())["fixed_route"] == [1, 1, 1, 0, 1]
    rows = metrics(place, "healed")
    assert float(rows[0]["kd_loss"]) > 0 and float(rows[-1]["active_layers"]) == LAYERS - 1
    export.main([str(folder), "--output", str(tmp_path / "out")])
    ids, stock = torch.arange(20, 40)[None], AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    torch.testing.assert_close(stock(ids).logits, model(ids).logits, atol=1e-5, rtol=0)
    own, base = load_file(tmp_path / "out" / "model.safetensors"), load_file(place / "base" / "model.safetensors")
    name = "model.layers.{}.self_attn.q_proj.weight"
    assert not torch.equal(own[name.format(3)], base[name.format(4)])  # healed


@pytest.mark.parametrize(
    "objective, path, named",
    [
        ("static", "0:2,x", "'x'"),
        ("static", "0:9", "has layer 8"),
        ("static", "3,1", "does not keep the order"),
        ("dense", "0:2", "--objective dense has no fixed path"),
    ],
)
def test_wrong_paths_are_refused_before_a_model_is_loaded(place, monkeypatch, objective, path, named):
    monkeypatch.setattr(run_module, "load_trainable", None)
    with pytest.raises(UserError) as error:
        train(place, "wrong", f"--objective={objective}", f"--path={path}")
    assert "--path" in str(error.value) and named in str(error.value)


def test_a_frozen_base_stays_as_it_is_and_can_be_referred_to(place):
    folder = train(place, "frozen", "--objective=gumbel", "--trainable=router", "--router=prefix")
    base, saved = load_file(place / "base" / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in base.items())
    assert set(saved) - set(base) == {name for name in saved if "routers" in name} != set()
    small = train(
        place, "small", "--objective=gumbel", "--trainable=router", "--router=prefix", "--save_base=reference"
    )
    models = [AutoModelForCausalLM.from_pretrained(f, trust_remote_code=True).eval() for f in (folder, small)]
    ids = torch.arange(20, 40)[None]
    assert torch.equal(*(model(ids).logits for model in models))
    assert not (small / "model.safetensors").exists()


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_weights(place, trained):
    """`kill -9` between two states; the resumed run ends with the weights and metrics of one that was not killed."""
    again = words(place, "killed", "--objective=gumbel", "--ce_weight=0.5")
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
    resumed = train(place, "killed", "--objective=gumbel", "--ce_weight=0.5", "--resume")
    for name, tensor in weights_of(trained).items():
        torch.testing.assert_close(weights_of(resumed)[name], tensor, atol=1e-6, rtol=0)
    for old, new in zip(metrics(place, "token"), metrics(place, "killed"), strict=True):
        for column in set(COLUMNS) - {"tokens_per_second", "peak_memory_gib"}:
            assert float(old[column]) == pytest.approx(float(new[column]), abs=1e-4), column


def test_resuming_with_other_arguments_is_refused(place, trained):
    with pytest.raises(UserError, match="--ce_weight was 0.5, now 0.9"):
        train(place, "token", "--objective=gumbel", "--ce_weight=0.9", "--resume")


def test_a_yaml_file_holds_arguments_and_the_command_line_wins(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "objective: gumbel\nrouter: prefix\ntarget_skip: 0.3\nrun_name: from-file\nresidual_scaling: true\n"
    )
    found = parse(EndToEndArguments, [str(path), "--target_skip", "0.2"])
    assert (found.router, found.target_skip, found.run_name, found.residual_scaling) == (
        "prefix",
        0.2,
        "from-file",
        True,
    )
    path.write_text("- objective\n")
    with pytest.raises(UserError, match="must hold one `name: value`"):
        parse(EndToEndArguments, [str(path)])


def test_all_wrong_arguments_are_named_at_once(tmp_path):
    wrong = [
        "--objective=dense", "--trainable=router", "--router=prefix", "--target_skip=1.5", "--sequence_length=32",
        "--prompt_tokens=32", "--corpus=books", "--router_sizes=8,x", "--lora_rank=0", "--learning_rate=0",
        "--sink_tokens=1",
    ]  # fmt: skip
    with pytest.raises(UserError) as error:
        parse(EndToEndArguments, wrong)
    for part in (
        "--run_name", "--router prefix: --objective dense takes none", "no router to train", "--target_skip 1.5",
        "--prompt_tokens 32 leaves nothing", "--corpus 'books'", "--router_sizes '8,x'", "--lora_rank 0",
        "--learning_rate 0", "--sink_tokens 1: router prefix",
    ):  # fmt: skip
        assert part in str(error.value), part


def test_unknown_arguments_are_named(tmp_path):
    with pytest.raises(UserError, match="unknown arguments: --sed=1 run.yaml"):
        parse(EndToEndArguments, ["--run_name=x", "--sed=1", "run.yaml"])


def test_published_defaults():
    found = EndToEndArguments(run_name="x")
    assert (found.router, found.ce_weight, found.router_bias_init, found.layer_penalty) == (
        "prefix_token",
        0.5,
        -1.5,
        0,
    )
    found = EndToEndArguments(run_name="x", objective="reinforce")
    assert (found.router, found.ce_weight, found.layer_penalty) == ("embedding", 1.0, 0.05)
    assert (found.kept_layers, found.lora_rank, found.learning_rate, found.sequence_length) == (4, 16, 3e-5, 512)


def test_alarms_by_hand():
    assert alarms([0.5, 0.7]) == [] == alarms([])
    found = alarms([0.005, 0.995, 1.0, 0.5], first_layer=4)
    assert len(found) == 2 and "dead layers" in found[0] and found[0].endswith(": 4") and found[1].endswith(": 5, 6")
    found = alarms([0.0, 1.0])
    assert len(found) == 3 and "low entropy: 0.000" in found[2]
    assert entropy(0.5) == pytest.approx(math.log(2)) and entropy(0.0) == 0


def test_a_threshold_is_a_quantile_of_the_logits():
    logits = torch.tensor([[-2.0, 1.0], [3.0, 0.0]])
    for skip, expected in ((0.25, 1.0), (0.5, -0.5), (0.0, 3.0), (1.0, -4.0)):
        bias = threshold_bias(logits, skip)
        assert bias == expected and (logits + bias <= 0).float().mean() == skip


def test_a_calibrated_checkpoint_skips_its_target(place):
    more = ("--objective=gumbel", "--calibrate_threshold=True", "--target_skip=0.5", "--max_steps=2")
    folder = train(place, "calibrated", *more)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = make_sequences(passages(str(place / "corpus.txt"), "train", 12), tokenizer, 24, "packed", 4)
    rows = Sequences(rows.ids[:64], rows.lengths[:64])
    measured = validate(model, batches_of(rows, 2, 4, torch.device("cpu")))
    skipped = 1 - sum(measured.layer_shares[2:]) / (LAYERS - 2)
    assert skipped == pytest.approx(0.5, abs=0.01) and model.config.route_bias != 0


def test_static_routes_leave_out_the_cheapest_layers():
    assert static_route({2: 3.0, 3: 1.0, 4: 2.0}, 5, 2) == [1, 1, 1, 0, 0]


def test_the_cost_of_a_layer_is_the_loss_without_it_alone(place, trained):
    model, batches = (
        AutoModelForCausalLM.from_pretrained(trained, trust_remote_code=True),
        rows_of_text(place, trained)[:1],
    )
    costs = costs_of_layers(model, batches, 2)
    without_3 = torch.tensor([[1, 1, 1, 0, 1]] * len(batches[0].ids))
    assert [*costs] == [2, 3, 4]
    assert costs[3] == validate(model, batches, lambda n: without_3).loss != costs[2]


def test_intervals_and_paired_differences():
    same = Measured(losses=[2.0, 4.0], predicted=[2, 4], tokens=6)
    worse = Measured(losses=[3.0, 6.0], predicted=[2, 4], tokens=6)
    assert difference(worse, same) == (0.5, [0.5, 0.5])  # each row loses half a nat a token
    low, high = bootstrap(lambda rows: float(rows.mean()), 100)
    assert low < 49.5 < high and high - low < 15
    assert bootstrap(lambda rows: float(rows.mean()), 100) == [low, high]


def test_grids_are_all_combinations(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(
        "arguments: {max_steps: 2}\nseeds: [0, 1]\nruns:\n  - {objective: dense}\n"
        "  - {objective: gumbel, router: prefix, target_skip: [0.2, 0.4]}\n  - {name: once, seeds: [1]}\n"
    )
    runs = runs_of(read_grid(path))
    named = ["dense", "gumbel-prefix-target_skip=0.2", "gumbel-prefix-target_skip=0.4"]
    assert list(runs) == [f"{name}-s{seed}" for seed in (0, 1) for name in named] + ["once-s1"]
    assert runs["dense-s1"] == {"max_steps": 2, "objective": "dense", "seed": 1, "run_name": "dense-s1"}
    path.write_text("runs:\n  - {objective: gumbel}\n  - {objective: gumbel, target_skip: 0.2}\n")
    with pytest.raises(UserError, match="two runs are called gumbel-s0; give them different `name`s"):
        runs_of(read_grid(path))
    path.write_text("runs:\n  - {objective: dense, seed: 3}\nmore: 1\n")
    with pytest.raises(UserError, match="(?s)'more' is unknown.*seed is set by the sweep"):
        read_grid(path)


def sweep(place: Path, grid: dict) -> subprocess.CompletedProcess:
    (place / "grid.yaml").write_text(yaml.safe_dump(grid))
    return subprocess.run(
        [sys.executable, "-m", "routing", "sweep", str(place / "grid.yaml"), "--output", str(place / "sweep")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


@pytest.mark.slow
def test_two_processes_train_one_checkpoint(place):
    """Batches shared out, one row of metrics for both, adapters of layers that a step left out take no part."""
    for objective in ("gumbel", "stochastic_depth"):
        name = f"two-{objective}"
        own = words(place, name, f"--objective={objective}", "--batch_size=1")
        launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", str(ROOT / "train.py")]
        result = subprocess.run([sys.executable, "-m", *launch, *own], capture_output=True, text=True, cwd=place)
        assert result.returncode == 0, result.stderr[-3000:]
        assert [row["step"] for row in metrics(place, name)] == ["2", "4", "6"]
        AutoModelForCausalLM.from_pretrained(place / "checkpoints" / name, trust_remote_code=True)


def test_adapters_of_a_coarse_base_are_merged_in_the_dtype_of_training(place, tmp_path):
    """A base that is stored in bfloat16 would swallow small changes."""
    shutil.copytree(place / "base", tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    more = ("--objective=gumbel", f"--model_id={tmp_path / 'base'}", "--learning_rate=1e-5", "--max_steps=2")
    folder = train(place, "coarse", *more)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    assert model.dtype == torch.float32
    measured = validate(model, rows_of_text(place, folder))
    assert measured.loss == pytest.approx(float(metrics(place, "coarse")[-1]["validation_loss"]), abs=1e-4)


def test_adapters_stay_in_float32_on_a_base_in_half_precision(place):
    arguments = parse(EndToEndArguments, words(place, "half", "--objective=gumbel", "--dtype=bfloat16"))
    model, _, _ = load_trainable(arguments, Placement(torch.device("cpu")))
    trained = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    assert model.dtype == torch.bfloat16 and trained == {torch.float32}


def test_the_model_is_put_on_the_device_of_training(place):
    model, _, _ = load_trainable(
        parse(EndToEndArguments, words(place, "there", "--objective=gumbel")), Placement(torch.device("meta"))
    )
    assert {parameter.device.type for parameter in model.model.layers.parameters()} == {"meta"}


@pytest.mark.slow
def test_a_sweep_trains_evaluates_and_continues(place):
    shared = dict(word.removeprefix("--").split("=") for word in SETTINGS)
    shared |= {"model_id": str(place / "base"), "corpus": str(place / "corpus.txt"), "max_steps": 2}
    grid = {
        "arguments": shared, "seeds": [0],
        "runs": [{"objective": "dense"}, {"objective": "gumbel", "router": "prefix_token"}],
        "evaluation": {"rows": 3, "seeds": 1, "skip": 0.25}, "keep_checkpoints": False,
    }  # fmt: skip
    result = sweep(place, grid)
    assert result.returncode == 0, result.stderr[-3000:]
    with (place / "sweep" / "controls.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {(row["run"], row["method"]) for row in rows}
    assert {("dense-s0", "base"), ("dense-s0", "full"), ("dense-s0", "static"), ("dense-s0", "random_layers")} <= found
    assert {("gumbel-prefix_token-s0", name) for name in ("routed", "random_tokens", "static")} <= found
    full = [row for row in rows if row["method"] == "full"]
    assert {float(row["speedup"]) for row in full} == {1.0} and {float(row["layers"]) for row in full} == {LAYERS}
    assert {row["loss"] for row in rows if row["method"] == "base"} == {rows[1]["loss"]}  # the same base twice
    assert not (place / "sweep" / "checkpoints" / "dense-s0").exists()
    done = (place / "sweep" / "runs" / "dense-s0" / "controls.csv").stat().st_mtime_ns
    shutil.rmtree(place / "sweep" / "runs" / "gumbel-prefix_token-s0")
    result = sweep(place, grid)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (place / "sweep" / "runs" / "dense-s0" / "controls.csv").stat().st_mtime_ns == done
    assert (place / "sweep" / "runs" / "gumbel-prefix_token-s0" / "controls.csv").exists()
    grid["arguments"] = shared | {"max_steps": 3}
    result = sweep(place, grid)
    assert result.returncode == 2 and "run dense-s0 was made with other max_steps" in result.stderr
    grid |= {"arguments": shared, "evaluation": {"rows": 2}}
    result = sweep(place, grid)
    assert result.returncode == 2 and "were evaluated with {'rows': 3" in result.stderr
