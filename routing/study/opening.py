"""The test questions are opened once: from then on the plan of a study stands."""

from __future__ import annotations

import json
from pathlib import Path

from routing.common.errors import UserError
from routing.common.files import write_json
from routing.common.locks import held
from routing.common.run_info import git_commit, today
from routing.study.plan import Plan

OPENED = "test_opened.json"


class Opening:
    """The file in the folder of a study that says with which plan its test questions were opened."""

    def __init__(self, output: Path):
        self.path = output / OPENED

    def record(self) -> dict | None:
        """What it says; None while no test question was asked."""
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else None

    def check(self, plan: Plan) -> None:
        """Refuse another plan than that with which the test questions were opened.

        Raises:
            UserError: naming what was changed.
        """
        record = self.record()
        if record is None or record["plan_sha256"] == plan.digest:
            return
        before, now = record["plan"], json.loads(json.dumps(plan.values))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        raise UserError(
            f"the plan was changed ({', '.join(changed)}) after test questions were opened on {record['date']}, so "
            f"what it says could rest on them. Restore the plan (it is in {self.path}), or give another --output to "
            "begin anew; a study that was opened cannot be mended."
        )

    def open(self, plan: Plan) -> None:
        """Write the file, unless it is there; then check the plan."""
        with held(self.path.with_name(".opening.lock"), wait=True):
            if not self.path.exists():
                own = {"plan_sha256": plan.digest, "date": today(), "git_commit": git_commit()}
                write_json(self.path, own | {"plan": plan.values})
        self.check(plan)
