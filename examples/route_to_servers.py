"""Send each prompt to one of several OpenAI-compatible servers, as a menu router decides.

    python -m routing export checkpoints/menu --menu --output exports/menu
    vllm serve exports/menu/path-00 --port 8000 & vllm serve exports/menu/path-01 --port 8001 &
    python examples/route_to_servers.py checkpoints/menu exports/menu http://localhost:800{0,1} < prompts

One URL for each path of menu.json, in its order; one prompt a line. Only the layers run here that the router reads.
"""

import json
import sys
import urllib.request
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.no_grad()
def decide(model, ids: torch.LongTensor) -> int:
    """Index in the menu of the path of one prompt [1, T]; layers behind the kept ones are skipped."""
    config = model.config
    first = [[int(layer < config.kept_layers) for layer in range(config.num_hidden_layers)]]
    run = model.model(ids, routes=torch.tensor(first), use_cache=False, output_hidden_states=True)
    read = [run.hidden_states[depth] for depth in config.router_reads]
    return model.model.routers.choose(read, torch.ones_like(ids, dtype=torch.bool), config)[0]


def ask(url: str, name: str, messages: list[dict], **settings) -> str:
    body = json.dumps({"model": name, "messages": messages} | settings).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


def main(checkpoint: str, exported: str, *urls: str) -> None:
    paths = json.loads((Path(exported) / "menu.json").read_text())["paths"]
    if len(urls) != len(paths):
        sys.exit(f"give a URL for each of the {len(paths)} paths of {exported}/menu.json, got {len(urls)}")
    model = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=True)
    for line in sys.stdin:
        messages = [{"role": "user", "content": line.rstrip("\n")}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        at = decide(model, tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids)
        print(f"[{paths[at]['path']}] {ask(urls[at], str(Path(exported) / paths[at]['folder']), messages)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
