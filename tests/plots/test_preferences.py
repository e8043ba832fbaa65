"""Plots: what is drawn, where, in which order and under which label."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.text import Text

from fssa_bayes import plots
from fssa_bayes.plots.preferences import rank_quantile

mpl.use("Agg")

import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    plt.close("all")


def dots(ax: Axes, label: str) -> np.ndarray:
    """Positions (rows, 2) of the markers with this label."""
    (line,) = [line for line in ax.lines if line.get_label() == label]
    return line.get_xydata()


def segments(ax: Axes) -> np.ndarray:
    """Ends and row (rows, 3) of the intervals."""
    (lines,) = ax.collections
    ends = np.stack(lines.get_segments())
    assert (ends[:, 0, 1] == ends[:, 1, 1]).all()
    return np.column_stack([ends[:, 0, 0], ends[:, 1, 0], ends[:, 0, 1]])


def names_by_row(ax: Axes) -> dict[float, str]:
    labels = [label.get_text() for label in ax.get_yticklabels()]
    return dict(zip(ax.get_yticks(), labels, strict=True))


def intervals(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Medians in no order with the ends of intervals of unequal width."""
    rng = np.random.default_rng(seed)
    median = rng.permutation(rows) / rows
    return median, median - rng.random(rows), median + rng.random(rows)


def is_at_top(ax: Axes, row: float) -> bool:
    bottom, top = ax.get_ylim()
    return abs(row - top) < abs(row - bottom)


def vertical_lines(ax: Axes) -> list[tuple[float, str]]:
    """Positions and line styles of the lines that span the axes."""
    lines = [line for line in ax.lines if line.get_transform() == ax.get_xaxis_transform()]
    assert all(list(line.get_ydata()) == [0, 1] for line in lines)
    return [(line.get_xdata()[0], line.get_linestyle()) for line in lines]


# Utility bands


def test_utility_bands_are_the_quantiles() -> None:
    # 0, 1, …, 100: the quantile at level q is 100 q, here shifted by ten times the feature.
    feature = np.array([0.0, 1.0, 3.0])
    draws = np.arange(101.0)[:, None] + 10 * feature
    ax = plots.utility_bands(feature, draws[::-1], feature, feature_name="price")
    outer, inner = (band.get_paths()[0].vertices for band in ax.collections)
    for vertices, (low, high) in ((outer, (5, 95)), (inner, (25, 75))):
        for x in feature:
            y = vertices[vertices[:, 0] == x, 1]
            assert (y.min(), y.max()) == pytest.approx((low + 10 * x, high + 10 * x))
    np.testing.assert_allclose(dots(ax, "median"), np.column_stack([feature, 50 + 10 * feature]))
    np.testing.assert_allclose(dots(ax, "truth"), np.column_stack([feature, feature]))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("price", "utility (nats)")
    labels = [text.get_text() for text in ax.legend().get_texts()]
    assert labels == ["90 % band", "50 % band", "median", "truth"]


def test_utility_bands_differ_without_colour() -> None:
    ax = plots.utility_bands([0, 1], np.random.default_rng(0).normal(size=(9, 2)), [0, 1])
    outer, inner = (band.get_facecolor()[0] for band in ax.collections)
    assert outer[0] - inner[0] > 0.15  # Steps of grey that print apart.
    assert [line.get_linestyle() for line in ax.lines] == ["-", "--"]


# Choice intervals


def test_choice_intervals_put_pairs_choices_and_intervals_in_one_row() -> None:
    mean, lower, upper = [0.2, 0.9, 0.6], [0.1, 0.8, 0.3], [0.4, 0.95, 0.7]
    pairs = [("a", "b"), ("c", "d"), ("e", "f")]
    ax = plots.choice_intervals(mean, lower, upper, [0, 1, 0.5], pairs)
    assert names_by_row(ax) == {0: "c over d", 1: "e over f", 2: "a over b"}
    assert is_at_top(ax, 0)
    np.testing.assert_array_equal(dots(ax, "posterior mean"), [[0.9, 0], [0.6, 1], [0.2, 2]])
    np.testing.assert_array_equal(segments(ax), [[0.8, 0.95, 0], [0.3, 0.7, 1], [0.1, 0.4, 2]])
    # Half a win each is a marker at both edges.
    np.testing.assert_array_equal(dots(ax, "first was preferred"), [[1, 0], [1, 1]])
    np.testing.assert_array_equal(dots(ax, "second was preferred"), [[0, 1], [0, 2]])
    fills = {line.get_label(): line.get_fillstyle() for line in ax.lines}
    assert fills["first was preferred"] == "full"
    assert fills["second was preferred"] == "none"
    assert vertical_lines(ax) == [(0.5, "--")]


