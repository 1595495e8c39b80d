"""Stage 2: train routers on the frozen base and write a checkpoint that loads with trust_remote_code.

    python train.py --model_id M --data data/mcts_paths --run_name my-run --num_epochs 25 --learning_rate 1e-3

Or train a router end to end on text, with adapters or on the frozen base; a YAML file can hold the arguments:

    python train.py --objective gumbel --router prefix_token --run_name my-run
    python train.py experiments/gumbel.yaml --run_name my-run --seed 1

Or train adapters that stand in for skipped layers; other commands take them with --adapters checkpoints/my-adapters:

    python train.py --objective adapters --dataset arithmetic --run_name my-adapters

Or train a router that reads the query and prunes layers, on layer sets that data_generation.py explored:

    python train.py --objective orpo --router query --data data/explored --run_name my-run

Or train a router that estimates what each path of a menu is worth, on a dense table of --search menu:

    python train.py --objective value --data data/menu --adapters checkpoints/my-adapters --run_name my-run

Or train a small language model from scratch whose blocks choose linear or softmax attention for each token:

    python train.py --objective lm --config dynamic --run_name my-run

A run that was interrupted continues with the same arguments and --resume. Several GPUs, or processes on a machine
without any (--multi_gpu is what makes accelerate start them there too):

    accelerate launch --multi_gpu --num_processes 2 train.py --batch_size 8 …
"""

from __future__ import annotations

import argparse
import gc
import sys
from importlib import import_module
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import set_seed

from routing.arguments import DTYPES, TrainArguments, as_dict, expanded, is_first_process, parse, pick_device
from routing.checkpoint import adapter_fields, adapter_hashes, load_adapters, save_checkpoint
from routing.dataset import TrainingData, load_training_data
from routing.errors import run_command
from routing.families import load_base_config, load_tokenizer, locate_model, routed_class
from routing.features import CachedFeatures, LiveExamples, cache_features, fingerprint, live_collator, read_batch
from routing.labels.reading import label_hashes
from routing.locks import only_run
from routing.model_card import write_model_card
from routing.objectives.supervised import CLASSES, class_counts, class_weights
from routing.objectives.table import END_TO_END, PREFERENCE
from routing.run_folder import prepare_folder
from routing.run_info import git_commit, hardware, versions
from routing.training import executor, train_routers
from train_models.routed_model import small_parts

# --objective -> package with arguments.py and run.py, and the class of its arguments. They are imported when asked for.
ROOMS = {
    **dict.fromkeys(END_TO_END, ("routing.end_to_end", "EndToEndArguments")),
    **dict.fromkeys(PREFERENCE, ("routing.preferences", "PreferenceArguments")),
    "adapters": ("routing.adapters", "AdapterArguments"),
    "value": ("routing.value", "ValueArguments"),
    "lm": ("routing.language_model", "LanguageModelArguments"),
}


def make_sets(arguments: TrainArguments, model, data: TrainingData, pad_id: int, work: Path):
    """Training set, held-out set and collator, cached or live."""
    train, held_out = data.train_indices, data.held_out_indices
    if arguments.features == "live":
        sets = [LiveExamples([data.examples[i] for i in part]) for part in (train, held_out)]
        return *sets, live_collator(model, pad_id)
    place = Path(locate_model(arguments.model_id))
    weights = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(place.glob("*.safetensors"))]
    key = fingerprint(
        data.examples,
        model=arguments.model_id,
        revision=getattr(model.config, "_commit_hash", None),
        weights=weights,
        num_windows=arguments.num_windows,
        dtype=arguments.dtype,
        features_dtype=arguments.features_dtype,
        adapters=adapter_hashes(arguments.adapters),
    )
    folder = work / "features"
    folder.mkdir(parents=True, exist_ok=True)
    stored = DTYPES[arguments.features_dtype]
    cache_features(folder, model, data.examples, pad_id, arguments.batch_size, key, stored, is_first_process())
    return CachedFeatures(folder, train), CachedFeatures(folder, held_out), read_batch


def main() -> None:
    objective = chosen_objective(sys.argv[1:])
    if objective not in ROOMS:
        return train_on_labels(parse(TrainArguments))
    room, kind = ROOMS[objective]
    arguments = parse(getattr(import_module(f"{room}.arguments"), kind))
    import_module(f"{room}.run").run(arguments)


def chosen_objective(argv: list[str]) -> str:
    """The value of --objective, which decides about all other arguments."""
    parser = argparse.ArgumentParser(add_help=False)  # Takes --obj too, as the parser of all arguments does.
    parser.add_argument("--objective", default="supervised")
    return parser.parse_known_args(expanded(argv))[0].objective


def train_on_labels(arguments: TrainArguments) -> None:
    config = load_base_config(arguments.model_id)
    tokenizer = load_tokenizer(arguments.model_id)
    data = load_training_data(arguments, config, tokenizer)
    work = Path(arguments.work_dir) / arguments.run_name
    states = work / "trainer"
    device = pick_device(arguments.device)
    processes = PartialState(cpu=device.type == "cpu")
    with only_run(work, together=True):
        if processes.is_main_process:
            prepare_folder(arguments, work, states, label_hashes(arguments.data_folders()))
        processes.wait_for_everyone()
        set_seed(arguments.seed)
        routed = routed_class(config.model_type)
        fields = {"num_windows": arguments.num_windows, "router_hidden_size": arguments.router_hidden_size}
        fields |= adapter_fields(arguments.adapters)
        model = routed.from_pretrained(locate_model(arguments.model_id), dtype=DTYPES[arguments.dtype], **fields)
        load_adapters(model, arguments.adapters)
        model.to(device).eval()
        model.requires_grad_(False)
        model.model.init_routers()

        counts = class_counts(torch.tensor([data.examples[i].route for i in data.train_indices]))
        weights = class_weights(counts, arguments.class_weighting, arguments.class_beta)
        if processes.is_main_process:
            print(
                f"{len(data.train_indices)} training and {len(data.held_out_indices)} held-out examples; labels and "
                "class weights: "
                + ", ".join(f"{n} {c} ({w:.3f})" for n, c, w in zip(CLASSES, counts.tolist(), weights.tolist())),
                file=sys.stderr,
            )
        train_set, eval_set, collator = make_sets(arguments, model, data, tokenizer.pad_token_id, work)
        execute = executor(model, tokenizer, data.held_out_requests[: arguments.eval_examples], arguments.batch_size)
        trainer = train_routers(arguments, model.model.routers, weights, train_set, eval_set, collator, execute, states)
        summary = {
            "arguments": as_dict(arguments),
            "num_processes": processes.num_processes,
            "datasets": data.datasets,
            "class_counts": dict(zip(CLASSES, counts.tolist())),
            "class_weights": dict(zip(CLASSES, weights.tolist())),
            "train_examples": len(data.train_indices),
            "held_out_examples": len(data.held_out_indices),
            "kept_step": trainer.state.best_global_step,
            "log": trainer.state.log_history,
            "versions": versions(),
            "git_commit": git_commit(),
            "hardware": hardware(),
        }
        routers = {name: tensor.detach().cpu() for name, tensor in small_parts(model.model).items()}
        # All that holds the base, which the checkpoint may load again, and the process group: it must be the last to
        # hold itself, or its end may wait for ever.
        del model, trainer, execute, collator
        gc.collect()
        processes.destroy_process_group()
        if is_first_process():
            folder = Path(arguments.output_dir) / arguments.run_name
            save_checkpoint(folder, arguments.model_id, routers, fields, arguments.save_base, summary)
            write_model_card(folder)
            print(f"checkpoint: {folder}", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
