"""The pictures of the pages are what `make figures` draws from the committed results."""

from __future__ import annotations

import re
from pathlib import Path

import figures
import numpy as np
import pytest
from matplotlib.image import imread

ROOT = Path(__file__).resolve().parents[2]


def same(name: str, output: Path) -> None:
    drawn, committed = (imread(path) for path in (figures.draw(name, output), figures.RESULTS / name))
    assert drawn.shape == committed.shape
    # Other versions of matplotlib and its fonts move letters by parts of a pixel.
    assert float(np.abs(drawn - committed).mean()) < 0.01, name


def test_every_picture_of_a_page_can_be_drawn_or_says_why_not():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    shown = {path for page in pages for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8"))}
    names = {path.partition("benchmarks/results/")[2] for path in shown}
    assert names and names <= {*figures.FIGURES, *figures.WITHOUT_DATA}
    for name, (data, _) in figures.FIGURES.items():
        assert (figures.RESULTS / name).is_file() and (figures.RESULTS / data).is_file(), name
    assert all((figures.RESULTS / name).is_file() for name in figures.WITHOUT_DATA)


def test_a_picture_is_drawn_from_its_data(tmp_path):
    same("demo_frontier.png", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in figures.FIGURES if name != "demo_frontier.png"])
def test_all_pictures_are_drawn_from_their_data(name, tmp_path):
    same(name, tmp_path)
