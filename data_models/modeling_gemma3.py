"""Gemma 3 (text) that runs the path it is given: set `model.model.layer_indices`."""

from transformers import Gemma3ForCausalLM, Gemma3TextModel

from .given_path import GivenPathForCausalLM, GivenPathModel


class PathGemma3Model(GivenPathModel, Gemma3TextModel):
    """`Gemma3TextModel` with the attribute `layer_indices`."""


class PathGemma3ForCausalLM(GivenPathForCausalLM, Gemma3ForCausalLM):
    """`Gemma3ForCausalLM` that executes `model.layer_indices`."""

    inner_model_class = PathGemma3Model
