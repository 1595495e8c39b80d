"""The query router inside the model: what it reads, what it decides, and that it travels with the checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import save_tiny_base
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel

from routing.common.errors import UserError
from routing.evaluation.check import proofs
from routing.evaluation.check_query import plain_query_route
from routing.evaluation.flops import Flops
from routing.evaluation.lm import Row
from routing.models.checkpoint import save_checkpoint
from routing.models.config_fields import config_with
from routing.models.families import load_tokenizer, routed_class
from routing.models.query_encoder import (
    DEFAULT_ENCODER,
    encoder_fields,
    encoder_problems,
    encoder_tokenizer,
    load_encoder,
)
from routing.report.card import checkpoint_files
from routing.tasks.prompts import left_pad
from train_models.configuration_llama import RoutedLlamaConfig
from train_models.query_router import QueryHeads, QueryScores, pruned_counts, pruned_routes
from train_models.query_text import encoder_inputs, query_text
from train_models.routed_model import small_parts

LAYERS = 6
QUESTIONS = (
    "What is the capital of France?",
    "6 * 3 = 18\n7 + 5 =",
    "Functions: [{\"name\": \"get_weather\"}]\nHow warm is it in Oslo today, and will it rain tomorrow morning?",
    "yes",
)  # fmt: skip


def scores(layers, share: float) -> QueryScores:
    ratio = torch.logit(torch.tensor([share], dtype=torch.float64)).float()
    return QueryScores(torch.tensor([layers]), ratio, torch.tensor([-5.0]))


# Decisions by hand.


@pytest.mark.parametrize(("share", "count"), ((0.01, 0), (0.24, 1), (0.26, 1), (0.5, 2), (0.9, 4), (0.999, 4)))
def test_so_many_layers_are_pruned(share, count):
    assert pruned_counts(scores([0.0] * 4, share)).tolist() == [count]


def test_the_layers_of_highest_score_are_pruned_of_equal_ones_the_first():
    layers = torch.tensor([[0.1, 3.0, 0.1, 2.0], [1.0, 1.0, 1.0, 1.0]])
    assert pruned_routes(layers, torch.tensor([2, 1])).tolist() == [[1, 0, 1, 0], [0, 1, 1, 1]]
    assert pruned_routes(layers, torch.tensor([0, 4])).tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]


def test_a_drawn_share_keeps_within_the_model():
    for noise, count in ((0.0, 2), (40.0, 3), (1000.0, 4), (-1000.0, 0)):
        assert pruned_counts(scores([0.0] * 4, 0.5), noise=torch.tensor([noise])).tolist() == [count]


def test_a_bias_above_0_prunes_less():
    counts = [int(pruned_counts(scores([0.0] * 20, 0.5), bias)) for bias in (-9.0, -1.0, 0.0, 1.0, 9.0)]
    assert counts == sorted(counts, reverse=True) and counts[0] == 20 and counts[2] == 10 and counts[-1] == 0


def test_heads_give_one_number_for_the_share_of_each_query():
    torch.manual_seed(0)
    heads = QueryHeads(8, 5, LAYERS)
    heads.reset_parameters()
    found = heads(torch.randn(3, 8) * 100)
    # [B, 1] beside [B] would silently become [B, B].
    assert [tuple(part.shape) for part in found] == [(3, LAYERS), (3,), (3,)]
    assert bool(((found.log_std >= -7) & (found.log_std <= -3)).all())


# The checkpoint.


@pytest.fixture(scope="module", params=("copy", "reference"))
def checkpoint(request, tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("query"), request.param)


def make_checkpoint(folder: Path, save_base: str) -> Path:
    """A checkpoint with adapters, whose query router decides differently for different questions."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    base = save_tiny_base(folder / "base", LAYERS, **sizes)
    inner = encoder_tokenizer(DEFAULT_ENCODER)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(inner), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        initializer_range=0.3,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder / "encoder")
    inner.save_pretrained(folder / "encoder")
    encoder = str(folder / "encoder")
    fields = {"router": "query", "query_encoder": encoder_fields(encoder), "skip_action": "adapter", "adapter_size": 4}
    model = routed_class("llama").from_pretrained(base, **fields)
    load_encoder(model, encoder, load_tokenizer(str(base)))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in [*model.model.routers.heads.parameters(), *model.model.adapters.parameters()]:
            parameter.normal_(0.0, 0.5)
        model.model.routers.heads.ratio_out.weight.mul_(0.05)  # Shares between nothing and all.
    info = {"arguments": {"model_id": str(base), "objective": "orpo"}, "datasets": []}
    save_checkpoint(
        folder / "checkpoint", str(base), small_parts(model.model), fields, save_base, info, encoder=encoder
    )
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def loaded(checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True).eval()
    return model, AutoTokenizer.from_pretrained(checkpoint)


