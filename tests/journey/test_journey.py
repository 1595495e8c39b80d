"""Every animal of the zoo goes through the whole toolkit with right results, or is refused at the start of stage 1."""

from __future__ import annotations

from pathlib import Path

import pytest
from journey import STATIONS, Journey
from zoo import ANIMALS, bring

REFUSED = [name for name, animal in ANIMALS.items() if animal.refused]
PASSING = [name for name, animal in ANIMALS.items() if not animal.refused]
# What the other tests of bases say little of, for every run of the tests; the whole is slow.
QUICK = ("pad_outside", "rope_long", "hub_id")
WHOLE = "bos_in_template"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "zoo.md"


def refusal(name: str) -> str:
    """Words of an animal's refusal, as a journey tells them."""
    return ANIMALS[name].refused.replace(bring(name), "BASE")


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_at_the_start(name, tmp_path):
    (words,) = Journey(name, tmp_path).travel().values()
    assert words.startswith("refused") and refusal(name) in words
    assert not (tmp_path / "labels" / "labels.jsonl").exists()


@pytest.mark.parametrize("name", QUICK)
def test_labels_are_right(name, tmp_path):
    assert Journey(name, tmp_path).travel(STATIONS[:2]) == dict.fromkeys(STATIONS[:2], "pass")


@pytest.mark.parametrize(
    "name", [name if name == WHOLE else pytest.param(name, marks=pytest.mark.slow) for name in PASSING]
)
def test_the_whole_journey(name, tmp_path):
    # Of the quick ones none waits for a process to start.
    assert Journey(name, tmp_path, elsewhere=name != WHOLE).travel() == dict.fromkeys(STATIONS, "pass")


def test_the_page_of_the_zoo_tells_of_every_animal_to_its_end():
    text = PAGE.read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert [row[0].strip("`") for row in rows] == list(ANIMALS)
    for name, row in zip(ANIMALS, rows):
        assert row[3:4] == ["refused"] if name in REFUSED else row[3:] == ["pass"] * len(STATIONS), name
    for name in REFUSED:
        words = text.split(f"\n- {name}: ")[1].splitlines()[0]
        assert refusal(name) in words
