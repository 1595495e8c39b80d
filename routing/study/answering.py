"""Test questions: verdicts of every method that was chosen, seconds of its requests, and its perplexity on text."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from random import Random

import numpy as np
import torch
from safetensors import safe_open

from data_models.path_notation import parse_path
from routing.common.devices import pick_device
from routing.common.files import write_json
from routing.common.run_info import made_with
from routing.evaluation.flops import Flops
from routing.evaluation.lm import Row
from routing.evaluation.text_controls import Method as TextMethod
from routing.evaluation.text_controls import compare, fixed, full_depth
from routing.models.checkpoint import load_checkpoint
from routing.models.config_fields import config_with
from routing.models.families import load_tokenizer
from routing.scoring.plain import Evaluator
from routing.scoring.requests import Request
from routing.search.routes import Route, route_length, to_route
from routing.study.asking import Asking
from routing.study.choosing import chosen, menu_of, random_routes, weights_of_base
from routing.study.methods import METHODS
from routing.study.plan import FREE
from routing.study.stages import Place, checkpoints
from routing.tasks.corpora import passages
from routing.tasks.sequences import Sequences, make_sequences
from routing.training.end_to_end.threshold import router_logits, threshold_bias
from routing.training.end_to_end.validation import batches_of, measure
from train_models.router_kinds import kind_of


def answer(place: Place, task: str) -> None:
    """Verdicts of all test questions of a task, along the routes of every instance that was chosen."""
    asking, instances = Asking(place, task), chosen(place, task)
    requests, menu = asking.requests("test"), menu_of(place)
    lines = [_routes(asking, one) for one in instances]  # None where tokens have routes of their own
    rights: list[list[bool] | None] = [None] * len(instances)
    along_menu: list[list[bool]] = []
    groups: dict[tuple, list[int]] = {}
    for at, one in enumerate(instances):
        if lines[at] is not None:
            groups.setdefault((_answering(one), one["skip_action"]), []).append(at)
    groups.setdefault(("", "adapter"), [])
    for (weights, skip_action), members in groups.items():
        asked = [lines[at] for at in members]
        own = [[route] * len(requests) for route in menu] if (weights, skip_action) == ("", "adapter") else []
        found = asking.verdicts("test", weights, skip_action, [*asked, *own])
        rights = [found[members.index(at)] if at in members else old for at, old in enumerate(rights)]
        along_menu += found[len(members) :] if own else []
    written = []
    for at, one in enumerate(instances):
        path = METHODS[one["method"]].path
        if path == "hindsight":
            routes, right = hindsight(menu, along_menu)
        elif lines[at] is None:
            right, routes = asking.routed_verdicts("test", one["weights"], one["fields"])
        else:
            routes, right = lines[at], rights[at]
        decided = not path
        layers = [float(sum(route)) for route in routes]
        own = {"right": list(map(int, right)), "layers": layers, "run_shares": np.mean(routes, axis=0).tolist()}
        model = asking.model(one["weights"] if decided else _answering(one))
        with config_with(model, skip_action=one["skip_action"]):
            own["flops"] = mean_flops(model, requests, routes, decided)
        written.append(one | own | {"routes": _packed(routes)})
    about = {
        "ids": [request.example.id for request in requests],
        "questions": [request.example.question for request in requests],
        "datasets": [request.example.dataset for request in requests],
        "menu": [list(route) for route in menu],
        "along_menu": [list(map(int, line)) for line in along_menu],
    }
    write_json(place.folder / f"answers-{task}" / "answers.json", about | {"instances": written} | made_with())


def _answering(one: dict) -> str:
    """The weights that answer: a router that left the base as it is, is answered for by the base with the adapters."""
    return "" if weights_of_base(one["method"]) else one["weights"]


def _routes(asking: Asking, one: dict) -> list[Route] | None:
    """The route of each test question; None where tokens have their own, or hindsight chooses."""
    path, count = METHODS[one["method"]].path, len(asking.requests("test"))
    if path == "hindsight":
        return None
    if path == "random":
        return random_routes(asking.place, one["budget"], count)
    if one["route"] is not None:
        return [tuple(one["route"])] * count
    if kind_of(asking.model(one["weights"]).config).decides_for == "token":
        return None
    return asking.decider(one["weights"], "test")(one["fields"])


def hindsight(menu: Sequence[Route], along: Sequence[Sequence[bool]]) -> tuple[list[Route], list[bool]]:
    """For each question the shortest path of a menu that answers it rightly, else the full one, which comes first."""
    order = sorted(range(len(menu)), key=lambda at: route_length(menu[at]))
    routes, right = [], []
    for verdicts in zip(*along, strict=True):
        taken = next((at for at in order if verdicts[at]), 0)
        routes.append(menu[taken])
        right.append(bool(verdicts[taken]))
    return routes, right


def _packed(routes: Sequence[Sequence[float]]) -> dict:
    """Routes as the distinct ones and which each question takes; of tokens the shares that ran each layer."""
    lines = [tuple(round(count, 3) for count in route) for route in routes]
    distinct = {route: at for at, route in enumerate(dict.fromkeys(lines))}
    return {"distinct": list(distinct), "taken": [distinct[route] for route in lines]}


def mean_flops(model, requests: Sequence[Request], routes: Sequence[Route], decided: bool) -> float:
    """Operations of a request, estimated from shapes; generated answers count at their limit of new tokens."""
    total = 0.0
    for kind in (True, False):
        flops = Flops(model, all_logits=kind)
        for request, route in zip(requests, routes, strict=True):
            if bool(request.choice_ids) != kind:
                continue
            other = sum(map(len, request.choice_ids)) if kind else request.max_new_tokens
            total += flops.of(Row(tuple(route), len(request.prompt_ids), other), decided)
    return total / len(requests)


def added_parameters(place: Place, one: dict) -> int:
    """Parameters that an instance adds to the base: routers, and adapters where they stand in for layers."""
    folders = {"adapters": "adapters"} if one["skip_action"] == "adapter" else {}
    if one["route"] is None and one["weights"]:
        folders["routers"] = one["weights"]
    total = 0
    for part, folder in folders.items():
        for path in (place.folder / folder).glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                own = [name for name in file.keys() if f"{part}." in name.removeprefix("model.")[: len(part) + 1]]  # noqa: SIM118 - no dict
                total += sum(int(np.prod(file.get_slice(name).get_shape())) for name in own)
    return total


@torch.inference_mode()
def time_requests(place: Place, task: str) -> None:
    """Seconds of requests at batch 1 under each instance, the router included: all instances on a question in turn."""
    asking, instances = Asking(place, task), chosen(place, task)
    own = place.plan.timing
    every = asking.requests("test")
    picked = sorted(Random(0).sample(range(len(every)), min(own["questions"], len(every))))
    requests = [every[at] for at in picked]
    timed = [at for at, one in enumerate(instances) if METHODS[one["method"]].path != "hindsight"]
    lines = {at: _timed_routes(asking, instances[at], picked) for at in timed}
    seconds = np.zeros((len(instances), len(requests), own["repeats"]))
    rng = Random(0)
    for column, request in enumerate(requests):
        for repeat in range(-1, own["repeats"]):  # The first round warms up.
            for at in rng.sample(timed, len(timed)):
                one = instances[at]
                model = asking.model(one["weights"])  # as a user would load it, with its router
                evaluator = Evaluator(model, asking.tokenizer, 1)
                fields = one["fields"] | {"skip_action": one["skip_action"], "fixed_route": None}
                routes = None if lines[at] is None else [lines[at][column]]
                with config_with(model, **fields):
                    began = time.perf_counter()
                    evaluator.verdicts([request], routes)
                    if asking.device.type == "cuda":
                        torch.cuda.synchronize()
                    took = time.perf_counter() - began
                if repeat >= 0:
                    seconds[at, column, repeat] = took
    found = {
        "questions": [request.example.id for request in requests],
        "threads": torch.get_num_threads(),
        "instances": [
            {"method": one["method"], "budget": one["budget"], "seconds": seconds[at].tolist() if at in timed else None}
            for at, one in enumerate(instances)
        ],
        "added_parameters": [added_parameters(place, one) for one in instances],
    }
    write_json(place.folder / f"times-{task}" / "times.json", found | made_with())


def _timed_routes(asking: Asking, one: dict, picked: Sequence[int]) -> list[Route] | None:
    """Forced routes of the timed questions; None where a router decides."""
    if METHODS[one["method"]].path == "random":
        routes = random_routes(asking.place, one["budget"], len(asking.requests("test")))
        return [routes[at] for at in picked]
    return None if one["route"] is None else [tuple(one["route"])] * len(picked)


def measure_text(place: Place) -> None:
    """Perplexity on Wikipedia's test part of all that is trained on text, at each budget, beside the base."""
    plan, device = place.plan, pick_device("auto")
    own, tokenizer = plan.options.get("text", {}), load_tokenizer(place.base)
    length, prompt = own.get("sequence_length", 512), own.get("prompt_tokens", 64)

    def rows(part: str, count: int) -> list:
        found = make_sequences(passages("wikipedia", part, 3 * count), tokenizer, length, "packed", prompt)
        return batches_of(Sequences(found.ids[:count], found.lengths[:count]), own.get("batch_size", 4), prompt, device)

    test, ranking = rows("test", plan.text["test_rows"]), rows("validation", plan.text["test_rows"])
    found = []
    for name, method in plan.table().items():
        if not method.text:
            continue
        for weights in checkpoints(place, name) or [""]:
            folder = place.folder / (weights or "adapters")
            model, _ = load_checkpoint(folder, torch.float32, device)
            budgets = [FREE] if not method.budgets else plan.budgets
            if "{skips}" in method.weights:
                budgets = [b for b in budgets if weights == method.weights.format(skips=plan.skips(b, place.depth))]
            for budget in [*([FREE] if method.free and method.budgets else []), *budgets]:
                total = _on_text(place, model, name, budget, test, ranking)
                found.append({
                    "method": name, "budget": budget, "weights": weights, "losses": total.losses,
                    "predicted": total.predicted, "layers": total.layers,
                })  # fmt: skip
            del model
    write_json(place.folder / "perplexity" / "perplexity.json", {"instances": found} | made_with())


def _on_text(place: Place, model, name: str, budget, test: list, ranking: list):
    """One instance on all rows of text."""
    depth, skips = place.depth, 0 if budget == FREE else place.plan.skips(budget, place.depth)
    kind = kind_of(model.config)
    if METHODS[name].path:
        way = full_depth(model) if budget == FREE else fixed(model, _path_on_text(place, model, name, budget))
    else:
        share = min(skips / (depth - model.config.kept_layers), 1.0)
        bias = threshold_bias(router_logits(model, ranking), share) if kind.learned else 0.0

        def run(_, batch):
            with config_with(model, route_bias=bias):
                return measure(model, batch)

        way = TextMethod(name, None, run)
    return compare([way], test, lambda all_: all_)[0]


def _path_on_text(place: Place, model, name: str, budget) -> Route:
    """The path of a budget: that which the weights were healed along, or the one that healing would take."""
    if model.config.fixed_route is not None:
        return tuple(model.config.fixed_route)
    paths = json.loads((place.folder / "paths" / "paths.json").read_text(encoding="utf-8"))
    return to_route(parse_path(paths[str(place.plan.skips(budget, place.depth))]), place.depth)
