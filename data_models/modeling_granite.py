"""Granite that runs the path it is given: set `model.model.layer_indices`."""

from transformers import GraniteForCausalLM, GraniteModel

from .given_path import GivenPathForCausalLM, GivenPathModel


class PathGraniteModel(GivenPathModel, GraniteModel):
    """`GraniteModel` with the attribute `layer_indices`."""


class PathGraniteForCausalLM(GivenPathForCausalLM, GraniteForCausalLM):
    """`GraniteForCausalLM` that executes `model.layer_indices`."""

    inner_model_class = PathGraniteModel
