"""generate() as people use it: streamers, pipelines, half precision, offloading, quantized bases, torch.compile."""

from __future__ import annotations

from argparse import Namespace
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Thread

import compiled_decode
import pytest
import routed_speed
import self_speculation
import torch
from conftest import (
    GEMMA3,
    LAYERS,
    LLAMA,
    PHI3,
    SLIDING_FAMILIES,
    SMOLLM3,
    assert_near,
    oracle_generate,
    oracle_logits,
    padded,
    path_from,
    random_rows,
    route_path,
    routed_from,
    save_tiny_base,
    stock_model,
)
from torch._dynamo.utils import counters
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    TextIteratorStreamer,
    TextStreamer,
    WatermarkingConfig,
    pipeline,
)
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from routing.common.errors import UserError
from routing.models.default_model import default_model_folder
from train_models.modeling_llama import RoutedLlamaForCausalLM

NEW_TOKENS = 6
GREEDY = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
ROUTES = [[0, 1, 2, 1, 0], [2, 0, 1, 0, 1], [1, 1, 1, 1, 1]]
PROMPTS = ["Two and two make", "The capital of France, as everybody knows, is", "Hello"]


@dataclass(frozen=True)
class Checkpoint:
    """A folder that loads with trust_remote_code, and what its answers to PROMPTS must be.

    Attributes:
        stock: the base model, for the naive forward.
        routes: [N, L], decided for each prompt alone.
        tokens: [N, NEW_TOKENS], decoded along these without a cache.
    """

    folder: Path
    stock: LlamaForCausalLM
    tokenizer: object
    routes: list
    tokens: list

    @property
    def texts(self) -> list[str]:
        return [self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in self.tokens]

    def inputs(self):
        return self.tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")

    def load(self, **arguments):
        return AutoModelForCausalLM.from_pretrained(self.folder, trust_remote_code=True, **arguments)


