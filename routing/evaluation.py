"""Stage 3: lm-eval with routing on the prompt alone, base and routed model side by side.

Stock `lm_eval --model hf` hands the model prompt and scored continuation in one sequence, so its routing reads
both. `PromptRoutedLM` passes the length of the prompt along, and notes routes and time.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager, get_task_dict
from tqdm import tqdm

from routing.errors import UserError

CONFIGS = Path(__file__).resolve().parents[1] / "eval_configs"


@dataclass
class TaskResult:
    """One model on one task.

    Attributes:
        correct: verdict of each question, by its index in the task.
        seconds: time inside the model.
        routes: executed routes, one a request.
    """

    correct: dict[int, bool]
    seconds: float
    routes: list[list[int]] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        return sum(self.correct.values()) / len(self.correct)


class PromptRoutedLM(HFLM):
    """lm-eval's HuggingFace model, whose routing never sees a token that is being scored.

    Serves stock models too, then it only measures time.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.routed = hasattr(self.model, "last_routes")
        self._prompt_lengths: list[int] | None = None
        self.clear_records()

    def clear_records(self) -> None:
        self.seconds, self.routes = 0.0, []

    def _record(self, start: float) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start
        if self.routed:
            self.routes += self.model.last_routes.tolist()

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None):
        """Batches in the order that the stock method would give them, so that the lengths match the rows."""

        def key(index: int):
            tokens = requests[index][1] + requests[index][2]
            return -len(tokens), tuple(tokens)

        order = sorted(range(len(requests)), key=key)
        answers = [None] * len(requests)
        size = int(self.batch_size)
        self.logits_cache = False  # It would merge requests of one context into one row.
        for start in tqdm(range(0, len(order), size), desc="scoring", disable=disable_tqdm):
            batch = [requests[index] for index in order[start : start + size]]
            self._prompt_lengths = [self._visible_prompt(context, choice) for _, context, choice in batch]
            scored = super()._loglikelihood_tokens(batch, disable_tqdm=True, override_bs=len(batch))
            self._prompt_lengths = None
            for index, answer in zip(order[start : start + size], scored, strict=True):
                answers[index] = answer
        return answers

    def _visible_prompt(self, context: list[int], choice: list[int]) -> int:
        """Prompt tokens that are left after lm-eval cuts a long request on the left."""
        cut = max(len(context) + len(choice) - (self.max_length + 1), 0)
        return max(len(context) - cut, 1)

    def _model_call(self, inps, attn_mask=None, labels=None):
        start = time.perf_counter()
        if self.routed and self._prompt_lengths is not None:
            with torch.no_grad():
                logits = self.model(inps, prompt_lengths=torch.tensor(self._prompt_lengths)).logits
        else:
            logits = super()._model_call(inps, attn_mask=attn_mask, labels=labels)
        self._record(start)
        return logits

    def _model_generate(self, context, max_length, stop, **generation_kwargs):
        start = time.perf_counter()
        tokens = super()._model_generate(context, max_length, stop, **generation_kwargs)
        self._record(start)
        return tokens


def check_tasks(names: list[str]) -> TaskManager:
    """lm-eval's tasks plus those of eval_configs/.

    Raises:
        UserError: naming tasks that do not exist.
    """
    manager = TaskManager(include_path=str(CONFIGS))
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise UserError(
            f"unknown task {', '.join(unknown)}. Tasks of this project: "
            f"{', '.join(sorted(path.stem for path in CONFIGS.glob('[!_]*.yaml')))}; lm_eval ls tasks lists the others."
        )
    return manager


def evaluate_model(model: PromptRoutedLM, task: str, manager: TaskManager, limit: int | None) -> TaskResult:
    """One model on one single task, see `members`."""
    model.clear_records()
    output = simple_evaluate(
        model=model, tasks=[task], limit=limit, task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    correct: dict[int, bool] = {}
    for sample in output["samples"][task]:
        # A task with several filters gives several samples a question; the first filter counts.
        correct.setdefault(sample["doc_id"], accuracy_of(task, sample))
    return TaskResult(correct, model.seconds, model.routes)


def members(names: list[str], manager: TaskManager) -> list[str]:
    """Names of single tasks, groups resolved, each once. Loads their questions.

    Raises:
        UserError: if the questions cannot be had.
    """

    def leaves(tasks: dict) -> list[str]:
        return [
            leaf
            for key, value in tasks.items()
            for leaf in (leaves(value) if isinstance(value, dict) else [getattr(key, "group", None) or str(key)])
        ]

    try:
        return list(dict.fromkeys(leaf for name in names for leaf in leaves(get_task_dict([name], manager))))
    except OSError as error:
        raise UserError(
            f"the questions of {', '.join(names)} cannot be loaded ({error}). Without hub access use the routed_ tasks "
            "of eval_configs/."
        ) from error


def accuracy_of(task: str, sample: dict) -> bool:
    """Whether a sample counts as right, by the first accuracy-like metric the task reports."""
    for metric in ("acc", "exact_match", "exact"):
        if metric in sample and sample[metric] in (0, 1, 100):
            return bool(sample[metric])
    raise UserError(
        f"task {task!r} gives a question no plain right or wrong (acc or exact match), so the answers of two models "
        "cannot be paired. Evaluate it with stock lm_eval."
    )


def wilson_interval(correct: int, total: int, z: float = 1.96) -> list[float]:
    """95 % interval of a proportion (Wilson, JASA 22, 1927)."""
    share = correct / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return [max(centre - half, 0.0), min(centre + half, 1.0)]


def mcnemar(first: dict[int, bool], second: dict[int, bool]) -> dict[str, float]:
    """Exact McNemar test of two models on the same questions (binomial test on the discordant pairs)."""
    gained = sum(second[i] and not first[i] for i in first)
    lost = sum(first[i] and not second[i] for i in first)
    total = gained + lost
    tail = sum(math.comb(total, k) for k in range(min(gained, lost) + 1)) / 2**total
    return {"gained": gained, "lost": lost, "p": min(1.0, 2 * tail)}


def summary(result: TaskResult, depth: int) -> dict:
    """Accuracy, its interval, layers executed an input, and seconds."""
    layers = sum(map(sum, result.routes)) / len(result.routes) if result.routes else float(depth)
    correct = sum(result.correct.values())
    return {
        "accuracy": result.accuracy,
        "ci95": wilson_interval(correct, len(result.correct)),
        "layers": layers,
        "seconds": result.seconds,
    }


def route_share(routes: list[list[int]]) -> dict[str, float]:
    """Share of (input, layer) pairs that skip, run and repeat."""
    counts = [count for route in routes for count in route]
    return {name: counts.count(i) / len(counts) for i, name in enumerate(("skip", "run", "repeat"))}
