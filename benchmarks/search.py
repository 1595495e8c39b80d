"""How fast is the evaluator of the search? Paths a second against one path at a time, with the same verdicts.

    .venv/bin/python benchmarks/search.py --json benchmarks/results/search.json

The (example, path) pairs are the first that the tree search asks for on real questions, with default settings, 64
questions side by side; they are collected before, untimed. Then, round by round of the search, both evaluators answer
the same pairs, so that both see the same noise of the machine. The naive one runs one pair at a time: `generate()` with
batch 1 and a KV cache and then the answer checker, or each choice in full, prompt and choice, with the logits of all
tokens, as lm-eval does.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import torch
from tqdm import tqdm

import routing.scoring.packed
from routing.common.devices import DTYPES, pick_device
from routing.common.errors import run_command
from routing.common.files import write_json
from routing.common.run_info import git_commit, hardware, today, versions
from routing.labels.labelling import Labeller
from routing.models.base_files import locate_model
from routing.models.default_model import DEFAULT_MODEL
from routing.models.families import load_base_config, load_tokenizer, routed_class
from routing.scoring.packed import PathEvaluator
from routing.scoring.plain import PLAIN_GREEDY, AllStopped, choice_verdict
from routing.scoring.requests import Request, request_of
from routing.search.mcts import SearchSettings
from routing.search.routes import Route
from routing.tasks import load_examples
from routing.tasks.answers import CHECKERS
from train_models.configuration_llama import RoutedLlamaConfig

DATASETS = {"generate": ("arithmetic", "asdiv"), "loglikelihood": ("piqa", "openbookqa", "commonsenseqa", "siqa")}
Round = list[tuple[Request, Route]]


@torch.inference_mode()
def naive_verdict(model, tokenizer, request: Request, route: Route) -> bool:
    """One pair, in the plainest way."""
    routes = torch.tensor([route])
    prompt = torch.tensor([request.prompt_ids], device=model.device)
    if request.scoring == "generate":
        stopped = AllStopped(tokenizer, [request.stop], len(request.prompt_ids))
        output = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), routes=routes, max_new_tokens=request.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id, stopping_criteria=[stopped], **PLAIN_GREEDY,
        )  # fmt: skip
        text = tokenizer.decode(
            output[0, prompt.shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        text = text if request.stop is None else text.split(request.stop)[0]
        return CHECKERS[request.example.checker](text, request.example)
    scores = []
    for choice in request.choice_ids:
        ids = torch.tensor([[*request.prompt_ids, *choice[:-1]]], device=model.device)
        logprobs = torch.log_softmax(model(ids, routes=routes, use_cache=False).logits[0].float(), dim=-1)
        asked = torch.tensor(choice, device=model.device)
        scores.append(float(logprobs[-len(choice) :].gather(1, asked[:, None]).sum()))
    return choice_verdict(scores, request).correct


def build_requests(tokenizer, scoring: str, names: tuple[str, ...], examples: int) -> list[Request]:
    """Requests of search questions, of all data sets in turn."""
    drawn = [load_examples(name, "search", -(-examples // len(names)), seed=0) for name in names]
    return [request_of(example, scoring, tokenizer) for turn in zip(*drawn) for example in turn]


class Enough(Exception):
    """As many pairs as wanted are collected."""


def collect(evaluator: PathEvaluator, requests: list[Request], depth: int, limit: int) -> list[Round]:
    """The first rounds of a search of all requests side by side, `limit` pairs in all."""
    by_id = {request.example.id: request for request in requests}
    rounds: list[Round] = []

    def note(verdicts) -> None:
        room = limit - sum(map(len, rounds))
        rounds.append([(by_id[example], route) for example, route, _ in verdicts[:room]])
        if room <= len(verdicts):
            raise Enough

    with suppress(Enough):
        Labeller(depth, SearchSettings(), 0, evaluator).search_group(requests, {}, note)
    return rounds


def questions_of(rounds: list[Round]) -> list[Request]:
    return list(dict.fromkeys(request for pairs in rounds for request, _ in pairs))


def replay(evaluator: PathEvaluator, rounds: list[Round], after: Callable[[int, list[bool]], None] = lambda *_: None):
    """Seconds that the evaluator takes for the rounds of searches; `after` is called between them, untimed."""
    last = {request: at for at, pairs in enumerate(rounds) for request, _ in pairs}
    start = time.perf_counter()
    evaluator.prepare(questions_of(rounds))
    seconds = time.perf_counter() - start
    for at, pairs in enumerate(rounds):
        start = time.perf_counter()
        verdicts = evaluator.verdicts([request for request, _ in pairs], [route for _, route in pairs])
        for request, _ in pairs:
            if last[request] == at:
                evaluator.finish(request)
        seconds += time.perf_counter() - start
        after(at, [verdict.correct for verdict in verdicts])
    return seconds


def in_flight(rounds: list[Round], width: int) -> list[Round]:
    """The same pairs with `width` searches side by side at a time."""
    questions = questions_of(rounds)
    result = []
    for start in range(0, len(questions), width):
        chosen = set(questions[start : start + width])
        result += [pairs for pairs in ([p for p in round if p[0] in chosen] for round in rounds) if pairs]
    return result


def compare(model, tokenizer, rounds: list[Round], options: dict) -> dict:
    """Both evaluators on the same pairs, round by round."""
    naive_seconds, right, by_dataset = 0.0, 0, {}
    total = sum(map(len, rounds))
    naive_work = sum(naive_tokens(request) * sum(route) for pairs in rounds for request, route in pairs)
    progress = tqdm(total=total, desc="naive", unit="path")

    def naive(at: int, ours: list[bool]) -> None:
        nonlocal naive_seconds, right
        for (request, route), verdict in zip(rounds[at], ours, strict=True):
            start = time.perf_counter()
            same = naive_verdict(model, tokenizer, request, route) == verdict
            seconds = time.perf_counter() - start
            naive_seconds += seconds
            right += same
            entry = by_dataset.setdefault(request.example.dataset, {"pairs": 0, "naive_seconds": 0.0, "agreed": 0})
            entry["pairs"] += 1
            entry["naive_seconds"] += seconds
            entry["agreed"] += same
            progress.update()

    with progress:
        evaluator = PathEvaluator(model, tokenizer, **options)
        warm_up(model, tokenizer, rounds, options)
        seconds = replay(evaluator, rounds, naive)
    return {
        "naive_per_second": total / naive_seconds,
        "ours_per_second": total / seconds,
        "ratio": naive_seconds / seconds,
        "agreement": right / total,
        "pairs": total,
        "questions": len(questions_of(rounds)),
        "ties_decided_alone": evaluator.ties,
        "stored_peak_mib": evaluator.store.peak / 2**20,
        "layer_tokens_per_path": evaluator.runner.layer_tokens / total,
        "layer_tokens_of_naive": naive_work / total,
        "by_dataset": by_dataset,
    }


def naive_tokens(request: Request) -> int:
    """Tokens that go through each layer of a path, decoding left out."""
    if request.scoring == "generate":
        return len(request.prompt_ids)
    return sum(len(request.prompt_ids) + len(choice) - 1 for choice in request.choice_ids)


def warm_up(model, tokenizer, rounds: list[Round], options: dict) -> None:
    replay(PathEvaluator(model, tokenizer, **options), rounds[:2])
    for request, route in rounds[0][:3]:
        naive_verdict(model, tokenizer, request, route)


def growth(model, tokenizer, rounds: list[Round], naive_per_second: float, options: dict) -> dict:
    """The ratio by batch size and by examples in flight, and without each idea; each against the same naive rate."""
    total = sum(map(len, rounds))

    def measure(given: list[Round], **changed) -> dict:
        gc.collect()
        evaluator = PathEvaluator(model, tokenizer, **options | changed)
        seconds = replay(evaluator, given)
        return {
            "ratio": total / seconds / naive_per_second,
            "stored_peak_mib": evaluator.store.peak / 2**20,
            "layer_tokens_per_path": evaluator.runner.layer_tokens / total,
        }

    def settle_late(text, example):
        return None

    sizes = [size for size in (4, 16, 64) if size <= max(8, len(questions_of(rounds)))]
    result = {
        "all_ideas": measure(rounds),
        "batch_size": {size: measure(rounds, batch_size=size) for size in tqdm(sizes, desc="batch sizes")},
        "examples_in_flight": {
            size: measure(in_flight(rounds, size)) for size in tqdm(sizes, desc="examples in flight")
        },
        "without": {"stored_prefixes_of_layers": measure(rounds, memory=0)},
    }
    with patch.object(routing.scoring.packed, "SHORTEST_SHARED", 10**9):
        result["without"]["shared_beginning_of_prompts"] = measure(rounds)
    if rounds[0][0][0].scoring == "generate":
        with patch.object(routing.scoring.packed, "settled", settle_late):
            result["without"]["early_verdicts"] = measure(rounds)
        with patch.object(routing.scoring.packed, "continuations", lambda request: []):
            result["without"]["expected_answers"] = measure(rounds)
    return result


def where_time_goes(model, tokenizer, rounds: list[Round], options: dict) -> dict[str, float]:
    """Shares of the processor's time by kind of work."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if model.device.type == "cuda" else [])
    kinds = {
        "linear layers": ("linear", "::mm", "addmm", "gemm"),
        "attention": ("attention",),
        "logsumexp and top-k": ("logsumexp", "::exp_", "::amax", "topk"),
        "copies": ("copy", "cat", "clone", "index", "gather", "stack"),
    }
    evaluator = PathEvaluator(model, tokenizer, **options)
    start = time.perf_counter()
    with profile(activities=activities) as profiler:
        replay(evaluator, rounds)
    elapsed = (time.perf_counter() - start) * 1e6
    shares: dict[str, float] = {}
    on_gpu = model.device.type == "cuda"
    for event in profiler.key_averages():
        if on_gpu and event.device_type.name != "CUDA":
            continue  # An operator and its kernels both carry the kernels' time.
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        kind = next((k for k, words in kinds.items() if any(word in event.key for word in words)), "other operators")
        shares[kind] = shares.get(kind, 0) + spent / elapsed
    shares["Python and waiting"] = max(1 - sum(shares.values()), 0)
    return {kind: round(share, 3) for kind, share in sorted(shares.items(), key=lambda item: -item[1])}


