"""The example that sends prompts to servers: each arrives where the routed model itself would have run it."""

from __future__ import annotations

import importlib.util
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from zoo import bring

from routing.commands.export import main as export
from routing.models.checkpoint import save_checkpoint
from train_models.modeling_llama import RoutedLlamaForCausalLM

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "route_to_servers.py"
MENU = [[1, 1, 1, 1], [1, 1, 0, 1]]
PROMPTS = ["What is 123 + 456?", "The red or the blue one?", "Reply with the letter.", "A", "warm big round", "579"]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("route_to_servers", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def menu(tmp_path_factory):
    """A menu router that takes either path, and its export."""
    place, base = tmp_path_factory.mktemp("menu"), bring("plain")
    fields = {"router": "menu", "menu": MENU, "kept_layers": 2, "router_reads": [0, 2]}
    routed = RoutedLlamaForCausalLM.from_pretrained(base, **fields)
    torch.manual_seed(0)
    parts = {name: torch.randn_like(tensor) for name, tensor in routed.model.routers.state_dict().items()}
    parts |= {"errors": torch.zeros(len(MENU)), "scale": torch.ones_like(parts["scale"])}
    save_checkpoint(place / "checkpoint", str(base), parts, fields, "copy", {"arguments": {"model_id": str(base)}})
    export([str(place / "checkpoint"), "--menu", "--output", str(place / "out")])
    return place


@pytest.fixture
def servers():
    """Two servers that answer with their name and keep what they were asked."""
    running, asked = [], [[], []]

    def server(at: int) -> HTTPServer:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                asked[at].append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
                content = json.dumps({"choices": [{"message": {"content": f"server {at}"}}]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        return HTTPServer(("127.0.0.1", 0), Handler)

    for at in range(2):
        running.append(server(at))
        threading.Thread(target=running[at].serve_forever, daemon=True).start()
    yield [f"http://127.0.0.1:{one.server_port}" for one in running], asked
    for one in running:
        one.shutdown()
        one.server_close()


@torch.no_grad()
def test_each_prompt_arrives_where_the_router_sends_it(example, menu, servers, monkeypatch, capsys):
    urls, asked = servers
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(PROMPTS) + "\n"))
    example.main(str(menu / "checkpoint"), str(menu / "out"), *urls)
    model = AutoModelForCausalLM.from_pretrained(menu / "checkpoint", trust_remote_code=True).eval()
    tokenizer, expected = AutoTokenizer.from_pretrained(menu / "checkpoint", trust_remote_code=True), []
    for prompt in PROMPTS:
        chat = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        model(tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids)
        expected.append(MENU.index(model.last_routes[0].tolist()))
    assert set(expected) == {0, 1}, "both paths are taken, or nothing is tested"
    paths = ["0:4", "0:2,3"]
    assert capsys.readouterr().out.splitlines()[-len(PROMPTS) :] == [f"[{paths[at]}] server {at}" for at in expected]
    for at, received in enumerate(asked):
        assert [body["messages"][0]["content"] for _, body in received] == [
            prompt for prompt, own in zip(PROMPTS, expected, strict=True) if own == at
        ]
        assert {(path, body["model"]) for path, body in received} == {
            ("/v1/chat/completions", str(menu / "out" / f"path-{at:02d}"))
        }


def test_a_url_for_each_path(example, menu):
    with pytest.raises(SystemExit, match="give a URL for each of the 2 paths"):
        example.main(str(menu / "checkpoint"), str(menu / "out"), "http://localhost:1")
