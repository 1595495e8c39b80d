"""The whole journey of a base through the toolkit, with what must be right at each station.

    travel("bos_added", folder)     # {"search": "pass", ...}, or {"search": "refused: ..."}

Every station is the command that a user would type, in this process, on questions of the animal's own: whether the base
chooses rightly is told by stock transformers, before the toolkit sees it.
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from unittest.mock import patch

import pytest
import regex
import torch
from datasets import Dataset
from elsewhere import GREEDY, generate_elsewhere
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM
from zoo import ANIMALS, LAYERS, bring, cage

from routing.commands import calibrate, card, evaluate, generate, train
from routing.common.errors import UserError
from routing.evaluation.tasks import task_manager
from routing.labels.reading import read_header, read_labels
from routing.labels.records import labelled
from routing.models.bases import load_base
from routing.models.checkpoint import load_checkpoint, save_checkpoint
from routing.models.families import load_tokenizer, routed_class
from routing.scoring.plain import Evaluator
from routing.scoring.prompting import prompting_of
from routing.search.routes import full_route
from train_models.routed_model import small_parts

STATIONS = (
    "search", "labels", "train", "copy", "reference", "generate", "lm_eval", "evaluation", "calibrate", "card",
)  # fmt: skip
PROMPT = "Question: Of which kind is item 7?\nAnswer:"
WORDS = ["red", "green", "blue", "dark", "warm", "cold", "old", "new", "big", "small", "round", "fast", "slow"]
SCORED, GENERATED = 30, 6
TASKS = ("routed_openbookqa", "routed_arithmetic")  # one of each kind of scoring
QUESTIONS = 6  # of each
CPU = torch.device("cpu")


def command(main, *words) -> None:
    """Run a command's main function with its words, as typed."""
    with patch.object(sys, "argv", ["command", *map(str, words)]):
        main()


@contextmanager
def quick():
    """lm-eval does not list what is installed; no pictures are drawn of the results."""
    with (
        patch("lm_eval.evaluator.add_env_info"),
        patch("routing.commands.work.evaluate.write_html"),
    ):
        yield


def lm_eval_of(model, tokenizer, tasks: list, place: str, **settings) -> dict[str, list[bool]]:
    """Verdicts of stock lm-eval, by task, in the order of the questions.

    Args:
        place: of the model, by whose tokenizer the limits of new tokens go.
    """
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    settings |= {"bootstrap_iters": 0, "log_samples": True}
    with quick():
        found = simple_evaluate(harness, tasks=tasks, task_manager=task_manager(place, False), **settings)
    by_question = {task: sorted(samples, key=lambda one: one["doc_id"]) for task, samples in found["samples"].items()}
    return {task: [bool(sample["acc"]) for sample in samples] for task, samples in by_question.items()}


@torch.no_grad()
def own_answer(stock, tokenizer, question: str) -> str:
    """What stock transformers answers to an open question, to the end of the line."""
    ids = torch.tensor([tokenizer.encode(f"Question: {question}\nAnswer:")])
    new = stock.generate(ids, do_sample=False, max_new_tokens=8, repetition_penalty=1.0, pad_token_id=0)[
        0, ids.shape[1] :
    ]
    return tokenizer.decode(new, skip_special_tokens=True).split("\n")[0].strip()