def test_choice_intervals_show_all_of_the_unit_interval() -> None:
    ax = plots.choice_intervals([0.52], [0.5], [0.54])
    assert ax.get_xlim()[0] < 0 < 1 < ax.get_xlim()[1]
    assert ax.get_xlabel() == "probability that the first is preferred"
    assert len(ax.get_yticks()) == 0
    marked = plots.choice_intervals([0.52], [0.5], [0.54], [1])
    assert "filled" in marked.get_xlabel()


def test_choice_intervals_allow_a_mean_outside_of_its_interval() -> None:
    # 4 of 100 draws at 1, the others at 0: the mean is .04, both quantiles are 0.
    ax = plots.choice_intervals([0.04], [0.0], [0.0])
    np.testing.assert_array_equal(dots(ax, "posterior mean"), [[0.04, 0]])


# Rank distribution


def test_rank_distribution_sorts_items_by_expected_rank_and_writes_numbers() -> None:
    # Expected ranks: b 1.25, c 2.0, a 2.75.
    rank_prob = np.array([[0.0, 0.25, 0.75], [0.75, 0.25, 0.0], [0.25, 0.5, 0.25]])
    ax = plots.rank_distribution(rank_prob, ["a", "b", "c"])
    assert names_by_row(ax) == {0: "b", 1: "c", 2: "a"}
    assert is_at_top(ax, 0)
    (image,) = ax.images
    np.testing.assert_array_equal(image.get_array(), rank_prob[[1, 2, 0]])
    written = {text.get_position(): text.get_text() for text in ax.texts}
    assert written == {
        **{(1, 0): "0.75", (2, 0): "0.25"},
        **{(1, 1): "0.25", (2, 1): "0.50", (3, 1): "0.25"},
        **{(2, 2): "0.25", (3, 2): "0.75"},
    }
    assert list(ax.get_xticks()) == [1, 2, 3]
    # The cell of rank 1 and row 0 is centred where its number is.
    assert image.get_extent() == [0.5, 3.5, 2.5, -0.5]
    assert ax.get_xlabel().startswith("rank")
    (bar,) = [other for other in ax.figure.axes if other is not ax]
    assert bar.get_ylabel() == "probability"


def test_numbers_contrast_with_their_cells() -> None:
    ax = plots.rank_distribution(np.array([[0.99, 0.01], [0.01, 0.99]]), ["a", "b"])
    (image,) = ax.images
    for text in ax.texts:
        background = image.cmap(image.norm(float(text.get_text())))[0]
        assert abs(mpl.colors.to_rgb(text.get_color())[0] - background) > 0.45


def test_rank_distribution_of_many_items_marks_expected_rank_and_interval() -> None:
    # Six draws in ten put 20 items in order and four in the reverse, so that item i has rank i + 1
    # or 20 - i, the ends of its interval; the table is written down shuffled.
    shuffle = np.random.default_rng(0).permutation(20)
    rank_prob = 0.6 * np.eye(20) + 0.4 * np.eye(20)[::-1]
    ax = plots.rank_distribution(rank_prob[shuffle], [f"i{i}" for i in shuffle])
    assert not ax.texts
    expected = 0.6 * np.arange(1, 21) + 0.4 * np.arange(20, 0, -1)
    np.testing.assert_allclose(dots(ax, "expected rank")[:, 0], expected)
    for row, name in names_by_row(ax).items():
        item = int(name[1:])
        ends = dots(ax, "5% quantile")[int(row), 0], dots(ax, "95% quantile")[int(row), 0]
        assert ends == (min(item, 19 - item) + 1, max(item, 19 - item) + 1)


def test_rank_quantiles_leave_out_five_per_cent_at_each_end() -> None:
    # Cumulative .05, .95, 1: the 5 % quantile is rank 1, the 95 % quantile rank 2; in float32 the
    # sums miss both levels.
    row = np.array([0.05, 0.9, 0.05], dtype=np.float32)
    above = np.array([0.04, 0.9, 0.06])
    table = np.stack([row, above]).astype(float)
    assert rank_quantile(table, 0.05).tolist() == [1, 2]
    assert rank_quantile(table, 0.95).tolist() == [2, 3]


