"""What data_generation.py does: draws questions, searches paths, and writes labels."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from functools import cache
from itertools import chain
from pathlib import Path

from routing.common.cli import as_dict
from routing.common.devices import DTYPES, is_first_process
from routing.common.errors import UserError, raise_all
from routing.common.run_info import git_commit, versions
from routing.labels.arguments import DataGenerationArguments
from routing.labels.labelling import Labeller, label_all, no_prior
from routing.labels.menus import MenuQuestions, make_menu, menu_hashes
from routing.labels.reading import FORMAT, LABELS
from routing.labels.table import menu_routes
from routing.labels.writing import LabelFolder
from routing.models.bases import load_base, weight_stamps
from routing.models.checkpoint import load_adapted
from routing.models.checkpoint_files import adapter_hashes
from routing.models.families import load_base_config, load_tokenizer
from routing.models.placement import place_of
from routing.models.templates import canonical_arguments, filling_problems, now, tells_time, thought_warning
from routing.scoring.context import Fitting, fitting
from routing.scoring.packed import PathEvaluator
from routing.scoring.prompting import Prompting, prompting_in, prompting_of
from routing.scoring.requests import Request, prompted
from routing.scoring.router_inputs import StoredInputs
from routing.scoring.verification import Scorer, StableScorer, VerifiedScorer
from routing.search.exploration import EXPLORATIONS, ExplorationSettings
from routing.search.mcts import SearchSettings, search
from routing.search.menu import MenuSettings, along_menu, parse_spec
from routing.search.results import SearchResult
from routing.tasks import load_examples
from routing.tasks.calls import score_problems
from routing.tasks.drawn import draw
from routing.tasks.examples import Example
from routing.tasks.limits import check_limits, limits_of
from routing.tasks.prompts import max_new_tokens, scoring_of
from routing.tasks.variants import permuted, rephrased

# A run may be continued with others of these.
NOT_IN_HEADER = (
    "output_dir", "device", "device_map", "max_memory", "offload_folder", "batch_size", "cache_gib", "store_features",
    "engine", "address", "workers",
)  # fmt: skip
# Arguments that matter to one kind of search alone: those of the others are in no header either.
OF_SEARCH = {
    "mcts": (
        "num_simulations", "budget", "exploration_constant", "length_penalty", "random_prob", "widening", "focus",
        "stop_saving", "prior", "move_order", "reward", "verify",
    ),
    "dfs": ("search", "score", "num_scenarios", "branching", "min_branching"),
    "random": ("search", "score", "subsets", "stop_score"),
    "menu": ("search", "score", "menu", "menu_kept", "menu_samples", "reward", "verify"),
}  # fmt: skip
NEWER = ("adapters", "tools_in_template", "wording", "chat_template_args", "system_instruction", "max_new_tokens")
MENU_PARTS = "menu.parts"  # folder of the steps of a menu that is being made


def make_header(arguments: DataGenerationArguments, config) -> dict:
    others = {name for names in OF_SEARCH.values() for name in names} - set(OF_SEARCH[arguments.search])
    # Headers of older folders lack these, which then were as they are where nobody asks for them.
    newer = {name for name in NEWER if not getattr(arguments, name)}
    if arguments.move_order == ("late" if arguments.focus else "random"):
        newer.add("move_order")
    left_out = others | set(NOT_IN_HEADER) | newer
    arguments.chat_template_args = canonical_arguments(arguments.chat_template_args)
    chosen = {key: value for key, value in as_dict(arguments).items() if key not in left_out}
    if arguments.adapters:
        chosen["adapters_sha256"] = adapter_hashes(arguments.adapters)
    if arguments.search == "menu":
        chosen["menu_sha256"] = menu_hashes(arguments.menu)
    return {
        "format": FORMAT,
        "model": arguments.model,
        "revision": config._commit_hash,
        "model_type": config.model_type,
        "num_layers": config.num_hidden_layers,
        "arguments": chosen,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def draw_questions(arguments: DataGenerationArguments, path: Path, make: Callable[[Example], Request], config) -> None:
    """Draw the examples that fit into the model's context into a file; refuse those that cannot be scored as asked."""
    problems, fits = {}, Fitting(config)

    def keep(example: Example) -> bool:
        found = scoring_problems(example, arguments)
        problems.update(dict.fromkeys(found))
        return not found and fits(make(example))

    change = rephrased if arguments.wording else None
    try:
        draw(arguments.dataset, arguments.split, arguments.num_samples, arguments.seed, path, change, keep)
        raise_all(list(problems))
        fits.tell()
    except UserError:
        path.unlink(missing_ok=True)
        raise


