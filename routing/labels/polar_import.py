"""Labels from files of PoLar (see `routing.labels.polar`).

Import takes the verdicts on trust: they were made with the prompt, the decoding and the checker of whoever searched,
while the prompts in the new labels are ours. PoLar also repeats whole segments ([3, 4, 3, 4]); such paths are no
routes. Its levels are those of the folders, which need not be DART-Math's own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from routing.common.errors import UserError
from routing.common.files import sha256, streamed, write_json
from routing.common.locks import only_run
from routing.common.run_info import git_commit, versions
from routing.labels.polar import LEVEL_DATASET, dataset_of, read_samples
from routing.labels.reading import FORMAT, HEADER, LABELS, read_header
from routing.labels.records import label_line
from routing.scoring.context import Fitting
from routing.scoring.requests import Request
from routing.search.results import SearchResult, Verdict
from routing.search.routes import REPEAT, Route, full_route, to_route
from routing.tasks.examples import Example, question_hash, split_of
from routing.tasks.local import parse_local
from routing.tasks.prompts import build_prompt, encode, max_new_tokens


@dataclass
class FileCounts:
    """What became of the samples of a file and their paths.

    Attributes:
        samples, paths: how many were read; of paths, those of well-formed new samples alone.
        imported: samples that are labels now.
        left_out, paths_left_out: the others, by reason.
        first: what is wrong with the first malformed sample.
    """

    samples: int = 0
    paths: int = 0
    imported: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    paths_left_out: Counter[str] = field(default_factory=Counter)
    first: str = ""

    def __str__(self) -> str:
        text = f"{self.imported} of {self.samples} samples imported"
        if self.left_out:
            text += f"; left out {_listed(self.left_out)}"
        if self.paths_left_out:
            text += f"; of their {self.paths} paths left out {_listed(self.paths_left_out)}"
        if self.first:
            text += f"; the first malformed one is {self.first}"
        return text


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())


@dataclass(frozen=True)
class ImportSettings:
    """How samples become labels.

    Attributes:
        model: name of the model that the paths were searched with.
        dataset: name of the data set, None to take it from the folders.
        split: search, validation, test or all; of DART-Math, whose splits go by question hash.
        checker: how answers are checked (routing/tasks/answers.py).
        apply_chat_template: whether prompts are wrapped in the chat template.
    """

    model: str
    dataset: str | None = None
    split: str = "search"
    checker: str = "boxed"
    apply_chat_template: bool = False


def outside(depth: int) -> str:
    """The reason why paths of a deeper model are left out."""
    return f"outside the layers 0..{depth - 1}"


def path_fault(path, depth: int) -> str | None:
    """Why a path is no route of a model of `depth` layers, as it goes into the counts; None for a route."""
    if not isinstance(path, list) or not path or any(type(layer) is not int for layer in path):
        return "that are no lists of layers"
    if any(not 0 <= layer < depth for layer in path):
        return outside(depth)
    if any(later < earlier for earlier, later in zip(path, path[1:])):
        return "out of order"
    if max(Counter(path).values()) > REPEAT:
        return "that run a layer more than twice"
    return None


def example_of_sample(sample: dict, dataset: str, checker: str) -> Example:
    """The question of a sample, under the names that PoLar's reader knows.

    Raises:
        ValueError: that says what is wrong with it.
    """
    details = sample.get("sample_info")
    details = details if isinstance(details, dict) else {}
    answers = [sample.get(name) for name in ("gt_ans", "ground_truth", "answer")]
    answers += [details.get(name) for name in ("ground_truth", "answer")]
    question = details.get("question") if sample.get("question") is None else sample["question"]
    answer = next((answer for answer in answers if answer is not None), None)
    example = parse_local({"question": question, "answer": answer, "checker": checker}, dataset)
    try:
        (example.question + example.answer).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"its text is no Unicode ({error})") from error
    return example


def _transitions(sample: dict) -> list[tuple[bool, object]]:
    """(verdict, path) of all listed paths, the valid ones first; PoLar's reader takes {"path": [...]} too."""
    listed = []
    for name, verdict in (("final_valid_transitions", True), ("final_invalid_transitions", False)):
        paths = sample.get(name, None if verdict else [])
        if not isinstance(paths, list):
            raise ValueError(f'"{name}" must be a list of paths, got {paths!r:.80}')
        listed += [(verdict, path.get("path") if isinstance(path, dict) else path) for path in paths]
    return listed


def _initial_score(sample: dict) -> bool | None:
    """Whether the full path answered right; None where the sample does not say.

    The score is 0 or 1 for one greedy answer; a mean over several answers counts as right from one half.
    """
    score = sample.get("initial_score")
    score = sample.get("initial_transition_metric") if score is None else score
    if score is None:
        return None
    if not isinstance(score, (bool, int, float)) or math.isnan(score):
        raise ValueError(f'"initial_score" must be a number, got {score!r:.80}')
    return score >= 0.5


