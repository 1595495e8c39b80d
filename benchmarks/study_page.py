"""Write the tables of docs/results/study.md anew from the committed rows of the study; its prose is written by hand.

    python benchmarks/study_page.py

A table stands behind a line `<!-- table of MODEL -->`, between empty lines.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from routing.common.errors import UserError, run_command
from routing.common.files import write_text
from routing.report.study import shown
from routing.report.study_overview import overview
from routing.study.plan import ALL

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "results" / "study.md"
RESULTS = ROOT / "benchmarks" / "results" / "study" / "study.json"


def with_tables(page: str, rows: list[dict]) -> str:
    """A page with its tables made from rows.

    Raises:
        UserError: if a table is of a model that has no rows.
    """

    def table(found: re.Match) -> str:
        own = shown(rows, found[1], ALL)
        if not own:
            raise UserError(f"{PAGE.name} has a table of {found[1]}, of which {RESULTS.name} has no rows.")
        return f"<!-- table of {found[1]} -->\n\n{overview(own)}\n\n"

    return re.sub(r"<!-- table of (\S+) -->\n\n(?:\|.*\n)*\n?", table, page)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    write_text(PAGE, with_tables(PAGE.read_text(encoding="utf-8"), rows))


if __name__ == "__main__":
    run_command(main)
