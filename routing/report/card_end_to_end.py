"""What the model card says of routers that were trained end to end on text."""

from __future__ import annotations

KINDS = {
    "embedding": "a router that decides once for each input, from the mean embedding of the prompt,",
    "prefix": "a router that decides once for each input, from the mean state of the prompt behind the first layers,",
    "prefix_token": "a router that decides for each token, from its state behind the first layers,",
    "random_token": "random gates, drawn for each token (a control, nothing was learned),",
    "none": "no router, all inputs taking the same layers (a control)",
}
COLUMNS = ("method", "seed", "layers a token", "loss", "95 % interval", "perplexity", "speed-up over full depth")


def is_end_to_end(training: dict) -> bool:
    """Whether train.py wrote this record with one of the objectives that train on text."""
    return "corpus" in training["arguments"]


def introduction(base: str, config: dict, training: dict) -> str:
    """What the model is."""
    arguments = training["arguments"]
    weights = "its weights unchanged" if arguments["trainable"] == "router" else "with LoRA merged into its weights"
    kind = KINDS[config["router"]]
    what = (
        f" which of the layers behind the first {config['kept_layers']} run and which are skipped"
        if "router" in kind
        else ""
    )
    ended = " A skipped token still gives keys and values to the others." if "token" in config["router"] else ""
    return (
        f"`{base}` ({config['num_hidden_layers']} layers), {weights}, and {kind}{what}. Trained end to end on text "
        f"with the objective `{arguments['objective']}`.{ended}"
    )


def facts(training: dict) -> dict[str, str]:
    """Rows of the table on training."""
    arguments = training["arguments"]
    layout = (
        f"{arguments['layout']}, {arguments['sequence_length']} tokens a row, the first {arguments['prompt_tokens']}"
    )
    names = (
        "objective", "router", "trainable", "target_skip", "target_weight", "layer_penalty", "entropy_weight",
        "ce_weight", "learning_rate", "router_learning_rate", "batch_size", "gradient_accumulation", "seed",
    )  # fmt: skip
    last = [entry for entry in training["log"] if "eval_validation_loss" in entry][-1:]
    found = {
        "text": f"{arguments['corpus']}, {layout} of them not predicted",
        "rows": f"training {training['train_rows']}, validation {training['validation_rows']}",
        "updates": str(max((entry["step"] for entry in training["log"] if "step" in entry), default=0)),
        "arguments": ", ".join(f"{name} {arguments[name]}" for name in names),
    }
    if last:
        found["validation at the end"] = (
            f"loss {last[0]['eval_validation_loss']:.3f}, {last[0]['eval_active_layers']:.2f} layers a token"
        )
        if last[0].get("warnings"):
            found["alarms at the end"] = "; ".join(last[0]["warnings"])
    return found


def text_rows(evaluation: dict) -> list[list[str]]:
    """Cells under COLUMNS of a text_evaluation.json."""
    return [
        [
            row["method"],
            "–" if row["method_seed"] is None else str(row["method_seed"]),
            f"{row['layers']:.2f}",
            f"{row['loss']:.3f}",
            f"{row['loss_low']:.3f} – {row['loss_high']:.3f}",
            f"{row['perplexity']:.2f}",
            f"{row['speedup']:.2f}",
        ]
        for row in evaluation["rows"]
    ]
