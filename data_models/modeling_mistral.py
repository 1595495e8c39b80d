"""Mistral that runs the path it is given: set `model.model.layer_indices`."""

from transformers import MistralForCausalLM, MistralModel

from .given_path import GivenPathForCausalLM, GivenPathModel


class PathMistralModel(GivenPathModel, MistralModel):
    """`MistralModel` with the attribute `layer_indices`."""


class PathMistralForCausalLM(GivenPathForCausalLM, MistralForCausalLM):
    """`MistralForCausalLM` that executes `model.layer_indices`."""

    inner_model_class = PathMistralModel
