"""A checkpoint beside its base and controls: which methods there are, and what is kept of each."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState
from transformers import AutoModelForCausalLM

from routing.arguments import DTYPES, EvaluationArguments, pick_device
from routing.checkpoint import checkpoint_hash, load_checkpoint
from routing.controls import first_routed_layer, skips_around, static_routes
from routing.evaluation.check import check_prompts, proofs
from routing.evaluation.check_global import stock_twin
from routing.evaluation.lm import PromptRoutedLM
from routing.evaluation.methods import Settings, TaskResult, evaluate, of_first, random_of, route_facts, stored, summary
from routing.evaluation.statistics import mcnemar
from routing.families import locate_model
from routing.files import file_stamps, write_json
from routing.path_scoring import PathEvaluator
from routing.run_info import git_commit, hardware, versions
from routing.scoring import draw_requests
from routing.search.routes import Route


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
        device, dtype = pick_device(arguments.device), DTYPES[arguments.dtype]
        # Connects the processes of `accelerate launch`; all but the first wait while it looks for static paths.
        PartialState(cpu=device.type == "cpu", timeout=timedelta(weeks=1))
        routed, tokenizer = load_checkpoint(folder, dtype, device)
        self.routed = PromptRoutedLM(routed, tokenizer, arguments.batch_size)
        self.base = None
        if arguments.base or arguments.check:
            stock = AutoModelForCausalLM.from_pretrained(locate_model(self.base_name), dtype=dtype)
            self.base = PromptRoutedLM(stock.to(device).eval(), tokenizer, arguments.batch_size)
        self.depth = routed.config.num_hidden_layers
        self.output = Path(arguments.output or folder / "evaluation.json")
        self.settings = Settings(arguments.limit, arguments.num_fewshot, arguments.apply_chat_template)
        self.key = vars(self.settings) | {
            "checkpoint": file_stamps(folder, "*.safetensors", "config.json"),
            "base": [self.base_name, file_stamps(Path(locate_model(self.base_name)), "*.safetensors")],
            "dtype": arguments.dtype,
            "batch_size": arguments.batch_size,
            "hardware": hardware(),
        }
        self.checkpoint_sha256 = checkpoint_hash(folder)
        self.has_own_weights = training["arguments"].get("trainable") == "lora"
        self.control_data = arguments.control_data or ",".join(training.get("datasets", ()))
        self.tuning = []
        if "static" in arguments.control_names():
            chat = arguments.apply_chat_template
            self.tuning = draw_requests(self.control_data, "validation", arguments.control_samples, tokenizer, chat)

    def static_routes(self, skips: int) -> list[Route]:
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
        own = summary(routed, self.depth)
        controls = []

        def add(name: str, method: str, seed: int | None, found: TaskResult) -> None:
            controls.append(
                {"name": name, "method": method, "seed": seed}
                | summary(found, self.depth)
                | {
                    "paired_with_base": base and mcnemar(base.correct, found.correct),
                    "paired_with_routed": mcnemar(routed.correct, found.correct),
                }
            )

        if "static" in self.arguments.control_names():
            skipped = skips_around(self.depth, own["layers"])
            routes = self.static_routes(max(skipped)) if skipped else []
            for skips in skipped:
                name, route = f"static, {skips} skipped", routes[skips - 1]
                add(name, "static", None, result(name, self.routed, lambda _, route=route: route, route=list(route)))
        if "random" in self.arguments.control_names():
            first = first_routed_layer(self.routed.model.config)
            for seed in range(self.arguments.seeds):
                name = f"random, seed {seed}"
                add(name, "random", seed, result(name, self.routed, random_of(routed, seed, first)))
        return {
            "task": task,
            "n": len(routed.correct),
            "base": base and summary(base, self.depth),
            "routed": own,
            "paired": base and mcnemar(base.correct, routed.correct),
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
            "versions": versions(),
            "git_commit": git_commit(),
        }

    def check(self, task: str, manager) -> bool:
        """Print the proofs that routing is on and exact; whether all hold."""
        chat = self.settings.apply_chat_template
        prompts = check_prompts(self.routed, task, manager, self.arguments.limit or 8, chat)
        stock, name = self.base.model, "the base"
        if self.has_own_weights:
            stock, name = stock_twin(stock, self.routed.model), "the stock model with these weights"
        found = proofs(stock, self.routed.model, prompts, self.routed.tokenizer.pad_token_id, name)
        for proof in found if PartialState().is_main_process else ():
            print(f"{'PASS' if proof.holds else 'FAIL'}  {proof.statement}\n      {proof.seen}")
        return all(proof.holds for proof in found)
