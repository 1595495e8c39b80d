"""OLMoE that runs the path it is given: set `model.model.layer_indices`."""

from transformers import OlmoeForCausalLM, OlmoeModel

from train_models.expert_weights import translate_as

from .given_path import GivenPathForCausalLM, GivenPathModel


class PathOlmoeModel(GivenPathModel, OlmoeModel):
    """`OlmoeModel` with the attribute `layer_indices`."""


class PathOlmoeForCausalLM(GivenPathForCausalLM, OlmoeForCausalLM):
    """`OlmoeForCausalLM` that executes `model.layer_indices`."""

    inner_model_class = PathOlmoeModel


translate_as("olmoe", "PathOlmoeForCausalLM")
