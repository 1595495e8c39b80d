"""OLMo 3 that runs the path it is given: set `model.model.layer_indices`."""

from transformers import Olmo3ForCausalLM, Olmo3Model

from .given_path import GivenPathForCausalLM, GivenPathModel


class PathOlmo3Model(GivenPathModel, Olmo3Model):
    """`Olmo3Model` with the attribute `layer_indices`."""


class PathOlmo3ForCausalLM(GivenPathForCausalLM, Olmo3ForCausalLM):
    """`Olmo3ForCausalLM` that executes `model.layer_indices`."""

    inner_model_class = PathOlmo3Model
