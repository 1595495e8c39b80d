"""Arguments are read and checked before anything is imported that takes seconds: torch, transformers and their like."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from routing.__main__ import COMMANDS
from routing.training.registry import OBJECTIVES

ROOT = Path(__file__).resolve().parents[2]
SLOW = ("torch", "transformers", "datasets", "lm_eval", "accelerate", "peft", "scipy", "matplotlib", "pandas", "gradio")
# Runs command lines in one process; an import of what is slow ends it with the way there.
PROBE = """
import contextlib, io, json, sys
from importlib.machinery import PathFinder

class Refuse:  # Where a package is may be asked.
    def find_spec(self, name, path=None, target=None):
        spec = PathFinder.find_spec(name, path) if name in SLOW else None
        if spec is not None:
            spec.loader = self
        return spec

    def create_module(self, spec):
        raise RuntimeError(f"{words}: {spec.name} is imported")

    def exec_module(self, module):
        raise NotImplementedError

SLOW, lines = json.load(sys.stdin)
sys.meta_path.insert(0, Refuse())
from routing.__main__ import named
from routing.common.errors import UserError

told = []
for words in lines:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            named(words)
        except UserError as error:
            out.write(f"error: {error}")
        except SystemExit:
            pass
    told.append(out.getvalue())
print(json.dumps(told))
"""
NO = "/no/such/place"
HEAL = ("--objective", "adapters", "--heal_epochs", "1", "--heal_dataset")


def told(lines: list[list[str]]) -> list[str]:
    """What each command line says, all of them in one process that may import nothing slow."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], input=json.dumps([SLOW, lines]), capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_imports_nothing_slow():
    lines = [[name, "--help"] for name in COMMANDS]
    lines += [["train", "--objective", name, "--help"] for name in OBJECTIVES]
    lines += [["labels", name, "--help"] for name in ("export", "import", "records", "card")]
    for words, text in zip(lines, told(lines), strict=True):
        assert "usage: " in text and "--" in text, words


