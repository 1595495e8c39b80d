"""Phi-3 with routers: skips, runs or repeats layers as the routers decide on the prompt."""

from transformers import Phi3ForCausalLM, Phi3Model

from .configuration_phi3 import RoutedPhi3Config
from .routed_model import RoutedForCausalLM, RoutedModel


class RoutedPhi3Model(RoutedModel, Phi3Model):
    """`Phi3Model` with one router for each layer."""

    config_class = RoutedPhi3Config


class RoutedPhi3ForCausalLM(RoutedForCausalLM, Phi3ForCausalLM):
    """`Phi3ForCausalLM` over `RoutedPhi3Model`; loads any base of the family."""

    config_class = RoutedPhi3Config
    inner_model_class = RoutedPhi3Model


RoutedPhi3ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
