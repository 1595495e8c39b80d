"""Exports of each kind, and a checkpoint, in an environment that has transformers and PEFT but not this project."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from conftest import QWEN3
from test_export import IDS, export, menu_checkpoint, save_base
from transformers import AutoModelForCausalLM

from routing.commands.train import main as train

pytestmark = pytest.mark.slow
NEW = 5  # tokens
# What a user elsewhere runs: {kind of loading, folder} -> generated tokens.
PROGRAM = f"""
import importlib.util, json, sys
for name in ("routing", "train_models", "data_models"):
    assert importlib.util.find_spec(name) is None, name
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM
ids, found = torch.tensor({IDS[:1].tolist()}), {{}}
for name, (kind, folder) in json.loads(sys.argv[1]).items():
    if kind == "peft":
        model = AutoPeftModelForCausalLM.from_pretrained(folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=kind == "remote")
    output = model.eval().generate(input_ids=ids, max_new_tokens={NEW}, do_sample=False)
    found[name] = output[0, ids.shape[1]:].tolist()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """An interpreter that finds the packages of this environment, and not what is installed from a working tree."""
    place = tmp_path_factory.mktemp("elsewhere")
    venv.create(place, symlinks=True)
    (packages,) = place.glob("lib/python*/site-packages")
    # Folders that a .pth file names are searched, but their own .pth files, which lead to working trees, are not read.
    (packages / "packages.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return place / "bin" / "python"


def routed_tokens(model, route) -> list[int]:
    model.config.fixed_route, model.config.is_static_routing = route, False
    output = model.generate(IDS[:1], max_new_tokens=NEW, do_sample=False)
    return output[0, IDS.shape[1] :].tolist()


def test_exports_of_each_kind_generate_the_routed_models_tokens(tmp_path, python, monkeypatch):
    base = save_base(tmp_path / QWEN3.name, QWEN3)  # named, as `checkpoint` asks
    corpus = tmp_path / "corpus.jsonl"
    texts = [f"The sum of {at} and {at + 1} is {2 * at + 1}. " * 12 for at in range(40)]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = [
        "train.py", "--objective", "static", "--model_id", base, "--path", "0:2,3,4", "--corpus", corpus, "--run_name",
        "healed", "--sequence_length", 64, "--prompt_tokens", 16, "--max_steps", 3, "--learning_rate", 1e-2,
        "--output_dir", tmp_path, "--work_dir", tmp_path / "runs",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    train()
    menu = menu_checkpoint(tmp_path / "menu", base)
    places, expected = {}, {}

    def leaves(name, kind, folder, model, route) -> None:
        places[name], expected[name] = (kind, str(folder)), routed_tokens(model, route)

    stock = QWEN3.routed.from_pretrained(base, router="none").eval()
    folder = export(base, "--path", "0:2,4", "--output", tmp_path / "cut")
    leaves("a path", "stock", folder, stock, [1, 1, 0, 0, 1])
    healed = AutoModelForCausalLM.from_pretrained(tmp_path / "healed", trust_remote_code=True).eval()
    folder = export(tmp_path / "healed", "--output", tmp_path / "trimmed")
    leaves("a healed path", "stock", folder, healed, [1, 1, 0, 1, 1])
    assert expected["a healed path"] != routed_tokens(stock, [1, 1, 0, 1, 1])  # healing changed it
    leaves("a checkpoint", "remote", tmp_path / "healed", healed, [1, 1, 0, 1, 1])
    folder = export(menu, "--menu", "--output", tmp_path / "paths")
    for row in json.loads((folder / "menu.json").read_text())["paths"]:
        leaves(f"menu {row['path']}", "stock", folder / row["folder"], stock, row["route"])
    folder = export(base, "--format", "peft", "--path", "0:2,1:3,4", "--output", tmp_path / "repeats")
    leaves("repeated layers", "peft", folder, stock, [1, 2, 1, 0, 1])
    run = subprocess.run(
        [python, "-I", "-c", PROGRAM, json.dumps(places)], cwd=tmp_path, capture_output=True, text=True
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == expected
    assert len({tuple(tokens) for tokens in expected.values()}) > 3
