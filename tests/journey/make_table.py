"""Send every animal of the zoo on its journey and write what came of it into docs/zoo.md.

    PYTHONPATH=.:tests:tests/journey python tests/journey/make_table.py --minutes 20

All animals go to the first stations, then on to the others; a station that there was no time for has an empty cell.
With --only, these animals alone go, and of the others the page says what it said before.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from pathlib import Path

import conftest  # noqa: F401 - sets where transformers and the hub keep their files
from journey import STATIONS, Journey
from zoo import ANIMALS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "zoo.md"
HEAD = """# Bases that were tried

Tiny bases, each with one habit of real ones (`tests/zoo.py`), and how far the toolkit takes them. This page is written
by `tests/journey/make_table.py`, from a run. At each station something is compared: labels with the plain evaluator and
with stock transformers; the copied checkpoint at full depth with the base, bit for bit; the reference with the copy;
batches with single rows and, at full depth, with stock generation, and what is generated here with what a process that
knows nothing of this repository generates; stock lm-eval's verdicts with those of the labels; the evaluation of the
base, question by question, with stock lm-eval on the stock model. An empty cell is a station that the run did not come
to.

"""


def cell(words: str) -> str:
    words = words.replace("'https://huggingface.co'", "the hub")
    return words.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def page(found: dict[str, dict[str, str]]) -> str:
    lines = [f"| base | family | habit | {' | '.join(STATIONS)} |", "|---" * (3 + len(STATIONS)) + "|"]
    refused = []
    for name, animal in ANIMALS.items():
        done = found.get(name, {})
        cells = [
            "refused" if done.get(station, "").startswith("refused") else done.get(station, "") for station in STATIONS
        ]
        lines.append(f"| `{name}` | {animal.family} | {cell(animal.habit)} | {' | '.join(cells)} |")
        if "refused" in cells:
            refused.append(f"- {name}: {cell(done['search'].removeprefix('refused: '))}")
    return HEAD + "\n".join(lines) + "\n\n## With which words\n\n" + "\n".join(refused) + "\n"


def told() -> dict[str, dict[str, str]]:
    """What the page says now of each animal."""
    text = PAGE.read_text(encoding="utf-8")
    words = dict(line[2:].split(": ", 1) for line in text.splitlines() if line.startswith("- "))
    found = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            name, _, _, *cells = [part.strip(" `") for part in line[1:-1].split(" | ")]
            found[name] = dict(zip(STATIONS, cells, strict=True))
            if "refused" in cells:
                found[name] = {STATIONS[0]: "refused: " + words[name].replace("\\|", "|")}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--only", default="", help="animals, with commas between; default all")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    names = arguments.only.split(",") if arguments.only else ANIMALS
    before = told() if arguments.only else {}
    journeys = {name: Journey(name, Path(tempfile.mkdtemp())) for name in names}
    for stations in (STATIONS[:6], STATIONS[6:]):
        for journey in journeys.values():
            stopped = any(words != "pass" for words in journey.done.values())
            for station in () if stopped else stations:
                if time.monotonic() > end:
                    break
                try:
                    journey.travel((station,))
                except Exception:  # Told in the table and by the exit status; other animals travel all the same.
                    traceback.print_exc()
                    journey.done[station] = "wrong"
                if journey.done.get(station) != "pass":
                    break
            found = before | {name: other.done for name, other in journeys.items()}
            PAGE.write_text(page(found), encoding="utf-8")
            print(journey.name, journey.done, flush=True)
    if wrong := [name for name, journey in journeys.items() if "wrong" in journey.done.values()]:
        sys.exit(f"wrong: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
