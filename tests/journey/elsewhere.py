"""A process that knows nothing of this repository: it loads checkpoints by their own code and generates.

Run as a script, it reads a checkpoint and a text a line (JSON) and writes the tokens of what the checkpoint makes of
it, until its input ends.
"""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
import tempfile
from functools import cache

GREEDY = {"do_sample": False, "max_new_tokens": 5, "repetition_penalty": 1.0}


@cache
def started() -> subprocess.Popen:
    """The process, one for all checkpoints of a session: to start one takes longer than to generate."""
    words = [
        sys.executable,
        "-I",
        __file__,
    ]  # -I: nothing is imported from the folder of this file, nor from PYTHONPATH.
    folder = tempfile.TemporaryDirectory()
    process = subprocess.Popen(words, cwd=folder.name, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def end() -> None:
        process.communicate()
        folder.cleanup()

    atexit.register(end)
    return process


def generate_elsewhere(checkpoint: str, text: str) -> list[int]:
    """Tokens of the text and of its continuation, as a checkpoint generates them in the other process."""
    process = started()
    print(json.dumps([checkpoint, text]), file=process.stdin, flush=True)
    found = json.loads(process.stdout.readline() or '{"error": "the process has ended"}')
    assert "tokens" in found, found["error"]
    return found["tokens"]


def main() -> None:
    import traceback

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert "routing" not in sys.modules and "train_models" not in sys.modules
    for line in sys.stdin:
        checkpoint, text = json.loads(line)
        try:
            model = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=True)
            ids = torch.tensor([tokenizer.encode(text)])
            answer = {"tokens": model.generate(ids, **GREEDY)[0].tolist(), "module": type(model).__module__}
            assert answer["module"].startswith("transformers_modules."), answer
        except Exception:  # The other process raises it, see `generate_elsewhere`.
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
