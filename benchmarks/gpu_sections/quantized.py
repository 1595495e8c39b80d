"""8-bit and 4-bit bases load, route and generate; bitsandbytes must be installed. Routers stay in float32."""

from __future__ import annotations

import tempfile
import time
from importlib.util import find_spec

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from gpu_sections.exact import furthest, logprobs
from gpu_sections.job import Job
from gpu_sections.models import RandomModels, empty_memory
from train_models.modeling_llama import RoutedLlamaForCausalLM


@torch.inference_mode()
def measure(job: Job, place: str, name: str, quantization) -> None:
    given = {} if quantization is None else {"quantization_config": quantization}
    given |= {"dtype": torch.float32 if job.smoke else torch.bfloat16, "device_map": {"": job.device}}
    start = time.perf_counter()
    routed = RoutedLlamaForCausalLM.from_pretrained(place, **given).eval()
    seconds = time.perf_counter() - start
    stock = AutoModelForCausalLM.from_pretrained(place, **given).eval()
    depth, most = routed.config.num_hidden_layers, routed.config.vocab_size
    ids = torch.randint(1, most, (3, 20), device=job.device)
    ones, some = torch.ones(3, depth, dtype=torch.long), torch.ones(3, depth, dtype=torch.long)
    some[0, 2], some[1, 3], some[2, 1] = 0, 2, 0
    found = logprobs(routed(ids, routes=ones, use_cache=False).logits)
    job.check(f"{name}: identity equals stock", furthest(found, logprobs(stock(ids, use_cache=False).logits)), 0.0)
    decided = routed(ids, use_cache=False)
    assert decided.routes.shape == (3, depth)
    dtypes = {parameter.dtype for parameter in routed.model.routers.parameters()}
    job.check(f"{name}: routers in another dtype than float32", float(dtypes != {torch.float32}), 0.0)
    batch = routed.generate(ids, routes=some, max_new_tokens=8, do_sample=False, pad_token_id=0)
    cached = logprobs(routed(batch[:, :-1], routes=some, use_cache=False).logits)
    # What was said with a cache is what the forward of the whole says, but for near ties of half precision.
    said = batch[:, 20:]
    expected = cached[:, 19:]
    behind = expected.max(-1).values - expected.gather(-1, said[..., None])[..., 0]
    job.check(f"{name}: generated tokens are the likeliest", float(behind.max()), 1e-3 if job.smoke else 0.3)
    layers = sum(
        tensor.nbytes for tensor in routed.model.layers.state_dict().values() if isinstance(tensor, torch.Tensor)
    )
    job.row(quantization=name, load_seconds=seconds, layers_mib=layers / 2**20)


def run(job: Job) -> None:
    shape = "tiny" if job.smoke else "checks"
    models = RandomModels(shape, torch.float32 if job.smoke else torch.bfloat16, job.device, lively=True)
    ways = [("none", None)]
    if find_spec("bitsandbytes") is None:
        job.left_out("8-bit and 4-bit: bitsandbytes is not installed")
    elif job.device.type == "cuda":
        ways += [("8 bit", BitsAndBytesConfig(load_in_8bit=True)), ("4 bit", BitsAndBytesConfig(load_in_4bit=True))]
    with tempfile.TemporaryDirectory() as place:
        models.dense.save_pretrained(place)
        del models
        for name, quantization in ways:
            measure(job, place, name, quantization)
            empty_memory()