def test_faint_ranks_of_many_items_are_seen_beside_a_certain_one() -> None:
    # One item is certain, 59 are as good as each other: their even share must not be white.
    rank_prob = np.full((60, 60), 1 / 59)
    rank_prob[0], rank_prob[:, 0], rank_prob[0, 0] = 0, 0, 1
    ax = plots.rank_distribution(rank_prob, range(60))
    (image,) = ax.images
    assert image.cmap(image.norm(1 / 59))[0] < 0.95
    assert image.colorbar.extend == "max"


# Forest and ranking


@pytest.mark.parametrize("plot", [plots.forest, plots.ranking])
def test_intervals_are_sorted_and_named(plot: Callable[..., Axes]) -> None:
    ax = plot([0.0, 3.0, 1.0], [-1.0, 2.5, 0.0], [0.5, 9.0, 1.5], ["a", "b", "c"], label="nats")
    assert names_by_row(ax) == {0: "b", 1: "c", 2: "a"}
    assert is_at_top(ax, 0)
    np.testing.assert_array_equal(dots(ax, "median"), [[3, 0], [1, 1], [0, 2]])
    np.testing.assert_array_equal(segments(ax), [[2.5, 9, 0], [0, 1.5, 1], [-1, 0.5, 2]])
    assert ax.get_xlabel() == "nats"


def test_a_person_stands_upon_the_population() -> None:
    """Rows in the order given; the bar reaches from the lower to the upper end of the people."""
    population = ([0.5, -1.0], [-1.0, -4.0], [2.0, 1.0])
    ax = plots.upon_population(
        [1.0, -3.0], [0.0, -5.0], [2.0, -1.0], population, ["near", FORMULA], who="ann"
    )
    assert is_at_top(ax, 0)
    assert names_by_row(ax)[0] == "near"
    np.testing.assert_array_equal(dots(ax, "ann"), [[1, 0], [-3, 1]])
    np.testing.assert_array_equal(dots(ax, "median person"), [[0.5, 0], [-1, 1]])
    np.testing.assert_array_equal(segments(ax), [[0, 2, 0], [-5, -1, 1]])
    bars = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches]
    assert bars == [(-1, 2), (-4, 1)]
    ax.figure.canvas.draw()
    with pytest.raises(ValueError, match=r"population\[1\] must not exceed population\[2\], got 3"):
        plots.upon_population([1.0], [0.0], [2.0], ([1.0], [3.0], [2.0]), ["a"])


def test_reference_lines() -> None:
    values = ([1.0], [0.0], [2.0])
    assert vertical_lines(plots.forest(*values)) == []
    assert vertical_lines(plots.forest(*values, reference=1.5)) == [(1.5, "--")]
    assert vertical_lines(plots.ranking(*values, ["a"])) == [(0.0, "--")]
    assert vertical_lines(plots.ranking(*values, ["a"], reference=None)) == []


def test_units_are_on_the_axes() -> None:
    values = ([1.0], [0.0], [2.0])
    ranking = plots.ranking(*values, ["a"])
    assert (ranking.get_xlabel(), ranking.get_ylabel()) == ("utility (nats)", "item")
    coefficients = plots.ranking(*values, ["a"], what="coefficient", label="nats per hour")
    assert (coefficients.get_xlabel(), coefficients.get_ylabel()) == (
        "nats per hour",
        "coefficient",
    )
    assert plots.forest(*values).get_ylabel() == "person"


def test_people_without_an_interval_have_an_empty_line_at_the_bottom() -> None:
    nan = np.nan
    ax = plots.forest([nan, 1.0, 2.0], [nan, 0.0, 1.0], [nan, 2.0, 3.0], ["x", "y", "z"])
    assert names_by_row(ax) == {0: "z", 1: "y", 2: "x"}
    np.testing.assert_array_equal(dots(ax, "median")[:2, 0], [2, 1])
    assert np.isnan(dots(ax, "median")[2, 0])
    ax.figure.canvas.draw()


# All figures


