"""Arguments of stage 3, evaluation.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from routing.common.cli import below, names_of, option
from routing.common.devices import DTYPES
from routing.common.errors import UserError
from routing.common.files import unwritable
from routing.common.placing import device_map_option, max_memory_option, no_map, offload_folder_option, place_problems
from routing.evaluation.task_names import task_problems
from routing.models.checkpoint_files import check_checkpoint, training_record
from routing.scoring.prompting import flag_problems
from routing.tasks import unknown_names
from routing.tasks.problems import files_without_splits
from train_models.router_kinds import kind_of

CONTROLS = ("static", "random", "drawn", "dataset", "shuffled")


OF_MENUS = ("dataset", "shuffled")  # controls of menu routers alone


@dataclass
class EvaluationArguments:
    """Evaluate a checkpoint, its base and controls with lm-eval, routing on the prompt alone. Run it again to continue
    after an interruption."""

    checkpoint: str = option("", "folder of a routed checkpoint")
    tasks: str = option("routed_arithmetic", "comma-separated lm-eval tasks, those of eval_configs/ included")
    base: bool = option(True, "evaluate the base model too; --no_base to leave it out")
    controls: str = option(
        "",
        "comma-separated: static (a path that is the same for all inputs, with just more and just fewer layers than "
        "the routed mean: of a menu router from its menu, else the best one by validation questions), random (for each "
        "input the counts of its route on other layers, at random), drawn (the model's own routes dealt out to other "
        "questions); of menu routers dataset (the path that --table says is best for the task) and shuffled (the "
        "router of --shuffled_checkpoint, as it is and at equal layers)",
    )
    table: str = option(
        "", "labels of the menu that the control dataset chooses by, default those that the router learned from"
    )
    shuffled_checkpoint: str = option("", "checkpoint of train.py --objective value --shuffle_questions")
    control_data: str = option(
        "", "data sets whose validation questions choose the static paths; default those that the labels are of"
    )
    control_samples: int = option(200, "validation questions of each of these data sets, at most")
    seeds: int = option(3, "random and drawn controls, each with a seed of its own")
    limit: int | None = option(None, "questions a task, default all")
    num_fewshot: int | None = option(None, "examples in front of each question, default as the task says")
    apply_chat_template: bool = option(False, "wrap prompts in the chat template; default: as the routers were trained")
    no_chat_template: bool = option(False, "plain prompts, however the routers were trained")
    check: bool = option(
        False,
        "evaluate nothing; prove on a few requests (--limit, default 8) of the first task that routing is on, that "
        "is_static_routing=True is the base bit for bit, and that decoding with a cache equals without",
    )
    batch_size: int = option(16, "sequences a forward")
    dtype: str = option("float32", "dtype of the model", tuple(DTYPES))
    device: str = option("auto", "torch device; auto: cuda if there is one, else cpu")
    device_map: str = device_map_option()
    max_memory: str = max_memory_option()
    offload_folder: str = offload_folder_option()
    output: str = option(
        "", "folder for evaluation.json and its page, or a JSON file; default the folder of the checkpoint"
    )

    def problems(self) -> list[str]:
        found = [] if self.checkpoint else ["--checkpoint is missing; give the folder of a routed checkpoint"]
        if not self.task_names():
            found.append(f"--tasks {self.tasks!r} names no task")
        found += task_problems(self.task_names())
        if unknown := [name for name in self.control_names() if name not in CONTROLS]:
            found.append(f"--controls {', '.join(unknown)}: unknown; allowed are {', '.join(CONTROLS)}")
        if self.control_data:
            found += [problem.replace("--dataset", "--control_data", 1) for problem in unknown_names(self.control_data)]
            found += files_without_splits("control_data", self.control_data)
        ending = Path(self.output).suffix
        if ending[1:].isalpha() and ending != ".json" and not Path(self.output).is_dir():
            found.append(f"--output {self.output!r} must end in .json, or name a folder")
        if self.output or Path(self.checkpoint).is_dir():
            place = Path(self.output or self.checkpoint)
            found += unwritable("--output", place.parent if place.suffix == ".json" else place)
        found += below(self, batch_size=1, seeds=1, control_samples=1)
        if self.limit is not None:
            found += below(self, limit=1)
        if self.num_fewshot is not None:
            found += below(self, num_fewshot=0)
        if self.check:
            found += no_map(self, "--check takes the stock model apart, layer by layer, on one device; leave one out")
        return found + flag_problems(self) + place_problems(self)

    def outside_problems(self) -> list[str]:
        try:
            config = check_checkpoint(Path(self.checkpoint))
            record = training_record(Path(self.checkpoint))
        except UserError as error:
            return [f"--checkpoint: {error}"] if self.checkpoint else []
        kind = kind_of(config)
        if self.check and not kind.learned:
            return [f"--check: {self.checkpoint} has router {config['router']!r}, which decides nothing to be checked"]
        router = config.get("router", "per_layer")
        if found := self._menu_problems(config, record):
            return found
        if "drawn" in self.control_names() and kind.decides_for == "token":
            return [
                f"--controls drawn: {self.checkpoint} has router {router!r}, whose tokens take routes of their own, "
                "which no other question can take; leave it out"
            ]
        if "static" in self.control_names() and not kind.has_menu and not (self.control_data or record.get("datasets")):
            return [
                "--controls static: the checkpoint does not say which data sets its labels are of; name data sets with "
                "--control_data, whose validation questions choose the static path"
            ]
        if "static" in self.control_names() and not kind.has_menu and not self.control_data:
            recorded = ",".join(record["datasets"])
            wrong = unknown_names(recorded) + files_without_splits("dataset", recorded)
            return [
                f"--controls static: the labels of the checkpoint are of {recorded}, and "
                f"{problem.removeprefix('--dataset ')}; name data sets with --control_data"
                for problem in wrong[:1]
            ]
        return []

    def _menu_problems(self, config: dict, record: dict) -> list[str]:
        """What is wrong with controls of menu routers."""
        found, asked = [], [name for name in self.control_names() if name in OF_MENUS]
        if asked and not kind_of(config).has_menu:
            return [f"--controls {', '.join(asked)}: {self.checkpoint} has no menu router; leave them out"]
        if ("shuffled" in asked) != bool(self.shuffled_checkpoint):
            found.append("--controls shuffled and --shuffled_checkpoint go together; give both or none")
        elif self.shuffled_checkpoint:
            try:
                other = check_checkpoint(Path(self.shuffled_checkpoint))
                if other.get("menu") != config["menu"]:
                    found.append(f"--shuffled_checkpoint: {self.shuffled_checkpoint} has another menu; train it alike")
                if not training_record(Path(self.shuffled_checkpoint))["arguments"].get("shuffle_questions"):
                    found.append(
                        f"--shuffled_checkpoint: {self.shuffled_checkpoint} was trained on its own questions; make one "
                        "with train.py --objective value --shuffle_questions"
                    )
            except UserError as error:
                found.append(f"--shuffled_checkpoint: {error}")
        if "dataset" in asked and not (self.table or record["arguments"].get("data")):
            found.append("--controls dataset: the checkpoint does not say what it learned from; name labels by --table")
        return found

    def task_names(self) -> list[str]:
        return names_of(self.tasks)

    def control_names(self) -> list[str]:
        return names_of(self.controls)
