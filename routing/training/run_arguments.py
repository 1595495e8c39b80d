"""Arguments that every kind of training run has."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from routing.common.cli import option, outside, reporting_problems, run_name_problems
from routing.common.files import unwritable
from routing.common.placing import device_map_option, max_memory_option, offload_folder_option, place_problems


@dataclass
class RunArguments:
    """What every run is told; each kind adds its own."""

    run_name: str = option("", "name of the run, and of the checkpoint folder below --output_dir")
    output_dir: str = option("checkpoints", "folder of the finished checkpoint folders")
    work_dir: str = option("runs", "folder of what a run makes on its way: features, states, logs, metrics")
    device: str = option("auto", "torch device; auto: cuda if there is one, else cpu")
    device_map: str = device_map_option()
    max_memory: str = max_memory_option()
    offload_folder: str = offload_folder_option()
    report_to: str = option("none", "where the Trainer logs", ("none", "wandb", "tensorboard"))
    seed: int = option(0, "seed of initial weights, of shuffling and of all that is drawn")
    resume: bool = option(False, "continue the run from its last checkpoint")

    def run_problems(self) -> list[str]:
        """What is wrong with these."""
        found = run_name_problems(self.run_name) + outside(self, seed=(0, 2**32 - 1))
        for name in ("output_dir", "work_dir"):
            found += unwritable(f"--{name}", Path(getattr(self, name)) / ("" if found else self.run_name))
        if re.fullmatch(r"cuda:0*[1-9]\d*", self.device):  # The Trainer takes the first card it sees.
            found.append(f"--device {self.device!r}: give auto or cpu, and choose a GPU with CUDA_VISIBLE_DEVICES")
            return found + reporting_problems(self.report_to)
        return found + reporting_problems(self.report_to) + place_problems(self)
