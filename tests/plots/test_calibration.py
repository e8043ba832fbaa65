"""Figures of calibration: what is drawn, where, and under which label."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fssa_bayes import diagnostics, plots

mpl.use("Agg")

import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def line(ax: Axes, label: str) -> Line2D:
    (found,) = [line for line in ax.lines if line.get_label() == label]
    return found


def band(ax: Axes, x: float) -> tuple[float, float]:
    """Ends of the grey band at x."""
    (collection,) = [c for c in ax.collections if c.get_label() and len(c.get_paths())][:1]
    vertices = collection.get_paths()[0].vertices
    y = vertices[np.isclose(vertices[:, 0], x), 1]
    return y.min(), y.max()


def legend(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def markers(ax: Axes, marker: str) -> np.ndarray:
    """Positions (n, 2) of everything drawn with this marker."""
    found = [line.get_xydata() for line in ax.lines if line.get_marker() == marker]
    return np.concatenate([np.empty((0, 2)), *found])


# Reliability


def test_reliability_draws_curve_band_and_forecasts() -> None:
    prob, recalibrated, weight = [0.1, 0.5, 0.9], [0.2, 0.2, 1.0], [0.5, 0.3, 0.2]
    ax = plots.reliability(
        prob, recalibrated, weight, grid=[0.1, 0.9], lower=[0.0, 0.7], upper=[0.3, 0.95]
    )
    curve = line(ax, "observed (isotonic)")
    np.testing.assert_array_equal(curve.get_xydata(), np.column_stack([prob, recalibrated]))
    (diagonal,) = [line for line in ax.lines if line.get_linestyle() == "--"]
    np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
    assert band(ax, 0.1) == (0.0, 0.3)
    heights = {bar.get_x(): bar.get_height() for bar in ax.patches if bar.get_height() > 0}
    assert list(heights) == pytest.approx([0.08, 0.48, 0.88])
    assert list(heights.values()) == pytest.approx([0.2, 0.12, 0.08])
    assert ax.get_xlabel() == "forecast probability that left is preferred"
    assert ax.get_ylabel() == "share in which left was preferred"
    assert "forecasts (tallest bar: 50% of them)" in legend(ax)


def test_reliability_takes_what_diagnostics_return() -> None:
    rng = np.random.default_rng(0)
    prob = rng.random((50, 8))
    result = diagnostics.reliability(prob, rng.random(prob.shape) < prob, num_resamples=100)
    ax = plots.reliability(
        result.prob,
        result.recalibrated,
        result.weight,
        grid=result.grid,
        lower=result.consistency_lower,
        upper=result.consistency_upper,
        band_name="band",
    )
    assert "band" in legend(ax)
    low, high = band(ax, result.grid[3])
    assert (low, high) == (result.consistency_lower[3], result.consistency_upper[3])


# SBC


def test_sbc_draws_differences_and_marks_what_leaves_the_band() -> None:
    # The first quantity is uniform; every transform of the second is .3: its ECDF is 0, then 1.
    uniform = (np.arange(40) + 0.5) / 40
    pit = np.column_stack([uniform, np.full(40, 0.3)])
    edges = diagnostics.ecdf_band(40)
    ax = plots.sbc_ecdf_difference(pit, edges.points, edges.lower, edges.upper, ["a", "b"])
    good, bad = line(ax, "a"), line(ax, "b (outside)")
    np.testing.assert_allclose(good.get_ydata(), 0, atol=1e-12)
    np.testing.assert_allclose(bad.get_ydata(), (edges.points >= 0.3) - edges.points)
    assert bad.get_color() == "black"
    assert good.get_color() != "black"
    assert good.get_linestyle() != bad.get_linestyle()
    crosses = markers(ax, "x")
    outside = ~(crosses[:, 1] >= np.interp(crosses[:, 0], edges.points, edges.lower))
    outside |= crosses[:, 1] > np.interp(crosses[:, 0], edges.points, edges.upper)
    assert len(crosses) > 3
    assert outside.all()
    assert band(ax, edges.points[4]) == (edges.lower[4], edges.upper[4])
    assert "simultaneous band, 95 %" in legend(ax)
    assert ax.get_ylabel().startswith("ECDF − uniform")


def test_one_point_outside_is_marked() -> None:
    ax = plots.sbc_ecdf_difference(
        np.full((20, 1), 0.5), [0.25, 0.5, 0.75], [-0.9, -0.1, -0.9], [0.9, 0.1, 0.9]
    )
    np.testing.assert_allclose(markers(ax, "x"), [[0.5, 0.5]])
    assert "observed (outside)" in legend(ax)


@pytest.mark.parametrize("width", [3.5, 8.0])
def test_the_legend_leaves_the_curves_free(width: float) -> None:
    pit = np.random.default_rng(1).random((100, 6))
    edges = diagnostics.ecdf_band(100, 6)
    _, ax = plt.subplots(figsize=(width, 4), layout="tight")
    plots.sbc_ecdf_difference(pit, edges.points, edges.lower, edges.upper, ax=ax)
    ax.figure.canvas.draw()
    box, inner = ax.get_legend().get_window_extent(), ax.get_window_extent()
    assert inner.x0 - 1 <= box.x0
    assert box.x1 <= inner.x1 + 1
    top = max(edges.upper.max(), *(np.max(line.get_ydata(), initial=0) for line in ax.lines))
    assert ax.transData.transform((0.5, top))[1] <= box.y0 + 1


# Coverage


def test_coverage_curves_differ_without_colour() -> None:
    level = [0.5, 0.8, 0.95]
    covered = [[0.5, 0.4], [0.81, 0.6], [0.94, 0.8]]
    ax = plots.coverage_curve(level, covered, [0.4, 0.7, 0.9], [0.6, 0.9, 1.0], ["good", "narrow"])
    good, narrow = line(ax, "good"), line(ax, "narrow")
    np.testing.assert_array_equal(narrow.get_xydata(), np.column_stack([level, [0.4, 0.6, 0.8]]))
    assert good.get_linestyle() != narrow.get_linestyle()
    assert good.get_marker() != narrow.get_marker()
    assert band(ax, 0.8) == (0.7, 0.9)
    assert line(ax, "as stated").get_linestyle() == "--"
    assert ax.get_xlabel() == "stated probability of the interval"
    single = plots.coverage_curve(level, [0.5, 0.8, 0.9])
    assert legend(single) == ["as stated", "observed"]


# Contraction


def test_contraction_is_summarised_at_each_size() -> None:
    # 101 people at each size: the 5 % quantile, the median and the 95 % quantile are 5, 50, 95.
    size = np.repeat([4, 0, 1], 101)
    values = np.tile(np.arange(101) / 100, 3) - np.repeat([0.0, 0.5, 0.25], 101)
    ax = plots.contraction(size, values)
    (curve,) = [line for line in ax.lines if len(line.get_xdata()) == 3]
    np.testing.assert_allclose(curve.get_xydata(), [[0, 0], [1, 0.25], [3, 0.5]], atol=1e-12)
    (bars,) = ax.collections
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_allclose(ends, [[-0.45, 0.45], [-0.2, 0.7], [0.05, 0.95]])
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert dict(zip(labels, ax.get_xticks(), strict=True)) == {"0": 0, "1": 1, "4": 3}
    assert ax.get_xlabel() == "known choices of the person (number)"
    assert ax.get_legend() is None
    two = plots.contraction(size, np.column_stack([values, values]), ["a", "b"])
    assert legend(two) == ["a", "b"]


def test_many_sizes_are_put_together_by_powers_of_two() -> None:
    size = np.arange(100)
    ax = plots.contraction(size, np.where(size < 5, 0.1, 0.5))
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == ["0", "1", "2", "≤4", "≤8", "≤16", "≤32", "≤64", "≤128"]
    (curve,) = [line for line in ax.lines if len(line.get_xdata()) == 9]
    np.testing.assert_allclose(curve.get_ydata(), [0.1] * 4 + [0.5] * 5)


# Agreement


def test_agreement_gives_the_root_mean_squared_difference() -> None:
    reference = torch.tensor([0.0, 0.5, 1.0])
    estimate = torch.tensor([[0.1, 0.0], [0.4, 0.5], [0.9, 1.0]])
    ax = plots.agreement(
        reference, estimate, ["guide", "corrected"], label="utility (nats)", reference_name="NUTS"
    )
    assert legend(ax) == ["equal", "guide: RMS difference 0.1", "corrected: RMS difference 0"]
    guide = line(ax, "guide: RMS difference 0.1")
    np.testing.assert_allclose(guide.get_xydata(), [[0, 0.1], [0.5, 0.4], [1, 0.9]], atol=1e-7)
    other = line(ax, "corrected: RMS difference 0")
    assert guide.get_marker() != other.get_marker()
    assert guide.get_fillstyle() != other.get_fillstyle()
    assert ax.get_xlim() == ax.get_ylim()
    assert ax.get_xlabel() == "utility (nats): NUTS"
    assert ax.get_ylabel() == "utility (nats): estimate"
    plots.agreement([0.5], [0.5]).figure.canvas.draw()


# Pareto k-hat


def test_pareto_k_marks_who_is_above_and_who_is_infinite() -> None:
    k = np.array([0.1, 0.9, 0.5, np.inf, 0.7])
    ax = plots.pareto_k(k, [0, 2, 2, 16, 16])
    crosses, circles, triangles = (markers(ax, marker) for marker in ("x", "o", "^"))
    assert crosses[:, 1].tolist() == [0.9]
    assert circles[:, 1].tolist() == [0.1, 0.5, 0.7]
    assert (triangles[:, 1] > 1).all()
    # Within a third of a step of the size's place: 0, 2 and 5.
    np.testing.assert_allclose(circles[:, 0], [0, 2, 5], atol=0.26)
    np.testing.assert_allclose(crosses[:, 0], 2, atol=0.26)
    assert legend(ax) == ["infinite: 1", "0.7: 2 of 5 people above"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "2", "16"]


def test_pareto_k_without_sizes_is_in_order() -> None:
    ax = plots.pareto_k(torch.tensor([0.6, 0.2, 0.9, 0.4]))
    np.testing.assert_allclose(markers(ax, "o"), [[3, 0.6], [1, 0.2], [2, 0.4]], rtol=1e-6)
    np.testing.assert_allclose(markers(ax, "x"), [[4, 0.9]], rtol=1e-6)
    assert ax.get_xlabel() == "person, in order of k-hat"


# All figures

PROB = [0.2, 0.8]
DRAW = [
    lambda ax: plots.reliability(PROB, PROB, ax=ax),
    lambda ax: plots.sbc_ecdf_difference([[0.5]], PROB, [-1, -1], [1, 1], ax=ax),
    lambda ax: plots.coverage_curve(PROB, PROB, ax=ax),
    lambda ax: plots.contraction([0, 3], PROB, ax=ax),
    lambda ax: plots.agreement(PROB, PROB, ax=ax),
    lambda ax: plots.pareto_k(PROB, ax=ax),
]


@pytest.mark.parametrize("draw", DRAW)
def test_axes_that_are_given_are_used(draw: Callable[[Axes | None], Axes]) -> None:
    _, (one, other) = plt.subplots(1, 2)
    assert draw(one) is one
    assert not other.has_data()
    assert len(plt.get_fignums()) == 1
    assert one.get_xlabel()
    assert one.get_ylabel()
    assert draw(None) is not one
    assert len(plt.get_fignums()) == 2


BAD = [
    (plots.reliability, ([0.5], [0.5]), "prob must have at least 2 values, got 1"),
    (plots.reliability, ([0.5, 0.4], PROB), "prob must increase, got 0.4 at 1"),
    (plots.reliability, (PROB, [0.5, 0.4]), "recalibrated must not fall, got 0.4 at 1"),
    (plots.reliability, (PROB, [0.5, 1.4]), "recalibrated must lie between 0 and 1, got 1.4 at 1"),
    (plots.sbc_ecdf_difference, ([[1.5]], PROB, PROB, PROB), r"pit must lie between 0 and 1"),
    (plots.sbc_ecdf_difference, ([0.5], PROB, PROB, PROB), r"pit must have shape \(U, Q\)"),
    (plots.sbc_ecdf_difference, ([[0.5]], PROB, [1, 1], PROB), "lower must not exceed upper"),
    (
        plots.sbc_ecdf_difference,
        ([[0.5]], PROB, PROB, PROB, ["a", "b"]),
        "names must have length 1",
    ),
    (plots.coverage_curve, (PROB, [0.1]), r"covered must have shape \(2,\)"),
    (plots.coverage_curve, (PROB, PROB, PROB), "level, lower and upper must be given together"),
    (plots.contraction, ([-1, 0], PROB), "size must not be negative, got -1.0 at 0"),
    (plots.contraction, ([1, 0], [0.1, 1.2]), r"contraction must not exceed 1, got 1.2"),
    (plots.agreement, (PROB, [0.1, np.nan]), "estimate must be finite, got nan at 1"),
    (
        plots.pareto_k,
        ([0.1, np.nan],),
        "pareto_k must be a number above minus .*, got nan at 1",
    ),
    (plots.pareto_k, ([0.1, -np.inf],), "pareto_k must be a number above minus .*, got -inf at 1"),
    (plots.pareto_k, ([0.1], [1, 2]), r"size must have shape \(1,\)"),
]


@pytest.mark.parametrize(("plot", "arguments", "message"), BAD)
def test_bad_input_is_named_before_anything_is_drawn(
    plot: Callable[..., Axes], arguments: tuple, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plot(*arguments)
    assert not plt.get_fignums()