def prompts(tokenizer) -> list[list[int]]:
    return [tokenizer(question)["input_ids"] for question in QUESTIONS]


@torch.no_grad()
def routes_alone(model, tokenizer) -> list[list[int]]:
    found = []
    for prompt in prompts(tokenizer):
        model(torch.tensor([prompt]))
        found += model.last_routes.tolist()
    return found


def test_each_row_of_a_batch_is_routed_as_alone(loaded):
    model, tokenizer = loaded
    alone = routes_alone(model, tokenizer)
    assert len(set(map(tuple, alone))) >= 3 and any(0 in route for route in alone)
    rows = prompts(tokenizer)
    width = max(map(len, rows))
    left, mask = map(torch.tensor, left_pad(rows, tokenizer.pad_token_id))
    with torch.no_grad():
        for inputs in (
            {"input_ids": left, "attention_mask": mask},
            {"input_ids": torch.tensor([row + [0] * (width - len(row)) for row in rows])},  # as lm-eval pads, no mask
        ):
            model(**inputs)
            assert model.last_routes.tolist() == alone


def test_the_route_is_that_of_the_plain_way(loaded):
    model, tokenizer = loaded
    for prompt, route in zip(prompts(tokenizer), routes_alone(model, tokenizer), strict=True):
        expected, margin = plain_query_route(model, prompt)
        assert margin > 1e-4 and list(expected) == route


def test_the_text_is_that_of_the_whole_prompt(loaded):
    model, tokenizer = loaded
    for question, prompt in zip(QUESTIONS, prompts(tokenizer), strict=True):
        ids = torch.tensor([[tokenizer.pad_token_id] * 3 + prompt])
        mask = torch.tensor([[False] * 3 + [True] * len(prompt)])
        # Functions and question alike: a router that was trained on both must not be asked with the query alone.
        assert model.model.routers.texts(ids, mask) == [query_text(tokenizer, prompt)] == [question]


