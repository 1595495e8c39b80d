"""How much faster is a token decoded when layers are skipped? Stock model against routed model, in turn.

    .venv/bin/python benchmarks/decode.py --json benchmarks/results/decode.json --plot benchmarks/results/decode.png

One token a step for all rows, behind a prompt in the cache. `cache_bytes` is the memory of the keys and values that are
stored of the prompt, `cache_share` is it over that of the stock model. Nothing is timed whose log-probabilities
differ from a stock model that has the executed layers alone.
"""

from __future__ import annotations

import torch
from routed_speed import Models, arguments_of, in_turn, rows_a_layer, run, speedup

from routing.common.errors import run_command


class Decoder:
    """A model that decodes on and on behind a prompt."""

    def __init__(self, model, prompts: torch.LongTensor, **given):
        self.model, self.token = model, prompts[:, -1:]
        self.cache = model(prompts, use_cache=True, logits_to_keep=1, **given).past_key_values

    def __call__(self) -> None:
        logits = self.model(self.token, past_key_values=self.cache, use_cache=True).logits
        self.token = logits[:, -1:].argmax(-1)

    def cache_bytes(self) -> int:
        return sum(tensor.nbytes for layer in self.cache.layers for tensor in (layer.keys, layer.values))


@torch.inference_mode()
def measure(models: Models, prompts: torch.LongTensor, routes: list, repeats: int) -> list[dict]:
    decoders = [Decoder(models.dense, prompts)]
    for share, mixed, route in routes:
        decoders.append(Decoder(models.routed, prompts, routes=route))
        if mixed:
            decoders.append(Decoder(models.dense, prompts[: rows_a_layer(route)]))
        elif share:
            decoders.append(Decoder(models.pruned(route[0].tolist()), prompts))
    cache = [decoder.cache_bytes() for decoder in decoders]
    dense, *others = in_turn(decoders, repeats, models.synchronize)
    rows, found = [], iter(zip(others, cache[1:]))
    for share, mixed, _ in routes:
        seconds, size = next(found)
        row = {"speedup": speedup(dense, seconds), "cache_bytes": size, "cache_share": size / cache[0]}
        if share:
            row["fewer_rows" if mixed else "pruned"] = speedup(dense, next(found)[0])
        rows.append(row)
    return rows


def main() -> None:
    arguments = arguments_of(__doc__)
    run("decode", arguments, lambda *case: measure(*case, arguments.repeats))


if __name__ == "__main__":
    run_command(main)
