"""What every training run does around its training: folder, lock, seed, processes, and the checkpoint at the end."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import set_seed

from routing.common.cli import as_dict
from routing.common.devices import is_first_process
from routing.common.files import file_stamps
from routing.common.locks import only_run
from routing.common.run_info import made_with
from routing.models.base_files import locate_model
from routing.models.bases import weight_stamps
from routing.models.checkpoint_files import adapter_hashes
from routing.models.placement import Placement, place_of
from routing.training.run_folder import prepare_folder


@dataclass
class Run:
    """A run under way.

    Attributes:
        arguments: of the run.
        work: folder of its states and logs; `states`: of the Trainer's checkpoints.
        placement: where the base goes; `device`: of what is trained beside it.
        processes: of `accelerate launch`, or one.
    """

    arguments: object
    work: Path
    placement: Placement
    processes: PartialState

    @property
    def device(self) -> torch.device:
        return self.placement.device

    @property
    def states(self) -> Path:
        return self.work / "trainer"

    def say(self, text: str) -> None:
        """A line on stderr, from the first process."""
        if self.processes.is_main_process:
            print(text, file=sys.stderr)

    def summary(self, **facts) -> dict:
        """What training.json says: arguments, own facts, and what the run was made with."""
        count = {"arguments": as_dict(self.arguments), "num_processes": self.processes.num_processes}
        return count | facts | made_with()


Save = Callable[[Path], None]  # writes the checkpoint folder
BESIDE_WEIGHTS = ("config.json", "generation_config.json", "tokenizer*", "*.jinja")  # what answers hang on too
FORMAT = 1  # of what a run keeps on its way; a run of another one is not continued


def own_precision() -> None:
    """Leave mixed precision of accelerate's configuration aside: training computes in the dtypes that its own options
    name, or the same command would give other routers on another machine."""
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked != "no":
        os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
        if is_first_process():
            print(
                f"accelerate's mixed precision ({asked}) is left aside: routers train in float32, and --dtype (--bf16 "
                "of --objective lm) says what the model computes in",
                file=sys.stderr,
            )


def base_of(arguments) -> dict:
    """What every run is made from: the files of its base, and the adapters that it starts with."""
    files = weight_stamps(arguments.model_id) + file_stamps(Path(locate_model(arguments.model_id)), *BESIDE_WEIGHTS)
    return {"format": FORMAT, "base": files, "adapters": adapter_hashes(getattr(arguments, "adapters", ""))}


def training_run(arguments, made_from: Callable[[], dict], train: Callable[[Run], Save]) -> Path | None:
    """One run, from its folder to its checkpoint.

    Args:
        arguments: with run_name, work_dir, output_dir, device, seed and resume.
        made_from: tells what the run depends on besides its arguments and its base; asked in the first process.
        train: trains and returns what writes the checkpoint. That must not hold the Trainer: it is called when the
            process group is gone, which must be the last to hold itself, or its end may wait for ever.

    Returns:
        the checkpoint folder; None in all processes but the first.

    Raises:
        UserError: if another run holds the folder, or --resume does not fit.
    """
    work = Path(arguments.work_dir) / arguments.run_name
    own_precision()
    placement = place_of(arguments)
    processes = PartialState(cpu=placement.device.type == "cpu")
    with only_run(work, together=True):
        run = Run(arguments, work, placement, processes)
        if processes.is_main_process:
            prepare_folder(arguments, work, run.states, base_of(arguments) | made_from())
        processes.wait_for_everyone()
        set_seed(arguments.seed)
        save = train(run)
        gc.collect()
        processes.destroy_process_group()
        if not is_first_process():
            return None
        folder = Path(arguments.output_dir) / arguments.run_name
        save(folder)
        print(f"checkpoint: {folder}", file=sys.stderr)
        return folder
