"""The fast evaluator gives the verdicts of the plain one, whatever is shared, stored, drafted or cut short."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch
from conftest import LATE, LAYERS, LLAMA, QWEN2, SLIDING_FAMILIES, routed_from, stock_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from routing.scoring import packed as path_scoring
from routing.scoring.packed import PathEvaluator, continuations, shared_length
from routing.scoring.plain import Evaluator
from routing.scoring.requests import Request
from routing.search.routes import full_route
from routing.tasks.answers import CHECKERS, first_number, stated_letter
from routing.tasks.examples import Example
from routing.tasks.prompts import expected_answers

SPECIAL = ("</s>", "<pad>")
# Few characters, so that random models write answers; whole boxes, as a random model closes none. The letter é is
# two tokens, each of them half a character.
WORDS = (r"\boxed{7}", r"\boxed{12}", r"\boxed{}", "Answer:", "the", "is")
CHARACTERS = "0123456789ABCDab .,:-\né"
CHOICES = ("a b", "the 12", "C, é", "9.0 is")
# What a random model can answer rightly; calls it never writes.
# A solution hardly ever ends within the few tokens of these answers; test_zoo_prompts has ones that do.
WRITTEN = sorted(set(CHECKERS) - {"calls", "solution"})
LOGLIKELIHOODS = ("loglikelihood", "loglikelihood_norm", "loglikelihood_bytes")


def make_tokenizer(specials: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level, without merges; with `specials`, it knows an end and a padding token."""
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(CHARACTERS)[0][0]
    tokens = [*SPECIAL, *dict.fromkeys(letters)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in WORDS])
    names = {"eos_token": SPECIAL[0], "pad_token": SPECIAL[1]} if specials else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


TOKENIZER = make_tokenizer()
END, NEWLINE, BOX = TOKENIZER.eos_token_id, TOKENIZER.encode("\n")[0], TOKENIZER.encode(WORDS[0])[0]


def make_model(family=LLAMA, seed: int = 0):
    """(stock, routed) models that end their answers now and then."""
    stock = stock_model(family, seed, vocab_size=len(TOKENIZER))
    stock.lm_head.weight.data[[NEWLINE, BOX]] *= 1.3
    return stock, routed_from(family, stock, vocab_size=len(TOKENIZER))


# Asked for more often than others, so that some answers come back.
USUAL = ((1, 1, 1, 1, 1), (1, 1, 0, 1, 1), (1, 1, 2, 0, 1))


def random_route(rng: Random) -> tuple[int, ...]:
    route = tuple(rng.choice((0, 1, 1, 1, 2)) for _ in range(LAYERS))
    return route if any(route) and rng.random() < 0.4 else rng.choice(USUAL)


@torch.no_grad()
def written(model, request: Request, route, ends=END) -> str:
    """What the model answers along a route, up to any of some tokens."""
    output = model.generate(
        torch.tensor([request.prompt_ids]), routes=torch.tensor([route]), max_new_tokens=request.max_new_tokens,
        do_sample=False, pad_token_id=1, eos_token_id=ends,
    )  # fmt: skip
    text = TOKENIZER.decode(output[0, len(request.prompt_ids) :], skip_special_tokens=True)
    return text if request.stop is None else text.split(request.stop)[0]


def asked(checker: str, text: str, number: int, rng: Random) -> Example:
    """A question that a text answers rightly, where that is possible."""
    name = f"{checker} {number}"
    if checker == "letter":
        letter = stated_letter(text, len(CHOICES))
        gold = rng.randrange(len(CHOICES)) if letter is None else "ABCD".index(letter)
        choices = list(CHOICES)
        if letter is None and text.strip():  # Right is a letter, or the choice itself.
            choices[gold] = text
        return Example("quiz", name, choices[gold], tuple(choices), gold, "letter")
    found = first_number(text)
    answer = {
        "number": "7" if found is None else str(found),
        "exact": text.strip().split("\n")[0] or "b",
        "regex": rng.choice([r"[\s\S]*\d[\s\S]*", r"\D*", r"[^.]*"]),
        "boxed": "12" if "12}" in text else "7",
    }[checker]
    return Example("open", name, answer, checker=checker)


def random_prompt(rng: Random, begun=()) -> tuple[int, ...]:
    return (*begun, *(rng.randrange(2, len(TOKENIZER)) for _ in range(rng.randint(1, 7))))


