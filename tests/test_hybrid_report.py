"""Reports of hybrid language models: seeds together, what makes comparisons unfair, alarms, pictures."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread
from test_report import Page
from test_run_report import make_run, metrics_of

from routing.errors import UserError
from routing.language_model.training import COLUMNS
from routing.report.__main__ import main
from routing.report.hybrid_page import of_best
from routing.report.hybrid_plots import plot_bars
from routing.report.hybrid_runs import group_hybrid_runs, middle, read_hybrid_run, unequal_runs

T2 = 4.3027  # 0.975 quantile of Student's t with 2 degrees of freedom
ROUTED = {"balance_loss": 1.1, "validation_balance_loss": 1.05, "temperature": 0.8, "routing_entropy": 0.6}
SHARES = {"softmax_share": 0.4, "share_entropy": 0.65, "softmax_share_1": 0.3, "softmax_share_2": 0.5}


def make(folder: Path, losses: list[float], config: str = "static", done: bool = True, **more) -> Path:
    """A run's folder, with a validation every ten steps and, at its end, a test loss that is 0.1 higher."""
    folder.mkdir(parents=True)
    routing = ROUTED | SHARES if config == "dynamic" else {}
    columns = (*COLUMNS, *(name for name in routing if name not in COLUMNS))
    with (folder / "metrics.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        for at, loss in enumerate(losses, 1):
            row = {"step": 10 * at, "epoch": at, "train_loss": loss + 0.2, "validation_loss": loss}
            speed = {"tokens_per_second": 900, "validation_tokens_per_second": 2000}
            table.writerow(row | {"perplexity": math.exp(loss)} | speed | routing)
    arguments = {
        "run_name": folder.name, "objective": "lm", "config": config, "seed": 0, "num_layers": 4, "batch_size": 2,
        "gradient_accumulation": 1, "sequence_length": 128, "hidden_size": 64, "corpus": "wikipedia",
    } | more  # fmt: skip
    (folder / "arguments.json").write_text(json.dumps(arguments))
    result = {
        "test": {"loss": min(losses) + 0.1}, "parameters": {"total": 1000}, "kept_step": 10, "alarms": {},
        "learning_rate": 1e-3,
    }  # fmt: skip
    if done:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def change(folder: Path, **more) -> None:
    path = folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


@pytest.fixture
def sweep(tmp_path) -> Path:
    for seed, shift in enumerate((0.0, 0.1, 0.2)):
        for config, loss in (("dynamic", 4.0), ("static", 4.5)):
            # The last validation is not the best one.
            make(tmp_path / "runs" / f"{config}-s{seed}", [5, loss + shift, loss + 1], config, seed=seed)
    return tmp_path


def groups_of(sweep: Path):
    return group_hybrid_runs([read_hybrid_run(folder) for folder in sorted((sweep / "runs").iterdir())])


def test_seeds_are_taken_together_at_the_best_validation(sweep):
    static, dynamic = groups_of(sweep)
    assert (static.name, dynamic.name) == ("static", "dynamic") and dynamic.runs[0].blocks == [1, 2]
    mean, interval = middle(dynamic.values(of_best("validation_loss")))
    half = T2 * 0.1 / math.sqrt(3)  # Losses 4, 4.1, 4.2.
    assert mean == pytest.approx(4.1) and interval == pytest.approx([4.1 - half, 4.1 + half], abs=1e-5)
    steps, values = dynamic.curve("validation_loss")
    assert steps == [10, 20, 30] and values[1] == pytest.approx([4, 4.1, 4.2])
    assert static.curve("softmax_share_1") == static.curve("balance_loss") == ([], [])


def test_other_arguments_make_other_groups(tmp_path):
    for weight in (0.1, 0.5):
        make(tmp_path / "runs" / str(weight), [4.0], "dynamic", balance_weight=weight)
    make(tmp_path / "runs" / "static", [4.0], balance_weight=0.1)
    assert [group.name for group in groups_of(tmp_path)] == [
        "static", "dynamic, balance_weight 0.1", "dynamic, balance_weight 0.5",
    ]  # fmt: skip
    make(tmp_path / "runs" / "twice", [4.0], balance_weight=0.1)
    with pytest.raises(UserError, match="have the same arguments and seed"):
        groups_of(tmp_path)


def test_unfair_comparisons_and_alarms_are_told(sweep):
    assert unequal_runs(groups_of(sweep)) == []
    change(sweep / "runs" / "static-s0", learning_rate=2e-3, parameters={"total": 1100})
    change(sweep / "runs" / "dynamic-s2", alarms={"10": ["block 1 collapsed"], "30": ["block 2 collapsed"]})
    (sweep / "runs" / "static-s1" / "result.json").unlink()
    rates, sizes, unfinished, alarm = unequal_runs(groups_of(sweep))
    assert rates == "runs have different learning rates: 0.002, 0.001."
    assert sizes.startswith("parameters differ by more than 1 %: 1,000 to 1,100")
    assert unfinished == "not finished: static-s1."
    assert alarm == "ALARM in dynamic-s2 at steps 10, 30; the last: block 2 collapsed."


def test_report(sweep, tmp_path, monkeypatch, capsys):
    (sweep / "runs" / "waiting").mkdir()
    monkeypatch.setattr(sys, "argv", ["routing.report", str(sweep), "--output", str(tmp_path / "report")])
    main()
    assert "left out, without metrics.csv yet: waiting" in capsys.readouterr().err
    with (tmp_path / "report" / "report.csv").open() as file:
        static, dynamic = csv.DictReader(file)
    assert float(dynamic["validation_loss"]) == pytest.approx(4.1) and float(dynamic["test_loss"]) == pytest.approx(4.2)
    assert float(dynamic["test_perplexity"]) == pytest.approx(math.exp(4.2), rel=1e-4)
    assert (dynamic["softmax_share"], dynamic["balance_loss"], dynamic["seeds"]) == ("0.4", "1.05", "3")
    assert static["softmax_share"] == static["routing_entropy"] == ""
    page = Page((tmp_path / "report" / "report.html").read_text(encoding="utf-8"))
    text = " ".join("".join(page.texts).split())
    for part in ("3.852 – 4.348", "40.0%", "dynamic", "66.7", "language model alone"):  # exp(4.2) is 66.69.
        assert part in text, part
    assert not page.tags & {"script", "link"}
    pictures = {path.stem for path in (tmp_path / "report").glob("*.png")}
    assert pictures == {
        "validation_loss", "perplexity", "train_loss", "final_loss", "test_loss", "routing_share", "routing_entropy",
        "balance_loss", "temperature", "training_speed", "reading_speed",
    }  # fmt: skip
    assert all(imread(path).shape[1] > 500 for path in (tmp_path / "report").glob("*.png"))


def test_report_of_one_unfinished_run_without_routing(tmp_path, monkeypatch, capsys):
    folder = make(tmp_path / "run", [4.0], done=False)
    monkeypatch.setattr(sys, "argv", ["routing.report", str(folder), "--output", str(tmp_path / "report")])
    main()
    assert "not finished: run" in capsys.readouterr().err
    pictures = {path.stem for path in (tmp_path / "report").glob("*.png")}
    assert "validation_loss" in pictures and not pictures & {"test_loss", "routing_share", "balance_loss"}


def test_bars_show_the_numbers(sweep, monkeypatch):
    kept = []
    monkeypatch.setattr("routing.report.hybrid_plots.save", lambda figure, _: kept.append(figure))
    plot_bars(groups_of(sweep), of_best("validation_loss"), "loss", 4, False, io.BytesIO(), "title")
    (axes,) = kept[0].axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([4.6, 4.1])
    assert 0 < axes.get_xlim()[0] < 3.9 and "the axis begins at" in axes.get_xlabel()


def test_what_is_no_such_run_is_refused(tmp_path, monkeypatch):
    other = make_run(tmp_path / "other", metrics_of([3], 6))
    folder = make(tmp_path / "run", [4.0])
    monkeypatch.setattr(sys, "argv", ["report", str(folder), str(other), "--output", str(tmp_path / "report")])
    with pytest.raises(UserError, match="some runs are of --objective lm and others are not"):
        main()
    text = (folder / "metrics.csv").read_text()
    (folder / "metrics.csv").write_text(text.replace("4.0", "", 1).replace("4.2", "4.2", 1))
    with pytest.raises(UserError, match="line 2: validation_loss is empty"):
        read_hybrid_run(folder)
