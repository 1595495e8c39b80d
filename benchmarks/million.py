"""Does memory stay flat however many questions there are? Drawn, labelled and trained on, at several sizes.

    python benchmarks/million.py --questions 10000,100000,1000000 --json benchmarks/results/million.json

The commands are the real ones, `data_generation.py` on a file of questions and `train.py` on its labels. The model is
a tiny random Llama, which hardly runs: verdicts come from a hash and router inputs are random numbers in its place, and
a loop gives the tokenizer's tokens. So the time is that of everything around the model. Each command is a process of
its own, whose resident memory is looked at five times a second; `command_peak_mib` is what the kernel counted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from routing.common.errors import UserError, run_command
from routing.common.files import write_json
from routing.common.run_info import git_commit, hardware, today, versions
from routing.search.results import Verdict

LOOKS = 0.2  # seconds between two looks at memory
POINTS = 40  # of a curve that are kept
SHAPE = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
MENU = "path:0:2,3:4+path:0:3"  # beside the full path
MARKS = "marks.jsonl"
BASE, SOURCE, LABELLED, RUNS = "base", "questions.jsonl", "labels", "runs"


def write_questions(path: Path, count: int) -> None:
    with path.open("w") as file:
        for index in range(count):
            question = f"{index} and {index % 97} make"
            file.write(json.dumps({"question": question, "answer": index + index % 97}) + "\n")


def write_base(folder: Path) -> None:
    import torch
    from gpu_sections.search import character_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = character_tokenizer()
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **ends, **SHAPE)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Evaluator:
    """Stands in for the search's evaluator: verdicts that hang on question and route alone."""

    ties = 0

    def prepare(self, requests) -> None:
        pass

    def finish(self, request) -> None:
        pass

    def verdicts(self, requests, routes) -> list[Verdict]:
        keys = (f"{request.example.id}{route}".encode() for request, route in zip(requests, routes, strict=True))
        return [Verdict(zlib.crc32(key) % 10 < 4) for key in keys]


def inputs(model, examples, pad_id: int) -> dict:
    """Random numbers with the shapes of `routing.training.features.router_inputs`."""
    import torch

    config, count = model.config, len(examples)
    shape = (count, config.num_hidden_layers, config.num_windows, config.hidden_size)
    labels = torch.tensor([example.route for example in examples])
    return {"features": torch.rand(shape), "windows": torch.ones(count, shape[2], dtype=torch.bool), "labels": labels}


def short_tokens(module) -> None:
    """Let the tokenizers that a module loads make their tokens, one a character, by a loop."""
    load = module.load_tokenizer

    def loading(name: str):
        tokenizer = load(name)
        ids = {character: number for character, number in tokenizer.get_vocab().items() if len(character) == 1}
        tokenizer.encode = lambda text, add_special_tokens=True: [ids[character] for character in text]
        return tokenizer

    module.load_tokenizer = loading


def marked(place: Path, module, name: str, mark: str) -> None:
    """Note when a function of a module has returned."""
    original = getattr(module, name)

    def noting(*arguments, **others):
        found = original(*arguments, **others)
        note(place, mark)
        return found

    setattr(module, name, noting)


def note(place: Path, mark: str) -> None:
    with (place / MARKS).open("a") as file:
        file.write(json.dumps([mark, time.time()]) + "\n")


def label(place: Path) -> None:
    """The first command: questions are drawn and labelled."""
    from routing.commands import generate as command
    from routing.commands.work import generate

    generate.load_model = lambda arguments, config: None
    generate.make_scorer = lambda *arguments: (Evaluator(),) * 2
    short_tokens(generate)
    marked(place, generate, "draw_questions", "drawing")
    marked(place, generate, "label_all", "labelling")
    words = ["--model", place / BASE, "--dataset", place / SOURCE, "--output_dir", place / LABELLED, "--search", "menu"]
    words += ["--menu", MENU, "--group_size", 2048, "--max_new_tokens", 8]
    command.main([str(word) for word in words])
    note(place, "its card")


def train(place: Path) -> None:
    """The second command: labels are read, router inputs made and kept, routers trained."""
    from routing.commands import train as command
    from routing.training import features
    from routing.training.routers import run

    features.PackedInputs = lambda model: inputs
    short_tokens(run)
    marked(place, run, "load_training_data", "reading labels")
    marked(place, run, "cache_features", "router inputs")
    marked(place, run, "train_routers", "training")
    words = ["--model_id", place / BASE, "--data", place / LABELLED, "--run_name", "million", "--num_epochs", 1]
    words += ["--work_dir", place / RUNS, "--output_dir", place / "made", "--batch_size", 512, "--num_windows", 2]
    words += ["--router_hidden_size", 8, "--num_evaluations", 1, "--eval_examples", 16, "--device", "cpu"]
    sys.argv = ["train.py", *map(str, words)]
    command.main()
    note(place, "its checkpoint")


