"""Tables and pictures of evaluations."""

from __future__ import annotations

import io

from rich.console import Console

from routing.report import plot_layer_rates, plot_routes, print_table


def table_row(task: str, gained: int) -> dict:
    side = {"accuracy": 0.25, "ci95": [0.125, 0.375], "layers": 30.0, "seconds": 1.5}
    return {
        "task": task,
        "n": 400,
        "base": side,
        "routed": side | {"accuracy": 0.5, "layers": 28.25},
        "paired": {"gained": gained, "lost": 2, "p": 0.004},
        "route_share": {"skip": 0.1, "run": 0.875, "repeat": 0.025},
    }


def printed(results: list[dict]) -> str:
    console = Console(width=140, file=io.StringIO())
    print_table(results, console)
    return console.file.getvalue()


def test_table():
    text = printed([table_row("routed_piqa", 102)])
    for part in ("routed_piqa", "400", "0.250", "0.500", "0.125", "0.375", "30.00", "28.25", "87.5%", "2.5%", "1.5"):
        assert part in text
    assert "102 answers gained" in text and "2 lost" in text and "0.004" in text and "+0.250" in text


def test_table_gives_the_paired_difference_of_every_task():
    text = printed([table_row("routed_piqa", 102), table_row("routed_siqa", 77)])
    assert "102" in text and "77" in text


def test_pictures(tmp_path):
    routes = [[1, 0, 2, 1], [1, 1, 1, 1], [0, 1, 1, 2]]
    for draw in (plot_routes, plot_layer_rates):
        path = tmp_path / f"{draw.__name__}.png"
        draw(routes, path, "routes")
        assert path.read_bytes().startswith(b"\x89PNG")
