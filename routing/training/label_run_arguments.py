"""Arguments of training runs that learn from labels."""

from __future__ import annotations

import os
from pathlib import Path

from routing.common.cli import checkpoint_problems, names_of, not_positive, outside
from routing.labels.problems import label_problems
from routing.models.problems import model_problems
from routing.training.run_arguments import RunArguments


class LabelRunArguments(RunArguments):
    """Those with the fields data, adapters, model_id, eval_fraction and learning_rate."""

    def label_run_problems(self) -> list[str]:
        """What is wrong with these, and with those that every run has."""
        found = self.run_problems() + outside(self, eval_fraction=(0, 1))
        if self.eval_fraction in (0, 1):
            found.append(f"--eval_fraction {self.eval_fraction} must lie between 0 and 1, neither of them")
        found += not_positive(self, "learning_rate")
        if not self.data_folders():
            found.append(f"--data {self.data!r} names no folder of labels")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and self.device not in ("auto", "cpu"):
            found.append(f"--device {self.device!r} is for one process; give several auto (a GPU for each) or cpu")
        return found

    def outside_problems(self) -> list[str]:
        found = model_problems(self.model_id) + checkpoint_problems(self.output_dir, self.run_name)
        return found + label_problems(self.data_folders(), self.adapters, self.model_id)

    def data_folders(self) -> list[Path]:
        """Folders of the labels."""
        return [Path(name) for name in names_of(self.data)]
