"""Is everything exact on this device? Identity, forced routes, beams, tokens, hybrids; and does the host wait?

Differences are of log-probabilities. In float32 they must be below 1e-3 (identity: zero). In half precision the stock
model itself differs from its float32 form; a routed model may differ by twice as much as a stock model that has the
executed layers alone does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec

import torch

from gpu_sections.job import Job
from gpu_sections.models import RandomModels, empty_memory
from gpu_sections.plain import plain_rules
from train_models.configuration_gdn_hybrid import GdnHybridConfig

TOLERANCE = 1e-3
NEW = 4  # decoded tokens
SKIP_AND_REPEAT = ((1, 1, 0, 1, 2, 0, 1, 1), (0, 1, 1, 1, 1, 1, 0, 2), (1,) * 8, (1, 0, 1, 0, 1, 1, 1, 1))
LENGTHS = (37, 12, 50, 21)


def logprobs(logits: torch.Tensor) -> torch.Tensor:
    return logits.double().log_softmax(-1)


def padded(rows: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = rows[0].new_zeros(len(rows), width)
    mask = torch.zeros_like(ids)
    for at, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[at, place], mask[at, place] = row, 1
    return ids, mask


@torch.inference_mode()
def decoded(model, ids, mask, following, **given) -> torch.Tensor:
    """Log-probabilities [B, 1 + NEW, V] behind the prompt and behind each of the tokens that follow, by a cache."""
    output = model(ids, attention_mask=mask, use_cache=True, logits_to_keep=1, **position_ids(mask), **given)
    found, cache = [output.logits], output.past_key_values
    for at in range(NEW):
        mask = None if mask is None else torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        step = {name: value[:, -1:] for name, value in position_ids(mask).items()}
        found.append(model(following[:, at : at + 1], attention_mask=mask, past_key_values=cache, **step).logits)
    return logprobs(torch.cat(found, 1))


def position_ids(mask) -> dict:
    return {} if mask is None else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


@torch.inference_mode()
def alone(model, row, following) -> torch.Tensor:
    """The same of one row, without cache and padding."""
    whole = torch.cat([row, following])[None]
    return logprobs(model(whole, use_cache=False, logits_to_keep=NEW + 1).logits)[0]


def furthest(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max())


def identity(job: Job, models: RandomModels, about: dict) -> None:
    rows = prompts(models, job)
    following = rows[0].new_tensor([[5, 9, 3, 7]] * len(rows))
    routes = torch.ones(len(rows), models.depth, dtype=torch.long)
    for side in ("none", "left"):
        ids, mask = padded([row[:12] for row in rows], "left") if side == "none" else padded(rows, side)
        mask = None if side == "none" else mask
        ours = decoded(models.routed, ids, mask, following, routes=routes)
        stock = decoded(models.dense, ids, mask, following)
        job.check("identity equals stock", furthest(ours, stock), 0.0, padding=side, **about)


def forced(job: Job, models: RandomModels, reference: RandomModels, about: dict) -> None:
    """Rows with a route each, batched and cached, against each row alone along stock layers."""
    rows = prompts(models, job)
    following = rows[0].new_tensor([[5, 9, 3, 7]] * len(rows))
    routes = torch.tensor(SKIP_AND_REPEAT)
    expected = [alone(reference.pruned(list(r)), row, following[0]) for r, row in zip(SKIP_AND_REPEAT, rows)]
    same = [alone(models.pruned(list(r)), row, following[0]) for r, row in zip(SKIP_AND_REPEAT, rows)]
    noise = max(map(furthest, same, expected))
    allowed = TOLERANCE if models.dtype == torch.float32 else 2 * noise + TOLERANCE
    ids, mask = padded(rows, "left")
    found = decoded(models.routed, ids, mask, following, routes=routes)
    worst = max(map(furthest, found, expected))
    job.check("forced routes, left-padded, cached", worst, allowed, stock_noise=noise, **about)
    ids, mask = padded(rows, "right")
    with torch.inference_mode():
        logits = models.routed(ids, attention_mask=mask, use_cache=False, routes=routes).logits
    worst = max(furthest(logprobs(own[len(row) - 1]), e[0]) for own, row, e in zip(logits, rows, expected))
    job.check("forced routes, right-padded", worst, allowed, stock_noise=noise, **about)
    found = [
        decoded(models.routed, row[None], None, following[:1], routes=routes[at : at + 1])[0]
        for at, row in enumerate(rows)
    ]
    job.check(
        "forced routes, one row, cached", max(map(furthest, found, expected)), allowed, stock_noise=noise, **about
    )


def beams(job: Job, models: RandomModels, about: dict) -> None:
    """Beams of a batch against those of each row alone, whose cache is never reordered across routes; same tokens."""
    rows = prompts(models, job)
    ids, mask = padded(rows, "left")
    given = {"num_beams": 3, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    routes = torch.tensor(SKIP_AND_REPEAT)
    batch = models.routed.generate(ids, attention_mask=mask, routes=routes, **given)[:, ids.shape[1] :]
    wrong = 0
    for at, row in enumerate(rows):
        own = {"attention_mask": torch.ones_like(row)[None], "routes": routes[at : at + 1], "use_cache": False}
        wrong += int(not torch.equal(models.routed.generate(row[None], **own, **given)[0, len(row) :], batch[at]))
    job.check("beams in a batch equal each row without cache", wrong, 0, **about)


def tokens(job: Job, models: RandomModels, about: dict) -> None:
    """Tokens gathered against every layer computed for all tokens and masked."""
    rows = prompts(models, job)
    following = rows[0].new_tensor([[5, 9, 3, 7]] * len(rows))
    ids, mask = padded(rows, "left")
    found = []
    for hard in (True, False):
        generator = torch.Generator().manual_seed(0)

        def gates(logits, hard=hard, generator=generator):
            drawn = torch.rand(logits.shape, generator=generator).to(logits.device) >= 0.4
            return drawn if hard else drawn.to(torch.float32)

        found.append(decoded(models.routed, ids, mask, following, draw_gates=gates))
    allowed = TOLERANCE if models.dtype == torch.float32 else 0.3
    job.check("tokens gathered equal masked, left-padded, cached", furthest(*found), allowed, **about)


def hybrid_model(name: str, dtype: torch.dtype, device: torch.device):
    from routing.training.language_model.configurations import pattern_of
    from train_models.modeling_gdn_hybrid import GdnHybridForCausalLM

    torch.manual_seed(0)
    config = GdnHybridConfig(
        vocab_size=512, hidden_size=128, num_attention_heads=2, intermediate_size=256, pattern=pattern_of(name, 4),
        router="random", random_share=0.5,
    )  # fmt: skip
    return GdnHybridForCausalLM(config).to(device, dtype).eval().requires_grad_(False)


@torch.inference_mode()
def hybrids(job: Job) -> None:
    """Cached against uncached, by PyTorch's own operations."""
    for dtype in (torch.float32, torch.bfloat16):
        for name in ("static", "dynamic", "all-gdn"):
            model = hybrid_model(name, dtype, job.device)
            generator = torch.Generator().manual_seed(0)
            ids = torch.randint(1, 512, (3, 200), generator=generator).to(job.device)
            whole = logprobs(model(ids, use_cache=False).logits[:, -3:])
            start = model(ids[:, :-2], use_cache=True, logits_to_keep=1)
            found = [start.logits]
            for at in (-2, -1):
                found.append(model(ids[:, at:][:, :1], past_key_values=start.past_key_values, use_cache=True).logits)
            allowed = TOLERANCE if dtype == torch.float32 else 0.3
            difference = furthest(logprobs(torch.cat(found, 1)), whole)
            about = {"model": name, "dtype": str(dtype).removeprefix("torch.")}
            job.check("hybrid cached equals uncached", difference, allowed, **about)


