"""The pages: files.md is current, README is short, links lead somewhere, commands exist. Needs no torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from routing.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE_ROOMS = (
    "*.py",
    "routing/**/*",
    "train_models/*",
    "data_models/*",
    "eval_configs/*",
    "examples/*",
    "benchmarks/**/*",
)
USERS_OWN = ("GRID.yaml", "ARGUMENTS.yaml")
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def headings(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub and mkdocs make them."""
    found = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in found}


def test_the_page_of_files_is_current():
    run = subprocess.run([sys.executable, "docs/make_files.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_one_version_is_told_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version and citation["license"] == "Apache-2.0"
    assert all({"type", "title", "authors", "url"} <= set(reference) for reference in citation["references"])
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\d+\.\d+\.\d+)", changes, re.MULTILINE)[1] == version


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 220


def test_docstrings_cite_files_that_readers_have():
    code = [path for room in CODE_ROOMS for path in ROOT.glob(room) if path.suffix == ".py"]
    there = {path.name for path in [*code, *PAGES, *ROOT.rglob("train_models/*.md"), *ROOT.rglob("data_models/*.md")]}
    there |= {*USERS_OWN} | {
        path.name for folder in ("experiments", "eval_configs") for path in (ROOT / folder).iterdir()
    }
    missing = []
    for path in code:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                cited = re.findall(r"[\w./-]*?([\w-]+\.(?:md|py|yaml))\b", ast.get_docstring(node) or "")
                missing += [(name_of(path), name) for name in cited if name not in there]
    assert len(code) > 200 and not missing


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_relative_links_lead_to_files_and_headings(path):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        page = (path.parent / place).resolve() if place else path
        if not page.exists() or (anchor and anchor not in headings(page.read_text(encoding="utf-8"))):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_that_pages_name_exist(path):
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:python -m routing|\bdlr) ([a-z]\w*)", "\n".join(CODE.findall(text))))
    assert named <= set(COMMANDS)
