"""Qwen3-MoE with routers: skips, runs or repeats layers as the routers decide on the prompt."""

from transformers import Qwen3MoeForCausalLM, Qwen3MoeModel

from .configuration_qwen3_moe import RoutedQwen3MoeConfig
from .routed_model import RoutedForCausalLM, RoutedModel


class RoutedQwen3MoeModel(RoutedModel, Qwen3MoeModel):
    """`Qwen3MoeModel` with one router for each layer."""

    config_class = RoutedQwen3MoeConfig


class RoutedQwen3MoeForCausalLM(RoutedForCausalLM, Qwen3MoeForCausalLM):
    """`Qwen3MoeForCausalLM` over `RoutedQwen3MoeModel`; loads any base of the family."""

    config_class = RoutedQwen3MoeConfig
    inner_model_class = RoutedQwen3MoeModel


RoutedQwen3MoeForCausalLM.register_for_auto_class("AutoModelForCausalLM")