def make_checkpoint(base, folder: Path, run_bias: float = 0.0) -> Checkpoint:
    """Routers that take varied decisions on a base; `run_bias` makes most of them run the layer once."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    routed = RoutedLlamaForCausalLM.from_pretrained(base, num_windows=4, router_hidden_size=16).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for router in routed.model.routers:
            for parameter in router.parameters():
                parameter.normal_(0.0, 1.0)
            router.down.bias[1] += run_bias
    routed.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    stock = LlamaForCausalLM.from_pretrained(base).eval()
    routes, tokens = [], []
    for prompt in PROMPTS:
        row = tokenizer(prompt, return_tensors="pt").input_ids[0]
        routes += routed(row[None]).routes.tolist()
        tokens.append(oracle_generate(stock, row, route_path(routes[-1]), NEW_TOKENS)[0].tolist())
    assert len(set(map(tuple, routes))) == len(PROMPTS), "rows must differ, or the tests below show nothing"
    assert not {tokenizer.eos_token_id} & {token for row in tokens for token in row}
    return Checkpoint(folder, stock, tokenizer, routes, tokens)


def tiny_checkpoint(folder: Path) -> Checkpoint:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return make_checkpoint(save_tiny_base(folder / "base", LAYERS, head_dim=8, **sizes), folder / "routed")


def real_checkpoint(folder: Path) -> Checkpoint:
    return make_checkpoint(default_model_folder(), folder / "routed", run_bias=40.0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Checkpoint:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=[tiny_checkpoint, pytest.param(real_checkpoint, marks=pytest.mark.slow)])
def checkpoint(request, tmp_path_factory) -> Checkpoint:
    """A tiny model, and the default one where there is time."""
    return request.param(tmp_path_factory.mktemp("checkpoint"))


def test_greedy_in_one_padded_batch(checkpoint):
    model, inputs = checkpoint.load(), checkpoint.inputs()
    for use_cache in (True, False):
        tokens = model.generate(**inputs, use_cache=use_cache, **GREEDY)[:, inputs.input_ids.shape[1] :]
        assert tokens.tolist() == checkpoint.tokens and model.last_routes.tolist() == checkpoint.routes


@torch.no_grad()
def test_beam_search_scores_each_text_along_its_route(checkpoint):
    inputs = checkpoint.inputs()
    beams = {"num_beams": 3, "return_dict_in_generate": True, "output_scores": True, "length_penalty": 0.0}
    output = checkpoint.load().generate(**inputs, **GREEDY, **beams)
    for at, sequence in enumerate(output.sequences):
        row = inputs.input_ids[at][inputs.attention_mask[at].bool()]
        new = sequence[inputs.input_ids.shape[1] :]
        logits = oracle_logits(checkpoint.stock, torch.cat([row, new]), route_path(checkpoint.routes[at]))
        likelihoods = logits[len(row) - 1 : -1].log_softmax(-1)[range(len(new)), new]
        assert_near(output.sequences_scores[at], likelihoods.sum(), tolerance=1e-3)


@pytest.mark.parametrize("drafts", [1, 5])
def test_as_assistant_of_its_base_the_text_is_that_of_the_base(checkpoint, drafts):
    routed = checkpoint.load()
    routed.generation_config.num_assistant_tokens = drafts
    for prompt, route in zip(PROMPTS, checkpoint.routes):
        inputs = checkpoint.tokenizer(prompt, return_tensors="pt")
        text = checkpoint.stock.generate(**inputs, assistant_model=routed, **GREEDY)
        assert torch.equal(text, checkpoint.stock.generate(**inputs, **GREEDY))
        # After a rejected draft transformers goes on one token back: a prompt of one token is read, and routed, again.
        assert routed.last_routes.tolist() == [route] or inputs.input_ids.shape[1] == 1


def test_streamers_give_the_text_of_generate(checkpoint, capsys):
    model = checkpoint.load()
    for prompt, text in zip(PROMPTS, checkpoint.texts):
        inputs = checkpoint.tokenizer(prompt, return_tensors="pt")
        model.generate(**inputs, streamer=TextStreamer(checkpoint.tokenizer, skip_prompt=True), **GREEDY)
        assert capsys.readouterr().out == text + "\n"
        streamer = TextIteratorStreamer(checkpoint.tokenizer, skip_prompt=True, timeout=60)
        thread = Thread(target=model.generate, kwargs={**inputs, "streamer": streamer, **GREEDY})
        thread.start()
        pieces = list(streamer)
        thread.join()
        assert "".join(pieces) == text and len(pieces) > 1


@pytest.mark.parametrize("batch_size", [1, 3])
def test_text_generation_pipeline(checkpoint, batch_size):
    generator = pipeline("text-generation", model=str(checkpoint.folder), trust_remote_code=True, device="cpu")
    assert generator.tokenizer.pad_token_id is not None
    generator.tokenizer.padding_side = "left"
    outputs = generator(PROMPTS, batch_size=batch_size, return_full_text=False, **GREEDY)
    assert [output["generated_text"] for (output,) in outputs] == checkpoint.texts
    assert generator.model.last_routes.tolist() == checkpoint.routes[-batch_size:]


def test_pipeline_of_a_conversation(tiny):
    """A chat goes through the template; the routers read what it makes of it."""
    generator = pipeline("text-generation", model=str(tiny.folder), trust_remote_code=True, device="cpu")
    chat = [{"role": "user", "content": PROMPTS[0]}]
    answer = generator(chat, return_full_text=False, **GREEDY)[0]["generated_text"]
    ids = tiny.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    route = tiny.load()(ids).routes[0]
    tokens = oracle_generate(tiny.stock, ids[0], route_path(route), NEW_TOKENS)[0]
    assert answer == tiny.tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_half_precision(tiny, dtype):
    """In a batch as alone, to what the dtype can tell; another route is much further away."""
    model, inputs = tiny.load(dtype=dtype), tiny.inputs()
    assert {p.dtype for p in model.model.routers.parameters()} == {torch.float32}
    assert {p.dtype for p in model.model.layers.parameters()} == {dtype}
    routes = torch.tensor(ROUTES)
    together = model(**inputs, routes=routes).logits
    assert together.dtype == dtype
    for at, real in enumerate(inputs.attention_mask.bool()):
        row = inputs.input_ids[at][real][None]
        spread = together[at][real].float().std()
        for route, near in ((routes[at], True), (routes[at - 1], False)):
            alone = model(row, routes=route[None]).logits[0]
            assert ((together[at][real].float() - alone.float()).std() < 0.1 * spread) == near
    new = model.generate(**inputs, **GREEDY)[:, inputs.input_ids.shape[1] :]
    assert new.shape == (3, NEW_TOKENS) and model.last_routes.shape == (3, LAYERS)


@pytest.mark.parametrize("how", ["auto", "auto, little memory", "by hand"])
def test_device_map(tiny, how, tmp_path):
    """Hooks of accelerate fetch what is offloaded to disk, whatever layers a route runs."""
    arguments = {"device_map": "auto"}
    if how == "auto, little memory":
        arguments |= {"max_memory": {"cpu": 240_000}, "offload_folder": tmp_path}  # little more than the embedding
    elif how == "by hand":
        places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
        places |= {f"model.layers.{layer}": "disk" if layer % 2 else "cpu" for layer in range(LAYERS)}
        arguments = {"device_map": places | {"model.routers": "disk"}, "offload_folder": tmp_path}
    model, inputs = tiny.load(**arguments), tiny.inputs()
    offloaded = {name for name, parameter in model.named_parameters() if parameter.device.type == "meta"}
    assert bool(offloaded) == (how != "auto")
    if how == "by hand":
        assert any(".layers.1." in name for name in offloaded) and not any(".routers." in name for name in offloaded)
    tokens = model.generate(**inputs, **GREEDY)[:, inputs.input_ids.shape[1] :]
    assert tokens.tolist() == tiny.tokens and model.last_routes.tolist() == tiny.routes


def test_stop_strings_end_each_row_for_itself(tiny):
    inputs = tiny.inputs()
    whole = tiny.load().generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    stop = tiny.tokenizer.decode(tiny.tokens[1][2]).strip()
    assert stop and stop not in tiny.texts[0]
    tokens = tiny.load().generate(**inputs, stop_strings=[stop], tokenizer=tiny.tokenizer, **GREEDY)
    new = tokens[:, inputs.input_ids.shape[1] :].tolist()
    assert torch.equal(tokens[0], whole[0])
    assert new[1] == tiny.tokens[1][:3] + [tiny.tokenizer.pad_token_id] * (NEW_TOKENS - 3)


PROCESSORS = [
    {"repetition_penalty": 1.8},
    {"no_repeat_ngram_size": 1},
    {"min_new_tokens": 3},
    {"bad_words_ids": [[5], [68]]},
    {"watermarking_config": WatermarkingConfig()},
]


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda processor: next(iter(processor)))
def test_logits_processors(processor):
    """Cached equals uncached along routes, and with all layers run the stock model's answer comes out."""
    stock = stock_model(LLAMA)
    routed = routed_from(LLAMA, stock, router_seed=5, num_windows=4)
    ids, mask = padded(random_rows([4, 9, 6]))
    arguments = {"attention_mask": mask, "max_new_tokens": 10, "do_sample": False} | processor
    cached, uncached = (routed.generate(ids, use_cache=use_cache, **arguments) for use_cache in (True, False))
    assert torch.equal(cached, uncached)
    routed.config.is_static_routing = True
    assert torch.equal(routed.generate(ids, **arguments), stock.generate(ids, **arguments))


