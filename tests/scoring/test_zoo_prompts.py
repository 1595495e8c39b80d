"""Prompts, ends and limits on bases of the zoo: what stage 1 judges right is what lm-eval judges right."""

from __future__ import annotations

import json
import shlex
from copy import copy, deepcopy
from dataclasses import replace
from functools import cache
from itertools import islice

import pytest
import torch
import zoo
from lm_eval import simple_evaluate
from lm_eval._cli.harness import HarnessCLI
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from zoo import SIZES, TEMPLATES, bring, cage, make_tokenizer

from eval_configs import offline
from routing.commands import generate
from routing.common.errors import UserError
from routing.evaluation.lm import PromptRoutedLM
from routing.evaluation.task_names import CONFIGS
from routing.labels.reading import read_header, read_labels
from routing.labels.records import labelled
from routing.models.checkpoint import load_checkpoint, save_checkpoint
from routing.models.ends import end_ids
from routing.models.families import load_tokenizer, routed_class
from routing.models.templates import (
    fill,
    filling_problems,
    fix_time,
    plain_problems,
    tells_time,
    thinks,
    thought_warning,
)
from routing.scoring.certainty import is_right, settled
from routing.scoring.context import Fitting, needed_tokens
from routing.scoring.packed import PathEvaluator
from routing.scoring.plain import Evaluator
from routing.scoring.prompting import Prompting, prompting_in, prompting_of, recorded, trained_prompting
from routing.scoring.requests import prompted
from routing.search.routes import full_route
from routing.tasks import load_examples
from routing.tasks.answers import CHECKERS
from routing.tasks.examples import Example
from routing.tasks.limits import check_limits, limits_of
from routing.tasks.local import parse_local
from train_models.modeling_llama import RoutedLlamaForCausalLM
from train_models.modeling_qwen3 import RoutedQwen3ForCausalLM

GENERATED = ("arithmetic", "asdiv", "procedural", "tool_calls", "bfcl_simple", "bfcl_multiple", "bfcl_parallel")
CHOSEN = ("commonsenseqa", "logiqa", "mmlu", "openbookqa", "piqa", "siqa")
ROUTE = full_route(4)


# Where a text is longer than the context, these are no longer the model that stage 1 would ask.
NARROW = ("short_context", "rope_dynamic", "rope_long", "phi3_long")


@cache
def loaded(name: str):
    """An animal as the routed model, without routers' say, and its tokenizer."""
    place = bring(name)
    kind = AutoConfig.from_pretrained(place).model_type
    model = routed_class(kind).from_pretrained(place, dtype=torch.float32).eval()
    stock = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    for one in (model, stock) if name not in NARROW else ():
        one.config.max_position_embeddings = 8192  # The functions of a question are many tokens for these tokenizers.
    return model, stock, load_tokenizer(place)


def test_every_task_without_a_hub_is_compared():
    tasks = {path.stem.removeprefix("routed_") for path in CONFIGS.glob("routed_*.yaml")}
    assert tasks == {*GENERATED, *CHOSEN}


@cache
def task_manager(tokenizer: str) -> TaskManager:
    return TaskManager(include_path=str(CONFIGS), include_defaults=False, metadata={"tokenizer": tokenizer})


@cache
def task_of(dataset: str, digits: int):
    """The task of a data set, as lm-eval makes it, and its limits of new tokens; the same for all tokenizers that cut
    numbers alike."""
    folder = cage() / f"digits-{digits}"
    tokenizer = make_tokenizer("each" if digits == 3 else "threes")
    tokenizer.save_pretrained(folder)
    (task,) = task_manager(str(folder)).load(f"routed_{dataset}")["tasks"].values()
    return task, tuple(limits_of(dataset, tokenizer).items())


def fresh(task):
    """A task to be evaluated once: what a call asks for stays in it."""
    own = copy(task)
    own._config = deepcopy(task.config)
    return own


