"""Labels as files of PoLar (see `routing.labels.polar`).

Export keeps question, answer, the verdict at full depth and every tried path with its verdict. It loses what the
format has no place for: prompt, scoring, checker, accepted answers, margins, marks of lucky answers (such a path is
written as invalid), and the order in which right and wrong paths were tried.
"""

from __future__ import annotations

import json
import string
from contextlib import ExitStack
from pathlib import Path

from routing.common.errors import UserError
from routing.common.files import streamed, write_json
from routing.common.run_info import git_commit, versions
from routing.labels.polar import LEVEL_DATASET, LEVEL_FOLDER, SAMPLES
from routing.labels.reading import LABELS, read_header, read_labels

NOTE, NOTE_FORMAT = "export.json", "dlr-polar-1"  # Beside each exported file: how it was made, and that it is ours.


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
