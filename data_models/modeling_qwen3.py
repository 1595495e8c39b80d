"""Qwen3 that runs the path it is given: set `model.model.layer_indices`."""

from transformers import Qwen3ForCausalLM, Qwen3Model

from .given_path import GivenPathForCausalLM, GivenPathModel


class PathQwen3Model(GivenPathModel, Qwen3Model):
    """`Qwen3Model` with the attribute `layer_indices`."""


class PathQwen3ForCausalLM(GivenPathForCausalLM, Qwen3ForCausalLM):
    """`Qwen3ForCausalLM` that executes `model.layer_indices`."""

    inner_model_class = PathQwen3Model
