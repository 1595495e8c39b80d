"""Router training at speed: stacked routers, features on disk, several processes, and the benchmark of it all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import router_training
import torch
from conftest import LAYERS, LLAMA, routed_from, save_tiny_base, stock_model
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import default_collate
from transformers import AutoTokenizer

from routing.common.errors import UserError
from routing.objectives.supervised import focal_loss
from routing.training import features
from routing.training.features import (
    SHARD_SIZE,
    CachedFeatures,
    RouterExample,
    cache_features,
    feature_bytes,
    router_inputs,
    shard_path,
)
from routing.training.packed_inputs import PackedInputs
from routing.training.routers.arguments import TrainArguments
from routing.training.routers.trainer import IGNORED, RouterStack, train_routers, training_arguments
from train_models.routers import RouterBlock

ROOT = Path(__file__).resolve().parents[2]
DEPTH = 4
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def make_stack(layers: int = 3, width: int = 10) -> tuple[nn.ModuleList, RouterStack]:
    torch.manual_seed(0)
    routers = nn.ModuleList(RouterBlock(width, 8) for _ in range(layers))
    for parameter in routers.parameters():
        nn.init.normal_(parameter)
    return routers, RouterStack(routers, torch.tensor([1.5, 0.5, 1.0]), TrainArguments(run_name="r"))


def make_batch(rows: int, layers: int = 3, width: int = 10) -> dict[str, torch.Tensor]:
    """Features of prompts of which some have fewer tokens than windows."""
    windows = torch.arange(4) < torch.randint(1, 5, (rows, 1))
    inputs = torch.randn(rows, layers, 4, width) * windows[:, None, :, None]
    return {"features": inputs, "windows": windows, "labels": torch.randint(0, 3, (rows, layers))}


def test_stacked_routers_are_the_routers_one_by_one():
    routers, stack = make_stack()
    batch = make_batch(5)
    alone = torch.stack([router(batch["features"][:, i], batch["windows"]) for i, router in enumerate(routers)], dim=1)
    output = stack(**batch)
    torch.testing.assert_close(output["logits"], alone, atol=1e-5, rtol=0)
    loss = focal_loss(alone, batch["labels"], stack.weights, 2.0)
    loss.backward()
    output["loss"].backward()
    for name, (part, kind) in {"up": ("up", "weight"), "down_bias": ("down", "bias")}.items():
        wanted = torch.stack([getattr(getattr(router, part), kind).grad for router in routers])
        torch.testing.assert_close(getattr(stack, name).grad, wanted, atol=1e-5, rtol=1e-4)


def test_weights_go_back_to_their_routers():
    routers, stack = make_stack()
    before = {name: tensor.clone() for name, tensor in routers.state_dict().items()}
    with torch.no_grad():
        for number, parameter in enumerate(stack.parameters(), 1):
            parameter += number
    assert all(torch.equal(before[name], tensor) for name, tensor in routers.state_dict().items())
    stack.write_to(routers)
    added = {"up.weight": 1, "up.bias": 2, "down.weight": 3, "down.bias": 4}
    for name, tensor in routers.state_dict().items():
        assert torch.equal(tensor, before[name] + added[name.split(".", 1)[1]])


def test_shares_of_a_batch_add_up_to_its_loss():
    """Parts of unlike size, one of them with nothing that counts, as two processes have them at the end of an epoch."""
    _, stack = make_stack()
    whole = make_batch(5)
    loss = stack(**whole)["loss"]
    loss.backward()
    wanted = {name: parameter.grad.clone() for name, parameter in stack.named_parameters()}
    stack.zero_grad()
    parts = [{name: tensor[rows].clone() for name, tensor in whole.items()} for rows in ([0, 1, 2, 3], [4, 0, 1], [2])]
    parts[1]["labels"][1:] = IGNORED
    parts[2]["labels"][:] = IGNORED
    shares = [stack(**part, num_items_in_batch=torch.tensor(15))["loss"] for part in parts]
    sum(shares).backward()
    assert sum(shares).item() == pytest.approx(loss.item(), abs=1e-6) and shares[2].item() == 0
    for name, parameter in stack.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name])


def test_the_routers_of_the_best_evaluation_are_kept_not_the_last(tmp_path):
    routers, _ = make_stack()
    rows = [dict(zip(row, values)) for row in [make_batch(8)] for values in zip(*row.values())]
    settings = {"num_epochs": 3, "num_evaluations": 3, "batch_size": 8, "learning_rate": 1e-2, "device": "cpu"}
    accuracies, seen = iter([0.2, 0.9, 0.1]), []

    def execute() -> dict[str, float]:
        seen.append({name: tensor.clone() for name, tensor in routers.state_dict().items()})
        return {"executed_accuracy": next(accuracies), "executed_examples": 8}

    arguments = TrainArguments(run_name="r", **settings)
    trainer = train_routers(arguments, routers, torch.ones(3), rows, rows, default_collate, execute, tmp_path)
    assert trainer.state.best_global_step == 2
    for name, tensor in routers.state_dict().items():
        assert torch.equal(tensor, seen[1][name]) and not torch.equal(tensor, seen[2][name])


@pytest.mark.parametrize(("asked", "examples", "used"), [(500, 160, 10), (7, 160, 7), (0, 160, 0), (500, 16, 1)])
def test_warming_up_takes_a_tenth_of_all_steps_at_most(tmp_path, asked, examples, used):
    """10 batches an epoch, 10 epochs."""
    arguments = TrainArguments(run_name="r", batch_size=16, num_epochs=10, warmup_steps=asked, device="cpu")
    assert training_arguments(arguments, tmp_path, examples).warmup_steps == used


@pytest.fixture(scope="module")
def routed():
    return routed_from(LLAMA, stock_model(LLAMA), num_windows=3)


def make_examples(count: int) -> list[RouterExample]:
    return [
        RouterExample(tuple(range(1, 3 + i * 7 % 11)), tuple((i + layer) % 3 for layer in range(LAYERS)))
        for i in range(count)
    ]


def test_features_are_read_as_they_were_computed(routed, tmp_path):
    examples = make_examples(SHARD_SIZE + 9)
    cache_features(tmp_path, routed, examples, 0, 4, "key", show=False)
    chosen = [SHARD_SIZE + 3, 5, SHARD_SIZE - 1]
    batch = CachedFeatures(tmp_path, chosen).__getitems__([0, 1, 2])
    for at, index in enumerate(chosen):
        alone = router_inputs(routed, [examples[index]], 0)
        for name, tensor in alone.items():
            torch.testing.assert_close(batch[name][at], tensor[0], atol=1e-4, rtol=1e-4)
    assert [tuple(row) for row in batch["labels"].tolist()] == [examples[index].route for index in chosen]


def with_adapters(bare):
    """The same model, and adapters that change what they are given in the place of skipped layers."""
    model = type(bare)(type(bare.config)(**bare.config.to_dict() | {"skip_action": "adapter", "adapter_size": 6}))
    model.load_state_dict(bare.state_dict(), strict=False)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.model.adapters.parameters():
            parameter.normal_(0.0, 0.1)
    return model.eval()


@pytest.mark.parametrize("skip_action", ["identity", "adapter"])
def test_packed_inputs_are_those_of_the_model(any_family, skip_action):
    """Other prompts and the same ones, below a common beginning, along the same paths and others; padding at an end."""
    model = routed_from(any_family, stock_model(any_family), num_windows=3)
    if skip_action == "adapter":
        model = with_adapters(model)
        assert len(model.model.stand_ins) == LAYERS
    start = (5, 9, 3, 7, 2)
    prompts = [(*start, 4, 8, 6), (*start, 4), (*start, 11, 12, 13, 14, 15, 16), (*start, 4, 8, 6), (*start, 4, 0, 0)]
    examples = [RouterExample(p, e.route) for p, e in zip(prompts * 2, make_examples(10))]
    examples += [RouterExample(p, (1,) * LAYERS) for p in prompts] + [RouterExample(prompts[0], (0,) * LAYERS)]
    packed = PackedInputs(model)
    for part in (examples, examples[:3], examples[2:3]):
        found = packed(model, part, 0)
        assert not packed.store.bytes
        for name, tensor in router_inputs(model, part, 0).items():
            torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-4)


def test_packed_inputs_compute_once_what_rows_share(routed):
    """Two rows of one prompt that part behind layer 2; the last layer, which no router reads, is not run."""
    packed, prompt = PackedInputs(routed), (5, 9, 3, 7)
    packed(routed, [RouterExample(prompt, route) for route in ((1, 1, 1, 1, 1), (1, 1, 0, 2, 1))], 0)
    assert packed.runner.layer_tokens == len(prompt) * (2 + 2 + 2)


def test_size_on_disk_is_the_stated_one(routed, tmp_path):
    for dtype in (torch.float32, torch.bfloat16):
        folder = tmp_path / str(dtype)
        folder.mkdir()
        cache_features(folder, routed, make_examples(SHARD_SIZE), 0, 8, "key", dtype, show=False)
        rows = SHARD_SIZE * feature_bytes(LAYERS, 3, routed.config.hidden_size, dtype)
        assert rows < shard_path(folder, 0).stat().st_size < rows + 1000
    assert feature_bytes(28, 8, 3072, torch.float32) * 4000 == 11_010_976_000


def test_half_precision_features_are_near_and_overflow_is_refused(routed, tmp_path):
    examples = make_examples(6)
    exact = router_inputs(routed, examples, 0)["features"]
    for dtype, error in ((torch.float16, 2**-11), (torch.bfloat16, 2**-8)):
        folder = tmp_path / str(dtype)
        folder.mkdir()
        cache_features(folder, routed, examples, 0, 6, "key", dtype, show=False)
        stored = CachedFeatures(folder, list(range(6))).__getitems__(list(range(6)))["features"]
        assert stored.dtype == torch.float32
        torch.testing.assert_close(stored, exact, rtol=error, atol=1e-4)
        assert not torch.allclose(stored, exact, rtol=0, atol=1e-6)

    def huge(*arguments):
        found = router_inputs(*arguments)
        return found | {"features": found["features"] * 1e6}

    with pytest.raises(UserError, match="--features_dtype bfloat16 or float32"):
        cache_features(tmp_path, routed, examples, 0, 6, "key", torch.float16, show=False, inputs=huge)


def test_a_full_disk_is_noticed_before_anything_is_computed(routed, tmp_path, monkeypatch):
    examples = make_examples(SHARD_SIZE + 5)
    size = feature_bytes(LAYERS, 3, routed.config.hidden_size, torch.float32)
    needed = len(examples) * size
    usage = shutil.disk_usage(tmp_path)
    calls = []
    monkeypatch.setattr(features, "PackedInputs", calls.append)
    monkeypatch.setattr(features.shutil, "disk_usage", lambda folder: usage._replace(free=needed - 1))
    with pytest.raises(UserError, match=rf"need {needed} more bytes \({size} an example\).* has {needed - 1} free"):
        cache_features(tmp_path, routed, examples, 0, 8, "key", show=False)
    assert not calls and not list(tmp_path.glob("*.safetensors"))
    monkeypatch.undo()
    cache_features(tmp_path, routed, examples, 0, 8, "key", show=False)
    shard_path(tmp_path, SHARD_SIZE).unlink()
    # What is there needs no room any more.
    monkeypatch.setattr(features.shutil, "disk_usage", lambda folder: usage._replace(free=5 * size))
    cache_features(tmp_path, routed, examples, 0, 8, "key", show=False)
    assert shard_path(tmp_path, SHARD_SIZE).exists()


def test_several_processes_make_each_shard_once(routed, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "SHARD_SIZE", 2)
    examples = make_examples(9)
    made, errors = [], []

    def slow(model, part, pad_id):
        made.append(part[0].prompt_ids)
        time.sleep(0.02)
        return router_inputs(model, part, pad_id)

    def work():
        try:
            cache_features(tmp_path, routed, examples, 0, 2, "key", show=False, inputs=slow)
            assert all(shard_path(tmp_path, start).exists() for start in range(0, 9, 2))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(made) == 5
    assert {path.name for path in tmp_path.glob("features-*")} == {f"features-{i:05d}.safetensors" for i in range(5)}


def write_zeros(folder: Path, count: int, layers: int, windows: int, width: int) -> None:
    """Feature files of zeros that take no room on disk: a header, then a hole."""
    for start in range(0, count, SHARD_SIZE):
        rows = min(SHARD_SIZE, count - start)
        header, at = {}, 0
        shapes = {"features": ("F32", [rows, layers, windows, width], 4), "labels": ("I64", [rows, layers], 8)}
        for name, (kind, shape, item) in (shapes | {"windows": ("BOOL", [rows, windows], 1)}).items():
            end = at + item * torch.Size(shape).numel()
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, end]}
            at = end
        text = json.dumps(header).encode()
        with shard_path(folder, start).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + at)


def resident() -> int:
    return psutil.Process().memory_info().rss


def test_reading_features_takes_no_memory(tmp_path):
    """256 examples of a MB each; the same through a memory map, whose pages count as resident, for comparison."""
    count, row = 256, 16 * 8 * 2048 * 4
    write_zeros(tmp_path, count, 16, 8, 2048)
    dataset = CachedFeatures(tmp_path, list(range(count)))
    dataset.__getitems__([0] * 8)
    before = resident()
    for at in range(0, count, 8):
        assert float(dataset.__getitems__(list(range(at, at + 8)))["features"].sum()) == 0
    # Room for a few batches that the allocator keeps.
    assert resident() - before < 0.25 * count * row
    shards = [safe_open(shard_path(tmp_path, start), framework="pt") for start in range(0, count, SHARD_SIZE)]
    mapped = [shard.get_slice("features")[i] for shard in shards for i in range(SHARD_SIZE)]
    assert sum(float(tensor.sum()) for tensor in mapped) == 0
    assert resident() - before > 0.9 * count * row


@pytest.mark.slow
def test_features_of_a_large_model_stream(tmp_path):
    """4,000 examples of a model of 3B parameters: 11 GB of files, in memory no more than a few batches."""
    write_zeros(tmp_path, 4000, 28, 8, 3072)
    size = feature_bytes(28, 8, 3072, torch.float32)
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert 4000 * size < total < 4000 * size + 100_000
    dataset = CachedFeatures(tmp_path, torch.randperm(4000).tolist())
    dataset.__getitems__([0] * 16)
    before = resident()
    for at in range(0, 4000, 16):
        dataset.__getitems__(list(range(at, at + 16)))
    assert resident() - before < 4 * 16 * size


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_tiny_base(
        tmp_path_factory.mktemp("base"), DEPTH, hidden_size=32, intermediate_size=64, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def labels(base, tmp_path_factory) -> Path:
    """More than one shard; training and held-out examples that fill no whole number of batches of 16."""
    folder = tmp_path_factory.mktemp("labels")
    router_training.write_labels(
        folder, str(base), DEPTH, AutoTokenizer.from_pretrained(base), 2 * SHARD_SIZE + 6, True
    )
    return folder


def training(base: Path, labels: Path, **more) -> list[str]:
    arguments = {
        "model_id": base, "data": labels, "run_name": "run", "num_epochs": 3, "eval_fraction": 0.3,
        "num_evaluations": 3, "device": "cpu", "eval_examples": 9,
    } | more  # fmt: skip
    return [part for key, value in arguments.items() for part in (f"--{key}", str(value))]


@contextmanager
def launched(folder: Path, processes: int, *listed: str) -> Iterator[subprocess.Popen]:
    """train.py in processes of `accelerate launch`, with its messages in a file; all are gone afterwards."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(ROOT / "train.py"), *listed]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"]
        launch += ["--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"]
        launch += ["--dynamo_backend", "no", "--main_process_port", str(port)]
        command = [*launch, *command[1:]]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log)
    try:
        yield process
    finally:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()


