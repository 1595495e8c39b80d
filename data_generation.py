"""Stage 1: search layer paths with a tree search and write labels.

    python data_generation.py --model M --dataset arc,dart --output_dir data/mcts_paths --num_simulations 50 --budget 2

Without hub access: --dataset arithmetic (or piqa, openbookqa, …), and the default model. A run that was
interrupted continues when it is started again with the same arguments.
"""

from __future__ import annotations

import sys
from pathlib import Path

from routing.arguments import DTYPES, DataGenerationArguments, as_dict, parse, pick_device
from routing.errors import raise_all, run_command
from routing.families import load_base_config, load_tokenizer, locate_model, routed_class
from routing.labelling import label_all, no_prior
from routing.labels import FORMAT, LABELS, LabelWriter
from routing.locks import only_run
from routing.prompts import build_prompt, scoring_of
from routing.run_info import git_commit, versions
from routing.scoring import Evaluator, make_request
from routing.search.mcts import SearchSettings
from routing.tasks import load_examples

# A run may be continued with others of these. The bytes are the same on the same device and batch size only:
# elsewhere the last bits of a float may tip a verdict.
NOT_IN_HEADER = ("output_dir", "device", "batch_size")


def make_header(arguments: DataGenerationArguments, config) -> dict:
    chosen = {key: value for key, value in as_dict(arguments).items() if key not in NOT_IN_HEADER}
    return {
        "format": FORMAT,
        "model": arguments.model,
        "revision": getattr(config, "_commit_hash", None),
        "model_type": config.model_type,
        "num_layers": config.num_hidden_layers,
        "arguments": chosen,
        "versions": versions(),
        "git_commit": git_commit(),
    }


def main() -> None:
    arguments = parse(DataGenerationArguments)
    config = load_base_config(arguments.model)
    examples = load_examples(arguments.dataset, arguments.split, arguments.num_samples, arguments.seed)
    tokenizer = load_tokenizer(arguments.model)
    chat = arguments.apply_chat_template
    problems = [
        f"--scoring {arguments.scoring} compares choices, and {dataset} has questions without any; use --scoring "
        "generate or auto"
        for dataset in dict.fromkeys(e.dataset for e in examples if not e.choices)
        if arguments.scoring.startswith("loglikelihood")
    ]
    if chat and not tokenizer.chat_template:
        problems.append("--apply_chat_template: the tokenizer has no chat template; leave the flag out")
    raise_all(problems)
    folder = Path(arguments.output_dir)
    with only_run(folder):
        writer = LabelWriter(folder, make_header(arguments, config), [e.id for e in examples], arguments.group_size)
        requests = []
        for example in examples:
            scoring = scoring_of(example, arguments.scoring)
            prompt = build_prompt(example, scoring, tokenizer, chat)
            requests.append(make_request(example, scoring, prompt, tokenizer, chat))
        if writer.written == len(requests):
            print(f"{folder / LABELS} is complete: {len(requests)} examples", file=sys.stderr)
            return
        model = routed_class(config.model_type).from_pretrained(
            locate_model(arguments.model), dtype=DTYPES[arguments.dtype]
        )
        model.to(pick_device(arguments.device)).eval()
        settings = SearchSettings(
            num_simulations=arguments.num_simulations,
            budget=arguments.budget,
            exploration_constant=arguments.exploration_constant,
            length_penalty=arguments.length_penalty,
            random_prob=arguments.random_prob,
            widening=arguments.widening,
            stop_saving=arguments.stop_saving,
        )
        evaluator = Evaluator(model, tokenizer, arguments.batch_size)
        prior = evaluator.influence if arguments.prior == "influence" else no_prior
        counts = label_all(
            requests, config.num_hidden_layers, settings, arguments.seed, evaluator.verdicts, writer, prior
        )
    print(
        f"{folder / LABELS}: {len(requests)} examples; in this run {counts['examples']} with "
        f"{counts['evaluations']} evaluations: {counts['base_correct']} right at full depth, "
        f"{counts['shortened']} of them also with fewer layers, {counts['fixed']} wrong answers fixed",
        file=sys.stderr,
    )


if __name__ == "__main__":
    run_command(main)
