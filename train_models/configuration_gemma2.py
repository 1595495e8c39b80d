"""Configuration of the routed Gemma 2 models."""

from transformers import Gemma2Config

from .configuration_routing import RoutingFields


class RoutedGemma2Config(RoutingFields, Gemma2Config):
    """`Gemma2Config` with the fields of `RoutingFields`."""

    model_type = "routed_gemma2"
    keys_to_ignore_at_inference = ["past_key_values", "routes"]


RoutedGemma2Config.register_for_auto_class()