def test_repetition_penalty_changes_something():
    """Guards the test above."""
    routed = routed_from(LLAMA, stock_model(LLAMA), router_seed=5, num_windows=4)
    ids = random_rows([9])[0][None]
    plain, penalized = (routed.generate(ids, repetition_penalty=p, max_new_tokens=10) for p in (1.0, 1.8))
    assert not torch.equal(plain, penalized)


def test_speculative_sampling_repeats_itself(tiny):
    """Drafts of an assistant that is sampled, too, leave no trace: the same seed gives the same text."""
    routed, inputs = tiny.load(), tiny.tokenizer(PROMPTS[1], return_tensors="pt")
    texts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        texts.append(tiny.stock.generate(**inputs, assistant_model=routed, max_new_tokens=12, do_sample=True))
        assert routed.last_routes.tolist() == [tiny.routes[1]]
    assert torch.equal(texts[0], texts[1]) and not torch.equal(texts[0], texts[2])


def test_the_generation_config_of_a_checkpoint_counts(tiny, tmp_path):
    model, inputs = tiny.load(), tiny.inputs()
    model.generation_config = GenerationConfig(
        max_new_tokens=4, repetition_penalty=1.8, eos_token_id=2, pad_token_id=2, bos_token_id=1
    )
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    expected = tiny.load().generate(**inputs, max_new_tokens=4, repetition_penalty=1.8, do_sample=False)
    assert torch.equal(again.generate(**inputs), expected)


