"""The config of a cut: what a stock config says about each layer, said about the layers of a path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from transformers import AutoConfig, PreTrainedConfig

from routing.common.errors import UserError
from train_models.configuration_routing import RoutingFields

# Lists with one entry a layer.
BY_LAYER = ("layer_types", "no_rope_layers", "mlp_layer_types")
# Of a saved config, what says where its code is or is written anew.
OF_THE_FILE = ("auto_map", "architectures", "transformers_version", "_name_or_path", "model_type")
NO_LAYERS = ("eos_token_id", "bos_token_id", "pad_token_id")


def stock_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The stock config of a routed one; another as it is."""
    family = config.model_type.removeprefix("routed_")
    if family == config.model_type:
        return config
    gone = {field.name for field in fields(RoutingFields)} | set(OF_THE_FILE)
    return AutoConfig.for_model(family, **{name: v for name, v in config.to_dict().items() if name not in gone})


def cut_config(config: PreTrainedConfig, path: Sequence[int]) -> PreTrainedConfig:
    """The stock config of the layers of a path, in order, repeats too.

    Args:
        config: stock, of all layers.

    Raises:
        UserError: if a field lists something for each layer and is not known, so it cannot be carried over safely.
    """
    depth, found = config.num_hidden_layers, config.to_dict()
    cut = {name: value for name, value in found.items() if name not in OF_THE_FILE}
    for name in BY_LAYER:
        if found.get(name) is not None:
            cut[name] = [found[name][layer] for layer in path]
    unknown = [
        name
        for name, value in found.items()
        if isinstance(value, list) and len(value) == depth and name not in (*BY_LAYER, *NO_LAYERS, *OF_THE_FILE)
        and name != "mlp_only_layers"
    ]  # fmt: skip
    if unknown:
        raise UserError(
            f"the config of {config.model_type} lists {', '.join(unknown)} with {depth} entries, as many as layers, "
            "and export does not know how a cut changes that. Leave the field out of config.json if the model does not "
            "need it."
        )
    if found.get("max_window_layers") is not None:
        cut["max_window_layers"] = _leading(cut.get("layer_types"), "full_attention", len(path))
    if found.get("decoder_sparse_step") is not None:
        # Which layers have experts hangs on their index; afterwards it is listed.
        cut["decoder_sparse_step"] = 1
        cut["mlp_only_layers"] = [at for at, layer in enumerate(path) if not _has_experts(config, layer)]
    return AutoConfig.for_model(config.model_type, **(cut | {"num_hidden_layers": len(path)}))


def _leading(values: list | None, value, otherwise: int) -> int:
    """How many entries at the beginning have a value."""
    if values is None:
        return otherwise
    return next((at for at, found in enumerate(values) if found != value), len(values))


def _has_experts(config: PreTrainedConfig, layer: int) -> bool:
    listed = layer in (config.mlp_only_layers or ())
    return not listed and config.num_experts > 0 and (layer + 1) % config.decoder_sparse_step == 0


def differing_layers(config: PreTrainedConfig) -> list[str]:
    """Fields by which the layers of a model are not all of one kind."""
    found = [name for name in BY_LAYER if len(set(getattr(config, name, None) or ())) > 1]
    layers = range(config.num_hidden_layers)
    if hasattr(config, "decoder_sparse_step") and len({_has_experts(config, at) for at in layers}) > 1:
        found.append("mlp_only_layers")
    return found
