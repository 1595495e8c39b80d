"""Command-line arguments: one dataclass a stage; all problems are reported at once, before a model is loaded."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
import yaml
from transformers import HfArgumentParser

from routing.common.errors import UserError, raise_all
from routing.labels.reading import LABELS, read_header
from routing.models.checkpoint import adapter_hashes, check_adapters, check_checkpoint, training_record
from routing.models.default_model import DEFAULT_MODEL
from routing.models.families import load_base_config
from routing.objectives.table import END_TO_END, PREFERENCE
from routing.search.exploration import EXPLORATIONS
from routing.search.mcts import MOVE_ORDERS
from routing.search.menu import Pooled, parse_spec, spec_problems
from routing.search.results import REWARDS
from routing.tasks import expand_names, unknown_names
from routing.tasks.answers import SCORES
from routing.tasks.examples import SPLITS
from routing.tasks.prompts import SCORINGS
from train_models.global_routers import TOKEN_ROUTERS
from train_models.global_routing import MAKERS

CONTROLS = ("static", "random", "drawn", "dataset", "shuffled")
OF_MENUS = ("dataset", "shuffled")  # controls of menu routers alone
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def option(default, help: str, choices: tuple | None = None):
    """A dataclass field with a help text, and allowed values."""
    metadata = {"help": help} | ({"choices": list(choices)} if choices else {})
    return field(default=default, metadata=metadata)


@dataclass
class DataGenerationArguments:
    """Search layer paths and write labels. Run it again to continue after an interruption."""

    model: str = option(DEFAULT_MODEL, "base model: hub id, local folder, or the default, fetched without a hub")
    dataset: str = option("arc,dart", "comma-separated data sets: names, groups (arc, dart), paths of JSONL files")
    split: str = option("search", "split to draw from; all of them are disjoint", SPLITS)
    num_samples: int | None = option(None, "examples drawn from each data set; default all")
    search: str = option(
        "mcts",
        "mcts (tree search for short right paths), or an exploration that scores sets of pruned layers, good and bad: "
        "dfs (depth first, one more random layer a step) or random (random sets of each size); or menu (the same paths "
        "for all questions); options of the other searches have no effect",
        ("mcts", *EXPLORATIONS, "menu"),
    )
    menu: str = option(
        "",
        "menu: the paths beside the full one, several of these joined by +: divergence:0,2,4 (without 0, 2 and 4 "
        "layers, the next one to go being that without which the model stays nearest to its own answers), "
        "influence:0,2,4 (without the k layers of least block influence), greedy:0,2,4 (the next one to go is that "
        "without which the reward on validation questions is highest), labels:FOLDER[,FOLDER]:K (K paths that "
        "searches found, by how many other questions they serve), the path of a JSON file (a list of paths, or the "
        "header of the labels of a menu)",
    )
    menu_kept: int = option(1, "menu: layers at the beginning that no path of influence, greedy and labels changes")
    menu_samples: int = option(
        128,
        "menu: search questions of each data set for influence, of which 64 in all tell the divergence, and validation "
        "questions for greedy, at most",
    )
    score: str = option(
        "accuracy",
        "dfs, random and menu: score of an answer, which is decoded to its end; accuracy is 1 or 0 by the checker, and "
        "all there is for loglikelihood scoring (in a menu it is the verdict alone)",
        tuple(SCORES),
    )
    num_scenarios: int = option(20, "dfs: layer sets tried for each example beside the full path, at most")
    branching: int = option(8, "dfs: layers tried at the full path, halved at each level below")
    min_branching: int = option(2, "dfs: layers tried at any level, at least; 1 to --branching")
    subsets: int = option(5, "random: layer sets tried of each size, all distinct")
    stop_score: float = option(0.1, "random: the first size whose mean score is below this one is the last")
    adapters: str = option(
        "", "folder of a checkpoint of --model with trained adapters, which stand in for the layers that are skipped"
    )
    num_simulations: int = option(50, "mcts: simulations for each example")
    budget: float = option(2.0, "mcts: longest path, as a multiple of the number of layers, at least 1")
    exploration_constant: float = option(1.8, "mcts: c of the UCB rule")
    length_penalty: float = option(3.0, "mcts: lambda of the UCB rule, for |path| / L")
    random_prob: float = option(0.1, "mcts: probability of descending to a random child, 0 to 1")
    widening: float = option(0.25, "mcts: a node visited V times may have V**widening open children, above 0 to 1")
    focus: bool = option(
        True,
        "mcts: let the verdicts of a search order its moves, and search nothing below a wrong path while the full one "
        "is right; --no_focus for neither",
    )
    stop_saving: int = option(2, "mcts: stop at a right path this many layers shorter than the model, at least 1")
    prior: str = option(
        "none",
        "mcts: what is expected of a move before it was made: none (all moves alike) or influence (edits of layers "
        "that change the prompt's states least do best)",
        ("none", "influence"),
    )
    move_order: str = option(
        "random",
        "mcts, with --prior none: which of moves that promise the same is made first: random (as published), or late "
        "(of the last layers: faster, as what a path computed before them is stored, but most labels then skip the "
        "same layers)",
        MOVE_ORDERS,
    )
    reward: str = option(
        "binary",
        "mcts: binary (is the answer right) or margin (a graded one: loglikelihood of the right choice minus the best "
        "wrong one, each per byte; needs loglikelihood scoring); menu: margin keeps the margins in the labels",
        REWARDS,
    )
    verify: str = option(
        "none",
        "mcts and menu: re-test of each right path, so that labels rest on paths that are right for a reason: permute "
        "(the choices in another order, where the prompt lists them), paraphrase (the question in other words), alone "
        "(the same again without batch or cache, for half precision)",
        ("none", "permute", "paraphrase", "alone"),
    )
    scoring: str = option(
        "auto",
        "generate (greedy answer and checker), loglikelihood (lm-eval's acc), loglikelihood_norm (acc_norm), "
        "loglikelihood_bytes (acc_bytes); auto: loglikelihood where there are choices, else generate",
        SCORINGS,
    )
    wording: int = option(
        0,
        "0: the questions as they are; 1: the same ones in other words, for python -m routing headroom --again",
        (0, 1),
    )
    apply_chat_template: bool = option(False, "wrap prompts in the chat template, as lm-eval does with this flag")
    tools_in_template: bool = option(
        False,
        "with --apply_chat_template: let the template list the functions that may be called, as models for that "
        "know them; default: in the text of the message, as stock lm-eval can",
    )
    dtype: str = option("float32", "dtype of the model", tuple(DTYPES))
    device: str = option("auto", "torch device; auto: cuda if there is one, else cpu")
    batch_size: int = option(64, "paths evaluated together, at most")
    group_size: int = option(64, "examples searched side by side; what one process claims at a time")
    cache_gib: float = option(2.0, "states of paths kept between batches for paths that share them, GiB at most")
    seed: int = option(0, "seed of the drawing of examples and of every search")
    output_dir: str = option("data/mcts_paths", "folder of the label file")

    def problems(self) -> list[str]:
        found = unknown_names(self.dataset)
        found += below(self, num_simulations=1, budget=1, exploration_constant=0, length_penalty=0, stop_saving=1)
        found += below(self, batch_size=1, group_size=1, cache_gib=0)
        if self.num_samples is not None:
            found += below(self, num_samples=1)
        found += outside(self, random_prob=(0, 1), widening=(0, 1))
        if self.widening == 0:
            found.append(f"--widening {self.widening} must be above 0, or no node could have a child")
        found += below(self, num_scenarios=1, branching=1, min_branching=1, subsets=1)
        if 1 <= self.branching < self.min_branching:
            found.append(f"--min_branching {self.min_branching} must be at most --branching, {self.branching}")
        if not math.isfinite(self.stop_score):
            found.append(f"--stop_score {self.stop_score} must be a number")
        if self.search in EXPLORATIONS:
            found += [
                f"--{name} {getattr(self, name)} is for --search mcts and menu; --search {self.search} needs "
                f"--{name} {needed}"
                for name, needed in (("verify", "none"), ("reward", "binary"))
                if getattr(self, name) != needed
            ]
        if self.wording and self.verify == "paraphrase":
            found.append("--verify paraphrase would ask in the words of --wording 1 again; leave one of them out")
        found += below(self, menu_samples=1)
        if self.menu and self.search != "menu":
            found.append(f"--menu {self.menu} is for --search menu, not {self.search}; give both or neither")
        if self.search == "menu" and not self.menu:
            found.append("--search menu needs --menu, which says what its paths are, such as --menu divergence:0,2,4")
        if self.search == "menu" and "greedy:" in self.menu:
            found += files_without_splits("dataset", self.dataset)
        return found + template_problems(self) + device_problems(self.device)

    def outside_problems(self) -> list[str]:
        found = model_problems(self.model) + adapter_problems(self.adapters, self.model)
        if self.search == "menu" and not found:
            depth = load_base_config(self.model).num_hidden_layers
            found = spec_problems(self.menu, depth, self.menu_kept) or pool_problems(self.menu, depth)
        return found


@dataclass
class TrainArguments:
    """Train routers on the frozen base and write a checkpoint. Run it again with --resume to continue."""

    run_name: str = option("", "name of the run, and of the checkpoint folder below --output_dir")
    model_id: str = option(DEFAULT_MODEL, "base model that the labels were made with")
    data: str = option("data/mcts_paths", "comma-separated folders of labels from data_generation.py")
    adapters: str = option(
        "", "folder of a checkpoint of --model_id with adapters, which stand in for skipped layers; default none"
    )
    objective: str = option(
        "supervised",
        f"training objective; {', '.join(END_TO_END)} train end to end on text, {', '.join(PREFERENCE)} on explored "
        "layer sets, value on what paths are worth, adapters trains adapters for skipped layers, lm a small hybrid "
        "language model from scratch; they have arguments of their own: train.py --objective gumbel --help",
        ("supervised", "value", "adapters", "lm", *END_TO_END, *PREFERENCE),
    )
    num_epochs: int = option(25, "epochs over the training examples")
    learning_rate: float = option(1e-3, "peak learning rate of AdamW, cosine decay")
    weight_decay: float = option(0.01, "weight decay of AdamW")
    warmup_steps: int = option(500, "steps of linear warm-up; at most a tenth of all steps are used")
    batch_size: int = option(16, "examples a step and device; N processes of accelerate launch take N times as many")
    gradient_accumulation: int = option(1, "steps whose gradients are averaged before an update")
    num_windows: int = option(8, "windows W of prompt tokens pooled for the routers")
    router_hidden_size: int = option(128, "width of each router's hidden layer")
    focal_gamma: float = option(2.0, "gamma of the focal loss")
    class_beta: float = option(0.999, "beta of the effective number of samples, 0 (no weights) to below 1")
    class_weighting: str = option(
        "effective",
        "class weights from the label counts: effective numbers, inverse frequency, or none",
        ("effective", "inverse", "none"),
    )
    with_squad: bool = option(False, "use labels of squadv2 too")
    with_commonsense: bool = option(False, "use labels of commonsense_qa too")
    eval_fraction: float = option(0.1, "share of examples held out, by question hash, above 0 to below 1")
    num_evaluations: int = option(5, "held-out evaluations, spread evenly over training")
    eval_examples: int = option(64, "held-out examples whose answers are executed in each evaluation, at most")
    features: str = option(
        "cached", "cached: pool all router inputs once; live: run the base in every step", ("cached", "live")
    )
    features_dtype: str = option(
        "float32",
        "dtype of cached router inputs on disk; float32 is exact, the others take half the bytes and change losses",
        tuple(DTYPES),
    )
    save_base: str = option(
        "copy",
        "copy: a checkpoint with the base weights; reference: routers and the base's name",
        ("copy", "reference"),
    )
    dtype: str = option("float32", "dtype of the base while features are made and answers executed", tuple(DTYPES))
    device: str = option("auto", "torch device of the base; auto: cuda if there is one, else cpu")
    report_to: str = option("none", "where the Trainer logs", ("none", "wandb", "tensorboard"))
    seed: int = option(0, "seed of router initialisation and of shuffling")
    resume: bool = option(False, "continue the run from its last checkpoint")
    output_dir: str = option("checkpoints", "folder of the finished checkpoint folders")
    work_dir: str = option("runs", "folder of features, training states and logs")

    def problems(self) -> list[str]:
        found = run_name_problems(self.run_name)
        found += below(self, num_epochs=1, batch_size=1, gradient_accumulation=1, num_windows=1, warmup_steps=0)
        found += below(self, router_hidden_size=1, weight_decay=0, focal_gamma=0, num_evaluations=1, eval_examples=1)
        found += outside(self, class_beta=(0, 1), eval_fraction=(0, 1))
        if self.class_beta == 1:
            found.append("--class_beta 1.0 gives no weights; it must be below 1")
        if self.eval_fraction in (0, 1):
            found.append(f"--eval_fraction {self.eval_fraction} must lie between 0 and 1, neither of them")
        if not 0 < self.learning_rate < math.inf:
            found.append(f"--learning_rate {self.learning_rate} must be a number above 0")
        found += outside(self, seed=(0, 2**32 - 1))
        found += reporting_problems(self.report_to)
        if not self.data_folders():
            found.append(f"--data {self.data!r} names no folder of labels")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and self.device not in ("auto", "cpu"):
            found.append(f"--device {self.device!r} is for one process; give several auto (a GPU for each) or cpu")
        return found + device_problems(self.device)

    def outside_problems(self) -> list[str]:
        found = model_problems(self.model_id) + checkpoint_problems(self.output_dir, self.run_name)
        return found + label_problems(self.data_folders(), self.adapters, self.model_id)

    def data_folders(self) -> list[Path]:
        return [Path(name.strip()) for name in self.data.split(",") if name.strip()]


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
    apply_chat_template: bool = option(False, "wrap prompts in the chat template, as the routers were trained")
    check: bool = option(
        False,
        "evaluate nothing; prove on a few requests (--limit, default 8) of the first task that routing is on, that "
        "is_static_routing=True is the base bit for bit, and that decoding with a cache equals without",
    )
    batch_size: int = option(16, "sequences a forward")
    dtype: str = option("float32", "dtype of the model", tuple(DTYPES))
    device: str = option("auto", "torch device; auto: cuda if there is one, else cpu")
    output: str = option(
        "", "JSON file for the results, default evaluation.json in the checkpoint folder; the HTML page goes beside it"
    )

    def problems(self) -> list[str]:
        found = [] if self.checkpoint else ["--checkpoint is missing; give the folder of a routed checkpoint"]
        if not self.task_names():
            found.append(f"--tasks {self.tasks!r} names no task")
        if unknown := [name for name in self.control_names() if name not in CONTROLS]:
            found.append(f"--controls {', '.join(unknown)}: unknown; allowed are {', '.join(CONTROLS)}")
        if self.control_data:
            found += [problem.replace("--dataset", "--control_data", 1) for problem in unknown_names(self.control_data)]
            found += files_without_splits("control_data", self.control_data)
        if self.output and not self.output.endswith(".json"):
            found.append(f"--output {self.output!r} must end in .json")
        found += below(self, batch_size=1, seeds=1, control_samples=1)
        if self.limit is not None:
            found += below(self, limit=1)
        if self.num_fewshot is not None:
            found += below(self, num_fewshot=0)
        return found + device_problems(self.device)

    def outside_problems(self) -> list[str]:
        try:
            config = check_checkpoint(Path(self.checkpoint))
            record = training_record(Path(self.checkpoint))
        except UserError as error:
            return [f"--checkpoint: {error}"] if self.checkpoint else []
        if self.check and config.get("router", "per_layer") not in MAKERS:
            return [f"--check: {self.checkpoint} has router {config['router']!r}, which decides nothing to be checked"]
        router = config.get("router", "per_layer")
        if found := self._menu_problems(config, record):
            return found
        if "drawn" in self.control_names() and router in TOKEN_ROUTERS:
            return [
                f"--controls drawn: {self.checkpoint} has router {router!r}, whose tokens take routes of their own, "
                "which no other question can take; leave it out"
            ]
        if "static" in self.control_names() and router != "menu" and not (self.control_data or record.get("datasets")):
            return [
                "--controls static: the checkpoint does not say which data sets its labels are of; name data sets with "
                "--control_data, whose validation questions choose the static path"
            ]
        return []

    def _menu_problems(self, config: dict, record: dict) -> list[str]:
        """What is wrong with controls of menu routers."""
        found, asked = [], [name for name in self.control_names() if name in OF_MENUS]
        if asked and config.get("router") != "menu":
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
        return _names(self.tasks)

    def control_names(self) -> list[str]:
        return _names(self.controls)


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",") if name.strip()]


def files_without_splits(option: str, names: str) -> list[str]:
    """Names of data sets that are files of the user's own, as sentences."""
    return [
        f"--{option} {name!r} is a file of your own, which has no validation and test questions; give the name of a "
        "data set"
        for name in expand_names(names)
        if Path(name).is_file()
    ]


