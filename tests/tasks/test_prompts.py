"""Prompts and their tokens: one way for search, training and evaluation, and the same tokens as lm-eval's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from eval_configs import offline as eval_documents
from routing.common.errors import UserError
from routing.common.files import write_json
from routing.labels.reading import FORMAT, HEADER, LABELS
from routing.labels.records import example_of, label_line, parse_label
from routing.scoring.requests import Request, make_request
from routing.search.mcts import SearchSettings, search
from routing.search.results import Verdict, run_search
from routing.tasks import load_examples
from routing.tasks.examples import Example, held_out, question_hash
from routing.tasks.prompts import build_prompt, encode, encode_choice, max_new_tokens, prompt_text, scoring_of
from routing.training.routers.arguments import TrainArguments
from routing.training.routers.data import load_training_data

BOS = "<s>"
SPECIAL = (BOS, "</s>", "<|user|>", "<|assistant|>")
# Merges over word boundaries and into words, so that a wrong split of a request gives other tokens.
MERGES = [("Ġ", "a"), ("Ġa", "n"), ("Ġ", "B"), ("s", "w"), ("sw", "e"), (":", "Ġ"), ("Ċ", "a"), ("e", "r")]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|user|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

CHOOSING = Example("quiz", "Which is cold?", "a tundra", ("a marsh", "a tundra", "plains"), 1, "letter")
NUMBER = Example("sums", "2 + 3 =", "5", checker="number", shots="6 * 3 = 18\n")
BOXED = Example("dart-1", "What is 1 + 1?", "2", checker="boxed")
OPEN = Example("open", "Capital of France?", "Paris")


def make_tokenizer(bos: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 256 bytes and a few merges; with `bos`, a BOS token goes before every text."""
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS if bos else None,
        eos_token="</s>",
        pad_token="</s>",
        chat_template=TEMPLATE,
    )


TOKENIZERS = {bos: make_tokenizer(bos) for bos in (True, False)}


@pytest.fixture(params=[True, False], ids=["bos", "no-bos"])
def tokenizer(request):
    return TOKENIZERS[request.param]


def harness(tokenizer) -> SimpleNamespace:
    """What lm-eval's own tokenizing reads of its model object."""
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    stub = SimpleNamespace(
        tokenizer=tokenizer, backend="causal", add_bos_token=None, prefix_token_id=prefix, chat_template_args={}
    )
    stub.tok_encode = partial(HFLM.tok_encode, stub)
    return stub


def test_the_tokenizer_of_these_tests_can_tell():
    """Otherwise the comparisons with lm-eval below would hold for any split of a request."""
    tokenizer = TOKENIZERS[False]
    assert tokenizer.encode("x a") != tokenizer.encode("x ") + tokenizer.encode("a")
    assert tokenizer.decode(tokenizer.encode("Answer: é")) == "Answer: é"
    assert TOKENIZERS[True].encode("x")[0] == TOKENIZERS[True].bos_token_id


def test_bos_is_there_once():
    tokenizer = TOKENIZERS[True]
    plain, begun = encode(tokenizer, "Question"), encode(tokenizer, f"{BOS}Question")
    assert plain == begun
    assert begun.count(tokenizer.bos_token_id) == 1
    assert tokenizer.bos_token_id not in encode(TOKENIZERS[False], "Question")


@given(st.text("ab: \n<s>é", max_size=12))
@settings(max_examples=60)
@example("<s>a")
@example("<s><s>a")
def test_encode_is_lm_evals(text):
    for tokenizer in TOKENIZERS.values():
        assert encode(tokenizer, text) == HFLM.tok_encode(harness(tokenizer), text)


@given(st.text("swer: \naB", min_size=1, max_size=12), st.text("anB er", min_size=1, max_size=6))
@settings(max_examples=150)
@example("Answer:", "a tundra")
@example("Answer: ", "a")
@example("Answer:  \n", "an B")
@example("<s>Answer:\n", "an")
def test_encode_choice_is_lm_evals(prompt, choice):
    """A prompt that ends in a space or newline brings the separator itself; otherwise lm-eval puts a space."""
    for tokenizer in TOKENIZERS.values():
        continuation = choice if prompt != prompt.rstrip() else f" {choice}"
        assert encode_choice(tokenizer, prompt, choice) == TemplateLM._encode_pair(
            harness(tokenizer), prompt, continuation
        )


