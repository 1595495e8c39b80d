"""Router inputs of many examples at once, by the packed layers of the search's evaluator.

As `features.router_inputs`, which runs a padded batch through the model, to float tolerance, but sooner:
- nothing is padded, and on a processor the weights are reordered once;
- the beginning that all prompts share, and the paths of one prompt, are computed once as far as their layers agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from routing.scoring.packed import SHORTEST_SHARED, shared_length
from routing.scoring.path_runner import PathRunner
from routing.scoring.prefix_store import PrefixStore
from routing.scoring.router_inputs import pooling
from routing.scoring.segments import Segment, TokenTree, chain
from train_models.routers import pool_windows

Prompt = tuple[int, ...]


class PackedInputs:
    """Called and answering as `router_inputs`.

    It goes layer by layer, and keeps the states behind one layer alone: of B prompts of T tokens, B T states, keys and
    values.

    Args:
        model: a Routed...ForCausalLM in eval mode; its weights must not change afterwards.
    """

    def __init__(self, model):
        self.store = PrefixStore(0)  # Never trimmed: what has served is dropped here.
        self.runner = PathRunner(model, self.store)

    @torch.inference_mode()
    def __call__(self, model, examples: Sequence, pad_id: int) -> dict[str, torch.Tensor]:
        """features [B, L, W, D] fp32, windows [B, W] bool and labels [B, L] of B examples, on the CPU."""
        inner, device = model.model, model.device
        prompts = [tuple(example.prompt_ids) for example in examples]
        segments, pools = segments_of(prompts), {}
        for prompt in segments:
            pools[prompt] = pooling(inner, prompt, inner.config.num_windows, device)
        # Where a row is: its prompt and the layers it has run. Rows at one place share their state.
        places: list[tuple[Prompt, tuple[int, ...]]] = [(prompt, ()) for prompt in prompts]
        self.runner.compute([(segment, ()) for segment in segments.values()])
        states = {place: self._state(segments[place[0]], ()) for place in set(places)}
        features = []
        for layer in range(len(inner.layers)):
            pooled = {place: pool_windows(state[None], pools[place[0]][0])[0] for place, state in states.items()}
            features.append(torch.stack([pooled[place] for place in places]))
            if layer + 1 < len(inner.layers):  # No router reads what the last layer puts out.
                counts = [example.route[layer] for example in examples]
                before = states
                places, states = self._behind(layer, counts, places, segments)
                for place in set(places) - states.keys():
                    stand_ins = inner.stand_ins
                    state = before[place]
                    states[place] = stand_ins[layer](state).to(state.device) if len(stand_ins) else state
        for segment in segments.values():
            for member in segment.line:
                self.store.forget(member)
        return {
            "features": torch.stack(features, dim=1).cpu(),
            "windows": torch.cat([pools[prompt][1] for prompt in prompts]).cpu(),
            "labels": torch.tensor([example.route for example in examples]),
        }

    def _behind(self, layer: int, counts: Sequence[int], places: list, segments: dict[Prompt, Segment]):
        """Places of the rows behind a layer, and the states of those that ran it."""
        places = [(prompt, (*path, *[layer] * count)) for (prompt, path), count in zip(places, counts, strict=True)]
        ran = {place for place, count in zip(places, counts) if count}
        self.runner.compute([(segments[prompt], path) for prompt, path in ran], whole=True)
        needed: dict[Segment, set] = {}
        for prompt, path in places:
            for member in segments[prompt].line:
                needed.setdefault(member, set()).add(path)
        for member, paths in needed.items():
            self.store.keep(member, paths)
        return places, {(prompt, path): self._state(segments[prompt], path) for prompt, path in ran}

    def _state(self, segment: Segment, path: tuple[int, ...]) -> torch.Tensor:
        """[T, D] states of a whole prompt."""
        hidden = torch.cat([member.states[path].hidden for member in segment.line])
        return hidden.to(self.runner.model.device)  # That of the embedding: layers may compute on several.


def segments_of(prompts: Sequence[Prompt]) -> dict[Prompt, Segment]:
    """The segment of each prompt, below what all begin with."""
    distinct = list(dict.fromkeys(prompts))
    length = shared_length(distinct) if len(distinct) > 1 else 0
    shared = chain(distinct[0][:length]) if length >= SHORTEST_SHARED else None
    return {prompt: TokenTree(prompt, (), shared).segment for prompt in distinct}
