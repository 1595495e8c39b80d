"""Results of several calls of evaluation.py in one file: other tasks and other controls of one checkpoint."""

from __future__ import annotations

OF_BASE = ("base", "paired", "difference_lower_bound", "static_at_equal_layers")


def merged(kept: list[dict], new: dict) -> list[dict]:
    """Kept results with a new one in the place of its task, or at the end.

    Results of another key (state of the checkpoint, settings, versions, code that judges) go: page and card tell one
    way of asking. Of the same task, controls and the base that the new call did not ask for stay.
    """
    kept = [entry for entry in kept if entry.get("key_sha256") == new["key_sha256"]]
    tasks = [entry["task"] for entry in kept]
    if new["task"] not in tasks:
        return [*kept, new]
    at = tasks.index(new["task"])
    old, names = kept[at], {control["name"] for control in new["controls"]}
    controls = [control for control in old["controls"] if control["name"] not in names] + new["controls"]
    of_base = {name: old[name] for name in OF_BASE if new[name] is None}
    return [*kept[:at], new | of_base | {"controls": controls}, *kept[at + 1 :]]
