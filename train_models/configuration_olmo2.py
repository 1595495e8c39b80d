"""Configuration of the routed OLMo 2 models."""

from transformers import Olmo2Config

from .configuration_routing import RoutingFields


class RoutedOlmo2Config(RoutingFields, Olmo2Config):
    """`Olmo2Config` with the fields of `RoutingFields`."""

    model_type = "routed_olmo2"
    keys_to_ignore_at_inference = ["past_key_values", "routes"]


RoutedOlmo2Config.register_for_auto_class()
