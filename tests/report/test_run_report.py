"""`python -m routing report`: runs are read, grouped and drawn; every number here is worked out by hand."""

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

from routing.commands.report import main
from routing.commands.work.text_evaluation import COLUMNS as WRITTEN_CONTROLS
from routing.common.errors import UserError
from routing.report.groups import control_points, curve, group_runs, labels, own_point, unequal
from routing.report.run_plots import (
    LOOKS,
    plot_components,
    plot_final_losses,
    plot_pareto,
    plot_quality,
    plot_speed,
)
from routing.report.runs import CONTROLS, METHODS, METRICS, find_runs, read_run
from routing.training.end_to_end.training import COLUMNS as WRITTEN_METRICS

T2 = 4.3027  # 0.975 quantile of Student's t with 2 degrees of freedom


def read_runs(folders):
    """All runs of folders, and the folders without."""
    chosen, empty = find_runs(folders)
    return [read_run(folder) for folder in chosen], empty


def write_csv(path: Path, columns, rows: list[dict]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)


def metrics_of(losses: list[float], layers: float, **more) -> list[dict]:
    """A validation every 10 steps."""
    return [
        {"step": 10 * at, "epoch": at / 2, "train_loss": loss + 0.5, "ce_loss": loss, "validation_loss": loss,
         "active_layers": layers, "skip_ratio": (6 - layers) / 4, "perplexity": math.exp(loss)} | more
        for at, loss in enumerate(losses, 1)
    ]  # fmt: skip


def control(method: str, loss: float, layers: float = 6, speedup: float = 1.0, **more) -> dict:
    return {
        "method": method, "layers": layers, "skip_ratio": (6 - layers) / 4, "loss": loss, "loss_low": loss - 0.1,
        "loss_high": loss + 0.2, "perplexity": math.exp(loss), "speedup": speedup,
    } | more  # fmt: skip


def make_run(folder: Path, metrics: list[dict], controls: list[dict] = (), shares: list[float] = (), **arguments):
    """A run's folder: six layers, the first two always run."""
    folder.mkdir(parents=True)
    own = {
        "run_name": folder.name, "objective": "dense", "router": "none", "seed": 0, "target_skip": 0.4,
        "layer_penalty": 0.0, "kept_layers": 2,
    } | arguments  # fmt: skip
    (folder / "arguments.json").write_text(json.dumps(own))
    write_csv(folder / "metrics.csv", METRICS, metrics)
    if controls:
        write_csv(
            folder / "controls.csv", ("run", *CONTROLS, "method"), [{"run": folder.name} | row for row in controls]
        )
    if shares:
        rows = [{"layer": layer, "share": share} for layer, share in enumerate(shares)]
        write_csv(folder / "layers.csv", ("layer", "share"), rows)
    return folder


GUMBEL = {"objective": "gumbel", "router": "prefix_token"}
ANALYSIS = {
    "router": "prefix_token", "tokens": 1234, "mean_layers": 4.5, "kept_layers": 2,
    "categories": {"all": {"tokens": 1234, "layers": 4.5}, "numeric": {"tokens": 0, "layers": None}},
    "correlations": {
        "token_rarity": {"r": -0.25, "ci95": [-0.3, -0.2], "n": 1234},
        "passage_length": {"r": None, "ci95": None, "n": 5},
    },
    "layer_skip_rates": [0, 0, 0.5, 0.25, 0.5, 0.25],
}  # fmt: skip


