"""SmolLM3 that runs the path it is given: set `model.model.layer_indices`."""

from transformers import SmolLM3ForCausalLM, SmolLM3Model

from .given_path import GivenPathForCausalLM, GivenPathModel


class PathSmolLM3Model(GivenPathModel, SmolLM3Model):
    """`SmolLM3Model` with the attribute `layer_indices`."""


class PathSmolLM3ForCausalLM(GivenPathForCausalLM, SmolLM3ForCausalLM):
    """`SmolLM3ForCausalLM` that executes `model.layer_indices`."""

    inner_model_class = PathSmolLM3Model
