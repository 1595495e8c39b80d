"""FSDP2 by accelerate's configuration: two processes share the frozen base out, and train what they train without."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from combinations import TRAINED
from conftest import save_tiny_base
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from routing.common.cli import parse
from routing.common.errors import UserError
from routing.labels.arguments import DataGenerationArguments
from routing.training.end_to_end.arguments import EndToEndArguments

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    "--sequence_length=24", "--prompt_tokens=4", "--kept_layers=2", "--batch_size=2", "--max_steps=6",
    "--num_evaluations=3", "--learning_rate=1e-2", "--lora_rank=4", "--router_sizes=8", "--router_bias_init=0.2",
    "--validation_passages=5", "--lora_dropout=0",
)  # fmt: skip
FSDP = {
    "fsdp_version": 2, "fsdp_reshard_after_forward": True, "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "fsdp_cpu_ram_efficient_loading": True, "fsdp_state_dict_type": "FULL_STATE_DICT",
}  # fmt: skip
LAUNCH = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "num_processes": 2, "mixed_precision": "no"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    save_tiny_base(folder / "base", 5, **sizes)
    text = [f"passage {n} tells of {n * n} things and more" * 4 for n in range(60)]
    (folder / "corpus.txt").write_text("\n".join(text))
    for name, offloads in {"fsdp": False, "offload": True}.items():
        own = {"distributed_type": "FSDP", "fsdp_config": FSDP | {"fsdp_offload_params": offloads}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(LAUNCH | own))
    (folder / "plain.yaml").write_text(yaml.safe_dump(LAUNCH | {"distributed_type": "MULTI_GPU"}))
    return folder


def train(place: Path, name: str, config: str, *more: str) -> str:
    """What a run says; by no configuration it is one process."""
    launch = [] if not config else ["-m", "accelerate.commands.launch", "--config_file", str(place / config)]
    folders = [f"--output_dir={place}/checkpoints", f"--work_dir={place}/runs", f"--corpus={place}/corpus.txt"]
    own = [f"--model_id={place}/base", f"--run_name={name}", *folders, *SETTINGS, *more]
    command = [sys.executable, *launch, str(ROOT / "train.py"), *own]
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def weights(place: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(place / "checkpoints" / name / "model.safetensors")


def near(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], most: float) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert (tensor - other[name]).abs().max() <= most, name


SHARED = {name: [f"--objective={name.split(',')[0]}"] for name, shared in TRAINED.items() if shared == "yes"}
SHARED["gumbel, inputs, frozen"] += ["--router=prefix", "--trainable=router"]


@pytest.mark.slow
@pytest.mark.parametrize("what", SHARED)
def test_a_base_that_is_shared_out_gives_the_same_checkpoint(place, what):
    """As two processes that each hold all of it; validation with routers deciding included, whose routes differ from
    process to process, and of whose batches one process has one less."""
    more, name = [*SHARED[what], "--gradient_accumulation=1"], what.replace(", ", "-")
    said = train(place, f"{name}-shared", "offload.yaml" if what == "static" else "fsdp.yaml", *more)
    told = re.search(r"holds ([\d,]+) of ([\d,]+) weights", said).groups()
    own, whole = (int(number.replace(",", "")) for number in told)
    assert own < 0.6 * whole
    train(place, f"{name}-plain", "plain.yaml", *more)
    # Gates have gradients from many layers, which are added up in another order.
    near(weights(place, f"{name}-shared"), weights(place, f"{name}-plain"), 5e-4 if "gumbel" in what else 1e-6)
    losses = []
    for kind in ("shared", "plain"):
        rows = (place / "runs" / f"{name}-{kind}" / "metrics.csv").read_text().splitlines()
        losses.append([float(row.split(",")[rows[0].split(",").index("validation_loss")]) for row in rows[1:]])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4) and len(losses[0]) == 3
    trained, base = weights(place, f"{name}-shared"), load_file(place / "base" / "model.safetensors")
    learned = max((trained[part] - tensor).abs().max() for part, tensor in base.items())
    assert learned == 0 if "frozen" in what else learned > 0.01
    folders = [place / "checkpoints" / f"{name}-{kind}" for kind in ("shared", "plain")]
    assert len({frozenset(path.name for path in folder.iterdir()) for folder in folders}) == 1
    AutoModelForCausalLM.from_pretrained(folders[0], trust_remote_code=True)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(place):
    """From its state after four updates, in one process that accumulates twice as much, to the same weights; and from
    one process on two."""
    for name, first, then in (("two-one", ("fsdp.yaml", 1), ("", 2)), ("one-two", ("", 2), ("fsdp.yaml", 1))):
        train(place, name, first[0], "--objective=dense", f"--gradient_accumulation={first[1]}")
        whole = weights(place, name)
        shutil.rmtree(place / "runs" / name / "trainer" / "checkpoint-6")
        train(place, name, then[0], "--objective=dense", f"--gradient_accumulation={then[1]}", "--resume")
        near(weights(place, name), whole, 1e-5)
    near(weights(place, "two-one"), weights(place, "one-two"), 1e-5)


def problems(kind: type, words: list[str]) -> str:
    with pytest.raises(UserError) as caught:
        parse(kind, words)
    return str(caught.value)


def test_what_fsdp_cannot_be_is_refused_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert "asks for FSDP, which trainings of LoRA and routers" in problems(DataGenerationArguments, [])
    for objective in ("reinforce", "stochastic_depth", "random"):
        assert "asks for FSDP" in problems(EndToEndArguments, [f"--objective={objective}"])
    assert "asks for FSDP" not in problems(EndToEndArguments, ["--objective=gumbel"])
    assert "is not shared out" in problems(EndToEndArguments, ["--load_in_4bit"])
    monkeypatch.setenv("FSDP_ACTIVATION_CHECKPOINTING", "true")
    monkeypatch.setenv("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP")
    monkeypatch.setenv("FSDP_VERSION", "1")
    found = problems(EndToEndArguments, [])
    for named in ("set fsdp_version: 2", "fsdp_activation_checkpointing: false", "asks for SIZE_BASED_WRAP"):
        assert named in found
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert "asks for DeepSpeed, which no stage takes" in problems(DataGenerationArguments, [])
