"""Explored labels turned into training data: texts of queries, their best layer sets, and pairs on disk."""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import Dataset

from routing.common.devices import is_first_process
from routing.common.errors import UserError, raise_all
from routing.labels.reading import LABELS, read_header, read_labels
from routing.labels.records import example_of, labelled
from routing.scoring.prompting import prompting_of
from routing.tasks.examples import held_out, held_out_key
from routing.training.preferences.arguments import PreferenceArguments
from routing.training.preferences.pairs import best_of, pairs_of, read_pairs, write_pairs
from routing.training.routers.data import foreign_labels
from train_models.query_text import query_text

# Arguments that folders must have in common, so that what they tried for a question can be taken together.
ALIKE = ("score", "scoring", "apply_chat_template", "tools_in_template", "chat_template_args", "system_instruction")
ALIKE += ("max_new_tokens", "dtype")


@dataclass
class Queries:
    """Explored questions.

    Attributes:
        ids: of their records.
        texts: what the router reads.
        best: their best pruned layer sets; none for a question that no path answers.
        held_out: whether training keeps them aside.
        datasets: names of the data sets that they are of.
    """

    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    best: list[list[list[int]]] = field(default_factory=list)
    held_out: list[bool] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)


class LayerSets(Dataset):
    """Layer sets of queries, each alone or as a pair, kept small: every set once.

    Attributes:
        masks: [S, L], the different sets.
        queries: [N], whose set it is.
        winners: [N], indices into masks.
        losers: [N], likewise; empty for sets without a rival.
    """

    def __init__(self, depth: int, rows: Iterator[tuple[int, list[int], list[int] | None]]):
        known: dict[tuple[int, ...], int] = {}
        columns = queries, winners, losers = array("q"), array("q"), array("q")
        for query, winner, loser in rows:
            queries.append(query)
            for column, layers in ((winners, winner), (losers, loser)):
                if layers is not None:
                    column.append(known.setdefault(tuple(layers), len(known)))
        self.queries, self.winners, self.losers = (torch.tensor(column, dtype=torch.long) for column in columns)
        self.masks = torch.zeros(len(known), depth, dtype=torch.bool)
        for layers, index in known.items():
            self.masks[index, list(layers)] = True

    def __len__(self) -> int:
        return len(self.queries)

    def __getitems__(self, items: list[int]) -> dict[str, torch.Tensor]:
        """A batch: queries [B], winners [B, L] and, of pairs, losers [B, L]."""
        chosen = torch.tensor(items, dtype=torch.long)
        batch = {"queries": self.queries[chosen], "winners": self.masks[self.winners[chosen]]}
        if len(self.losers):
            batch["losers"] = self.masks[self.losers[chosen]]
        return batch

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        return {name: tensor[0] for name, tensor in self.__getitems__([item]).items()}


