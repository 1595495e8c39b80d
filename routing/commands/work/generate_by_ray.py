"""Stage 1 with `--engine ray`: what this process and the workers of a cluster do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from routing.commands.work.generate import load_model, make_labeller
from routing.common.errors import UserError
from routing.common.ray_workers import Workers, cluster
from routing.labels.arguments import DataGenerationArguments
from routing.labels.labelling import Counts
from routing.labels.on_cluster import Found, label_on
from routing.labels.records import label_line
from routing.labels.writing import LabelFolder
from routing.models.checkpoint_files import adapter_hashes
from routing.models.families import load_base_config, load_tokenizer
from routing.scoring.prompting import prompting_of
from routing.scoring.requests import Request, prompted
from routing.tasks.examples import Example


def group_search(arguments: DataGenerationArguments, header: dict) -> Callable[[list[Example]], Found]:
    """What a worker of a cluster does, its model loaded: lines of the labels of a group, and counts."""
    config, tokenizer = load_base_config(arguments.model), load_tokenizer(arguments.model)
    if config._commit_hash != header["revision"]:
        raise UserError(
            f"a node of the cluster has {arguments.model} at revision {config._commit_hash}, the labels were begun "
            f"with {header['revision']}. Give the same model to every node."
        )
    if arguments.adapters and adapter_hashes(arguments.adapters) != header["arguments"]["adapters_sha256"]:
        raise UserError(
            f"--adapters {arguments.adapters} are others on a node of the cluster; copy them to every node."
        )
    prompting = prompting_of(header)

    def make(example: Example) -> Request:
        return prompted(example, tokenizer, prompting)

    labeller, evaluator = make_labeller(arguments, header, load_model(arguments, config), tokenizer, make)

    def search_group(examples: list[Example]) -> Found:
        labeller.counts, before = Counts(), evaluator.ties
        requests = [make(example) for example in examples]
        results = labeller.search_group(requests, {}, lambda verdicts: None)
        lines = [label_line(request, result) for request, result in zip(requests, results, strict=True)]
        labeller.counts.ties = evaluator.ties - before
        return Found(lines, labeller.counts)

    return search_group


def label_by_ray(arguments: DataGenerationArguments, folder: LabelFolder) -> Counts:
    """Label what the folder lacks by workers of a Ray cluster."""
    with cluster(arguments.address):
        title = f"searching {arguments.model} for {folder.folder.name}"
        workers = Workers(partial(group_search, arguments, folder.header), title, arguments.workers)
        if folder.group_count < 2 * workers.count:
            print(
                f"{folder.group_count} groups of questions for {workers.count} workers: with a smaller --group_size "
                f"than {arguments.group_size}, in a new --output_dir, all would be busy for longer",
                file=sys.stderr,
            )
        return label_on(folder, workers)