def draw_choices(rows: int, names: list[str], ax: Axes | None = None) -> Axes:
    values = np.linspace(0, 1, rows)
    pairs = [(name, "other") for name in names]
    return plots.choice_intervals(values, values / 2, values, pairs=pairs, ax=ax)


def draw_ranks(rows: int, names: list[str], ax: Axes | None = None) -> Axes:
    return plots.rank_distribution(np.eye(rows)[::-1], names, ax=ax)


def draw_forest(rows: int, names: list[str], ax: Axes | None = None) -> Axes:
    return plots.forest(*intervals(rows), names, ax=ax)


def draw_ranking(rows: int, names: list[str], ax: Axes | None = None) -> Axes:
    return plots.ranking(*intervals(rows), names, ax=ax)


DRAW = [draw_choices, draw_ranks, draw_forest, draw_ranking]


@pytest.mark.slow
@pytest.mark.parametrize("draw", DRAW)
@pytest.mark.parametrize("rows", [5, 60, 1000])
def test_names_do_not_overlap(draw: Callable[..., Axes], rows: int) -> None:
    ax = draw(rows, [f"row number {i}" for i in range(rows)])
    figure = ax.figure
    figure.canvas.draw()
    width, height = figure.get_size_inches()
    assert height <= 11
    boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
    for high, low in itertools.pairwise(boxes):
        assert low.y1 <= high.y0 + 1  # Pixels: boxes are rounded outwards.
    assert all(box.x0 >= 0 and box.x1 <= width * figure.dpi for box in boxes)
    if rows <= 60:
        assert len(boxes) == rows
        assert "named" not in ax.get_ylabel()
    else:
        step = int(ax.get_yticks()[1])
        assert len(boxes) >= 40
        assert ax.get_ylabel().endswith(f"(1 in {step} of 1,000 named)")


@pytest.mark.parametrize("draw", DRAW)
def test_thinned_names_stay_with_their_rows(draw: Callable[..., Axes]) -> None:
    names = [f"n{i}" for i in range(300)]
    median = intervals(300)[0]
    best_first = {
        draw_choices: np.arange(300)[::-1],
        draw_ranks: np.arange(300)[::-1],
        draw_forest: np.argsort(-median),
        draw_ranking: np.argsort(-median),
    }[draw]
    shown = names_by_row(draw(300, names))
    assert 0 in shown
    assert 40 < len(shown) < 300
    for row, name in shown.items():
        assert name.removesuffix(" over other") == f"n{best_first[int(row)]}"


@pytest.mark.parametrize("draw", DRAW)
def test_axes_that_are_given_are_used_and_names_thinned_to_them(draw: Callable[..., Axes]) -> None:
    _, (small, other) = plt.subplots(1, 2, figsize=(8, 2))
    assert draw(300, [f"n{i}" for i in range(300)], ax=small) is small
    _, y = small.transData.transform([(0.5, row) for row in small.get_yticks()]).T
    assert (np.abs(np.diff(y)) * 72 / small.figure.dpi >= 7).all()  # Points: their font's size.
    assert len(y) > 8
    assert not other.has_data()
    assert len(plt.get_fignums()) == 1


def test_names_are_data_and_not_formulas() -> None:
    names = ["from $5\nto $10", "x" * 99, "a_b$^$"]
    ax = plots.ranking([3.0, 2.0, 1.0], [0.0] * 3, [9.0] * 3, names)
    ax.figure.canvas.draw()
    shown = list(names_by_row(ax).values())
    assert shown == [r"from \$5 to \$10", "x" * 39 + "…", r"a_b\$^\$"]


