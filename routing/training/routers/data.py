"""Labels turned into training data: router examples, and requests for the held-out questions."""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from transformers import PreTrainedConfig

from routing.common.devices import is_first_process
from routing.common.errors import UserError, raise_all
from routing.common.seen import Seen
from routing.labels.reading import read_header, read_labels
from routing.labels.records import example_of, labelled
from routing.scoring.context import Fitting
from routing.scoring.prompting import prompting_of
from routing.scoring.requests import Request
from routing.tasks.examples import held_out, held_out_key, question_hash
from routing.training.features import RouterExample, RouterExamples
from routing.training.routers.arguments import TrainArguments

# Data sets whose labels are used on request only, as in Dr.LLM's training command.
ON_REQUEST = {"squadv2": "with_squad", "commonsense_qa": "with_commonsense"}


@dataclass
class TrainingData:
    """Examples with a right path, and who of them is held out.

    Attributes:
        examples: prompt tokens and labelled routes, on disk.
        train_indices, held_out_indices: a partition of the examples, by question hash.
        held_out_requests: held-out questions, those that no path answered right included, ready to be answered with
            the routers deciding; data sets in turn, no more than are executed.
        datasets: names of the data sets that they are of.
    """

    examples: RouterExamples
    train_indices: array = field(default_factory=lambda: array("Q"))
    held_out_indices: array = field(default_factory=lambda: array("Q"))
    held_out_requests: list[Request] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)


def load_training_data(arguments: TrainArguments, config: PreTrainedConfig, tokenizer) -> TrainingData:
    """Read the label folders.

    Raises:
        UserError: for labels of another model or depth, damaged files, or too few examples.
    """
    folders = arguments.data_folders()
    headers = [read_header(folder) for folder in folders]
    problems: list[str] = []
    for folder, header in zip(folders, headers, strict=True):
        problems += foreign_labels(folder, header, arguments.model_id, config)
    raise_all(problems)
    data = TrainingData(RouterExamples(Path(arguments.work_dir)))
    left_out: Counter[str] = Counter()
    seen, fits = Seen(), Fitting(config)
    aside: Counter[str] = Counter()  # requests that are executed, by data set
    for header, record in _records(folders, headers):
        flag = ON_REQUEST.get(record["dataset"])
        if flag and not getattr(arguments, flag):
            left_out[f"of {record['dataset']} (use --{flag})"] += 1
            continue
        example = example_of(record)
        if not seen.add(bytes.fromhex(question_hash(example))):
            left_out["asked before"] += 1
            continue
        if record["dataset"] not in data.datasets:
            data.datasets.append(record["dataset"])
        kept_aside = held_out(held_out_key(example), arguments.eval_fraction)
        request = labelled(record, tokenizer, prompting_of(header))
        if not fits(request):
            left_out["longer than the model's context"] += 1
            continue
        if kept_aside and aside[record["dataset"]] < arguments.eval_examples:
            aside[record["dataset"]] += 1
            data.held_out_requests.append(request)
        if not record["correct"]:
            left_out["without a right path"] += 1
            continue
        indices = data.held_out_indices if kept_aside else data.train_indices
        indices.append(len(data.examples))
        data.examples.append(RouterExample(request.prompt_ids, tuple(record["route"])))
    for reason, count in left_out.items() if is_first_process() else ():
        print(f"left out {count} labels {reason}", file=sys.stderr)
    data.held_out_requests = spread(data.held_out_requests)[: arguments.eval_examples]
    if not data.train_indices or not data.held_out_indices:
        raise UserError(
            f"{arguments.data}: {len(data.train_indices)} training and {len(data.held_out_indices)} held-out examples "
            f"with a right path are too few. Label more examples, or change --eval_fraction {arguments.eval_fraction}."
        )
    return data


def spread(requests: Sequence[Request]) -> list[Request]:
    """The same requests, their data sets in turn: any beginning of them is of all alike."""
    waiting: dict[str, list[Request]] = {}
    for request in requests:
        waiting.setdefault(request.example.dataset, []).append(request)
    return [request for turn in zip_longest(*waiting.values()) for request in turn if request is not None]


def _records(folders: list[Path], headers: list[dict]) -> Iterator[tuple[dict, dict]]:
    for folder, header in zip(folders, headers, strict=True):
        for record in read_labels(folder):
            yield header, record


def foreign_labels(folder: Path, header: dict, model_id: str, config: PreTrainedConfig) -> list[str]:
    """Why labels do not fit the model, as sentences."""
    made_with = header["model"]
    if header["num_layers"] != config.num_hidden_layers:
        return [
            f"{folder} was made with {made_with!r} of {header['num_layers']} layers, and --model_id {model_id!r} has "
            f"{config.num_hidden_layers}. Give the model of the labels, or make labels with this one"
        ]
    revision, current = header.get("revision"), getattr(config, "_commit_hash", None)
    if revision and current and revision != current:
        return [
            f"{folder} was made with revision {revision} of {made_with!r}, and the hub now has {current}. Give a local "
            "folder of the old revision, or make labels anew"
        ]
    if made_with != model_id:
        return [
            f"{folder} was made with --model {made_with!r}, not with --model_id {model_id!r}. Give the same name, or "
            "make labels with this model"
        ]
    return []
