"""What `dlr app` does: serves a page with a prompt, a slider and a look. gradio is imported when the page is made."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from threading import Lock

from routing.common.devices import DTYPES, pick_device
from routing.common.errors import UserError
from routing.evaluation.knobs import Knob, fields_at, knob_of
from routing.evaluation.look import load_any, look, prompting_for, question_of_text
from routing.models.config_fields import config_with
from routing.report.look_page import STYLE, look_html
from routing.scoring.prompting import Prompting, asked

ABOUT = (
    "Type a prompt. The routed model and the same model with every layer run once answer it in turn; times are medians."
)
NO_KNOB = "Nothing moves how many layers this router runs."
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}  # None that is fetched.


def answering(
    model, tokenizer, prompting: Prompting, repeats: int
) -> tuple[Callable[[str, float | None, float], str], Knob | None]:
    """Function (prompt, budget, limit of new tokens) -> a look as HTML, and the knob that the budget turns.

    One question at a time: the budget is set in the model while it answers.
    """
    knob, turn = knob_of(model.config), Lock()

    def answer(prompt: str, budget: float | None, new_tokens: float) -> str:
        question = question_of_text(prompt, tokenizer, prompting)
        fields = {} if knob is None or budget is None else fields_at(knob, budget)
        with turn, config_with(model, **fields):
            return look_html(look(model, tokenizer, question, int(new_tokens), repeats))

    return answer, knob


def interface(name: str, answer: Callable[[str, float | None, float], str], knob: Knob | None, new_tokens: int):
    """The page, a gradio.Blocks."""
    import gradio

    def told(*given) -> str:
        try:
            return answer(*given)
        except UserError as error:
            raise gradio.Error(str(error)) from error

    with gradio.Blocks(title=f"Routes of {name}", analytics_enabled=False) as blocks:
        gradio.Markdown(f"# Routes of {name}\n\n{ABOUT}")
        prompt = gradio.Textbox(label="Prompt", lines=3, elem_id="prompt")
        if knob is None:
            gradio.Markdown(NO_KNOB)
            budget = gradio.State(None)
        else:
            budget = gradio.Slider(
                knob.low, knob.high, knob.value, step=knob.step, label=knob.field, info=knob.words, elem_id="budget"
            )
        limit = gradio.Slider(1, max(256, new_tokens), new_tokens, step=1, label="New tokens, at most")
        button = gradio.Button("Ask", variant="primary", elem_id="ask")
        found = gradio.HTML(elem_id="found", apply_default_css=False)
        button.click(told, [prompt, budget, limit], found, concurrency_limit=1)
    return blocks


def serve(blocks, host: str, port: int, wait: bool = True):
    """Serve a page at an address, to the end unless `wait` is False."""
    import gradio

    theme = gradio.themes.Default(**FONTS)
    blocks.launch(
        server_name=host, server_port=port, share=False, css=STYLE, theme=theme, footer_links=[],
        prevent_thread_lock=not wait,
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    folder = arguments.checkpoint
    model, tokenizer = load_any(folder, DTYPES[arguments.dtype], pick_device(arguments.device))
    answer, knob = answering(model, tokenizer, asked(prompting_for(folder), arguments), arguments.repeats)
    serve(interface(folder.resolve().name, answer, knob, arguments.max_new_tokens), arguments.host, arguments.port)