def write_questions(name: str, path: Path) -> None:
    """Questions with choices; and, where no template changes the prompt, open ones that the base answers so itself."""
    rows = []
    for number in range(SCORED):
        choices = [f"{WORDS[(number + at) % 13]} {WORDS[(3 * number + 5 * at + 1) % 13]}" for at in range(3)]
        rows.append({"question": f"Of which kind is item {number}?", "choices": choices, "answer": number % 3})
    if not ANIMALS[name].refused and not ANIMALS[name].flags:
        stock, tokenizer = AutoModelForCausalLM.from_pretrained(bring(name)).float(), load_tokenizer(bring(name))
        for number in range(GENERATED):
            question = f"What comes after {number}?"
            answer = own_answer(stock, tokenizer, question)
            known = answer if answer.isprintable() and answer and "\ufffd" not in answer else "nothing"
            rows.append({"question": question, "answer": f"{regex.escape(known)}.*", "checker": "regex"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


class Journey:
    """An animal under way; `done` tells what each station came to.

    Args:
        name: of the animal.
        folder: for all files.
        elsewhere: whether a process that knows nothing of this repository generates too.
    """

    def __init__(self, name: str, folder: Path, elsewhere: bool = True):
        self.elsewhere = elsewhere
        self.name, self.animal, self.base, self.folder = name, ANIMALS[name], bring(name), folder
        self.labels, self.checkpoint = folder / "labels", folder / "checkpoints" / "run"
        self.chat = "--apply_chat_template" in self.animal.flags
        self.done: dict[str, str] = {}

    def search(self) -> None:
        questions = self.folder / "zoo.jsonl"
        write_questions(self.name, questions)
        words = ["--model", self.base, "--dataset", questions, "--num_simulations", 4, "--output_dir", self.labels]
        command(generate.main, *words, *self.animal.flags)

    def station_labels(self) -> None:
        """Verdicts are those of the plain evaluator, and, at full depth, of stock transformers."""
        records = list(read_labels(self.labels))
        assert len(records) >= SCORED // 2
        tokenizer, prompting = load_tokenizer(self.base), prompting_of(read_header(self.labels))
        asked = [labelled(record, tokenizer, prompting) for record in records]
        plain = Evaluator(load_base(self.base, torch.float32), tokenizer, batch_size=1)
        full = [verdict.correct for verdict in plain.verdicts(asked, [full_route(LAYERS)] * len(asked))]
        assert full == [record["base_correct"] for record in records]
        right = [(request, tuple(r["route"])) for request, r in zip(asked, records) if r["correct"]]
        assert right and all(v.correct for v in plain.verdicts(*zip(*right)))
        for request, record in zip(asked, records):
            if request.choice_ids:
                assert stock_choice(self.stock, request) == (record["base_correct"]), request.prompt
            else:
                assert record["base_correct"] == (request.example.answer != "nothing.*"), request.prompt

    def train(self) -> None:
        words = ["--model_id", self.base, "--data", self.labels, "--run_name", "run", "--num_epochs", 1]
        words += ["--eval_fraction", 0.3, "--num_evaluations", 1, "--router_hidden_size", 8, "--device", "cpu"]
        command(train.main, *words, "--output_dir", self.checkpoint.parent, "--work_dir", self.folder / "runs")

    @cached_property
    def stock(self):
        """The base by stock transformers."""
        return AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32).eval()

    def copy(self) -> None:
        """With every layer once the checkpoint is the base, by the code that it brings."""
        self.routed, self.tokenizer = load_checkpoint(self.checkpoint, torch.float32, CPU)
        ids = self.ids()
        self.routed.config.is_static_routing = True
        assert torch.equal(self.routed(ids).logits, self.stock(ids).logits)
        self.routed.config.is_static_routing = False

    def ids(self) -> torch.Tensor:
        return torch.tensor([self.tokenizer.encode(PROMPT)])

    def reference(self) -> None:
        folder, parts = self.folder / "reference", small_parts(self.routed.model)
        information = {"arguments": {"model_id": self.base}}
        save_checkpoint(folder, self.base, parts, {"router_hidden_size": 8}, "reference", information)
        other = routed_class(self.animal.family).from_pretrained(folder, dtype=torch.float32).eval()
        assert torch.equal(other(self.ids()).logits, self.routed(self.ids()).logits)
        assert torch.equal(other.last_routes, self.routed.last_routes)

    def generate(self) -> None:
        """A padded batch is each row alone, without a cache too; at full depth it is the stock model's. A process that
        knows nothing of this repository generates the same."""
        texts = [PROMPT, "Question: What is 12 + 345?\nAnswer:", "red"]
        tokenizer, how = self.tokenizer, dict(GREEDY)
        tokenizer.padding_side = "left"
        batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        how["pad_token_id"] = tokenizer.pad_token_id
        width = batch.input_ids.shape[1]
        for static in (False, True):
            self.routed.config.is_static_routing = static
            together = self.routed.generate(**batch, **how)[:, width:]
            for text, row in zip(texts, together):
                ids = torch.tensor([tokenizer.encode(text)])
                alone = self.routed.generate(ids, use_cache=False, **how)[0, ids.shape[1] :]
                assert row[: len(alone)].tolist() == alone.tolist()
                if static:
                    stock = self.stock.generate(ids, **how)[0, ids.shape[1] :]
                    assert stock.tolist() == alone.tolist()
        self.routed.config.is_static_routing = False
        if self.elsewhere:
            own = self.routed.generate(self.ids(), **GREEDY)[0].tolist()
            assert generate_elsewhere(str(self.checkpoint), PROMPT) == own

    def lm_eval(self) -> None:
        """What stage 1 judges right of the base, stock lm-eval judges right of the checkpoint at full depth."""
        records = [record for record in read_labels(self.labels) if record["scoring"] != "generate"]
        rows = [{"text": r["prompt"], "choices": list(r["choices"]), "gold": r["gold"]} for r in records]
        task = {
            "task": "zoo_choices", "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
            "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{text}}",
            "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}",
        }  # fmt: skip
        if self.chat:  # As lm-eval does it where it fills in the template itself.
            task["target_delimiter"] = ""
        self.routed.config.is_static_routing = True
        found = lm_eval_of(self.routed, self.tokenizer, [task], "")
        self.routed.config.is_static_routing = False
        assert found["zoo_choices"] == [record["base_correct"] for record in records]

    def evaluation(self) -> None:
        """The base is judged question by question as stock lm-eval judges the stock model; the results are of both."""
        results = self.evaluated(TASKS)
        stock = lm_eval_of(
            self.stock,
            self.tokenizer,
            list(TASKS),
            str(self.checkpoint),
            limit=QUESTIONS,
            apply_chat_template=self.chat,
        )
        for result in results:
            task = result["task"]
            path = self.checkpoint / "evaluation.parts" / f"{task}.base.json"
            own = json.loads(path.read_text(encoding="utf-8"))["result"]["correct"]
            assert list(own.values()) == stock[task] and len(own) == QUESTIONS
            assert result["base"]["accuracy"] == sum(stock[task]) / QUESTIONS
            assert result["base"]["layers"] == LAYERS and 0 < result["routed"]["layers"] <= 2 * LAYERS

    def evaluated(self, tasks) -> list[dict]:
        words = ["--checkpoint", self.checkpoint, "--tasks", ",".join(tasks), "--limit", QUESTIONS, "--device", "cpu"]
        with quick():
            command(evaluate.main, *words)
        results = json.loads((self.checkpoint / "evaluation.json").read_text(encoding="utf-8"))
        assert [result["task"] for result in results] == list(tasks)
        return results

    def calibrate(self) -> None:
        """The checkpoint runs as many layers as asked for, afterwards, on the questions of the base."""
        questions = self.folder / "zoo.jsonl"
        words = [self.checkpoint, "--dataset", questions, "--target_layers", 3.5, "--num_samples", 12]
        command(calibrate.main, *words, "--split", "search", "--tolerance", 0.5)
        note = json.loads((self.checkpoint / "calibration.json").read_text(encoding="utf-8"))
        config = json.loads((self.checkpoint / "config.json").read_text(encoding="utf-8"))
        assert config["route_bias"] == note["route_bias"] and abs(note["layers"] - 3.5) <= 0.5

    def card(self) -> None:
        """Results of before the calibration are refused, if it changed anything; with those of now the card tells
        them."""
        config = json.loads((self.checkpoint / "config.json").read_text(encoding="utf-8"))
        refused = pytest.raises(UserError, match="calibrated since.*Run evaluation.py again")
        with refused if config["route_bias"] else nullcontext():
            card.main([str(self.checkpoint)])
        (result,) = self.evaluated(TASKS[:1])
        card.main([str(self.checkpoint)])
        text = (self.checkpoint / "README.md").read_text(encoding="utf-8")
        assert "trust_remote_code" in text and f"{result['routed']['accuracy']:.3f}" in text

    def travel(self, stations=STATIONS) -> dict[str, str]:
        """Go from station to station; a refusal at the first ends the journey, and anything wrong is an exception."""
        for station in stations:
            try:
                getattr(self, "station_labels" if station == "labels" else station)()
            except UserError as error:
                if station != "search" or not self.animal.refused:
                    raise
                text = str(error)
                for place, word in ((self.base, "BASE"), (str(self.folder), "FOLDER"), (str(cage()), "ZOO")):
                    text = text.replace(place, word)
                self.done[station] = f"refused: {text}"
                return self.done
            self.done[station] = "pass"
        return self.done


@torch.no_grad()
def stock_choice(stock, request) -> bool:
    """Whether stock transformers finds the right choice the likeliest, one choice at a time."""
    scores = []
    for choice in request.choice_ids:
        logits = stock(torch.tensor([[*request.prompt_ids, *choice]])).logits[0].log_softmax(-1)
        start = len(request.prompt_ids) - 1
        scores.append(sum(float(logits[start + at, token]) for at, token in enumerate(choice)))
    return max(range(len(scores)), key=scores.__getitem__) == request.example.gold