def run_name_problems(name: str) -> list[str]:
    if name and "/" not in name and not name.startswith("."):
        return []
    return [f"--run_name {name!r} must be a plain folder name, such as my-run"]


def checkpoint_problems(output_dir: str, run_name: str) -> list[str]:
    target = Path(output_dir) / run_name
    if not run_name or not target.exists() or (target / "training.json").is_file():
        return []
    return [
        f"--run_name {run_name}: {target} exists and is no checkpoint of train.py, so it is not replaced; give another "
        "name"
    ]


def reporting_problems(report_to: str) -> list[str]:
    if report_to == "none" or importlib.util.find_spec(report_to) is not None:
        return []
    return [f"--report_to {report_to}: the package is not installed; pip install {report_to}"]


def below(arguments, **least) -> list[str]:
    values = {name: getattr(arguments, name) for name in least}
    return [
        f"--{name} {values[name]} must be at least {low}"
        for name, low in least.items()
        if not values[name] >= low or math.isinf(values[name])
    ]


def outside(arguments, **ranges) -> list[str]:
    values = {name: getattr(arguments, name) for name in ranges}
    return [
        f"--{name} {values[name]} must lie between {low} and {high}"
        for name, (low, high) in ranges.items()
        if not low <= values[name] <= high
    ]


