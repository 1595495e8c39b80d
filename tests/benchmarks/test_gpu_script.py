"""benchmarks/gpu.py: every section at tiny shapes on the processor, so that the script works when a card is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
import gpu  # noqa: E402


def run(*arguments, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=400)


def results(folder: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*/*.json")}


@pytest.mark.slow
def test_every_section_runs_at_tiny_shapes(tmp_path):
    done = run("--smoke", "--output", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = results(tmp_path)
    assert [*sorted(found)] == sorted(gpu.SECTIONS)
    for name, result in found.items():
        assert result["status"] == "done" and result["rows"], name
        assert result["card"] and result["versions"]["torch"] and result["date"] and result["command"]
    checks = [row for result in found.values() for row in result["rows"] if "check" in row]
    assert len(checks) >= 20 and all(row["passed"] for row in checks)
    written = run("--page", "--output", tmp_path)
    assert "no results yet" in Path(written.stdout.strip()).read_text(), "tiny shapes are no results"


def plant(folder: Path, section: str, body: str) -> dict[str, str]:
    """Environment in which a section is another module: Python reads sitecustomize.py from its path at its start."""
    code = f"def run(job):\n    job.row(kept=1)\n    {body}\n"
    lines = ["import sys, types", f"module = types.ModuleType('gpu_sections.{section}')"]
    lines += [f"exec({code!r}, module.__dict__)", f"sys.modules['gpu_sections.{section}'] = module"]
    (folder / "sitecustomize.py").write_text("\n".join(lines))
    return {"PYTHONPATH": str(folder)}


@pytest.mark.slow
def test_a_section_that_fails_says_why_and_the_next_one_runs(tmp_path):
    environment = plant(tmp_path, "tokens", "raise RuntimeError('planted')")
    done = run("--smoke", "--sections", "tokens,quantized", "--output", tmp_path / "out", **environment)
    found = results(tmp_path / "out")
    assert done.returncode != 0 and "not done: tokens" in done.stderr
    assert found["tokens"]["status"] == "failed: RuntimeError: planted" and found["tokens"]["rows"] == [{"kept": 1}]
    assert any("planted" in line for line in found["tokens"]["error"]) and found["quantized"]["status"] == "done"


@pytest.mark.slow
def test_a_section_that_is_cut_off_keeps_its_rows(tmp_path):
    environment = plant(tmp_path, "tokens", "import time; time.sleep(600)")
    done = run("--smoke", "--sections", "tokens", "--limit", "6", "--output", tmp_path / "out", **environment)
    found = results(tmp_path / "out")["tokens"]
    assert done.returncode != 0 and found["status"] == "cut off after 6 s" and found["rows"] == [{"kept": 1}]


def test_wrong_sections_and_missing_cards_are_refused():
    assert "allowed are exact" in run("--sections", "exact,speed").stderr
    if not gpu_is_there():
        assert "make gpu-smoke" in run("--sections", "exact").stderr


def gpu_is_there() -> bool:
    import torch

    return torch.cuda.is_available()


def test_missing_packages_are_named_in_one_line(monkeypatch):
    assert gpu.missing_packages() is None
    monkeypatch.setattr(gpu, "installed", lambda name: {"transformers": "5.17.0", "rich": None}.get(name, "1"))
    said = gpu.missing_packages()
    assert "rich is not installed" in said and f"transformers is 5.17.0, needed is {gpu.pinned('transformers')}" in said
    assert "\n" not in said and "make gpu-wheels" in said


def test_a_folder_without_wheels_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="holds no wheels"):
        gpu.install_wheels(tmp_path, tmp_path / "there")


def test_page_shows_status_expectation_and_rows(tmp_path):
    from gpu_sections.page import write_page

    about = {
        "card": "NVIDIA H100",
        "driver": "1",
        "versions": {"torch": "2"},
        "date": "d",
        "commit": "c",
        "command": "x",
    }
    result = {"section": "exact", "status": "failed: a", "seconds": 3.0, "smoke": False, "error": ["one\n", "two\n"]}
    rows = [{"check": "identity", "difference": 0.5, "passed": False, "attention": "a|b"}]
    (tmp_path / "nvidia-h100").mkdir()
    (tmp_path / "nvidia-h100" / "exact.json").write_text(json.dumps(result | about | {"rows": rows}))
    text = write_page(tmp_path).read_text()
    assert "## NVIDIA H100" in text and "Status: failed: a" in text and "two" in text and "Expected before" in text
    assert "| identity | 0.5 | no | a\\|b |" in text and "no results" not in text
