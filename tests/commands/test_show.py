"""`dlr show`: what is shown of every kind of router is what the model does, on the terminal and as a page."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import save_tiny_base, save_tiny_checkpoint, tiny_tokenizer
from looked_at import FIELDS, LAYERS, MENU, SIZES, hybrid, routed
from rich.console import Console
from test_report import Page
from transformers import LlamaForCausalLM

from routing.commands.show import main
from routing.common.errors import UserError
from routing.evaluation import look as look_module
from routing.evaluation.check_menu import plain_menu_route
from routing.evaluation.knobs import Knob, fields_at, knob_of, knob_problems
from routing.evaluation.look import Question, look, question_of_text
from routing.evaluation.look_rows import pieces
from routing.models.config_fields import config_with
from routing.report.look_page import looks_page, page_of_prompt
from routing.report.look_text import look_text
from routing.report.look_words import MARKS, summary
from routing.scoring.plain import PLAIN_GREEDY, Evaluator
from routing.scoring.prompting import DEFAULT, Prompting
from routing.scoring.requests import request_of
from routing.tasks.examples import Example
from train_models.router_kinds import KINDS

TEXT = "Zoë paid 30 € for <b>it</b>\nin 東京 😀."
RUN = {"run": 1, "repeat": 2, "skip": 0, "adapter": 0}
CELL = r'<td class="(\w+)"><span aria-hidden="true">(.)</span><span class="said">(.*?)</span>'
OPEN = Example("own", "2 + 3 =", "5", checker="number")
CHOICES = Example("own", "A stone is", "hard", choices=("hard", "soft and warm"), gold=0)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_base(tmp_path_factory.mktemp("base"), LAYERS, initializer_range=0.5, **SIZES)


@pytest.fixture(scope="module")
def models(base, tokenizer):
    return {kind: routed(base, tokenizer, kind) for kind in FIELDS}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("trained"), LAYERS)


def asked(tokenizer, text: str = TEXT) -> Question:
    return question_of_text(text, tokenizer, DEFAULT)


def question_of(example: Example, scoring: str, tokenizer) -> Question:
    request = request_of(example, scoring, tokenizer)
    return Question("own/1", request.prompt, request.prompt_ids, request)


def counts(row) -> list[int]:
    return [RUN[mark] for mark in row.marks]


def test_pieces_make_up_the_text(tokenizer):
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    found = pieces(tokenizer, ids)
    assert len(found) == len(ids) and "".join(found) == TEXT
    assert "" in found and "�" not in "".join(found)  # A character of several tokens stands at its last one.


def test_every_kind_is_looked_at():
    assert set(FIELDS) == set(KINDS)


@pytest.mark.parametrize("kind", [kind for kind in FIELDS if KINDS[kind].decides_for != "token"])
def test_the_row_of_a_prompt_is_its_route(models, tokenizer, kind):
    model, question = models[kind], asked(tokenizer)
    found = look(model, tokenizer, question, 4, repeats=0)
    model(torch.tensor([question.ids]))
    (row,) = found.rows
    assert counts(row) == model.last_routes[0].tolist()
    assert row.layers == found.routed.layers == sum(counts(row)) and found.full.layers == LAYERS
    assert (found.router, found.depth, bool(found.paths)) == (kind, LAYERS, kind == "menu")


@pytest.mark.parametrize("kind", ("prefix_token", "random_token"))
@torch.no_grad()
def test_the_rows_of_tokens_are_what_decoding_took(models, tokenizer, kind):
    model, question = models[kind], asked(tokenizer)
    found = look(model, tokenizer, question, 4, repeats=0)
    ids = torch.tensor([question.ids])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, **PLAIN_GREEDY)[0].tolist()
    parts = [row.part for row in found.rows]
    assert parts == ["prompt"] * len(question.ids) + ["answer"] * (len(parts) - len(question.ids))
    assert len(question.ids) < len(parts) <= len(output)
    cache, gates = None, []
    for token in output[: len(parts)]:  # One by one, as in decoding.
        cache = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True).past_key_values
        gates.append(model.model.last_gates[0, 0].int().tolist())
    rows = [counts(row) for row in found.rows]
    assert [row[2:] for row in rows] == gates and all(row[:2] == [1, 1] for row in rows)
    skipped = "adapter" if kind == "prefix_token" else "skip"
    assert {mark for row in found.rows for mark in row.marks} == {"run", skipped}
    assert found.routed.layers == sum(map(sum, rows)) / len(rows) and found.decides_for == "token"


def test_what_paths_are_worth_is_what_the_router_decides_by(base, tokenizer):
    stock = LlamaForCausalLM.from_pretrained(base).eval()
    taken = set()
    for cost in (-0.5, 0.01, 0.5):
        model = routed(base, tokenizer, "menu", cost=cost)
        found = look(model, tokenizer, asked(tokenizer), 2, repeats=0)
        route, margin = plain_menu_route(stock, model, list(asked(tokenizer).ids))
        (own,) = [path for path in found.paths if path.taken]
        taken.add(own.marks)
        assert [counts(path) for path in found.paths] == MENU and counts(own) == list(route) == counts(found.rows[0])
        worths = sorted(path.worth for path in found.paths)
        assert worths[-1] == own.worth and worths[-1] - worths[-2] == pytest.approx(margin, abs=1e-4)
        errors = (0.0, 0.01, 0.02)
        for path, error in zip(found.paths, errors, strict=True):
            assert path.worth == pytest.approx(path.reward - cost * path.layers - 0.5 * error, abs=1e-4)
    assert len(taken) > 1


def test_the_full_answer_is_that_of_the_stock_model(base, models, tokenizer):
    stock, question = LlamaForCausalLM.from_pretrained(base).eval(), asked(tokenizer, "one two")
    ids = torch.tensor([question.ids])
    own = stock.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, **PLAIN_GREEDY)
    text = tokenizer.decode(own[0, ids.shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    routed_texts = set()
    for kind in ("per_layer", "prefix_token", "none"):
        found = look(models[kind], tokenizer, question, 6, repeats=0)
        assert found.full.text == text and found.full.right is None
        assert not models[kind].config.is_static_routing
        routed_texts.add(found.routed.text)
    assert routed_texts - {text}


@pytest.mark.parametrize(("example", "scoring"), ((OPEN, "generate"), (CHOICES, "loglikelihood")))
def test_questions_are_judged_as_everywhere(models, tokenizer, example, scoring):
    model, question = models["per_layer"], question_of(example, scoring, tokenizer)
    found = look(model, tokenizer, question, repeats=0)
    for answer, static in ((found.full, True), (found.routed, False)):
        with config_with(model, is_static_routing=static):
            (verdict,) = Evaluator(model, tokenizer, score="accuracy").verdicts([question.request], None)
        assert (answer.text, answer.right) == (verdict.output, verdict.correct)
    assert f"Right answer: {example.answer}" in look_text(found).plain


def test_times_are_taken_in_turn_and_the_median_counts(models, tokenizer, monkeypatch):
    model, moments, seen = models["menu"], [0.0], []
    lasting = iter([1.0, 2.0, 5.0, 2.0, 1.5, 9.0])
    generate = look_module._Asked._generate

    def counted(self, limit, **ends):
        if "min_new_tokens" in ends:
            seen.append((model.config.is_static_routing, limit, ends["min_new_tokens"]))
            moments[0] += next(lasting)
        return generate(self, limit, **ends)

    monkeypatch.setattr(look_module._Asked, "_generate", counted)
    monkeypatch.setattr(look_module.time, "perf_counter", lambda: moments[0])
    found = look(model, tokenizer, asked(tokenizer), 4)
    assert (found.full.seconds, found.routed.seconds) == (1.5, 2.0)
    assert [static for static, *_ in seen] == [True, False] * 3
    assert {tokens for _, *both in seen for tokens in both} == {found.timed_tokens}
    assert "takes 1.33 of the time: 2.000 s against 1.500 s for the prompt and" in summary(found)
    assert "(median of 3, in turn, cpu)" in summary(found)


def test_a_hybrid_shows_what_each_token_took(tokenizer):
    model, question = hybrid(tokenizer), asked(tokenizer)
    found = look(model, tokenizer, question, 3, repeats=1)
    mechanisms = model(torch.tensor([question.ids])).mechanisms[0]
    assert found.full is None and found.routed.seconds > 0 and found.depth == 4
    for row, took in zip(found.rows, mechanisms.tolist(), strict=False):
        assert row.marks == ("gdn", *(("gdn", "softmax")[one] for one in took), "softmax") and row.layers == 4
    assert (
        "block 0 0%" in summary(found) and "block 3 100%" in summary(found) and "no layers are saved" in summary(found)
    )
    static = look(hybrid(tokenizer, pattern=["gdn", "softmax"]), tokenizer, question, 3, repeats=0)
    assert {row.marks for row in static.rows} == {("gdn", "softmax")}
    choices = look(model, tokenizer, question_of(CHOICES, "loglikelihood", tokenizer), 3, repeats=0)
    assert choices.routed.right is None


@pytest.fixture(scope="module")
def looks(models, tokenizer):
    """Of every kind, and a hybrid."""
    found = {kind: look(model, tokenizer, asked(tokenizer), 3, repeats=1) for kind, model in models.items()}
    return found | {"hybrid": look(hybrid(tokenizer), tokenizer, asked(tokenizer), 3, repeats=1)}


def test_the_terminal_shows_signs(looks):
    assert len({mark.sign for mark in MARKS.values()}) == len({mark.words for mark in MARKS.values()}) == len(MARKS)
    for kind, found in looks.items():
        lines = look_text(found).plain.splitlines()
        for row in (*found.rows, *found.paths):
            signs = "".join(MARKS[mark].sign for mark in row.marks)
            assert any(re.search(rf" {re.escape(signs)}  ", f"{line}  ") for line in lines), (kind, signs)
    assert "prompt           12-11  5" in look_text(looks["none"]).plain
    assert re.search(r"path 2           112--  +4 +-?\d+\.\d{3} +-?\d+\.\d{3}", look_text(looks["menu"]).plain)
    console = Console(force_terminal=True, color_system="truecolor", width=200)
    with console.capture() as captured:
        console.print(look_text(looks["none"]))
    assert "48;2;230;159;0m2" in captured.get()


def test_long_and_deep_models_keep_their_columns(looks):
    deep = replace(looks["none"], depth=25, rows=(replace(looks["none"].rows[0], marks=("run",) * 25, layers=25),))
    lines = look_text(deep).plain.splitlines()
    ones = next(line for line in lines if line.startswith("layers"))
    tens = lines[lines.index(ones) - 1]
    (row,) = [line for line in lines if line.startswith("prompt ")]
    assert ones.index("0123456789012345678901234") == row.index("1" * 25)
    assert tens[ones.index("0") + 10] == "1" and tens[ones.index("0") + 20] == "2"


def test_a_page_can_be_read_without_colours_and_scripts(looks):
    text = looks_page(list(looks.values()), "Routes", {"checkpoint": "<c>"})
    page = Page(text)
    assert not page.tags & {"script", "link", "img"} and "http" not in text
    assert page.links == [f"#look-{at}" for at in range(len(looks))] and set(page.links) <= {
        f"#{id}" for id in page.ids
    }
    assert "".join(page.texts).count(TEXT) == len(looks)
    for at, found in enumerate(looks.values()):
        own = text[text.index(f'id="look-{at}"') :]
        own = own[: own.index("</section>")]
        tables = re.findall(r"<table.*?</table>", own, re.S)
        parts = {row.part for row in found.rows}
        assert len(tables) == len(parts) + bool(found.paths)
        for table in tables:
            assert "<caption>" in table and table.count('<th scope="col">') >= found.depth
        lines = [
            line for table in tables for line in re.findall(r"<tr[^>]*>(.*?)</tr>", table.split("<tbody>")[1], re.S)
        ]
        for line, row in zip(lines, (*found.rows, *found.paths), strict=True):
            cells = re.findall(
                r'<td class="(\w+)"><span aria-hidden="true">(.)</span><span class="said">(.*?)</span>', line
            )
            assert cells == [(mark, MARKS[mark].sign, MARKS[mark].words) for mark in row.marks]
            assert line.startswith('<th scope="row">')
        assert summary(found).replace("'", "&#x27;") in own
    menu = text[text.index('id="look-6"') :]
    assert menu.count('<tr class="taken"') == 1 and menu.count("(taken)") == 1 and "estimated reward" in menu


def test_the_page_of_a_prompt(checkpoint):
    text = page_of_prompt(checkpoint, TEXT, new_tokens=2, repeats=1)
    assert "".join(Page(text).texts).count(TEXT) == 1 and "Routes of checkpoint" in text and "of the time" in text


def test_command(checkpoint, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    main(
        [str(checkpoint), "--file", str(tmp_path / "text.txt"), "--html", str(tmp_path / "out.html"), "--repeats", "1"]
    )
    out = capsys.readouterr().out
    assert "Zoë paid 30 €" in out and "Every layer once (5 layers, " in out and "per_layer, decides once" in out
    assert TEXT in "".join(Page((tmp_path / "out.html").read_text(encoding="utf-8")).texts)
    words = ["--dataset", "arithmetic", "--num_samples", "2", "--repeats", "0", "--html", str(tmp_path / "two.html")]
    main([str(checkpoint), *words, "--budget", "1e9"])
    out = capsys.readouterr().out
    assert out.count("arithmetic/") == 2 and out.count("22222  10") == 2 and "route_bias 1e+09" in out
    assert Page((tmp_path / "two.html").read_text(encoding="utf-8")).links == ["#look-0", "#look-1"]
    one = re.search(r"arithmetic/\w+", out)[0]
    main([str(checkpoint), "--id", one, "--repeats", "0"])
    shown = capsys.readouterr().out
    assert shown.count(one) == 1 and ("right" in shown or "wrong" in shown)
    main([str(checkpoint), "--text", TEXT, "--max_tokens", "1", "--repeats", "0", "--max_new_tokens", "1"])
    assert "of the time" not in capsys.readouterr().out


def test_a_text_is_asked_as_the_checkpoint_was_trained(tokenizer):
    chat = question_of_text("hello", tokenizer, Prompting(apply_chat_template=True))
    assert "hello" in chat.prompt and len(chat.prompt) > len("hello") and asked(tokenizer, "hello").prompt == "hello"


def test_what_moves_how_many_layers_run(models, tokenizer):
    knobs = {kind: knob_of(model.config) for kind, model in models.items()}
    assert {kind: knob and knob.field for kind, knob in knobs.items()} == {
        "per_layer": "route_bias", "embedding": "route_bias", "prefix": "route_bias", "prefix_token": "route_bias",
        "random_token": None, "query": "pruned_layers", "menu": "cost", "none": None,
    }  # fmt: skip
    assert knob_of(hybrid(tokenizer).config) is None and knob_of(models["menu"].config.to_dict()) == knobs["menu"]
    for kind, knob in knobs.items():
        if knob is None:
            assert "has no number that moves" in knob_problems(knob, kind, 1.0)[0]
            continue
        assert knob.low <= knob.value <= knob.high and not knob_problems(knob, kind, knob.value)
        layers = []
        for value in (knob.low, knob.value, knob.high):
            with config_with(models[kind], **fields_at(knob, value)):
                layers.append(look(models[kind], tokenizer, asked(tokenizer), 1, repeats=0).routed.layers)
        fewer = layers if knob.field == "route_bias" else layers[::-1]
        assert fewer[0] <= fewer[1] <= fewer[2] or knob.field == "pruned_layers", (kind, layers)
        assert min(layers) < max(layers), (kind, layers)
    biased = {"router": "menu", "cost": 0.02, "route_bias": 0.5, "num_hidden_layers": 5}
    assert knob_of(biased).value == pytest.approx(-0.48) and knob_of(biased).low == knob_of(biased).value
    assert fields_at(knob_of(biased), 0.1) == {"cost": 0.1, "route_bias": 0.0}
    query = knobs["query"]
    assert fields_at(query, -1) == {"pruned_layers": None} and fields_at(query, 2.0) == {"pruned_layers": 2}
    assert isinstance(query, Knob) and (query.low, query.high, query.value) == (-1, LAYERS, -1)
    for value in (1.5, 6, -2, float("nan"), float("inf")):
        assert knob_problems(query, "query", value)
    assert knob_problems(knobs["menu"], "menu", float("nan")) and not knob_problems(knobs["menu"], "menu", 7.0)


def test_what_is_wrong_is_refused(checkpoint, models, tokenizer, tmp_path):
    with pytest.raises(UserError, match="config.json cannot be read"):
        main([str(tmp_path / "nowhere"), "--text", TEXT])
    with pytest.raises(UserError, match="(?s)--max_tokens 0.*must end in .html"):
        main([str(checkpoint), "--text", TEXT, "--max_tokens", "0", "--html", "out.txt"])
    with pytest.raises(UserError, match="--budget nan must be a finite number"):
        main([str(checkpoint), "--text", TEXT, "--budget", "nan"])
    with pytest.raises(UserError, match="the text is empty"):
        main([str(checkpoint), "--text", ""])
    with pytest.raises(UserError, match="cannot be read as text"):
        main([str(checkpoint), "--file", str(tmp_path)])
    with pytest.raises(UserError, match="'nosuch' is unknown"):
        main([str(checkpoint), "--dataset", "nosuch"])
    with pytest.raises(UserError, match="--id '7' must be DATASET/HASH"):
        main([str(checkpoint), "--id", "7"])
    with pytest.raises(UserError, match="--id arithmetic/7: arithmetic has no such question; take an id of"):
        main([str(checkpoint), "--id", "arithmetic/7"])
    model = models["none"]
    with (
        config_with(model, max_position_embeddings=8),
        pytest.raises(UserError, match="the prompt has .* more than the 8 that the model takes"),
    ):
        look(model, tokenizer, asked(tokenizer))


def test_a_checkpoint_without_routers_is_refused(base):
    with pytest.raises(UserError, match="holds no trained routers"):
        main([str(Path(base)), "--text", TEXT])