def waits(call: Callable[[], object]) -> int:
    """How often the host waits for the device while `call` runs."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


@torch.inference_mode()
def synchronisations(job: Job, models: RandomModels, by_token: RandomModels) -> None:
    """How often the host waits in a decode step; never where rows have a route."""
    rows = prompts(models, job)
    same, mixed = torch.tensor(SKIP_AND_REPEAT[:1] * len(rows)), torch.tensor(SKIP_AND_REPEAT)
    ids, mask = padded(rows, "left")
    short = torch.stack([row[:12] for row in rows])
    cases = (
        ("stock", models.dense, short, None, {}, 0),
        ("one route", models.routed, short, None, {"routes": same}, 0),
        ("a route a row", models.routed, short, None, {"routes": mixed}, 0),
        ("a route a row, left-padded", models.routed, ids, mask, {"routes": mixed}, 0),
        ("a route a token", by_token.routed, short, None, {}, 1),
        ("routers decide", models.routed, short, None, {}, 0),
    )
    for name, model, ids, mask, given, allowed in cases:
        outputs = []

        def prefill(model=model, ids=ids, mask=mask, given=given, outputs=outputs):
            outputs.append(
                model(ids, attention_mask=mask, use_cache=True, logits_to_keep=1, **position_ids(mask), **given)
            )

        first = waits(prefill)
        cache, token = outputs[0].past_key_values, ids[:, -1:]
        positions = None if mask is None else mask.sum(1, keepdim=True)

        def step(model=model, mask=mask, cache=cache):
            nonlocal token, positions
            extra = {}
            if mask is not None:
                # A mask of numbers is read by transformers, for which the host waits; one made ready is taken as it is.
                seen = cache.get_seq_length() + 1
                behind = seen - mask.shape[1]
                extra = {
                    "attention_mask": torch.nn.functional.pad(mask, (0, behind), value=1).bool()[:, None, None],
                    "position_ids": positions,
                }
                positions = positions + 1
            token = model(token, past_key_values=cache, use_cache=True, **extra).logits[:, -1:].argmax(-1)

        step()
        each = [waits(step) for _ in range(3)]
        job.check(f"host waits in a decode step: {name}", max(each), allowed, in_prefill=first)
        if not allowed:
            torch.cuda.set_sync_debug_mode("error")
            try:
                for _ in range(8):
                    step()
            finally:
                torch.cuda.set_sync_debug_mode("default")


def prompts(models: RandomModels, job: Job) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    most = models.dense.config.vocab_size
    return [torch.randint(1, most, (length,), generator=generator).to(job.device) for length in LENGTHS]


def run(job: Job) -> None:
    shape = "tiny" if job.smoke else "checks"
    attentions = ["sdpa"] + (["flash_attention_2"] if find_spec("flash_attn") and not job.smoke else [])
    job.facts["attention"] = attentions
    for attention in attentions:
        reference = None
        for dtype in (torch.float32, torch.bfloat16):
            if attention.startswith("flash") and dtype == torch.float32:
                continue
            about = {"dtype": str(dtype).removeprefix("torch."), "attention": attention}
            models = RandomModels(shape, dtype, job.device, attention, lively=True)
            by_token = RandomModels(
                shape, dtype, job.device, attention, lively=True, router="prefix_token", kept_layers=2
            )
            if dtype == torch.float32:
                reference = models
            else:  # The same weights, in float32.
                reference = RandomModels(shape, torch.float32, job.device, lively=True)
                reference.dense.load_state_dict({k: v.float() for k, v in models.dense.state_dict().items()})
            identity(job, models, about)
            forced(job, models, reference, about)
            if dtype == torch.float32:
                beams(job, models, about)
            if attention == "sdpa":
                tokens(job, by_token, about)
            if job.device.type == "cuda" and dtype == torch.bfloat16 and attention == "sdpa":
                synchronisations(job, models, by_token)
    empty_memory()
    # Fused kernels take long to compile: section hybrid checks what it times with them.
    with plain_rules():
        hybrids(job)
