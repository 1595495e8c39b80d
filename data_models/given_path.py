"""Models that execute the layer path they are given, for every family."""

from __future__ import annotations

import torch

from train_models.layer_path import LayerPathForCausalLM, LayerPathModel, path_steps

from .path_notation import parse_path


class GivenPathModel(LayerPathModel):
    """Mixin over a decoder with the attribute `layer_indices`: the layers that forward executes, in order.

    Any list of valid indices is allowed, in any order, with repeats, or a text such as "0:20,24:30"; the default is
    every layer once. An empty list passes the embeddings straight to the final norm.
    """

    _layer_indices: list[int] | None = None

    @property
    def layer_indices(self) -> list[int]:
        return list(range(len(self.layers))) if self._layer_indices is None else list(self._layer_indices)

    @layer_indices.setter
    def layer_indices(self, path) -> None:
        depth = len(self.layers)
        try:
            path = parse_path(path, depth) if isinstance(path, str) else path
            indices = [layer for layer in path if not isinstance(layer, bool)]
            valid = len(indices) == len(path)
            valid = valid and all(layer == int(layer) and 0 <= layer < depth for layer in indices)
        except (TypeError, ValueError, OverflowError):
            valid = False
        if not valid:
            raise ValueError(
                f"layer_indices must be ranges such as '0:1,1:{depth}', or a list of whole numbers from 0 to "
                f"{depth - 1}, in any order, with repeats, got {path!r}."
            )
        self._layer_indices = [int(layer) for layer in indices]

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        """The stock forward along `layer_indices`.

        `output_hidden_states` gives the state that enters each executed layer, then the normalised last one.
        """
        steps = path_steps(self.layer_indices)

        def execute(hidden: torch.Tensor, runner, states: list | None) -> torch.Tensor:
            if runner.cache is not None and not runner.cache.is_empty and runner.cache.steps != steps:
                raise ValueError(
                    f"the cache was filled along the path {[step.layer for step in runner.cache.steps]}, but "
                    f"layer_indices is now {self.layer_indices}. Start with a new cache after changing the path."
                )
            for step in steps:
                if states is not None:
                    states.append(hidden)
                hidden = runner.run(hidden, step)
            return hidden

        return self.forward_along(execute, input_ids=input_ids, attention_mask=attention_mask, **kwargs)


class GivenPathForCausalLM(LayerPathForCausalLM):
    """Mixin over a `...ForCausalLM` whose decoder has `layer_indices`."""
