"""What is chosen, all of it on validation questions: paths, settings of routers, points of grids.

A chosen instance is one method at one budget: {method, budget, weights, skip_action, fields, route, validation}.
`route` is one path for all questions; without one a router decides under `fields`. `validation` says how it did there:
mean layers, and rewards by question where they were asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random

import numpy as np

from data_models.path_notation import write_path
from routing.common.errors import UserError
from routing.common.files import write_json, write_text
from routing.evaluation.budget import find_bias, mean_layers
from routing.evaluation.headroom import measure
from routing.labels.reading import read_header
from routing.labels.table import menu_routes, read_table
from routing.scoring.controls import random_route
from routing.scoring.packed import INFLUENCE_BATCH, PathEvaluator
from routing.search.influence import influence_order
from routing.search.menu import nested_routes
from routing.search.routes import Route, full_route, route_length, to_path
from routing.study.asking import Asking
from routing.study.methods import METHODS, OWN_WEIGHTS
from routing.study.plan import FREE
from routing.study.stages import Place, checkpoints
from routing.tasks import load_examples
from routing.tasks.corpora import passages
from routing.tasks.prompts import build_prompt, scoring_of
from train_models.router_kinds import kind_of

COSTS = tuple(
    float(cost) for cost in np.unique(np.concatenate([np.linspace(0, 0.05, 101), np.linspace(0.05, 0.3, 51)]))
)
CUTS = 4  # blocks of each length that are tried
BIAS_PROMPTS = 24  # by which the bias of routers of layers is found; each bias is a pass over them
TOLERANCE = 0.3  # layers


def menu_of(place: Place) -> list[Route]:
    """The menu of a seed, the same for all tasks."""
    folder = place.folder / f"table-{next(iter(place.plan.tasks))}"
    return menu_routes(folder, read_header(folder))


def find_headroom(place: Place, task: str) -> None:
    """What routing could gain on the table that routers learn from, as `dlr headroom` does, or why that is unknown."""
    try:
        found = measure(read_table([place.folder / f"table-{task}"]))
    except UserError as error:  # Such as rewards that are all the same: then there is nothing to gain.
        found = {"gains": [], "problem": str(error)}
    write_json(place.folder / f"headroom-{task}" / "headroom.json", found)


def cuts(depth: int, skips: int) -> list[Route]:
    """Routes without so many consecutive layers, spread over the depth; the first and the last layer stay."""
    starts = sorted({round(start) for start in np.linspace(1, depth - skips - 1, CUTS)})
    return [tuple(int(not start <= layer < start + skips) for layer in range(depth)) for start in starts]


def weigh(place: Place, task: str) -> None:
    """What each candidate of a static path is worth on validation questions of a task, with and without adapters."""
    asking = Asking(place, task)
    requests, depth = asking.requests("validation"), place.depth
    evaluator = PathEvaluator(asking.model(""), asking.tokenizer)
    influences = []
    for start in range(0, len(requests), INFLUENCE_BATCH):
        part = requests[start : start + INFLUENCE_BATCH]
        evaluator.prepare(part)
        influences += evaluator.influence(part)
        evaluator.release()
    nested = nested_routes(influence_order(influences), place.skips(), depth)
    families = {
        ("menu", "adapter"): menu_of(place),
        ("influence", "adapter"): nested,
        ("influence", "identity"): nested,
        ("cut", "adapter"): [route for skips in place.skips() for route in cuts(depth, skips)],
        ("full", "identity"): [full_route(depth)],
        # With LoRA in the place of adapters, paths are judged without these.
        ("menu", "identity"): menu_of(place),
    }
    found = []
    for skip_action in ("adapter", "identity"):
        asked = [
            (family, route) for (family, own), routes in families.items() if own == skip_action for route in routes
        ]
        lines = asking.verdicts("validation", "", skip_action, [[route] * len(requests) for _, route in asked])
        for (family, route), line in zip(asked, lines, strict=True):
            found.append(
                {"family": family, "skip_action": skip_action, "route": list(route), "rewards": list(map(int, line))}
            )
    write_json(place.folder / f"weighed-{task}" / "weighed.json", {"candidates": found})


def weighed(place: Place, task: str) -> list[dict]:
    path = place.folder / f"weighed-{task}" / "weighed.json"
    return json.loads(path.read_text(encoding="utf-8"))["candidates"]


def best(candidates: Sequence[dict], layers: int) -> dict:
    """Of candidates with at most so many layers the one of most reward; between equals the shorter, then the first."""
    short = [one for one in candidates if route_length(one["route"]) <= layers]
    return max(short, key=lambda one: (np.mean(one["rewards"]), -route_length(one["route"])))


def choose_paths(place: Place) -> None:
    """The path of each budget along which weights are healed: of the menu, by the mean over tasks with adapters."""
    tables = {task: [c for c in weighed(place, task) if (c["family"], c["skip_action"]) == ("menu", "adapter")]
              for task in place.plan.tasks}  # fmt: skip
    routes = [one["route"] for one in next(iter(tables.values()))]
    joint = [
        {"route": route, "rewards": [np.mean(table[at]["rewards"]) for table in tables.values()]}
        for at, route in enumerate(routes)
    ]
    found = {str(skips): write_path(to_path(best(joint, place.depth - skips)["route"])) for skips in place.skips()}
    write_json(place.folder / "paths" / "paths.json", found)


def write_corpus(place: Place) -> None:
    """Text that LoRA and routers of text are trained on: questions and answers of all tasks, and Wikipedia."""
    asking, own, texts = Asking(place, next(iter(place.plan.tasks))), place.plan.text, []
    for name in place.plan.datasets.split(","):
        examples = load_examples(name, "search", own["questions"], seed=place.seed)
        solved = [f"{build_prompt(e, scoring_of(e, 'auto'), asking.tokenizer, False)} {e.answer}" for e in examples]
        # Several to a passage: a corpus leaves short ones out.
        texts += ["\n\n".join(solved[start : start + 4]) for start in range(0, len(solved), 4)]
    texts += passages("wikipedia", "train", own["passages"])
    Random(place.seed).shuffle(texts)
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    write_text(place.folder / "corpus" / "corpus.jsonl", lines)


def choose(place: Place, task: str) -> None:
    """Settle every method of the plan at every budget for one task."""
    chooser = _Chooser(place, task)
    found = [one for name in place.plan.methods for one in chooser.instances(name)]
    write_json(place.folder / f"chosen-{task}" / "chosen.json", {"instances": found})


def chosen(place: Place, task: str) -> list[dict]:
    path = place.folder / f"chosen-{task}" / "chosen.json"
    return json.loads(path.read_text(encoding="utf-8"))["instances"]


class _Chooser:
    def __init__(self, place: Place, task: str):
        self.place, self.plan, self.depth = place, place.plan, place.depth
        self.asking, self.candidates = Asking(place, task), weighed(place, task)

    def instances(self, name: str) -> list[dict]:
        method = METHODS[name]
        budgets = [FREE] * method.free + list(self.plan.budgets) * method.budgets
        if method.path:
            return [self._fixed(name, budget) for budget in budgets]
        return self._routed(name, budgets)

    def _instance(self, name: str, budget, weights: str, **own) -> dict:
        return {"method": name, "budget": budget, "weights": weights, "skip_action": METHODS[name].skip_action} | own

    def _layers(self, budget) -> int:
        return self.depth if budget == FREE else self.depth - self.plan.skips(budget, self.depth)

    def _fixed(self, name: str, budget) -> dict:
        """A method that takes one path, or none that depends on the question."""
        method, layers = METHODS[name], self._layers(budget)
        weights = method.weights.format(skips=self.depth - layers)
        if method.path in ("random", "hindsight"):
            return self._instance(name, budget, weights, fields={}, route=None)
        family, skip_action = method.path, method.skip_action
        if method.path == "full" or budget == FREE:
            family, skip_action = "full", "identity"
        elif method.path == "healed":
            family, skip_action = "menu", "adapter"  # `choose_paths` took it from there.
        own = [c for c in self.candidates if (c["family"], c["skip_action"]) == (family, skip_action)]
        if method.path == "healed":
            path = json.loads((self.place.folder / "paths" / "paths.json").read_text())[str(self.depth - layers)]
            taken = next(c for c in own if write_path(to_path(c["route"])) == path)
        else:
            taken = best(own, layers)
        route, rewards = taken["route"], taken["rewards"]
        if weights:
            count = len(self.asking.requests("validation"))
            (line,) = self.asking.verdicts("validation", weights, "identity", [[tuple(route)] * count])
            rewards = list(map(int, line))
        about = {"rewards": rewards, "layers": float(route_length(route))}
        return self._instance(name, budget, weights, fields={}, route=route, validation=about)

    def _routed(self, name: str, budgets: list) -> list[dict]:
        """A router at each budget, with the point of its grid that answers most validation questions rightly."""
        variants, options = self.plan.variants(name), {budget: [] for budget in budgets}
        for weights, values in zip(checkpoints(self.place, name), variants, strict=True):
            # Routers of layers read what each layer makes of a prompt, so each setting takes a pass over the prompts.
            by_layer = kind_of(self.asking.model(weights).config).by_layer
            decide = remembered(self.asking.decider(weights, "validation", BIAS_PROMPTS if by_layer else None))
            for budget in budgets:
                fields = {} if budget == FREE else self._setting(METHODS[name].knob, decide, self._layers(budget))
                about = {"layers": mean_layers(decide(fields))}
                if len(variants) > 1:  # A grid: answers decide.
                    about["rewards"] = self._rewards(name, weights, fields)
                own = {"fields": fields, "route": None, "grid": values, "validation": about}
                options[budget].append(self._instance(name, budget, weights, **own))
        return [max(own, key=lambda one: np.mean(one["validation"].get("rewards", 0))) for own in options.values()]

    def _rewards(self, name: str, weights: str, fields: dict) -> list[int]:
        """Which validation questions a router under a setting answers rightly."""
        routes = self.asking.decider(weights, "validation")(fields)
        answering = "" if weights_of_base(name) else weights
        (line,) = self.asking.verdicts("validation", answering, METHODS[name].skip_action, [routes])
        return list(map(int, line))

    def _setting(self, knob: str, decide: Callable[[dict], list[Route]], layers: int) -> dict:
        """The setting of a router that runs about so many layers on validation prompts."""
        if knob == "pruned_layers":
            return {knob: self.depth - layers}
        if knob == "cost":
            cost = next((cost for cost in COSTS if mean_layers(decide({"cost": cost})) <= layers), COSTS[-1])
            return {"cost": cost}
        return {knob: find_bias(lambda bias: mean_layers(decide({knob: bias})), layers, TOLERANCE)[0]}


def remembered(decide: Callable[[dict], list[Route]]) -> Callable[[dict], list[Route]]:
    """The same function, which computes nothing twice: searches for the settings of several budgets meet."""
    found: dict[str, list[Route]] = {}

    def at(fields: dict) -> list[Route]:
        key = json.dumps(fields, sort_keys=True)
        if key not in found:
            found[key] = decide(fields)
        return found[key]

    return at


def weights_of_base(name: str) -> bool:
    """Whether a method leaves the base as it is: then the base with the adapters answers along its routes."""
    return METHODS[name].weights.removesuffix("-{skips}") not in OWN_WEIGHTS


def random_routes(place: Place, budget: float, count: int) -> list[Route]:
    """For each question a random route of as many layers, by the seed."""
    rng, skips = Random(f"{place.seed}/{budget}"), place.plan.skips(budget, place.depth)
    return [random_route(place.depth, place.depth - skips, rng) for _ in range(count)]
