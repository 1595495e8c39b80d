"""The toolkit installed from its wheel and its sdist, used from another directory, as `pip install` leaves it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import save_tiny_base

ROOT = Path(__file__).resolve().parents[2]
# A stage of `dlr demo` with other numbers; what is given last counts.
FIRST_STAGE = """
import sys
from routing.commands.work import demo
demo.ADAPTERS += ("--model", sys.argv[1], "--num_samples", "128", "--adapter_size", "4", "--score_samples", "1")
demo.ADAPTERS += ("--dataset", "openbookqa")  # Of four choices a random model picks some right ones.
demo.trained(1, "adapters", "adapters", None, "--objective", "adapters", *demo.ADAPTERS)
"""


def test_every_package_is_in_the_wheel():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    rooms = [path.parent for name in ("routing", "train_models", "data_models") for path in (ROOT / name).rglob("*.py")]
    assert {path.relative_to(ROOT).as_posix().replace("/", ".") for path in rooms} | {"eval_configs"} == set(listed)


def run(*words: str, cwd: Path, site: Path | None = None) -> str:
    """What a command prints, run elsewhere, with what is installed in `site` alone of this project."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {} if site is None else {"PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 2), done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with sdist and wheel, the wheel made of the sdist; and `site`, where it is installed."""
    place = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if not name.startswith(("benchmarks/", "tests/", "docs/")) and (ROOT / name).is_file():
            target = place / "tree" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    sdist = "import setuptools.build_meta as b; print(b.build_sdist('..'))"
    subprocess.run([sys.executable, "-c", sdist], cwd=place / "tree", check=True, capture_output=True)
    (archive,) = place.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(place), str(archive)]
    subprocess.run(wheel, cwd=place, check=True, capture_output=True)
    (path,) = place.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(place / "site"), str(path)], cwd=place, check=True)
    return place


@pytest.mark.slow
def test_wheel_and_sdist_hold_what_is_needed(built):
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    names = set(zipfile.ZipFile(wheel).namelist())
    for wanted in ("train.py", "data_generation.py", "evaluation.py", "eval_configs/routed_arithmetic.yaml"):
        assert wanted in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "docs/"))]
    metadata = next(name for name in names if name.endswith("METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        assert not line or line.startswith("#") or f"Requires-Dist: {line}" in text.replace("lm-eval", "lm_eval")
    assert "Provides-Extra: app" in text
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("/requirements.txt") for name in archive.getnames())


@pytest.mark.slow
def test_commands_run_from_another_directory(built, tmp_path):
    site, elsewhere = built / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert str(site) in run("-c", "import routing; print(routing.__file__)", cwd=elsewhere, site=site)
    assert "usage: dlr COMMAND" in run(str(site / "bin" / "dlr"), "--help", cwd=elsewhere, site=site)
    assert "`make demo`" in run("-m", "routing", "demo", "--help", cwd=elsewhere, site=site)
    told = run("-m", "routing", "evaluate", "nowhere", "--tasks", "routed_nosuch", cwd=elsewhere, site=site)
    assert "Tasks of this project: " in told and "routed_arithmetic" in told
    base = save_tiny_base(tmp_path / "base", 3, hidden_size=32, intermediate_size=48, num_attention_heads=4)
    out = run("-c", FIRST_STAGE, str(base), cwd=elsewhere, site=site)
    assert "[1/8] adapters" in out and (elsewhere / "demo" / "adapters" / "adapters.json").is_file(), out
    assert sorted(path.name for path in elsewhere.iterdir()) == ["demo"]
