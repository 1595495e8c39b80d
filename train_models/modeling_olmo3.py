"""OLMo 3 with routers: skips, runs or repeats layers as the routers decide on the prompt."""

from transformers import Olmo3ForCausalLM, Olmo3Model

from .configuration_olmo3 import RoutedOlmo3Config
from .routed_model import RoutedForCausalLM, RoutedModel


class RoutedOlmo3Model(RoutedModel, Olmo3Model):
    """`Olmo3Model` with one router for each layer."""

    config_class = RoutedOlmo3Config


class RoutedOlmo3ForCausalLM(RoutedForCausalLM, Olmo3ForCausalLM):
    """`Olmo3ForCausalLM` over `RoutedOlmo3Model`; loads any base of the family."""

    config_class = RoutedOlmo3Config
    inner_model_class = RoutedOlmo3Model


RoutedOlmo3ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
