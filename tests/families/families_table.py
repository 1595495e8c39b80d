"""Try every feature on every family and write what came of it into docs/families.md; takes a minute.

PYTHONPATH=.:tests:tests/families python tests/families/families_table.py
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import torch
from conftest import FAMILIES
from features import FEATURES, Subject

PAGE = Path(__file__).resolve().parents[2] / "docs" / "families.md"
HEAD = """# Families

What was tried on a tiny random model of each family (`tests/families/`), against the stock layers run one by one,
without a cache, a batch or padding. This page is written by `tests/families/families_table.py`, from a run. Whole
commands on a base of each family are on [another page](zoo.md). [A family](add_a_family.md) that is not here can be
added; until then it is refused by name.

"""


def page(found: dict[str, dict[str, str]]) -> str:
    """The page, of what came of each feature by the family's model_type."""
    lines = [f"| model_type | {' | '.join(FEATURES)} |", "|---" * (1 + len(FEATURES)) + "|"]
    lines += [f"| `{name}` | {' | '.join(done[feature] for feature in FEATURES)} |" for name, done in found.items()]
    told = [f"- **{name}**: {function.__doc__.splitlines()[0]}" for name, function in FEATURES.items()]
    return HEAD + "\n".join(lines) + "\n\n## What is compared\n\n" + "\n".join(told) + "\n"


@torch.no_grad()
def tried(family) -> dict[str, str]:
    subject, done = Subject(family), {}
    for name, feature in FEATURES.items():
        try:
            feature(subject)
            done[name] = "yes"
        except Exception:  # Told in the table and by the exit status; the other features are tried all the same.
            traceback.print_exc()
            done[name] = "no"
    return done


def main() -> None:
    found = {family.config.model_type: tried(family) for family in FAMILIES}
    PAGE.write_text(page(found), encoding="utf-8")
    if failed := [f"{name}: {feature}" for name, done in found.items() for feature in done if done[feature] == "no"]:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
