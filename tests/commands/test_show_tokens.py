"""Tokens by what they took, on the console and as a page: the model's own decisions, whatever the characters."""

from __future__ import annotations

import pytest
import torch
from conftest import save_tiny_base
from test_report import Page
from transformers import AutoTokenizer

from routing.commands.show_tokens import main
from routing.commands.work.show_tokens import HIGH, LOW, Line, color, console_text, lines_of, pieces
from routing.common.errors import UserError
from routing.models.checkpoint import save_checkpoint
from routing.models.default_model import default_model_folder
from routing.models.families import routed_class
from train_models.configuration_gdn_hybrid import GdnHybridConfig
from train_models.modeling_gdn_hybrid import GdnHybridForCausalLM

TEXT = "Zoë paid 30 € for <b>it</b>\nin 東京 😀."
SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(default_model_folder())


def save_hybrid(folder, tokenizer, **fields):
    torch.manual_seed(0)
    config = GdnHybridConfig(vocab_size=len(tokenizer), initializer_range=0.5, **SMALL, **fields)
    GdnHybridForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory, tokenizer):
    return save_hybrid(tmp_path_factory.mktemp("hybrid"), tokenizer)


def test_pieces_make_up_the_text(tokenizer):
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    found = pieces(tokenizer, ids)
    assert len(found) == len(ids) and "".join(found) == TEXT
    assert "" in found and "�" not in "".join(found)  # A character of several tokens stands at its last one.


def test_shares_of_a_hybrid_are_what_it_decides(hybrid, tokenizer):
    tokens, lines = lines_of(hybrid, TEXT, 1024)
    model = GdnHybridForCausalLM.from_pretrained(hybrid).eval()
    mechanisms = model(torch.tensor([tokenizer(TEXT)["input_ids"]])).mechanisms[0]
    assert list(lines) == [1, 2] and 0 < mechanisms.sum() < mechanisms.numel()
    for place, block in enumerate((1, 2)):
        assert lines[block].shares == mechanisms[:, place].tolist() and len(tokens) == len(lines[block].shares)
        assert f"{mechanisms[:, place].float().mean():.1%}" in lines[block].title


def test_colors():
    assert (color(0.0), color(1.0)) == (LOW, HIGH)
    line = Line("t", [0.0, 1.0], ("gdn", "softmax"))
    text = console_text(["a", " b"], line)
    assert text.plain == "t\na b"
    assert [span.style for span in text.spans if "rgb" in str(span.style)] == [
        f"not bold black on rgb({r},{g},{b})" for r, g, b in (LOW, HIGH)
    ]


def test_console_and_page(hybrid, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    main([str(hybrid), "--file", str(tmp_path / "text.txt"), "--html", str(tmp_path / "out.html")])
    out = capsys.readouterr().out
    assert "block 1:" in out and "block 2:" in out and "Zoë paid 30 €" in out and "softmax" in out
    html = (tmp_path / "out.html").read_text(encoding="utf-8")
    page = Page(html)
    assert not page.tags & {"script", "link"} and "".join(page.texts).count(TEXT) == 2 and "&lt;" in html
    main([str(hybrid), "--text", TEXT, "--layer", "2", "--max_tokens", "3"])
    out = capsys.readouterr().out
    assert "block 1" not in out and "of 3 tokens" in out


def test_a_router_of_tokens_that_skips_layers(tmp_path, capsys):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    base = save_tiny_base(tmp_path / "base", 5, initializer_range=0.5, **sizes)
    fields = {"router": "prefix_token", "kept_layers": 2, "router_sizes": [8], "router_bias_init": 0.0}
    model = routed_class("llama").from_pretrained(base, **fields)
    torch.manual_seed(0)
    routers = {name: torch.randn_like(tensor) for name, tensor in model.model.routers.state_dict().items()}
    save_checkpoint(tmp_path / "own", str(base), routers, fields, "copy", {"arguments": {"model_id": str(base)}})
    tokens, lines = lines_of(tmp_path / "own", TEXT, 1024)
    assert list(lines) == [None, 2, 3, 4]
    by_layer = torch.tensor([lines[layer].shares for layer in (2, 3, 4)])
    assert torch.tensor(lines[None].shares).allclose(by_layer.mean(0)) and 0 < by_layer.mean() < 1
    main([str(tmp_path / "own"), "--text", TEXT])
    assert "layers from 2 on" in capsys.readouterr().out


def test_what_decides_nothing_for_tokens_is_refused(hybrid, tmp_path, tokenizer):
    with pytest.raises(UserError, match="its pattern is gdn-softmax"):
        main([str(save_hybrid(tmp_path / "static", tokenizer, pattern=["gdn", "softmax"])), "--text", TEXT])
    save_tiny_base(tmp_path / "base", 1, hidden_size=16, intermediate_size=16, num_attention_heads=2)
    with pytest.raises(UserError, match="router 'per_layer', which does not decide for each token"):
        main([str(tmp_path / "base"), "--text", TEXT])
    with pytest.raises(UserError, match="config.json cannot be read"):
        main([str(tmp_path / "nowhere"), "--text", TEXT])
    with pytest.raises(UserError, match="--layer 3: nothing is decided there; give one of 1, 2"):
        main([str(hybrid), "--text", TEXT, "--layer", "3"])
    with pytest.raises(UserError, match="(?s)--max_tokens 0.*must end in .html"):
        main([str(hybrid), "--text", TEXT, "--max_tokens", "0", "--html", "out.txt"])
    with pytest.raises(UserError, match="the text is empty"):
        main([str(hybrid), "--text", ""])
    with pytest.raises(UserError, match="cannot be read as text"):
        main([str(hybrid), "--file", str(tmp_path)])
