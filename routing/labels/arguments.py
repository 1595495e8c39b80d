"""Arguments of stage 1, data_generation.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from routing.common.cli import below, option, outside
from routing.common.devices import DTYPES
from routing.common.files import unwritable
from routing.common.placing import device_map_option, max_memory_option, no_map, offload_folder_option, place_problems
from routing.common.ray_workers import ray_problems
from routing.labels.problems import pool_problems
from routing.models.default_model import DEFAULT_MODEL
from routing.models.families import layers_of
from routing.models.problems import adapter_problems, model_problems
from routing.models.wheel_models import ANY_BASE
from routing.search.exploration import EXPLORATIONS
from routing.search.mcts import MOVE_ORDERS
from routing.search.menu import spec_problems
from routing.search.results import REWARDS
from routing.tasks import unknown_names
from routing.tasks.answers import SCORES
from routing.tasks.examples import SPLITS
from routing.tasks.problems import files_without_splits, template_problems
from routing.tasks.prompts import SCORINGS


@dataclass
class DataGenerationArguments:
    """Search layer paths and write labels. Run it again to continue after an interruption."""

    model: str = option(DEFAULT_MODEL, f"base model: {ANY_BASE}")
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
        "divergence-each:2,4 (the same with an order for each data set), "
        "influence:0,2,4 (without the k layers of least block influence), greedy:0,2,4 (the next one to go is that "
        "without which the reward on validation questions is highest), labels:FOLDER[,FOLDER]:K (K paths that "
        "searches found, by how many other questions they serve), path:0:20,24:30 (one path), the path of a JSON "
        "file (a list of paths, or the header of the labels of a menu)",
    )
    menu_kept: int = option(
        1, "menu: layers at the beginning that no path of divergence, influence, greedy and labels changes"
    )
    menu_samples: int = option(
        128,
        "menu: search questions of each data set for influence, of which 64 in all (or of each) tell the divergence, "
        "and validation questions for greedy, at most",
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
    chat_template_args: str = option(
        "",
        "with --apply_chat_template: arguments of the template as a JSON object, such as "
        """'{"enable_thinking": false}' or a fixed date; recorded for every later command""",
    )
    system_instruction: str = option("", "with --apply_chat_template: text of a system message; recorded likewise")
    max_new_tokens: int | None = option(
        None, "tokens of a generated answer, default as the longest right answer of its data set needs; recorded"
    )
    dtype: str = option("float32", "dtype of the model", tuple(DTYPES))
    device: str = option("auto", "torch device; auto: cuda if there is one, else cpu")
    device_map: str = device_map_option()
    max_memory: str = max_memory_option()
    offload_folder: str = offload_folder_option()
    batch_size: int = option(64, "paths evaluated together, at most")
    group_size: int = option(
        64, "examples searched side by side; what one process claims at a time, at most (less near the end)"
    )
    cache_gib: float = option(2.0, "states of paths kept between batches for paths that share them, GiB at most")
    store_features: int = option(
        0,
        "mcts: number of windows (train.py's --num_windows, 8) by which what routers read along each labelled path is "
        "pooled and kept beside the labels: training on them need not run the base then; 0: keep nothing",
    )
    seed: int = option(0, "seed of the drawing of examples and of every search")
    engine: str = option(
        "files",
        "files (any number of these commands share the folder by file locks) or ray (this command gives the questions "
        "to workers of a Ray cluster, and it alone needs the folder)",
        ("files", "ray"),
    )
    address: str | None = option(
        None, "ray: HOST:PORT of the cluster, or auto for the one of this machine; default: start one here"
    )
    workers: int | None = option(None, "ray: models at work; default one for each GPU, or CPU where there is none")
    output_dir: str = option("data/mcts_paths", "folder of the label file")

    def problems(self) -> list[str]:
        found = unknown_names(self.dataset)
        found += below(self, num_simulations=1, budget=1, exploration_constant=0, length_penalty=0, stop_saving=1)
        found += below(self, batch_size=1, group_size=1, cache_gib=0, store_features=0)
        if self.store_features > 0 and self.search != "mcts":
            found.append(
                f"--store_features {self.store_features} keeps what routers read along the path that a tree search "
                f"labels, and --search {self.search} labels none; leave it out, or use --search mcts"
            )
        found += ray_problems(self.engine, self.address, self.workers)
        if self.engine == "ray":
            found += no_map(self, "a worker of --engine ray has one device; leave it out, or use --engine files")
        if self.engine == "ray" and self.store_features > 0:
            found.append(
                f"--store_features {self.store_features} writes beside the labels, which workers of --engine ray do "
                "not see; leave one of them out"
            )
        given = [name for name in ("num_samples", "max_new_tokens") if getattr(self, name) is not None]
        found += below(self, **dict.fromkeys(given, 1))
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
        found += unwritable("--output_dir", Path(self.output_dir))
        return found + template_problems(self) + place_problems(self)

    def outside_problems(self) -> list[str]:
        found = model_problems(self.model) + adapter_problems(self.adapters, self.model)
        if self.search == "menu" and not found:
            depth = layers_of(self.model)
            found = spec_problems(self.menu, depth, self.menu_kept) or pool_problems(self.menu, depth)
        return found
