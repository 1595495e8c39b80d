"""What the stages of a study ask of models: the questions of a task, verdicts along routes, and routers' decisions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from routing.common.devices import pick_device
from routing.common.files import file_stamps, write_json
from routing.common.keyed import judging
from routing.evaluation.budget import decided_routes
from routing.evaluation.calibration import deciding
from routing.models.checkpoint import load_adapted, load_checkpoint
from routing.models.config_fields import config_with
from routing.models.families import load_base_config, load_tokenizer
from routing.scoring.along import verdicts_along
from routing.scoring.context import fitting
from routing.scoring.plain import Evaluator
from routing.scoring.requests import Request, draw_requests
from routing.search.routes import Route
from routing.study.stages import Place
from routing.tasks.prompts import left_pad
from train_models.query_text import query_text
from train_models.router_kinds import kind_of

BATCH = 32  # prompts, or questions asked with the router on
PATHS = 160  # evaluated together: many, since on a CPU decoding waits for the weights


class Asking:
    """One task of one model and seed, with the models that its methods answer with.

    Args:
        place: model and seed.
        task: name in the plan.
    """

    def __init__(self, place: Place, task: str):
        self.place, self.task = place, task
        self.device = pick_device("auto")
        self.tokenizer = load_tokenizer(place.base)
        self._loaded: dict[str, torch.nn.Module] = {}
        self._requests: dict[str, list[Request]] = {}
        self._decider: tuple[tuple, Callable] | None = None

    def requests(self, split: str) -> list[Request]:
        """Questions of a split: the same for all seeds, unless the plan gives each seed test questions of its own."""
        if split not in self._requests:
            plan = self.place.plan
            own = plan.tasks[self.task]
            drawn = draw_requests(own["dataset"], split, own[split], self.tokenizer)
            asked = fitting(drawn, load_base_config(self.place.base))
            if split == "test" and plan.apart:
                asked = part_of(asked, plan.seeds.index(self.place.seed), len(plan.seeds))
            self._requests[split] = asked
        return self._requests[split]

    def model(self, weights: str):
        """The model of a stage's checkpoint; "" for the base, with the seed's adapters."""
        if weights not in self._loaded:
            folder, precision = self.place.folder, (torch.float32, self.device)
            if weights:
                base, model = self.model(""), load_checkpoint(folder / weights, *precision)[0]
                share_equal(model, base)
            else:
                model = load_adapted(folder / "adapters", *precision)
            self._loaded[weights] = model
        return self._loaded[weights]

    def key(self, weights: str) -> list:
        """What verdicts of some weights depend on."""
        folder = self.place.folder / (weights or "adapters")
        return [self.place.base, file_stamps(folder, "*.safetensors", "config.json")]

    def parts(self, split: str, weights: str) -> Path:
        return self.place.folder / f"verdicts-{self.task}" / f"{split}-{weights or 'base'}"

    def verdicts(
        self, split: str, weights: str, skip_action: str, lines: Sequence[Sequence[Route]]
    ) -> list[list[bool]]:
        """Whether each question of a split is answered rightly along its route in each line; none is asked twice."""
        if not lines:
            return []
        model = self.model(weights)
        with config_with(model, fixed_route=None):
            found = verdicts_along(
                model, self.tokenizer, self.requests(split), lines, skip_action, PATHS,
                folder=self.parts(split, weights), key=self.key(weights),
            )  # fmt: skip
        return [[verdict.correct for verdict in line] for line in found]

    def routed_verdicts(self, split: str, weights: str, fields: dict) -> tuple[list[bool], list[list[float]]]:
        """Verdicts of a model whose tokens each have a route, and the share of tokens that ran each layer."""
        requests, right, shares = self.requests(split), [], []
        for start in range(0, len(requests), BATCH):
            part = requests[start : start + BATCH]
            asked = [request.key() for request in part]
            own = json.dumps([self.key(weights), judging(), fields, asked], default=str)
            digest = hashlib.sha256(own.encode()).hexdigest()
            name = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]
            path = self.parts(split, weights) / f"tokens-{name}-{start // BATCH:04d}.json"
            saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            if saved.get("key") != digest:
                model = self.model(weights)
                with config_with(model, **fields):
                    verdicts, routes = Evaluator(model, self.tokenizer, BATCH).verdicts_and_routes(part, None)
                saved = {"key": digest, "right": [verdict.correct for verdict in verdicts], "routes": routes}
                write_json(path, saved)
            right += saved["right"]
            shares += saved["routes"]
        return right, shares

    def decider(self, weights: str, split: str, count: int | None = None) -> Callable[[dict], list[Route]]:
        """Function from config fields to the routes that a router decides for questions of a split.

        What does not depend on the fields is computed once. Routers of tokens tell the share of the prompt's tokens.
        """
        asked = (weights, split, count)
        if self._decider is None or self._decider[0] != asked:
            self._decider = (asked, self._make_decider(*asked))
        return self._decider[1]

    def _make_decider(self, weights: str, split: str, count: int | None) -> Callable[[dict], list[Route]]:
        model, requests = self.model(weights), self.requests(split)[:count]
        prompts, kind = [request.prompt_ids for request in requests], kind_of(model.config)
        if kind.has_menu:
            decide_at = deciding(model, self.tokenizer, prompts, BATCH)
            return lambda fields: decide_at(fields.get("cost", model.config.cost))
        if model.config.router == "query":
            texts = [query_text(self.tokenizer, prompt) for prompt in prompts]

            def decide(fields: dict) -> list[Route]:
                with config_with(model, **fields):
                    return [tuple(route) for route in model.model.routers.decide(texts, model.config).tolist()]

            return decide
        if kind.by_layer:

            def decide(fields: dict) -> list[Route]:
                with config_with(model, **fields):
                    return decided_routes(model, self.tokenizer, prompts, BATCH)

            return decide
        logits = prompt_logits(model, self.tokenizer, prompts)
        return lambda fields: [thresholded(rows, model.config, fields) for rows in logits]


def part_of(requests: Sequence[Request], number: int, parts: int) -> list[Request]:
    """Of the questions of each data set one part of so many; all parts are equally large, so a few may be left over."""
    found = []
    for name in dict.fromkeys(request.example.dataset for request in requests):
        own = [request for request in requests if request.example.dataset == name]
        found += own[number::parts][: len(own) // parts]
    return found


def share_equal(model, base) -> None:
    """Let a model hold what is equal to the base's weights in common with it, so that many fit into memory."""
    held = dict(base.named_parameters())
    for name, parameter in model.named_parameters():
        if name in held and held[name].shape == parameter.shape and torch.equal(held[name], parameter):
            parameter.data = held[name].data