# What is wrong in every way that arguments can be wrong, and the words by which it is refused.
WRONG = [
    *(([name, "--nosuch"], "unknown arguments: --nosuch") for name in ("generate", "train", "evaluate")),
    *((["train", "--objective", name, "--seed", "x"], "invalid int value: 'x'") for name in OBJECTIVES),
    *((["train", "--objective", name, "--run_name", "a/b"], "must be a plain folder name") for name in OBJECTIVES),
    *(
        (["train", "--objective", name, "--run_name", "r", "--model", NO], f"the model '{NO}' cannot be loaded")
        for name in OBJECTIVES
    ),
    (["train", "--objective", "nosuch"], "--objective 'nosuch' is unknown"),
    (["train", "--run_name", "r", "--features", "none"], "invalid choice: 'none'"),
    (["train", "--run_name", "r", "--device", "gpu"], "--device 'gpu' is no torch device"),
    (["train", "--run_name", "r", "--data", NO], f"--data: {NO} holds no labels"),
    (["train", "--run_name", "r", "--adapters", NO], f"{NO}/config.json cannot be read"),
    (["train", "--objective", "orpo", "--run_name", "r", "--encoder", NO], f"--encoder '{NO}' cannot be loaded"),
    (["train", "--objective", "static", "--run_name", "r", "--path", "1-2"], "--path: "),
    (["train", "--objective", "gumbel", "--run_name", "r", "--corpus", NO], "--corpus"),
    (["train", "--objective", "adapters", "--run_name", "r", "--dataset", "nosuch"], "--dataset 'nosuch' is unknown"),
    (["train", "--objective", "lm", "--run_name", "r", "--config", "nosuch"], "--config 'nosuch'"),
    (["train", "no/such.yaml"], "no/such.yaml"),
    (["train", "--objective", "gumbel", "--corpus", "{tmp}/latin.txt"], "latin.txt, line 2: it is no UTF-8"),
    (["train", "--objective", "lm", "--corpus", "{tmp}/latin.txt"], "latin.txt, line 2: it is no UTF-8"),
    (["train", *HEAL, "{tmp}/latin.txt"], "latin.txt, line 2: it is no UTF-8"),
    (["train", *HEAL, "{tmp}/nan.jsonl"], "nan.jsonl, line 2: NaN is no number"),
    (["train", "--objective", "adapters", "--dataset", "{tmp}/nan.jsonl"], "nan.jsonl, line 2: NaN is no number"),
    (["generate", "--dataset", "arithmetic,{tmp}/nan.jsonl"], "nan.jsonl, line 2: NaN is no number"),
    (["generate", "--dataset", "{tmp}/empty.jsonl"], "empty.jsonl holds no question"),
    (["calibrate", NO, "--target_layers", "3", "--dataset", "{tmp}/nan.jsonl"], "nan.jsonl, line 2: NaN is no number"),
    (["generate", "--dataset", "nosuch"], "--dataset 'nosuch' is unknown"),
    (["generate", "--dataset", "arithmetic", "--budget", "0"], "--budget 0.0 must be at least 1"),
    (["generate", "--dataset", "arithmetic", "--model", "no/such"], "the model 'no/such' cannot be loaded"),
    (["generate", "--search", "menu", "--menu", "nosuch:1"], "--menu"),
    (["generate", "--menu", "influence:2"], "--menu influence:2 is for --search menu, not mcts"),
    (["generate", "--chat_template_args", "{"], "is no JSON"),
    (["evaluate", NO], f"--checkpoint: {NO}/config.json cannot be read"),
    (["evaluate", NO, "--controls", "nosuch"], "--controls nosuch: unknown"),
    (["evaluate", NO, "--tasks", "routed_nosuch"], "unknown task routed_nosuch. Tasks of this project: "),
    (["labels", "export", "--format", "polar", NO, "{tmp}/out"], f"{NO} holds no labels"),
    (["labels", "records", NO, "{tmp}/out.jsonl"], f"{NO} holds no labels"),
    (["labels", "import", "--format", "polar", NO, "{tmp}/out", "--model", NO], f"{NO} does not exist"),
    (["labels", "card", NO], f"{NO} holds no labels"),
    (["headroom", NO], f"{NO} holds no labels"),
    (["headroom", NO, "--folds", "1", "--costs", "x"], "--folds 1 must be at least 2"),
    (["sweep", "no/such.yaml", "--output", "{tmp}/out"], "no/such.yaml"),
    (["sweep", "{tmp}/grid.yaml", "--output", "{tmp}/out"], "run gumbel-s0: --num_epochs -1 must be at least 1"),
    (["study", "no/such.yaml", "--output", "{tmp}/out"], "no/such.yaml"),
    (["study", "{tmp}/grid.yaml", "--output", "{tmp}/out"], "'arguments' is unknown; allowed are models, tasks"),
    (["recommend", NO, "--max_loss", "0.1"], f"{NO} cannot be read"),
    (["recommend", NO, "--max_loss", "2"], "--max_loss 2.0 must lie between 0 and 1"),
    (["adapters", NO, "--output", "{tmp}/out"], f"{NO}/config.json cannot be read"),
    (["calibrate", NO, "--target_layers", "3"], f"{NO}/config.json cannot be read"),
    (["calibrate", NO, "--max_loss", "2"], "--max_loss 2.0 must lie between 0 and 1"),
    (["frontier", NO], f"{NO}/config.json cannot be read"),
    (["text_evaluation", NO, "--skip", "2"], "--skip 2.0 must lie between 0 and 1"),
    (["prune", "--output", "{tmp}/out", "--dataset", "nosuch"], "--dataset 'nosuch' is unknown"),
    (["prune", "--output", "{tmp}/out", "--model", NO], f"the model '{NO}' cannot be loaded"),
    (["compare_pruning", "--adapters", NO, "--output", "{tmp}/out"], f"{NO}/config.json cannot be read"),
    (["export", NO, "--path", "0:2", "--output", "{tmp}/out"], f"the model '{NO}' cannot be loaded"),
    (["export", "{tmp}/base", "--path", "0:9", "--output", "{tmp}/out"], "--path: "),
    (["export", "{tmp}/base", "--output", "{tmp}/out"], "--path is missing"),
    (["report", NO, "--output", "{tmp}/out"], NO),
    (["analysis", NO, "--output", "{tmp}/out"], f"{NO}/config.json cannot be read"),
    (["show", NO, "--text", "a"], f"{NO}/config.json cannot be read"),
    (["show", NO, "--text", "a", "--budget", "1"], f"{NO}/config.json cannot be read"),
    (["app", NO, "--port", "0"], "--port 0 must lie between 1 and 65535"),
    (["card", NO], f"{NO}/config.json cannot be read"),
    (["demo", "--nosuch"], "unrecognized arguments: --nosuch"),
    (["fetch", "--nosuch"], "unrecognized arguments: --nosuch"),
]


def test_what_is_wrong_is_told_before_anything_slow_is_imported(tmp_path):
    (tmp_path / "grid.yaml").write_text("arguments: {num_epochs: -1}\nruns: [{objective: gumbel, name: gumbel}]\n")
    rows = '{"question": "1 + 1 =", "answer": 2}', '{"question": "0 / 0 =", "answer": NaN}'
    (tmp_path / "nan.jsonl").write_text("\n".join(rows))
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "latin.txt").write_bytes(b"fine\n" + "café\n".encode("latin-1"))
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 4}))
    lines = [[word.replace("{tmp}", str(tmp_path)) for word in words] for words, _ in WRONG]
    missing = [(words, text) for (words, wanted), text in zip(WRONG, told(lines), strict=True) if wanted not in text]
    assert not missing
    assert {words[0] for words, _ in WRONG} == set(COMMANDS)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "base", "empty.jsonl", "grid.yaml", "latin.txt", "nan.jsonl",
    ]  # fmt: skip


@pytest.mark.parametrize("script", ("data_generation.py", "train.py", "evaluation.py"))
def test_a_stage_is_read_by_its_command(script):
    """So that what holds for the commands holds for the scripts."""
    text = (ROOT / script).read_text(encoding="utf-8")
    command = {"data_generation.py": "generate", "train.py": "train", "evaluation.py": "evaluate"}[script]
    assert f"from routing.commands.{command} import main" in text