def test_a_long_text_is_read_from_its_end():
    tokenizer = encoder_tokenizer(DEFAULT_ENCODER)
    ids, mask = encoder_inputs(tokenizer, ["one two three four five six", "six"], 5)
    assert tokenizer.convert_ids_to_tokens(ids[0]) == ["[CLS]", "four", "five", "six", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(ids[1])[2:] == ["[CLS]", "six", "[SEP]"] and mask[1].tolist() == [
        0,
        0,
        1,
        1,
        1,
    ]


def test_train_mode_changes_no_decision(loaded):
    model, tokenizer = loaded
    expected = routes_alone(model, tokenizer)
    model.train()
    try:
        assert routes_alone(model, tokenizer) == expected
    finally:
        model.eval()


@torch.no_grad()
def test_the_route_is_decided_once_and_kept(loaded, monkeypatch):
    model, tokenizer = loaded
    ids, mask = map(torch.tensor, left_pad(prompts(tokenizer), tokenizer.pad_token_id))
    asked = []
    decide = model.model.routers.decide
    monkeypatch.setattr(
        model.model.routers, "decide", lambda texts, config: asked.append(texts) or decide(texts, config)
    )
    for more in ({}, {"num_beams": 3}, {"use_cache": False}, {"do_sample": True, "num_return_sequences": 2}):
        asked.clear()
        arguments = {"do_sample": False, "max_new_tokens": 4, "pad_token_id": 0} | more
        output = model.generate(ids, attention_mask=mask, **arguments)
        copies = more.get("num_beams", more.get("num_return_sequences", 1))
        assert [sorted(set(texts)) for texts in asked] == [sorted(QUESTIONS)] and len(asked[0]) == 4 * copies
        if not more:
            routes = torch.tensor(routes_alone(model, tokenizer))
            assert torch.equal(output, model.generate(ids, attention_mask=mask, routes=routes, **arguments))


@torch.no_grad()
def test_prompt_lengths_hide_the_continuation(loaded):
    model, tokenizer = loaded
    rows = prompts(tokenizer)
    expected = routes_alone(model, tokenizer)
    for prompt, route in zip(rows, expected, strict=True):
        model(torch.tensor([prompt + [500, 600, 700]]), prompt_lengths=torch.tensor([len(prompt)]))
        assert model.last_routes.tolist() == [route]


def test_saved_again_it_decides_alike_and_needs_nothing_else(loaded, tmp_path):
    model, tokenizer = loaded
    expected = routes_alone(model, tokenizer)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True).eval()
    assert routes_alone(again, AutoTokenizer.from_pretrained(tmp_path)) == expected
    files = checkpoint_files(tmp_path)
    assert "query_encoder/tokenizer.json" in files and "tokenizer.json" in files and "query_router.py" in files


def test_half_precision_leaves_the_decision_alone(checkpoint, loaded):
    expected = routes_alone(*loaded)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True, dtype=torch.bfloat16).eval()
    assert model.dtype == torch.bfloat16 and model.model.routers.encoder.dtype == torch.float32
    assert routes_alone(model, loaded[1]) == expected


def test_stock_lm_eval_routes_by_the_text(loaded):
    model, tokenizer = loaded
    pairs = [(question, answer) for question in QUESTIONS for answer in (" yes", " no way")]
    instances = [Instance("loglikelihood", {}, pair, at) for at, pair in enumerate(pairs)]
    found = {}
    for size in (1, 4):
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size)
        found[size] = [value for value, _ in lm.loglikelihood(instances, disable_tqdm=True)]
    assert found[1] == pytest.approx(found[4], abs=1e-3)
    with config_with(model, is_static_routing=True):
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
        dense = [value for value, _ in lm.loglikelihood(instances, disable_tqdm=True)]
    assert max(abs(a - b) for a, b in zip(dense, found[4])) > 0.1


def test_the_check_of_evaluation_holds(checkpoint, loaded):
    model, tokenizer = loaded
    stock = AutoModelForCausalLM.from_pretrained(checkpoint.parent / "base")
    found = proofs(stock, model, prompts(tokenizer), tokenizer.pad_token_id)
    assert all(proof.holds for proof in found), [proof.seen for proof in found]
    with config_with(model, pruned_layers=0):
        assert not proofs(stock, model, prompts(tokenizer), tokenizer.pad_token_id)[0].holds


def test_the_number_of_layers_can_be_fixed(loaded):
    model, tokenizer = loaded
    own = routes_alone(model, tokenizer)
    for count in (0, 2, LAYERS):
        with config_with(model, pruned_layers=count):
            found = routes_alone(model, tokenizer)
        assert [route.count(0) for route in found] == [count] * len(QUESTIONS)
        for route, free in zip(
            found, own, strict=True
        ):  # The scores stay the same, so the smaller set is in the larger.
            pruned, others = ({at for at, ran in enumerate(line) if not ran} for line in (route, free))
            assert pruned <= others or others <= pruned


