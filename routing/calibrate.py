"""Set how many layers a routed checkpoint runs: the route bias that reaches a mean on held-out questions.

    python -m routing.calibrate checkpoints/my-run --target_layers 27 --data arithmetic

Only prompts are read, and no answer is looked at. The bias goes into the checkpoint's config.json, what it rests on
into calibration.json beside it. --target_layers none takes it back.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tqdm import tqdm

from routing.arguments import DTYPES, pick_device
from routing.budget import decided_routes, find_bias, mean_layers
from routing.checkpoint import check_checkpoint, load_checkpoint
from routing.errors import UserError, raise_all, run_command
from routing.files import write_json
from routing.run_info import git_commit, hardware, today, versions
from routing.scoring import draw_requests
from routing.tasks import unknown_names
from routing.tasks.examples import SPLITS
from train_models.global_routing import MAKERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those that `routing.frontier` has too."""
    parser.add_argument("checkpoint", help="folder of a routed checkpoint")
    parser.add_argument("--data", default="arithmetic", help="comma-separated data sets: names or JSONL files")
    parser.add_argument("--num_samples", type=int, default=200, help="questions of each data set, at most")
    parser.add_argument("--apply_chat_template", action="store_true", help="as the routers were trained")
    parser.add_argument("--tolerance", type=float, default=0.1, help="difference in layers that is good enough")
    parser.add_argument("--batch_size", type=int, default=16, help="prompts a forward")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    parser.add_argument("--device", default="auto", help="torch device; auto: cuda if there is one, else cpu")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m routing.calibrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--target_layers", required=True, help="mean number of layers an input runs, or none")
    parser.add_argument("--split", default="validation", choices=SPLITS, help="split to draw from")
    arguments = parser.parse_args()
    targets = [] if arguments.target_layers == "none" else [arguments.target_layers]
    raise_all(problems_of(arguments, "target_layers", targets))
    return arguments


def problems_of(arguments: argparse.Namespace, name: str, targets: list[str]) -> list[str]:
    """What is wrong with shared arguments, and with numbers of layers given as --{name}."""
    found, depth = [], None
    try:
        config = check_checkpoint(Path(arguments.checkpoint))
        depth = config["num_hidden_layers"]
        if config.get("router", "per_layer") not in MAKERS or config.get("fixed_route"):
            found.append(f"{arguments.checkpoint} has router {config['router']!r}, whose decisions no bias changes")
    except UserError as error:
        found.append(str(error))
    for text in targets:
        try:
            if depth is not None and not 0 < float(text) < 2 * depth:
                found.append(
                    f"--{name} {text} must lie between 0 and {2 * depth}, twice the {depth} layers of the model"
                )
        except ValueError:
            found.append(f"--{name} {text!r} is no number" + (", nor none" if name == "target_layers" else ""))
    found += [problem.replace("--dataset", "--data", 1) for problem in unknown_names(arguments.data)]
    for least in ("num_samples", "batch_size"):
        if getattr(arguments, least) < 1:
            found.append(f"--{least} {getattr(arguments, least)} must be at least 1")
    if not arguments.tolerance > 0:
        found.append(f"--tolerance {arguments.tolerance} must be above 0")
    return found


def set_bias(folder: Path, bias: float, note: dict | None) -> None:
    """Write a route bias into a checkpoint's config, and what it rests on beside it."""
    record = folder / "calibration.json"
    if note is None:
        record.unlink(missing_ok=True)
    else:
        write_json(record, note)
    path = folder / "config.json"
    write_json(path, json.loads(path.read_text()) | {"route_bias": bias})


def main() -> None:
    arguments = parse_arguments()
    folder = Path(arguments.checkpoint)
    if arguments.target_layers == "none":
        set_bias(folder, 0.0, None)
        print(f"{folder}: route_bias 0, the routers decide as trained")
        return
    target = float(arguments.target_layers)
    model, tokenizer = load_checkpoint(folder, DTYPES[arguments.dtype], pick_device(arguments.device))
    requests = draw_requests(
        arguments.data, arguments.split, arguments.num_samples, tokenizer, arguments.apply_chat_template
    )
    prompts = [request.prompt_ids for request in requests]
    progress = tqdm(desc=f"target {target:g} layers", unit="bias")

    def layers_at(bias: float) -> float:
        model.config.route_bias = bias
        found = mean_layers(decided_routes(model, tokenizer, prompts, arguments.batch_size))
        progress.set_postfix_str(f"bias {bias:.4g}: {found:.2f} layers", refresh=False)
        progress.update()
        return found

    with progress:
        bias, tried = find_bias(layers_at, target, arguments.tolerance)
    note = {
        "route_bias": bias,
        "layers": tried[bias],
        "target_layers": target,
        "reached": abs(tried[bias] - target) <= arguments.tolerance,
        "tried": dict(sorted(tried.items())),
        "prompts": len(prompts),
        "arguments": vars(arguments),
        "hardware": hardware(),
        "date": today(),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    set_bias(folder, bias, note)
    print(f"{folder}: route_bias {bias:.6g} runs {tried[bias]:.2f} layers an input on {len(prompts)} prompts")
    if not note["reached"]:
        nearest = sorted(set(tried.values()), key=lambda layers: abs(layers - target))[:3]
        print(
            f"--target_layers {target:g} is not reached within {arguments.tolerance:g}: the routers decide so alike "
            f"for all inputs that the mean jumps; nearest were {', '.join(f'{layers:.2f}' for layers in nearest)}"
        )


if __name__ == "__main__":
    run_command(main)
