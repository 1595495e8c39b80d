"""Gemma 2 with routers: skips, runs or repeats layers as the routers decide on the prompt."""

from transformers import Gemma2ForCausalLM, Gemma2Model

from .configuration_gemma2 import RoutedGemma2Config
from .routed_model import RoutedForCausalLM, RoutedModel


class RoutedGemma2Model(RoutedModel, Gemma2Model):
    """`Gemma2Model` with one router for each layer."""

    config_class = RoutedGemma2Config


class RoutedGemma2ForCausalLM(RoutedForCausalLM, Gemma2ForCausalLM):
    """`Gemma2ForCausalLM` over `RoutedGemma2Model`; loads any base of the family."""

    config_class = RoutedGemma2Config
    inner_model_class = RoutedGemma2Model


RoutedGemma2ForCausalLM.register_for_auto_class("AutoModelForCausalLM")