def model_problems(name: str) -> list[str]:
    """What is wrong with a base model, by its configuration alone; the default model is known to fit."""
    if name == DEFAULT_MODEL:
        return []
    try:
        load_base_config(name)
    except UserError as error:
        return [str(error)]
    return []


def template_problems(arguments) -> list[str]:
    """What is wrong with the options of the chat template."""
    if arguments.tools_in_template and not arguments.apply_chat_template:
        return ["--tools_in_template needs --apply_chat_template, whose template lists the functions; give both"]
    return []


def adapter_problems(folder: str, model: str) -> list[str]:
    """What is wrong with a checkpoint that shall bring the adapters of a model; none is needed."""
    try:
        if folder:
            check_adapters(Path(folder), model)
    except UserError as error:
        return [f"--adapters: {error}"]
    return []


def label_problems(folders: list[Path], adapters: str, model: str) -> list[str]:
    """What is wrong with folders of labels, by their headers: they must have been made with the same adapters."""
    if found := adapter_problems(adapters, model):
        return found
    own = adapter_hashes(adapters)
    for folder in folders:
        try:
            made = read_header(folder)["arguments"]
        except UserError as error:
            found.append(f"--data: {error}")
            continue
        if made.get("adapters_sha256", {}) != own:
            found.append(
                f"--data: {folder} was made with adapters {made.get('adapters', '')!r}, and --adapters is "
                f"{adapters!r}, which is not the same; give those, or make labels with these"
            )
    return found


