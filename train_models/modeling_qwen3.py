"""Qwen3 with routers: skips, runs or repeats layers as the routers decide on the prompt."""

from transformers import Qwen3ForCausalLM, Qwen3Model

from .configuration_qwen3 import RoutedQwen3Config
from .routed_model import RoutedForCausalLM, RoutedModel


class RoutedQwen3Model(RoutedModel, Qwen3Model):
    """`Qwen3Model` with one router for each layer."""

    config_class = RoutedQwen3Config


class RoutedQwen3ForCausalLM(RoutedForCausalLM, Qwen3ForCausalLM):
    """`Qwen3ForCausalLM` over `RoutedQwen3Model`; loads any base of the family."""

    config_class = RoutedQwen3Config
    inner_model_class = RoutedQwen3Model


RoutedQwen3ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
