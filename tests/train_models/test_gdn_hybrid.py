"""The hybrid of Gated DeltaNet and softmax attention: both branches against gathered tokens, caches, padding, beams."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import cpu_offload
from conftest import VOCAB, assert_near, padded, random_rows
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch.nn.functional import cross_entropy, gumbel_softmax, one_hot
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5ForCausalLM, Qwen3_5GatedDeltaNet

from routing.models.default_model import default_model_folder
from routing.training.language_model.parameters import parameter_counts
from train_models import gdn_hybrid_cache, routed_mixer
from train_models.configuration_gdn_hybrid import GdnHybridConfig
from train_models.gdn_hybrid_cache import GdnHybridCache
from train_models.modeling_gdn_hybrid import TIME_STEPS, GdnHybridForCausalLM

LENGTHS = (7, 3, 12)
ROUTED = ["gdn", "routed", "routed", "softmax"]
# Softmax first, a static block between routed ones, a routed block last.
MIXED = ["softmax", "routed", "gdn", "routed"]
PATTERNS = {
    "routed": {},
    "mixed": {"pattern": MIXED},
    "random": {"router": "random", "random_share": 0.4},
    "static": {"pattern": ["gdn", "gdn", "softmax"]},
    "all-gdn": {"pattern": ["gdn"] * 3},
    "all-softmax": {"pattern": ["softmax"] * 2},
}
every_pattern = pytest.mark.parametrize("fields", PATTERNS.values(), ids=PATTERNS)
both_sides = pytest.mark.parametrize("side", ("left", "right"))


def tiny_fields(**fields) -> dict:
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    return sizes | {"attn_implementation": "sdpa"} | fields


def hybrid(seed: int = 0, **fields) -> GdnHybridForCausalLM:
    """A model whose mixers matter and whose router decides differently from token to token."""
    torch.manual_seed(seed)
    model = GdnHybridForCausalLM(GdnHybridConfig(**tiny_fields(tie_word_embeddings=False, **fields))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 1.0 if "router" in name else 0.3)
    return model


def hard(logits: torch.Tensor) -> torch.Tensor:
    """Gates of 0 and 1 as inference decides."""
    return one_hot(logits.argmax(-1), 2).float()


def one_row_logits(model, row: torch.Tensor, gates: torch.Tensor | None) -> torch.Tensor:
    """The oracle: logits [T, V] of one row, both branches of transformers' own for all tokens, blended.

    Args:
        gates: [T, R, 2].
    """
    inner, hidden = model.model, model.model.embed_tokens(row[None])
    positions = torch.arange(len(row))[None]
    rotary = inner.rotary_emb(hidden, positions)
    mask = torch.zeros(1, 1, len(row), len(row)).masked_fill(positions > positions.T, torch.finfo().min)
    routed = 0
    for kind, block in zip(model.config.pattern, inner.layers, strict=True):
        normed = block.input_layernorm(hidden)
        if kind != "softmax":
            linear = Qwen3_5GatedDeltaNet.forward(block.linear_attn, normed)
        if kind != "gdn":
            softmax = block.self_attn(normed, position_embeddings=rotary, attention_mask=mask)[0]
        if kind == "routed":
            own, routed = gates[:, routed], routed + 1
            mixed = own[:, :1] * linear + own[:, 1:] * softmax
        else:
            mixed = linear if kind == "gdn" else softmax
        hidden = hidden + mixed
        hidden = hidden + block.mlp(block.post_attention_layernorm(hidden))
    return model.lm_head(inner.norm(hidden))[0]


def row_gates(output, row: int, real: torch.Tensor) -> torch.Tensor | None:
    return None if output.mechanisms is None else one_hot(output.mechanisms[row, real], 2).float()


@every_pattern
@both_sides
@pytest.mark.parametrize("attention", ("sdpa", "eager"))
@torch.no_grad()
def test_gathered_tokens_equal_both_branches_of_each_row_alone(fields, side, attention):
    model = hybrid(**fields, attn_implementation=attention)
    rows = random_rows(LENGTHS)
    ids, mask = padded(rows, side)
    for cached in (False, True):
        output = model(ids, attention_mask=mask, use_cache=cached)
        if output.mechanisms is not None:
            share = output.mechanisms[mask.bool()].float().mean(0)
            assert share.min() > 0.1 and share.max() < 0.9
        for number, (row, own) in enumerate(zip(rows, mask.bool(), strict=True)):
            expected = one_row_logits(model, row, row_gates(output, number, own))
            assert_near(output.logits[number, own], expected)


@pytest.mark.parametrize("attention", ("sdpa", "eager"))
@torch.no_grad()
def test_queries_of_long_rows_attend_some_at_a_time(attention, monkeypatch):
    monkeypatch.setattr(routed_mixer, "QUERIES", 3)
    model = hybrid(pattern=MIXED, attn_implementation=attention)
    rows = random_rows((30, 19))
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        whole = model(ids, attention_mask=mask, draw_mechanisms=hard, use_cache=False).logits
        assert_near(model(ids, attention_mask=mask).logits[mask.bool()], whole[mask.bool()])
        cache = model(ids[:, :11], attention_mask=mask[:, :11]).past_key_values
        rest = model(ids[:, 11:], attention_mask=mask, past_key_values=cache).logits
        assert_near(rest[mask[:, 11:].bool()], whole[:, 11:][mask[:, 11:].bool()])


@torch.no_grad()
def test_padding_on_the_right_without_a_mask_changes_no_earlier_token():
    """As lm-eval does it."""
    model, rows = hybrid(), random_rows(LENGTHS)
    logits = model(padded(rows, "right")[0]).logits
    for row, found in zip(rows, logits, strict=True):
        assert_near(found[: len(row)], model(row[None]).logits[0])


@pytest.mark.parametrize("fields", ({"pattern": ["gdn", "softmax", "gdn"]}, PATTERNS["all-gdn"]), ids=str)
@torch.no_grad()
def test_static_patterns_are_the_stock_model(fields):
    model = hybrid(**fields)
    config = model.config
    stock = Qwen3_5ForCausalLM(
        Qwen3_5TextConfig(
            **tiny_fields(),
            num_hidden_layers=config.num_hidden_layers,
            layer_types=config.layer_types,
            head_dim=config.head_dim,
            num_key_value_heads=4,
            linear_num_key_heads=4,
            linear_num_value_heads=4,
            linear_key_head_dim=config.head_dim,
            linear_value_head_dim=config.head_dim,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0},
        )
    ).eval()
    stock.load_state_dict(model.state_dict())
    ids, mask = padded(random_rows(LENGTHS), "left")
    expected = stock(ids, attention_mask=mask, use_cache=False).logits[mask.bool()]
    assert_near(model(ids, attention_mask=mask).logits[mask.bool()], expected)


@pytest.mark.parametrize("pattern", (ROUTED, MIXED), ids=("routed", "mixed"))
@both_sides
@torch.no_grad()
def test_training_with_hard_gates_is_inference(pattern, side):
    model = hybrid(pattern=pattern)
    ids, mask = padded(random_rows(LENGTHS), side)
    trained = model(ids, attention_mask=mask, draw_mechanisms=hard)
    free = model(ids, attention_mask=mask)
    assert torch.equal(trained.mechanisms[mask.bool()], free.mechanisms[mask.bool()])
    assert_near(trained.logits[mask.bool()], free.logits[mask.bool()])


@torch.no_grad()
def test_soft_gates_blend_both_branches():
    model, (row,) = hybrid(pattern=MIXED), random_rows((9,))
    gates = torch.rand(1, 9, 2, 2, generator=torch.Generator().manual_seed(5))
    output = model(row[None], draw_mechanisms=lambda logits: gates)
    assert_near(output.logits[0], one_row_logits(model, row, gates[0]))
    assert torch.equal(output.mechanisms, gates.argmax(-1))


# Caches.


@every_pattern
@pytest.mark.parametrize("chunks", ([1] * 12, [5, 1, 1, 5], [2, 3, 7], [1, 11]), ids=str)
@torch.no_grad()
def test_chunks_on_a_cache_equal_the_whole(fields, chunks):
    model = hybrid(**fields)
    ids = torch.stack(random_rows((12, 12)))
    whole = model(ids, use_cache=False)
    cache, found, taken = None, [], []
    for part in ids.split(chunks, 1):
        output = model(part, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        found.append(output.logits)
        taken.append(output.mechanisms)
    assert_near(torch.cat(found, 1), whole.logits)
    if whole.mechanisms is not None:
        assert torch.equal(torch.cat(taken, 1), whole.mechanisms)
    assert cache.get_seq_length() == 12


@every_pattern
@torch.no_grad()
def test_padding_anywhere_leaves_no_trace_in_the_cache(fields):
    """Rows of two parts: each padded on either side, so that there is padding between real tokens as well."""
    model = hybrid(**fields)
    first, second = random_rows(LENGTHS), random_rows((2, 9, 1), seed=1)
    for sides in (("left", "left"), ("left", "right"), ("right", "left"), ("right", "right")):
        (ids, mask), (more_ids, more_mask) = padded(first, sides[0]), padded(second, sides[1])
        cache = model(ids, attention_mask=mask, use_cache=True).past_key_values
        both = torch.cat([mask, more_mask], 1)
        output = model(more_ids, attention_mask=both, past_key_values=cache)
        last = random_rows((1, 1, 1), seed=2)
        ones = torch.ones(3, 1, dtype=torch.long)
        final = model(torch.stack(last), attention_mask=torch.cat([both, ones], 1), past_key_values=cache)
        for number, parts in enumerate(zip(first, second, last, strict=True)):
            whole = model(torch.cat(parts)[None], use_cache=False).logits[0]
            real = more_mask[number].bool()
            assert_near(output.logits[number, real], whole[len(parts[0]) : -1])
            assert_near(final.logits[number, 0], whole[-1])


@torch.no_grad()
def greedy(model, row: torch.Tensor, new_tokens: int) -> torch.Tensor:
    """All computed anew for each token."""
    for _ in range(new_tokens):
        row = torch.cat([row, model(row[None], use_cache=False).logits[0, -1].argmax()[None]])
    return row[-new_tokens:]


@every_pattern
@torch.no_grad()
def test_generation_of_a_padded_batch_is_that_of_each_row_alone(fields):
    model, rows = hybrid(**fields), random_rows(LENGTHS)
    ids, mask = padded(rows, "left")
    found = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
    for row, tokens in zip(rows, found, strict=True):
        assert torch.equal(tokens[-6:], greedy(model, row, 6))


@pytest.mark.parametrize(
    "how",
    (
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "top_k": 0},
        {"do_sample": True, "num_return_sequences": 3},
        {"num_beams": 2, "do_sample": True},
    ),
    ids=str,
)
@torch.no_grad()
def test_beams_and_samples_with_a_cache_equal_those_without(how):
    model = hybrid()
    ids, mask = padded(random_rows(LENGTHS), "left")
    found = []
    for use_cache in (True, False):
        torch.manual_seed(1)
        arguments = {"max_new_tokens": 6, "pad_token_id": 0, "do_sample": False} | how
        found.append(model.generate(ids, attention_mask=mask, use_cache=use_cache, **arguments))
    assert torch.equal(*found)


@every_pattern
@torch.no_grad()
def test_generation_goes_on_from_a_returned_cache(fields):
    model = hybrid(**fields)
    ids = torch.stack(random_rows((6, 6)))
    arguments = {"do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True}
    first = model.generate(ids, max_new_tokens=3, **arguments)
    assert isinstance(first.past_key_values, GdnHybridCache)
    more = torch.cat([first.sequences, torch.stack(random_rows((4, 4), seed=3))], 1)
    # Given a mask, since generate() takes tokens of the padding id for padding otherwise.
    arguments |= {"attention_mask": torch.ones_like(more), "past_key_values": first.past_key_values}
    second = model.generate(more, max_new_tokens=4, **arguments)
    for row, tokens in zip(more, second.sequences, strict=True):
        assert torch.equal(tokens[-4:], greedy(model, row, 4))


@torch.no_grad()
def test_generation_feeds_long_prompts_in_chunks():
    model = hybrid()
    ids, mask = padded(random_rows(LENGTHS), "left")
    arguments = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    whole = model.generate(ids, **arguments)
    assert torch.equal(model.generate(ids, prefill_chunk_size=5, **arguments), whole)


@every_pattern
@torch.no_grad()
def test_rows_of_a_cache_are_repeated_selected_and_counted(fields):
    model = hybrid(**fields)
    ids = torch.stack(random_rows((5, 5, 5)))
    cache = model(ids, use_cache=True).past_key_values
    width, heads = 32, 4
    columns = sum(kind != "gdn" for kind in model.config.pattern) * 2 * width * 5
    states = sum(kind != "softmax" for kind in model.config.pattern) * (3 * width * 4 + heads * 8 * 8)
    assert cache.memory_bytes() == 4 * 3 * (columns + states) and cache.batch_size == 3
    repeated, selected = copy.deepcopy(cache), copy.deepcopy(cache)
    repeated.batch_repeat_interleave(2)
    selected.batch_select_indices(torch.tensor([2, 0]))
    token = torch.tensor([[7]])
    expected = model(token.expand(3, 1), past_key_values=cache).logits
    assert_near(model(token.expand(6, 1), past_key_values=repeated).logits, expected.repeat_interleave(2, 0))
    assert_near(model(token.expand(2, 1), past_key_values=selected).logits, expected[[2, 0]])
    cache.reset()
    assert cache.batch_size == -1 and cache.memory_bytes() == 0
    for rows in (2, 3):  # After a reset any number of rows may come.
        assert_near(model(ids[:rows], past_key_values=cache).logits, model(ids[:rows], use_cache=False).logits)
        cache.reset()


@torch.no_grad()
def test_keys_grow_in_place_and_copies_of_a_cache_part(monkeypatch):
    monkeypatch.setattr(gdn_hybrid_cache, "ROOM", 3)
    model = hybrid()
    ids, other = (torch.stack(random_rows((14, 14), seed=seed)) for seed in (0, 1))
    other[:, :6] = ids[:, :6]
    cache = model(ids[:, :4]).past_key_values
    model(ids[:, 4:6], past_key_values=cache)
    rooms = cache.layers[1].rooms
    assert cache.layers[1].keys.shape[2] == 6 and rooms[0].shape[2] == 9
    fork = copy.deepcopy(cache)
    for at in range(6, 14):
        fork.reorder_cache(torch.tensor([1, 0]))
        assert fork.layers[1].rooms == () and fork.layers[3].rooms == ()
        for tokens, own, order in ((ids, cache, [0, 1]), (other, fork, [(at + 1) % 2, at % 2])):
            whole = model(tokens[order, : at + 1], use_cache=False).logits
            assert_near(model(tokens[order, at : at + 1], past_key_values=own).logits[:, 0], whole[:, -1])
        assert (cache.layers[1].rooms[0] is rooms[0]) == (at < 9)


def test_wrong_caches_and_inputs_are_refused():
    model = hybrid()
    ids = torch.stack(random_rows((5, 5)))
    cache = model(ids).past_key_values
    with pytest.raises(TypeError, match="DynamicCache.*GdnHybridCache"):
        model(ids, past_key_values=DynamicCache(config=model.config))
    with pytest.raises(ValueError, match="holds 2 rows, the input has 1"):
        model(ids[:1], past_key_values=cache)
    with pytest.raises(ValueError, match="gradients cannot go through a cache"):
        model(ids[:, :1], past_key_values=cache)
    with pytest.raises(ValueError, match="cannot go back"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="cache_implementation='static'"):
        model.generate(ids, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ValueError, match="exactly one of input_ids"):
        model()
    with pytest.raises(ValueError, match=r"must be of shape \(2, 5\).*got \(2, 1, 5, 5\)"):
        model(ids, attention_mask=torch.ones(2, 1, 5, 5))
    with torch.no_grad(), pytest.raises(ValueError, match=r"must be of shape \(2, 6\).*got \(2, 1\)"):
        model(ids[:, :1], attention_mask=torch.ones(2, 1), past_key_values=cache)
    with pytest.raises(ValueError, match="output_attentions"):
        model(ids, output_attentions=True)
    with pytest.raises(ValueError, match="floating-point gates of shape"):
        model(ids, draw_mechanisms=lambda logits: logits.argmax(-1))


# What is computed.


@torch.no_grad()
def test_each_branch_reads_for_its_own_tokens_alone():
    model = hybrid(pattern=["gdn", "routed", "softmax"])
    block, counts = model.model.layers[1], {}

    def count(name):
        return lambda _, inputs, output: counts.__setitem__(name, inputs[0].numel() // inputs[0].shape[-1])

    reads = {"gdn": (block.linear_attn.in_proj_z, block.linear_attn.out_proj), "softmax": (block.self_attn.o_proj,)}
    for kind, modules in reads.items():
        for module in modules:
            module.register_forward_hook(count((kind, module)))
    block.self_attn.k_proj.register_forward_hook(count("keys"))
    block.linear_attn.in_proj_qkv.register_forward_hook(count("states"))
    took = model(torch.stack(random_rows((20, 20))), use_cache=False).mechanisms[..., 0]
    own = {"gdn": int((took == 0).sum()), "softmax": int((took == 1).sum())}
    assert all(0 < share < 40 for share in own.values())
    assert counts.pop("keys") == counts.pop("states") == 40
    assert counts == {(kind, module): own[kind] for kind, modules in reads.items() for module in modules}
    # Where all tokens read one memory and none is kept, the other is not written.
    model.model.router.weight.zero_()
    for bias, module, others in (([9.0, 0.0], "states", "keys"), ([0.0, 9.0], "keys", "states")):
        counts.clear()
        model.model.router.bias.copy_(torch.tensor(bias))
        model(torch.stack(random_rows((20, 20))), use_cache=False)
        assert counts[module] == 40 and others not in counts
        cache = model(torch.stack(random_rows((20, 20)))).past_key_values
        assert counts[others] == 40 and cache.get_seq_length() == 20


@torch.no_grad()
def test_offloaded_weights_compute_the_same():
    ids = torch.stack(random_rows((6, 6)))
    model = hybrid(pattern=MIXED)
    expected = model(ids, use_cache=False).logits
    cpu_offload(model, torch.device("cpu"))
    assert model.model.layers[1].linear_attn.A_log.is_meta
    cache = model(ids[:, :4]).past_key_values
    assert_near(model(ids[:, 4:], past_key_values=cache).logits, expected[:, 4:])


@torch.no_grad()
def test_random_router_keeps_its_share_whatever_the_batch_and_the_cache():
    model = hybrid(router="random", random_share=0.3, random_seed=4)
    assert model.model.router is None
    rows = random_rows((400, 300))
    ids, mask = padded(rows, "left")
    output = model(ids, attention_mask=mask, draw_mechanisms=hard)
    assert output.router_logits is None
    assert output.mechanisms[mask.bool()].float().mean(0).tolist() == pytest.approx([0.3, 0.3], abs=0.06)
    alone = model(rows[1][None]).mechanisms
    assert torch.equal(alone[0], output.mechanisms[1, mask[1].bool()])
    assert not torch.equal(alone, hybrid(router="random", random_share=0.3, random_seed=5)(rows[1][None]).mechanisms)
    each = hybrid(router="random", random_share=[0.1, 0.8], random_seed=4)(ids, attention_mask=mask).mechanisms
    assert each[mask.bool()].float().mean(0).tolist() == pytest.approx([0.1, 0.8], abs=0.06)
    for share, mechanism in ((0.0, 0), (1.0, 1)):
        took = hybrid(router="random", random_share=share)(ids).mechanisms
        assert bool((took == mechanism).all())


@torch.no_grad()
def test_outputs_of_a_forward():
    model = hybrid()
    ids = torch.stack(random_rows((6, 6)))
    output = model(ids, labels=ids, output_hidden_states=True)
    assert output.router_logits.shape == (2, 6, 2, 2) and output.router_logits.dtype == torch.float32
    assert torch.equal(output.mechanisms, output.router_logits.argmax(-1))
    assert len(output.hidden_states) == 5
    router = model.model.router
    assert_near(router(output.hidden_states[1]).unflatten(-1, (2, 2)), output.router_logits)
    logits = output.logits[:, :-1].flatten(0, 1)
    assert_near(output.loss, cross_entropy(logits, ids[:, 1:].flatten()))
    assert_near(model(ids, logits_to_keep=1).logits, output.logits[:, -1:])
    static = hybrid(**PATTERNS["static"])(ids, draw_mechanisms=hard)
    assert static.router_logits is None and static.mechanisms is None
    embedded = model(inputs_embeds=model.model.embed_tokens(ids))
    assert_near(embedded.logits, output.logits)


# Training.


def gradients(model, ids, draw) -> dict[str, torch.Tensor]:
    model.train().zero_grad()
    torch.manual_seed(2)
    output = model(ids, labels=ids, draw_mechanisms=draw)
    assert output.past_key_values is None
    output.loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_gradients_reach_the_router_and_both_mixers():
    model = hybrid()
    ids = torch.stack(random_rows((12, 12)))

    def draw(logits):
        return gumbel_softmax(logits, tau=1.0, hard=True)

    found = gradients(model, ids, draw)
    assert not [name for name, gradient in found.items() if gradient is None or not bool(gradient.abs().max() > 0)]
    model.activation_checkpointing_enable()
    again = gradients(model, ids, draw)
    for name, gradient in found.items():
        assert_near(again[name], gradient)
    model.activation_checkpointing_disable()
    free = gradients(model, ids, None)
    assert free["model.router.weight"] is None and free["model.layers.1.linear_attn.in_proj_z.weight"] is not None


def test_a_better_mechanism_gets_the_larger_gate():
    """The gradient of a gate is that of the loss along the branch: pushing against it lowers the loss."""
    model, ids = hybrid(), torch.stack(random_rows((12, 12)))
    with torch.no_grad():
        gates = hard(model(ids).router_logits)
    gates.requires_grad_()
    loss = model(ids, labels=ids, draw_mechanisms=lambda logits: gates).loss
    (slope,) = torch.autograd.grad(loss, gates)
    with torch.no_grad():
        moved = model(ids, labels=ids, draw_mechanisms=lambda logits: gates - 1e-2 * slope / slope.norm()).loss
    assert (moved - loss).item() == pytest.approx(-1e-2 * slope.norm().item(), rel=0.2)


def test_low_precision():
    model = hybrid()
    ids, mask = padded(random_rows(LENGTHS), "left")
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, attention_mask=mask, labels=ids, draw_mechanisms=hard).loss
        loss.backward()
        found = model(ids, attention_mask=mask, use_cache=True)
    assert loss.isfinite() and found.router_logits.dtype == torch.float32
    half = hybrid().to(torch.bfloat16)
    tokens = half.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert tokens.shape == (3, 16)


def test_initial_weights():
    torch.manual_seed(0)
    model = GdnHybridForCausalLM(GdnHybridConfig(**tiny_fields()))
    for block in model.model.layers[:3]:
        mixer = block.linear_attn
        steps = torch.nn.functional.softplus(mixer.dt_bias.detach())
        assert TIME_STEPS[0] <= steps.min() and steps.max() <= TIME_STEPS[1] and len(steps.unique()) > 1
        assert mixer.A_log.exp().min() >= 0.01 and mixer.A_log.exp().max() <= 16
        assert 0.015 < mixer.in_proj_qkv.weight.std() < 0.025
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.model.router.bias.any() and model.model.router.weight.any()
    assert not model.model.norm.weight.any()


# Configuration.


def test_mixers_have_equal_width_and_parameters():
    width = GdnHybridConfig().hidden_size
    with torch.device("meta"):
        block = GdnHybridForCausalLM(GdnHybridConfig()).model.layers[1]
    linear, softmax = block.linear_attn, block.self_attn
    assert linear.in_proj_qkv.weight.shape == (3 * width, width) and linear.in_proj_z.weight.shape == (width, width)
    assert softmax.k_proj.weight.shape == softmax.v_proj.weight.shape == (width, width)
    assert softmax.q_proj.weight.shape == (2 * width, width)  # queries and gates
    assert linear.out_proj.weight.shape == softmax.o_proj.weight.shape == (width, width)
    sizes = [sum(parameter.numel() for parameter in mixer.parameters()) for mixer in (linear, softmax)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def test_parameter_counts_by_hand():
    dense = {kind: parameter_counts(GdnHybridConfig(pattern=[kind] * 4)) for kind in ("gdn", "softmax")}
    width = 768
    assert dense["softmax"]["softmax"] == 4 * (5 * width**2 + 2 * 64) and dense["softmax"]["gdn"] == 0
    small = 2 * 12 * width + 2 * 12 + 3 * width * 4 + 64  # b and a, A and dt, convolution, norm
    assert dense["gdn"]["gdn"] == 4 * (5 * width**2 + small)
    assert dense["gdn"]["total"] == pytest.approx(dense["softmax"]["total"], rel=0.002)
    routed = parameter_counts(GdnHybridConfig())
    assert routed["router"] == 4 * width + 4 and routed["embeddings"] == 49152 * width
    assert routed["mlp"] == 4 * 3 * width * 3072 and routed["norms"] == 9 * width
    assert routed["total"] - routed["gdn_token"] == 2 * (3 * width**2 + 64)
    assert routed["total"] - routed["softmax_token"] == 2 * (2 * width**2 + 64)
    model = GdnHybridForCausalLM(GdnHybridConfig(**tiny_fields()))
    assert parameter_counts(model.config)["total"] == model.num_parameters()


def test_all_problems_of_a_configuration_at_once():
    with pytest.raises(ValueError) as error:
        GdnHybridConfig(
            vocab_size=0,
            linear_conv_kernel_dim=1,
            pattern=["gdn", "mamba"],
            router="best",
            random_share=2.0,
            random_seed=-1,
            num_hidden_layers=3,
        )
    text = str(error.value)
    for part in (
        "vocab_size must be a whole number >= 1, got 0",
        "linear_conv_kernel_dim must be a whole number >= 2, got 1",
        "pattern must be a list with one of gdn, softmax, routed for each block, got ['gdn', 'mamba']",
        "router must be one of learned, random, got 'best'",
        "random_share must lie between 0 and 1, got 2.0",
        "random_seed must be a whole number >= 0, got -1",
        "num_hidden_layers is the length of pattern; leave it out",
    ):
        assert part in text


@pytest.mark.parametrize(
    "fields, message",
    (
        ({"pattern": ["routed", "gdn"]}, "decisions are taken from the output of block 0"),
        ({"pattern": []}, "one of gdn, softmax, routed for each block"),
        ({"pattern": "gdn"}, "one of gdn, softmax, routed for each block"),
        ({"hidden_size": 100}, "both mixers have equal width; got None x 12 and 100"),
        ({"head_dim": 256}, "equal width; got 256 x 12 and 768"),
        ({"hidden_size": 36}, "head_dim must be even for rotary positions, got 3"),
        ({"random_share": [0.5]}, "random_share has 1 numbers for 2 routed blocks"),
        ({"random_share": [0.5, 2]}, r"random_share must lie between 0 and 1, got \[0.5, 2\]"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps must be a number above 0, got '1e-5'.*1.0e-5"),
        ({"rope_theta": "1e4"}, "rope_theta must be a number above 0"),
        ({"rope_parameters": 3}, "rope_parameters must be a mapping"),
        ({"hidden_act": "foo"}, "hidden_act must be one of .*silu.*, got 'foo'"),
        ({"attention_dropout": 1}, "attention_dropout must lie between"),
        ({"use_cache": "no"}, "use_cache must be true or false"),
    ),
    ids=str,
)
def test_wrong_configurations(fields, message):
    with pytest.raises(ValueError, match=message):
        GdnHybridConfig(**fields)


def test_default_configuration():
    config = GdnHybridConfig(rope_theta=5e4)
    assert config.pattern == ROUTED and config.routed_blocks == [1, 2] and config.head_dim == 64
    assert config.rope_parameters["rope_theta"] == 5e4
    assert GdnHybridConfig().rope_parameters["rope_theta"] == 1e4
    again = GdnHybridConfig(**config.to_dict())
    assert again.to_dict() == config.to_dict()


# Checkpoints elsewhere.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with a tiny model and the default tokenizer."""
    folder = tmp_path_factory.mktemp("hybrid")
    tokenizer = AutoTokenizer.from_pretrained(default_model_folder())
    model = hybrid(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model


@torch.no_grad()
def test_a_saved_folder_loads_as_it_was(checkpoint):
    folder, model = checkpoint
    loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(loaded).__module__.startswith("transformers_modules")
    ids = torch.stack(random_rows((9, 9)))
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    again = loaded.generate(ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(again, model.generate(ids, max_new_tokens=4, do_sample=False))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoConfig.from_pretrained(folder, trust_remote_code=False)


def test_stock_lm_eval_scores_rows_as_each_alone(checkpoint):
    folder, model = checkpoint
    texts = [("The river", " flows to the sea"), ("One", " two three"), ("A long way from home he saw", " a light")]
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(texts)]
    scores = []
    for batch_size in (1, 4):
        lm = HFLM(pretrained=str(folder), trust_remote_code=True, batch_size=batch_size, device="cpu", dtype="float32")
        scores.append([score for score, _ in lm.loglikelihood(requests, disable_tqdm=True)])
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    for pair, score in zip(texts, scores[0], strict=True):
        context, target = lm._encode_pair(*pair)
        with torch.no_grad():
            logits = model(torch.tensor([context + target])).logits[0].log_softmax(-1)
        alone = sum(logits[len(context) + at - 1, token].item() for at, token in enumerate(target))
        assert score == pytest.approx(alone, abs=1e-3)
    generated = lm.generate_until(
        [Instance("generate_until", {}, (text[0], {"until": ["\n\n"], "max_gen_toks": 4}), 0) for text in texts],
        disable_tqdm=True,
    )
    assert len(generated) == 3


def test_a_llama_checkpoint_is_refused(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="num_hidden_layers is the length of pattern"):
        GdnHybridForCausalLM.from_pretrained(tmp_path)
