"""Qwen2 with routers: skips, runs or repeats layers as the routers decide on the prompt."""

from transformers import Qwen2ForCausalLM, Qwen2Model

from .configuration_qwen2 import RoutedQwen2Config
from .routed_model import RoutedForCausalLM, RoutedModel


class RoutedQwen2Model(RoutedModel, Qwen2Model):
    """`Qwen2Model` with one router for each layer."""

    config_class = RoutedQwen2Config


class RoutedQwen2ForCausalLM(RoutedForCausalLM, Qwen2ForCausalLM):
    """`Qwen2ForCausalLM` over `RoutedQwen2Model`; loads any base of the family."""

    config_class = RoutedQwen2Config
    inner_model_class = RoutedQwen2Model


RoutedQwen2ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