FORMULA = "$^$ \0 or $5"  # No formula that can be read, and a character that no font has.


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.utility_bands([0, 1], np.ones((3, 2)), feature_name=FORMULA),
        lambda: plots.choice_intervals([0.5], [0], [1], pairs=[(FORMULA, FORMULA)]),
        lambda: plots.rank_distribution(np.eye(2), [FORMULA, "b"]),
        lambda: plots.forest([1.0], [0.0], [2.0], [FORMULA], label=FORMULA),
        lambda: plots.forest([1.0], [0.0], [2.0], label=FORMULA),
        lambda: plots.ranking([1.0], [0.0], [2.0], [FORMULA], label=FORMULA, what=FORMULA),
        lambda: plots.reliability(
            [0.1, 0.9], [0.2, 0.8], grid=[0, 1], lower=[0, 0], upper=[1, 1], band_name=FORMULA
        ),
        lambda: plots.sbc_ecdf_difference(
            [[0.1], [0.9]], [0, 1], [0, 0], [1, 1], [FORMULA], band_name=FORMULA
        ),
        lambda: plots.coverage_curve(
            [0.1, 0.9], [0.2, 0.8], [0, 0], [1, 1], [FORMULA], band_name=FORMULA
        ),
        lambda: plots.contraction([1, 2], [0.5, 0.6], [FORMULA]),
        lambda: plots.agreement(
            [0.1, 0.9], [0.2, 0.8], [FORMULA], label=FORMULA, reference_name=FORMULA
        ),
    ],
)
def test_every_label_is_shown_as_it_is(draw: Callable[[], Axes]) -> None:
    """Text that Matplotlib would refuse as a formula, wherever a caller's text is drawn."""
    ax = draw()
    ax.figure.canvas.draw()
    texts = [text.get_text() for text in ax.figure.findobj(Text) if "or" in text.get_text()]
    assert any("\\$^\\$ \ufffd or \\$5" in text for text in texts)


def test_the_longer_name_of_a_pair_is_cut_first() -> None:
    ax = plots.choice_intervals(
        [0.9, 0.1], [0, 0], [1, 1], pairs=zip(["l" * 35, "l" * 50], ["m1", "r" * 50], strict=True)
    )
    assert names_by_row(ax) == {
        0: "l" * 35 + " over m1",
        1: "l" * 19 + "… over " + "r" * 19 + "…",
    }


def test_tensors_and_pandas_columns_are_taken_by_position() -> None:
    frame = pd.DataFrame({"m": [1.0, 2.0], "l": [0.0, 1.0], "u": [2.0, 3.0]}, index=[7, 3])
    ax = plots.forest(frame["m"], frame["l"], frame["u"], pd.Series(["a", "b"], index=[1, 0]))
    assert names_by_row(ax) == {0: "b", 1: "a"}
    draws = torch.tensor([[1.0, 2.0]], requires_grad=True)
    ax = plots.utility_bands(torch.tensor([0.0, 1.0]), draws.bfloat16())
    np.testing.assert_array_equal(dots(ax, "median"), [[0, 1], [1, 2]])


def test_an_estimate_at_infinity_is_an_arrow_beyond_what_is_finite() -> None:
    nan, inf = np.nan, np.inf
    ax = plots.ranking(
        [0.0, inf, -inf, inf, nan, 1.0],
        [-1, -0.5, -inf, nan, nan, nan],
        [1, inf, nan, inf, nan, nan],
        list("abcdef"),
    )
    assert list(names_by_row(ax).values()) == list("bdface")
    np.testing.assert_array_equal(dots(ax, "median")[2:4], [[1, 2], [0, 3]])
    arrows = {
        marker: np.concatenate([x.get_xydata() for x in ax.lines if x.get_marker() == marker])
        for marker in "><"
    }
    assert arrows[">"][:, 1].tolist() == [0, 1]
    assert (arrows[">"][:, 0] > 1).all()
    assert arrows["<"][:, 1].tolist() == [4]
    assert (arrows["<"][:, 0] < -1).all()
    # The arrow of an item with a bound begins there.
    segments = [path.vertices for lines in ax.collections for path in lines.get_paths()]
    starts = [line[0, 0] for line in segments if line[0, 1] == 0 and np.isfinite(line).all()]
    assert starts == [-0.5]
    assert "no finite estimate" in ax.get_xlabel()
    alone = plots.ranking([inf], [nan], [inf], ["a"], reference=None)
    assert all(np.isfinite(alone.get_xlim()))


# Bad input