def test_what_cannot_follow_a_path_is_refused_and_changes_nothing(family):
    stock = stock_model(family)
    path = path_from(family, stock)
    path.model.layer_indices = [0, 1, 1]
    ids = random_rows([6])[0][None]
    for model in (routed_from(family, stock, router_seed=5), path):
        expected = model.generate(ids, **GREEDY)
        with pytest.raises(ValueError, match="assistant_early_exit=2.*assistant_model"):
            model.generate(ids, assistant_early_exit=2, **GREEDY)
        with pytest.raises(ValueError, match="continuous batching.*padded batch"):
            model.generate(ids, cache_implementation="paged", **GREEDY)
        with pytest.raises(ValueError, match="continuous batching.*padded batch"):
            model.generate_batch(ids.tolist(), generation_config=GenerationConfig(max_new_tokens=2))
        assert torch.equal(model.generate(ids, **GREEDY), expected)


# Quantized bases.


def test_quantizers_leave_routers_alone(family):
    """Most quantizers of transformers ask for the modules to keep in this way, and convert every nn.Linear else."""
    model = routed_from(family, stock_model(family))
    for skipped in (None, ["lm_head"]):
        kept = HfQuantizer.get_modules_to_not_convert(model, skipped, model._keep_in_fp32_modules)
        linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
        converted = [name for name in linear if should_convert_module(name, kept)]
        assert converted == [name for name in linear if name.startswith("model.layers.")]
        # Fused projections are fewer, and experts are no nn.Linear.
        few = {"phi3": 4 * LAYERS, "olmoe": 4 * LAYERS, "qwen3_moe": 4 * LAYERS + 3}
        assert len(converted) == few.get(family.name, 7 * LAYERS)


