"""Configuration of the routed OLMoE models."""

from transformers import OlmoeConfig

from .configuration_routing import RoutingFields
from .expert_weights import translate_as


class RoutedOlmoeConfig(RoutingFields, OlmoeConfig):
    """`OlmoeConfig` with the fields of `RoutingFields`."""

    model_type = "routed_olmoe"
    keys_to_ignore_at_inference = ["past_key_values", "routes"]


RoutedOlmoeConfig.register_for_auto_class()
translate_as("olmoe", "routed_olmoe")