THIRD = np.full((3, 3), 1 / 3)
NAMES = ["a", "b", "c"]
BAD = [
    (plots.utility_bands, ([0, 1], [1.0, 2.0]), r"draws must have shape \(S, 2\).*got \(2,\)"),
    (plots.utility_bands, ([0, 1], [[1.0, np.inf]]), r"draws must be finite, got inf at \(0, 1\)"),
    (plots.utility_bands, ([0, 1], np.ones((0, 2))), r"draws .*not be empty, got \(0, 2\)"),
    (plots.utility_bands, ([0, 0], np.ones((3, 2))), "feature must increase, got 0.0 at 1"),
    (plots.utility_bands, ([0], np.ones((3, 1))), "feature must have at least 2 values, got 1"),
    (plots.utility_bands, ([0, 1], np.ones((3, 2)), [1]), r"truth must have shape \(2,\)"),
    (plots.choice_intervals, ([], [], []), r"mean must have shape \(N,\) and not be empty"),
    (plots.choice_intervals, ([1.2], [0], [1]), "mean must lie between 0 and 1, got 1.2 at 0"),
    (plots.choice_intervals, ([0.5], [-0.1], [1]), "lower must lie between 0 and 1, got -0.1"),
    (plots.choice_intervals, ([0.5], [0], [1.1]), "upper must lie between 0 and 1, got 1.1"),
    (plots.choice_intervals, ([0.5], [0.9], [0.1]), "lower must not exceed upper, got 0.9 at 0"),
    (plots.choice_intervals, ([0.5, np.nan], [0, 0], [1, 1]), "mean must be finite, got nan at 1"),
    (plots.choice_intervals, ([0.5], [0, 0], [1, 1]), r"lower must have shape \(1,\)"),
    (plots.choice_intervals, ([0.5], [0], [1], [2]), "choice must be 0, 0.5 or 1, got 2.0 at 0"),
    (plots.choice_intervals, ([0.5], [0], [1], [1, 0]), r"choice must have shape \(1,\)"),
    (plots.choice_intervals, ([0.5], [0], [1], None, ["ab"]), "pairs must hold .*got 'ab' at 0"),
    (plots.choice_intervals, ([0.5], [0], [1], None, [3]), "pairs must hold .*got 3 at 0"),
    (plots.choice_intervals, ([0.5], [0], [1], None, []), "pairs must have length 1.*got 0"),
    (plots.rank_distribution, (THIRD[:2], NAMES), r"rank_prob must be square.*\(2, 3\)"),
    (plots.rank_distribution, (THIRD[None], NAMES), r"rank_prob must have shape \(M, M\)"),
    (
        plots.rank_distribution,
        (THIRD * 0.75, NAMES),
        "sums of rank_prob's rows must be 1, got 0.75",
    ),
    (plots.rank_distribution, (np.eye(3)[[0, 0, 1]], NAMES), "rank_prob's columns .* got 2.0 at 0"),
    (
        plots.rank_distribution,
        ([[1.5, -0.5], [-0.5, 1.5]], NAMES[:2]),
        r"rank_prob must lie between 0 and 1, got 1.5 at \(0, 0\)",
    ),
    (plots.rank_distribution, (THIRD, NAMES[:2]), "names must have length 3, .*got 2"),
    (plots.forest, ([1.0], [2.0], [3.0]), "median must lie between lower and upper, got 1.0 at 0"),
    (plots.forest, ([4.0], [2.0], [3.0]), "median must lie between lower and upper, got 4.0 at 0"),
    (plots.forest, ([np.nan], [2.0], [3.0]), "lower must be NaN exactly where median is, got 2.0"),
    (plots.forest, ([1.0], [-np.inf], [3.0]), "lower must be finite or NaN, got -inf"),
    (plots.forest, ([1.0], [0.0], [3.0], ["a", "b"]), "names must have length 1, .*got 2"),
    (plots.ranking, ([1.0], [np.nan], [2.0], ["a"]), "lower must be NaN exactly where upper is"),
    (plots.ranking, ([1.0], [0.0], [np.inf], ["a"]), "upper must be finite or NaN, got inf"),
    (plots.ranking, ([[1.0]], [0.0], [3.0], ["a"]), r"median must have shape \(N,\).*got \(1, 1\)"),
]


@pytest.mark.parametrize(("plot", "arguments", "message"), BAD)
def test_bad_input_is_named_before_anything_is_drawn(
    plot: Callable[..., Axes], arguments: tuple, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plot(*arguments)
    assert not plt.get_fignums()


def test_bad_types_are_named() -> None:
    with pytest.raises(TypeError, match="median must be an array of numbers, got 'high'"):
        plots.forest("high", [0.0], [1.0])
    with pytest.raises(TypeError, match="names must be a list of names, got the string 'abc'"):
        plots.rank_distribution(THIRD, "abc")
    with pytest.raises(ValueError, match="reference must be finite or None, got nan"):
        plots.forest([1.0], [0.0], [2.0], reference=float("nan"))