@torch.inference_mode()
def prompt_logits(model, tokenizer, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """For each prompt the logits of a global router: [1, R] of an input, [T, R] of its tokens."""
    found = []
    for start in range(0, len(prompts), BATCH):
        ids, mask = left_pad(list(prompts[start : start + BATCH]), tokenizer.pad_token_id)
        drawn = []

        def draw(logits: torch.Tensor, drawn=drawn) -> torch.Tensor:
            drawn.append(logits)
            return torch.zeros_like(logits, dtype=torch.bool)  # What comes behind the router is not asked for.

        mask = torch.tensor(mask, device=model.device)
        model(torch.tensor(ids, device=model.device), attention_mask=mask, use_cache=False, logits_to_keep=1,
              draw_gates=draw)  # fmt: skip
        logits = drawn[0].float().cpu()
        for row, real in zip(logits, mask.bool().cpu(), strict=True):
            found.append(row[None] if logits.ndim == 2 else row[real])
    return found


def thresholded(logits: torch.Tensor, config, fields: dict) -> Route:
    """The route of one prompt: counts of an input's router, shares of tokens else."""
    gates = logits + fields.get("route_bias", config.route_bias) > 0  # [1 or T, R]
    if len(gates) > 1 or kind_of(config).decides_for == "token":
        gates[: config.sink_tokens] = True
        return (*[1.0] * config.kept_layers, *gates.float().mean(0).tolist())
    return (*[1] * config.kept_layers, *gates[0].int().tolist())
