"""What `dlr study` does: makes the stages that are not done, then writes tables, pictures and the page."""

from __future__ import annotations

import argparse
from pathlib import Path

from routing.common.errors import UserError
from routing.common.ray_workers import Workers, cluster
from routing.report.study import write_study
from routing.study.opening import Opening
from routing.study.plan import Plan
from routing.study.results import all_answers, collect
from routing.study.runner import Runner, on_worker
from routing.study.stages import TEST, Place, Stage


def make_stage(place: Place, name: str) -> None:
    """One of the study's own stages, in this process."""
    from routing.study import answering, choosing

    kind, _, task = name.partition("-")
    made = {
        "headroom": lambda: choosing.find_headroom(place, task),
        "weighed": lambda: choosing.weigh(place, task),
        "paths": lambda: choosing.choose_paths(place),
        "corpus": lambda: choosing.write_corpus(place),
        "chosen": lambda: choosing.choose(place, task),
        TEST: lambda: answering.answer(place, task),
        "times": lambda: answering.time_requests(place, task),
        "perplexity": lambda: answering.measure_text(place),
    }
    if kind not in made:
        raise UserError(f"--only {name}: it is made by a command of its own, see .stages/{place.prefix}/{name}")
    if kind == TEST:
        Opening(place.output).check(place.plan)
    made[kind]()


def run(plan: Plan, stages: list[Stage], arguments: argparse.Namespace) -> None:
    """Make the stages, then write what there is.

    Raises:
        UserError: at the end, naming stages that failed.
    """
    output, file = Path(arguments.output).resolve(), Path(arguments.plan).resolve()
    output.mkdir(parents=True, exist_ok=True)
    opening = Opening(output)
    opening.check(plan)
    failure = None
    if not arguments.report:
        runner = Runner(stages, output, arguments.retry_failed)
        runner.opened = lambda stage: opening.open(plan) if stage.kind == TEST else None
        try:
            if arguments.engine == "ray":
                with cluster(arguments.address):
                    runner.make_on(Workers(on_worker, f"stages of {output.name}", arguments.workers))
            else:
                runner.make_all()
        except UserError as error:
            failure = error
    try:
        found = collect(plan, file, arguments.quick, output)
    except UserError:
        if failure is not None:
            raise failure from None
        raise
    answers = all_answers(plan, file, arguments.quick, output)
    write_study(output, plan, found, opening.record(), answers)
    if failure is not None:
        raise failure
