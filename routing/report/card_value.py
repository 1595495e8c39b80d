"""What the model card says of routers that learned what paths are worth."""

from __future__ import annotations

SHOWN = (0.0, 0.005, 0.01, 0.02)  # costs, beside the checkpoint's own


def is_value(training: dict) -> bool:
    """Whether train.py --objective value wrote this record."""
    return training["arguments"].get("objective") == "value"


def introduction(base: str, config: dict, training: dict) -> str:
    """What the model is."""
    adapters = (
        f" A skipped layer is replaced by an adapter with a bottleneck of {config['adapter_size']}, trained for that."
        if config.get("skip_action") == "adapter"
        else ""
    )
    depth = config["num_hidden_layers"]
    if training["arguments"]["router"] == "per_layer":
        what = (
            "with a small router at each layer. For each input the routers decide once, from the prompt, which layers "
            "to skip, run once or run twice. They learned what each choice adds to the logit of a right answer, from "
            "the verdicts of all paths that a search tried"
        )
    else:
        lengths = sorted({sum(route) for route in config["menu"]})
        what = (
            f"with a router that decides once for each input, from the prompt's states after "
            f"{' and '.join(map(str, config['router_reads']))} layers, which of {len(config['menu'])} paths of "
            f"{lengths[0]} to {lengths[-1]} layers to take. It estimates how likely each of them answers right, and "
            f"takes the best at a price of {config['cost']:g} a layer (config field `cost`; more runs fewer layers)"
        )
    control = (
        " **This is a control**: its training questions were shuffled, so it knows nothing of its prompts."
        if training["arguments"].get("shuffle_questions")
        else ""
    )
    return f"`{base}` ({depth} layers), its weights unchanged, {what}.{adapters}{control}"


def facts(training: dict) -> dict[str, str]:
    """Rows of the table on training."""
    arguments = training["arguments"]
    found = {"questions from": ", ".join(training["datasets"])}
    if "frontier" in training:
        found |= _menu_facts(training)
        names = ("objective", "estimator", "reads", "cost", "caution", "folds", "seed")
    else:
        found["tried paths"] = f"training {training['train_paths']}, held out {training['held_out_paths']}"
        found["held out"] = ", ".join(f"{name} {value:.3f}" for name, value in training["held_out"].items())
        names = ("objective", "router", "tried_per_question", "num_epochs", "learning_rate", "batch_size", "seed")
    return found | {"arguments": ", ".join(f"{name} {arguments[name]}" for name in names)}


def _menu_facts(training: dict) -> dict[str, str]:
    shown = {*SHOWN, training["arguments"]["cost"]}
    paths = training["paths"]
    rows = zip(training["frontier"], training["frontier_shuffled"], strict=True)
    return {
        "questions": str(training["train_examples"]),
        "paths: layers, share of right answers": "; ".join(f"{p['layers']}, {p['reward']:.3f}" for p in paths),
        "cross-fitted R² of each path's reward": ", ".join(f"{p['r2']:.3f}" for p in paths),
        "of its difference to the full path": ", ".join(f"{p['r2_difference']:.3f}" for p in paths[1:]),
        "setting": ", ".join(f"{name} {value}" for name, value in training["setting"].items()),
    } | {
        f"cross-fitted at cost {own['cost']:g}": (
            f"{own['reward']:.3f} right at {own['layers']:.1f} layers (best static paths of the menu at as many "
            f"{own['static']:.3f}); trained on shuffled questions {other['reward']:.3f} at {other['layers']:.1f} "
            f"({other['static']:.3f})"
        )
        for own, other in rows
        if own["cost"] in shown
    }
