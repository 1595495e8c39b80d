"""Granite with routers: skips, runs or repeats layers as the routers decide on the prompt."""

from transformers import GraniteForCausalLM, GraniteModel

from .configuration_granite import RoutedGraniteConfig
from .routed_model import RoutedForCausalLM, RoutedModel


class RoutedGraniteModel(RoutedModel, GraniteModel):
    """`GraniteModel` with one router for each layer."""

    config_class = RoutedGraniteConfig


class RoutedGraniteForCausalLM(RoutedForCausalLM, GraniteForCausalLM):
    """`GraniteForCausalLM` over `RoutedGraniteModel`; loads any base of the family."""

    config_class = RoutedGraniteConfig
    inner_model_class = RoutedGraniteModel


RoutedGraniteForCausalLM.register_for_auto_class("AutoModelForCausalLM")
