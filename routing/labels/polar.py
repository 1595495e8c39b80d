"""Labels to and from the files of PoLar, which searches layer paths too (arXiv 2606.06574), and of its replications.

    {root}/{model}/dart-math-diff-{1..5}/merged_mcts_samples.json
    {"samples": [{"question": …, "gt_ans": …, "initial_score": 0.0,
                  "final_valid_transitions": [[layer, …], …], "final_invalid_transitions": [[layer, …], …]}]}

Export keeps question, answer, the verdict at full depth and every tried path with its verdict. It loses what the
format has no place for: prompt, scoring, checker, accepted answers, margins, marks of lucky answers (such a path is
written as invalid), and the order in which right and wrong paths were tried.

Import takes the verdicts on trust: they were made with the prompt, the decoding and the checker of whoever searched,
while the prompts in the new labels are ours. PoLar also repeats whole segments ([3, 4, 3, 4]); such paths are no
routes. Its levels are those of the folders, which need not be DART-Math's own.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from routing.errors import UserError
from routing.files import sha256, streamed, write_json
from routing.labels.reading import FORMAT, HEADER, LABELS, read_header, read_labels
from routing.labels.records import label_line
from routing.locks import only_run
from routing.prompts import build_prompt
from routing.run_info import git_commit, versions
from routing.scoring import Request
from routing.search.results import SearchResult, Verdict
from routing.search.routes import REPEAT, Route, full_route, to_route
from routing.tasks.examples import Example, question_hash, split_of
from routing.tasks.local import parse_local

SAMPLES = "merged_mcts_samples.json"
NOTE, NOTE_FORMAT = "export.json", "dlr-polar-1"  # Beside each exported file: how it was made, and that it is ours.
LEVEL_FOLDER, LEVEL_DATASET = re.compile("dart-math-diff-([1-5])"), re.compile("dart-([1-5])")
CHUNK = 1 << 20  # characters


def folder_of(dataset: str) -> str:
    """dart-3 -> dart-math-diff-3; another data set keeps its name.

    Raises:
        UserError: for a name that is no folder name.
    """
    level = LEVEL_DATASET.fullmatch(dataset)
    if level:
        return f"dart-math-diff-{level[1]}"
    if dataset in ("", ".", "..") or "/" in dataset or "\\" in dataset or LEVEL_FOLDER.fullmatch(dataset):
        raise UserError(
            f"the labels have a data set named {dataset!r}, which cannot name a folder beside dart-math-diff-1 to 5. "
            "Rename the file of its questions and label them again."
        )
    return dataset


def sample_of(record: dict) -> dict:
    """A PoLar sample of a label record.

    The format knows open questions only: choices are listed below the question, and the answer is the letter.

    Raises:
        ValueError: if the record's tried paths are damaged.
    """
    paths: dict[bool, list] = {True: [], False: []}
    for entry in record["tried"]:
        fits = isinstance(entry, dict) and isinstance(entry.get("path"), list)
        if not fits or not isinstance(entry.get("correct"), bool):
            raise ValueError(f'"tried" holds {entry!r}')
        paths[entry["correct"]].append(entry["path"])
    question, answer = record["question"], record["answer"]
    if record["choices"]:
        listed = [f"{letter}. {text}" for letter, text in zip(string.ascii_uppercase, record["choices"])]
        question, answer = "\n".join([question, *listed]), string.ascii_uppercase[record["gold"]]
    return {
        "question": question,
        "gt_ans": answer,
        "initial_score": float(record["base_correct"]),
        "final_valid_transitions": paths[True],
        "final_invalid_transitions": paths[False],
    }


class _SampleFile:
    """One file of samples, one sample a line, written as the labels are read.

    Raises:
        UserError: if there is a file that no export wrote.
    """

    def __init__(self, path: Path, stack: ExitStack):
        if path.exists() and not _is_exported(path):
            raise UserError(
                f"{path} exists and was not written by this command, so it is not replaced. Give another output "
                "folder, or move the file away."
            )
        self.path, self.count = path, 0
        self.file = stack.enter_context(streamed(path))
        self.file.write('{"samples": [')

    def add(self, sample: dict) -> None:
        self.file.write(("," if self.count else "") + "\n" + json.dumps(sample, ensure_ascii=False))
        self.count += 1

    def close(self, note: dict) -> None:
        self.file.write("\n]}\n")
        # Before the file gets its name: were it the other way round, a kill in between would leave a file that the
        # next run takes for a stranger's.
        write_json(self.path.with_name(NOTE), note | {"samples": self.count})


def _is_exported(path: Path) -> bool:
    try:
        return json.loads(path.with_name(NOTE).read_text(encoding="utf-8")).get("format") == NOTE_FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def export_polar(folder: Path, root: Path, model_folder: str) -> dict[Path, int]:
    """Write the labels of a folder as PoLar files, streamed.

    Args:
        folder: the labels.
        root: holds the model folders.
        model_folder: name of the model below `root`; may have several parts, as in a hub id.

    Returns:
        samples in each file.

    Raises:
        UserError: for damaged labels, and where a file of somebody else would be overwritten; then no file is changed.
    """
    header = read_header(folder)
    files: dict[str, _SampleFile] = {}
    with ExitStack() as stack:
        for record in read_labels(folder):
            dataset = record["dataset"]
            if dataset not in files:
                files[dataset] = _SampleFile(root / model_folder / folder_of(dataset) / SAMPLES, stack)
            try:
                files[dataset].add(sample_of(record))
            except ValueError as error:
                raise UserError(
                    f"{folder / LABELS}, example {record['id']}: {error}. The file is damaged; make the labels again."
                ) from error
        for dataset, file in files.items():
            file.close(
                {
                    "format": NOTE_FORMAT,
                    "dataset": dataset,
                    "num_layers": header["num_layers"],
                    "labels": header,
                    "versions": versions(),
                    "git_commit": git_commit(),
                }
            )
    return {file.path: file.count for file in files.values()}


class _JsonStream:
    """Reads a JSON text value by value, so that a list of any length needs the memory of one item."""

    def __init__(self, file: TextIO):
        self.file, self.text, self.at = file, "", 0
        self.decoder = json.JSONDecoder()

    def _more(self) -> bool:
        """Read on: at least as much as is held, so that a long value is not tried too often."""
        rest = self.text[self.at :]
        new = self.file.read(max(CHUNK, len(rest)))
        self.text, self.at = rest + new, 0
        return bool(new)

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self.at < len(self.text):
                if not self.text[self.at].isspace():
                    return self.text[self.at]
                self.at += 1
            if not self._more():
                return ""

    def take(self, *expected: str) -> str:
        found = self.peek()
        if found not in expected:
            wanted = " or ".join(map(repr, expected))
            raise ValueError(f"{wanted} is missing before {found!r}" if found else f"it ends before {wanted}")
        self.at += 1
        return found

    def value(self):
        if not self.peek():
            raise ValueError("it ends before a value")
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError:
                if self._more():
                    continue
                raise
            # A number at the end of what was read may go on.
            if end == len(self.text) and self._more():
                continue
            self.at = end
            return value

    def items(self) -> Iterator:
        """Items of the list that comes next."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.take(",", "]") == "]":
                return

    def names(self) -> Iterator[str]:
        """Names of the object that comes next; the caller reads each value."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            name = self.value()
            self.take(":")
            yield name
            if self.take(",", "}") == "}":
                return


def _sample_values(stream: _JsonStream) -> Iterator:
    """The three shapes that PoLar reads: {"samples": [...]}, a list of samples, an object of samples by name."""
    first = stream.peek()
    if first == "[":
        yield from stream.items()
    elif first == "{":
        named, listed = [], False
        for name in stream.names():
            if name == "samples":
                listed = True
                yield from stream.items()
            else:
                named.append(stream.value())
        if not listed:
            yield from named
    else:
        raise ValueError("it holds no list of samples")
    if stream.peek():
        raise ValueError("something follows its end")


def read_samples(path: Path) -> Iterator[tuple[int, dict]]:
    """Samples of a file with their index from 0, streamed.

    Raises:
        UserError: for a file that is no JSON or holds no samples, with the index of the first sample that is not there.
    """
    index = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for value in _sample_values(_JsonStream(file)):
                if not isinstance(value, dict):
                    raise ValueError(f"it is a {type(value).__name__}, no object")
                yield index, value
                index += 1
    except (ValueError, RecursionError) as error:  # No UTF-8 is a ValueError too.
        raise UserError(
            f"{path} is damaged at samples[{index}]: {error}. Get the file again, or remove it to import the others."
        ) from error


def find_files(path: Path, model: str) -> list[Path]:
    """Sample files below a root, a model folder or a level's folder, or the file itself.

    Raises:
        UserError: if there is none, or they belong to several models and none is named like `model`.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} does not exist. Give a {SAMPLES}, or a folder that holds some.")
    groups: dict[Path, list[Path]] = {}
    for file in sorted(path.rglob(SAMPLES)):
        groups.setdefault(_level_folder(file).parent, []).append(file)
    if not groups:
        raise UserError(f"{path} holds no {SAMPLES}. PoLar keeps them as MODEL/dart-math-diff-1/{SAMPLES}.")
    if len(groups) == 1:
        return next(iter(groups.values()))
    named = [files for folder, files in groups.items() if folder.name == Path(model).name]
    if len(named) != 1:
        found = ", ".join(str(folder.relative_to(path)) for folder in groups)
        raise UserError(f"{path} holds paths of several models ({found}). Give the folder of one of them.")
    return named[0]


def _level_folder(file: Path) -> Path:
    """The folder that says which data set a file is of: dart-math-diff-N, however deep below it, or its own."""
    for folder in file.parents:
        if LEVEL_FOLDER.fullmatch(folder.name):
            return folder
    return file.parent


def dataset_of(file: Path) -> str:
    """dart-N for a file below dart-math-diff-N; else the name of its folder, or its own if it is named otherwise."""
    name = _level_folder(file.resolve()).name
    level = LEVEL_FOLDER.fullmatch(name)
    if level:
        return f"dart-{level[1]}"
    return name if file.name == SAMPLES else file.stem


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
        checker: how answers are checked (routing/answers.py).
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

    def __init__(self, settings: ImportSettings, depth: int, tokenizer):
        self.settings, self.depth, self.tokenizer = settings, depth, tokenizer
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
        ordered = {full: verdicts[full]} | verdicts
        result = SearchResult({route: Verdict(right) for route, right in ordered.items()})
        return label_line(Request(example, "generate", prompt, prompt_ids=()), result)

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
    importer = _Importer(settings, depth, tokenizer)
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
