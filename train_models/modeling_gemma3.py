"""Gemma 3 (text) with routers: skips, runs or repeats layers as the routers decide on the prompt."""

from transformers import Gemma3ForCausalLM, Gemma3TextModel

from .configuration_gemma3 import RoutedGemma3Config
from .routed_model import RoutedForCausalLM, RoutedModel


class RoutedGemma3Model(RoutedModel, Gemma3TextModel):
    """`Gemma3TextModel` with one router for each layer."""

    config_class = RoutedGemma3Config


class RoutedGemma3ForCausalLM(RoutedForCausalLM, Gemma3ForCausalLM):
    """`Gemma3ForCausalLM` over `RoutedGemma3Model`; loads any base of the family."""

    config_class = RoutedGemma3Config
    inner_model_class = RoutedGemma3Model


RoutedGemma3ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