def compare(name: str, prompting: Prompting, datasets, count: int = 2) -> int:
    """Prompts token by token, answers letter by letter and verdicts, of stage 1's evaluators and of lm-eval.

    Args:
        count: questions of each data set, the first that the model can take.

    Returns:
        how many questions were compared.
    """
    model, stock, tokenizer = loaded(name)
    fix_time(tokenizer, prompting.template_time)
    digits, chat, fits = len(ids(tokenizer, "123")), prompting.apply_chat_template, Fitting(model.config)
    tasks, requests, places = {}, {}, {}
    for dataset in datasets:
        task, limits = task_of(dataset, digits)
        own = replace(prompting, limits=limits) if prompting.max_new_tokens is None else prompting
        asked = (prompted(example, tokenizer, own) for example in load_examples(dataset, "test", None, seed=0)[:40])
        if found := list(islice(((at, request) for at, request in enumerate(asked) if fits(request)), count)):
            tasks[f"routed_{dataset}"] = task
            places[f"routed_{dataset}"], requests[f"routed_{dataset}"] = zip(*found)
    ours = PromptRoutedLM(stock, tokenizer, 3, prompting)
    wanted = {"apply_chat_template": chat, "system_instruction": prompting.system_instruction or None}
    if prompting.max_new_tokens:
        wanted["gen_kwargs"] = {"max_gen_toks": prompting.max_new_tokens}
    wanted |= {"samples": {task: list(own) for task, own in places.items()}, "log_samples": True, "bootstrap_iters": 0}
    wanted["task_manager"] = task_manager("")  # Not asked; without one lm-eval parses all of its own tasks.
    output = simple_evaluate(model=ours, tasks=list(map(fresh, tasks.values())), **wanted)["samples"]
    for task, asked in requests.items():
        plain = Evaluator(model, tokenizer, 2, score="accuracy").verdicts(asked, [ROUTE] * len(asked))
        packed = PathEvaluator(model, tokenizer, score="accuracy").verdicts(asked, [ROUTE] * len(asked))
        assert [v.correct for v in packed] == [v.correct for v in plain]
        assert [v.output for v in packed] == [v.output for v in plain]
        samples = sorted(output[task], key=lambda sample: sample["doc_id"])
        for sample, request, verdict in zip(samples, asked, plain, strict=True):
            assert sample["arguments"][0][0] == request.prompt
            assert bool(sample["acc"]) == verdict.correct
            if request.scoring == "generate":
                assert sample["resps"][0][0] == verdict.output
                given = sample["arguments"][0][1]
                assert given["max_gen_toks"] == request.max_new_tokens
                assert given["until"] == ([request.stop] if request.stop else [])
                assert ours.tok_encode(request.prompt) == list(request.prompt_ids)
            else:
                pairs = [ours._encode_pair(*pair[:2]) for pair in sample["arguments"]]
                assert [tuple(choice) for _, choice in pairs] == list(request.choice_ids)
                assert all(tuple(context) == request.prompt_ids for context, _ in pairs)
    return sum(map(len, requests.values()))


ANIMALS = {
    "bos_in_template": Prompting(apply_chat_template=True),
    "bos_added": Prompting(),
    "eos_disagrees": Prompting(apply_chat_template=True, system_instruction="Be short."),
    "many_eos": Prompting(max_new_tokens=7),
    "thinking_template": Prompting(apply_chat_template=True, chat_template_args='{"enable_thinking": false}'),
    "dated_template": Prompting(apply_chat_template=True, template_time="2024-07-26T10:00:00"),
    "no_generation_prompt": Prompting(apply_chat_template=True),
    "pad_is_zero": Prompting(),
}


@pytest.mark.parametrize("name", ANIMALS)
def test_search_and_lm_eval_agree_verdict_by_verdict(name):
    """On some bases and on a task of each kind; all of them: the slow test below."""
    tasks = ("arithmetic", "openbookqa") if name == "many_eos" else ("arithmetic", "asdiv", "openbookqa")
    assert compare(name, ANIMALS[name], tasks) == 2 * len(tasks)


WHOLE = [name for name, animal in zoo.ANIMALS.items() if not animal.refused]
FORMS = [(name, form) for name in WHOLE for form in ("plain", "chat") if (name, form) != ("no_template", "chat")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), FORMS)
def test_search_and_lm_eval_agree_on_every_task_and_every_base(name, form):
    """Each task of eval_configs that needs no hub and each base of the zoo that stage 1 takes, in both forms; of the
    tasks a base has every third, the next one another third, else this would take hours."""
    prompting, first = Prompting(), FORMS.index((name, form)) % 3
    if form == "chat":
        prompting = replace(ANIMALS.get(name, prompting), apply_chat_template=True, max_new_tokens=None)
    tasks = (GENERATED[first::3], CHOSEN[first::3])
    found = sum(compare(name, prompting, own) for own in tasks if own)
    assert found == 2 * sum(map(len, tasks)) or (name in NARROW and found > 1)


