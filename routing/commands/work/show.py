"""What `dlr show` does: looks at the prompts, on the terminal and as a page."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from routing.common.devices import DTYPES, pick_device
from routing.common.errors import UserError
from routing.common.files import write_text
from routing.common.run_info import hardware, today
from routing.evaluation.knobs import fields_at, knob_of
from routing.evaluation.look import Question, load_any, look, prompting_for, question_of_text
from routing.models.config_fields import config_with
from routing.report.look_page import looks_page
from routing.report.look_text import print_look
from routing.scoring.context import fitting
from routing.scoring.prompting import Prompting, asked
from routing.scoring.requests import Request, draw_requests
from routing.tasks.examples import SPLITS


def questions(arguments: argparse.Namespace, tokenizer, prompting: Prompting, config) -> list[Question]:
    """What is asked: the text, or questions of data sets that the model has room for."""
    if arguments.text is not None:
        return [question_of_text(arguments.text, tokenizer, prompting, arguments.max_tokens)]
    if arguments.id is not None:
        requests = [request_by_id(arguments.id, tokenizer, prompting)]
    else:
        requests = draw_requests(arguments.dataset, arguments.split, arguments.num_samples, tokenizer, prompting)
    requests = fitting(requests, config)
    return [Question(request.example.id, request.prompt, request.prompt_ids, request) for request in requests]


def request_by_id(wanted: str, tokenizer, prompting: Prompting) -> Request:
    """The question of a data set with an id, whichever split it is in.

    Raises:
        UserError: if there is none.
    """
    name = wanted.rpartition("/")[0]
    for split in reversed(SPLITS):  # Most often it is one of the test.
        for request in draw_requests(name, split, None, tokenizer, prompting):
            if request.example.id == wanted:
                return request
    raise UserError(f"--id {wanted}: {name} has no such question; take an id of labels.jsonl, or of questions.html.")


def run(arguments: argparse.Namespace) -> None:
    folder, console = arguments.checkpoint, Console(highlight=False)
    model, tokenizer = load_any(folder, DTYPES[arguments.dtype], pick_device(arguments.device))
    prompting = asked(prompting_for(folder), arguments)
    fields = {} if arguments.budget is None else fields_at(knob_of(model.config), arguments.budget)
    looks = []
    with config_with(model, **fields):
        for question in questions(arguments, tokenizer, prompting, model.config):
            looks.append(look(model, tokenizer, question, arguments.max_new_tokens, arguments.repeats))
            print_look(looks[-1], console)
    if arguments.html:
        about = {"checkpoint": str(folder), "dtype": arguments.dtype, "hardware": hardware(), "date": today()}
        write_text(arguments.html, looks_page(looks, f"Routes of {folder.resolve().name}", about))
        print(f"written to {arguments.html}", file=sys.stderr)
