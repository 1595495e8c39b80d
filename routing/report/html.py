"""Evaluations as one HTML page that needs nothing beside it: pictures are embedded, there are no scripts."""

from __future__ import annotations

from html import escape
from pathlib import Path
from string import Template

from routing.common.errors import UserError
from routing.common.files import write_text
from routing.report.page import drawn, facts, page, picture, table
from routing.report.plots import plot_accuracy, plot_layer_rates, plot_layers_histogram, plot_routes
from routing.report.words import (
    COLUMNS,
    NONE,
    NOTE,
    comparisons,
    p_value,
    questions,
    rows,
    sentence,
    shares,
    signed,
    static_sentence,
)

BODY = Template("""$facts
<section aria-label="How to read this page">
<p>A frozen model got small routers. For each input they decide once, from the prompt alone, which layers are skipped,
run once or run twice; they never see a token that is scored or generated. The base is the same model with every layer
run once. All methods answer the same questions.</p>
<p>Controls tell what the routers know. A static control runs one fixed route for all inputs, the best one found on
other questions: where it does as well, the routers learned which layers to leave out, not for which input. A random
control gives each input a random route as long as its own: where it does as well, the routers learned nothing. A drawn
one deals the routes that were taken out to other questions: where it does as well, the routers know nothing of their
inputs. The data set's path is what one who only knows the task would take, and a shuffled router learned from the
prompts of other questions.</p>
<p>Intervals are 95 % Wilson intervals and say how far accuracy could be off with so many questions. Paired tests are
exact McNemar tests on the answers that differ; "measurable" means p below 0.05, and with many comparisons some such p
come by chance. Not measurable does not mean equal.</p>
<p>In the tables: $note</p>
</section>
<nav aria-label="Tasks">
$index
</nav>
$sections""")
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
    "checkpoint_sha256": "SHA-256 of config and weights",
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
        page(
            title,
            BODY.substitute(
                facts=_facts(results),
                note=escape(NOTE),
                index=table(INDEX, [_index_row(result) for result in results], _links(results)),
                sections="\n".join(_section(i, result) for i, result in enumerate(results)),
            ),
        ),
    )


def _named(results: list[dict], key: str) -> str:
    """The value that the results share, or all of them."""
    return ", ".join(dict.fromkeys(str(result[key]) for result in results if result[key] is not None)) or "not recorded"


def _facts(results: list[dict]) -> str:
    found = {title: _named(results, key) for key, title in FACTS.items()}
    versions = dict.fromkeys(", ".join(f"{n} {v}" for n, v in result["versions"].items()) for result in results)
    found["versions"] = "; ".join(versions)
    return facts(found)


def _links(results: list[dict]) -> list[str]:
    return [f'<a href="#task-{i}">{escape(result["task"])}</a>' for i, result in enumerate(results)]


def _index_row(result: dict) -> list[str]:
    base, paired, routed = result["base"], result["paired"], result["routed"]
    against = [signed(paired["difference"]), p_value(paired["p"])] if paired else [NONE] * 2
    accuracy = f"{base['accuracy']:.3f}" if base else NONE
    layers = f"{routed['layers']:.2f}"
    return [result["task"], str(result["n"]), accuracy, f"{routed['accuracy']:.3f}", *against, layers]


def _section(index: int, result: dict) -> str:
    said = [sentence(*pair) for pair in comparisons(result)] + [static_sentence(result)]
    tests = "".join(f"<li>{escape(text)}</li>\n" for text in said if text)
    routes = result["routes"]
    pictures = {
        "Accuracy against executed layers": lambda file, title: plot_accuracy(result, file, title),
        "Executed layers an input": lambda file, title: plot_layers_histogram(result, file, title),
        "Route of each input": lambda file, title: plot_routes(routes, file, title),
        "Skip and repeat rates by layer": lambda file, title: plot_layer_rates(routes, file, title),
    }
    return SECTION.substitute(
        anchor=f"task-{index}",
        task=escape(result["task"]),
        questions=escape(
            f"{questions(result)}. Routed: {shares(result)}; {result['rerouted']:.1%} of inputs rerouted."
        ),
        table=table(COLUMNS, rows(result)),
        tests=f"<ul>\n{tests}</ul>" if tests else "<p>Nothing was evaluated to compare the routed model with.</p>",
        pictures="\n".join(picture(title, drawn(draw, title)) for title, draw in pictures.items()),
    )
