"""OLMo 2 that runs the path it is given: set `model.model.layer_indices`."""

from transformers import Olmo2ForCausalLM, Olmo2Model

from .given_path import GivenPathForCausalLM, GivenPathModel


class PathOlmo2Model(GivenPathModel, Olmo2Model):
    """`Olmo2Model` with the attribute `layer_indices`."""


class PathOlmo2ForCausalLM(GivenPathForCausalLM, Olmo2ForCausalLM):
    """`Olmo2ForCausalLM` that executes `model.layer_indices`."""

    inner_model_class = PathOlmo2Model
