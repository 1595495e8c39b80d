"""Configuration of the routed Llama models."""

from transformers import LlamaConfig

from .configuration_routing import RoutingFields


class RoutedLlamaConfig(RoutingFields, LlamaConfig):
    """`LlamaConfig` with the fields of `RoutingFields`."""

    model_type = "routed_llama"
    keys_to_ignore_at_inference = ["past_key_values", "routes"]


RoutedLlamaConfig.register_for_auto_class()
