"""The folder of a training run: started anew, or continued with the same arguments."""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import fields
from pathlib import Path

from routing.common.cli import as_dict
from routing.common.errors import UserError
from routing.common.files import write_json


def prepare_folder(arguments, work: Path, states: Path, made_from: dict | None = None) -> None:
    """Make the run's folder ready: the Trainer's checkpoints in `states` are kept with --resume, else removed. With
    --resume and no earlier run it starts.

    Args:
        made_from: what the run depends on besides its arguments, such as hashes of its data.

    Raises:
        UserError: if --resume comes with other arguments or data than the run was started with.
    """
    from accelerate import PartialState  # Seconds, and other commands ask this module for a checkpoint alone.

    saved, source = work / "arguments.json", work / "made_from.json"
    chosen = {key: value for key, value in as_dict(arguments).items() if key != "resume"}
    chosen["num_processes"] = PartialState().num_processes  # of accelerate launch: the batches depend on it
    if arguments.resume and not saved.exists():  # A job manager restarts with the command line that it started with.
        print(f"--resume: there is no run in {work} yet, so it starts", file=sys.stderr)
    if arguments.resume and saved.exists():
        old = json.loads(saved.read_text())
        # An argument that was added since had its default.
        old = {field.name: field.default for field in fields(arguments)} | old
        changed = {key: value for key, value in chosen.items() if old.get(key) != value}
        if same_updates(old, chosen) and getattr(arguments, "other_processes", False):
            changed = {key: value for key, value in changed.items() if key not in SHARED}
        differences = [f"--{key} was {old.get(key)!r}, now {value!r}" for key, value in changed.items()]
        if differences:
            raise UserError(
                f"--resume continues the run in {work} with its own arguments; {'; '.join(differences)}. Give the "
                "same ones, or another --run_name."
            )
        known = json.loads(source.read_text()) if source.exists() else {}
        now = json.loads(json.dumps(made_from))
        if now is not None and known != now:
            changed = sorted(name for name in known.keys() | now.keys() if known.get(name) != now.get(name))
            raise UserError(
                f"--resume: files or data that the run in {work} was started with have changed since "
                f"({', '.join(changed)}). Leave --resume out to start it anew."
            )
    else:
        shutil.rmtree(states, ignore_errors=True)
        write_json(saved, chosen)
        if made_from is not None:
            write_json(source, made_from)


SHARED = ("gradient_accumulation", "num_processes")


def same_updates(old: dict, new: dict) -> bool:
    """Whether each update has the same batches, dealt out to other processes."""
    return all(name in both for name in SHARED for both in (old, new)) and (
        math.prod(old[name] for name in SHARED) == math.prod(new[name] for name in SHARED)
    )


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that the Trainer finished; a kill may have left a newer one half written."""
    whole = []
    for state in folder.glob("checkpoint-*/trainer_state.json"):  # written last
        try:
            json.loads(state.read_text())
        except ValueError:
            continue
        whole.append(state.parent)
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


class WholeCheckpoints:
    """Mixin of a Trainer of several processes; `last_whole_checkpoint` then tells its half written checkpoints."""

    def _save_rng_state(self, output_dir: str) -> None:
        """As in the Trainer; what is written after it tells that the checkpoint is whole, so all have to be here."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()
