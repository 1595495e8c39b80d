"""One run of adapter training: states, distillation, healing, what each adapter and stage is worth, checkpoint."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from random import Random

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from transformers import set_seed

from routing.common.cli import as_dict
from routing.common.devices import DTYPES, pick_device
from routing.common.errors import UserError
from routing.common.files import file_stamps, sha256, write_json
from routing.common.locks import held, only_run
from routing.common.run_info import git_commit, hardware, today, versions
from routing.models.checkpoint import save_checkpoint
from routing.models.families import load_base_config, load_tokenizer, locate_model, routed_class
from routing.scoring.packed import PathEvaluator
from routing.scoring.plain import Request, request_of
from routing.scoring.prompting import prompting_in, recorded
from routing.search.influence import influence_order
from routing.search.routes import Route, full_route
from routing.tasks import expand_names, load_examples
from routing.tasks.examples import held_out, held_out_key
from routing.tasks.problems import files_without_splits
from routing.training.adapters.arguments import AdapterArguments
from routing.training.adapters.heal_paths import heal_paths, menu_routes
from routing.training.adapters.heal_texts import collect_texts, is_prompt_file, prompt_file, prompt_request
from routing.training.adapters.healing import heal
from routing.training.adapters.least_squares import fit_adapters
from routing.training.adapters.report import plot_worth, print_worth, worth_of_layers
from routing.training.adapters.stages import plot_stages, print_stages, right_by_stage, worth_of_stages
from routing.training.adapters.states import StoredStates, collect_states, states_key
from routing.training.adapters.training import held_out_errors, train_adapters
from routing.training.run_folder import prepare_folder
from train_models.routed_model import small_parts

INFLUENCE_PROMPTS = 128  # training questions by which layers are ordered


def draw(arguments: AdapterArguments, names: str, split: str, count: int, tokenizer) -> list[Request]:
    """Questions of a split, ready for the model."""
    if arguments.apply_chat_template and not tokenizer.chat_template:
        raise UserError("--apply_chat_template: the tokenizer has no chat template; leave the flag out")
    examples = load_examples(names, split, count, arguments.seed)
    settings = (arguments.scoring, tokenizer, arguments.apply_chat_template, arguments.tools_in_template)
    return [request_of(example, *settings) for example in examples]


def draw_prompts(arguments: AdapterArguments, tokenizer) -> list[Request]:
    """What is healed on: prompts of data sets and of files."""
    found = []
    for name in expand_names(arguments.heal_dataset or arguments.dataset):
        if is_prompt_file(name):
            prompts = prompt_file(Path(name))
            Random(arguments.seed).shuffle(prompts)
            limit = (Path(name).stem, arguments.heal_answer_tokens, tokenizer)
            found += [prompt_request(prompt, *limit) for prompt in prompts[: arguments.heal_samples]]
        else:
            found += draw(arguments, name, arguments.heal_split, arguments.heal_samples, tokenizer)
    return found


def least_squares_start(arguments: AdapterArguments, adapters, train_set, eval_set, path: Path) -> None:
    """Give the adapters their closed form; kept in a file, since a resumed run starts from the same one."""
    if not path.exists():
        fit_adapters(adapters, train_set, eval_set, arguments.loss == "relative")
        save_weights(weights_of(adapters), path)
    adapters.load_state_dict(load_file(path))


def weights_of(adapters) -> dict[str, torch.Tensor]:
    """A copy of the weights of adapters."""
    return {name: tensor.detach().cpu().clone() for name, tensor in adapters.state_dict().items()}


def save_weights(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Write weights, renamed last."""
    save_file(weights, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def run_healing(
    arguments: AdapterArguments,
    model,
    tokenizer,
    requests: list[Request],
    prompts: list[Request],
    key: str,
    folder: Path,
    processes: PartialState,
) -> dict:
    """The second stage: paths, texts, training; see `heal` for what it returns.

    Args:
        requests: training questions, which tell the block influence.
        prompts: from `draw_prompts`.
        key: what the own answers depend on.
        folder: of the run's training states.
    """

    def by_influence() -> list[int]:
        evaluator = PathEvaluator(model, tokenizer, arguments.model_batch_size)
        some = Random(arguments.seed).sample(requests, min(INFLUENCE_PROMPTS, len(requests)))  # Of all data sets.
        return influence_order(evaluator.influence(some))

    routes = menu_routes(arguments.heal_menu, model.config.num_hidden_layers, by_influence, arguments.heal_kept)
    paths = heal_paths(routes, arguments.heal_random_share, arguments.heal_random_layers, arguments.heal_kept)
    with held(folder / "texts.lock", wait=True):  # One process writes the answers, the others find them.
        rows = collect_texts(
            folder / "texts.json", model, tokenizer, prompts, key, arguments.eval_fraction, arguments.model_batch_size
        )
    if not rows["train"] or not rows["held_out"]:
        raise UserError(
            f"{len(prompts)} prompts leave {len(rows['train'])} to heal on and {len(rows['held_out'])} held out. Give "
            "more --heal_samples, another --heal_dataset or --eval_fraction."
        )
    sets = (rows["train"], rows["held_out"], folder / "healing")
    return heal(arguments, model, paths, *sets, processes.process_index, processes.num_processes)


def run(arguments: AdapterArguments) -> Path | None:
    """Collect states, train, heal, measure, and write the checkpoint folder."""
    config = load_base_config(arguments.model_id)
    tokenizer = load_tokenizer(arguments.model_id)
    requests = draw(arguments, arguments.dataset, arguments.split, arguments.num_samples, tokenizer)
    if files_without_splits("dataset", arguments.dataset):
        aside = [r for r in requests if held_out(held_out_key(r.example), arguments.eval_fraction)]
        scored = aside[: arguments.score_samples]
    else:
        scored = draw(arguments, arguments.dataset, "validation", arguments.score_samples, tokenizer)
    prompts = draw_prompts(arguments, tokenizer) if arguments.heal_epochs else []
    work = Path(arguments.work_dir) / arguments.run_name
    place = locate_model(arguments.model_id)
    fields = {"router": "none", "skip_action": "adapter", "adapter_size": arguments.adapter_size}
    device = pick_device(arguments.device)
    processes = PartialState(cpu=device.type == "cpu")
    with only_run(work, together=True):
        weights = file_stamps(Path(place), "*.safetensors")
        key = states_key(
            requests, model=arguments.model_id, weights=weights,
            tokens=arguments.tokens_per_example, held_out=arguments.eval_fraction, dtype=arguments.dtype,
            stored=arguments.states_dtype, seed=arguments.seed,
        )  # fmt: skip
        made_from = {"states": key}
        if arguments.heal_epochs:
            made_from["texts"] = states_key(prompts, model=arguments.model_id, weights=weights, dtype=arguments.dtype,
                                            tokens=arguments.heal_answer_tokens)  # fmt: skip
            menu = Path(arguments.heal_menu)
            made_from["menu"] = file_stamps(menu, "*.header.json") if menu.is_dir() else _file_hash(menu)
        folder = work / "trainer"
        if processes.is_main_process:
            prepare_folder(arguments, work, folder, made_from)
            folder.mkdir(parents=True, exist_ok=True)
        processes.wait_for_everyone()
        set_seed(arguments.seed)
        model = routed_class(config.model_type).from_pretrained(place, dtype=DTYPES[arguments.dtype], **fields)
        model.to(device).eval().requires_grad_(False)
        model.model.init_adapters()
        adapters, stages = model.model.adapters, {}
        states = work / "states"
        with held(work / "states.lock", wait=True):  # One process collects, the others find it done.
            counts = collect_states(
                states, model, tokenizer, requests, key, arguments.tokens_per_example, arguments.eval_fraction,
                arguments.model_batch_size, DTYPES[arguments.states_dtype], arguments.seed,
            )  # fmt: skip
        train_set, eval_set = (StoredStates(states, part) for part in ("train", "held_out"))
        if not len(train_set) or not len(eval_set):
            raise UserError(
                f"the model answers {counts['right']} of {counts['questions']} questions of {arguments.dataset} "
                f"rightly, which leaves {len(train_set)} tokens to train on and {len(eval_set)} held out. Give more "
                "--num_samples or a data set that the model can do."
            )
        if processes.is_main_process:
            print(
                f"{counts['right']} of {counts['questions']} questions are answered rightly: {len(train_set)} tokens "
                f"to train on, {len(eval_set)} held out",
                file=sys.stderr,
            )
        if arguments.start == "least_squares":
            with held(work / "states.lock", wait=True):
                least_squares_start(arguments, adapters, train_set, eval_set, folder / "least_squares.safetensors")
            stages["least squares"] = weights_of(adapters)
        log = []
        if arguments.num_epochs:
            log = train_adapters(arguments, adapters, train_set, eval_set, folder).state.log_history
            stages["trained"] = weights_of(adapters)
        healing = None
        if arguments.heal_epochs:
            healing = run_healing(arguments, model, tokenizer, requests, prompts, made_from["texts"], folder, processes)
            stages["healed"] = weights_of(adapters)
        gc.collect()  # What the trainers held of the process group: it must be the last to hold itself, or never ends.
        several = processes.num_processes
        is_first = processes.is_main_process
        processes.destroy_process_group()
        if not is_first:
            return
        files = {name: folder / f"{name.replace(' ', '_')}.safetensors" for name in stages}
        for name, own in stages.items():
            save_weights(own, files[name])
        errors = held_out_errors(adapters, eval_set, arguments.batch_size)
        key = [weights, {name: sha256(path) for name, path in files.items()}, arguments.dtype]
        worth = worth_of_layers(model, tokenizer, scored, arguments.model_batch_size, work / "worth", [key, hardware()])
        report = {"errors": errors} | worth
        if healing is not None:
            routes: list[Route] = [full_route(config.num_hidden_layers), *map(tuple, healing["routes"])]
            right = right_by_stage(
                model, tokenizer, scored, routes, stages, arguments.model_batch_size, work / "worth", [key, hardware()]
            )
            told = {name: value for name, value in healing.items() if name != "log"} | {"prompts": len(prompts)}
            report["healing"] = told | worth_of_stages(right, routes)
        summary = {
            "arguments": as_dict(arguments),
            "num_processes": several,
            "prompting": recorded(prompting_in(as_dict(arguments))),
            "datasets": list(dict.fromkeys(request.example.dataset for request in requests)),
            "questions": counts,
            "train_tokens": len(train_set),
            "held_out_tokens": len(eval_set),
            "held_out_errors": errors,
            "worth": {name: worth[name] for name in ("n", "base", "over_layers")},
            "healing": healing,
            "log": log,
            "versions": versions(),
            "git_commit": git_commit(),
            "hardware": hardware(),
            "date": today(),
        }
        parts = {name: tensor.detach().cpu().clone() for name, tensor in small_parts(model.model).items()}
        del model, adapters
        gc.collect()
        target = Path(arguments.output_dir) / arguments.run_name
        save_checkpoint(target, arguments.model_id, parts, fields, arguments.save_base, summary)
        write_json(target / "adapters.json", report)
        title = f"{arguments.model_id}, {arguments.dataset}: questions that are not trained on"
        plot_worth(worth, errors, target / "adapters.png", title)
        if healing is not None:
            plot_stages(report["healing"], target / "healing.png", title)
        print_worth(worth, errors)
        if healing is not None:
            print_stages(report["healing"])
        print(f"checkpoint: {target}", file=sys.stderr)
        return target


def _file_hash(path: Path) -> str | None:
    return sha256(path) if path.is_file() else None
