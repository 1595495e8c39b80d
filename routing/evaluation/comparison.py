"""A checkpoint beside its base and controls: which methods there are, and what is kept of each."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState

from routing.common.devices import DTYPES
from routing.common.errors import UserError, raise_all
from routing.common.files import file_stamps, write_json
from routing.common.keyed import judging
from routing.common.parser import file_of
from routing.common.run_info import hardware
from routing.common.statistics import against_mixture, lower_bound, mcnemar
from routing.evaluation.arguments import EvaluationArguments
from routing.evaluation.budget import find_bias, mean_layers
from routing.evaluation.calibration import deciding
from routing.evaluation.check import check_prompts, proofs
from routing.evaluation.check_global import stock_twin
from routing.evaluation.lm import PromptRoutedLM
from routing.evaluation.methods import (
    Settings,
    TaskResult,
    drawn_of,
    evaluate,
    of_first,
    random_of,
    route_facts,
    stored,
    summary,
)
from routing.labels.table import Table, read_table
from routing.models.bases import load_stock, weight_stamps
from routing.models.checkpoint import load_checkpoint
from routing.models.checkpoint_files import checkpoint_hash, read_config
from routing.models.config_fields import config_with
from routing.models.placement import place_of
from routing.models.templates import filling_problems
from routing.scoring.context import fitting
from routing.scoring.controls import around, first_routed_layer, skips_around, static_routes
from routing.scoring.packed import PathEvaluator
from routing.scoring.prompting import asked, recorded, trained_prompting
from routing.scoring.requests import draw_requests
from routing.search.routes import Route, full_route
from train_models.router_kinds import kind_of

BIAS_PROMPTS = 200  # prompts of a task by which a control's layers are set


def dataset_of(task: str) -> str:
    """Data set of a task of this project, or of one that is named like it."""
    return task.removeprefix("routed_")


def static_name(route: Route) -> str:
    skipped, repeated = route.count(0), route.count(2)
    return f"static, {skipped} skipped" + (f", {repeated} repeated" if repeated else "")


def dataset_table(arguments: EvaluationArguments, training: dict, menu: list) -> Table:
    """The table that the path of a data set is chosen by.

    Args:
        menu: of the checkpoint, whose paths the table must have.

    Raises:
        UserError: if it is of another menu, or lacks a task's data set.
    """
    folders = (arguments.table or training["arguments"].get("data", "")).split(",")
    table = read_table([Path(folder.strip()) for folder in folders if folder.strip()])
    if table.routes != [tuple(route) for route in menu]:
        raise UserError(f"--table {','.join(folders)} has another menu than the checkpoint. Give labels of its menu.")
    if unknown := [task for task in arguments.task_names() if dataset_of(task) not in table.datasets]:
        raise UserError(
            f"--controls dataset: {', '.join(unknown)} is of none of the data sets of {','.join(folders)} "
            f"({', '.join(dict.fromkeys(table.datasets))}). Give other --tasks, or another --table."
        )
    return table


class Comparison:
    """A checkpoint, its base and the controls, method by method and task by task.

    Each method's result on each task is kept in a file of its own, which a rerun with the same settings reads.

    Args:
        arguments: of evaluation.py.
        training: what train.py wrote beside the weights.

    Attributes:
        base, routed: ready for lm-eval; base None without --base.
        output: the JSON file of the whole; the parts lie beside it.
    """

    def __init__(self, arguments: EvaluationArguments, training: dict):
        self.arguments, self.base_name = arguments, training["arguments"]["model_id"]
        folder = Path(arguments.checkpoint)
        self.table, self._shuffled = None, None
        if "dataset" in arguments.control_names():  # Before models are loaded: it may be missing, or of another menu.
            self.table = dataset_table(arguments, training, read_config(folder)["menu"])
        place, dtype = place_of(arguments), DTYPES[arguments.dtype]
        # Connects the processes of `accelerate launch`; all but the first wait while it looks for static paths.
        PartialState(cpu=place.device.type == "cpu", timeout=timedelta(weeks=1))
        routed, tokenizer = load_checkpoint(folder, dtype, place)
        prompting = asked(trained_prompting(training), arguments)
        chat = prompting.apply_chat_template
        raise_all(filling_problems(tokenizer, prompting, chat, prompting.tools_in_template))
        self.prompting = prompting
        self.routed = PromptRoutedLM(routed, tokenizer, arguments.batch_size, prompting)
        self.base = None
        if arguments.base or arguments.check:
            # The commit that the routers were trained on, whatever the hub has now.
            stock = load_stock(self.base_name, dtype, training.get("base_revision"), place)
            self.base = PromptRoutedLM(stock, tokenizer, arguments.batch_size, prompting)
        self.depth = routed.config.num_hidden_layers
        self.output = file_of(arguments.output or str(folder), "evaluation.json")
        system = prompting.system_instruction or None
        self.settings = Settings(arguments.limit, arguments.num_fewshot, chat, system)
        self.key = vars(self.settings) | {
            "prompting": recorded(prompting),
            "checkpoint": file_stamps(folder, "*.safetensors", "config.json"),
            "base": [self.base_name, weight_stamps(self.base_name, training.get("base_revision"))],
            "dtype": arguments.dtype,
            "batch_size": arguments.batch_size,
            "hardware": hardware(),
            "tokenizer": file_stamps(folder, "tokenizer*.json", "chat_template.jinja"),
            "judging": judging(),
        }
        self.checkpoint_sha256 = checkpoint_hash(folder)
        self.has_own_weights = training["arguments"].get("trainable") == "lora"
        self.control_data = arguments.control_data or ",".join(training.get("datasets", ()))
        self.tuning = []
        if "static" in arguments.control_names() and not kind_of(routed.config).has_menu:
            drawn = self.control_data, "validation", arguments.control_samples
            self.tuning = fitting(draw_requests(*drawn, tokenizer, prompting), routed.config)

    def static_routes(self, mean: float) -> list[Route]:
        """Static routes that run just more and just fewer layers than a mean: of a menu router those of its menu, else
        the best ones by validation questions."""
        config = self.routed.model.config
        if kind_of(config).has_menu:
            return around([tuple(route) for route in config.menu], mean)
        skipped = skips_around(self.depth, mean)
        found = self.searched_routes(max(skipped)) if skipped else []
        return [found[skips - 1] for skips in skipped]

    def searched_routes(self, skips: int) -> list[Route]:
        """The best static routes that skip 1, 2, ... layers, by validation questions; found by the first process."""
        path = self.parts / "static.json"
        key = self.key | {"data": self.control_data, "samples": len(self.tuning)}
        found = []
        if PartialState().is_main_process:
            saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            found = saved["routes"] if saved.get("key") == key else []
            if len(found) < skips:
                evaluator = PathEvaluator(self.routed.model, self.routed.tokenizer, self.arguments.batch_size)
                found = static_routes(evaluator, self.tuning, self.depth, skips)
                write_json(path, {"key": key, "routes": found})
        return [tuple(route) for route in of_first(found)]

    def at_equal_layers(
        self, mean: float, answered: dict[int, dict[int, bool]], base: TaskResult | None, routed: TaskResult
    ) -> dict | None:
        """The routed model beside a mixture of static paths (and the base) of the same mean layers, if they reach it.

        Args:
            answered: verdicts by layers of the path.
        """
        known = answered | ({self.depth: base.correct} if base and self.depth not in answered else {})
        low = max((n for n in known if n <= mean + 1e-9), default=None)
        high = min((n for n in known if n >= mean - 1e-9), default=None)
        if low is None or high is None:
            return None
        share = (mean - low) / (high - low) if high > low else 1.0
        return {"layers": mean} | against_mixture(routed.correct, [known[low], known[high]], [1 - share, share])

    def dataset_route(self, task: str) -> Route:
        """The path of the menu that is best on a table's questions of the task's data set, at the router's price."""
        table, config, name = self.table, self.routed.model.config, dataset_of(task)
        means = table.rewards[[at for at, own in enumerate(table.datasets) if own == name]].mean(0)
        return table.routes[int((means - (config.cost - config.route_bias) * table.layers).argmax())]

    def shuffled(self) -> PromptRoutedLM:
        """The control that was trained on shuffled questions, loaded once."""
        if self._shuffled is None:
            place, dtype = place_of(self.arguments), DTYPES[self.arguments.dtype]
            model, tokenizer = load_checkpoint(Path(self.arguments.shuffled_checkpoint), dtype, place)
            self._shuffled = PromptRoutedLM(model, tokenizer, self.arguments.batch_size, self.prompting)
        return self._shuffled

    def shuffled_bias(self, routed: TaskResult, task: str, manager) -> float:
        """The bias at which the shuffled router runs as many layers as the routed model, by the task's prompts."""
        chat, model, tokenizer = self.settings.apply_chat_template, self.shuffled().model, self.shuffled().tokenizer
        prompts = check_prompts(self.shuffled(), task, manager, BIAS_PROMPTS, chat, self.settings.system_instruction)
        decide = deciding(model, tokenizer, prompts, self.arguments.batch_size)
        cost = model.config.cost
        return find_bias(lambda bias: mean_layers(decide(cost - bias)), mean_layers(routed.routes), 0.1)[0]

    @property
    def parts(self) -> Path:
        return self.output.with_suffix(".parts")

    def run(self, task: str, manager) -> dict:
        """All methods on one task, as the dict that goes into the JSON file."""

        def result(name: str, model: PromptRoutedLM, forced=None, **key) -> TaskResult:
            path = self.parts / f"{task}.{name.replace(', ', '_').replace(' ', '_')}.json"
            return stored(path, self.key | key, lambda: evaluate(model, task, manager, self.settings, forced))

        base = result("base", self.base) if self.arguments.base else None
        routed = result("routed", self.routed)
        own, config = summary(routed, self.depth), self.routed.model.config
        controls, asked = [], self.arguments.control_names()

        def add(name: str, method: str, seed: int | None, found: TaskResult) -> TaskResult:
            controls.append(
                {"name": name, "method": method, "seed": seed}
                | summary(found, self.depth)
                | {
                    "paired_with_base": base and mcnemar(base.correct, found.correct),
                    "paired_with_routed": mcnemar(routed.correct, found.correct),
                    "difference_lower_bound": base and lower_bound(base.correct, found.correct),
                    "routed_lower_bound": lower_bound(found.correct, routed.correct),
                }
            )
            return found

        def along(name: str, method: str, route: Route) -> TaskResult:
            return add(name, method, None, result(name, self.routed, lambda _: route, route=list(route)))

        mixture = None
        if "static" in asked:
            # The base stands for the full path: same answers, proved by --check.
            statics = [r for r in self.static_routes(own["layers"]) if not (base and r == full_route(self.depth))]
            answered = {sum(r): along(static_name(r), "static", r).correct for r in statics}
            mixture = self.at_equal_layers(own["layers"], answered, base, routed)
        if "random" in asked:
            first = first_routed_layer(config)
            for seed in range(self.arguments.seeds):
                name = f"random, seed {seed}"
                add(name, "random", seed, result(name, self.routed, random_of(routed, seed, first), kind="own counts"))
        if "drawn" in asked:
            for seed in range(self.arguments.seeds):
                name = f"drawn, seed {seed}"
                add(name, "drawn", seed, result(name, self.routed, drawn_of(routed, seed)))
        if "dataset" in asked:
            along("data set's path", "dataset", self.dataset_route(task))
        if "shuffled" in asked:
            folder = Path(self.arguments.shuffled_checkpoint)
            stamps = {"shuffled": checkpoint_hash(folder)}
            bias = self.shuffled_bias(routed, task, manager)
            with config_with(self.shuffled().model, route_bias=bias):
                add("shuffled", "shuffled", None, result("shuffled", self.shuffled(), bias=bias, **stamps))
        return {
            "task": task,
            "n": len(routed.correct),
            "base": base and summary(base, self.depth),
            "routed": own,
            "paired": base and mcnemar(base.correct, routed.correct),
            "difference_lower_bound": base and lower_bound(base.correct, routed.correct),
            "static_at_equal_layers": mixture,
            "controls": controls,
            **route_facts(routed.routes),
            "model": self.base_name,
            "checkpoint": self.arguments.checkpoint,
            "checkpoint_sha256": self.checkpoint_sha256,
            "dtype": self.arguments.dtype,
            "seeds": self.arguments.seeds,
            "control_data": self.control_data if self.tuning else None,
            "control_questions": len(self.tuning),
            **vars(self.settings),
            "hardware": hardware(),
            "date": routed.date,
            "versions": routed.versions,
            "git_commit": routed.git_commit,
            "key_sha256": hashlib.sha256(json.dumps(self.key, sort_keys=True, default=str).encode()).hexdigest(),
        }

    def check(self, task: str, manager) -> bool:
        """Print the proofs that routing is on and exact; whether all hold."""
        asked = self.settings.apply_chat_template, self.settings.system_instruction
        prompts = check_prompts(self.routed, task, manager, self.arguments.limit or 8, *asked)
        stock, name = self.base.model, "the base"
        if self.has_own_weights:
            stock, name = stock_twin(stock, self.routed.model), "the stock model with these weights"
        found = proofs(stock, self.routed.model, prompts, self.routed.tokenizer.pad_token_id, name)
        for proof in found if PartialState().is_main_process else ():
            print(f"{'PASS' if proof.holds else 'FAIL'}  {proof.statement}\n      {proof.seen}")
        return all(proof.holds for proof in found)
