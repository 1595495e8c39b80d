"""Every animal of the zoo goes through the whole toolkit with right results, or is refused at the start of stage 1."""

from __future__ import annotations

from pathlib import Path

import pytest
from journey import STATIONS, Journey
from zoo import ANIMALS

REFUSED = [name for name, animal in ANIMALS.items() if animal.refused]
PASSING = [name for name, animal in ANIMALS.items() if not animal.refused]
# What the other tests of bases say little of, for every run of the tests; the whole is slow.
QUICK = ("bos_added", "pad_outside", "rope_long", "hub_id")
ELSEWHERE = ("plain_qwen3", "bos_added", "pad_missing", "odd_folder")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "zoo.md"


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_at_the_start(name, tmp_path):
    (words,) = Journey(name, tmp_path).travel().values()
    assert words.startswith("refused") and ANIMALS[name].refused in words
    assert not (tmp_path / "labels" / "labels.jsonl").exists()


@pytest.mark.parametrize("name", QUICK)
def test_labels_are_right(name, tmp_path):
    assert Journey(name, tmp_path).travel(STATIONS[:2]) == dict.fromkeys(STATIONS[:2], "pass")


@pytest.mark.slow
@pytest.mark.parametrize("name", PASSING)
def test_the_whole_journey(name, tmp_path):
    journey = Journey(name, tmp_path)
    assert journey.travel() == dict.fromkeys(STATIONS, "pass")
    if name in ELSEWHERE:
        journey.generate_elsewhere()


def test_the_page_of_the_zoo_names_every_animal():
    text = PAGE.read_text(encoding="utf-8")
    assert [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")] == list(ANIMALS)
    for name in REFUSED:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}`")]
        assert "| refused |" in row
        words = text.split(f"\n- {name}: ")[1].splitlines()[0].replace("BASE", name)
        assert name.startswith("hub_") or ANIMALS[name].refused in words
