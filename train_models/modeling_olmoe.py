"""OLMoE with routers: skips, runs or repeats layers as the routers decide on the prompt."""

from transformers import OlmoeForCausalLM, OlmoeModel

from .configuration_olmoe import RoutedOlmoeConfig
from .routed_model import RoutedForCausalLM, RoutedModel


class RoutedOlmoeModel(RoutedModel, OlmoeModel):
    """`OlmoeModel` with one router for each layer."""

    config_class = RoutedOlmoeConfig


class RoutedOlmoeForCausalLM(RoutedForCausalLM, OlmoeForCausalLM):
    """`OlmoeForCausalLM` over `RoutedOlmoeModel`; loads any base of the family."""

    config_class = RoutedOlmoeConfig
    inner_model_class = RoutedOlmoeModel


RoutedOlmoeForCausalLM.register_for_auto_class("AutoModelForCausalLM")
