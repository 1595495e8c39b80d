"""Tables of columns and rows: on the terminal, as Markdown, as CSV. (As HTML: routing/report/page.py.)"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[str] = (), width: int = 120,
    stderr: bool = False,
) -> None:  # fmt: skip
    """A table on the terminal.

    Args:
        left: columns that are aligned to the left; the others are numbers.
        width: of the terminal, in characters.
    """
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=width, stderr=stderr).print(table)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def csv_text(columns: Sequence[str], rows: Iterable[Sequence]) -> str:
    """CSV with a head; numbers with six digits, an unknown cell (None) is empty."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(columns)
    for row in rows:
        lines.writerow(f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row)
    return text.getvalue()