def test_spaces_at_the_end_of_a_prompt_go_to_the_choice(tokenizer):
    joined, spaced = encode_choice(tokenizer, "Answer:", "an"), encode_choice(tokenizer, "Answer: ", "an")
    assert joined == spaced
    assert tokenizer.decode(joined[1]) == " an"
    context, choice = encode_choice(tokenizer, "<|assistant|>\n", "an")
    assert tokenizer.decode(context).endswith("<|assistant|>") and tokenizer.decode(choice) == "\nan"


@pytest.mark.parametrize("case", [CHOOSING, BOXED, OPEN, NUMBER], ids=lambda case: case.dataset)
def test_chat_template_is_applied_once_as_by_lm_eval(tokenizer, case):
    scoring = scoring_of(case, "generate")
    text = prompt_text(case, scoring)
    prompt = build_prompt(case, scoring, tokenizer, chat=True)
    message = [{"role": "user", "content": text}]
    assert prompt == HFLM.apply_chat_template(harness(tokenizer), message)
    assert prompt.count("<|user|>") == prompt.count("<|assistant|>") == prompt.count(text) == 1
    request = make_request(case, scoring, prompt, tokenizer, chat=True)
    assert request.prompt_ids.count(tokenizer.convert_tokens_to_ids("<|user|>")) == 1
    if tokenizer.bos_token_id is not None:
        assert request.prompt_ids.count(tokenizer.bos_token_id) == 1
    assert build_prompt(case, scoring, tokenizer, chat=False) == text


def test_prompt_texts():
    listed = prompt_text(CHOOSING, "generate")
    assert listed.startswith("Question: Which is cold?\nA. a marsh\nB. a tundra\nC. plains\n")
    assert listed.endswith("\nAnswer:")
    assert prompt_text(CHOOSING, "loglikelihood") == "Question: Which is cold?\nAnswer:"
    assert r"\boxed{}" in prompt_text(BOXED, "generate")
    assert prompt_text(NUMBER, "generate") == "6 * 3 = 18\n2 + 3 ="
    assert prompt_text(OPEN, "generate") == "Question: Capital of France?\nAnswer:"


def test_texts_of_the_second_wording():
    """It re-tests what was right with the first: the same question and choices, nothing else alike but the layout."""
    choosing, boxed, opened = (replace(case, form=1) for case in (CHOOSING, BOXED, OPEN))
    listed = prompt_text(choosing, "generate")
    assert listed.startswith("Q: Which is cold?\nA. a marsh\nB. a tundra\nC. plains\n") and listed.endswith("\nA:")
    assert '"Answer: A"' in listed
    assert prompt_text(choosing, "loglikelihood") == "Q: Which is cold?\nA:"
    assert prompt_text(opened, "generate") == "Q: Capital of France?\nA:"
    for other, case in ((choosing, CHOOSING), (boxed, BOXED)):
        lines, old = (prompt_text(form, "generate").splitlines() for form in (other, case))
        same = set(lines) & set(old)
        assert len(lines) == len(old) and same == {line for line in old if line[:2] in ("A.", "B.", "C.")}
    assert r"\boxed{}" in prompt_text(boxed, "generate")
    assert prompt_text(replace(NUMBER, form=1), "generate") == prompt_text(NUMBER, "generate")
    assert choosing.id == CHOOSING.id


def test_prompts_do_not_tell_the_answer():
    for case in (CHOOSING, BOXED, OPEN, NUMBER):
        for gold in range(len(case.choices)):
            other = Example(case.dataset, case.question, case.choices[gold], case.choices, gold, case.checker)
            assert prompt_text(other, "generate") == prompt_text(case, "generate")
    assert "a tundra" not in prompt_text(CHOOSING, "loglikelihood")


