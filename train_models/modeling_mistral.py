"""Mistral with routers: skips, runs or repeats layers as the routers decide on the prompt."""

from transformers import MistralForCausalLM, MistralModel

from .configuration_mistral import RoutedMistralConfig
from .routed_model import RoutedForCausalLM, RoutedModel


class RoutedMistralModel(RoutedModel, MistralModel):
    """`MistralModel` with one router for each layer."""

    config_class = RoutedMistralConfig


class RoutedMistralForCausalLM(RoutedForCausalLM, MistralForCausalLM):
    """`MistralForCausalLM` over `RoutedMistralModel`; loads any base of the family."""

    config_class = RoutedMistralConfig
    inner_model_class = RoutedMistralModel


RoutedMistralForCausalLM.register_for_auto_class("AutoModelForCausalLM")