class _Importer:
    """Turns samples into label lines, file by file, and counts what it leaves out."""

    def __init__(self, settings: ImportSettings, config, tokenizer):
        self.settings, self.depth, self.tokenizer = settings, config.num_hidden_layers, tokenizer
        self.fits = Fitting(config)
        self.seen: set[bytes] = set()
        self.deepest = -1

    def lines(self, file: Path, counts: FileCounts) -> Iterator[str]:
        dataset = self.settings.dataset or dataset_of(file)
        for index, sample in read_samples(file):
            counts.samples += 1
            try:
                line = self._line(sample, dataset, counts)
            except ValueError as error:
                counts.first = counts.first or f"samples[{index}]: {error}"
                counts.left_out["malformed"] += 1
                continue
            if line is not None:
                counts.imported += 1
                yield line

    def _line(self, sample: dict, dataset: str, counts: FileCounts) -> str | None:
        """Label line; None for a sample that is counted as left out. Raises a ValueError for a malformed one."""
        settings = self.settings
        example = example_of_sample(sample, dataset, settings.checker)
        listed, scored = _transitions(sample), _initial_score(sample)
        key = bytes.fromhex(question_hash(example))
        if key in self.seen:
            counts.left_out["asked before"] += 1
            return None
        if settings.split != "all" and LEVEL_DATASET.fullmatch(dataset) and split_of(example) != settings.split:
            counts.left_out[f"of another split than {settings.split}"] += 1
            return None
        verdicts = self._verdicts(listed, counts)
        if not verdicts:
            counts.left_out["without a usable path"] += 1
            return None
        full = full_route(self.depth)
        if scored is None and full not in verdicts:
            raise ValueError('it has no "initial_score", and the full path is in neither list')
        if scored is not None and verdicts.setdefault(full, scored) != scored:
            counts.left_out['whose "initial_score" contradicts the verdict of the full path'] += 1
            return None
        self.seen.add(key)
        prompt = build_prompt(example, "generate", self.tokenizer, settings.apply_chat_template)
        limit = max_new_tokens(example, settings.apply_chat_template)
        request = Request(example, "generate", prompt, tuple(encode(self.tokenizer, prompt)), max_new_tokens=limit)
        if not self.fits(request):
            counts.left_out[f"longer than the {self.fits.context} tokens that the model takes"] += 1
            return None
        ordered = {full: verdicts[full]} | verdicts
        result = SearchResult({route: Verdict(right) for route, right in ordered.items()})
        return label_line(request, result)

    def _verdicts(self, listed: Iterable[tuple[bool, object]], counts: FileCounts) -> dict[Route, bool]:
        """Verdicts of the routes among the listed paths, in their order."""
        verdicts: dict[Route, bool] = {}
        contradictory = set()
        for verdict, path in listed:
            counts.paths += 1
            fault = path_fault(path, self.depth)
            if fault is not None:
                counts.paths_left_out[fault] += 1
                continue
            self.deepest = max(self.deepest, path[-1])
            route = to_route(path, self.depth)
            if verdicts.setdefault(route, verdict) != verdict:
                contradictory.add(route)
        for route in contradictory:
            counts.paths_left_out["listed as valid and as invalid"] += 2
            del verdicts[route]
        return verdicts


def check_output(folder: Path) -> None:
    """Raise a UserError if a folder holds labels that no import wrote."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file. Give a folder for the labels.")
    if not (folder / HEADER).exists() and not (folder / LABELS).exists():
        return
    try:
        ours = "imported" in read_header(folder)
    except UserError:
        ours = False
    if not ours:
        raise UserError(
            f"{folder} holds labels that were not imported, and they are not replaced. Give another output folder."
        )


def import_polar(
    files: list[Path], folder: Path, settings: ImportSettings, config, tokenizer
) -> dict[Path, FileCounts]:
    """Write a label folder from PoLar files, streamed, replacing an earlier import.

    Args:
        files: from `find_files`.
        folder: of the labels.
        settings: see ImportSettings.
        config: the model's configuration.
        tokenizer: the model's.

    Returns:
        counts of each file.

    Raises:
        UserError: for a damaged file, for paths of a model of another depth, and if no sample can be used; then the
            folder is as it was.
    """
    depth = config.num_hidden_layers
    importer = _Importer(settings, config, tokenizer)
    counts = {file: FileCounts() for file in files}
    check_output(folder)
    with only_run(folder), streamed(folder / LABELS) as labels:
        for file in files:
            labels.writelines(importer.lines(file, counts[file]))
        _check_import(counts, importer.deepest, depth, settings.model)
        # Labels never stand beside the header of other ones, wherever a kill comes.
        (folder / LABELS).unlink(missing_ok=True)
        write_json(folder / HEADER, _import_header(counts, settings, config))
    return counts


def _check_import(counts: dict[Path, FileCounts], deepest: int, depth: int, model: str) -> None:
    foreign = sum(count.paths_left_out[outside(depth)] for count in counts.values())
    paths = sum(count.paths for count in counts.values())
    if 2 * foreign > paths:
        raise UserError(
            f"{foreign} of {paths} paths run layers that --model {model!r} does not have: it has {depth}. Give the "
            "model that they were searched with."
        )
    if not any(count.imported for count in counts.values()):
        found = "\n".join(f"  {file}: {count}" for file, count in counts.items())
        raise UserError(f"no sample can be used; nothing was written:\n{found}")
    if deepest < depth - 1:
        raise UserError(
            f"no path runs layer {depth - 1}, the last of --model {model!r}; the highest is {deepest}. Give the model "
            "that they were searched with."
        )


def _import_header(counts: dict[Path, FileCounts], settings: ImportSettings, config) -> dict:
    """Header of imported labels.

    The revision stays open: files of PoLar do not tell which one they were made with.
    """
    return {
        "format": FORMAT,
        "model": settings.model,
        "revision": None,
        "model_type": config.model_type,
        "num_layers": config.num_hidden_layers,
        "arguments": {"scoring": "generate"} | vars(settings),
        "imported": {
            "format": "polar",
            "files": [
                {
                    "file": "/".join(file.parts[-3:]),
                    "sha256": sha256(file),
                    "samples": count.samples,
                    "imported": count.imported,
                    "left_out": dict(count.left_out),
                    "paths": count.paths,
                    "paths_left_out": dict(count.paths_left_out),
                }
                for file, count in counts.items()
            ],
        },
        "versions": versions(),
        "git_commit": git_commit(),
    }
