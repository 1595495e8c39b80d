"""SmolLM3 with routers: skips, runs or repeats layers as the routers decide on the prompt."""

from transformers import SmolLM3ForCausalLM, SmolLM3Model

from .configuration_smollm3 import RoutedSmolLM3Config
from .routed_model import RoutedForCausalLM, RoutedModel


class RoutedSmolLM3Model(RoutedModel, SmolLM3Model):
    """`SmolLM3Model` with one router for each layer."""

    config_class = RoutedSmolLM3Config


class RoutedSmolLM3ForCausalLM(RoutedForCausalLM, SmolLM3ForCausalLM):
    """`SmolLM3ForCausalLM` over `RoutedSmolLM3Model`; loads any base of the family."""

    config_class = RoutedSmolLM3Config
    inner_model_class = RoutedSmolLM3Model


RoutedSmolLM3ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
