import matplotlib as mpl
import numpy as np
import optuna
import pytest

from reports.facts import final_loss
from reports.figures import runs
from reports.figures import space as figures_space
from reports.figures.space import IMPORTANCE_MIN_TRIALS, importances
from reports.sections import FIGURES
from reports.style import theme
from reports.style.theme import Chart, NoChart
from tests.support.figures import assert_texts_apart


def charts(facts):
    return [chart for make in FIGURES if isinstance(chart := make(facts), Chart)]


@pytest.mark.parametrize("variant", ["full", "many", "promotion running", "hostile", "one trial"])
def test_no_text_overlaps_another_or_leaves_the_figure(facts, variant):
    for chart in charts(facts(variant)):
        assert_texts_apart(chart)


def test_every_axis_has_a_name_and_ticks_to_read(facts):
    for chart in charts(facts("many")):
        with theme.drawn(chart) as figure:
            (axes,) = figure.axes
            assert axes.get_xlabel()
            assert chart.name == "importance" or axes.get_ylabel()
            for axis in (axes.xaxis, axes.yaxis):
                labels = [tick.label1.get_text() for tick in axis._update_ticks()]
                assert 2 <= len([label for label in labels if label]) <= 12, chart.name
                assert len(set(labels)) == len(labels), (chart.name, labels)


def test_the_palette_can_be_read():
    """Contrast after WCAG 2.1: 4.5 for text, 3 for marks."""

    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    assert len(set(theme.PALETTE.values())) == len(theme.PALETTE)
    ground = luminance(theme.PALETTE["paper"])
    for role, colour in theme.PALETTE.items():
        low, high = sorted((ground, luminance(colour)))
        contrast = (high + 0.05) / (low + 0.05)
        needed = {"paper": 1, "grid": 1, "ink": 4.5, "muted": 4.5}.get(role, 3)
        assert contrast >= needed, (role, contrast)


def test_drawings_are_equal_byte_for_byte(facts):
    chart = runs.proposals(facts("full"))
    assert theme.svg_and_png(chart) == theme.svg_and_png(chart)
    chart = runs.learning_curves(facts("many"))  # with pixels inside
    assert theme.svg_and_png(chart) == theme.svg_and_png(chart)


def test_a_users_matplotlibrc_changes_nothing_and_is_left_as_it_was(facts):
    chart = runs.history(facts("full"))
    expected = theme.svg_and_png(chart)[0]
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "lines.linewidth": 9}):
        before = dict(mpl.rcParams)
        assert theme.svg_and_png(chart)[0] == expected
        assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("variant", ["empty", "all rejected", "all failed"])
def test_without_data_there_are_words(facts, variant):
    for make in FIGURES:
        chart = make(facts(variant))
        if isinstance(chart, NoChart):
            assert chart.why.endswith(".")
            assert len(chart.why) > 30
    assert isinstance(runs.history(facts(variant)), NoChart)
    assert isinstance(figures_space.isoflop(facts(variant)), NoChart)


def plotted(chart):
    """The data of every line in a chart."""
    with theme.drawn(chart) as figure:
        return [np.column_stack(line.get_data()) for line in figure.axes[0].get_lines()]


def test_the_history_shows_the_best_so_far(facts):
    study = facts("full")
    step = plotted(runs.history(study))[0]
    trials = sorted(study.ranked, key=lambda r: r.number)
    expected = np.minimum.accumulate([final_loss(r) for r in trials])
    assert step[:-1, 1].tolist() == expected.tolist()
    assert step[-1, 1] == final_loss(study.best)


def test_the_schedule_is_that_of_the_configuration(facts):
    study = facts("full")
    config = study.best.config
    line = plotted(runs.schedule(study))[0]
    peak = line[line[:, 1].argmax()]
    assert peak.tolist() == [config["num_warmup_steps"], config["max_lr"]]
    assert line[-1].tolist() == [config["num_training_steps"], config["min_lr"]]


def test_a_sampled_head_has_no_budget_line_over_all_parameters(facts, monkeypatch):
    study = facts("full")
    assert "6·N·D" in legend(runs.proposals(study))
    run = study.trials[0]
    monkeypatch.setattr(run, "config", {**run.config, "head_samples": 1024})
    assert "6·N·D" not in legend(runs.proposals(study))


def legend(chart):
    with theme.drawn(chart) as figure:
        return " ".join(t.get_text() for each in figure.legends for t in each.get_texts())


def test_the_promoted_run_lies_beyond_the_trials(facts):
    study = facts("full")
    trial, _ = runs._val_curve(study, study.best)
    promoted, losses = runs._val_curve(study, study.promoted)
    assert promoted[-1] == pytest.approx(100 * trial[-1], rel=0.02)
    assert losses[-1] == pytest.approx(study.promoted.val_loss_nats, abs=1e-3)


def test_importance_needs_enough_trials(facts):
    study = facts("promotion running")
    assert len(study.ranked) < IMPORTANCE_MIN_TRIALS
    assert "Too few trials" in figures_space.importance(study).why


def test_importance_finds_what_the_loss_depends_on(facts):
    """The synthetic loss depends on the learning rate most, and on weight decay not at all."""
    level = optuna.logging.get_verbosity()
    shares, quantile = importances(facts("many"))
    assert optuna.logging.get_verbosity() == level
    assert quantile == 0.1
    assert sum(shares.values()) == pytest.approx(1)
    assert next(iter(shares)) == "max_lr"
    assert shares["weight_decay"] < 0.1 * shares["max_lr"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\nb", "a b"), ("漢字", "??"), ("x\x00y", "x?y"), ("12345678", "1234…"), ("≥ 3", "≥ 3")],
)
def test_printable(text, shown):
    assert theme.printable(text, 5) == shown