@pytest.fixture
def sweep(tmp_path) -> Path:
    """Dense and gumbel with three seeds each, and a gumbel run of another target that was not evaluated."""
    for seed, shift in enumerate((0.0, 0.1, 0.2)):
        make_run(
            tmp_path / "sweep" / "runs" / f"dense-s{seed}",
            metrics_of([4, 3 + shift], 6),
            [control("full", 3 + shift), control("base", 3.5)],
            seed=seed,
        )
        controls = [
            control("full", 2.9 + shift),
            control("base", 3.5),
            control("routed", 3 + shift, 5, 1.2 + shift),
            *(control("random_tokens", 4 + at, 5, method_seed=at, difference=1 + at - shift) for at in (0, 1)),
            control("static", 3.3 + shift, 4, difference=0.3, difference_low=0.2, difference_high=0.4),
            control("static", 3.2 + shift, 5, difference=0.2, difference_low=0.1, difference_high=0.3),
        ]
        losses = {"kd_loss": 0.5, "gate_loss": 0.1, "target_loss": 0.2, "temperature": 0.9}
        make_run(
            tmp_path / "sweep" / "runs" / f"gumbel-s{seed}",
            metrics_of([4, 3.5 + shift], 5, **losses),
            controls,
            [1, 1, 1, 0.5, 0.75, 0.75],
            seed=seed,
            **GUMBEL,
        )
    more = make_run(
        tmp_path / "sweep" / "runs" / "more", metrics_of([4, 3.7], 4, temperature=0.9), target_skip=0.5, **GUMBEL
    )
    (more / "analysis.json").write_text(json.dumps(ANALYSIS))
    (tmp_path / "sweep" / "runs" / "waiting").mkdir()
    return tmp_path / "sweep"


def groups_of(folder: Path):
    return group_runs(read_runs([folder])[0])


def test_the_columns_are_those_that_are_written():
    assert METRICS == WRITTEN_METRICS
    assert {*CONTROLS, "method"} <= set(WRITTEN_CONTROLS)


def test_a_sweep_is_read_and_each_run_once(sweep):
    runs, empty = read_runs([sweep, sweep / "runs" / "more"])
    assert [run.name for run in runs] == [*(f"{kind}-s{n}" for kind in ("dense", "gumbel") for n in range(3)), "more"]
    assert empty == ["waiting"]
    assert runs[0].metrics[0]["kd_loss"] is None and runs[3].metrics[0]["kd_loss"] == 0.5
    assert runs[3].layers == [1, 1, 1, 0.5, 0.75, 0.75] and runs[0].layers is None


def test_groups(sweep):
    dense, gumbel, more = groups_of(sweep)
    assert (dense.name, gumbel.name, more.name) == (
        "dense", "gumbel prefix_token, target_skip 0.4", "gumbel prefix_token, target_skip 0.5",
    )  # fmt: skip
    assert gumbel.family == more.family == "gumbel prefix_token" and len(gumbel.runs) == 3 and len(more.runs) == 1
    assert curve(gumbel, lambda row: row["validation_loss"]) == ([10, 20], [pytest.approx(4), pytest.approx(3.6)])
    assert curve(dense, lambda row: row["kd_loss"]) == ([], [])


def test_other_arguments_make_other_groups_and_families(tmp_path):
    for name, weight in (("with", 0.5), ("without", 1.0)):
        make_run(tmp_path / name, metrics_of([3], 5), ce_weight=weight, output_dir=name, **GUMBEL)
    with_, without = group_runs(read_runs([tmp_path / "with", tmp_path / "without"])[0])
    assert with_.name == with_.family == "gumbel prefix_token, ce_weight 0.5"
    assert without.name == "gumbel prefix_token, ce_weight 1"
    assert labels([with_.arguments], ()) == ["gumbel prefix_token"]


def test_means_and_intervals_over_seeds(sweep):
    _, gumbel, more = groups_of(sweep)
    own = own_point(gumbel)
    # Losses of the routed rows: 3, 3.1, 3.2; deviation 0.1.
    half = T2 * 0.1 / math.sqrt(3)
    assert own.loss == pytest.approx(3.1) and own.interval == pytest.approx([3.1 - half, 3.1 + half], abs=1e-5)
    assert (own.over, own.runs, own.layers, own.skip_ratio) == ("seeds", 3, 5, 0.25)
    assert own.speedup == pytest.approx(1.3)
    assert own.speedup_interval == pytest.approx([1.3 - half, 1.3 + half], abs=1e-5)
    # Not evaluated: the last validation, one run.
    alone = own_point(more)
    assert (alone.loss, alone.layers, alone.interval, alone.over, alone.speedup) == (3.7, 4, None, "", None)