@pytest.mark.parametrize("bits", [8, 4])
@torch.no_grad()
def test_quantized_bases(family, bits, tmp_path):
    """Along its route each row is that of the stock model quantized alike; routers are as they were."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is an optional package (requirements-gpu.txt)")
    from transformers import BitsAndBytesConfig

    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments = {"quantization_config": BitsAndBytesConfig(**{f"load_in_{bits}bit": True}), "device_map": device}
    # Blocks of 4-bit weights have 64 values.
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    plain = stock_model(family, **sizes)
    routed = routed_from(family, plain, router_seed=5, num_windows=4, **sizes)
    plain.save_pretrained(tmp_path / "base")
    routed.save_pretrained(tmp_path / "routed")
    stock = family.stock.from_pretrained(tmp_path / "base", **arguments)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "routed", trust_remote_code=True, **arguments)
    fresh = family.routed.from_pretrained(tmp_path / "base", **arguments)
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True, device_map=device)
    rows = [row.to(device) for row in random_rows([4, 9, 6])]
    ids, mask = (tensor.to(device) for tensor in padded([row.cpu() for row in rows]))
    for model in (loaded, fresh, again):
        linear = [m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and ".layers." in n]
        assert {str(m.weight.dtype) for m in linear} == {"torch.int8" if bits == 8 else "torch.uint8"}
        assert {p.dtype for p in model.model.routers.parameters()} == {torch.float32}
        if model is not fresh:
            saved, kept = routed.model.routers.state_dict(), model.model.routers.state_dict()
            assert all(torch.equal(kept[name].cpu(), tensor) for name, tensor in saved.items())
        ones = [[1] * LAYERS] * 3
        expected = stock(ids, attention_mask=mask).logits
        assert torch.equal(model(ids, attention_mask=mask, routes=ones).logits, expected)
        for row, route in zip(rows, ROUTES):
            logits = model(row[None], routes=[route]).logits
            assert_near(logits[0], _along(stock, row, route).to(logits.dtype), tolerance=1e-2)
        tokens = model.generate(ids, attention_mask=mask, **GREEDY)
        assert tokens.shape == (3, ids.shape[1] + NEW_TOKENS) and model.last_routes.shape == (3, LAYERS)


def _along(stock, row: torch.Tensor, route) -> torch.Tensor:
    """Logits [T, V] of a stock model whose layers were put in the order of a route, and back again."""
    layers, config = stock.model.layers, stock.config
    stock.model.layers = torch.nn.ModuleList([layers[layer] for layer in route_path(route)])
    config.num_hidden_layers = len(stock.model.layers)
    try:
        return stock(row[None], use_cache=False).logits[0]
    finally:
        stock.model.layers, config.num_hidden_layers = layers, LAYERS


# torch.compile


@contextmanager
def counted_graphs():
    """List of the graphs compiled inside, which run as they are; fails on graph breaks."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    counters.clear()
    yield graphs, backend
    assert not counters["graph_break"]
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("any_family", (LLAMA, *SLIDING_FAMILIES), ids=str)
def test_compiled_layers_give_the_same_tokens(any_family, dynamic):
    routed = routed_from(any_family, stock_model(any_family), router_seed=5, num_windows=4)
    ids, mask = padded(random_rows([4, 9, 6]))
    asked = [{}, {"routes": torch.tensor(ROUTES)}, {"routes": torch.tensor(ROUTES[:1] * 3)}, {"num_beams": 2}]
    plain = [routed.generate(ids, attention_mask=mask, **GREEDY, **arguments) for arguments in asked]
    with counted_graphs() as (graphs, backend):
        routed.compile(backend=backend, dynamic=dynamic)
        for arguments, expected in zip(asked, plain):
            assert torch.equal(routed.generate(ids, attention_mask=mask, **GREEDY, **arguments), expected)
        assert graphs


@pytest.mark.parametrize("family, kinds", [(LLAMA, 1), (SMOLLM3, 2)], ids=["llama", "smollm3"])
def test_a_decode_loop_compiles_no_more_than_a_few_graphs(family, kinds):
    """One graph serves all layers of a kind, all steps and all routes of as many rows."""
    routed = routed_from(family, stock_model(family))
    ids = torch.stack(random_rows([6, 6, 6]))
    asked = [{"routes": torch.tensor([route] * 3), "max_new_tokens": 15, "do_sample": False} for route in ROUTES]
    plain = [routed.generate(ids, **arguments) for arguments in asked]
    with counted_graphs() as (graphs, backend):
        routed.compile(backend=backend, dynamic=True)
        for arguments, expected in zip(asked, plain):
            assert torch.equal(routed.generate(ids, **arguments), expected)
        assert len(graphs) == 2 * kinds  # prefill, decoding


