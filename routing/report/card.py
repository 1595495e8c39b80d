"""Model cards: README.md of a checkpoint folder, with the hub's metadata.

Takes what evaluation.py wrote into the folder. A card that was edited by hand is left alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from routing.common.errors import UserError
from routing.common.files import write_text
from routing.evaluation.promise import promise_of
from routing.models.checkpoint_files import HYBRID, checkpoint_hash, config_of, training_record
from routing.report.card_hybrid import hybrid_card
from routing.report.card_text import card_text
from train_models.checkpoint_card import CARD
from train_models.query_router import ENCODER_FOLDER

RESULTS = "evaluation.json"
TEXT_RESULTS = "text_evaluation.json"
FRONTIER = "frontier.json"
MARK = re.compile(r"<!-- written by [^,>]+, replaced until it is edited: ([0-9a-f]{64}) -->\n")
# Kinds of files that make a checkpoint; other folders and anything else stay where they are.
SUFFIXES = (".json", ".safetensors", ".py", ".jinja", ".txt", ".model")
# Not in results of earlier versions.
NEEDED = ("controls", "rerouted", "layers_histogram", "num_fewshot", "checkpoint_sha256")

Results = TypeVar("Results")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def marked(text: str) -> str:
    """A card with a line that tells whether it was edited since."""
    head, rest = text.split("\n---\n", 1)
    line = f"<!-- written by dlr card, replaced until it is edited: {_digest(text)} -->\n"
    return f"{head}\n---\n{line}{rest}"


def is_ours(path: Path) -> bool:
    """Whether a card is as it was written here."""
    text = path.read_text(encoding="utf-8", errors="replace")
    found = MARK.search(text)
    return bool(found) and _digest(text.replace(found[0], "", 1)) == found[1]


def write_model_card(folder: Path, results: list[dict] | None = None, repo_id: str | None = None) -> Path | None:
    """Write README.md into a checkpoint folder.

    Args:
        results: of evaluation.py; None: the card says that it was not evaluated yet.
        repo_id: OWNER/NAME for the commands in it, if it is known.

    Returns:
        The card; None, with a message on stderr, where there is one that was edited or comes from elsewhere.

    Raises:
        UserError: if the folder is no checkpoint of train.py.
    """
    config, training = config_of(folder), training_record(folder)
    path = folder / CARD
    if path.exists() and not is_ours(path):
        print(
            f"{path} was edited or is not of this toolkit, so it stays as it is. Move it for a new one.",
            file=sys.stderr,
        )
        return None
    name = (repo_id or folder.resolve().name).split("/")[-1]
    if config["model_type"] == HYBRID:
        text = hybrid_card(name, config, training, repo_id)
    else:
        measured = usable(read_text_results, folder)
        text = card_text(name, config, training, results or [], repo_id, measured, promise_of(folder))
    write_text(path, marked(text))
    return path


def read_results(folder: Path) -> list[dict] | None:
    """What evaluation.py left in a checkpoint folder; None if it did not run.

    Raises:
        UserError: if the file is damaged, of an earlier version, or of the checkpoint as it was before it changed.
    """
    path = folder / RESULTS
    if not path.exists():
        return None
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for result in results for key in NEEDED if key not in result]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). Run evaluation.py again, or remove it.") from error
    if missing:
        raise UserError(f"{path} lacks {missing[0]!r}: an earlier version wrote it. Run evaluation.py again.")
    _check_current(path, [result["checkpoint_sha256"] for result in results], "evaluation.py")
    return results


def read_text_results(folder: Path) -> dict | None:
    """What `dlr text_evaluation` left in a checkpoint folder; None if it did not run.

    Raises:
        UserError: as `read_results` does.
    """
    return _current(folder / TEXT_RESULTS, "dlr text_evaluation", "rows")


def check_frontier(folder: Path) -> None:
    """Refuse what `dlr frontier` left in a checkpoint folder, if it is of the checkpoint as it was before.

    Raises:
        UserError: as `read_results` does.
    """
    _current(folder / FRONTIER, "dlr frontier", "points")


def _current(path: Path, command: str, needed: str) -> dict | None:
    """Results in a file of a checkpoint folder, which have a field of the name `needed`; None without such a file."""
    if not path.exists():
        return None
    try:
        measured = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in (needed, "checkpoint_sha256") if key not in measured]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). Run {command} again, or remove it.") from error
    if missing:
        raise UserError(f"{path} lacks {missing[0]!r}: an earlier version wrote it. Run {command} again, or remove it.")
    _check_current(path, [measured["checkpoint_sha256"]], command)
    return measured


def _check_current(path: Path, hashes: list[str], command: str) -> None:
    if set(hashes) - {checkpoint_hash(path.parent)}:
        raise UserError(
            f"{path} is of this checkpoint as it was before its config or weights changed (calibrated since?). Run "
            f"{command} again, or remove it."
        )


def usable(read: Callable[[Path], Results], folder: Path) -> Results | None:
    """Results of a folder; those that cannot be used are left out, and why is said on stderr."""
    try:
        return read(folder)
    except UserError as error:
        print(f"left out of {folder / CARD}: {error}", file=sys.stderr)
    return None


def renew_card(folder: Path) -> None:
    """Write the card anew for a checkpoint that has changed, if it has one; results of what it was before are left
    out and said to be stale on stderr."""
    if not (folder / CARD).exists():
        return
    write_model_card(folder, usable(read_results, folder))


def checkpoint_files(folder: Path) -> list[str]:
    """What is uploaded of a checkpoint folder: its files, card and evaluation, and the tokenizer of a query router's
    encoder; no other folders and nothing hidden."""
    extra = (CARD, Path(RESULTS).with_suffix(".html").name)
    return sorted(
        str(path.relative_to(folder))
        for path in [*folder.iterdir(), *(folder / ENCODER_FOLDER).glob("*")]
        if path.is_file() and not path.name.startswith(".") and (path.suffix in SUFFIXES or path.name in extra)
    )
