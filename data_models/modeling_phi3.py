"""Phi-3 that runs the path it is given: set `model.model.layer_indices`."""

from transformers import Phi3ForCausalLM, Phi3Model

from .given_path import GivenPathForCausalLM, GivenPathModel


class PathPhi3Model(GivenPathModel, Phi3Model):
    """`Phi3Model` with the attribute `layer_indices`."""


class PathPhi3ForCausalLM(GivenPathForCausalLM, Phi3ForCausalLM):
    """`Phi3ForCausalLM` that executes `model.layer_indices`."""

    inner_model_class = PathPhi3Model
