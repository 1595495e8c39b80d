"""Configuration of the routed OLMo 3 models."""

from transformers import Olmo3Config

from .configuration_routing import RoutingFields


class RoutedOlmo3Config(RoutingFields, Olmo3Config):
    """`Olmo3Config` with the fields of `RoutingFields`."""

    model_type = "routed_olmo3"
    keys_to_ignore_at_inference = ["past_key_values", "routes"]


RoutedOlmo3Config.register_for_auto_class()