def test_controls(sweep):
    dense, gumbel, more = groups_of(sweep)
    assert [point.method for point in control_points(dense)] == ["base"] and control_points(more) == []
    found = {(point.method, point.layers): point for point in control_points(gumbel)}
    assert set(found) == {("full", 6), ("base", 6), ("random_tokens", 5), ("static", 4), ("static", 5)}
    random = found["random_tokens", 5]
    # Two draws with 4 and 5 in each run: 4.5 in all, so seeds do not differ. Differences 1.5, 1.4, 1.3.
    assert random.loss == 4.5 and random.interval == [4.5, 4.5] and random.difference == pytest.approx(1.4)
    half = T2 * 0.1 / math.sqrt(3)
    assert random.difference_interval == pytest.approx([1.4 - half, 1.4 + half], abs=1e-5)
    assert found["static", 4].loss == pytest.approx(3.4) and found["static", 5].loss == pytest.approx(3.3)
    # The base is one model, so its interval is over rows.
    assert found["base", 6].interval == pytest.approx([3.4, 3.7]) and found["base", 6].over == "rows"


def test_one_evaluated_run_has_the_interval_of_its_rows(tmp_path):
    controls = [control("routed", 3.0, 5), control("static", 3.3, 5, difference=0.3, difference_low=0.2,
                                                   difference_high=0.4)]  # fmt: skip
    (group,) = group_runs([read_run(make_run(tmp_path / "r", metrics_of([9], 5), controls, **GUMBEL))])
    assert own_point(group).interval == pytest.approx([2.9, 3.2]) and own_point(group).over == "rows"
    (static,) = control_points(group)
    assert static.difference_interval == pytest.approx([0.2, 0.4])


def test_unfair_comparisons_are_told(sweep, tmp_path):
    (note,) = unequal(groups_of(sweep))
    assert note.startswith("more: no controls.csv")
    for seed, losses in enumerate(([4, 3], [4])):
        make_run(tmp_path / f"s{seed}", metrics_of(losses, 6), seed=seed)
    (note,) = unequal(group_runs(read_runs([tmp_path / "s0", tmp_path / "s1"])[0]))
    assert note == "dense: runs are at different steps (s0 at 20, s1 at 10); finish them or leave some out."


def test_the_same_run_twice_is_refused(tmp_path):
    folders = [make_run(tmp_path / name, metrics_of([3], 6)) for name in ("a", "b")]
    with pytest.raises(UserError, match="a and .*b have the same arguments and seed"):
        group_runs(read_runs(folders)[0])


HEAD = ",".join(METRICS)
ROW = "10,1,3,3,,,,3,5,0.25,1,0.1,20,900,2"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("metrics.csv", "", "line 1: the file ends before its head"),
        ("metrics.csv", f"{HEAD}\n", "line 2: the file ends before its first row"),
        ("metrics.csv", f"{HEAD.replace('kd_loss,', '')}\n{ROW[:-2]}\n", "line 1: there is no column kd_loss"),
        ("metrics.csv", f"{HEAD}\n{ROW}\n10,1\n", "line 3: 2 cells below 15 columns"),
        ("metrics.csv", f"{HEAD}\n{ROW.replace('900', 'fast')}\n", "line 2: tokens_per_second is 'fast'"),
        ("metrics.csv", f"{HEAD}\n{ROW.replace('900', 'nan')}\n", "line 2: tokens_per_second is 'nan'"),
        ("metrics.csv", f"{HEAD}\n{ROW.replace(',3,5,', ',,5,')}\n", "line 2: validation_loss is empty"),
        ("layers.csv", "layer,share\n0,1\n2,1\n", "line 3: expected layer 1"),
        ("layers.csv", "layer,share\n0,1.5\n", "line 2: expected layer 0 and a share of 0 to 1"),
        ("controls.csv", f"method,{','.join(CONTROLS)}\nbest{',1' * len(CONTROLS)}\n", "line 2: method 'best' is none"),
        ("controls.csv", f"method,{','.join(CONTROLS)}\n" + f"full{',1' * len(CONTROLS)}\n" * 2,
         "line 3: method full is there twice"),
        ("arguments.json", "[1]", "lacks run_name, objective"),
        ("arguments.json", "{", "cannot be read"),
        ("analysis.json", "{}", "lacks router, tokens"),
    ],
)  # fmt: skip
def test_malformed_files(tmp_path, name, text, said):
    folder = make_run(tmp_path / "run", metrics_of([3], 6))
    (folder / name).write_text(text)
    with pytest.raises(UserError) as error:
        read_runs([folder])
    assert f"{folder / name}" in str(error.value) and said in str(error.value)
    assert any(word in str(error.value) for word in ("again", "Give"))


