"""Llama with routers: skips, runs or repeats layers as the routers decide on the prompt."""

from transformers import LlamaForCausalLM, LlamaModel

from .configuration_llama import RoutedLlamaConfig
from .routed_model import RoutedForCausalLM, RoutedModel


class RoutedLlamaModel(RoutedModel, LlamaModel):
    """`LlamaModel` with one router for each layer."""

    config_class = RoutedLlamaConfig


class RoutedLlamaForCausalLM(RoutedForCausalLM, LlamaForCausalLM):
    """`LlamaForCausalLM` over `RoutedLlamaModel`; loads any base of the family."""

    config_class = RoutedLlamaConfig
    inner_model_class = RoutedLlamaModel


RoutedLlamaForCausalLM.register_for_auto_class("AutoModelForCausalLM")