def trained(folder: Path, processes: int, *listed: str) -> tuple[dict, dict, str]:
    """The summary, the routers and the messages of a run."""
    with launched(folder, processes, *listed) as process:
        log = folder / "log"
        assert process.wait(timeout=300) == 0, log.read_text()[-3000:]
    checkpoint = folder / "checkpoints/run"
    weights = load_file(checkpoint / "model.safetensors")
    routers = {name: tensor for name, tensor in weights.items() if ".routers." in name}
    return json.loads((checkpoint / "training.json").read_text()), routers, log.read_text()


# Times, and the mean loss over what the last call of several ran.
OF_THE_CALL = ("runtime", "per_second", "train_loss")


def metrics(summary: dict) -> dict:
    """All logged numbers that the training alone decides, by (step, name)."""
    return {
        (entry["step"], name): value
        for entry in summary["log"]
        for name, value in entry.items()
        if not name.endswith(OF_THE_CALL)
    }


def assert_same_training(one: tuple, other: tuple) -> None:
    mine, theirs = metrics(one[0]), metrics(other[0])
    assert mine.keys() == theirs.keys()
    assert {"loss", "eval_loss", "eval_executed_accuracy", "eval_executed_layers"} <= {name for _, name in mine}
    for key, value in mine.items():
        assert theirs[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key
    assert one[0]["kept_step"] == other[0]["kept_step"]
    for name, tensor in one[1].items():
        torch.testing.assert_close(other[1][name], tensor, atol=1e-4, rtol=1e-3)


@pytest.fixture(scope="module")
def single(base, labels, tmp_path_factory):
    """One process, batches of 16."""
    return trained(tmp_path_factory.mktemp("single"), 1, *training(base, labels, batch_size=16))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cached", "live"])
def test_two_processes_train_as_one(base, labels, single, tmp_path, kind):
    both = trained(tmp_path, 2, *training(base, labels, batch_size=8, features=kind))
    assert both[0]["num_processes"] == 2 and single[0]["num_processes"] == 1
    assert both[0]["train_examples"] % 16 and both[0]["held_out_examples"] % 16
    assert_same_training(single, both)
    assert both[2].count("checkpoint: ") == both[2].count("held-out examples; labels") == 1


@pytest.mark.slow
def test_accumulated_batches_of_two_processes(base, labels, single, tmp_path):
    """Two steps of two processes with batches of 4: the last update of an epoch has an uneven rest."""
    accumulated = trained(tmp_path, 2, *training(base, labels, batch_size=4, gradient_accumulation=2))
    assert_same_training(single, accumulated)


@pytest.mark.slow
def test_killed_processes_continue(base, labels, tmp_path):
    # Every step is logged; the checkpoints lie within epochs.
    arguments = training(base, labels, batch_size=8, num_epochs=14, num_evaluations=12)
    whole = trained(tmp_path / "whole", 2, *arguments)
    killed = tmp_path / "killed"
    with launched(killed, 2, *arguments) as launcher:
        deadline = time.monotonic() + 120
        while len(list((killed / "runs/run/trainer").glob("checkpoint-*/trainer_state.json"))) < 2:
            assert launcher.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        for child in psutil.Process(launcher.pid).children(recursive=True):
            child.send_signal(signal.SIGKILL)
    assert not (killed / "checkpoints/run").exists()
    resumed = trained(killed, 2, *arguments, "--resume")
    assert all(torch.equal(whole[1][name], tensor) for name, tensor in resumed[1].items())
    assert_same_training(whole, resumed)


@pytest.mark.slow
def test_another_number_of_processes_is_no_continuation(base, labels, tmp_path):
    trained(tmp_path, 1, *training(base, labels))
    with launched(tmp_path, 2, *training(base, labels), "--resume") as process:
        assert process.wait(timeout=120) != 0
    log = (tmp_path / "log").read_text()
    assert log.count("--num_processes was 1, now 2") == 1


def test_the_least_of_every_number_is_allowed():
    least = dict.fromkeys(("num_epochs", "batch_size", "gradient_accumulation", "num_windows", "warmup_steps"), 1)
    least |= dict.fromkeys(("router_hidden_size", "num_evaluations", "eval_examples"), 1)
    arguments = TrainArguments(run_name="r", weight_decay=0, focal_gamma=0, class_beta=0, **least)
    assert arguments.problems() == [] and not arguments.resume
    assert not TrainArguments(run_name="r", seed=2**32 - 1).problems()
    assert TrainArguments(run_name="r", seed=2**32).problems()


def test_a_device_for_one_process_is_refused(monkeypatch):
    assert not TrainArguments(run_name="r", device="cpu").problems()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not TrainArguments(run_name="r", device="cpu").problems()
    assert "is for one process" in TrainArguments(run_name="r", device="meta").problems()[0]


def benchmark(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["router_training.py", *map(str, arguments)])
    router_training.main()


def test_the_benchmark_reports(base, labels, tmp_path, monkeypatch):
    listed = ["--model", base, "--labels", labels, "--epochs", 2, "--examples", 50, "--device", "cpu"]
    benchmark(monkeypatch, *listed, "--json", tmp_path / "result.json")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["epochs"] == result["live_epochs"] == 2 and result["examples"] == 50
    assert result["ratio"] == pytest.approx(result["live_seconds"] / result["cached_seconds"])
    assert result["ratio_with_pass"] == pytest.approx(result["live_seconds"] / result["cached_with_pass_seconds"])
    assert 0 < result["feature_pass_seconds"] < result["cached_with_pass_seconds"]
    assert 0 < result["storing_seconds"] < result["cached_seconds"] and not (labels / "features").exists()
    assert 0 <= result["max_loss_difference"] < 1e-4 and result["losses_compared"] > 6
    assert result["max_loss_difference_of_all_epochs"] >= result["max_loss_difference"]
    assert {"model", "hardware", "date", "versions", "git_commit"} <= result.keys()


def test_the_benchmark_gives_no_ratio_for_other_losses(base, labels, tmp_path, monkeypatch):
    real = features._shard

    def turned(model, part, *others):
        return real(model, part[::-1], *others)

    monkeypatch.setattr(features, "_shard", turned)
    listed = ["--model", base, "--labels", labels, "--epochs", 2, "--examples", 50, "--device", "cpu"]
    with pytest.raises(UserError, match="there is no ratio to report"):
        benchmark(monkeypatch, *listed, "--json", tmp_path / "result.json")
    assert not (tmp_path / "result.json").exists()


def test_losses_of_later_epochs_may_drift_and_half_precision_is_blamed_where_it_is_used():
    def run(**losses):
        return router_training.Run({(int(step[1:]), "loss"): value for step, value in losses.items()}, 1.0, 1.0, 1.0)

    live = run(s1=1.0, s8=0.5, s90=0.2)
    drifted = run(s1=1.0 + 1e-6, s8=0.5, s90=0.2 + 6e-4)
    compared, worst, later = router_training.differences(drifted, live, 8, False)
    assert compared == 2 and worst == pytest.approx(1e-6, rel=0.01) and later == pytest.approx(6e-4)
    with pytest.raises(UserError, match="3 losses .* up to step 90 differ by up to 0.0006") as told:
        router_training.differences(drifted, live, 90, False)
    assert "half" not in str(told.value)
    with pytest.raises(UserError, match="half precision causes this"):
        router_training.differences(drifted, live, 90, True)


def test_live_training_may_stop_early(base, labels, tmp_path, monkeypatch):
    """Its schedule stays that of all epochs, so the losses of those it runs are the same."""
    listed = ["--model", base, "--labels", labels, "--epochs", 4, "--live_epochs", 2, "--examples", 50]
    benchmark(monkeypatch, *listed, "--device", "cpu", "--json", tmp_path / "result.json")
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["epochs"], result["live_epochs"]) == (4, 2) and result["max_loss_difference"] < 1e-4
    with pytest.raises(UserError, match="--live_epochs 5 must be at most --epochs 4"):
        benchmark(monkeypatch, *listed[:-4], "--live_epochs", 5)