def generating(model, checker: str, count: int, rng: Random) -> list[Request]:
    """Requests whose answers the model gives along some route; some end at a newline."""
    begun, requests = random_prompt(rng) + (5, 6, 7), []
    for number in range(count):
        request = Request(
            Example("open", "?", "?", checker=checker), "generate", "", random_prompt(rng, begun if number else ()),
            max_new_tokens=rng.randint(1, 9), stop=rng.choice([None, "\n"]),
        )  # fmt: skip
        example = asked(checker, written(model, request, random_route(rng)), number, rng)
        drafts = [TOKENIZER.encode(space + text) for text in expected_answers(example, True) for space in ("", " ")]
        requests.append(replace(request, example=example, expected_ids=tuple(map(tuple, drafts))))
    return requests


def choosing(scoring: str, count: int, rng: Random, begun=(9, 8, 7, 6, 5)) -> list[Request]:
    """Requests with choices of different lengths, of which some share beginnings, and one has a single token."""
    requests = []
    for number in range(count):
        texts = rng.sample([*CHOICES, "the 1", "the 12:", "B"], rng.randint(2, 4))
        gold = rng.randrange(len(texts))
        example = Example(f"quiz-{number % 2}", f"{scoring} {number}", texts[gold], tuple(texts), gold, "letter")
        ids = tuple(tuple(TOKENIZER.encode(text)) for text in texts)
        requests.append(Request(example, scoring, "", random_prompt(rng, begun), choice_ids=ids))
    return requests


class Case:
    """Pairs with the verdicts of the plain evaluator, each pair alone."""

    def __init__(self, model, requests: list[Request], rng: Random, repeats: int = 2):
        self.model, self.requests = model, requests
        pairs = [(request, random_route(rng)) for request in requests for _ in range(repeats)]
        pairs += [(request, full_route(LAYERS)) for request in requests[::3]]
        rng.shuffle(pairs)
        pairs.append(pairs[0])
        self.asked, self.routes = map(list, zip(*pairs))
        self.expected = Evaluator(model, TOKENIZER, batch_size=1).verdicts(self.asked, self.routes)

    def check(self, evaluator: PathEvaluator) -> None:
        found = evaluator.verdicts(self.asked, self.routes)
        assert [v.correct for v in found] == [v.correct for v in self.expected]
        for verdict, expected in zip(found, self.expected):
            assert verdict.margin == pytest.approx(expected.margin, abs=1e-4)

    def varied(self) -> None:
        """Guards the guards."""
        assert len({verdict.correct for verdict in self.expected}) == 2


@pytest.fixture(scope="module")
def model():
    return make_model()[1]


@pytest.fixture(scope="module", params=WRITTEN)
def generated(request, model) -> Case:
    rng = Random(request.param)
    return Case(model, generating(model, request.param, 8, rng), rng)


@pytest.fixture(scope="module")
def mixed(model) -> Case:
    """All scorings and several data sets in one group."""
    rng = Random(5)
    requests = [r for scoring in LOGLIKELIHOODS for r in choosing(scoring, 3, rng)]
    requests += [r for checker in WRITTEN for r in generating(model, checker, 2, rng)]
    rng.shuffle(requests)
    return Case(model, requests, rng)


def test_tokenizer_cuts_characters():
    assert len(TOKENIZER.encode("é")) == 2 and TOKENIZER.decode(TOKENIZER.encode("é")[:1]) == "\ufffd"
    for text in (*CHOICES, *WORDS):
        assert TOKENIZER.decode(TOKENIZER.encode(text), clean_up_tokenization_spaces=False) == text


def test_generated_answers(generated):
    generated.varied()
    evaluator = PathEvaluator(generated.model, TOKENIZER)
    evaluator.prepare(generated.requests)
    generated.check(evaluator)
    before = evaluator.runner.layer_tokens
    generated.check(evaluator)
    assert evaluator.runner.layer_tokens == before
    generated.check(PathEvaluator(generated.model, TOKENIZER))