COMMANDS = {"label": label, "train": train}


class Look(NamedTuple):
    """What a process takes at a moment: seconds since its start, those of a processor, MiB, and MiB without files."""

    at: float
    cpu: float
    mib: float
    anonymous_mib: float


def look(process: int, began: float) -> Look | None:
    """None once the process is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        times = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    if "VmRSS" not in fields:
        return None
    cpu = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
    return Look(time.time() - began, cpu, *(int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon")))


def watched(name: str, place: Path) -> list[dict]:
    """Run a command of COMMANDS; its stages with seconds, largest memory and curve."""
    (place / MARKS).unlink(missing_ok=True)
    words = [sys.executable, __file__, "--command", name, "--folder", str(place)]
    with (place / "stderr").open("w+") as told:
        began = time.time()
        running = subprocess.Popen(words, stderr=told, stdout=told, env=os.environ | {"OMP_NUM_THREADS": "1"})
        looks: list[Look] = []
        while (found := os.wait4(running.pid, os.WNOHANG))[0] == 0:
            if (seen := look(running.pid, began)) is not None:
                looks.append(seen)
            time.sleep(LOOKS)
        told.seek(0)
        if found[1]:
            raise UserError(f"{name} failed: {told.read()[-1500:]}")
    stages, start, before = [], 0.0, 0.0
    for mark, moment in map(json.loads, (place / MARKS).read_text().splitlines()):
        end = moment - began
        own = [seen for seen in looks if start <= seen.at <= end] or [min(looks, key=lambda seen: abs(seen.at - end))]
        stages.append(
            {"command": name, "stage": mark, "seconds": end - start, "cpu_seconds": own[-1].cpu - before}
            | {"mib": max(seen.mib for seen in own), "anonymous_mib": max(seen.anonymous_mib for seen in own)}
            | {"curve": [[round(seen.at, 1), round(seen.mib)] for seen in own[:: len(own) // POINTS + 1]]}
        )
        start, before = end, own[-1].cpu
    peak = found[2].ru_maxrss / 1024
    return [stage | {"command_peak_mib": peak} for stage in stages]


def disk(place: Path) -> float:
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", default="10000,100000,1000000", help="numbers of questions, one after the other")
    parser.add_argument("--folder", type=Path, help="where all is written; default a temporary folder, removed")
    parser.add_argument("--command", choices=tuple(COMMANDS), help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="file for the results; those of other sizes stay in it")
    arguments = parser.parse_args()
    if arguments.command:
        COMMANDS[arguments.command](arguments.folder)
        return
    rows = []
    for count in map(int, arguments.questions.split(",")):
        place = Path(tempfile.mkdtemp(dir=arguments.folder))
        try:
            write_base(place / BASE)
            write_questions(place / SOURCE, count)
            stages = [stage for name in COMMANDS for stage in watched(name, place)]
            rows += [{"questions": count} | stage | {"disk_mib": disk(place)} for stage in stages]
        finally:
            shutil.rmtree(place)
        show(rows)
    if arguments.json:
        about = {"hardware": hardware(), "date": today(), "versions": versions(), "git_commit": git_commit()}
        write_json(
            arguments.json,
            about
            | {
                "shape": SHAPE,
                "rows": sorted(rows + kept_rows(arguments.json, rows), key=lambda row: row["questions"]),
            },
        )


def kept_rows(path: Path, rows: list[dict]) -> list[dict]:
    """Rows of a file of results whose sizes were not run again."""
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    return [row for row in before if row["questions"] not in {new["questions"] for new in rows}]


def show(rows: list[dict]) -> None:
    sizes = list(dict.fromkeys(row["questions"] for row in rows))
    table = Table("command", "stage", *(f"{size:,}: MiB, CPU s" for size in sizes))
    for command, stage in dict.fromkeys((row["command"], row["stage"]) for row in rows):
        own = [row for row in rows if (row["command"], row["stage"]) == (command, stage)]
        table.add_row(command, stage, *(f"{row['mib']:.0f}, {row['cpu_seconds']:.0f}" for row in own))
    Console(width=140).print(table)


if __name__ == "__main__":
    run_command(main)
