"""Llama that runs the path it is given: set `model.model.layer_indices`."""

from transformers import LlamaForCausalLM, LlamaModel

from .given_path import GivenPathForCausalLM, GivenPathModel


class PathLlamaModel(GivenPathModel, LlamaModel):
    """`LlamaModel` with the attribute `layer_indices`."""


class PathLlamaForCausalLM(GivenPathForCausalLM, LlamaForCausalLM):
    """`LlamaForCausalLM` that executes `model.layer_indices`."""

    inner_model_class = PathLlamaModel
