"""Verdicts of many questions along many layer sets, with adapters or nothing in the place of pruned layers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from routing.common.files import write_json
from routing.common.keyed import judging
from routing.models.config_fields import config_with
from routing.scoring.packed import PathEvaluator
from routing.scoring.requests import Request
from routing.search.results import Verdict
from routing.search.routes import Route

FORMAT = 3  # of the files of groups
TOGETHER = 32  # questions whose paths are evaluated side by side


def verdicts_along(
    model,
    tokenizer,
    requests: Sequence[Request],
    lines: Sequence[Sequence[Route]],
    skip_action: str,
    batch_size: int = 64,
    score: str | None = None,
    folder: Path | None = None,
    key: object = None,
) -> list[list[Verdict]]:
    """Verdict of each request along its route in each line, [lines][requests].

    Args:
        model: a Routed...ForCausalLM with adapters, or without for skip_action "identity".
        lines: for each method the route of each request.
        skip_action: adapter or identity: what stands in for pruned layers.
        score: of generated answers, see `routing.scoring.packed.PathEvaluator`.
        folder: where groups of questions are kept as they are done, so that a rerun goes on.
        key: what the verdicts depend on besides: model, questions, score.
    """
    evaluator = PathEvaluator(model, tokenizer, batch_size, score=score)
    found: list[list[Verdict]] = [[] for _ in lines]
    starts = range(0, len(requests), TOGETHER)
    with config_with(model, skip_action=skip_action), tqdm(total=len(requests), desc=f"answers, {skip_action}") as bar:
        for start in starts:
            part = requests[start : start + TOGETHER]
            # Methods that agree on a question share its verdict.
            pairs = list(dict.fromkeys((at, line[start + at]) for line in lines for at in range(len(part))))
            asked = [request.key() for request in part]
            own = [FORMAT, key, judging(), skip_action, score, evaluator.ends, asked]
            digest = hashlib.sha256(json.dumps(own, default=str).encode()).hexdigest()
            path = None if folder is None else folder / f"{skip_action}-{start // TOGETHER:04d}.json"
            known = _read(path, digest)
            # Paths that a method brings which was not asked for before; the others are known.
            if missing := [pair for pair in pairs if pair not in known]:
                evaluator.prepare(part)
                verdicts = evaluator.verdicts([part[at] for at, _ in missing], [route for _, route in missing])
                evaluator.release()
                known |= dict(zip(missing, verdicts, strict=True))
                if path is not None:
                    kept = [[at, route, verdict] for (at, route), verdict in known.items()]
                    write_json(path, {"key": digest, "verdicts": kept})
            for line, own in zip(found, lines, strict=True):
                own_part = own[start : start + len(part)]
                line += [known[at, route] for at, route in enumerate(own_part)]
            bar.update(len(part))
    return found


def _read(path: Path | None, digest: str) -> dict[tuple[int, Route], Verdict]:
    """Verdicts of a group that were found before with the same key, by (question, route)."""
    if path is None or not path.exists():
        return {}
    saved = json.loads(path.read_text(encoding="utf-8"))
    if saved["key"] != digest:
        return {}
    return {(at, tuple(route)): Verdict(*verdict) for at, route, verdict in saved["verdicts"]}
