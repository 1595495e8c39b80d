"""One run of adapter training: states, distillation, what each adapter is worth, checkpoint."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from transformers import set_seed

from routing.adapters.arguments import AdapterArguments
from routing.adapters.report import plot_worth, print_worth, worth_of_layers
from routing.adapters.states import StoredStates, collect_states, states_key
from routing.adapters.training import layer_errors, train_adapters
from routing.arguments import DTYPES, as_dict, files_without_splits, pick_device
from routing.checkpoint import save_checkpoint
from routing.errors import UserError
from routing.families import load_base_config, load_tokenizer, locate_model, routed_class
from routing.files import file_stamps, write_json
from routing.locks import only_run
from routing.model_card import write_model_card
from routing.run_folder import prepare_folder
from routing.run_info import git_commit, hardware, today, versions
from routing.scoring import Request, request_of
from routing.tasks import load_examples
from routing.tasks.examples import held_out, held_out_key
from train_models.routed_model import small_parts


def draw(arguments: AdapterArguments, split: str, count: int, tokenizer) -> list[Request]:
    """Questions of a split, ready for the model."""
    if arguments.apply_chat_template and not tokenizer.chat_template:
        raise UserError("--apply_chat_template: the tokenizer has no chat template; leave the flag out")
    examples = load_examples(arguments.dataset, split, count, arguments.seed)
    settings = (arguments.scoring, tokenizer, arguments.apply_chat_template, arguments.tools_in_template)
    return [request_of(example, *settings) for example in examples]


def run(arguments: AdapterArguments) -> None:
    """Collect states, train, measure, and write the checkpoint folder."""
    config = load_base_config(arguments.model_id)
    tokenizer = load_tokenizer(arguments.model_id)
    requests = draw(arguments, arguments.split, arguments.num_samples, tokenizer)
    if files_without_splits("dataset", arguments.dataset):
        aside = [r for r in requests if held_out(held_out_key(r.example), arguments.eval_fraction)]
        scored = aside[: arguments.score_samples]
    else:
        scored = draw(arguments, "validation", arguments.score_samples, tokenizer)
    work = Path(arguments.work_dir) / arguments.run_name
    place = locate_model(arguments.model_id)
    fields = {"router": "none", "skip_action": "adapter", "adapter_size": arguments.adapter_size}
    with only_run(work):
        key = states_key(
            requests, model=arguments.model_id, weights=file_stamps(Path(place), "*.safetensors"),
            tokens=arguments.tokens_per_example, held_out=arguments.eval_fraction, dtype=arguments.dtype,
            stored=arguments.states_dtype, seed=arguments.seed,
        )  # fmt: skip
        prepare_folder(arguments, work, work / "trainer", {"states": key})
        set_seed(arguments.seed)
        model = routed_class(config.model_type).from_pretrained(place, dtype=DTYPES[arguments.dtype], **fields)
        model.to(pick_device(arguments.device)).eval().requires_grad_(False)
        model.model.init_adapters()
        states = work / "states"
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
        print(
            f"{counts['right']} of {counts['questions']} questions are answered rightly: {len(train_set)} tokens to "
            f"train on, {len(eval_set)} held out",
            file=sys.stderr,
        )
        trainer = train_adapters(arguments, model.model.adapters, train_set, eval_set, work / "trainer")
        errors = layer_errors(trainer.predict(eval_set))
        worth = worth_of_layers(model, tokenizer, scored, arguments.model_batch_size)
        summary = {
            "arguments": as_dict(arguments),
            "datasets": list(dict.fromkeys(request.example.dataset for request in requests)),
            "questions": counts,
            "train_tokens": len(train_set),
            "held_out_tokens": len(eval_set),
            "held_out_errors": errors,
            "worth": {name: worth[name] for name in ("n", "base", "over_layers")},
            "log": trainer.state.log_history,
            "versions": versions(),
            "git_commit": git_commit(),
            "hardware": hardware(),
            "date": today(),
        }
        parts = {name: tensor.detach().cpu().clone() for name, tensor in small_parts(model.model).items()}
        del model, trainer
        gc.collect()
        folder = Path(arguments.output_dir) / arguments.run_name
        save_checkpoint(folder, arguments.model_id, parts, fields, arguments.save_base, summary)
        write_json(folder / "adapters.json", {"errors": errors} | worth)
        title = f"{arguments.model_id}, {arguments.dataset}: questions that are not trained on"
        plot_worth(worth, errors, folder / "adapters.png", title)
        write_model_card(folder)
        print_worth(worth, errors)
        print(f"checkpoint: {folder}", file=sys.stderr)
