"""Computing segments along paths: each (segment, path prefix) once, each layer once over all that need it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from accelerate.utils import send_to_device

from routing.models.config_fields import attention_windows
from routing.scoring.packed_attention import PackedStep, make_layout
from routing.scoring.packed_layers import packed_layers
from routing.scoring.prefix_store import Prefix, PrefixStore, State
from routing.scoring.segments import Node, Segment
from train_models.decoder_parts import rotary_embeddings, scaled
from train_models.layer_path import LayerRunner, path_steps
from train_models.offloading import device_of
from train_models.path_cache import Step

MAX_PAIRS = 2**21  # (query, key) pairs in one call: attention takes memory for each of them.


class PathRunner:
    """Runs segments along order-preserving paths and stores what it computes.

    Rows of a batch meet layer by layer: in the order of layers, all (segment, path prefix) pairs that end with a
    layer are computed by one call of it, from the states of the prefix before. Pairs that are stored, or that
    several paths of the batch have in common, are computed once.

    Args:
        model: a `...ForCausalLM` of one of the families, in eval mode.
        store: where the states are kept.
        max_tokens: tokens in one call of a layer, at most (a longer segment goes alone).
    """

    def __init__(self, model, store: PrefixStore, max_tokens: int = 2048):
        self.model, self.store, self.max_tokens = model, store, max_tokens
        self.layers, self.head = packed_layers(model)
        self.end = device_of(self.head.linear)
        self.layer_types = getattr(model.config, "layer_types", None)
        self.scales = getattr(model.config, "residual_scale", None)
        self.windows = attention_windows(model.config)
        self.layer_tokens = 0  # tokens times layers computed

    @torch.inference_mode()
    def compute(self, jobs: Sequence[tuple[Segment, Prefix]], whole: bool = False) -> None:
        """Make sure that a segment and all above it have states along a path, for each job.

        Args:
            jobs: (segment, path) pairs; a path is a tuple of layers in order, each at most twice.
            whole: behind the last layer too, the states of all tokens.
        """
        pending: dict[Step, dict[tuple[Segment, Prefix], bool]] = {}  # The values: are all tokens asked for?
        for segment, path in jobs:
            steps = path_steps(list(path))
            for member in segment.line:
                for length in range(self._known(member, path, whole), len(path)):
                    items, item = pending.setdefault(steps[length], {}), (member, path[: length + 1])
                    items[item] = items.get(item, False) or whole or length + 1 < len(path)
        layouts: dict[tuple, tuple] = {}
        for step in sorted(pending, key=lambda step: (step.layer, step.visit)):
            for items in self._portions(pending[step]):
                self._run(step, items, [pending[step][item] for item in items], layouts)
        for segment, path in jobs:
            for member in reversed(segment.line):
                self.store.touch(member, path)

    def last_hidden(self, nodes: Sequence[tuple[Node, Prefix]]) -> torch.Tensor:
        """Normalised states [N, D] of tokens behind the last layer of a path, where the head computes; `compute` came
        before."""
        # Counted from the end, since of a segment the last tokens may be there alone.
        states = [node.segment.states[path].hidden[node.offset - len(node.segment)] for node, path in nodes]
        hidden = torch.stack([state.to(self.end) for state in states])  # Paths end in layers of any device.
        if len(self.model.model.stand_ins):
            skipped = [_between(path, len(self.layers)) for _, path in nodes]
            hidden = self._stand_in(hidden, [1] * len(states), skipped)
        return self.model.model.norm(hidden).to(self.end)

    def _stand_in(self, hidden: torch.Tensor, sizes: Sequence[int], skipped: Sequence[range]) -> torch.Tensor:
        """Packed states [N, D] behind the adapters of layers that were skipped.

        What is stored of a prefix is its state behind the last layer that ran, which serves paths that go on with any
        layer: so the adapters in between are computed for each.

        Args:
            sizes: tokens of each item.
            skipped: layers that each item skips.
        """
        adapters = self.model.model.stand_ins
        for layer in sorted(set().union(*skipped)):
            taken = [layer in layers for layers in skipped]
            if all(taken):
                hidden = adapters[layer](hidden).to(hidden.device)
                continue
            chosen = torch.tensor(taken).repeat_interleave(torch.tensor(sizes)).nonzero()[:, 0].to(hidden.device)
            hidden = hidden.index_copy(0, chosen, adapters[layer](hidden[chosen]).to(hidden.device))
        return hidden

    def _known(self, segment: Segment, path: Prefix, whole: bool) -> int:
        """Length of the longest prefix of a path whose states are stored; the embeddings at least."""
        for length in range(len(path), 0, -1):
            state = segment.states.get(path[:length])
            if state is not None and (state.whole or (length == len(path) and not whole)):
                return length
        if () not in segment.states:
            ids = torch.tensor([segment.tokens], device=self.model.device)
            decoder = self.model.model
            self.store.put(State(segment, (), scaled(decoder, decoder.embed_tokens(ids))[0], None, None))
        return 0

    def _portions(self, items: Iterable[tuple[Segment, Prefix]]) -> Iterable[list[tuple[Segment, Prefix]]]:
        """Items in calls of at most `max_tokens` tokens and `MAX_PAIRS` pairs; no segment comes before those above."""
        portion, size, pairs = [], 0, 0
        for segment, prefix in sorted(items, key=lambda item: (len(item[0].line), len(item[0]))):
            more = len(segment) * (segment.start + len(segment))
            if portion and (size + len(segment) > self.max_tokens or pairs + more > MAX_PAIRS):
                yield portion
                portion, size, pairs = [], 0, 0
            portion.append((segment, prefix))
            size, pairs = size + len(segment), pairs + more
        yield portion

    def _run(self, step: Step, items: list[tuple[Segment, Prefix]], whole: list[bool], layouts: dict) -> None:
        segments, place = [segment for segment, _ in items], self.layers[step.layer].place
        hidden = torch.cat([segment.states[prefix[:-1]].hidden.to(place) for segment, prefix in items])
        sizes = list(map(len, segments))
        if len(self.model.model.stand_ins):
            hidden = self._stand_in(hidden, sizes, [_between(prefix[:-1], prefix[-1]) for _, prefix in items])
        sources, context = _sources(items)
        window = self.windows[step.layer]
        key = (*segments, *sources, window, place)
        if key not in layouts:
            layouts[key] = self._inputs(segments, sources, hidden, window)
        layout, position_ids, position_embeddings = layouts[key]
        stored = (torch.cat([s.keys for s in context]), torch.cat([s.values for s in context])) if context else None
        first = [0 if all_tokens else segment.asked for segment, all_tokens in zip(segments, whole)]
        kept = _kept(segments, first, hidden.device)
        packed = PackedStep(layout, stored, kept)
        runner = LayerRunner(
            layers=self.layers,
            layer_types=self.layer_types,
            cache=None,
            masks=None,
            position_ids=position_ids,
            position_embeddings=position_embeddings,
            extra={"packed": packed, "use_cache": False},
        )
        output = runner.run(hidden[None], Step(step.layer, step.visit))[0]
        if self.scales is not None:  # As in LayerRunner, which knows nothing of tokens that are left away.
            output = torch.lerp(hidden if kept is None else hidden[kept], output, self.scales[step.layer])
        self.layer_tokens += len(hidden)
        outputs = output.split([size - start for size, start in zip(sizes, first)])
        parts = zip(items, outputs, packed.keys.split(sizes), packed.values.split(sizes))
        for (segment, prefix), *tensors in parts:
            # Copies: a view would keep the whole batch in memory.
            self.store.put(State(segment, prefix, *(tensor.clone() for tensor in tensors)))

    def _inputs(self, segments, sources, hidden, window) -> tuple:
        """Layout, position ids and rotary embeddings of segments that are computed together."""
        positions = [position for segment in segments for position in segment.positions[segment.start :]]
        position_ids = torch.tensor([positions], device=hidden.device)
        layout = make_layout(segments, sources, window).to(hidden.device)
        turns = rotary_embeddings(self.model.model, hidden[None], position_ids)
        return layout, position_ids, send_to_device(turns, hidden.device)


def _between(prefix: Prefix, layer: int) -> range:
    """Layers that a path skips between a prefix and its next layer, or the end."""
    return range(prefix[-1] + 1 if prefix else 0, layer)


def _kept(segments: Sequence[Segment], first: Sequence[int], device) -> torch.LongTensor | None:
    """Indices in the packed tokens of those from a first one on in each segment; None where that is all of them."""
    if not any(first):
        return None
    end, kept = 0, []
    for segment, start in zip(segments, first):
        kept += range(end + start, end + len(segment))
        end += len(segment)
    return torch.tensor(kept, dtype=torch.long, device=device)


def _sources(items: list[tuple[Segment, Prefix]]) -> tuple[tuple[tuple[int, ...], ...], list[State]]:
    """For each item where its line's keys start in (stored context, packed tokens), and the stored states."""
    packed, size = {}, 0
    for item in items:
        packed[item] = size
        size += len(item[0])
    context: dict[State, int] = {}
    stored = 0
    for segment, prefix in items:
        for member in segment.line[:-1]:
            if (member, prefix) not in packed and member.states[prefix] not in context:
                context[member.states[prefix]] = stored
                stored += len(member)
    sources = tuple(
        tuple(
            stored + packed[member, prefix] if (member, prefix) in packed else context[member.states[prefix]]
            for member in segment.line
        )
        for segment, prefix in items
    )
    return sources, list(context)
