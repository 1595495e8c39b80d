"""Configuration of the routed Qwen3 models."""

from transformers import Qwen3Config

from .configuration_routing import RoutingFields


class RoutedQwen3Config(RoutingFields, Qwen3Config):
    """`Qwen3Config` with the fields of `RoutingFields`."""

    model_type = "routed_qwen3"
    keys_to_ignore_at_inference = ["past_key_values", "routes"]


RoutedQwen3Config.register_for_auto_class()