def test_compiling_the_layers_changes_no_checkpoint(tmp_path):
    routed = routed_from(LLAMA, stock_model(LLAMA), router_seed=5)
    names = list(routed.state_dict())
    routed.compile(backend="eager")
    assert list(routed.state_dict()) == names
    routed.save_pretrained(tmp_path)
    assert list(LLAMA.routed.from_pretrained(tmp_path).state_dict()) == names


@pytest.mark.parametrize("what", ["forward", "model", "decoder"])
def test_compiling_the_whole_model_is_refused(what):
    """Else each route would be compiled anew, up to dynamo's limit, and run uncompiled from then on."""
    stock = stock_model(LLAMA)
    path = path_from(LLAMA, stock)
    path.model.layer_indices = [0, 1, 1]
    ids = random_rows([6])[0][None]
    for model in (routed_from(LLAMA, stock, router_seed=5), path):
        torch._dynamo.reset()
        compiled = model
        if what == "model":
            compiled = torch.compile(model, backend="eager")
        else:
            part = model if what == "forward" else model.model
            part.forward = torch.compile(part.forward, backend="eager")
        with pytest.raises(ValueError, match=r"as a whole.*model\.compile\(\)"):
            compiled(ids)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("family", (LLAMA, GEMMA3), ids=str)
@torch.no_grad()
def test_the_inductor_backend_along_mixed_routes(family):
    stock = stock_model(family)
    routed = routed_from(family, stock, router_seed=5, num_windows=4)
    rows = random_rows([4, 9, 6])
    ids, mask = padded(rows)
    torch._dynamo.reset()
    routed.compile(dynamic=True)
    output = routed.generate(
        ids,
        attention_mask=mask,
        routes=torch.tensor(ROUTES),
        return_dict_in_generate=True,
        output_logits=True,
        **GREEDY,
    )
    for at, route in enumerate(ROUTES):
        tokens, logits = oracle_generate(stock, rows[at], route_path(route), NEW_TOKENS)
        assert output.sequences[at, ids.shape[1] :].tolist() == tokens.tolist()
        assert_near(torch.stack(output.logits, 1)[at], logits, tolerance=1e-3)
    torch._dynamo.reset()


@pytest.mark.slow
def test_the_inductor_backend_on_the_default_model(tmp_path):
    checkpoint = real_checkpoint(tmp_path)
    model, inputs = checkpoint.load(), checkpoint.inputs()
    torch._dynamo.reset()
    model.compile(dynamic=True)
    tokens = model.generate(**inputs, **GREEDY)[:, inputs.input_ids.shape[1] :]
    assert tokens.tolist() == checkpoint.tokens and model.last_routes.tolist() == checkpoint.routes
    torch._dynamo.reset()


