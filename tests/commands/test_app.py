"""`dlr app`: the function behind the page, and the page in a real browser where there is one."""

from __future__ import annotations

import importlib.util
import re
import shutil
import socket
import tomllib
from pathlib import Path

import pytest
from conftest import save_tiny_base, save_tiny_checkpoint, tiny_tokenizer
from looked_at import LAYERS, SIZES, routed
from test_report import Page

from routing.commands import app
from routing.commands.work.app import answering, interface, serve
from routing.common.errors import UserError
from routing.scoring.prompting import DEFAULT

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WANTED = {name: importlib.util.find_spec(name) for name in ("gradio", "playwright")} | {"chromium": CHROMIUM}
MISSING = ", ".join(name for name, found in WANTED.items() if not found)
PROMPT = "`one` ${1 + 1} <b>two</b>"


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_base(tmp_path_factory.mktemp("base"), LAYERS, initializer_range=0.5, **SIZES)


def layers_of(html: str) -> int:
    """Layers of the route that is shown."""
    return int(re.search(r'<th scope="row">prompt</th><td class="number">(\d+)</td>', html)[1])


def test_the_answer_is_a_look_at_the_budget_asked_for(base, tokenizer):
    model = routed(base, tokenizer, "per_layer")
    answer, knob = answering(model, tokenizer, DEFAULT, repeats=1)
    most, least, own = (answer(PROMPT, budget, 2.0) for budget in (1e9, -1e9, None))
    assert (layers_of(most), layers_of(least)) == (2 * LAYERS, 0) and model.config.route_bias == 0.0
    assert layers_of(own) == layers_of(answer(PROMPT, 0.0, 2)) and "of the time" in own
    assert "".join(Page(own).texts).count(PROMPT) == 1
    with pytest.raises(UserError, match="the text is empty"):
        answer("", None, 2)


def test_a_router_without_a_knob_answers_too(base, tokenizer):
    answer, knob = answering(routed(base, tokenizer, "none"), tokenizer, DEFAULT, repeats=0)
    assert knob is None and layers_of(answer(PROMPT, None, 2)) == 5


def test_without_gradio_one_line_tells_what_to_install(tmp_path, monkeypatch):
    checkpoint = save_tiny_checkpoint(tmp_path, 2)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as refused:
        app.main([str(checkpoint)])
    assert str(refused.value) == (f"dlr app needs gradio, which is not installed; pip install 'gradio=={app.VERSION}'")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["app"] == [f"gradio=={app.VERSION}"]


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}")
@pytest.mark.parametrize("width", (1280, 390))
def test_in_a_browser(base, tokenizer, width, tmp_path):
    from playwright.sync_api import sync_playwright

    answer, knob = answering(routed(base, tokenizer, "menu"), tokenizer, DEFAULT, repeats=1)
    blocks = interface("tiny", answer, knob, 4)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve(blocks, "127.0.0.1", port, wait=False)
    try:
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": width, "height": 900})
            errors, asked = [], []
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            page.goto(f"http://127.0.0.1:{port}")
            page.locator("#prompt textarea").fill(PROMPT)
            shown = []
            for budget in (knob.low, knob.high):
                page.locator("#budget input[type=number]").fill(str(budget))
                page.locator("#budget input[type=number]").press("Tab")
                page.locator("#ask").click()
                page.wait_for_selector(f"#found p:has-text('cost {budget:g}.')")
                shown.append(layers_of(page.locator("#found").inner_html()))
            assert shown[0] > shown[1]
            assert page.locator("#found pre").first.inner_text() == PROMPT
            assert page.locator("#found").get_by_text("Every layer once", exact=True).is_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            page.screenshot(path=tmp_path / f"app-{width}.png", full_page=True)
            assert not errors and all(f"//127.0.0.1:{port}" in url or url.startswith("data:") for url in asked)
            browser.close()
    finally:
        blocks.close()
