"""Does a model that skips layers pay as the assistant of its own dense base? Against dense greedy decoding, in turn.

    .venv/bin/python benchmarks/self_speculation.py --json benchmarks/results/self_speculation.json

The assistant shares its weights with the dense model. Either its routers always skip the same layers, those that change
the states of a few other prompts least (block influence of ShortGPT, arXiv 2403.03853), or they are those of a trained
checkpoint (`--checkpoint`). The text is that of the dense model, or the benchmark refuses to go on. `acceptance` is
accepted over proposed drafts (one too few where a text ends with a draft), `tokens_a_round` what a forward of the dense
model yields, plain decoding having 1. `ideal` is the speed-up at this acceptance if a forward of either model took time
by its executed layers alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import torch
from routed_speed import Models, about, print_rows, speedup
from tqdm import tqdm

from routing.common.devices import DTYPES
from routing.common.errors import UserError, raise_all, run_command
from routing.common.files import write_json
from routing.models.checkpoint import load_checkpoint
from routing.models.default_model import DEFAULT_MODEL
from routing.models.families import load_tokenizer
from routing.scoring.packed import PathEvaluator
from routing.scoring.requests import make_request
from routing.tasks import load_examples, unknown_names
from routing.tasks.prompts import build_prompt, encode


def numbers(text: str, kind: type) -> list:
    return [kind(part) for part in text.split(",")]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="base model: hub id, folder, or the default")
    parser.add_argument("--checkpoint", help="folder of a routed checkpoint of that base; its routers draft, too")
    parser.add_argument("--dataset", default="asdiv,openbookqa", help="data sets of the questions")
    parser.add_argument("--prompts", type=int, default=10, help="questions of each data set, with chat template")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--skipped", default="0.1,0.25,0.4", help="shares of layers that fixed routes skip")
    parser.add_argument("--drafts", default="1,2,3,5", help="num_assistant_tokens: drafts of a round")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each prompt, taken in turn")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    parser.add_argument("--device", default="auto", help="torch device; auto: cuda if there is one, else cpu")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--json", help="file for the results")
    arguments = parser.parse_args()
    problems = unknown_names(arguments.dataset)
    for name, kind, low, high in (("skipped", float, 0.0, 1.0), ("drafts", int, 1, 100)):
        try:
            values = numbers(getattr(arguments, name), kind)
        except ValueError as error:
            problems.append(f"--{name} takes numbers with commas between them ({error})")
            continue
        if not all(low <= value <= high for value in values):
            problems.append(f"--{name} must be from {low:g} to {high:g}, got {getattr(arguments, name)}")
        setattr(arguments, name, values)
    for name in ("prompts", "max_new_tokens", "repeats"):
        if getattr(arguments, name) < 1:
            problems.append(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    raise_all(problems)
    return arguments


def prompts_of(arguments: argparse.Namespace, split: str, tokenizer) -> list[list[int]]:
    """Token ids of questions, through the chat template where there is one."""
    chat = bool(tokenizer.chat_template)
    examples = load_examples(arguments.dataset, split, arguments.prompts, seed=0)
    return [encode(tokenizer, build_prompt(example, "generate", tokenizer, chat)) for example in examples]


def influence(arguments: argparse.Namespace, models: Models, tokenizer) -> list[float]:
    """Mean block influence of each layer over validation questions, [L]."""
    chat = bool(tokenizer.chat_template)
    examples = load_examples(arguments.dataset, "validation", arguments.prompts, seed=0)
    requests = [
        make_request(example, "generate", build_prompt(example, "generate", tokenizer, chat), tokenizer, chat)
        for example in examples
    ]
    measured = PathEvaluator(models.routed, tokenizer).influence(requests)
    return [statistics.mean(layer) for layer in zip(*measured)]


def least_influential(influences: list[float], share: float) -> list[int]:
    """The layers that a fixed route skips."""
    order = sorted(range(len(influences)), key=lambda layer: influences[layer])
    return sorted(order[: round(share * len(influences))])


@torch.no_grad()
def always(routed, skipped: list[int]) -> None:
    """Let routers decide the same for all prompts: skip some layers, run the others."""
    for layer, router in enumerate(routed.model.routers):
        router.down.weight.zero_()
        router.down.bias.copy_(torch.tensor([1.0, 0.0, 0.0] if layer in skipped else [0.0, 1.0, 0.0]))


@dataclass
class Way:
    """A way to decode, and what it took.

    Attributes:
        name: of the routers.
        assistant: None for plain decoding by the dense model.
        skipped: layers that fixed routes skip; None where the routers are those of a checkpoint.
        drafts: tokens that the assistant proposes in a round.
        seconds: of each prompt and repeat.
        rounds, fed: forwards of the dense model, and tokens that they read, prompts left out.
        layers: that the assistant executes, for each prompt.
        new_tokens: in the texts.
    """

    name: str
    assistant: object = None
    skipped: list[int] | None = None
    drafts: int = 0
    seconds: list[float] = field(default_factory=list)
    rounds: int = 0
    fed: int = 0
    layers: list[int] = field(default_factory=list)
    new_tokens: int = 0

    def prepare(self) -> None:
        if self.skipped is not None:
            always(self.assistant, self.skipped)
        if self.assistant is not None:
            config = self.assistant.generation_config
            config.num_assistant_tokens, config.num_assistant_tokens_schedule = self.drafts, "constant"
            config.assistant_confidence_threshold = 0.0

    def summary(self, dense: Way, depth: int) -> dict:
        # Every round reads one token that is sure, and drafts; it adds those that are accepted, and one more.
        proposed, accepted = self.fed - self.rounds, self.new_tokens - self.rounds
        row = {
            "routers": self.name,
            "drafts": self.drafts,
            "layers": statistics.mean(self.layers) if self.layers else None,
            "acceptance": accepted / proposed if proposed else None,
            "tokens_a_round": self.new_tokens / self.rounds,
            "tokens_a_second": self.new_tokens / sum(self.seconds),
            "speedup": speedup(dense.seconds, self.seconds),
        }
        if proposed:
            cost = 1 + proposed / self.rounds * row["layers"] / depth
            row |= {"ideal": row["tokens_a_round"] / cost, "skipped": self.skipped}
        return row


def run(models: Models, ways: list[Way], prompts: list[list[int]], max_new_tokens: int, repeats: int) -> list[dict]:
    """Decode all prompts in all ways, in turn; the first way is plain decoding.

    Raises:
        UserError: if an assistant changes the text.
    """
    forwards: list[int] = []
    hook = models.dense.register_forward_pre_hook(
        lambda _, given, named: forwards.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    # The first repeat of the first prompt warms up.
    for prompt, repeat in tqdm([(prompts[0], 0), *product(prompts, range(1, repeats + 1))], desc="decoding"):
        ids = torch.tensor([prompt], device=models.device)
        for way in ways:
            way.prepare()
            forwards.clear()
            models.synchronize()
            start = time.perf_counter()
            tokens = models.dense.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                **({"assistant_model": way.assistant} if way.assistant is not None else {}),
            )
            models.synchronize()
            seconds, new = time.perf_counter() - start, tokens[0, len(prompt) :].tolist()
            if way is ways[0]:
                expected = new
            elif new != expected:
                raise UserError(f"{way.name} with {way.drafts} drafts changes the text: {new} in place of {expected}.")
            if repeat:
                way.seconds.append(seconds)
                way.rounds += len(forwards)
                way.fed += sum(forwards) - len(prompt) + 1
                way.new_tokens += len(new)
                if way.assistant is not None:
                    way.layers.append(int(way.assistant.last_routes.sum()))
    hook.remove()
    return [way.summary(ways[0], models.depth) for way in ways]


def routed_checkpoint(folder: Path, models: Models):
    """A routed checkpoint over the weights of the dense model.

    Raises:
        UserError: if it was made from another base.
    """
    model, _ = load_checkpoint(folder, models.dtype, models.device)
    own = dict(models.dense.named_parameters())
    for name, parameter in model.named_parameters():
        if ".routers." in name:
            continue
        if name not in own or not torch.equal(parameter, own[name]):
            raise UserError(f"{folder} has other weights than the base at {name}. Give the base it was made from.")
        parameter.data = own[name].data
    return model


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    models, tokenizer = Models(arguments), load_tokenizer(arguments.model)
    measured = influence(arguments, models, tokenizer)
    ways = [Way("dense, plain")]
    for share, drafts in product(arguments.skipped, arguments.drafts):
        ways.append(Way(f"skip {share:.0%}", models.routed, least_influential(measured, share), drafts))
    if arguments.checkpoint:
        own = routed_checkpoint(Path(arguments.checkpoint), models)
        ways += [Way(arguments.checkpoint, own, None, drafts) for drafts in arguments.drafts]
    prompts = prompts_of(arguments, "test", tokenizer)
    rows = run(models, ways, prompts, arguments.max_new_tokens, arguments.repeats)
    print_rows(rows, "dense greedy decoding with an assistant, against plain, in turn", hidden=("skipped",))
    if arguments.json:
        names = ("dataset", "prompts", "max_new_tokens", "checkpoint")
        given = {name: getattr(arguments, name) for name in names} | {"influence": measured}
        write_json(Path(arguments.json), about(arguments) | given | {"rows": rows})


if __name__ == "__main__":
    run_command(main)
