"""Configuration of the routed Qwen2 models."""

from transformers import Qwen2Config

from .configuration_routing import RoutingFields


class RoutedQwen2Config(RoutingFields, Qwen2Config):
    """`Qwen2Config` with the fields of `RoutingFields`."""

    model_type = "routed_qwen2"
    keys_to_ignore_at_inference = ["past_key_values", "routes"]


RoutedQwen2Config.register_for_auto_class()