def scoring_problems(example: Example, arguments: DataGenerationArguments) -> list[str]:
    """Why an example cannot be scored as the arguments ask."""
    found = []
    scoring = scoring_of(example, arguments.scoring)
    if arguments.scoring.startswith("loglikelihood") and not example.choices:
        found.append(
            f"--scoring {arguments.scoring} compares choices, and {example.dataset} has questions without any; use "
            "--scoring generate or auto"
        )
    if arguments.search != "mcts" and (problem := score_problems(arguments.score, example)) is not None:
        found.append(f"--score: {problem}")
    if arguments.reward == "margin" and scoring == "generate":
        found.append(
            f"--reward margin compares the loglikelihoods of choices, and {example.dataset} is scored by generated "
            "answers; use --reward binary"
        )
    if arguments.verify == "permute" and not (scoring == "generate" and example.choices):
        found.append(
            f"--verify permute changes the order of choices that a prompt lists, and those of {example.dataset} list "
            "none; use --verify paraphrase, or --scoring generate for questions with choices"
        )
    return found


def settled_prompting(prompting: Prompting, names: str, tokenizer) -> dict:
    """What of the prompts is found out once: fields of a header."""
    found = {}
    if prompting.apply_chat_template and tells_time(tokenizer, prompting):
        found["template_time"] = now()
    if prompting.max_new_tokens is None and (limits := limits_of(names, tokenizer)):
        found["limits"] = limits
    return found


def tell_limits(folder: LabelFolder, arguments: DataGenerationArguments, tokenizer, prompting: Prompting) -> None:
    """Warn of answers and thoughts that the limits of new tokens cut off; refuse where no answer fits."""
    chat = arguments.apply_chat_template
    checked = folder.questions, arguments.dataset, arguments.scoring, tokenizer, chat, prompting.limit_of
    warnings = check_limits(*checked)
    generated = (e for e in folder.questions if chat and scoring_of(e, arguments.scoring) == "generate")
    if first := next(generated, None):
        request = prompted(first, tokenizer, prompting)
        limits = {prompting.limit_of(e.dataset) or max_new_tokens(e, chat) for e in chain([first], generated)}
        if warning := thought_warning(tokenizer, [(request.prompt, limit) for limit in limits]):
            warnings.append(warning)
    for warning in warnings:
        print(warning, file=sys.stderr)


def make_search(
    arguments: DataGenerationArguments, header: dict
) -> tuple[Callable, SearchSettings | ExplorationSettings | MenuSettings]:
    """The search that is asked for, and its settings."""
    if arguments.search == "menu":
        return along_menu, MenuSettings(tuple(menu_routes(Path(arguments.output_dir), header)))
    if arguments.search in EXPLORATIONS:
        settings = ExplorationSettings(
            num_scenarios=arguments.num_scenarios,
            branching=arguments.branching,
            min_branching=arguments.min_branching,
            subsets=arguments.subsets,
            stop_score=arguments.stop_score,
        )
        return EXPLORATIONS[arguments.search], settings
    settings = SearchSettings(
        num_simulations=arguments.num_simulations,
        budget=arguments.budget,
        exploration_constant=arguments.exploration_constant,
        length_penalty=arguments.length_penalty,
        random_prob=arguments.random_prob,
        widening=arguments.widening,
        focus=arguments.focus,
        stop_saving=arguments.stop_saving,
        reward=arguments.reward,
        move_order=arguments.move_order,
    )
    return search, settings


def load_model(arguments: DataGenerationArguments, config):
    """The model that runs the routes, in eval mode."""
    dtype, place = DTYPES[arguments.dtype], place_of(arguments)
    if arguments.adapters:
        return load_adapted(Path(arguments.adapters), dtype, place)
    return load_base(arguments.model, dtype, config._commit_hash, place)


def score_of_answers(arguments: DataGenerationArguments) -> str | None:
    """The score that verdicts have: none where nothing but right and wrong is asked for."""
    plain = arguments.search == "mcts" or (arguments.search == "menu" and arguments.score == "accuracy")
    return None if plain else arguments.score


def menu_field(arguments: DataGenerationArguments, header: dict, model: Callable, tokenizer, make, config) -> dict:
    """The menu as a field of the header; `model` loads the model."""
    asked = MenuQuestions(
        model,
        tokenizer,
        lambda split: fitting(
            map(make, load_examples(arguments.dataset, split, arguments.menu_samples, seed=0)), config
        ),
        Path(arguments.output_dir) / MENU_PARTS,
        arguments.batch_size,
        score_of_answers(arguments),
        [
            [header["model"], weight_stamps(arguments.model, header["revision"])],
            header["arguments"].get("adapters_sha256"),
            arguments.dtype,
        ],
    )
    sources = parse_spec(arguments.menu)
    routes = make_menu(sources, header["num_layers"], arguments.menu_kept, asked.order, asked.rewards, asked.diverging)
    return {"menu": {"spec": arguments.menu, "routes": [list(route) for route in routes]}}


def make_scorer(arguments: DataGenerationArguments, model, tokenizer, make) -> tuple[Scorer, PathEvaluator]:
    """The scorer of the search, with its re-test, and the evaluator below it."""
    score = score_of_answers(arguments)
    evaluator = PathEvaluator(model, tokenizer, arguments.batch_size, int(arguments.cache_gib * 2**30), score)
    if arguments.verify == "none":
        return evaluator, evaluator
    if arguments.verify == "alone":
        return StableScorer(evaluator, evaluator.alone), evaluator
    changed = permuted if arguments.verify == "permute" else rephrased
    return VerifiedScorer(evaluator, lambda example: make(changed(example))), evaluator


