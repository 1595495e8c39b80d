"""The stages of a study: each the command that a user would type, with what it waits for. Imports no torch.

The folder of a stage is OUTPUT/MODEL/seed-SEED/NAME. What is not one of the toolkit's commands (choosing on validation,
answering test questions) is `dlr study … --only NAME`, in a process of its own too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from routing.common.errors import UserError
from routing.models.families import layers_of
from routing.study.methods import METHODS
from routing.study.plan import Plan

TEST = "answers"  # the kind of stage that opens the test questions


@dataclass(frozen=True)
class Later:
    """A word of a command that is known once another stage is done: a value of its JSON file."""

    file: Path
    key: str

    def read(self) -> str:
        return str(json.loads(self.file.read_text(encoding="utf-8"))[self.key])


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: MODEL/seed-SEED/NAME, its folder below the output.
        kind: of stages that take about as long.
        words: the command: a script of the repository or `-m routing`, and its arguments.
        needs: names of the stages that must be done.
        trains: whether train.py makes it, which can be told to --resume.
        depends: what of the plan it rests on beside its command.
    """

    name: str
    kind: str
    words: tuple
    needs: tuple[str, ...] = ()
    trains: bool = False
    depends: str = ""

    def command(self) -> list[str]:
        """The words, once all that it waits for is done."""
        return [word.read() if isinstance(word, Later) else word for word in self.words]


def given(options: dict) -> list[str]:
    """Options as words of a command line; switches that are off are left out."""
    found = []
    for name, value in options.items():
        if value is True:
            found.append(f"--{name}")
        elif value is not None and value is not False:
            found.append(f"--{name}={value}")
    return found


@dataclass(frozen=True)
class Place:
    """One model and seed of a plan, and its folder."""

    plan: Plan
    plan_file: Path
    quick: bool
    output: Path
    model: str
    seed: int

    @property
    def folder(self) -> Path:
        return self.output / self.prefix

    @property
    def prefix(self) -> str:
        return f"{self.model}/seed-{self.seed}"

    @property
    def base(self) -> str:
        return self.plan.models[self.model]["model"]

    @property
    def depth(self) -> int:
        return layers_of(self.base)

    def skips(self) -> list[int]:
        return [self.plan.skips(budget, self.depth) for budget in self.plan.budgets]


def stages_of(place: Place) -> list[Stage]:
    """All stages of one model and seed, each behind those that it needs."""
    return [stage for stage in _Builder(place).all() if stage is not None]


def all_stages(plan: Plan, plan_file: Path, quick: bool, output: Path, models: list[str], seeds: list[int]):
    """The stages of some models and seeds; seeds are outermost, so that a study that is cut short has all methods."""
    places = [Place(plan, plan_file, quick, output, model, seed) for seed in seeds for model in models]
    return [stage for place in places for stage in stages_of(place)]


