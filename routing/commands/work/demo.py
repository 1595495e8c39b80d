"""What `make demo` does, stage by stage."""

from __future__ import annotations

import json
from pathlib import Path

from routing.common.files import write_json
from routing.common.stages import done, run_stage
from routing.common.statistics import lower_bound, mcnemar
from routing.report.plots import plot_layer_rates, plot_routes, plot_seconds
from routing.report.words import print_table, signed

DEMO = Path("demo")
DATA, TASK = "procedural", "routed_procedural"
TEST = ("--tasks", TASK, "--limit", "608", "--batch_size", "32")
ADAPTERS = (
    "--dataset", DATA, "--num_samples", "320", "--start", "least_squares", "--num_epochs", "0", "--adapter_size", "288",
    "--score_samples", "2",
)  # fmt: skip
MENU = (
    "--search", "menu", "--menu", "divergence:0,2,4,6,8+influence:10", "--menu_samples", "32", "--dataset", DATA,
    "--num_samples", "512",
)  # fmt: skip
# So few questions can prove no less than five points.
GUARANTEE = ("--max_loss", "0.05", "--confidence", "0.95", "--dataset", DATA, "--num_samples", "512")
PUBLISHED_SEARCH = ("--dataset", DATA, "--num_samples", "64", "--num_simulations", "50")
PUBLISHED_TRAINING = (
    "--num_epochs", "25", "--learning_rate", "1e-3", "--eval_fraction", "0.2", "--num_evaluations", "2",
)  # fmt: skip
PUBLISHED = "Dr.LLM as published"
STEPS = 8


def trained(step: int, title: str, name: str, made_from: Path | None, *options: str) -> Path:
    """The checkpoint demo/NAME, trained unless that is done."""
    folder = DEMO / name
    if done(folder / "training.json", *([made_from] if made_from else [])):
        print(f"\n[{step}/{STEPS}] done: {folder}")
        return folder
    places = ("--run_name", name, "--output_dir", str(DEMO), "--work_dir", str(DEMO / "runs"))
    run_stage(f"{step}/{STEPS}", title, "train.py", *options, *places)
    return folder


def evaluated(step: int, title: str, checkpoint: Path, *options: str) -> dict:
    """The result of an evaluation, made unless that is done."""
    path = checkpoint / "evaluation.json"
    if done(path, checkpoint / "training.json", checkpoint / "config.json"):
        print(f"\n[{step}/{STEPS}] done: {path}")
    else:
        run_stage(f"{step}/{STEPS}", title, "evaluation.py", "--checkpoint", str(checkpoint), *TEST, *options)
    return next(found for found in json.loads(path.read_text(encoding="utf-8")) if found["task"] == TASK)


def verdicts(checkpoint: Path, method: str) -> dict[int, bool]:
    """Verdict of each test question, as an evaluation keeps it beside its results."""
    path = checkpoint / "evaluation.parts" / f"{TASK}.{method}.json"
    return {int(at): right for at, right in json.loads(path.read_text())["result"]["correct"].items()}


def as_control(name: str, method: str, own: dict, base: dict, routed: dict, found: dict) -> dict:
    """Another checkpoint's results as a control, given the verdicts of base, routed model and itself."""
    return (
        {"name": name, "method": method, "seed": None}
        | own
        | {
            "paired_with_base": mcnemar(base, found),
            "paired_with_routed": mcnemar(routed, found),
            "difference_lower_bound": lower_bound(base, found),
            "routed_lower_bound": lower_bound(found, routed),
        }
    )


def sentence(result: dict) -> str:
    """What came out, in one sentence made from the numbers."""
    base, routed, bound = result["base"], result["routed"], result["difference_lower_bound"]
    saved, time = 1 - routed["layers"] / base["layers"], routed["seconds"] / base["seconds"]
    by_name = {control["name"]: control for control in result["controls"]}
    published, equal = by_name[PUBLISHED], result["static_at_equal_layers"]
    text = (
        f"With {saved:.0%} fewer layers and {time:.2f} of the measured time, the routed model answers "
        f"{routed['accuracy']:.3f} of {result['n']} test questions rightly, the base {base['accuracy']:.3f}: with 95 % "
        f"confidence the difference is at least {signed(bound)}"
    )
    if equal:
        gain = "above" if equal["lower_bound"] > 0 else "not measurably above"
        p = f"p = {equal['p']:.3f}" if equal["p"] >= 0.001 else "p < 0.001"
        text += f"; it is {gain} the best static paths at equal layers ({equal['accuracy']:.3f}, {p})"
    return text + (
        f"; Dr.LLM as published reaches {published['accuracy']:.3f} with {published['layers']:.1f} of "
        f"{base['layers']:.0f} layers."
    )


def run() -> None:
    table, labels = DEMO / "table", DEMO / "published_labels"
    adapters = trained(
        1,
        "adapters in the place of skipped layers, in closed form",
        "adapters",
        None,
        "--objective",
        "adapters",
        *ADAPTERS,
    )
    run_stage(
        f"2/{STEPS}", "what each path of a menu is worth", "data_generation.py", *MENU, "--adapters", str(adapters),
        "--output_dir", str(table),
    )  # fmt: skip
    learn = ("--objective", "value", "--data", str(table), "--adapters", str(adapters))
    router = trained(3, "a router that learns what paths are worth", "checkpoint", table / "labels.jsonl", *learn)
    shuffled = trained(
        4, "a control: the same router on shuffled questions", "shuffled", table / "labels.jsonl", *learn,
        "--shuffle_questions", "--save_base", "reference",
    )  # fmt: skip
    if (router / "calibration.json").exists():
        print(f"\n[5/{STEPS}] done: {router / 'calibration.json'}")
    else:
        run_stage(f"5/{STEPS}", "a guarantee", "-m", "routing", "calibrate", str(router), *GUARANTEE)
    run_stage(
        f"6/{STEPS}",
        "Dr.LLM as published: search",
        "data_generation.py",
        *PUBLISHED_SEARCH,
        "--output_dir",
        str(labels),
    )
    published = trained(
        7, "Dr.LLM as published: routers", "published", labels / "labels.jsonl", "--data", str(labels),
        *PUBLISHED_TRAINING, "--save_base", "reference",
    )  # fmt: skip
    other = evaluated(8, "evaluation of Dr.LLM as published", published, "--no_base")
    result = evaluated(
        8, "evaluation beside the base and controls", router, "--controls", "static,shuffled",
        "--shuffled_checkpoint", str(shuffled),
    )  # fmt: skip
    routes = result.pop("routes")
    answers = verdicts(router, "base"), verdicts(router, "routed"), verdicts(published, "routed")
    result["controls"].append(as_control(PUBLISHED, "published", other["routed"], *answers))
    result["sentence"] = sentence(result)
    write_json(DEMO / "results.json", result)
    title = f"{result['model']} on {result['task']}, {result['n']} held-out questions"
    plot_routes(routes, DEMO / "routes.png", title)
    plot_layer_rates(routes, DEMO / "layer_rates.png", title)
    plot_seconds(result, DEMO / "accuracy_and_time.png", title)
    print_table([result])
    print(f"{result['hardware']}, {result['date']}\n\n{result['sentence']}\n")
    for path in (
        router,
        DEMO / "results.json",
        DEMO / "accuracy_and_time.png",
        DEMO / "routes.png",
        DEMO / "layer_rates.png",
        router / "evaluation.html",
        router / "README.md",
    ):
        print(f"  {path}")
