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

from routing.commands.report import main
from routing.common.errors import UserError
from routing.report.hybrid_page import _about, of_best, paired_row, speed
from routing.report.hybrid_plots import plot_bars
from routing.report.hybrid_runs import group_hybrid_runs, middle, paired, read_hybrid_run, unequal_runs
from routing.training.language_model.training import COLUMNS

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
        "test": {"loss": min(losses) + 0.1}, "parameters": {"total": 9000, "embeddings": 8000}, "alarms": {},
        "kept_step": 10 * (losses.index(min(losses)) + 1), "learning_rate": 1e-3,
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
    change(sweep / "runs" / "static-s0", learning_rate=2e-3, parameters={"total": 9100, "embeddings": 8000})
    change(sweep / "runs" / "dynamic-s2", alarms={"10": ["block 1 collapsed"], "30": ["block 2 collapsed"]})
    (sweep / "runs" / "static-s1" / "result.json").unlink()
    rates, sizes, unfinished, alarm = unequal_runs(groups_of(sweep))
    assert rates == "runs have different learning rates: 0.002, 0.001."
    assert sizes.startswith("parameters without embeddings differ by more than 1 %: 1,000 to 1,100")
    assert unfinished == "not finished: static-s1."
    assert alarm == "ALARM in dynamic-s2 at steps 10, 30; the last: block 2 collapsed."


def test_other_text_and_training_are_told(tmp_path):
    same = {"model_id": "a", "layout": "packed", "train_passages": 9, "num_epochs": 1, "weight_decay": 0.1,
            "bf16": False, "num_processes": 1}  # fmt: skip
    make(tmp_path / "runs" / "static", [4.0], **same)
    make(tmp_path / "runs" / "dynamic", [4.0], "dynamic", **same)
    assert unequal_runs(groups_of(tmp_path)) == []
    other = {"model_id": "b", "layout": "padded", "train_passages": 8, "num_epochs": 2, "weight_decay": 0.0,
             "bf16": True, "num_processes": 4, "corpus": "wikitext"}  # fmt: skip
    make(tmp_path / "runs" / "other", [4.0], "all-gdn", **other)
    found = unequal_runs(groups_of(tmp_path))
    assert len(found) == len(other) and "runs have different tokenizers: a, b." in found


def test_a_random_control_of_other_shares_is_told(tmp_path):
    make(tmp_path / "runs" / "dynamic", [4.0], "dynamic")
    for name, second in (("near", 0.46), ("far", 0.6)):
        folder = make(tmp_path / "runs" / name, [4.0], "dynamic", random_share=second)
        (folder / "arguments.json").write_text((folder / "arguments.json").read_text().replace("dynamic", "random"))
        table = (folder / "metrics.csv").read_text().replace("0.3,0.5", f"0.3,{second}")
        (folder / "metrics.csv").write_text(table)
    (note,) = unequal_runs(groups_of(tmp_path))
    assert note.startswith("random, random_share 0.6 takes") and "30%, 60%, not 30%, 50%" in note
    assert note.endswith("--random_share 0.30,0.50.")


def test_paired_differences_by_hand(sweep):
    change(sweep / "runs" / "dynamic-s0", test={"loss": 4.3})  # Static: 4.6, 4.7, 4.8; dynamic: 4.3, 4.2, 4.3.
    (pair,) = paired(groups_of(sweep))
    assert (pair.first, pair.second) == ("dynamic", "static") and pair.differences == pytest.approx([-0.3, -0.5, -0.5])
    half = T2 * math.sqrt((2 * (0.1 / 1.5) ** 2 + (0.2 / 1.5) ** 2) / 2) / math.sqrt(3)
    assert paired_row(pair)[2:] == pytest.approx([3, -1.3 / 3, -1.3 / 3 - half, -1.3 / 3 + half], abs=1e-5)
    (sweep / "runs" / "static-s1" / "result.json").unlink()
    assert paired(groups_of(sweep))[0].differences == pytest.approx([-0.3, -0.5])


def test_speed_is_the_median_and_sizes_are_those_of_the_model(tmp_path):
    folder = make(tmp_path / "run", [4.0, 3.9, 3.8])
    lines = (folder / "metrics.csv").read_text().replace(",900,", ",100,", 1)
    (folder / "metrics.csv").write_text(lines)
    assert speed("tokens_per_second")(read_hybrid_run(folder)) == 900
    assert _about([read_hybrid_run(folder)])["width"] == "64"  # Of the arguments, as earlier versions have it.
    change(folder, model={"hidden_size": 32})
    assert _about([read_hybrid_run(folder)])["width"] == "32"
    change(folder, kept_step=7)
    with pytest.raises(UserError, match="has no step 7"):
        read_hybrid_run(folder)


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
    with (tmp_path / "report" / "paired.csv").open() as file:
        (pair,) = csv.DictReader(file)
    assert (pair["first"], pair["second"], pair["seeds"]) == ("dynamic", "static", "3")
    assert float(pair["difference"]) == pytest.approx(-0.5) and "dynamic - static" in text
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
