"""Self-contained HTML pages: one look, tables, pictures that are embedded. There are no scripts."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from html import escape
from string import Template

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
.column figure { max-width: 960px; margin-bottom: 1rem; }
img { width: 100%; height: auto; }
@media print { section { break-before: page; } }
$style</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")


def page(title: str, body: str, style: str = "") -> str:
    """A page of a title, a text, and a body, HTML; `style` is more CSS."""
    return PAGE.substitute(title=escape(title), body=body, style=style)


def facts(found: dict[str, str]) -> str:
    """A list of names and values."""
    lines = (f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in found.items())
    return "<dl>\n" + "\n".join(lines) + "\n</dl>"


def table(head: tuple[str, ...], body: list[list[str]], first: list[str] | None = None) -> str:
    """A table of texts; `first`, HTML, goes in place of the first cells. Rows named "routed" stand out."""
    lines = ["<tr>" + "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head) + "</tr>"]
    for i, (name, *cells) in enumerate(body):
        mark = ' class="routed"' if name == "routed" else ""
        start = f'<th scope="row">{first[i] if first else escape(name)}</th>'
        lines.append(f"<tr{mark}>{start}" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    rest = "\n".join(lines[1:])
    return f'<div class="scroll"><table>\n<thead>{lines[0]}</thead>\n<tbody>\n{rest}\n</tbody>\n</table></div>'


def drawn(draw: Callable[[io.BytesIO, str], None], title: str) -> bytes:
    """What a function draws into a file, under a title."""
    file = io.BytesIO()
    draw(file, title)
    return file.getvalue()


def picture(title: str, png: bytes) -> str:
    data = base64.b64encode(png).decode()
    return f'<figure><img alt="{escape(title)}" src="data:image/png;base64,{data}"></figure>'