@pytest.mark.parametrize("scoring", LOGLIKELIHOODS)
@pytest.mark.parametrize("family", [LLAMA, QWEN2, *LATE, *SLIDING_FAMILIES], ids=str)
def test_choices(scoring, family):
    rng = Random(scoring)
    late = family in LATE
    case = Case(make_model(family)[1], choosing(scoring, 14 if late else 7, rng), rng)
    case.varied()
    for prepared in (True, False):
        evaluator = PathEvaluator(case.model, TOKENIZER)
        if prepared:
            evaluator.prepare(case.requests)
        case.check(evaluator)
        # Some random models nearly tie, and the plain evaluator has a part in few verdicts only.
        assert evaluator.ties <= (len(case.asked) // 10 if late else 0)


@pytest.mark.parametrize("family", SLIDING_FAMILIES, ids=str)
def test_generated_answers_with_sliding_windows(family):
    rng = Random(1)
    model = make_model(family)[1]
    case = Case(model, [r for checker in WRITTEN for r in generating(model, checker, 2, rng)], rng)
    case.varied()
    evaluator = PathEvaluator(model, TOKENIZER)
    evaluator.prepare(case.requests)
    case.check(evaluator)


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("batch_size, memory, max_tokens", [(1, 2**30, 2048), (3, 0, 2048), (5, 50_000, 9)])
def test_batches_and_memory_change_nothing(mixed, prepared, batch_size, memory, max_tokens):
    mixed.varied()
    evaluator = PathEvaluator(mixed.model, TOKENIZER, batch_size, memory)
    evaluator.runner.max_tokens = max_tokens
    if prepared:
        evaluator.prepare(mixed.requests)
        evaluator.influence(mixed.requests)
        assert evaluator.store.bytes <= memory
    mixed.check(evaluator)
    assert evaluator.store.bytes <= memory


def test_drafts_change_nothing(mixed, monkeypatch):
    """Neither no drafts nor wrong ones; and right ones save steps."""
    saved = PathEvaluator(mixed.model, TOKENIZER)
    mixed.check(saved)
    rng = Random(2)

    def wrong(request: Request) -> list[tuple[int, ...]]:
        return continuations(request) + [random_prompt(rng) for _ in range(3)] + [(END, NEWLINE)]

    def none(request: Request) -> list[tuple[int, ...]]:
        return [] if request.scoring == "generate" else continuations(request)

    for drafts in (wrong, none):
        monkeypatch.setattr(path_scoring, "continuations", drafts)
        evaluator = PathEvaluator(mixed.model, TOKENIZER)
        evaluator.prepare(mixed.requests)
        mixed.check(evaluator)
        monkeypatch.undo()


def test_drafted_answers_need_no_step(model):
    rng = Random(0)
    request = generating(model, "exact", 1, rng)[0]
    route = full_route(LAYERS)
    request = replace(request, max_new_tokens=4, stop=None)
    answer = tuple(TOKENIZER.encode(written(model, request, route)))
    used = []
    for drafts in ((answer,), ()):
        evaluator = PathEvaluator(model, TOKENIZER)
        drafted = replace(request, expected_ids=drafts)
        evaluator.verdicts([drafted], [route])
        used.append(len(evaluator._tree(drafted).segments()))
    assert used[0] == 1 < used[1]


def test_early_verdicts_change_nothing(mixed, monkeypatch):
    early, late = (PathEvaluator(mixed.model, TOKENIZER) for _ in range(2))
    mixed.check(early)
    monkeypatch.setattr(path_scoring, "settled", lambda text, example: None)
    mixed.check(late)
    assert early.runner.layer_tokens < late.runner.layer_tokens


@pytest.mark.parametrize("kind", ["int", "list", "none"])
def test_end_of_answers(kind):
    """An end token, several of which one is a plain character, or none at all."""
    model = make_model()[1]
    model.generation_config.eos_token_id = {"int": END, "list": [END, BOX], "none": None}[kind]
    rng = Random(3)
    requests = [r for checker in WRITTEN for r in generating(model, checker, 2, rng)]
    for limit in (1, 5):
        case = Case(model, [replace(request, max_new_tokens=limit) for request in requests], rng, repeats=1)
        case.varied()
        case.check(PathEvaluator(model, TOKENIZER))


def test_an_end_token_ends_the_answer():
    """Answers that are right up to an end token of the generation config, and wrong where the text goes on."""
    model = make_model()[1]
    rng = Random(3)
    request = replace(generating(model, "exact", 1, rng)[0], max_new_tokens=6, stop=None, expected_ids=())
    asked, routes = [], []
    for _ in range(500):
        trial, route = replace(request, prompt_ids=random_prompt(rng)), random_route(rng)
        endless = written(model, trial, route)
        example = Example("open", "?", written(model, trial, route, [END, BOX]).removesuffix(TOKENIZER.decode([BOX])))
        if CHECKERS["exact"](example.answer, example) and not CHECKERS["exact"](endless, example):
            asked.append(replace(trial, example=example))
            routes.append(route)
        if len(asked) == 3:
            break
    assert len(asked) == 3
    model.generation_config.eos_token_id = [END, BOX]
    assert all(verdict.correct for verdict in PathEvaluator(model, TOKENIZER).verdicts(asked, routes))
    model.generation_config.eos_token_id = None
    assert not any(verdict.correct for verdict in PathEvaluator(model, TOKENIZER).verdicts(asked, routes))


def test_tokenizer_without_special_tokens(model):
    bare = make_tokenizer(specials=False)
    assert bare.eos_token_id is None and bare.pad_token_id is None
    rng = Random(4)
    case = Case(model, generating(model, "number", 3, rng) + choosing("loglikelihood", 3, rng), rng)
    case.check(PathEvaluator(model, bare))


class Asked(Evaluator):
    """A plain evaluator that notes what it was asked."""

    def verdicts(self, requests, routes):
        self.pairs = [*getattr(self, "pairs", []), *zip(requests, routes)]
        return super().verdicts(requests, routes)


def test_exact_ties_are_the_plain_evaluators():
    """Two tokens with the same row in the head: equal logits, wherever one of them is best."""
    model = make_model()[1]
    seven, eight = TOKENIZER.encode("7")[0], TOKENIZER.encode("8")[0]
    model.lm_head.weight.data[seven] *= 1.5
    model.lm_head.weight.data[eight] = model.lm_head.weight.data[seven]
    rng = Random(0)
    requests = generating(model, "number", 6, rng)
    for number, texts in enumerate((("7", "8"), ("8", "7"), ("a7", "a8"), ("A", "B"))):
        for gold in range(2):
            example = Example("quiz", f"{number} {gold}", texts[gold], texts, gold, "letter")
            ids = tuple(tuple(TOKENIZER.encode(text)) for text in texts)
            requests.append(Request(example, "loglikelihood", "", (5, 6, 7), choice_ids=ids))
    case = Case(model, requests, rng)
    case.varied()
    evaluator = PathEvaluator(model, TOKENIZER)
    evaluator.alone = Asked(model, TOKENIZER, batch_size=1)
    evaluator.prepare(requests)
    case.check(evaluator)
    pairs = evaluator.alone.pairs
    assert evaluator.ties == len(pairs) < len(case.asked)
    scored = [request for request in case.asked if request.scoring != "generate"]
    tied = [request for request, _ in pairs if request.scoring != "generate"]
    assert [r for r in scored if "A" not in r.example.choices] == tied
    assert len(tied) < len(pairs), "some generated answers tie"


def test_ties_in_half_precision_are_decided_together(monkeypatch):
    """They are common there: one batch each, and they are counted."""
    model = make_model()[1].to(torch.bfloat16)
    monkeypatch.setattr(path_scoring, "TIE", 1e9)
    requests = generating(model, "number", 6, Random(0))
    evaluator, calls = PathEvaluator(model, TOKENIZER, 4), []

    def together(some, routes):
        calls.append(len(some))
        return [True] * len(some)

    monkeypatch.setattr(evaluator.together, "verdicts", together)
    full = tuple([1] * model.config.num_hidden_layers)
    assert evaluator.verdicts(requests, [full] * 6) == [True] * 6
    assert calls == [4, 2] and evaluator.ties == 6


def test_near_ties_of_normalised_scores():
    """A tie is one of the compared scores: per character, and per byte."""
    texts = ("ab", "abcd")
    requests = {
        scoring: Request(Example("q", "?", texts[0], texts, 0, "letter"), scoring, "", (1,), choice_ids=((1,), (2,)))
        for scoring in LOGLIKELIHOODS
    }
    assert path_scoring._is_tie([-1.0, -1.0005], requests["loglikelihood"])
    assert not path_scoring._is_tie([-1.0, -2.0], requests["loglikelihood"])
    for scoring in LOGLIKELIHOODS[1:]:
        assert path_scoring._is_tie([-1.0, -2.0005], requests[scoring])
        assert not path_scoring._is_tie([-1.0, -1.0], requests[scoring])


def test_ties_among_wrong_choices_are_none():
    texts = ("a", "b", "c")
    example = Example("q", "?", "a", texts, 0, "letter")
    request = Request(example, "loglikelihood", "", (1,), choice_ids=((1,), (2,), (3,)))
    assert not path_scoring._is_tie([-1.0, -2.0, -2.0], request)


def test_finished_requests_leave_nothing(mixed):
    evaluator = PathEvaluator(mixed.model, TOKENIZER)
    evaluator.prepare(mixed.requests)
    mixed.check(evaluator)
    shared = sum(state.nbytes for segment in evaluator._shared for state in segment.states.values())
    assert 0 < shared < evaluator.store.bytes
    for request in mixed.requests:
        evaluator.finish(request)
        evaluator.finish(request)
    assert evaluator.store.bytes == shared
    # Asked again, a finished request is as new.
    mixed.check(evaluator)
    assert evaluator.store.bytes > shared
    evaluator.release()
    assert evaluator.store.bytes == 0 and not evaluator._trees
    mixed.check(evaluator)
    evaluator.prepare(mixed.requests[:2])
    assert evaluator.store.bytes == 0


def test_prompt_of_one_token(model):
    rng = Random(6)
    requests = choosing("loglikelihood", 2, rng, begun=()) + generating(model, "number", 2, rng)
    requests = [replace(request, prompt_ids=(9,)) for request in requests]
    case = Case(model, requests, rng)
    for others in ([], choosing("loglikelihood", 2, rng)):
        evaluator = PathEvaluator(model, TOKENIZER)
        evaluator.prepare(requests + others)
        case.check(evaluator)
        assert all(len(row) == LAYERS for row in evaluator.influence(requests))


def test_pairs_of_an_empty_batch(model):
    evaluator = PathEvaluator(model, TOKENIZER)
    assert evaluator.verdicts([], []) == evaluator.influence([]) == []


def test_prompts_share_what_all_begin_with():
    assert shared_length([(1, 2, 3, 4), (1, 2, 3, 5)]) == 3
    assert shared_length([(1, 2, 3), (1, 2, 3)]) == 2
    assert shared_length([(1, 2, 3), (1, 2)]) == 1
    assert shared_length([(1, 2), (2, 2)]) == shared_length([(1,), (1, 2)]) == 0


def test_groups_share_within_data_set_and_scoring(model):
    rng = Random(0)
    begun = tuple(range(2, 12))
    requests = choosing("loglikelihood", 4, rng, begun) + choosing("loglikelihood_norm", 4, rng, begun)
    evaluator = PathEvaluator(model, TOKENIZER)
    evaluator.prepare(requests)
    assert len(evaluator._shared) == 4 and all(len(segment) >= len(begun) for segment in evaluator._shared)
    for request in requests:
        line = evaluator._tree(request).segment.line
        assert line[0] in evaluator._shared
        assert (*line[0].tokens, *line[1].tokens)[: len(request.prompt_ids)] == request.prompt_ids
    evaluator.prepare(requests[:1])
    assert not evaluator._shared


@pytest.mark.parametrize("family", [LLAMA, SLIDING_FAMILIES[0]], ids=str)
@torch.no_grad()
def test_influence_is_that_of_the_stock_model(family, monkeypatch):
    stock, model = make_model(family)
    rng = Random(8)
    requests = choosing("loglikelihood", 5, rng) + generating(model, "exact", 3, rng)
    requests.append(replace(requests[0], prompt_ids=(7,)))
    expected = []
    for request in requests:
        passed = []
        hooks = [
            layer.register_forward_hook(lambda layer, inputs, output, into=passed: into.append((inputs[0], output)))
            for layer in stock.model.layers
        ]
        states = stock(torch.tensor([request.prompt_ids]), output_hidden_states=True).hidden_states
        for hook in hooks:
            hook.remove()
        row = []
        for at, (before, after) in enumerate(passed):
            assert torch.equal(before, states[at])
            tokens = range(1 if len(request.prompt_ids) > 1 else 0, len(request.prompt_ids))
            cosines = [torch.cosine_similarity(before[0, t], after[0, t], dim=0).item() for t in tokens]
            row.append(1 - sum(cosines) / len(cosines))
        expected.append(row)
    for prepared, batch_size, memory, group in ((True, 32, 2**30, 64), (True, 2, 0, 4), (False, 3, 20_000, 1)):
        monkeypatch.setattr(path_scoring, "INFLUENCE_BATCH", group)
        evaluator = PathEvaluator(model, TOKENIZER, batch_size, memory)
        if prepared:
            evaluator.prepare(requests)
        found = evaluator.influence(requests)
        assert evaluator.store.bytes <= memory
        assert list(map(len, found)) == [LAYERS] * len(requests)
        for row, wanted in zip(found, expected):
            assert row == pytest.approx(wanted, abs=5.1e-4)
            assert row == [round(value, 3) for value in row]
    assert max(max(row) for row in expected) - min(min(row) for row in expected) > 0.05


def test_states_of_influence_serve_the_full_path(model):
    requests = choosing("loglikelihood", 4, Random(1))
    evaluator = PathEvaluator(model, TOKENIZER)
    evaluator.prepare(requests)
    evaluator.influence(requests)
    before = evaluator.runner.layer_tokens
    evaluator.verdicts(requests, [full_route(LAYERS)] * len(requests))
    assert evaluator.runner.layer_tokens == before > 0