@torch.no_grad()
def test_the_route_stays_where_phi3_drops_the_cache():
    """Its positions change behind the first context, so all is computed anew there, of more than the prompt."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0, 2.5, 3.0, 4.0], "original_max_position_embeddings": 12}
    family = replace(PHI3, overrides=(("rope_parameters", rope), ("original_max_position_embeddings", 12)))
    stock = stock_model(family)
    ids, kept = torch.stack(random_rows([9])), []
    expected = stock.generate(ids, **GREEDY)
    assert expected.shape[1] > 13
    assert torch.equal(routed_from(family, stock, is_static_routing=True).generate(ids, **GREEDY), expected)
    for seed in range(4):
        routed = routed_from(family, stock, router_seed=seed, num_windows=4)
        prompt = routed(ids).routes
        tokens = routed.generate(ids, **GREEDY)
        assert torch.equal(routed.last_routes, prompt)
        kept.append(not torch.equal(routed(tokens).routes, prompt))
    assert any(kept)


# The benchmarks.


@pytest.fixture
def speed_models(tmp_path) -> routed_speed.Models:
    stock_model(LLAMA).save_pretrained(tmp_path)
    return routed_speed.Models(Namespace(model=str(tmp_path), dtype="float32", device="cpu"))


def test_self_speculation_counts_drafts(speed_models):
    """With nothing skipped all drafts are accepted; what is skipped costs acceptance and layers, never the text."""
    prompts = [row.tolist() for row in random_rows([7, 5])]
    ways = [self_speculation.Way("dense, plain")]
    for skipped in ([], [1, 3]):
        ways.append(self_speculation.Way("fixed", speed_models.routed, skipped, drafts=3))
    plain, whole, pruned = self_speculation.run(speed_models, ways, prompts, max_new_tokens=12, repeats=2)
    assert plain["tokens_a_round"] == 1 and plain["acceptance"] is None
    assert (whole["layers"], whole["acceptance"], whole["tokens_a_round"]) == (LAYERS, 1, 4)
    assert whole["ideal"] == pytest.approx(4 / (1 + 3))
    assert pruned["layers"] == LAYERS - 2 and pruned["acceptance"] < 0.9 and pruned["tokens_a_round"] < 4


def test_self_speculation_refuses_another_text(speed_models, monkeypatch):
    generate = speed_models.dense.generate

    def spoilt(ids, **arguments):
        tokens = generate(ids, **arguments)
        tokens[0, -1] += "assistant_model" in arguments
        return tokens

    monkeypatch.setattr(speed_models.dense, "generate", spoilt)
    ways = [self_speculation.Way("dense, plain"), self_speculation.Way("fixed", speed_models.routed, [], drafts=2)]
    with pytest.raises(UserError, match="fixed with 2 drafts changes the text"):
        self_speculation.run(speed_models, ways, [random_rows([7])[0].tolist()], max_new_tokens=6, repeats=1)


def test_a_checkpoint_of_another_base_is_no_assistant(speed_models, tiny, tmp_path):
    for folder, seed in (("own", 0), ("other", 1)):
        routed = routed_from(LLAMA, stock_model(LLAMA, seed=seed), num_windows=4, trained_num_windows=4)
        routed.save_pretrained(tmp_path / folder)
        tiny.tokenizer.save_pretrained(tmp_path / folder)
    own = {parameter.data_ptr() for parameter in speed_models.dense.parameters()}
    shared = self_speculation.routed_checkpoint(tmp_path / "own", speed_models)
    assert {p.data_ptr() for name, p in shared.named_parameters() if ".routers." not in name} == own
    with pytest.raises(UserError, match="other weights than the base"):
        self_speculation.routed_checkpoint(tmp_path / "other", speed_models)


def test_the_least_influential_layers_are_skipped():
    assert self_speculation.least_influential([0.5, 0.1, 0.3, 0.1, 0.9], 0.4) == [1, 3]
    assert self_speculation.least_influential([0.5, 0.1, 0.3, 0.1, 0.9], 0.0) == []


@pytest.mark.slow
def test_compiled_decoding_is_measured(speed_models, monkeypatch):
    # The eager backend compiles in no time; nn.Module.compile calls torch.compile, too.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    routes = [(s, m, routed_speed.make_routes(LAYERS, 2, s, m)) for s, m in ((0.0, False), (0.4, True))]
    rows = compiled_decode.measure(speed_models, speed_models.prompts(2, 9), routes, repeats=2)
    assert [row["model"] for row in rows[3:]] == ["routed", "routed, compiled"] * 2
    assert all(row["speedup"] > 0 for row in rows)


def test_what_compiles_wrongly_is_not_measured():
    plain = torch.tensor([[[5.0, 1.0, 0.0], [2.0, 2.0001, 0.0]]]).log_softmax(-1)
    compiled_decode.refuse_difference("it", plain + 1e-4 * torch.tensor([0.0, -1.0, 0.0]), plain, 1e-3)
    with pytest.raises(UserError, match="it is not exact: 0 other tokens, .* differ by 0.01"):
        compiled_decode.refuse_difference("it", plain + 0.01, plain, 1e-3)
    with pytest.raises(UserError, match="it is not exact: 2 other tokens"):
        compiled_decode.refuse_difference("it", plain.roll(1, dims=-1), plain, 1e-6)