def test_scoring_of_auto():
    assert scoring_of(CHOOSING, "auto") == "loglikelihood"
    assert scoring_of(OPEN, "auto") == scoring_of(NUMBER, "auto") == "generate"
    assert scoring_of(CHOOSING, "generate") == "generate"


def test_limits_of_generated_answers():
    """Dr.LLM: 10 new tokens for choices with an instruct model, 2 with a base model, 15 for boxed results."""
    assert (max_new_tokens(CHOOSING, chat=True), max_new_tokens(CHOOSING, chat=False)) == (10, 2)
    assert max_new_tokens(BOXED, chat=True) == max_new_tokens(BOXED, chat=False) == 15
    for checker in ("exact", "regex", "number"):
        assert max_new_tokens(Example("d", "q", "a", checker=checker), chat=False) > 0


def test_requests(tokenizer):
    written = make_request(CHOOSING, "generate", "Answer:", tokenizer, chat=False)
    assert list(written.prompt_ids) == encode(tokenizer, "Answer:")
    assert (written.choice_ids, written.max_new_tokens, written.stop) == ((), 2, "\n")
    assert make_request(CHOOSING, "generate", "Answer:", tokenizer, chat=True).stop is None
    scored = make_request(CHOOSING, "loglikelihood", "Answer:", tokenizer, chat=False)
    assert len(scored.choice_ids) == 3
    for ids, choice in zip(scored.choice_ids, CHOOSING.choices, strict=True):
        assert (list(scored.prompt_ids), list(ids)) == encode_choice(tokenizer, "Answer:", choice)


def labelled(case: Example, tokenizer, chat: bool, scoring: str = "auto", right: bool = True) -> tuple[Request, str]:
    """The request that a search works on, and the line that it leaves."""
    kind = scoring_of(case, scoring)
    request = make_request(case, kind, build_prompt(case, kind, tokenizer, chat), tokenizer, chat)
    searching = search(3, SearchSettings(num_simulations=4), Random(0))
    return request, label_line(request, run_search(searching, lambda route: Verdict(right)))


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "plain"])
@pytest.mark.parametrize("scoring", ["auto", "generate"])
@pytest.mark.parametrize("case", [CHOOSING, BOXED, OPEN, NUMBER], ids=lambda case: case.dataset)
def test_training_reads_the_prompts_of_the_search(tokenizer, case, scoring, chat):
    request, line = labelled(case, tokenizer, chat, scoring)
    record = parse_label(line, 3)
    again = make_request(example_of(record), record["scoring"], record["prompt"], tokenizer, chat)
    assert example_of(record).id == record["id"] == case.id
    for name in ("prompt", "prompt_ids", "choice_ids", "scoring", "max_new_tokens", "stop"):
        assert getattr(again, name) == getattr(request, name)


def test_evaluation_reads_the_prompts_of_the_search(tokenizer):
    documents = list(eval_documents.load("arithmetic")["test"])
    examples = load_examples("arithmetic", "test", None, seed=0)
    prompts = [build_prompt(case, scoring_of(case, "auto"), tokenizer, chat=False) for case in examples]
    assert [document["prompt"] for document in documents] == prompts
    right = [eval_documents.check(doc, [f" {case.answer}\n"]) for doc, case in zip(documents, examples, strict=True)]
    assert all(verdict == {"acc": 1.0} for verdict in right)
    assert eval_documents.check(documents[0], ["no idea"]) == {"acc": 0.0}


def write_labels(folder, lines: list[str], model: str = "m", depth: int = 3, chat: bool = False) -> None:
    arguments = {"apply_chat_template": chat}
    write_json(folder / HEADER, {"format": FORMAT, "model": model, "num_layers": depth, "arguments": arguments})
    (folder / LABELS).write_text("".join(lines), encoding="utf-8")


def training_arguments(folder, **others) -> TrainArguments:
    return TrainArguments(run_name="r", model_id="m", data=str(folder), eval_fraction=0.4, **others)