class _Builder:
    def __init__(self, place: Place):
        self.place, self.plan = place, place.plan
        self.options, self.tasks = place.plan.options, place.plan.tasks
        self.made_by = [name for method in place.plan.table().values() for name in method.made_by]

    def _folder(self, name: str) -> str:
        return str(self.place.folder / name)

    def _names(self, *names: str) -> tuple[str, ...]:
        return tuple(f"{self.place.prefix}/{name}" for name in names)

    def _each(self, name: str) -> list[str]:
        return [f"{name}-{task}" for task in self.tasks]

    def _train(self, name: str, kind: str, options: dict, needs: list[str]) -> Stage:
        places = {"run_name": name, "output_dir": self._folder(""), "work_dir": self._folder(".work")}
        own = {"model_id": self.place.base, "seed": self.place.seed} | options
        return Stage(*self._names(name), kind, ("train.py", *_words(own), *given(places)), self._names(*needs), True)

    def _label(self, name: str, task: str, options: dict, count: str, needs: list[str]) -> Stage:
        own = {
            "model": self.place.base, "dataset": self.tasks[task]["dataset"], "num_samples": self.tasks[task][count],
            "seed": self.place.seed, "output_dir": self._folder(name),
        } | options  # fmt: skip
        return Stage(
            *self._names(name), name.rsplit("-", 1)[0], ("data_generation.py", *given(own)), self._names(*needs)
        )

    def _own(self, name: str, needs: list[str], *depends) -> Stage:
        """A stage of `dlr study` itself, and what of the plan it rests on."""
        quick = ["--quick"] if self.place.quick else []
        words = ("-m", "routing", "study", str(self.place.plan_file), "--output", str(self.place.output), *quick)
        only = ("--only", *self._names(name))
        asked = self._names(name), name.split("-")[0], (*words, *only), self._names(*needs)
        return Stage(asked[0][0], *asked[1:], depends=json.dumps(depends, sort_keys=True))

    def _asked(self, task: str, split: str) -> list:
        """What says which questions of a split are asked."""
        asked = [self.tasks[task]["dataset"], self.tasks[task][split]]
        return [*asked, self.plan.seeds] if split == "test" and self.plan.apart else asked

    def _wanted(self, name: str) -> bool:
        return name in self.made_by

    def all(self):
        adapters = {"adapters": self._folder("adapters")}
        yield self._adapters()
        for task in self.tasks:
            yield self._menu(task, adapters)
        for task in self.tasks:
            spec = "+".join(str(self.place.folder / name / "labels.header.json") for name in self._each("menu"))
            own = {"search": "menu", "menu": spec} | adapters
            yield self._label(f"table-{task}", task, own, "table", self._each("menu"))
        for task in self.tasks:
            yield self._own(f"headroom-{task}", [f"table-{task}"])
        for task in self.tasks:
            yield self._own(f"weighed-{task}", [f"table-{task}"], self._asked(task, "validation"), self.plan.budgets)
        yield self._own("paths", self._each("weighed"), self.plan.budgets)
        for name, options in (("searched", {}), ("verified", {"verify": "paraphrase"})):
            for task in self.tasks if self._wanted(f"{name}-{{task}}") else ():
                yield self._label(f"{name}-{task}", task, options | self.options.get(name, {}), "searched", [])
        for task in self.tasks if self._wanted("explored-{task}") else ():
            own = {"search": "dfs"} | adapters | self.options.get("explored", {})
            yield self._label(f"explored-{task}", task, own, "explored", ["adapters"])
        if self._wanted("corpus"):
            yield self._own("corpus", [], self.plan.text, self.plan.datasets)
        for method in self.plan.methods:
            yield from self._trained(method, adapters)
        for task in self.tasks:
            needs = [f"weighed-{task}", "paths", *self._checkpoints()]
            asked = self._asked(task, "validation")
            yield self._own(f"chosen-{task}", needs, asked, self.plan.methods, self.plan.budgets)
        for task in self.tasks:
            yield self._own(f"{TEST}-{task}", [f"chosen-{task}"], self._asked(task, "test"))
        for task in self.tasks:
            yield self._own(f"times-{task}", [f"{TEST}-{task}"], self.plan.timing)
        if self.plan.text and self._wanted("corpus"):
            yield self._own("perplexity", ["corpus", "paths", *self._checkpoints()], self.plan.text, self.plan.budgets)

    def _adapters(self) -> Stage:
        own = {"objective": "adapters", "dataset": self.plan.datasets, "save_base": "reference"}
        size = {"adapter_size": self.plan.models[self.place.model].get("adapter_size")}
        # One number for all data sets: the largest, and smaller ones have no more questions than they have.
        count = {"num_samples": max(task["adapters"] for task in self.tasks.values())}
        return self._train("adapters", "adapters", own | count | size | self.options.get("adapters", {}), [])

    def _menu(self, task: str, adapters: dict) -> Stage:
        """The order in which a task's answers miss layers least: a menu along it, asked of one question."""
        skips = ",".join(map(str, self.place.skips()))
        own = {"search": "menu", "menu": f"divergence:{skips}"} | adapters | self.options.get("menu", {})
        stage = self._label(f"menu-{task}", task, own | {"num_samples": 1}, "table", ["adapters"])
        return stage

    def _checkpoints(self) -> list[str]:
        """Stages that train what the methods of the plan answer with."""
        return [name for method in self.plan.methods for name in checkpoints(self.place, method)]

    def _trained(self, method: str, adapters: dict):
        text = self.options.get("text", {}) | {"corpus": self._folder("corpus/corpus.jsonl")}
        if not METHODS[method].weights:
            return
        for name, values in zip(checkpoints(self.place, method), self._values(method), strict=True):
            kind = TRAINED[METHODS[method].weights.removesuffix("-{skips}")]
            labels, folders = list(kind.get("needs", ())), kind.get("data")
            options = dict(kind["options"])
            if folders:
                labels += self._each(folders)
                options["data"] = ",".join(self._folder(folder) for folder in self._each(folders))
                options["save_base"] = "reference"
            else:
                options = text | options
            if "adapters" in labels:
                options |= adapters
            if METHODS[method].path == "healed":
                options["path"] = Later(self.place.folder / "paths" / "paths.json", name.rsplit("-", 1)[1])
            yield self._train(name, name.rsplit("-", 1)[0], options | values, labels)

    def _values(self, method: str) -> list[dict]:
        variants = self.plan.variants(method)
        return variants * len(set(self.place.skips())) if METHODS[method].path == "healed" else variants


