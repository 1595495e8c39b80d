"""What the model card says of adapters and of query routers."""

from __future__ import annotations


def is_query(config: dict) -> bool:
    """Whether a checkpoint has a query router, or adapters and no router."""
    return config.get("router") == "query" or is_adapters(config)


def is_adapters(config: dict) -> bool:
    return config.get("router") == "none" and config.get("skip_action") == "adapter"


def introduction(base: str, config: dict, training: dict) -> str:
    """What the model is."""
    arguments = training["arguments"]
    adapters = (
        f" A skipped layer is replaced by an adapter with a bottleneck of {config['adapter_size']}, which was "
        "distilled from the layer on right answers."
        if config.get("skip_action") == "adapter"
        else ""
    )
    if adapters and training.get("healing"):
        adapters += (
            f" Then all were healed together, by distilling the full model's own answers into them along "
            f"{len(training['healing']['routes'])} paths and random ones (see `adapters.json`)."
        )
    if is_adapters(config):
        what = (
            "and an adapter for each layer. It has no router: by itself it runs every layer; `forward(..., routes=)` "
            "or the config field `fixed_route` skip some"
        )
    else:
        what = (
            "and a router that reads the text of the prompt with a sentence encoder and decides once which layers to "
            f"prune, for the whole generation. It learned from preferences between explored layer sets "
            f"(`{arguments['objective']}`)"
        )
    return f"`{base}` ({config['num_hidden_layers']} layers), its weights unchanged, {what}.{adapters}"


def facts(training: dict) -> dict[str, str]:
    """Rows of the table on training."""
    names = (
        "objective", "adapter_size", "loss", "encoder", "train_encoder", "top_k", "pairs", "beta", "orpo_weight",
        "learning_rate", "num_epochs", "batch_size", "seed",
    )  # fmt: skip
    arguments = training["arguments"]
    found = {"data sets": ", ".join(training["datasets"])}
    for key, words in (
        ("train_tokens", "training tokens"),
        ("held_out_tokens", "held-out tokens"),
        ("train_examples", "training examples"),
        ("held_out_examples", "held-out examples"),
        ("train_pairs", "training pairs"),
        ("held_out_pairs", "held-out pairs"),
    ):
        if key in training:
            found[words] = str(training[key])
    if "worth" in training:
        worth = training["worth"]
        signs = worth["over_layers"]
        found["each layer replaced alone"] = (
            f"better with its adapter than with nothing for {signs['better']} layers, worse for {signs['worse']}; mean "
            f"gain {signs['mean_gain']:.3f} ({signs['ci95'][0]:.3f} to {signs['ci95'][1]:.3f}; {worth['n']} questions, "
            f"full model {worth['base']['accuracy']:.3f} right)"
        )
    return found | {"arguments": ", ".join(f"{name} {arguments[name]}" for name in names if name in arguments)}