CONFIG = SimpleNamespace(num_hidden_layers=3, max_position_embeddings=4096, vocab_size=10**6)


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "plain"])
def test_training_data(tmp_path, tokenizer, chat, capsys):
    """Held out by question hash; questions without a right path train nothing, but are evaluated on."""
    cases = [Example("own", f"Question {i}?", str(i), checker="number") for i in range(30)]
    made = {case.id: labelled(case, tokenizer, chat, right=i % 3 > 0) for i, case in enumerate(cases)}
    lines = [line for _, line in made.values()]
    write_labels(tmp_path / "a", lines[:20], chat=chat)
    write_labels(tmp_path / "b", lines[10:], chat=chat)
    data = load_training_data(training_arguments(f"{tmp_path / 'a'},{tmp_path / 'b'}"), CONFIG, tokenizer)
    solved = [case for i, case in enumerate(cases) if i % 3 > 0]
    aside = [held_out(question_hash(case), 0.4) for case in solved]
    assert [e.prompt_ids for e in data.examples] == [made[case.id][0].prompt_ids for case in solved]
    assert [e.route for e in data.examples] == [tuple(parse_label(made[case.id][1], 3)["route"]) for case in solved]
    assert list(data.held_out_indices) == [i for i, kept in enumerate(aside) if kept]
    assert sorted(data.train_indices + data.held_out_indices) == list(range(len(solved)))
    asked = [i for i, case in enumerate(cases) if held_out(question_hash(case), 0.4)]
    assert list(map(vars, data.held_out_requests)) == [vars(made[cases[i].id][0]) for i in asked]
    assert any(i % 3 == 0 for i in asked)
    reported = capsys.readouterr().err
    assert "10 labels asked before" in reported and "10 labels without a right path" in reported


def test_questions_that_choose_a_checkpoint_are_of_all_data_sets(tmp_path, tokenizer):
    """The first of them are answered in training; in the order of the labels they would be of one data set alone."""
    cases = [Example(name, f"{name} {i}?", "x") for name in ("first", "second") for i in range(40)]
    write_labels(tmp_path, [labelled(case, tokenizer, chat=False)[1] for case in cases])
    data = load_training_data(training_arguments(tmp_path), CONFIG, tokenizer)
    assert [request.example.dataset for request in data.held_out_requests[:6]] == ["first", "second"] * 3


def test_some_data_sets_are_trained_on_only_when_asked_for(tmp_path, tokenizer, capsys):
    names = ("own", "squadv2", "commonsense_qa")
    cases = [Example(name, f"{name} {i}?", "x") for name in names for i in range(12)]
    write_labels(tmp_path, [labelled(case, tokenizer, chat=False)[1] for case in cases])

    def used(**flags) -> int:
        return len(load_training_data(training_arguments(tmp_path, **flags), CONFIG, tokenizer).examples)

    assert (used(), used(with_squad=True), used(with_squad=True, with_commonsense=True)) == (12, 24, 36)
    assert "12 labels of squadv2 (use --with_squad)" in capsys.readouterr().err


def test_labels_of_another_model_are_refused(tmp_path, tokenizer):
    lines = [labelled(OPEN, tokenizer, chat=False)[1]]
    write_labels(tmp_path / "other", lines, model="other")
    write_labels(tmp_path / "deeper", lines, depth=4)
    with pytest.raises(UserError) as caught:
        load_training_data(training_arguments(f"{tmp_path / 'other'},{tmp_path / 'deeper'}"), CONFIG, tokenizer)
    assert "'other'" in str(caught.value) and "4 layers" in str(caught.value)
    write_labels(tmp_path / "few", lines)
    for share, told in ((0.0, "1 training and 0 held-out"), (1.0, "0 training and 1 held-out")):
        few = TrainArguments(run_name="r", model_id="m", data=str(tmp_path / "few"), eval_fraction=share)
        with pytest.raises(UserError, match=f"{told} examples with a right path are too few"):
            load_training_data(few, CONFIG, tokenizer)
