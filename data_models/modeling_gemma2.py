"""Gemma 2 that runs the path it is given: set `model.model.layer_indices`."""

from transformers import Gemma2ForCausalLM, Gemma2Model

from .given_path import GivenPathForCausalLM, GivenPathModel


class PathGemma2Model(GivenPathModel, Gemma2Model):
    """`Gemma2Model` with the attribute `layer_indices`."""


class PathGemma2ForCausalLM(GivenPathForCausalLM, Gemma2ForCausalLM):
    """`Gemma2ForCausalLM` that executes `model.layer_indices`."""

    inner_model_class = PathGemma2Model
