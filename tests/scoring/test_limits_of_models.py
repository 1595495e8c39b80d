"""What a model cannot compute is no verdict: logits that overflow, prompts beyond the context, tokens without a row."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from zoo import bring

from routing.common.errors import UserError
from routing.evaluation.budget import decided_routes
from routing.evaluation.lm import PromptRoutedLM
from routing.models.bases import load_base, load_stock
from routing.models.families import load_base_config, load_tokenizer
from routing.scoring import packed
from routing.scoring.context import context_tokens, fitting
from routing.scoring.finite import check_finite
from routing.scoring.packed import PathEvaluator
from routing.scoring.plain import Evaluator
from routing.scoring.requests import request_of
from routing.search.routes import full_route
from routing.tasks.examples import Example
from routing.training.end_to_end.lora import add_lora, lora_config, tied_problems
from routing.training.registry import OBJECTIVES
from routing.training.skeleton import own_precision

CHOICES = Example("colours", "Of which kind is it?", "red", ("red", "blue"), 0, "letter")
OPEN = Example("sums", "What is 1 + 2?", "3", checker="number")


def requests(tokenizer, *examples: Example):
    return [request_of(example, "auto", tokenizer) for example in examples]


@pytest.mark.parametrize("example", [CHOICES, OPEN], ids=["scored", "generated"])
@pytest.mark.parametrize("evaluator", [Evaluator, PathEvaluator])
def test_logits_that_overflow_are_an_error_and_no_verdict(evaluator, example):
    tokenizer = load_tokenizer(bring("overflows"))
    asked = requests(tokenizer, example)
    broken = load_base(bring("overflows"), torch.float16)
    with pytest.raises(UserError, match="not finite in float16.*--dtype bfloat16"):
        evaluator(broken, tokenizer).verdicts(asked, [full_route(4)])
    whole = load_base(bring("overflows"), torch.float32)
    assert len(evaluator(whole, tokenizer).verdicts(asked, [full_route(4)])) == 1


def test_logits_that_overflow_end_evaluation_and_calibration():
    tokenizer = load_tokenizer(bring("overflows"))
    stock = PromptRoutedLM(load_stock(bring("overflows"), torch.float16), tokenizer, 2)
    stock._requests = [SimpleNamespace(doc_id=0, idx=0, args=("a b", {"until": ["\n"], "max_gen_toks": 2}))]
    with pytest.raises(UserError, match="not finite in float16"):
        stock._loglikelihood_tokens([(("a", " b"), [5, 6], [7])], disable_tqdm=True)
    with pytest.raises(UserError, match="not finite in float16"):
        stock.generate_until(stock._requests, disable_tqdm=True)
    with pytest.raises(UserError, match="not finite in float16"):
        decided_routes(load_base(bring("overflows"), torch.float16), tokenizer, [[5, 6, 7]], 1)


def test_scores_that_are_no_numbers_are_refused():
    check_finite([0.0, -3.5], torch.float32)
    for value in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(UserError, match="in float32.*files"):
            check_finite([0.0, value], torch.float32)


def test_requests_beyond_the_context_are_left_out_and_counted(capsys):
    config, tokenizer = load_base_config(bring("short_context")), load_tokenizer(bring("short_context"))
    long = Example("sums", "word " * 200, "3", checker="number")
    found = fitting(requests(tokenizer, OPEN, long), config)
    assert [request.example for request in found] == [OPEN]
    assert "left out 1 of sums questions: longer than the 96 tokens" in capsys.readouterr().err
    with pytest.raises(UserError, match="all questions .1 of sums. are longer than the 96 tokens"):
        fitting(requests(tokenizer, long), config)
    # The choices, and the tokens that an answer may have, count too.
    prompt = request_of(OPEN, "auto", tokenizer)
    exact = SimpleNamespace(max_position_embeddings=len(prompt.prompt_ids) + prompt.max_new_tokens, vocab_size=400)
    assert fitting([prompt], exact) == [prompt]
    exact.max_position_embeddings -= 1
    with pytest.raises(UserError, match="longer"):
        fitting([prompt], exact)


def test_tokens_that_the_embedding_lacks_are_refused():
    tokenizer = load_tokenizer(bring("plain"))
    config = SimpleNamespace(max_position_embeddings=512, vocab_size=20)
    with pytest.raises(UserError, match="has 20 rows"):
        fitting(requests(tokenizer, OPEN), config)


def test_longrope_ends_where_rows_would_change_one_another():
    assert context_tokens(load_base_config(bring("rope_long"))) == 256
    assert context_tokens(load_base_config(bring("rope_yarn"))) == 512


def test_the_search_scales_layers_as_the_model_does():
    """Checkpoints of stochastic depth weigh what a layer adds; the last layer keeps the tokens that are asked for."""
    scales = [1.0, 0.7, 0.4, 0.9]
    tokenizer = load_tokenizer(bring("plain"))
    model = load_base(bring("plain"), torch.float32, residual_scale=scales)
    asked = requests(
        tokenizer, *(Example("c", f"Kind {n}?", "red", ("red", "blue dark"), 0, "letter") for n in range(6))
    )
    routes = [(1, 1, 1, 1), (1, 0, 1, 1), (0, 1, 2, 1), (1, 1, 1, 0), (2, 1, 1, 2), (1, 1, 0, 1)]
    packed, plain = PathEvaluator(model, tokenizer), Evaluator(model, tokenizer, 1)
    expected = [verdict.margin for verdict in plain.verdicts(asked, routes)]
    assert [verdict.margin for verdict in packed.verdicts(asked, routes)] == pytest.approx(expected, abs=1e-4)
    model.config.residual_scale = None
    assert [verdict.margin for verdict in plain.verdicts(asked, routes)] != pytest.approx(expected, abs=1e-2)


def test_a_lora_on_a_head_that_is_tied_is_refused():
    config = lora_config(SimpleNamespace(lora_targets="q_proj,lm_head", lora_rank=2, lora_alpha=4.0, lora_dropout=0.0))
    with pytest.raises(UserError, match="--lora_targets lm_head: .*tie_word_embeddings"):
        add_lora(load_base(bring("plain"), torch.float32), config)
    assert tied_problems("q_proj,lm_head", load_base_config(bring("untied"))) == []
    assert tied_problems("q_proj", load_base_config(bring("plain"))) == []


def test_mixed_precision_of_accelerate_is_left_aside_and_told(monkeypatch, capsys):
    from transformers import TrainingArguments

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    own_precision()
    assert "mixed precision (bf16) is left aside" in capsys.readouterr().err
    assert TrainingArguments(output_dir="unused", use_cpu=True, report_to="none").mixed_precision == "no"
    own_precision()
    assert not capsys.readouterr().err


def test_a_run_takes_the_card_that_it_sees_first():
    for name, objective in OBJECTIVES.items():
        kind = objective.arguments()
        (problem,) = [text for text in kind("r", objective=name, device="cuda:1").problems() if "--device" in text]
        assert "'cuda:1'" in problem and "CUDA_VISIBLE_DEVICES" in problem
        assert not [text for text in kind("r", objective=name, device="cpu").problems() if "--device" in text]


def test_labels_are_made_of_what_fits(tmp_path, monkeypatch, capsys):
    import sys

    from routing.commands import generate

    path = tmp_path / "long.jsonl"
    rows = [{"question": "word " * 5000, "answer": 4}, {"question": "What is 2 + 2?", "answer": 4}]
    for kept in (rows, rows[:1]):
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        words = ["--model", bring("plain"), "--dataset", path, "--num_simulations", 2, "--output_dir", tmp_path / "out"]
        monkeypatch.setattr(sys, "argv", ["data_generation.py", *map(str, words)])
        if kept == rows:
            with monkeypatch.context() as patch:
                patch.setattr(packed, "TIE", 1e9)  # All are near.
                generate.main()
            told = capsys.readouterr().err
            assert "left out 1 of long questions" in told and "near ties were decided by the plain evaluator" in told
            assert len((tmp_path / "out" / "labels.jsonl").read_text().splitlines()) == 1
            # The questions that a menu is made by are no longer either.
            menu = ["--search", "menu", "--menu", "influence:1", "--output_dir", str(tmp_path / "menu")]
            monkeypatch.setattr(sys, "argv", [*sys.argv[:5], *menu])
            generate.main()
            assert capsys.readouterr().err.count("left out 1 of long questions") == 2
        else:
            monkeypatch.setattr(sys, "argv", [*sys.argv[:-1], str(tmp_path / "other")])
            with pytest.raises(UserError, match="all questions"):
                generate.main()
