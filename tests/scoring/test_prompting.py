"""How labels were prompted is known to every later command."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from routing.common.errors import UserError
from routing.evaluation.arguments import EvaluationArguments
from routing.scoring.prompting import (
    DEFAULT,
    Prompting,
    asked,
    common_prompting,
    flag_problems,
    prompting_in,
    recorded,
    trained_prompting,
)
from routing.scoring.requests import draw_requests


def header(**arguments) -> dict:
    return {"arguments": {"dataset": "x"} | arguments}


def test_labels_say_how_they_were_prompted(capsys):
    chat = Prompting("generate", True, True)
    assert prompting_in(recorded(chat)) == chat and prompting_in({"dataset": "x"}) == DEFAULT
    assert common_prompting([header(**recorded(chat))] * 2) == chat and capsys.readouterr().err == ""
    found = common_prompting([header(**recorded(chat)), header(scoring="generate", apply_chat_template=False)])
    assert found == Prompting("generate", False, False)
    told = capsys.readouterr().err
    assert "labels differ in apply_chat_template (False, True)" in told and "scoring" not in told


def test_a_checkpoint_is_asked_as_it_was_trained_unless_flags_say_otherwise():
    def flags(**given):
        return SimpleNamespace(**{"apply_chat_template": False, "no_chat_template": False} | given)

    chat = trained_prompting({"prompting": {"scoring": "generate", "apply_chat_template": True}})
    assert asked(chat, flags()) == chat and trained_prompting({}) == DEFAULT
    assert asked(chat, flags(no_chat_template=True)) == Prompting("generate")
    assert asked(DEFAULT, flags(apply_chat_template=True, tools_in_template=True)) == Prompting("auto", True, True)
    (problem,) = flag_problems(flags(apply_chat_template=True, no_chat_template=True))
    assert "exclude each other" in problem and flag_problems(flags()) == []
    both = EvaluationArguments(checkpoint="x", tasks="y", apply_chat_template=True, no_chat_template=True)
    assert any("exclude each other" in problem for problem in both.problems())


def test_scoring_that_compares_choices_needs_some():
    with pytest.raises(UserError, match="arithmetic: the routers were trained with scoring loglikelihood, which"):
        draw_requests("arithmetic", "validation", 3, None, Prompting("loglikelihood"))