def test_a_drawn_share_hangs_on_text_and_seed_alone(loaded):
    model, tokenizer = loaded
    found = []
    for seed in (0, 0, 1, 2, 3):
        with torch.no_grad():
            bias = model.model.routers.heads.ratio_out.bias.clone()
            model.model.routers.heads.ratio_out.bias[1] = 50  # the widest distribution
        with config_with(model, sample_ratio=True, random_seed=seed):
            found.append(routes_alone(model, tokenizer))
        with torch.no_grad():
            model.model.routers.heads.ratio_out.bias.copy_(bias)
    assert found[0] == found[1] and len({str(routes) for routes in [*found, routes_alone(model, tokenizer)]}) > 2


def test_a_share_is_drawn_from_the_normal_distribution():
    from statistics import mean, stdev

    from train_models.query_router import _standard_normal

    drawn = [_standard_normal(f"text {at}", 0) for at in range(2000)]
    assert abs(mean(drawn)) < 0.07 and abs(stdev(drawn) - 1) < 0.05
    assert _standard_normal("text", 0) != _standard_normal("text", 1)


def test_what_cannot_be_read_is_told(loaded):
    model, tokenizer = loaded
    with pytest.raises(ValueError, match="inputs_embeds do not tell. Give input_ids or routes"):
        model(inputs_embeds=torch.zeros(1, 3, 32))
    kept, model.model.routers.tokenizers = model.model.routers.tokenizers, None
    try:
        with pytest.raises(ValueError, match="no tokenizers.*AutoModelForCausalLM"):
            model(torch.tensor([[5, 6]]))
    finally:
        model.model.routers.tokenizers = kept


def test_wrong_fields_are_named_at_once():
    config = RoutedLlamaConfig(
        num_hidden_layers=4, router="query", skip_action="erase", pruned_layers=9, sample_ratio=2
    )
    with pytest.raises(ValueError) as caught:
        config.check_routing()
    for named in ("skip_action", "'erase'", "pruned_layers", "from 0 to 4", "sample_ratio", "query_encoder"):
        assert named in str(caught.value)


def test_other_encoders_are_refused_with_the_remedy(tmp_path):
    assert encoder_problems(DEFAULT_ENCODER) == []
    assert "cannot be loaded" in encoder_problems(str(tmp_path))[0]
    save_tiny_base(tmp_path / "llama", 1, hidden_size=32, intermediate_size=48, num_attention_heads=4)
    assert "of type 'llama'" in encoder_problems(str(tmp_path / "llama"))[0]
    with pytest.raises(UserError, match="type bert"):
        encoder_fields(str(tmp_path / "llama"))


def test_the_default_encoder_has_the_embeddings_of_its_authors():
    """all-MiniLM-L6-v2: related sentences are near, others are not (cosines of its model card's kind of example)."""
    config = RoutedLlamaConfig(
        num_hidden_layers=2, hidden_size=32, intermediate_size=32, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=50, router="query", query_encoder=encoder_fields(DEFAULT_ENCODER),
    )  # fmt: skip
    model = routed_class("llama")(config).eval()
    load_encoder(model, DEFAULT_ENCODER, None)
    found = model.model.routers.embed_texts(
        ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    )
    near, far = (torch.cosine_similarity(found[0], other, dim=0).item() for other in found[1:])
    assert near == pytest.approx(0.666, abs=0.01) and far == pytest.approx(0.1046, abs=0.01)


def test_flops_count_encoder_and_adapters(loaded):
    model, _ = loaded
    flops = Flops(model, all_logits=False)
    full, pruned = (flops.of(Row(route, 10, 3), decided=False) for route in ((1,) * LAYERS, (0,) + (1,) * (LAYERS - 1)))
    tokens = 12
    layer = tokens * flops.layers[0] + tokens * (tokens + 1) / 2 * flops.attention
    assert full - pruned == pytest.approx(layer - tokens * 2 * 2 * 32 * 4)
    encoder = sum(part.weight.numel() for part in model.model.routers.encoder.modules() if hasattr(part, "in_features"))
    assert flops.of(Row((1,) * LAYERS, 10, 3), decided=True) - full == pytest.approx(10 * 2 * encoder)
