"""What a global router spends layers on: kinds of tokens, lengths, perplexity, rarity; which layers it skips.

    python -m routing analysis checkpoints/my-run --corpus wikipedia --passages 100 --sequence_length 256 \\
        --output runs/my-run/analysis.json

Passages of the corpus's validation part run through the model one a row; padding is never counted. `python -m
routing.report` draws analysis.json where it lies in the folder of a run. Kinds of tokens as in DLR (see
routing/objectives); a token may be of several kinds. Deviations from DLR: padding does not count as skipped; every
correlation has an interval.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from routing.common.cli import below
from routing.common.devices import DTYPES
from routing.common.errors import UserError, raise_all, run_command
from routing.common.files import unwritable
from routing.common.parser import Parser, file_of
from routing.common.placing import add_place_arguments, place_problems
from routing.models.checkpoint_files import check_checkpoint, training_record
from routing.tasks.corpora import corpus_problems
from train_models.router_kinds import GLOBAL


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="dlr analysis", description=__doc__)
    parser.add_argument("checkpoint", help="folder of a checkpoint with a global router")
    parser.add_argument("--corpus", default="wikipedia", help="wikipedia, wikitext, or a .txt or .jsonl file")
    parser.add_argument("--passages", type=int, default=100, help="passages of the validation part, at most")
    parser.add_argument("--train_passages", type=int, default=1000, help="train passages that token frequencies are of")
    parser.add_argument("--sequence_length", type=int, default=256, help="tokens of a passage, at most")
    parser.add_argument(
        "--prompt_tokens", type=int, help="first tokens of each passage that are not predicted; default as trained"
    )
    parser.add_argument("--batch_size", type=int, default=4, help="passages a forward")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES))
    add_place_arguments(parser)
    parser.add_argument("--output", required=True, help="folder for analysis.json, or a JSON file")
    arguments = parser.parse_args(argv)
    folder = Path(arguments.checkpoint)
    found = corpus_problems("corpus", arguments.corpus) + place_problems(arguments)
    found += unwritable("--output", file_of(arguments.output, "analysis.json").parent)
    found += below(arguments, passages=1, train_passages=1, sequence_length=2, batch_size=1)
    try:
        router = check_checkpoint(folder).get("router", "per_layer")
        if router not in GLOBAL:
            found.append(
                f"{folder} has router {router!r}, which is no global router ({', '.join(GLOBAL)}); train one with "
                "train.py --objective gumbel or reinforce"
            )
        if arguments.prompt_tokens is None:
            arguments.prompt_tokens = training_record(folder)["arguments"].get("prompt_tokens", 0)
        if not 0 <= arguments.prompt_tokens < arguments.sequence_length - 1:
            found.append(
                f"--prompt_tokens {arguments.prompt_tokens} must lie between 0 and --sequence_length less 2, "
                f"{arguments.sequence_length - 2}"
            )
    except UserError as error:
        found.append(str(error))
    raise_all(found)
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    from routing.commands.work.analysis import run  # Takes seconds to import.

    run(arguments)


if __name__ == "__main__":
    run_command(main)
