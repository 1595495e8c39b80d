"""Looks as a page of their own: routes as tables, what paths are worth, both answers. There are no scripts.

Everything that a colour says is a sign too, and a word for those who listen to the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

import torch

from routing.evaluation.look import NEW_TOKENS, REPEATS, Answer, Look, load_any, look, prompting_for, question_of_text
from routing.evaluation.look_rows import MenuPath, Row
from routing.report.look_words import (
    MARKS,
    columns_of,
    decides,
    marks_in,
    name_of,
    number,
    route_words,
    shown,
    summary,
    verdict,
)
from routing.report.page import facts, page, table

STYLE = """
.look { color: #1c1c1c; background: #fff; }
.look h2 { font-size: 1.3rem; font-weight: 700; }
.look h3 { font-size: 1.1rem; font-weight: 700; margin: 1.2rem 0 .3rem; }
.look p { margin: .3rem 0 .6rem; }
.look pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f5f5; color: #1c1c1c; padding: .6rem .8rem;
  margin: .3rem 0 .8rem; font-size: .92rem; max-height: 20rem; overflow-y: auto; border: 0; }
.look .answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 0 1.5rem; }
.look .said { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }
.look .key { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; list-style: none; margin: .5rem 0; padding: 0; }
.look .key b, .look .routes td { color: #000; font-weight: 400; text-align: center; }
.look .key b { display: inline-block; min-width: 1.5rem; margin-right: .4rem; }
.look .scroll { overflow-x: auto; position: relative; }
.look .routes { border-collapse: separate; border-spacing: 1px; font-variant-numeric: tabular-nums; font-size: .87rem;
  width: auto; }
.look .routes caption { text-align: left; padding-bottom: .3rem; color: #5a5a5a; }
.look .routes th, .look .routes td { padding: .1rem .2rem; border: 0; min-width: 1.05rem; white-space: nowrap; }
.look .routes thead th { color: #5a5a5a; font-weight: 400; text-align: center; }
.look .routes th[scope=row] { text-align: left; background: #fff; position: sticky; left: 0; max-width: 11rem;
  overflow: hidden; text-overflow: ellipsis; font-weight: 500; color: #1c1c1c; }
.look .routes td.number { text-align: right; padding: .1rem .4rem; color: #1c1c1c; }
.look .routes tr.taken th, .look .routes tr.taken td.number { font-weight: 700; }
""" + "\n".join(f".look .{name} {{ background: rgb{mark.color}; }}" for name, mark in MARKS.items())
BODY = Template("""<section class="look" id="$anchor" aria-labelledby="$anchor-title">
<$h2 id="$anchor-title">$title</$h2>
<p>$summary</p>
<$h3>Prompt</$h3>
<pre tabindex="0">$prompt</pre>
<div class="answers">
$answers
</div>
$right
<$h3>Route</$h3>
<p>$route</p>
<ul class="key" aria-label="Signs">$key</ul>
$routes
$paths
</section>""")


def look_html(look: Look, anchor: str = "look-0", level: int = 2) -> str:
    """One look, to stand in a page that has `STYLE`.

    Args:
        anchor: id of the section, for links.
        level: of its heading, 1 to 5.
    """
    one = len(look.rows) == 1
    route = f"Router: {decides(look)}." + (f" {route_words(look.rows[0])}" if one and look.full else "")
    example = look.question.request and look.question.request.example
    marks = (f'<li><b class="{mark}">{MARKS[mark].sign}</b>{MARKS[mark].words}</li>' for mark in marks_in(look))
    h2, h3 = f"h{level}", f"h{level + 1}"
    return BODY.substitute(
        anchor=escape(anchor),
        h2=h2,
        h3=h3,
        title=escape(look.question.title),
        summary=escape(summary(look)),
        prompt=escape(look.question.prompt),
        answers="\n".join(_answer(answer, look, h3) for answer in (look.full, look.routed) if answer),
        right=f"<p>Right answer: {escape(example.answer)}</p>" if example else "",
        route=escape(route),
        key="".join(marks),
        routes=_routes(look),
        paths=_paths(look, h3),
    )


def looks_page(looks: Sequence[Look], title: str, about: dict[str, str] | None = None) -> str:
    """A page of looks, with links to each where there are several; the id of number N is `look-N`, from 0.

    Args:
        about: facts at its head, by their names.
    """
    parts = [facts(about)] if about else []
    if len(looks) > 1:
        rows = [_index_row(look) for look in looks]
        links = [f'<a href="#look-{at}">{escape(row[0])}</a>' for at, row in enumerate(rows)]
        index = table(("question", "layers", "of the layers", "of the time", "full", "routed"), rows, links)
        parts.append(f'<nav aria-label="Questions">\n{index}\n</nav>')
    parts += [look_html(look, f"look-{at}") for at, look in enumerate(looks)]
    return page(title, "\n".join(parts), STYLE)


def page_of_prompt(
    folder: Path, prompt: str, new_tokens: int = NEW_TOKENS, repeats: int = REPEATS, device: str = "cpu"
) -> str:
    """The page of one prompt and one checkpoint. Who shows many asks `load_any` and `look` once for all of them.

    Args:
        folder: of a checkpoint of any router kind.
        new_tokens, repeats: as in `look`.

    Raises:
        UserError: for a folder that is no checkpoint, and an empty or too long prompt.
    """
    model, tokenizer = load_any(folder, torch.float32, torch.device(device))
    found = look(model, tokenizer, question_of_text(prompt, tokenizer, prompting_for(folder)), new_tokens, repeats)
    return looks_page([found], f"Routes of {folder.resolve().name}")


def _index_row(look: Look) -> list[str]:
    full, routed = look.full, look.routed
    if full is None:
        return [look.question.title, *["–"] * 4, verdict(routed) or "–"]
    timed = full.seconds is not None
    share, time = f"{routed.layers / full.layers:.2f}", f"{routed.seconds / full.seconds:.2f}" if timed else "–"
    return [look.question.title, number(routed.layers), share, time, verdict(full) or "–", verdict(routed) or "–"]


def _answer(answer: Answer, look: Look, heading: str) -> str:
    parts = [f"{number(answer.layers)} {columns_of(look)}s"]
    parts += [f"{answer.seconds:.3f} s"] if answer.seconds is not None else []
    parts += [verdict(answer)] if verdict(answer) else []
    return (
        f"<div>\n<{heading}>{name_of(answer)}</{heading}>\n<p>{', '.join(parts)}</p>\n"
        f'<pre tabindex="0">{escape(answer.text) or "(nothing)"}</pre>\n</div>'
    )


def _cells(marks: Sequence[str]) -> str:
    return "".join(
        f'<td class="{mark}"><span aria-hidden="true">{MARKS[mark].sign}</span>'
        f'<span class="said">{MARKS[mark].words}</span></td>'
        for mark in marks
    )


def _grid(caption: str, first: str, numbers: Sequence[str], look: Look, lines: Sequence[str]) -> str:
    """A table with a column a layer."""
    kind = columns_of(look)
    head = [f'<th scope="col">{escape(name)}</th>' for name in (first, *numbers)]
    head += [f'<th scope="col"><span class="said">{kind} </span>{at}</th>' for at in range(look.depth)]
    body = "\n".join(lines)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">\n<table class="routes">\n'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{''.join(head)}</tr></thead>\n<tbody>\n{body}\n</tbody>\n"
        "</table>\n</div>"
    )


def _row(row: Row, at: int, look: Look) -> str:
    one = len(look.rows) == 1
    name = "prompt" if one else f'<span class="said">{row.part} token </span>{at} {escape(shown(row.name))}'
    count = f'<td class="number">{number(row.layers)}</td>' if look.full else ""
    return f'<tr><th scope="row">{name}</th>{count}{_cells(row.marks)}</tr>'


def _routes(look: Look) -> str:
    """The route of the prompt, or of each token; tokens of the answer have a table of their own."""
    kind, found = columns_of(look), []
    for part in ("prompt", "answer"):
        rows = [(at, row) for at, row in enumerate(look.rows) if row.part == part]
        if rows:
            what = "the prompt" if len(look.rows) == 1 else f"each token of the {part}"
            lines = [_row(row, at, look) for at, row in rows]
            first, numbers = "row" if len(look.rows) == 1 else "token", ("layers",) if look.full else ()
            found.append(_grid(f"What {what} took in each {kind}", first, numbers, look, lines))
    return "\n".join(found)


def _path(path: MenuPath, at: int) -> str:
    taken = " (taken)" if path.taken else ""
    numbers = (f"{path.reward:.3f}", f"{path.worth:.3f}", number(path.layers))
    cells = "".join(f'<td class="number">{cell}</td>' for cell in numbers)
    mark = ' class="taken"' if path.taken else ""
    return f'<tr{mark}><th scope="row">path {at}{taken}</th>{cells}{_cells(path.marks)}</tr>'


def _paths(look: Look, heading: str) -> str:
    if not look.paths:
        return ""
    lines = [_path(path, at) for at, path in enumerate(look.paths)]
    grid = _grid(
        "Paths of the menu: estimated reward and worth for this prompt",
        "path",
        ("reward", "worth", "layers"),
        look,
        lines,
    )
    return (
        f"<{heading}>What each path is worth</{heading}>\n<p>The router estimates the reward of each path for this "
        "prompt. Worth is that reward less what the layers cost and the caution; the path of most worth is taken.</p>\n"
        f"{grid}"
    )
