"""The page of a study: one file, readable without its script, which sorts and filters the table."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from routing.report.page import facts, page, table
from routing.report.study_hypotheses import COLUMNS as HYPOTHESES
from routing.report.study_hypotheses import hypothesis_rows
from routing.report.words import budget_words, signed
from routing.study.plan import ALL

STYLE = """<style>
.filters { display: flex; flex-wrap: wrap; gap: .6rem 1.2rem; margin: .8rem 0; }
.filters label { display: inline-flex; flex-direction: column; font-size: .85rem; color: #4a4a4a; }
.filters label, .filters select { max-width: 100%; }
#rows th[scope=row], #rows thead th:first-child { position: sticky; left: 0; background: #fff; }
.filters select, .filters button { font: inherit; padding: .25rem .4rem; min-height: 2.2rem; }
[hidden] { display: none; }
thead button { all: unset; cursor: pointer; font-weight: 600; text-decoration: underline dotted; }
thead button:focus-visible, .scroll:focus-visible, select:focus-visible {
  outline: 3px solid #1b6ca8; outline-offset: 2px; }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
#tested th[scope=row] { white-space: normal; min-width: 12rem; }
#tested :is(td, th):nth-child(-n+3) { text-align: left; }
#rows td:nth-child(-n+3), #rows thead th:nth-child(-n+4) { text-align: left; }
@media (max-width: 40rem) { #rows th[scope=row] { white-space: normal; min-width: 8rem; } body { padding: 1rem; } }
caption { text-align: left; color: #4a4a4a; padding-bottom: .3rem; }
</style>"""
SCRIPT = """<script>
"use strict";
(() => {
  const table = document.getElementById("rows"), body = table.tBodies[0];
  const selects = [...document.querySelectorAll(".filters select")], told = document.getElementById("told");
  document.querySelector(".filters").hidden = false;
  const filter = () => {
    let count = 0;
    for (const row of body.rows) {
      row.hidden = selects.some(s => s.value !== "" && row.dataset[s.name] !== s.value);
      count += !row.hidden;
    }
    told.textContent = count + " of " + body.rows.length + " rows";
  };
  selects.forEach(s => s.addEventListener("change", filter));
  document.getElementById("reset").addEventListener("click", () => {
    selects.forEach(s => { s.value = ""; });
    filter();
  });
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
      const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return down * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
      });
      body.append(...rows);
      told.textContent = "sorted by " + button.textContent + ", " + (down === 1 ? "lowest" : "highest") + " first";
    });
  });
  // All seeds together, and all tasks, come first.
  for (const s of selects) {
    if (["seed", "task"].includes(s.name) && [...s.options].some(o => o.value === "all")) s.value = "all";
  }
  filter();
})();
</script>"""
BODY = Template("""$style
<p>All methods answered the same test questions, with the same model on the same machine. Everything was chosen on
validation questions. Differences are paired, question by question; p is two-sided, with Holm's correction where it
says so.
"Static" is the best single path by validation, mixed with its neighbours so that it runs as many layers.</p>
$facts
$questions
<section aria-labelledby="claims">
<h2 id="claims">What was claimed before, and what became of it</h2>
$hypotheses
</section>
<section aria-labelledby="table">
<h2 id="table">Table</h2>
<form class="filters" hidden aria-label="Rows to show" onsubmit="return false">
$filters
<label>&nbsp;<button type="button" id="reset">Show all</button></label>
</form>
<p id="told" role="status" aria-live="polite"></p>
<div class="scroll" tabindex="0" role="region" aria-label="Table of all rows">
$table
</div>
</section>
<section aria-labelledby="pictures">
<h2 id="pictures">Pictures</h2>
<div class="column">
$pictures
</div>
</section>
$script""")


def share_used(share: float) -> str:
    """Of a gain: none is used by what is not above the static path."""
    return f"{share:.2f}" if share > 0 else "none"


QUESTIONS = '<p><a href="{}">Any question</a>: which route each method took, and whether it was right.</p>'
# key of a row, head, how its cell is written
COLUMNS = (
    ("accuracy", "accuracy", lambda v: f"{v:.3f}"),
    ("ci95", "95 %", lambda v: f"{v[0]:.3f} to {v[1]:.3f}"),
    ("difference", "− full", signed),
    ("difference_lower_bound", "at least", signed),
    ("p", "p", lambda v: f"{v:.3g}"),
    ("p_holm", "p, Holm", lambda v: f"{v:.3g}"),
    ("static_difference", "− static", signed),
    ("static_p_holm", "p, Holm, static", lambda v: f"{v:.3g}"),
    ("layers", "layers", lambda v: f"{v:.2f}"),
    ("seconds", "seconds", lambda v: f"{v:.4f}"),
    ("flops", "GFLOP", lambda v: f"{v / 1e9:.2f}"),
    ("headroom", "headroom used", share_used),
    ("training_seconds", "training, s", lambda v: f"{v:.0f}"),
    ("training_forwards", "forward passes", str),
    ("training_labels", "labels", str),
    ("added_parameters", "added parameters", str),
    ("perplexity", "perplexity", lambda v: f"{v:.2f}"),
    ("n", "n", str),
)
FILTERS = (("model", "Model"), ("task", "Task"), ("method", "Method"), ("budget", "Layers left out"), ("seed", "Seed"))


def study_page(output: Path, found: dict, pictures: Sequence[tuple[str, str]], questions: str = "") -> str:
    """The page as HTML.

    Args:
        output: folder of the pictures.
        found: of `routing.study.results.collect`.
        pictures: name of a file and what it shows.
        questions: name of the page of single questions, beside this one.
    """
    rows = sorted(found["rows"], key=lambda row: (row["seed"] != ALL, row["task"] != ALL))
    about = {
        "rows": f"{len(rows)}, of {len({row['method'] for row in rows})} methods",
        "not there yet": "; ".join(found["missing"]) or "nothing",
    }
    body = BODY.substitute(
        style=STYLE, facts=facts(about), hypotheses=_hypotheses(found["hypotheses"]),
        questions=QUESTIONS.format(questions) if questions else "",
        filters="\n".join(_filter(key, title, rows) for key, title in FILTERS), table=_table(rows),
        pictures="\n".join(_picture(output / name, title) for name, title in pictures) or "<p>None yet.</p>",
        script=SCRIPT,
    )  # fmt: skip
    return page("All routers, on the same questions, model and clock", body)


def _shown(row: dict, key: str) -> str:
    """What a filter and a cell say of a model, task, method, budget or seed."""
    value = row["title"] if key == "method" else row[key]
    return budget_words(value) if key == "budget" else str(value)


def _filter(key: str, title: str, rows: Sequence[dict]) -> str:
    names = dict.fromkeys(_shown(row, key) for row in rows)
    options = "".join(f'<option value="{escape(name)}">{escape(name)}</option>' for name in names)
    return f'<label>{title}<select name="{key}"><option value="">any</option>{options}</select></label>'


def _table(rows: Sequence[dict]) -> str:
    heads = ["method", "model", "task", "layers left out", "seed", *(head for _, head, _ in COLUMNS)]
    lines = []
    for row in rows:
        data = " ".join(f'data-{key}="{escape(_shown(row, key))}"' for key, _ in FILTERS)
        cells = [f'<th scope="row">{escape(row["title"])}</th>']
        cells += [f"<td>{escape(_shown(row, key))}</td>" for key in ("model", "task", "budget", "seed")]
        for key, _, write in COLUMNS:
            value = row[key]
            number = "" if value is None else value[0] if isinstance(value, list) else value
            cells.append(f'<td data-value="{number}">{"–" if value is None else escape(write(value))}</td>')
        lines.append(f"<tr {data}>{''.join(cells)}</tr>")
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    caption = "One row for each method, budget, task and seed; seed &quot;all&quot; is all seeds together."
    return (
        f'<table id="rows"><caption>{caption}</caption><thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(lines) + "\n</tbody></table>"
    )  # fmt: skip


def _hypotheses(tested: Sequence[dict]) -> str:
    if not tested:
        return "<p>None was tested yet.</p>"
    return f'<div id="tested">{table(HYPOTHESES, hypothesis_rows(tested))}</div>'


def _picture(path: Path, title: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    about = f"{title}. The numbers are in the table above."
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><img alt="{escape(about)}" '
        f'src="data:image/png;base64,{data}"></figure>'
    )
