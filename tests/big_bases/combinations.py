"""What works on a base larger than a device: the table of docs/big_bases.md, which the tests here go through."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "big_bases.md"
COLUMNS = ("", "`--device_map`", "tensor parallel", "FSDP2")
# By test: yes, or what is said. Objectives as test_device_maps.py trains them.
LABELS = {"mcts": "tree search", "menu": "menus"}
TRAINED = {
    "supervised, cached": "no",
    "supervised, live": "no",
    "value, menu": "no",
    "value, per layer": "no",
    "adapters, healed": "no",
    "adapters, closed form": "no",
    "gumbel": "yes",
    "gumbel, inputs, frozen": "yes",
    "dense": "yes",
    "static": "yes",
    "random": "no",
    "reinforce": "no",
    "stochastic_depth": "no",
}
EVALUATED = {"supervised": "routers of layers", "menu": "menu routers", "token": "routers of tokens"}


def rows() -> list[tuple[str, ...]]:
    """Cells of the table."""
    found = [("forward and `generate()` of every router kind, adapters", "yes", "yes", "no")]
    found += [(f"`data_generation.py`: {name}", "yes", "no", "no") for name in LABELS.values()]
    found += [(f"`train.py`: {name}", "yes", "no", shared) for name, shared in TRAINED.items()]
    found += [
        ("`train.py`: fbc, dpo, orpo", "no base is loaded", "no", "no"),
        ("`train.py`: lm, `--load_in_4bit`", "no", "no", "no"),
        ("`evaluation.py`, but for `--check`; `calibrate`, `text_evaluation`", "yes", "no", "no"),
        ("`data_generation.py --engine ray`, `evaluation.py --check`", "no", "no", "no"),
    ]
    return found


def table() -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    return "\n".join(lines + [f"| {' | '.join(cells)} |" for cells in rows()]) + "\n"
