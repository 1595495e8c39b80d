"""Qwen3-MoE that runs the path it is given: set `model.model.layer_indices`."""

from transformers import Qwen3MoeForCausalLM, Qwen3MoeModel

from train_models.expert_weights import translate_as

from .given_path import GivenPathForCausalLM, GivenPathModel


class PathQwen3MoeModel(GivenPathModel, Qwen3MoeModel):
    """`Qwen3MoeModel` with the attribute `layer_indices`."""


class PathQwen3MoeForCausalLM(GivenPathForCausalLM, Qwen3MoeForCausalLM):
    """`Qwen3MoeForCausalLM` that executes `model.layer_indices`."""

    inner_model_class = PathQwen3MoeModel


translate_as("qwen3_moe", "PathQwen3MoeForCausalLM")
