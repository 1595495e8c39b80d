"""OLMo 2 with routers: skips, runs or repeats layers as the routers decide on the prompt."""

from transformers import Olmo2ForCausalLM, Olmo2Model

from .configuration_olmo2 import RoutedOlmo2Config
from .routed_model import RoutedForCausalLM, RoutedModel


class RoutedOlmo2Model(RoutedModel, Olmo2Model):
    """`Olmo2Model` with one router for each layer."""

    config_class = RoutedOlmo2Config


class RoutedOlmo2ForCausalLM(RoutedForCausalLM, Olmo2ForCausalLM):
    """`Olmo2ForCausalLM` over `RoutedOlmo2Model`; loads any base of the family."""

    config_class = RoutedOlmo2Config
    inner_model_class = RoutedOlmo2Model


RoutedOlmo2ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
