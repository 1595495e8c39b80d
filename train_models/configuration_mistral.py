"""Configuration of the routed Mistral models."""

from transformers import MistralConfig

from .configuration_routing import RoutingFields


class RoutedMistralConfig(RoutingFields, MistralConfig):
    """`MistralConfig` with the fields of `RoutingFields`."""

    model_type = "routed_mistral"
    keys_to_ignore_at_inference = ["past_key_values", "routes"]


RoutedMistralConfig.register_for_auto_class()
