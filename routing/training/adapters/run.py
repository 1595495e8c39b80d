"""One run of adapter training: states, distillation, healing, what each adapter and stage is worth, checkpoint."""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file

from routing.common.cli import as_dict
from routing.common.devices import DTYPES
from routing.common.errors import UserError
from routing.common.files import sha256, write_json
from routing.common.locks import held
from routing.common.run_info import hardware
from routing.models.bases import load_base
from routing.models.checkpoint import save_checkpoint
from routing.models.families import load_base_config, load_tokenizer
from routing.scoring.packed import PathEvaluator
from routing.scoring.prompting import prompting_in, recorded
from routing.scoring.requests import Request
from routing.search.influence import influence_order
from routing.search.routes import Route, full_route
from routing.training.adapters.arguments import AdapterArguments
from routing.training.adapters.data import AdapterData, load_data
from routing.training.adapters.heal_paths import heal_paths, menu_routes
from routing.training.adapters.heal_texts import collect_texts
from routing.training.adapters.healing import heal
from routing.training.adapters.least_squares import fit_adapters
from routing.training.adapters.report import plot_worth, print_worth, worth_of_layers
from routing.training.adapters.stages import plot_stages, print_stages, right_by_stage, worth_of_stages
from routing.training.adapters.states import StoredStates, collect_states
from routing.training.adapters.training import held_out_errors, train_adapters
from routing.training.skeleton import Run, Save, training_run
from train_models.routed_model import small_parts

INFLUENCE_PROMPTS = 128  # training questions by which layers are ordered


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
    run: Run,
    model,
    tokenizer,
    requests: list[Request],
    prompts: list[Request],
    key: str,
) -> dict:
    """The second stage: paths, texts, training; see `heal` for what it returns.

    Args:
        requests: training questions, which tell the block influence.
        prompts: from `draw_prompts`.
        key: what the own answers depend on.
    """
    arguments, folder, processes = run.arguments, run.states, run.processes

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
    config, tokenizer = load_base_config(arguments.model_id), load_tokenizer(arguments.model_id)
    data = load_data(arguments, tokenizer, config)
    return training_run(
        arguments, lambda: data.made_from(arguments), lambda own: train(own, config._commit_hash, tokenizer, data)
    )


def train(run: Run, commit: str | None, tokenizer, data: AdapterData) -> Save:
    arguments = run.arguments
    run.states.mkdir(parents=True, exist_ok=True)
    fields = {"router": "none", "skip_action": "adapter", "adapter_size": arguments.adapter_size}
    model = load_base(arguments.model_id, DTYPES[arguments.dtype], commit, run.placement, **fields)
    model.requires_grad_(False)
    model.model.init_adapters()
    adapters, stages = model.model.adapters, {}
    stored = run.work / "states"
    with held(run.work / "states.lock", wait=True):  # One process collects, the others find it done.
        counts = collect_states(
            stored, model, tokenizer, data.requests, data.states_key, arguments.tokens_per_example,
            arguments.eval_fraction, arguments.model_batch_size, DTYPES[arguments.states_dtype], arguments.seed,
        )  # fmt: skip
    train_set, eval_set = (StoredStates(stored, part) for part in ("train", "held_out"))
    if not len(train_set) or not len(eval_set):
        raise UserError(
            f"the model answers {counts['right']} of {counts['questions']} questions of {arguments.dataset} "
            f"rightly, which leaves {len(train_set)} tokens to train on and {len(eval_set)} held out. Give more "
            "--num_samples or a data set that the model can do."
        )
    run.say(
        f"{counts['right']} of {counts['questions']} questions are answered rightly: {len(train_set)} tokens to train "
        f"on, {len(eval_set)} held out"
    )
    if arguments.start == "least_squares":
        with held(run.work / "states.lock", wait=True):
            least_squares_start(arguments, adapters, train_set, eval_set, run.states / "least_squares.safetensors")
        stages["least squares"] = weights_of(adapters)
    log, healing = [], None
    if arguments.num_epochs:
        log = train_adapters(arguments, adapters, train_set, eval_set, run.states).state.log_history
        stages["trained"] = weights_of(adapters)
    if arguments.heal_epochs:
        healing = run_healing(run, model, tokenizer, data.requests, data.prompts, data.texts_key)
        stages["healed"] = weights_of(adapters)

    def save(folder: Path) -> None:
        nonlocal model, adapters
        report = measured(run, model, tokenizer, data, stages, eval_set, healing)
        summary = run.summary(
            prompting=recorded(prompting_in(as_dict(arguments))),
            datasets=list(dict.fromkeys(request.example.dataset for request in data.requests)),
            questions=counts,
            train_tokens=len(train_set),
            held_out_tokens=len(eval_set),
            held_out_errors=report["errors"],
            worth={name: report[name] for name in ("n", "base", "over_layers")},
            healing=healing,
            log=log,
        )
        parts = {name: tensor.detach().cpu().clone() for name, tensor in small_parts(model.model).items()}
        del model, adapters  # The checkpoint is written from another one.
        save_checkpoint(folder, arguments.model_id, parts, fields, arguments.save_base, summary)
        write_json(folder / "adapters.json", report)
        title = f"{arguments.model_id}, {arguments.dataset}: questions that are not trained on"
        plot_worth(report, report["errors"], folder / "adapters.png", title)
        print_worth(report, report["errors"])
        if healing is not None:
            plot_stages(report["healing"], folder / "healing.png", title)
            print_stages(report["healing"])

    return save


def measured(run: Run, model, tokenizer, data: AdapterData, stages: dict, eval_set, healing: dict | None) -> dict:
    """What adapters.json says: errors, what each adapter is worth, and of healing each stage."""
    arguments, adapters = run.arguments, model.model.adapters
    files = {name: run.states / f"{name.replace(' ', '_')}.safetensors" for name in stages}
    for name, own in stages.items():
        save_weights(own, files[name])
    errors = held_out_errors(adapters, eval_set, arguments.batch_size)
    key = [data.weights, {name: sha256(path) for name, path in files.items()}, arguments.dtype]
    kept = (arguments.model_batch_size, run.work / "worth", [key, hardware()])
    report = {"errors": errors} | worth_of_layers(model, tokenizer, data.scored, *kept)
    if healing is not None:
        routes: list[Route] = [full_route(model.config.num_hidden_layers), *map(tuple, healing["routes"])]
        right = right_by_stage(model, tokenizer, data.scored, routes, stages, *kept)
        told = {name: value for name, value in healing.items() if name != "log"} | {"prompts": len(data.prompts)}
        report["healing"] = told | worth_of_stages(right, routes)
    return report
