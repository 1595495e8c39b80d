"""Results of several calls of evaluation.py in one file: other tasks and other controls of the same checkpoint."""

from __future__ import annotations

OF_BASE = ("base", "paired", "difference_lower_bound", "static_at_equal_layers")


def merged(kept: list[dict], new: dict) -> list[dict]:
    """Kept results with a new one in the place of its task, or at the end.

    Results of another state of the checkpoint go. Of the same task, asked in the same way, controls and the base that
    the new call did not ask for stay.
    """
    kept = [entry for entry in kept if entry.get("checkpoint_sha256") == new["checkpoint_sha256"]]
    tasks = [entry["task"] for entry in kept]
    if new["task"] not in tasks:
        return [*kept, new]
    at = tasks.index(new["task"])
    return [*kept[:at], _joined(kept[at], new), *kept[at + 1 :]]


def _joined(old: dict, new: dict) -> dict:
    if not new["key_sha256"] or old.get("key_sha256") != new["key_sha256"]:
        return new
    names = {control["name"] for control in new["controls"]}
    controls = [control for control in old["controls"] if control["name"] not in names]
    same = {name: old.get(name) for name in OF_BASE if new[name] is None}
    return new | same | {"controls": [*controls, *new["controls"]]}
