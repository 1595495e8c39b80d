"""`transformers serve` with a routed checkpoint, whose class it would look for in transformers and not find.

    pip install fastapi uvicorn openai
    python examples/serve_routed.py checkpoints/my-run --port 8000

Other options are those of `transformers serve`. The server is asked as any other that speaks OpenAI's interface:

    client = openai.OpenAI(base_url="http://localhost:8000/v1", api_key="none")
    client.completions.create(model="checkpoints/my-run", prompt="2 + 3 =", max_tokens=4, temperature=0)
"""

import json
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM


def name_the_class(checkpoint: str) -> None:
    """The server looks for the class of config.json in transformers; the one that loads a checkpoint's code will do."""
    (name,) = json.loads((Path(checkpoint) / "config.json").read_text())["architectures"]
    setattr(sys.modules["transformers"], name, AutoModelForCausalLM)


def main(checkpoint: str, *options: str) -> None:
    from transformers.cli.transformers import app

    name_the_class(checkpoint)
    app(["serve", checkpoint, "--trust-remote-code", *options])


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(print(__doc__))
    main(*sys.argv[1:])
