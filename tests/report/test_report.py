"""Evaluations as a table on the terminal, as pictures and as an HTML page."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from fake_evaluation import bare_result, evaluation_result
from matplotlib.image import imread
from rich.console import Console

from routing.common.errors import UserError
from routing.report.html import write_html
from routing.report.plots import plot_accuracy, plot_frontier, plot_layer_rates, plot_layers_histogram, plot_routes
from routing.report.words import (
    comparisons,
    print_table,
    questions,
    sentence,
    verdict,
)

# What evaluation_result() holds, as it is to be read; a row each.
BASE = ("0.625", "0.306", "0.863", "4.00", "1.23", "11.2")
ROUTED = ("0.375", "0.137", "0.694", "−0.250", "0.625", "3.50", "37.5%", "1.11", "12.7")
STATIC = ("0.250", "0.071", "0.591", "−0.375", "0.453", "3.00", "0.99", "10.5")
RANDOM = ("0.125", "0.022", "0.471", "−0.500", "<0.001", "3.50", "1.01", "10.9")


def printed(results: list[dict], width: int = 120) -> str:
    console = Console(width=width, file=io.StringIO())
    print_table(results, console)
    return console.file.getvalue()


def row_of(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(f"{name} "))


def test_table():
    text = printed([evaluation_result("routed_piqa")])
    assert "routed_piqa, n 8" in text
    rows = {"base": BASE, "routed": ROUTED, "static, 1 skipped": STATIC, "random, seed 0": RANDOM}
    for name, cells in rows.items():
        assert all(cell in row_of(text, name) for cell in cells)
    assert "layers skipped 18.8%, run once 75.0%, repeated 6.2%" in text
    assert "routed against base: −0.250, gained 1 and lost 3 answers, p = 0.625: no measurable difference" in text


def test_table_fits_the_terminal():
    """Nothing is cut off, and only the names of tasks take several lines."""
    text = printed([evaluation_result("mmlu_high_school_european_history"), bare_result("another")])
    assert max(map(len, text.splitlines())) <= 120 and "…" not in text
    assert all(cell in row_of(text, "random, seed 0") for cell in RANDOM)


def test_table_has_the_paired_difference_of_every_task():
    other = evaluation_result("routed_siqa")
    other["paired"] = {"difference": 0.25, "gained": 77, "lost": 75, "p": 0.04}
    text = printed([evaluation_result("routed_piqa"), other])
    assert "gained 1 and lost 3 answers" in text
    assert "+0.250, gained 77 and lost 75 answers, p = 0.040: measurably more accurate" in text


def test_table_without_base_and_controls():
    text = printed([bare_result("alone")])
    assert "alone, n 1" in text and "0.207 – 1.000" in row_of(text, "routed") and "0.0%" in row_of(text, "routed")
    assert (
        not any(line.strip().startswith("base ") for line in text.splitlines())
        and "against" not in text.split("\nalone")[-1]
    )


def test_names_are_no_markup():
    assert "[bold]x[/bold], n 1" in printed([bare_result("[bold]x[/bold]")])


def test_comparisons_are_of_the_routed_model():
    """The results hold controls against the routed model; what they gained, it lost."""
    found = dict(comparisons(evaluation_result("t")))
    assert found["base"] == {"difference": -0.25, "gained": 1, "lost": 3, "p": 0.625}
    assert found["static, 1 skipped"] == {"difference": 0.125, "gained": 2, "lost": 1, "p": 1.0}


@pytest.mark.parametrize(
    ("difference", "p", "said"),
    [
        (0.1, 0.049, "measurably more accurate"),
        (-0.1, 0.049, "measurably less accurate"),
        (0.1, 0.05, "no measurable difference"),
    ],
)
def test_verdicts(difference, p, said):
    assert verdict({"difference": difference, "p": p}) == said


def test_tiny_p_values_are_not_zero():
    paired = {"difference": 0.5, "gained": 40, "lost": 0, "p": 1e-9}
    assert sentence("base", paired) == (
        "routed against base: +0.500, gained 40 and lost 0 answers, p < 0.001: measurably more accurate"
    )


def test_questions_in_words():
    own = evaluation_result("t") | {"limit": 8, "num_fewshot": 5, "apply_chat_template": True}
    assert questions(own) == "8 questions from the start of the task, 8 inputs; 5 solved examples, with chat template"
    assert questions(bare_result("t")).startswith("1 question, 1 input; the task's own number of solved examples")


def test_pictures(tmp_path):
    result = evaluation_result("t")
    points = [
        {"method": m, "layers": 3.0, "accuracy": 0.5, "ci95": [0.4, 0.6], "speedup": 1.1} for m in ("dense", "random")
    ]
    for draw, what in (
        (plot_routes, result["routes"]),
        (plot_layer_rates, result["routes"]),
        (plot_frontier, points),
        (plot_layers_histogram, result),
        (plot_layers_histogram, bare_result("t")),
        (plot_accuracy, result),
        (plot_accuracy, bare_result("t")),
    ):
        path = tmp_path / f"{draw.__name__}.png"
        draw(what, path, "title")
        assert path.read_bytes().startswith(b"\x89PNG")


def colors_of(draw, result) -> set[tuple]:
    file = io.BytesIO()
    draw(result, file, "title")
    pixels = imread(io.BytesIO(file.getvalue()))[..., :3]
    return set(map(tuple, np.unique((pixels.reshape(-1, 3) * 255).round().astype(int), axis=0).tolist()))


def test_accuracy_shows_the_methods_there_are():
    blue, green, orange = (0x1B, 0x6C, 0xA8), (0x4D, 0x92, 0x21), (0xD9, 0x5F, 0x02)
    assert {blue, green, orange} <= colors_of(plot_accuracy, evaluation_result("t"))
    alone = colors_of(plot_accuracy, bare_result("t"))
    assert blue in alone and not {green, orange} & alone


class Page(HTMLParser):
    """Reads a page: texts, links and their targets, pictures; refuses tags that do not match."""

    VOID = ("meta", "img")

    def __init__(self, text: str):
        super().__init__()
        self.open, self.texts, self.links, self.ids, self.pictures, self.tags = [], [], [], [], [], set()
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        if "href" in attributes:
            self.links.append(attributes["href"])
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "img":
            self.pictures.append(attributes["src"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)


def page_of(results: list[dict], tmp_path) -> Page:
    write_html(results, tmp_path / "page.html")
    return Page((tmp_path / "page.html").read_text(encoding="utf-8"))


def test_page(tmp_path):
    page = page_of([evaluation_result("routed_piqa")], tmp_path)
    for text in (*BASE, *ROUTED, *STATIC, *RANDOM):
        assert any(text in part for part in page.texts)
    text = " ".join("".join(page.texts).split())
    for part in ("tiny-model", "checkpoints/run", "a machine, 2 cores", "2026-11-25", "0123abc", "torch 2.13.0"):
        assert part in text
    assert "routed against base: −0.250, gained 1 and lost 3 answers, p = 0.625: no measurable difference" in text
    assert "routed against static, 1 skipped: +0.125, gained 2 and lost 1 answers" in text
    assert len(page.pictures) == 4 and len(set(page.pictures)) == 4
    for picture in page.pictures:
        kind, data = picture.split(",")
        assert kind == "data:image/png;base64"
        assert imread(io.BytesIO(base64.b64decode(data, validate=True))).shape[1] > 500


def test_page_needs_nothing_else(tmp_path):
    page = page_of([evaluation_result("t")], tmp_path)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert all(link.startswith("#") for link in page.links)
    assert "url(" not in (tmp_path / "page.html").read_text(encoding="utf-8").replace("data:image", "")


def test_page_of_many_tasks_has_an_index(tmp_path):
    page = page_of([bare_result(f"task_{i}") for i in range(3)], tmp_path)
    assert page.links == ["#task-0", "#task-1", "#task-2"] and page.ids == ["task-0", "task-1", "task-2"]
    assert len(page.pictures) == 12


def test_page_of_one_question_without_base(tmp_path):
    page = page_of([bare_result("alone")], tmp_path)
    text = "".join(page.texts)
    assert "1 question, 1 input" in text and "0.207 – 1.000" in text and "not recorded" in text
    assert "Nothing was evaluated to compare the routed model with." in text


def test_page_escapes_what_comes_from_outside(tmp_path):
    evil = '<script>alert("1 & 2")</script>$title'
    result = evaluation_result(evil) | {"model": evil, "checkpoint": evil, "hardware": evil, "versions": {evil: evil}}
    result["controls"][0]["name"] = evil
    page = page_of([result], tmp_path)
    assert "script" not in page.tags
    assert "".join(page.texts).count(evil) >= 7


def test_no_results_no_page(tmp_path):
    with pytest.raises(UserError, match=r"page\.html: there is no result"):
        write_html([], tmp_path / "page.html")
    assert not list(tmp_path.iterdir())
