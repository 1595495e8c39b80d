"""A promise in a checkpoint: what was tested on which questions, how it is kept beside the weights, and in words."""

from __future__ import annotations

import json
from pathlib import Path

from routing.models.checkpoint_files import checkpoint_hash

CALIBRATION = "calibration.json"
# Fields of a config that a calibration sets: the promise names their values itself.
SET = ("cost", "route_bias")


def promise_of(folder: Path) -> dict | None:
    """What `python -m routing calibrate --max_loss` wrote into a checkpoint, with `holds`: whether weights and config
    are still those that it was tested with; None without a promise."""
    path = folder / CALIBRATION
    if not path.exists():
        return None
    note = json.loads(path.read_text(encoding="utf-8"))
    if "max_loss" not in note:
        return None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    as_set = all(config.get(name, 0.0) == value for name, value in note["set"].items())
    return note | {"holds": as_set and checkpoint_hash(folder, SET) == note["checkpoint_sha256"]}


def promise_words(promise: dict) -> str:
    """The promise, for a model card."""
    if not promise["holds"]:
        return (
            "A promise about accuracy was tested for this checkpoint, but its weights or config have changed since, so "
            "it holds no more. Run `python -m routing calibrate --max_loss` again."
        )
    sets = ", ".join(f"{count} of {name}" for name, count in promise["questions_by_dataset"].items())
    setting = ", ".join(f"`{name}` {value:g}" for name, value in promise["set"].items())
    chat = "with" if promise["apply_chat_template"] else "without"
    return (
        f"With {promise['confidence']:.0%} confidence accuracy is at most {promise['max_loss']:g} below that of the "
        f"full path of this checkpoint, at {promise['layers']:.2f} layers an input ({setting}). Shown on "
        f"{promise['questions']} questions ({sets}; split {promise['split']}, {chat} chat template, "
        f"{promise['dtype']}), where accuracy was {promise['accuracy']:.3f} and that of the full path "
        f"{promise['full_accuracy']:.3f}, by fixed-sequence testing of {len(promise['grid'])} settings, fixed before "
        "(Learn then Test, [arXiv 2110.01052](https://arxiv.org/abs/2110.01052)). It is a promise for questions of the "
        f"same kind in the same proportions. SHA-256 of weights and other config fields: "
        f"`{promise['checkpoint_sha256'][:16]}`."
    )