def checkpoints(place: Place, method: str) -> list[str]:
    """Names of the stages that train a method: one for each point of its grid, or for each budget.

    Raises:
        UserError: for a grid where there is one checkpoint for each budget.
    """
    weights = METHODS[method].weights
    variants = place.plan.variants(method)
    if "{skips}" in weights:
        if len(variants) > 1:
            raise UserError(f"methods: {method} has one checkpoint for each budget, so it takes no grid")
        return [weights.format(skips=skips) for skips in dict.fromkeys(place.skips())]
    if not weights:
        return []
    return [weights if len(variants) == 1 else f"{weights}-grid{number}" for number in range(len(variants))]


def _words(options: dict) -> list:
    found = []
    for name, value in options.items():
        found += [f"--{name}", value] if isinstance(value, Later) else given({name: value})
    return found


_GUMBEL = {"objective": "gumbel"}
# What trains each checkpoint: options of train.py, the labels that it learns from, and what it needs besides.
TRAINED: dict[str, dict] = {
    "lora": {"options": {"objective": "dense"}, "needs": ("corpus",)},
    "healed": {"options": {"objective": "static"}, "needs": ("corpus", "paths")},
    "dlr_input": {"options": _GUMBEL | {"router": "prefix"}, "needs": ("corpus",)},
    "dlr_token": {"options": _GUMBEL | {"router": "prefix_token"}, "needs": ("corpus",)},
    "reinforce": {"options": {"objective": "reinforce"}, "needs": ("corpus",)},
    "stochastic_depth": {"options": {"objective": "stochastic_depth"}, "needs": ("corpus",)},
    "dr_llm": {"options": {}, "data": "searched"},
    "dr_llm_verified": {"options": {}, "data": "verified"},
    "dr_llm_value": {"options": {"objective": "value", "router": "per_layer"}, "data": "searched"},
    "value": {"options": {"objective": "value"}, "data": "table", "needs": ("adapters",)},
    "fbc": {"options": {"objective": "fbc"}, "data": "explored", "needs": ("adapters",)},
    "dpo": {"options": {"objective": "dpo"}, "data": "explored", "needs": ("adapters",)},
    "orpo": {"options": {"objective": "orpo"}, "data": "explored", "needs": ("adapters",)},
}