def load(name: str, dtype: torch.dtype, device: torch.device):
    """Model and tokenizer; `random-3b` has the shape of Llama-3.2-3B, random weights and the default tokenizer."""
    if name == "random-3b":
        tokenizer = load_tokenizer(DEFAULT_MODEL)
        with device:
            model = random_model(len(tokenizer), dtype)
        return model.eval(), tokenizer
    config, tokenizer = load_base_config(name), load_tokenizer(name)
    model = routed_class(config.model_type).from_pretrained(locate_model(name), dtype=dtype)
    return model.to(device).eval(), tokenizer


def random_model(vocab_size: int, dtype: torch.dtype, **shape):
    """A Llama with random weights, by default in the shape of Llama-3.2-3B (but for the vocabulary)."""
    wide = {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "head_dim": 128}
    heads = {"num_attention_heads": 24, "num_key_value_heads": 8, "tie_word_embeddings": True}
    tokens = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": None}
    config = RoutedLlamaConfig(vocab_size=vocab_size, dtype=dtype, **wide | heads | tokens | shape)
    torch.manual_seed(0)
    return routed_class("llama")(config).to(dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL, help="base model: hub id, folder, the default, or random-3b")
    parser.add_argument("--limit", type=int, default=640, help="(example, path) pairs of each scoring, at most")
    parser.add_argument("--examples", type=int, default=64, help="questions searched side by side")
    parser.add_argument("--batch_size", type=int, default=64, help="paths evaluated together, at most")
    parser.add_argument("--cache_gib", type=float, default=2.0, help="stored states, GiB at most")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    parser.add_argument("--device", default="auto", help="torch device; auto: cuda if there is one, else cpu")
    parser.add_argument("--threads", type=int, default=2, help="processor threads")
    parser.add_argument("--generate", default=",".join(DATASETS["generate"]), help="data sets of generated answers")
    parser.add_argument(
        "--loglikelihood", default=",".join(DATASETS["loglikelihood"]), help="data sets with choices; empty: none"
    )
    parser.add_argument("--quick", action="store_true", help="the comparison alone, without growth and shares of time")
    parser.add_argument("--json", help="file for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, tokenizer = load(arguments.model, DTYPES[arguments.dtype], pick_device(arguments.device))
    options = {"batch_size": arguments.batch_size, "memory": int(arguments.cache_gib * 2**30)}
    about = {
        "model": arguments.model,
        "dtype": arguments.dtype,
        "threads": arguments.threads,
        "hardware": hardware(),
        "date": today(),
    }
    scorings = {}
    for scoring in DATASETS:
        names = tuple(filter(None, getattr(arguments, scoring).split(",")))
        if not names:
            continue
        requests = build_requests(tokenizer, scoring, names, arguments.examples)
        evaluator = PathEvaluator(model, tokenizer, **options)
        rounds = collect(evaluator, requests, model.config.num_hidden_layers, arguments.limit)
        evaluator.release()
        result = compare(model, tokenizer, rounds, options)
        print_result(scoring, result)
        if not arguments.quick:
            result["growth"] = growth(model, tokenizer, rounds, result["naive_per_second"], options)
            result["shares_of_time"] = where_time_goes(model, tokenizer, rounds, options)
        scorings[scoring] = result | about
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    total = sum(result["pairs"] for result in scorings.values())
    naive = sum(result["pairs"] / result["naive_per_second"] for result in scorings.values())
    ours = sum(result["pairs"] / result["ours_per_second"] for result in scorings.values())
    summary = {
        "naive_per_second": total / naive,
        "ours_per_second": total / ours,
        "ratio": naive / ours,
        "agreement": sum(result["agreement"] * result["pairs"] for result in scorings.values()) / total,
        "pairs": total,
        **about,
        "peak_memory_mib": peak,
        **({"peak_gpu_memory_mib": torch.cuda.max_memory_allocated() / 2**20} if torch.cuda.is_available() else {}),
        "versions": versions(),
        "git_commit": git_commit(),
        "scorings": scorings,
    }
    print_result("both scorings", summary)
    if arguments.json:
        write_json(Path(arguments.json), summary)


def print_result(name: str, result: dict) -> None:
    print(
        f"{name}: naive {result['naive_per_second']:.2f} paths/s, ours {result['ours_per_second']:.2f} paths/s, "
        f"ratio {result['ratio']:.1f}, agreement {result['agreement']:.2%} of {result['pairs']} pairs",
        flush=True,
    )


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run_command(main)