def pool_problems(menu: str, depth: int) -> list[str]:
    """What is wrong with the label folders that the SPEC of a menu names, for a model of `depth` layers."""
    found = []
    for folder in (folder for source in parse_spec(menu) if isinstance(source, Pooled) for folder in source.folders):
        try:
            layers = read_header(folder)["num_layers"]
        except UserError as error:
            found.append(f"--menu labels: {error}")
            continue
        if layers != depth:
            found.append(f"--menu labels: {folder} is of a model of {layers} layers, and --model has {depth}")
        elif not (folder / LABELS).is_file():
            found.append(f"--menu labels: {folder} holds no labels yet; run data_generation.py to its end")
    return found


def device_problems(name: str) -> list[str]:
    if name == "auto":
        return []
    try:
        device = torch.device(name)
    except RuntimeError:
        return [f"--device {name!r} is no torch device, such as cpu or cuda:0"]
    if device.type == "cuda" and not torch.cuda.is_available():
        return [f"--device {name!r}: this machine has no usable GPU; give cpu or auto"]
    return []


def pick_device(name: str) -> torch.device:
    """The device of a name; auto: of several processes on a machine each takes a GPU of its own."""
    if name != "auto":
        return torch.device(name)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def is_first_process() -> bool:
    """Whether this is the process of `accelerate launch` that speaks, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def expanded(argv: list[str]) -> list[str]:
    """Arguments whose first one may be a YAML file of others, {name: value}; those behind it win.

    Raises:
        UserError: for a file that cannot be read or is no such mapping.
    """
    if not argv or not argv[0].endswith((".yaml", ".yml")):
        return argv
    try:
        values = yaml.safe_load(Path(argv[0]).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{argv[0]} cannot be read: {error}") from error
    if not isinstance(values, dict) or any(isinstance(value, (dict, list)) for value in values.values()):
        raise UserError(f"{argv[0]} must hold one `name: value` a line, such as `objective: gumbel`.")
    return [*(f"--{name}={value}" for name, value in values.items() if value is not None), *argv[1:]]


def read_arguments(kind: type, words: list[str]):
    """Arguments of one stage, not checked yet.

    Raises:
        UserError: for unknown ones.
    """
    parser = HfArgumentParser(kind, description=kind.__doc__)
    arguments, unknown = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
    if unknown:
        raise UserError(
            f"unknown arguments: {' '.join(unknown)}. --help lists those there are; a YAML file of them comes first."
        )
    return arguments


def parse(kind: type, argv: list[str] | None = None):
    """Arguments of one stage, checked: the values, then what they name on disk and on the hub, without weights.

    Raises:
        UserError: for unknown arguments, or with every problem of the values.
    """
    arguments = read_arguments(kind, expanded(sys.argv[1:] if argv is None else argv))
    raise_all(arguments.problems() + arguments.outside_problems())
    return arguments


def as_dict(arguments) -> dict:
    return {f.name: getattr(arguments, f.name) for f in fields(arguments)}
