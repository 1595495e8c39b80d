"""Qwen2 that runs the path it is given: set `model.model.layer_indices`."""

from transformers import Qwen2ForCausalLM, Qwen2Model

from .given_path import GivenPathForCausalLM, GivenPathModel


class PathQwen2Model(GivenPathModel, Qwen2Model):
    """`Qwen2Model` with the attribute `layer_indices`."""


class PathQwen2ForCausalLM(GivenPathForCausalLM, Qwen2ForCausalLM):
    """`Qwen2ForCausalLM` that executes `model.layer_indices`."""

    inner_model_class = PathQwen2Model
