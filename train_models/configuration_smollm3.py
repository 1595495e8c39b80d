"""Configuration of the routed SmolLM3 models."""

from transformers import SmolLM3Config

from .configuration_routing import RoutingFields


class RoutedSmolLM3Config(RoutingFields, SmolLM3Config):
    """`SmolLM3Config` with the fields of `RoutingFields`."""

    model_type = "routed_smollm3"
    keys_to_ignore_at_inference = ["past_key_values", "routes"]


RoutedSmolLM3Config.register_for_auto_class()