def test_folders_without_runs_are_all_named(tmp_path):
    for name in ("a", "b/runs/unfinished"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UserError) as error:
        read_runs([tmp_path / "a", tmp_path / "missing", tmp_path / "b"])
    for part in (f"{tmp_path / 'a'} holds no metrics.csv", f"{tmp_path / 'missing'} holds", "no run with metrics.csv"):
        assert part in str(error.value)


def test_report(sweep, tmp_path, monkeypatch, capsys):
    output = tmp_path / "report"
    monkeypatch.setattr(sys, "argv", ["routing.report", str(sweep), "--output", str(output)])
    main()
    assert "left out, without metrics.csv yet: waiting" in capsys.readouterr().err
    with (output / "report.csv").open() as file:
        rows = {(row["group"], row["method"], row["layers"]): row for row in csv.DictReader(file)}
    assert len(rows) == 2 + 6 + 1
    own = rows["gumbel prefix_token, target_skip 0.4", "own", "5"]
    assert float(own["loss"]) == pytest.approx(3.1) and own["interval_over"] == "seeds" and own["seeds"] == "3"
    assert float(own["perplexity"]) == pytest.approx(math.exp(3.1), rel=1e-4) and own["difference"] == ""
    page = Page((output / "report.html").read_text(encoding="utf-8"))
    text = " ".join("".join(page.texts).split())
    # 3.1 and half of the interval 0.2484; exp(3.1) is 22.20.
    for part in ("2.8516 – 3.3484 (seeds)", "22.20", "25.0%", "more: no controls.csv", "Router of more", "−0.250"):
        assert part in text
    assert not page.tags & {"script", "link"}
    pictures = sorted(path.name for path in output.glob("*.png"))
    assert pictures == [
        "categories_more.png", "final_loss.png", "layer_skips.png", "loss_components.png", "pareto.png",
        "quality_layers.png", "skip_rates_more.png", "speed.png", "temperature.png", "validation_loss.png",
    ]  # fmt: skip
    assert len(set(page.pictures)) == len(pictures)
    for path in output.glob("*.png"):
        assert imread(path).shape[1] > 500


def test_report_of_one_bare_run(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run", metrics_of([3], 6))
    monkeypatch.setattr(sys, "argv", ["routing.report", str(folder), "--output", str(tmp_path / "report")])
    main()
    names = {path.stem for path in (tmp_path / "report").glob("*.png")}
    assert names == {"validation_loss", "final_loss", "loss_components", "pareto", "quality_layers"}


def drawn_axes(draw, what, monkeypatch):
    """The axes that a function draws on, kept open."""
    kept = []
    monkeypatch.setattr("routing.report.run_plots.save", lambda figure, _: kept.append(figure))
    draw(what, io.BytesIO(), "title")
    return kept[0].axes


def test_pictures_show_the_numbers(sweep, monkeypatch):
    groups = groups_of(sweep)
    own = [own_point(group) for group in groups]
    points = [point for first in own for point in (first, *control_points(first.group))]
    (bars,) = drawn_axes(plot_final_losses, own, monkeypatch)
    assert [bar.get_width() for bar in bars.patches] == pytest.approx([3.1, 3.1, 3.7])
    (speed,) = drawn_axes(plot_speed, points, monkeypatch)
    widths = [bar.get_width() for bar in speed.patches]
    assert len(widths) == 2 + 5 and widths[2] == pytest.approx(1.3)  # Without full depth, which is 1.
    whole, calm = drawn_axes(plot_pareto, points, monkeypatch)
    assert whole.get_ylim()[1] > 4.5 > calm.get_ylim()[1]
    titles = [axes.get_title() for axes in drawn_axes(plot_components, groups, monkeypatch)]
    assert titles == ["whole loss", "cross-entropy", "distillation", "gate loss", "target loss"]
    (quality,) = drawn_axes(plot_quality, groups, monkeypatch)
    assert quality.get_yscale() == "log" and [len(dots.get_offsets()) for dots in quality.collections] == [3, 3, 1]


def test_every_method_has_a_look():
    assert set(LOOKS) == set(METHODS) - {"routed"} | {"own"}