def keeper(
    arguments: DataGenerationArguments, evaluator: PathEvaluator, folder: LabelFolder
) -> Callable[[Request, SearchResult], None]:
    """What keeps the inputs of routers along labelled paths, where that is asked for.

    Raises:
        UserError: if the disk has too little room.
    """
    if not arguments.store_features:
        return lambda request, result: None
    made_with = arguments.model, arguments.store_features, arguments.dtype, arguments.adapters
    stored = StoredInputs(folder.folder, *made_with)
    config = evaluator.model.config
    size = 4 * config.num_hidden_layers * arguments.store_features * config.hidden_size
    needed, free = size * (len(folder) - folder.finished()), shutil.disk_usage(folder.folder).free
    if needed > free:
        raise UserError(
            f"--store_features {arguments.store_features} needs up to {needed} bytes ({size} a question) and "
            f"{folder.folder} has {free} free. Give an --output_dir on a larger disk, or leave the argument out: "
            "training then computes what it needs."
        )

    def keep(request: Request, result: SearchResult) -> None:
        if result.best is not None:  # Training leaves the others out.
            inputs = evaluator.router_inputs(request, result.best, arguments.store_features)
            stored.write(request.prompt_ids, result.best, inputs)

    return keep


def make_labeller(
    arguments: DataGenerationArguments, header: dict, model, tokenizer, make
) -> tuple[Labeller, PathEvaluator]:
    """What searches groups of questions as the arguments and the header of a label folder say, and its evaluator."""
    scorer, evaluator = make_scorer(arguments, model, tokenizer, make)
    method, settings = make_search(arguments, header)
    guided = arguments.search == "mcts" and arguments.prior == "influence"
    labeller = Labeller(
        depth=header["num_layers"],
        settings=settings,
        seed=arguments.seed,
        scorer=scorer,
        prior=evaluator.influence if guided else no_prior,
        replays=arguments.reward == "binary" and arguments.dtype == "float32",
        search=method,
        margins=arguments.reward == "margin",
    )
    return labeller, evaluator


def finished(folder: Path) -> None:
    """Write the card of finished labels; of several processes the first does."""
    if is_first_process():
        from routing.report.card_labels import complete_card

        complete_card(folder)


def run(arguments: DataGenerationArguments) -> None:
    config = load_base_config(arguments.model)
    tokenizer = load_tokenizer(arguments.model)
    chat = arguments.apply_chat_template
    prompting = prompting_in(as_dict(arguments))
    raise_all(filling_problems(tokenizer, prompting, chat, arguments.tools_in_template))

    def make(example: Example) -> Request:
        return prompted(example, tokenizer, prompting)

    @cache
    def model():
        return load_model(arguments, config)

    def settle() -> dict:
        """What is found out once for the whole folder: the time that a template tells, limits, the menu."""
        nonlocal prompting
        fields = settled_prompting(prompting, arguments.dataset, tokenizer)
        prompting = prompting_of(header | fields)
        return fields | (
            menu_field(arguments, header, model, tokenizer, make, config) if arguments.search == "menu" else {}
        )

    path, header = Path(arguments.output_dir), make_header(arguments, config)
    folder = LabelFolder(
        path,
        header,
        arguments.group_size,
        draw=lambda file: draw_questions(arguments, file, make, config),
        settle=settle,
    )
    prompting = prompting_of(folder.header)
    if is_first_process():
        tell_limits(folder, arguments, tokenizer, prompting)
    shutil.rmtree(path / MENU_PARTS, ignore_errors=True)  # The menu is in the header.
    if folder.finished() == len(folder):
        print(f"{path / LABELS} is complete: {len(folder)} examples", file=sys.stderr)
        finished(path)
        return
    if arguments.engine == "ray":
        from routing.commands.work.generate_by_ray import label_by_ray

        counts = label_by_ray(arguments, folder)
    else:
        labeller, evaluator = make_labeller(arguments, folder.header, model(), tokenizer, make)
        labeller.on_result = keeper(arguments, evaluator, folder)
        counts = label_all(folder, make, labeller, show=is_first_process())
        counts.ties = evaluator.ties
    searchers = "this process" if arguments.engine == "files" else "the workers"
    print(
        f"{path / LABELS}: {len(folder)} examples; {counts.examples} of them searched by {searchers}, with "
        f"{counts.evaluations} evaluations: {counts.base_correct} right at full depth, "
        f"{counts.shortened} of them also with fewer layers, {counts.fixed} wrong answers fixed"
        + (f"; {counts.lucky} right paths failed the re-test" if arguments.verify != "none" else "")
        + (f"; {counts.ties} near ties were decided by the plain evaluator" if counts.ties else ""),
        file=sys.stderr,
    )
    finished(path)
