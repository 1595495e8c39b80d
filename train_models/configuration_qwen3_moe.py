"""Configuration of the routed Qwen3-MoE models."""

from transformers import Qwen3MoeConfig

from .configuration_routing import RoutingFields
from .expert_weights import translate_as


class RoutedQwen3MoeConfig(RoutingFields, Qwen3MoeConfig):
    """`Qwen3MoeConfig` with the fields of `RoutingFields`."""

    model_type = "routed_qwen3_moe"
    keys_to_ignore_at_inference = ["past_key_values", "routes"]


RoutedQwen3MoeConfig.register_for_auto_class()
translate_as("qwen3_moe", "routed_qwen3_moe")