def test_answers_to_expect_end_within_the_context():
    """Else dynamic positions, which change beyond it, would change for all that is computed beside them."""
    model, _, tokenizer = loaded("rope_dynamic")
    prompting = Prompting(max_new_tokens=32)
    asked = (prompted(e, tokenizer, prompting) for e in load_examples("tool_calls", "test", None, seed=0)[:40])
    long = next(
        request for request in asked
        if needed_tokens(request) <= 512 < len(request.prompt_ids) + len(request.expected_ids[0])
    )  # fmt: skip
    plain, packed = Evaluator(model, tokenizer, 1, score="accuracy"), PathEvaluator(model, tokenizer, score="accuracy")
    assert packed.verdicts([long], [ROUTE])[0].output == plain.verdicts([long], [ROUTE])[0].output


def test_the_documented_line_makes_stock_lm_eval_ask_the_same(monkeypatch):
    """Arguments of a template and a system message, as the page of evaluation tells them to stock lm_eval."""
    page = (CONFIGS.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (line,) = [line for line in page.splitlines() if line.startswith("lm_eval") and "chat_template_args" in line]
    base = bring("thinking_template")
    monkeypatch.setattr("sys.argv", shlex.split(line.replace("checkpoints/my-run", base)))
    told = HarnessCLI().parse_args()
    manager = TaskManager(include_path=str(CONFIGS), include_defaults=False, metadata={"pretrained": base})
    asked = {"apply_chat_template": told.apply_chat_template, "system_instruction": told.system_instruction}
    how = {"task_manager": manager, "bootstrap_iters": 0, "log_samples": True, "limit": 1, "device": "cpu"}
    output = simple_evaluate(told.model, told.model_args, told.tasks, **asked, **how)["samples"]
    prompting = Prompting(
        apply_chat_template=True, chat_template_args='{"enable_thinking": false}', system_instruction="Be short."
    )
    for task in told.tasks:
        example = load_examples(task.removeprefix("routed_"), "test", None, seed=0)[0]
        assert output[task][0]["arguments"][0][0] == prompted(example, loaded("thinking_template")[2], prompting).prompt


def writer(tokenizer, prompt_end: int, tokens: list[int]):
    """A model that writes the tokens, all different, behind a prompt that ends in `prompt_end`, whatever is before."""
    kind, size = routed_class("llama"), len(tokenizer)
    width = -(-size // 8) * 8
    fields = SIZES | {"vocab_size": size, "hidden_size": width, "intermediate_size": 8, "tie_word_embeddings": False}
    fields |= {"head_dim": 8, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    model = kind(kind.config_class(**fields)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        # A state is its token's own direction, and the head leads from it to the token that follows.
        model.model.embed_tokens.weight.copy_(torch.eye(size, width))
        line = [prompt_end, *tokens]
        for now, after in zip(line, line[1:]):
            model.lm_head.weight[after, now] = 1.0
    return model


def answers(tokenizer, example: Example, text_tokens: list[int], prompting: Prompting, ends=None):
    """(verdict, answer) of plain and packed evaluator and of lm-eval's model, where a model writes given tokens."""
    request = prompted(example, tokenizer, prompting)
    model = writer(tokenizer, request.prompt_ids[-1], text_tokens)
    model.generation_config.eos_token_id = ends
    found = [
        scorer.verdicts([request], [ROUTE])[0]
        for scorer in (Evaluator(model, tokenizer, score="accuracy"), PathEvaluator(model, tokenizer, score="accuracy"))
    ]
    early = PathEvaluator(model, tokenizer).verdicts([request], [ROUTE])[0]
    harness = PromptRoutedLM(model, tokenizer, 2, prompting)
    limits = {"until": [request.stop] if request.stop else [], "max_gen_toks": request.max_new_tokens}
    asked = [Instance("generate_until", {}, (request.prompt, limits | {"do_sample": False}), 0, ("t", 0, 1))]
    text = harness.generate_until(asked, disable_tqdm=True)[0]
    doc = {"dataset": "own", "question": "?", "answer": example.answer, "choices": [], "gold": None}
    doc |= {"checker": example.checker, "accepted": [], "tools": ""}
    return {
        *((verdict.correct, verdict.output) for verdict in found),
        (early.correct, text),
        (bool(offline.check(doc, [text])["acc"]), text),
    }


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("where", ["generation", "tokenizer", "template", "none"])
def test_an_answer_ends_at_any_end_of_turn(where):
    """Case of real use: the tokenizer's end of turn differs from that of the generation config."""
    end = "<|im_end|>"
    tokenizer = make_tokenizer(
        eos_token=end if where == "tokenizer" else "</s>",
        template=None if where == "none" else CHAT[where == "template"],
    )
    written = ids(tokenizer, "red") + ids(tokenizer, end) + ids(tokenizer, " or")
    ends = ids(tokenizer, end) + [3] if where == "generation" else None
    prompting = Prompting(apply_chat_template=where != "none")
    found = answers(tokenizer, Example("own", "?", "red"), written, prompting, ends)
    if where == "none":  # Nothing names the token as an end.
        assert {(right, text[:6]) for right, text in found} == {(False, "red or")}
    else:
        assert found == {(True, "red")}


NO_END = "{% for m in messages %}<|im_start|>{{ m.content }}\n{% endfor %}<|im_start|>"
CHAT = {True: TEMPLATES["bos"], False: NO_END}


def test_a_number_that_the_limit_cuts_off_is_not_right():
    tokenizer = make_tokenizer()
    example = Example("own", "?", "12", checker="number")
    cut = ids(tokenizer, " 12")
    assert answers(tokenizer, example, [*cut, *ids(tokenizer, "3")], Prompting(max_new_tokens=len(cut))) == {
        (False, " 12")
    }
    assert answers(tokenizer, example, [*cut, *ids(tokenizer, "\n")], Prompting(max_new_tokens=len(cut) + 1)) == {
        (True, " 12")
    }
    assert answers(tokenizer, example, [*cut, *ids(tokenizer, "!")], Prompting(max_new_tokens=len(cut) + 1)) == {
        (True, " 12!")
    }
    ended = [*cut, tokenizer.eos_token_id]
    assert answers(tokenizer, example, ended, Prompting(max_new_tokens=len(ended))) == {(True, " 12")}


def test_worked_solutions_are_read_by_their_last_number():
    row = {"question": "Ann has 3 bags of 4 nuts.", "answer": "Each has 4: 3*4=<<3*4=12>>12.\n#### 12"}
    example = parse_local(row, "own")
    assert example.checker == "solution" and example.answer == row["answer"]
    right = CHECKERS["solution"]
    for text in ("#### 12", "so 3 and 12", "a\n#### 12.0 nuts, not 13", "1,2 ... 12", "####  $12"):
        assert right(text, example), text
    for text in ("#### 13, not 12", "12 or 13", "", "####", "#### twelve 12"):
        assert not right(text, example), text
    for text in ("3 * 4 = 12\n#### 12 ", "#### 13\n"):
        assert settled(text, example) == right(text, example)
    for text in ("12", "12 #### ", "#### 12", "#### 1"):
        assert settled(text, example) is None, text
    assert not is_right("3 * 4 = 12", example, cut=True) and is_right("3 * 4 = 12", example, cut=False)
    assert parse_local({"question": "?", "answer": "#### none"}, "own").checker == "exact"
    for chat, stop in ((False, "Question:"), (True, None)):
        assert prompted(example, make_tokenizer(), Prompting(apply_chat_template=chat)).stop == stop
    assert parse_local({"question": "?", "answer": 12, "checker": "solution"}, "own").checker == "solution"
    with pytest.raises(ValueError, match='"answer" must be a number, or a worked solution'):
        parse_local({"question": "?", "answer": "many", "checker": "solution"}, "own")


def test_limits_follow_the_longest_right_answer(tmp_path):
    """Case of real use: answers of five digits, and a token a digit."""
    file = tmp_path / "big.jsonl"
    rows = [{"question": "What is 12000 + 345?", "answer": 12345}, {"question": "How much is 9 * 25?", "answer": 225}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    each, threes = make_tokenizer(), make_tokenizer("threes")
    long, short = (limits_of(str(file), tokenizer).get("big", 4) for tokenizer in (each, threes))
    assert long == len(ids(each, " 12345")) + 2 > short
    examples = load_examples(str(file), "search", None, 0)
    assert check_limits(examples, str(file), "auto", each, False, {"big": long}.get) == []
    (warning,) = check_limits(examples, str(file), "auto", each, False, lambda name: 5)
    assert "of 2 questions of big, 1 have a right answer of more than 5 new tokens, the limit" in warning
    assert f"(first {file}, line 1, 6 tokens" in warning
    with pytest.raises(UserError, match=r"so none can be answered rightly; give --max_new_tokens 8"):
        check_limits(examples, str(file), "auto", each, False, lambda name: 2)


def test_a_number_has_room_to_end_before_more_of_a_list():
    """A model that continues a sequence goes on behind its answer; "146," alone may still become "146,000"."""
    each = make_tokenizer()
    for example in load_examples("procedural", "search", 200, 0):
        going_on = f" {example.answer}, "
        assert is_right(going_on[:-1], example, cut=True) == ("." in example.answer)  # 6.8, is no thousands
        assert is_right(going_on, example, cut=True)
        assert len(ids(each, going_on)) <= limits_of("procedural", each)["procedural"]


def refusal(name: str, **given) -> str:
    prompting = Prompting(apply_chat_template=True, **given)
    return "; ".join(filling_problems(loaded(name)[2], prompting, True))


def test_what_cannot_fill_a_template_is_refused():
    assert "is no JSON" in plain_problems(Prompting(chat_template_args="{x"), True)[0]
    assert "is a JSON list and no object" in plain_problems(Prompting(chat_template_args="[1]"), True)[0]
    (plain,) = plain_problems(Prompting(chat_template_args='{"a": 1}', system_instruction="x"), False)
    assert plain == "--chat_template_args and --system_instruction need --apply_chat_template; give both or none"
    assert "refuses a system message" in refusal("no_system_template", system_instruction="Be short.")
    assert "has no chat template" in refusal("no_template")
    assert "names no such argument" in refusal("plain", chat_template_args='{"enable_thinking": false}')
    assert "those that it names: date_string" in refusal("dated_template", chat_template_args='{"date": "x"}')
    assert "the toolkit itself fills this in" in refusal("plain", chat_template_args='{"messages": []}')
    assert refusal("thinking_template", chat_template_args='{"enable_thinking": false}') == ""
    assert refusal("plain", system_instruction="Be short.") == ""


def test_a_template_thinks_unless_told_not_to():
    tokenizer = loaded("thinking_template")[2]
    open_, closed = (
        fill(tokenizer, "?"),
        fill(tokenizer, "?", Prompting(chat_template_args='{"enable_thinking": false}')),
    )
    assert thinks(tokenizer, open_) and not thinks(tokenizer, closed)
    assert not thinks(loaded("plain")[2], fill(loaded("plain")[2], "?"))
    assert "no thought comes to its end" in thought_warning(tokenizer, [(open_, 16)])
    assert thought_warning(tokenizer, [(open_, 2048), (closed, 16)]) is None


def test_a_template_tells_one_time_for_ever(tmp_path):
    tokenizer = load_tokenizer(bring("dated_template"))
    moment = Prompting(template_time="2024-07-26T10:11:12")
    assert tells_time(tokenizer) and not tells_time(loaded("plain")[2])
    assert not tells_time(tokenizer, Prompting(chat_template_args='{"date_string": "26 Jul 2024"}'))
    now, then = fill(tokenizer, "?"), fill(tokenizer, "?", moment)
    assert then.count("Today is 26 Jul 2024 10:11:12.") == 1 and now != then
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert fill(again, "?") == then
    computed = make_tokenizer(template="{% set f = '%H' %}{{ strftime_now(f) }}" + TEMPLATES["bos"])
    with pytest.raises(UserError, match="computes the form in which it asks"):
        tells_time(computed)
    line = make_tokenizer(template="\n{{ strftime_now('%Y') }}\n" + TEMPLATES["bos"])
    assert fill(line, "?", moment).startswith("\n2024\n")


def test_records_keep_what_was_asked():
    asked = Prompting(
        "generate", True, chat_template_args='{"b":1, "a":2}', system_instruction="s", template_time="t",
        max_new_tokens=3, limits=(("big", 7),),
    )  # fmt: skip
    again = prompting_in(json.loads(json.dumps(recorded(asked))))
    assert again.arguments == asked.arguments and recorded(again) == recorded(prompting_in(recorded(again)))
    assert again.limit_of("big") == 3 and replace(again, max_new_tokens=None).limit_of("big") == 7
    assert recorded(Prompting()) == {"scoring": "auto", "apply_chat_template": False, "tools_in_template": False}


def test_labels_and_checkpoint_carry_the_prompting(tmp_path, monkeypatch, capsys):
    """Cases of real use: a template that thinks, one that tells the time; both through stage 1 and a checkpoint."""
    file = tmp_path / "own.jsonl"
    file.write_text(
        '{"question": "What is 1200 + 34?", "answer": 1234}\n{"question": "Name a colour.", "answer": "red"}\n'
    )

    def label(name: str, folder: str, *words: str) -> tuple[dict, list[dict], str]:
        monkeypatch.setattr(
            "sys.argv",
            ["x", "--model", bring(name), "--dataset", str(file), "--num_simulations", "1", "--output_dir",
             str(tmp_path / folder), "--apply_chat_template", "--device", "cpu", *words],
        )  # fmt: skip
        generate.main()
        return read_header(tmp_path / folder), list(read_labels(tmp_path / folder)), capsys.readouterr().err

    header, records, told = label("dated_template", "dated", "--system_instruction", "Be short.")
    prompting = prompting_of(header)
    assert prompting.system_instruction == "Be short." and dict(prompting.limits) == {"own": 7}
    tokenizer = load_tokenizer(bring("dated_template"))
    assert all(record["prompt"].count("Be short.") == 1 for record in records)
    for record in records:
        request = labelled(record, tokenizer, prompting)
        assert vars(request) == vars(prompted(request.example, tokenizer, prompting))
    monkeypatch.setattr("routing.commands.work.generate.now", lambda: "1999-01-01T00:00:00")
    assert label("dated_template", "dated", "--system_instruction", "Be short.")[:2] == (header, records)
    with pytest.raises(UserError, match="system_instruction: was 'Be short.', now None"):
        label("dated_template", "dated")
    run_info = {"arguments": {"model_id": bring("dated_template")}, "prompting": recorded(prompting)}
    base = bring("dated_template")
    routers = RoutedLlamaForCausalLM.from_pretrained(base).model.routers.state_dict()
    save_checkpoint(tmp_path / "checkpoint", base, routers, {}, "copy", run_info)
    again = AutoTokenizer.from_pretrained(tmp_path / "checkpoint")
    assert trained_prompting(run_info) == prompting
    assert fill(again, "?", Prompting(system_instruction="Be short.")) == fill(tokenizer, "?", prompting)
    told = label("thinking_template", "thinking")[2]
    assert "no thought comes to its end" in told
    words = "--chat_template_args", '{"enable_thinking":  false}', "--max_new_tokens", "5"
    header, records, told = label("thinking_template", "quick", *words)
    assert header["arguments"]["chat_template_args"] == '{"enable_thinking": false}' and "limits" not in header
    assert "no thought" not in told and all("</think>" in record["prompt"] for record in records)
    with pytest.raises(UserError, match="names no such argument"):
        label("plain", "plain", *words)


def test_a_checkpoint_ends_answers_at_every_end(tmp_path):
    base = bring("eos_disagrees")
    routers = RoutedQwen3ForCausalLM.from_pretrained(base).model.routers.state_dict()
    ids_of = load_tokenizer(base).convert_tokens_to_ids
    for save_base in ("copy", "reference"):
        folder = tmp_path / save_base
        save_checkpoint(folder, base, routers, {}, save_base, {"arguments": {"model_id": base}})
        model, tokenizer = load_checkpoint(folder, torch.float32, torch.device("cpu"))
        ends = sorted(ids_of(["<|im_end|>", "<|endoftext|>"]))
        assert model.generation_config.eos_token_id == ends and end_ids(model, tokenizer) == tuple(ends)
