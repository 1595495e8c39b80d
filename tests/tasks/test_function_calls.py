"""Function calling as a task: data sets, prompts, labels, and lm-eval's tasks."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import pytest
from conftest import save_tiny_base
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

from eval_configs import offline as eval_documents
from routing.common.errors import UserError
from routing.evaluation.tasks import accuracy_of, check_tasks
from routing.labels.records import example_of, label_line, parse_label
from routing.models.default_model import default_model_folder
from routing.scoring.requests import make_request, request_of
from routing.search.mcts import SearchSettings, search
from routing.search.results import Verdict, run_search
from routing.tasks import HUB, OFFLINE, distinct, expand_names, iterate, load_examples, unknown_names
from routing.tasks.calls import CALL_SCORES, answer_problem, canonical, json_match, parse_calls
from routing.tasks.examples import SPLITS, Example, question_hash, split_of
from routing.tasks.function_calls import (
    ENUMERATED,
    FILES,
    FUNCTIONS,
    OTHER_SHORT_SHOTS,
    OTHER_SHOTS,
    SHORT_SHOTS,
    SHOTS,
    schema_types,
    xlam,
)
from routing.tasks.prompts import build_prompt, encode, expected_answers, max_new_tokens, prompt_text
from routing.tasks.variants import rephrased

# Rows of the wheel's files without repeated questions.
COUNTS = {"bfcl_simple": 400, "bfcl_multiple": 196, "bfcl_parallel": 200, "bfcl_parallel_multiple": 200}
ADDING = [{"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {"a": {}}}}]
CALLING = Example(
    "quiz",
    "What is 1 more than 2?",
    '[{"add": {"a": [1, 2], "b": [2, ""]}}]',
    checker="calls",
    tools=json.dumps(ADDING),
)
LISTS_TOOLS = (
    "{% for tool in tools or [] %}<tool>{{ tool.function.name }}</tool>{% endfor %}"
    "{% for message in messages %}<user>{{ message['content'] }}{% endfor %}<model>"
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(default_model_folder())


SMALL = ("tool_calls", "short_tool_calls")


@pytest.fixture(scope="module")
def everything() -> dict[str, dict[str, list[Example]]]:
    """Examples by data set and split."""
    return {name: {split: list(iterate(name, split)) for split in SPLITS} for name in (*SMALL, *FILES)}


@pytest.mark.parametrize("name", FILES)
def test_the_files_of_the_wheel(everything, name):
    examples = [example for part in everything[name].values() for example in part]
    assert len(examples) == len({question_hash(example) for example in examples}) == COUNTS[name]
    assert all(everything[name].values())
    for example in examples:
        assert (example.dataset, example.checker, example.choices) == (name, "calls", ())
        assert answer_problem(example.answer) is None
        best = {score: function(canonical(example), example) for score, function in CALL_SCORES.items()}
        assert best == {"exact_match": 1, "json_match": 1, "ratio_function_calls": 1, "partial_match": 10}
        names = {tool["name"] for tool in json.loads(example.tools)}
        assert {name for call in json.loads(example.answer) for name in call} <= names
    single = name in ("bfcl_simple", "bfcl_multiple")
    assert all((len(json.loads(example.answer)) == 1) == single for example in examples)


def test_a_question_is_in_one_split_whatever_its_functions(everything):
    """Many questions of bfcl_simple come in bfcl_multiple too, with more functions and the same calls expected."""
    place: dict[str, str] = {}
    for parts in everything.values():
        for split, examples in parts.items():
            for example in examples:
                assert place.setdefault(question_hash(example), split) == split
    shared = {e.question for s in SPLITS for e in everything["bfcl_simple"][s]}
    shared &= {e.question for s in SPLITS for e in everything["bfcl_multiple"][s]}
    assert len(shared) > 50
    drawn = load_examples("bfcl", "test", None, seed=0)
    assert len(drawn) == len({question_hash(example) for example in drawn})


def test_types_of_parameters(everything):
    def types(schema):
        if isinstance(schema, dict):
            found = {schema["type"]} if isinstance(schema.get("type"), str) else set()
            return found.union(*map(types, schema.values()))
        return set()

    tools = [
        tool for parts in everything.values() for part in parts.values() for e in part for tool in json.loads(e.tools)
    ]
    found = set().union(*(types(tool["parameters"]) for tool in tools))
    assert found == {"object", "string", "integer", "number", "boolean", "array"}
    assert all(tool["parameters"]["type"] == "object" for tool in tools)
    schema = {
        "type": "dict",
        "properties": {"type": {"type": "any"}, "x": {"type": "tuple", "items": {"type": "float"}}},
    }
    wanted = {"type": {}, "x": {"type": "array", "items": {"type": "number"}}}
    assert schema_types(schema) == {"type": "object", "properties": wanted}


def test_names():
    assert {*SMALL, *FILES} <= set(OFFLINE) and "xlam" in HUB
    assert expand_names("bfcl") == ["bfcl_simple", "bfcl_multiple", "bfcl_parallel"]
    assert unknown_names("bfcl,tool_calls,bfcl_parallel_multiple,xlam") == []


@pytest.mark.parametrize("name", SMALL)
def test_small_calls(everything, name):
    parts = everything[name]
    examples = [example for part in parts.values() for example in part]
    assert len(examples) == len({question_hash(e) for e in examples}) > 600
    assert len({e.answer for e in examples}) < len(examples)
    calls = {split: {example.answer for example in part} for split, part in parts.items()}
    assert not calls["search"] & calls["test"] and not calls["search"] & calls["validation"]
    assert 0.5 < len(parts["search"]) / len(examples) < 0.7 and len(parts["validation"]) >= 60
    for example in examples:
        (call,) = json.loads(canonical(example))
        assert call["name"] in {function["name"] for function in FUNCTIONS}
        assert all(str(value) in example.question for value in call["arguments"].values())
        assert not any(example.question in shots for shots in (SHOTS, OTHER_SHOTS, SHORT_SHOTS, OTHER_SHORT_SHOTS))
        assert json.loads(example.tools) == FUNCTIONS


def test_more_calls_hold_the_few_in_the_same_splits(everything):
    for split, examples in everything["tool_calls"].items():
        assert {e.question for e in examples} <= {e.question for e in everything["short_tool_calls"][split]}
    assert len(everything["short_tool_calls"]["test"]) >= 408, "as many as the plan of the study asks"


def test_solved_examples_are_right():
    for shots in (SHOTS, OTHER_SHOTS, SHORT_SHOTS, OTHER_SHORT_SHOTS):
        lines = shots.strip().split("\n")
        if shots in (SHOTS, OTHER_SHOTS):
            first, *lines = lines
            assert all(function["name"] in first for function in FUNCTIONS)
        called = []
        for question, answer in zip(lines[::2], lines[1::2], strict=True):
            (call,) = parse_calls(answer.split(" ", 1)[1])
            text = question.split(" ", 1)[1]
            assert text in [form.format(**call.arguments) for form in ENUMERATED[call.name][0]]
            called.append(call.name)
        assert called == [function["name"] for function in FUNCTIONS]


@pytest.mark.parametrize("name", SMALL)
def test_prompts_of_small_calls(everything, tokenizer, name):
    """Short, and alike up to the question, so that the search computes nearly all of a prompt once for all."""
    examples = Random(0).sample(everything[name]["search"], 40)
    for form in (lambda example: example, rephrased):
        prompts = [encode(tokenizer, build_prompt(form(e), "generate", tokenizer, False)) for e in examples]
        assert max(map(len, prompts)) < (200 if name == "tool_calls" else 135)
        shared = next(i for i in range(200) if len({prompt[i] for prompt in prompts}) > 1)
        assert shared > 0.75 * max(map(len, prompts))
    for example in examples:
        for text in expected_answers(example, False):
            assert parse_calls(text) == parse_calls(canonical(example))
            assert len(tokenizer.encode(" " + text)) <= max_new_tokens(example, False)
    begun = {"tool_calls": '[{"name": ', "short_tool_calls": f"{parse_calls(canonical(example))[0].name}("}[name]
    assert expected_answers(example, False)[0].startswith(begun)


@pytest.mark.parametrize("name", FILES)
def test_a_right_answer_fits_its_limit(everything, tokenizer, name):
    for example in (example for part in everything[name].values() for example in part):
        assert len(tokenizer.encode(canonical(example))) < max_new_tokens(example, False)


def test_a_small_call_in_other_words(everything):
    for example in everything["tool_calls"]["validation"]:
        other = rephrased(example)
        assert other.id == example.id and other.answer == example.answer
        first, second = prompt_text(example, "generate"), prompt_text(other, "generate")
        assert first.endswith(f"\nQuestion: {example.question}\nAnswer:")
        assert second.endswith(f"\nQ: {example.question}\nA:")
        assert set(first.split("\n")[1:]).isdisjoint(second.split("\n")[1:])


def test_prompts_list_the_functions(tokenizer):
    text = prompt_text(CALLING, "generate")
    assert CALLING.tools in text and text.endswith("\nQuestion: What is 1 more than 2?\nAnswer:")
    other = prompt_text(rephrased(CALLING), "generate")
    assert CALLING.tools in other and other.endswith("\nQ: What is 1 more than 2?\nA:")
    assert len(set(text.split("\n")) & set(other.split("\n"))) == 2  # The functions and the line above them.
    assert "JSON" in text and "JSON" in other
    chat = build_prompt(CALLING, "generate", tokenizer, chat=True)
    assert text in chat and chat != text
    request = request_of(CALLING, "auto", tokenizer)
    assert (request.scoring, request.stop, request.max_new_tokens) == ("generate", "\n", 384)
    assert tokenizer.decode(request.expected_ids[0]) == ' [{"name": "add", "arguments": {"a": 1}}]'


def test_a_template_may_list_the_functions(tokenizer):
    listing = AutoTokenizer.from_pretrained(default_model_folder())
    listing.chat_template = LISTS_TOOLS
    prompt = request_of(CALLING, "auto", listing, chat=True, tools_in_template=True).prompt
    assert prompt == "<tool>add</tool><user>What is 1 more than 2?<model>"
    plain = Example("open", "Capital of France?", "Paris")
    assert request_of(plain, "auto", listing, True, True).prompt == request_of(plain, "auto", listing, True).prompt
    with pytest.raises(UserError, match="leaves the functions out"):
        request_of(CALLING, "auto", tokenizer, chat=True, tools_in_template=True)
    with pytest.raises(UserError, match="tools_in_template"):
        request_of(CALLING, "auto", listing, chat=False, tools_in_template=True)


@pytest.mark.parametrize("name", ["tool_calls", "bfcl_parallel"])
def test_labels_keep_the_functions(everything, tokenizer, name):
    example = everything[name]["search"][0]
    request = request_of(example, "auto", tokenizer)
    found = run_search(search(3, SearchSettings(num_simulations=4), Random(0)), lambda route: Verdict(True))
    record = parse_label(label_line(request, found), 3)
    assert example_of(record) == replace(example, shots="")
    again = make_request(example_of(record), record["scoring"], record["prompt"], tokenizer, False)
    for field in ("prompt_ids", "expected_ids", "max_new_tokens", "stop"):
        assert getattr(again, field) == getattr(request, field)
    assert example_of({key: value for key, value in record.items() if key != "tools"}).tools == ""
    for wrong in ({"tools": [1]}, {"answer": "[]"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            parse_label(json.dumps(record | wrong), 3)
    number = request_of(Example("sums", "1 + 1 =", "2", checker="number"), "auto", tokenizer)
    assert "tools" not in json.loads(label_line(number, found))


def xlam_row(index: int, answers: list, parameters: dict) -> dict:
    tools = [{"name": "live_giveaways", "description": "Lists giveaways.", "parameters": parameters}]
    query = f"Where can I find giveaways of kind {index}?"
    return {"id": index, "query": query, "answers": json.dumps(answers), "tools": json.dumps(tools)}


def test_xlam():
    parameters = {
        "type": {"description": "The kind.", "type": "str", "default": "beta"},
        "years": {"description": "Years.", "type": "List[int]"},
        "near": {"description": "A place.", "type": "Dict[str, float], optional"},
        "odd": {"description": "Odd.", "type": "Tuple[int, int]"},
    }
    arguments = {"type": "game", "years": [1, 2], "near": {"x": 1.5}}
    calls = [{"name": "live_giveaways", "arguments": arguments}, {"name": "live_giveaways", "arguments": {"years": []}}]
    rows = [xlam_row(index, calls, parameters) for index in range(60)] + [xlam_row(99, [], parameters)]
    asked = []

    def loader(path, name=None, *, split):
        asked.append((path, name, split))
        return rows

    drawn = {split: list(distinct(xlam(split, loader))) for split in SPLITS}
    assert set(asked) == {("Salesforce/xlam-function-calling-60k", None, "train")}
    assert all(drawn.values()) and sum(map(len, drawn.values())) == 60
    assert all(split_of(example) == split for split, part in drawn.items() for example in part)
    example = drawn["search"][0]
    assert (example.dataset, example.checker) == ("xlam", "calls") and "giveaways" in example.question
    assert json_match(json.dumps(calls), example) == json_match(json.dumps(calls[::-1]), example) == 1
    assert json_match(json.dumps(calls[:1]), example) == 0
    (tool,) = json.loads(example.tools)
    kinds = {name: field.get("type") for name, field in tool["parameters"]["properties"].items()}
    assert kinds == {"type": "string", "years": "array", "near": "object", "odd": "array"}
    assert tool["parameters"]["required"] == ["years", "odd"] and tool["parameters"]["type"] == "object"


def test_documents_of_lm_eval(tokenizer):
    documents = list(eval_documents.load("bfcl_simple")["test"])
    examples = load_examples("bfcl_simple", "test", None, seed=0)
    assert [doc["prompt"] for doc in documents] == [build_prompt(e, "generate", tokenizer, False) for e in examples]
    for document, example in zip(documents[:20], examples):
        assert eval_documents.example_of(document) == example
        right = eval_documents.check_function_calls(document, [canonical(example)])
        assert right == {"acc": 1, "exact_match": 1, "json_match": 1, "ratio_function_calls": 1, "partial_match": 10}
        wrong = eval_documents.check_function_calls(document, ["no call"])
        assert wrong == {"acc": 0, "exact_match": 0, "json_match": 0, "ratio_function_calls": 0, "partial_match": -5}
        assert accuracy_of("t", right) and not accuracy_of("t", wrong)


@pytest.mark.parametrize("name", ["tool_calls", "bfcl_simple", "bfcl_multiple", "bfcl_parallel"])
def test_limits_of_lm_eval_tasks(name):
    task = f"routed_{name}"
    asked = check_tasks([task]).load(task)["tasks"][task]
    example = load_examples(name, "test", 1, seed=0)[0]
    for chat, until in ((False, ["\n"]), (True, [])):
        made = asked.construct_requests(asked.dataset["test"][0], "Q", apply_chat_template=chat, metadata=(task, 0, 1))
        limits = {"until": until, "max_gen_toks": max_new_tokens(example, chat), "do_sample": False}
        assert made.args == ("Q", limits)


def test_tasks_of_lm_eval(tmp_path, tokenizer):
    folder = save_tiny_base(tmp_path / "base", 1, hidden_size=16, intermediate_size=16, num_attention_heads=2)
    model = HFLM(pretrained=str(folder), batch_size=1, device="cpu")
    names = ["routed_tool_calls", "routed_bfcl_simple"]
    output = simple_evaluate(
        model=model, tasks=names, limit=1, bootstrap_iters=0, task_manager=check_tasks(names), log_samples=True
    )
    for name in names:
        for metric in ("acc", *CALL_SCORES):
            assert output["results"][name][f"{metric},none"] == (-5 if metric == "partial_match" else 0)
        first = load_examples(name.removeprefix("routed_"), "test", None, seed=0)[0]
        (sample,) = output["samples"][name]
        assert sample["arguments"][0][0] == build_prompt(first, "generate", tokenizer, False)
        assert accuracy_of(name, sample) is False
