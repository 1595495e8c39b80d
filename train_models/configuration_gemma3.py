"""Configuration of the routed Gemma 3 (text) models."""

from transformers import Gemma3TextConfig

from .configuration_routing import RoutingFields


class RoutedGemma3Config(RoutingFields, Gemma3TextConfig):
    """`Gemma3TextConfig` with the fields of `RoutingFields`."""

    model_type = "routed_gemma3_text"
    keys_to_ignore_at_inference = ["past_key_values", "routes"]


RoutedGemma3Config.register_for_auto_class()
