"""How much faster is router training on cached features than with the base in every step? The same losses first.

    OMP_NUM_THREADS=2 .venv/bin/python benchmarks/router_training.py --json benchmarks/results/router_training.json

All ways are those of train.py (`--features cached` and `live`), held-out loss and agreement included. Left out is what
costs all the same: loading the model, and answering the held-out questions. Cached training is timed twice:
- on what a search left beside its labels (`data_generation.py --store_features 8`): `ratio`. Its time includes taking
  the features from the states of the evaluator and writing them, which the search does as it ends;
- on labels without that: `ratio_with_pass`. Its time includes the pass of the base that computes the features. Since
  live training runs the base once an epoch, with E epochs this ratio stays near E at best (more only where the pass
  computes less than live training does).

Live training runs --live_epochs epochs, and its time is scaled to --epochs. There is no ratio if the losses of the
first epochs differ. A hundred AdamW steps amplify what rounding differs, so those of later epochs may; by how much is
told.

Without --labels the examples are questions of the offline data sets with random routes near the identity: what is
timed depends on prompts and routes, not on whether a route answers right. Prompts are those of data_generation.py with
--scoring generate --apply_chat_template, which list the choices, or with --plain those without these flags, some 15
tokens long: then the routers, which see 8 windows of any prompt, weigh more beside the base.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from stop_training import Stop
from transformers import set_seed

from routing.common.devices import DTYPES, pick_device
from routing.common.errors import UserError, raise_all, run_command
from routing.common.files import write_json
from routing.common.run_info import git_commit, hardware, today, versions
from routing.labels.reading import FORMAT, HEADER, LABELS
from routing.labels.records import label_line
from routing.models.base_files import locate_model
from routing.models.default_model import DEFAULT_MODEL
from routing.models.families import load_base_config, load_tokenizer, routed_class
from routing.scoring.path_runner import PathRunner
from routing.scoring.prefix_store import PrefixStore
from routing.scoring.requests import request_of
from routing.scoring.router_inputs import StoredInputs, inputs_along
from routing.scoring.segments import TokenTree
from routing.search.results import SearchResult, Verdict
from routing.search.routes import full_route, to_path
from routing.tasks import load_examples
from routing.training.features import feature_bytes
from routing.training.routers.arguments import TrainArguments
from routing.training.routers.data import TrainingData, load_training_data
from routing.training.routers.run import make_sets
from routing.training.routers.trainer import train_routers

FIRST = 4  # epochs whose losses must be the same
TOLERANCE = 1e-4  # of these losses: what floats explain
SKIPPED, REPEATED = 0.08, 0.02  # shares of layers in the random routes


@dataclass
class Run:
    """One training.

    Attributes:
        losses: all that was logged, training and held-out, by (step, name).
        seconds: of everything, of the pass that computes features (cached) and of a training epoch.
    """

    losses: dict[tuple[int, str], float]
    seconds: float
    pass_seconds: float
    epoch_seconds: float


def write_labels(
    folder: Path, model: str, depth: int, tokenizer, count: int, plain: bool = False, seed: int = 0
) -> None:
    """Label folder of offline questions, half arithmetic, half openbookqa, with random routes near the identity."""
    rng = Random(seed)
    halves = [load_examples(name, "search", -(-count // 2), seed) for name in ("arithmetic", "openbookqa")]
    lines = []
    for example in [example for pair in zip(*halves, strict=True) for example in pair][:count]:
        route = tuple(rng.choices((0, 1, 2), (SKIPPED, 1 - SKIPPED - REPEATED, REPEATED), k=depth))
        verdicts = {full_route(depth): Verdict(False)} | {route: Verdict(True)}
        request = request_of(example, "auto" if plain else "generate", tokenizer, not plain)
        lines.append(label_line(request, SearchResult(verdicts)))
    folder.mkdir(parents=True, exist_ok=True)
    about = {"model": model, "num_layers": depth, "arguments": {"apply_chat_template": not plain}}
    write_json(folder / HEADER, {"format": FORMAT} | about)
    (folder / LABELS).write_text("".join(lines), encoding="utf-8")


def first_examples(data: TrainingData, count: int) -> TrainingData:
    """The same with the first `count` examples alone."""
    kept = [[i for i in part if i < count] for part in (data.train_indices, data.held_out_indices)]
    if not all(kept):
        raise UserError(f"--examples {count}: none of these are held out; give more of them.")
    return replace(data, examples=data.examples[:count], train_indices=kept[0], held_out_indices=kept[1])


def run(arguments: TrainArguments, epochs: int, model, tokenizer, data: TrainingData, work: Path) -> Run:
    """Train routers from the same start as any other call does, for the first `epochs` of the schedule."""
    work.mkdir(exist_ok=True)
    set_seed(arguments.seed)
    model.model.init_routers()
    start = time.perf_counter()
    sets = make_sets(arguments, model, data, tokenizer.pad_token_id, work)
    ready = time.perf_counter()
    trainer = train_routers(
        arguments, model.model.routers, torch.ones(3), *sets,
        lambda: {"executed_accuracy": 0.0, "executed_examples": 1}, work / arguments.features,
        callbacks=[Stop(epochs)],
    )  # fmt: skip
    end = time.perf_counter()
    losses = {
        (entry["step"], name): entry[name]
        for entry in trainer.state.log_history
        for name in ("loss", "eval_loss")
        if name in entry
    }
    return Run(losses, end - start, ready - start, (end - ready) / epochs)


def leave_inputs(arguments: TrainArguments, model, data: TrainingData) -> float:
    """Write what a search would leave of the labelled paths; seconds of what it does for that when it ends."""
    (folder,) = arguments.data_folders()
    stored = StoredInputs(folder, arguments.model_id, arguments.num_windows, arguments.dtype, arguments.adapters)
    store = PrefixStore(2**40)
    runner, seconds = PathRunner(model, store), 0.0
    for example in data.examples:
        segment = TokenTree(example.prompt_ids, ()).segment
        runner.compute([(segment, tuple(to_path(example.route)))])  # The search has done this.
        start = time.perf_counter()
        inputs = inputs_along(runner, segment, example.prompt_ids, example.route, arguments.num_windows)
        stored.write(example.prompt_ids, example.route, inputs)
        seconds += time.perf_counter() - start
        store.forget(segment)
    return seconds


def differences(cached: Run, live: Run, last: int, half: bool) -> tuple[int, float, float]:
    """How many losses of the first epochs both have, their largest difference, and that of all losses.

    Args:
        last: step at which the first epochs end.
        half: whether features are stored in half precision.

    Raises:
        UserError: if the first ones differ by more than floats explain; then the two did not do the same.
    """
    shared = {key: abs(cached.losses[key] - live.losses[key]) for key in cached.losses.keys() & live.losses.keys()}
    first = [value for (step, _), value in shared.items() if step <= last]
    worst = max(first, default=float("nan"))
    if not worst <= TOLERANCE:
        why = " --features_dtype in half precision causes this; give float32." if half else ""
        raise UserError(
            f"{len(first)} losses of cached and live training up to step {last} differ by up to {worst:.2g}, and "
            f"{TOLERANCE:g} is allowed, so the two do not do the same and there is no ratio to report.{why}"
        )
    return len(first), worst, max(shared.values())


def problems(arguments: argparse.Namespace) -> list[str]:
    least = {"epochs": 1, "examples": 2, "batch_size": 1, "live_epochs": 1}
    found = [f"--{name} {getattr(arguments, name)} must be at least {low}" for name, low in least.items()
             if getattr(arguments, name) < low]  # fmt: skip
    if arguments.live_epochs > arguments.epochs:
        found.append(f"--live_epochs {arguments.live_epochs} must be at most --epochs {arguments.epochs}")
    if "," in (arguments.labels or ""):
        found.append(f"--labels {arguments.labels!r} must be one folder")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="base model: hub id, folder or the default")
    parser.add_argument("--epochs", type=int, default=25, help="epochs over the training examples")
    parser.add_argument(
        "--live_epochs",
        type=int,
        help=f"epochs that live training runs, its time scaled to all; default {FIRST}, whose losses are compared",
    )
    parser.add_argument("--examples", type=int, default=64, help="examples, training and held-out together")
    parser.add_argument("--batch_size", type=int, default=16, help="examples a step")
    parser.add_argument("--labels", help="folder of labels made with --model; default: offline prompts, random routes")
    parser.add_argument("--plain", action="store_true", help="short prompts, without chat template and choices")
    parser.add_argument("--features_dtype", default="float32", choices=list(DTYPES), help="dtype of stored features")
    parser.add_argument("--device", default="auto", help="torch device; auto: cuda if there is one, else cpu")
    parser.add_argument("--json", help="file for the results")
    arguments = parser.parse_args()
    if arguments.live_epochs is None:
        arguments.live_epochs = min(FIRST, arguments.epochs)
    raise_all(problems(arguments))
    config, tokenizer = load_base_config(arguments.model), load_tokenizer(arguments.model)
    with tempfile.TemporaryDirectory() as work:
        labels = Path(work) / "labels"
        if arguments.labels:  # A copy: what searches leave is written beside it.
            labels.mkdir()
            for name in (HEADER, LABELS):
                shutil.copy(Path(arguments.labels) / name, labels)
        else:
            depth, count = config.num_hidden_layers, arguments.examples
            write_labels(labels, arguments.model, depth, tokenizer, count, arguments.plain)
        settings = TrainArguments(
            run_name="speed", model_id=arguments.model, data=str(labels), num_epochs=arguments.epochs,
            batch_size=arguments.batch_size, features_dtype=arguments.features_dtype, device=arguments.device,
        )  # fmt: skip
        raise_all(settings.problems())
        data = first_examples(load_training_data(settings, config, tokenizer), arguments.examples)
        model = routed_class(config.model_type).from_pretrained(
            locate_model(arguments.model), num_windows=settings.num_windows
        )
        model.to(pick_device(arguments.device)).eval().requires_grad_(False)
        passed = run(settings, arguments.epochs, model, tokenizer, data, Path(work) / "pass")
        storing = leave_inputs(settings, model, data)
        cached = run(settings, arguments.epochs, model, tokenizer, data, Path(work) / "stored")
        live_settings = replace(settings, features="live")
        live = run(live_settings, arguments.live_epochs, model, tokenizer, data, Path(work) / "live")
    steps = -(-len(data.train_indices) // arguments.batch_size)
    half = arguments.features_dtype != "float32"
    found = [differences(one, live, FIRST * steps, half) for one in (cached, passed)]
    compared, worst, later = (max(numbers) for numbers in zip(*found))
    live_seconds = live.seconds * arguments.epochs / arguments.live_epochs
    cached_seconds = storing + cached.seconds
    size = feature_bytes(
        config.num_hidden_layers, settings.num_windows, config.hidden_size, DTYPES[arguments.features_dtype]
    )
    result = {
        "ratio": live_seconds / cached_seconds,
        "ratio_with_pass": live_seconds / passed.seconds,
        "max_loss_difference": worst,
        "max_loss_difference_of_all_epochs": later,
        "epochs": arguments.epochs,
        "live_epochs": arguments.live_epochs,
        "examples": len(data.examples),
        "prompt_tokens": sum(len(example.prompt_ids) for example in data.examples) / len(data.examples),
        "batch_size": arguments.batch_size,
        "live_seconds": live_seconds,
        "cached_seconds": cached_seconds,
        "storing_seconds": storing,
        "cached_with_pass_seconds": passed.seconds,
        "feature_pass_seconds": passed.pass_seconds,
        "live_epoch_seconds": live.epoch_seconds,
        "cached_epoch_seconds": cached.epoch_seconds,
        "losses_compared": compared,
        "features_dtype": arguments.features_dtype,
        "bytes_per_example": size,
        "threads": torch.get_num_threads(),
        "model": arguments.model,
        "hardware": hardware(),
        "date": today(),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    print(
        f"{result['examples']} examples of {result['prompt_tokens']:.0f} prompt tokens, {arguments.epochs} epochs: "
        f"live {live_seconds:.1f} s (of {arguments.live_epochs} epochs, scaled); on what a search left "
        f"{cached_seconds:.1f} s (of it {storing:.2f} s to leave it), ratio {result['ratio']:.1f}; with a pass "
        f"{passed.seconds:.1f} s (of it {passed.pass_seconds:.1f} s the pass), ratio {result['ratio_with_pass']:.1f}; "
        f"an epoch {live.epoch_seconds:.2f} s and {cached.epoch_seconds:.3f} s; {compared} losses of the first "
        f"{FIRST} epochs differ by at most {worst:.1g}, those of all by {later:.1g}; {size} bytes an example"
    )
    if arguments.json:
        write_json(Path(arguments.json), result)


if __name__ == "__main__":
    run_command(main)