def read_batch(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Collator of `LayerSets`, whose batches are whole as they are read."""
    return batch


def explored(arguments: PreferenceArguments, config, tokenizer) -> Iterator[tuple[dict, str, bool]]:
    """(record, text of the query, whether it is held out) of each question, with what all folders tried for it.

    A set that several folders tried counts once. Of the records what the pairs need is kept: id, dataset, tried.

    Raises:
        UserError: for labels of another model or depth, damaged files, labels without scores or with other ones.
    """
    folders = arguments.data_folders()
    headers = [read_header(folder) for folder in folders]
    problems: list[str] = []
    for folder, header in zip(folders, headers, strict=True):
        problems += foreign_labels(folder, header, arguments.model_id, config)
    for name in ALIKE:
        values = [header["arguments"].get(name) for header in headers]
        if len(set(values)) > 1:
            told = ", ".join(f"{folder} with {value}" for folder, value in zip(folders, values, strict=True))
            problems.append(f"--data: folders of different --{name} cannot be compared, {told}; explore with one")
    raise_all(problems)
    merged: dict[str, tuple[dict, str, bool]] = {}
    prompts: dict[str, str] = {}
    for folder, header in zip(folders, headers, strict=True):
        prompting = prompting_of(header)
        for record in read_labels(folder):
            if any("score" not in tried for tried in record["tried"]):
                raise UserError(
                    f"{folder / LABELS}, example {record['id']}: its paths have no scores. Make the labels with "
                    "data_generation.py --search dfs or random."
                )
            example = example_of(record)
            key = record["id"]
            if prompts.setdefault(key, record["prompt"]) != record["prompt"]:
                raise UserError(
                    f"{folder / LABELS}, example {key}: another folder asked it with another prompt, so their scores "
                    "cannot be compared. Explore both with the same version, or give one of them."
                )
            if key not in merged:
                request = labelled(record, tokenizer, prompting)
                own = {"id": record["id"], "dataset": record["dataset"], "tried": []}
                merged[key] = (
                    own,
                    query_text(tokenizer, request.prompt_ids),
                    held_out(held_out_key(example), arguments.eval_fraction),
                )
            tried = merged[key][0]["tried"]
            known = {tuple(entry["pruned_layers"]) for entry in tried}
            tried += [
                {name: entry[name] for name in ("pruned_layers", "score")}
                for entry in record["tried"]
                if tuple(entry["pruned_layers"]) not in known
            ]
    yield from merged.values()


def load_queries(arguments: PreferenceArguments, config, tokenizer, path: Path) -> Queries:
    """Read the label folders; the first process writes the pairs of all queries to `path` on the way."""
    queries = Queries()

    def pairs() -> Iterator[dict]:
        for record, text, aside in explored(arguments, config, tokenizer):
            queries.ids.append(record["id"])
            queries.texts.append(text)
            queries.best.append(best_of(record))
            queries.held_out.append(aside)
            if record["dataset"] not in queries.datasets:
                queries.datasets.append(record["dataset"])
            yield from pairs_of(record, arguments.pairs, arguments.pairs_per_example, arguments.seed)

    if is_first_process():
        write_pairs(path, pairs())
    else:
        for _ in pairs():
            pass
    return queries


def pair_sets(queries: Queries, path: Path, depth: int, aside: bool) -> LayerSets:
    """Pairs of the queries that are held out, or of the others."""
    places = {name: index for index, name in enumerate(queries.ids)}
    rows = ((places[p["id"]], p["winner_pruned_layers"], p["loser_pruned_layers"]) for p in read_pairs(path))
    return LayerSets(depth, (row for row in rows if queries.held_out[row[0]] == aside))


def best_sets(queries: Queries, depth: int, aside: bool) -> LayerSets:
    """Best layer sets of the queries that are held out, or of the others."""
    rows = ((index, layers, None) for index, found in enumerate(queries.best) for layers in found)
    return LayerSets(depth, (row for row in rows if queries.held_out[row[0]] == aside))


def split_sets(arguments: PreferenceArguments, queries: Queries, path: Path, depth: int) -> tuple[LayerSets, ...]:
    """What is learned from, the same of held-out queries, and their pairs.

    Raises:
        UserError: if one of them is empty.
    """
    pairs = [pair_sets(queries, path, depth, aside) for aside in (False, True)]
    sets = pairs if arguments.plan.from_pairs else [best_sets(queries, depth, aside) for aside in (False, True)]
    counts = Counter(queries.held_out)
    if not (len(sets[0]) and len(sets[1]) and len(pairs[1])):
        what = "pairs" if arguments.plan.from_pairs else "best layer sets"
        raise UserError(
            f"{arguments.data}: {len(sets[0])} {what} of {counts[False]} training and {len(sets[1])} of {counts[True]} "
            f"held-out examples, with {len(pairs[1])} held-out pairs, are too few. Explore more examples, or change "
            f"--eval_fraction {arguments.eval_fraction}."
        )
    if is_first_process():
        print(
            f"{len(sets[0])} layer sets or pairs of {counts[False]} training examples, {len(sets[1])} of "
            f"{counts[True]} held-out ones",
            file=sys.stderr,
        )
    return sets[0], sets[1], pairs[1]
