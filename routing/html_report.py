"""Evaluations as one HTML page that needs nothing beside it: pictures are embedded, there are no scripts."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from html import escape
from pathlib import Path
from string import Template

from routing.errors import UserError
from routing.files import write_text
from routing.plots import plot_accuracy, plot_layer_rates, plot_layers_histogram, plot_routes
from routing.report import COLUMNS, NONE, NOTE, comparisons, p_value, questions, rows, sentence, shares, signed

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: #1c1c1c; background: #fff;
  max-width: 1120px; margin: 0 auto; padding: 1.5rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 3rem 0 .6rem; padding-top: .8rem; border-top: 2px solid #1b6ca8;
  overflow-wrap: anywhere; }
p, li { max-width: 58rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: 0 0 1.5rem; }
dt { color: #5a5a5a; }
dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e2e2e2; }
thead th { border-bottom: 2px solid #8a8a8a; vertical-align: bottom; font-weight: 600; }
th:first-child { text-align: left; }
tbody th { font-weight: 500; }
tr.routed { background: #eaf2f8; }
tr.routed th { font-weight: 700; }
a { color: #145a8d; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 1rem;
  align-items: start; }
figure { margin: 0; }
img { width: 100%; height: auto; }
@media print { section { break-before: page; } }
</style>
</head>
<body>
<h1>$title</h1>
<dl>
$facts
</dl>
<section aria-label="How to read this page">
<p>A frozen model got small routers. For each input they decide once, from the prompt alone, which layers are skipped,
run once or run twice; they never see a token that is scored or generated. The base is the same model with every layer
run once. All methods answer the same questions.</p>
<p>Controls tell what the routers know. A static control runs one fixed route for all inputs, the best one found on
other questions: where it does as well, the routers learned which layers to leave out, not for which input. A random
control gives each input a random route as long as its own: where it does as well, the routers learned nothing.</p>
<p>Intervals are 95 % Wilson intervals and say how far accuracy could be off with so many questions. Paired tests are
exact McNemar tests on the answers that differ; "measurable" means p below 0.05, and with many comparisons some such p
come by chance. Not measurable does not mean equal.</p>
<p>In the tables: $note</p>
</section>
<nav aria-label="Tasks">
$index
</nav>
$sections
</body>
</html>
""")
SECTION = Template("""<section id="$anchor">
<h2>$task</h2>
<p>$questions</p>
$table
$tests
<div class="pictures">
$pictures
</div>
</section>""")
FACTS = {
    "model": "base model",
    "checkpoint": "checkpoint",
    "hardware": "hardware",
    "date": "date",
    "dtype": "dtype",
    "git_commit": "commit of the code",
}
INDEX = ("task", "questions", "base", "routed", "− base", "p", "layers /input")


def write_html(results: list[dict], path: Path) -> None:
    """Write the page of evaluations, a section for each task.

    Raises:
        UserError: if there is no result.
    """
    if not results:
        raise UserError(f"{path}: there is no result to report. Evaluate at least one task.")
    title = f"Layer routing of {_named(results, 'model')}"
    write_text(
        path,
        PAGE.substitute(
            title=escape(title),
            facts=_facts(results),
            note=escape(NOTE),
            index=_table(INDEX, [_index_row(result) for result in results], _links(results)),
            sections="\n".join(_section(i, result) for i, result in enumerate(results)),
        ),
    )


def _named(results: list[dict], key: str) -> str:
    """The value that the results share, or all of them."""
    return ", ".join(dict.fromkeys(str(result[key]) for result in results if result[key] is not None)) or "not recorded"


def _facts(results: list[dict]) -> str:
    found = {title: _named(results, key) for key, title in FACTS.items()}
    versions = dict.fromkeys(", ".join(f"{n} {v}" for n, v in result["versions"].items()) for result in results)
    found["versions"] = "; ".join(versions)
    return "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in found.items())


def _table(head: tuple[str, ...], body: list[list[str]], first: list[str] | None = None) -> str:
    """A table of texts; `first`, HTML, goes in place of the first cells."""
    lines = ["<tr>" + "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head) + "</tr>"]
    for i, (name, *cells) in enumerate(body):
        mark = ' class="routed"' if name == "routed" else ""
        start = f'<th scope="row">{first[i] if first else escape(name)}</th>'
        lines.append(f"<tr{mark}>{start}" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    rest = "\n".join(lines[1:])
    return f'<div class="scroll"><table>\n<thead>{lines[0]}</thead>\n<tbody>\n{rest}\n</tbody>\n</table></div>'


def _links(results: list[dict]) -> list[str]:
    return [f'<a href="#task-{i}">{escape(result["task"])}</a>' for i, result in enumerate(results)]


def _index_row(result: dict) -> list[str]:
    base, paired, routed = result["base"], result["paired"], result["routed"]
    against = [signed(paired["difference"]), p_value(paired["p"])] if paired else [NONE] * 2
    accuracy = f"{base['accuracy']:.3f}" if base else NONE
    layers = f"{routed['layers']:.2f}"
    return [result["task"], str(result["n"]), accuracy, f"{routed['accuracy']:.3f}", *against, layers]


def _section(index: int, result: dict) -> str:
    tests = "".join(f"<li>{escape(sentence(*pair))}</li>\n" for pair in comparisons(result))
    routes = result["routes"]
    pictures = [
        _picture("Accuracy against executed layers", lambda file, title: plot_accuracy(result, file, title)),
        _picture("Executed layers an input", lambda file, title: plot_layers_histogram(result, file, title)),
        _picture("Route of each input", lambda file, title: plot_routes(routes, file, title)),
        _picture("Skip and repeat rates by layer", lambda file, title: plot_layer_rates(routes, file, title)),
    ]
    return SECTION.substitute(
        anchor=f"task-{index}",
        task=escape(result["task"]),
        questions=escape(
            f"{questions(result)}. Routed: {shares(result)}; {result['rerouted']:.1%} of inputs rerouted."
        ),
        table=_table(COLUMNS, rows(result)),
        tests=f"<ul>\n{tests}</ul>" if tests else "<p>Nothing was evaluated to compare the routed model with.</p>",
        pictures="\n".join(pictures),
    )


def _picture(title: str, draw: Callable[[io.BytesIO, str], None]) -> str:
    file = io.BytesIO()
    draw(file, title)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<figure><img alt="{escape(title)}" src="data:image/png;base64,{data}"></figure>'
