"""The page of big bases: its table is that of the tests, and its words of refusal are those of the code."""

from __future__ import annotations

import re

from combinations import PAGE, table

ROOT = PAGE.parents[1]


def test_the_table_is_that_of_the_tests():
    assert table() in PAGE.read_text(encoding="utf-8")


def test_refusals_are_in_the_words_of_the_code():
    """But for what stands there in place of a value."""
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "routing").rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # Texts go on from line to line.
    rows = PAGE.read_text(encoding="utf-8").split("| given | refused with |")[1].splitlines()[2:]
    words = [row.strip("| ").split(" | ")[1] for row in rows if row.startswith("|")]
    assert len(words) > 10
    for text in words:
        for part in re.split(r" N | SIZE_BASED_WRAP", text):
            assert part in code, part
