"""Spellings of options, and the end of a command that nobody reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import HfArgumentParser

from routing.commands import adapters, labels, show, text_evaluation
from routing.common.cli import read_arguments
from routing.common.dataclass_parser import parser_of
from routing.common.parser import Parser, file_of, spelled
from routing.evaluation.arguments import EvaluationArguments
from routing.labels.arguments import DataGenerationArguments
from routing.training.adapters.arguments import AdapterArguments
from routing.training.registry import OBJECTIVES

ROOT = Path(__file__).resolve().parents[2]
# One of each class of arguments: many objectives share theirs.
KINDS = {kind: kind for kind in (row.arguments() for row in OBJECTIVES.values())}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("equals", (False, True))
def test_every_training_takes_both_names_of_model_and_output(kind, equals):
    for model, output in (("--model", "--output"), ("--model_id", "--output_dir")):
        words = [f"{model}=m", f"{output}=o"] if equals else [model, "m", output, "o"]
        own = read_arguments(kind, words)
        assert (own.model_id, own.output_dir) == ("m", "o")


@pytest.mark.parametrize("words", (["--model", "m", "--output_dir", "o"], ["--model_id", "m", "--output", "o"]))
def test_label_generation_takes_both_names(words):
    own = read_arguments(DataGenerationArguments, words)
    assert (own.model, own.output_dir) == ("m", "o")


@pytest.mark.parametrize("words", (["--checkpoint", "c"], ["c"], ["--checkpoint=c"]))
def test_a_checkpoint_is_named_or_comes_first(words):
    tasks = ["--tasks", "t"]
    assert read_arguments(EvaluationArguments, words + tasks).checkpoint == "c"
    assert text_evaluation.make_parser().parse_args([*words, "--rows", "3"]).checkpoint == "c"
    assert text_evaluation.make_parser().parse_args(["--rows", "3", *words]).checkpoint == "c"
    assert show.make_parser().parse_args([*words, "--text", "hello"]).checkpoint == Path("c")


@pytest.mark.parametrize(
    "words", (["l", "o"], ["--data", "l", "--output", "o"], ["l", "--output=o"], ["--output_dir", "o", "--data", "l"])
)
def test_labels_and_output_are_named_or_stand_in_their_order(words):
    found = labels.make_parser().parse_args(["export", *words, "--format", "polar"])
    assert (found.labels, found.output) == (Path("l"), Path("o"))


def test_several_folders_of_labels_have_commas_between():
    parser = Parser()
    parser.add_argument("labels", nargs="+")
    parser.add_argument("--again", nargs="+")
    found = parser.parse_args(["--again", "x", "y", "--data", "a,b"])
    assert (found.labels, found.again) == (["a", "b"], ["x", "y"])


def test_help_shows_one_spelling():
    parser = Parser(prog="x")
    parser.add_argument("--model")
    assert "model_id" not in parser.format_help()
    assert parser.parse_args(["--model_id", "m"]).model == "m"


def test_a_parser_with_both_names_keeps_them_apart():
    parser = Parser()
    parser.add_argument("--model")
    parser.add_argument("--model_id")
    assert spelled(parser, ["--model", "a", "--model_id=b"]) == ["--model", "a", "--model_id=b"]


@pytest.mark.parametrize("name", ("--data", "--dataset"))
def test_questions_are_a_dataset_and_the_old_name_is_taken(name, capsys):
    with pytest.raises(Exception, match="--dataset: unknown data set 'nonesuch'|nonesuch"):
        adapters.parse_arguments(["no-folder", name, "nonesuch", "--output", "o"])


def test_values_are_no_names_and_what_follows_two_dashes_is_left():
    parser = Parser()
    parser.add_argument("--text")
    parser.add_argument("--model")
    parser.add_argument("rest", nargs="*")
    assert spelled(parser, ["--text=--model_id=x", "--", "--model_id"]) == ["--text=--model_id=x", "--", "--model_id"]


def test_an_output_is_a_folder_or_a_file_of_its_kind():
    assert file_of("out", "evaluation.json") == Path("out/evaluation.json")
    assert file_of("out/my.json", "evaluation.json") == Path("out/my.json")


def test_training_of_adapters_has_more_options_that_begin_as_model_does():
    assert read_arguments(AdapterArguments, ["--model", "m"]).model_batch_size == 32


@pytest.mark.parametrize("words", (["-m", "routing"], ["train.py", "--help"]))
def test_a_command_whose_reader_has_left_ends_without_a_word(words):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run([sys.executable, *words], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 141


def test_another_broken_pipe_is_told():
    code = "from routing.common.errors import run_command\ndef main(): raise BrokenPipeError\nrun_command(main)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "BrokenPipeError" in done.stderr


@pytest.mark.parametrize(
    ("words", "base", "check", "limit"),
    [
        ([], True, False, None),
        (["--no_base", "--check", "--limit", "3"], False, True, 3),
        (["--no-base", "--check=yes"], False, True, None),
        (["--base", "false", "--check", "0"], False, False, None),
        (["--base", "--check", "T"], True, True, None),
    ],
)
def test_flags_of_a_dataclass_are_on_off_or_told(words, base, check, limit):
    own = read_arguments(EvaluationArguments, words)
    assert (own.base, own.check, own.limit) == (base, check, limit)


def test_words_that_no_option_takes_are_refused(capsys):
    for words, reason in ((["--check", "perhaps"], "Truthy value expected"), (["--limit", "x"], "invalid int value")):
        with pytest.raises(SystemExit):
            read_arguments(EvaluationArguments, words)
        assert reason in capsys.readouterr().err


@pytest.mark.parametrize("kind", [*KINDS, DataGenerationArguments, EvaluationArguments], ids=lambda kind: kind.__name__)
def test_options_are_those_that_transformers_would_make(kind):
    assert parser_of(kind).format_help() == HfArgumentParser(kind, description=kind.__doc__).format_help()
