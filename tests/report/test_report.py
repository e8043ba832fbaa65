"""The report: what it says of right and wrong models, what it skips, and the page it writes."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import torch

from fssa_bayes import (
    HeterogeneousBTL,
    ImportanceWeightedELBO,
    NeuralProcessGuide,
    Preferences,
    Sleep,
    fit,
)
from fssa_bayes.checks import NotEnoughDataError, draw_model
from fssa_bayes.guide import NoiseDensity
from fssa_bayes.report import Figure, Report, Section, diagnose
from fssa_bayes.report.page import render
from fssa_bayes.report.run import PARTS, run_parts
from fssa_bayes.report.study import Part, Study

SMALL = {"sizes": (0, 4), "num_users": 200, "num_samples": 200, "refit_steps": 60}


@pytest.fixture(scope="module")
def truth(make_data) -> HeterogeneousBTL:
    return draw_model(make_data([3], num_items=30).items, 1, "linear", spread=1.5, seed=1)


@pytest.fixture(scope="module")
def guide(truth: HeterogeneousBTL, make_data) -> NeuralProcessGuide:
    """A guide refined for the truth, so that what is wrong in a test is wrong by design."""
    torch.manual_seed(0)
    guide = NeuralProcessGuide(truth, hidden_dim=16)
    people = make_data([10] * 60, num_items=30)
    fit(truth, guide, people, objective=[Sleep(steps=300)], validation=None, progress_bar=False)
    return guide


@pytest.fixture(scope="module")
def people(truth: HeterogeneousBTL, make_data) -> Preferences:
    return truth.simulate(make_data([10] * 500, num_items=30), seed=5)[0]


@pytest.fixture(scope="module")
def some(people: Preferences) -> Preferences:
    """Half of the people: enough where the model is right, and no wrong one has to be seen."""
    return people.subset(range(250))


@pytest.fixture(scope="module")
def report(truth, guide, some) -> Report:
    return diagnose(truth, guide, some, train=some, **SMALL)


@pytest.fixture(scope="module")
def report_of_shrunken(truth, guide, people) -> Report:
    """The report of a model that understates the differences, without people of a fit."""
    smaller, its_guide = copy.deepcopy((truth, guide))
    with torch.no_grad():
        smaller.utility.loading.mul_(0.7)
    return diagnose(smaller, its_guide, people, **SMALL)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch):
    """Returns a function that limits reports to the parts whose names begin as said."""

    def limit(*names: str) -> None:
        parts = [part for part in PARTS if part.name.startswith(names)]
        assert parts
        monkeypatch.setattr("fssa_bayes.report.run.PARTS", parts)

    return limit


def verdict(report: Report, name: str) -> str:
    rows = report.table.set_index("check")["verdict"]
    return rows[next(check for check in rows.index if check.startswith(name))]


@pytest.mark.slow
def test_a_right_model_passes_every_check(report: Report) -> None:
    assert report.passed, report.table.to_string()
    assert "skipped" not in set(report.table["verdict"])
    assert "as far as people simulated from it can show" in report.summary[0]
    assert "checks on the real people held out contradicts the model" in report.summary[1]


@pytest.mark.slow
def test_a_shrunken_model_passes_its_own_simulations_and_fails_real_people(
    report_of_shrunken: Report,
) -> None:
    report, table = report_of_shrunken, report_of_shrunken.table
    failed = table[table["verdict"] == "fail"]
    assert verdict(report, "simulation-based calibration of the posterior") == "pass"
    assert verdict(report, "score test: difference between people") == "fail"
    assert set(failed["sees a wrong model"]) == {"yes"}
    assert "does not fit the real people" in report.summary[1]
    assert "people differ more than the model says" in "".join(failed["what to do"])


@pytest.mark.slow
def test_a_guide_that_wastes_draws_is_noted(truth, guide, people, only) -> None:
    only("simulated people: calibration", "simulated people: joint coverage")
    torch.manual_seed(0)
    fresh = NeuralProcessGuide(truth, posterior="normal", hidden_dim=8)
    with torch.no_grad():
        for parameter in fresh.potential.parameters():
            parameter.add_(torch.randn_like(parameter))
    report = diagnose(truth, fresh, people, **SMALL | {"num_samples": 100})
    assert verdict(report, "effective share of the guide's draws") == "note"
    assert verdict(report, "simulation-based calibration of the guide alone") == "note"
    assert verdict(report, "joint coverage of the latent factors") == "pass"
    rows = report.table.set_index("check")["what to do"]
    assert "refine the guide" in rows["effective share of the guide's draws"]


def test_what_the_budget_does_not_allow_is_named(truth, guide, people) -> None:
    report = diagnose(truth, guide, people, budget=1e-3, train=people, **SMALL)
    assert set(report.table["verdict"]) == {"skipped"}
    assert report.table["what to do"].str.contains("s needed, 0 s left").all()
    assert report.summary[-1].startswith("Not checked: ")
    assert not report.passed


@pytest.mark.slow
@pytest.mark.parametrize("counts", [[3], [3, 0, 4]])
def test_people_who_cannot_be_fitted_to_are_skipped(
    truth, guide, people, make_data, only, counts
) -> None:
    only("real people: another objective")
    table = diagnose(truth, guide, people, train=make_data(counts, num_items=30), **SMALL).table
    row = table.set_index("check").loc["real people: another objective"]
    assert row["verdict"] == "skipped"
    assert row["what to do"] == "train must hold at least 2 people, all with comparisons"


@pytest.mark.slow
def test_without_training_people_the_other_objective_is_skipped(
    report_of_shrunken: Report,
) -> None:
    table = report_of_shrunken.table
    row = table[table["verdict"] == "skipped"]
    assert row["check"].tolist() == ["real people: another objective"]
    assert row["what to do"].item() == "pass train=, the people of the fit"


@pytest.mark.slow
def test_sizes_without_people_are_skipped_not_failed(truth, guide, people) -> None:
    few = people.subset(range(12))
    table = diagnose(truth, guide, few, train=few, **SMALL).table.set_index("check")
    for part in ("real people: predictions", "real people: score tests"):
        assert table["verdict"][part] == "skipped"
        assert "20 people" in table["what to do"][part]
    assert "error" not in set(table["verdict"])


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append((tag, dict(attributes)))


def test_the_page_needs_nothing_but_itself(report: Report, tmp_path: Path) -> None:
    path = report.write(tmp_path / "new" / "folder")
    text = path.read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert "http" not in re.sub(r"data:image/png;base64,[\w+/=]+", "", text)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) >= 5
    for attributes in pictures:
        assert attributes["src"].startswith("data:image/png;base64,iVBOR")
        assert len(attributes["alt"]) > 30
    assert any(attributes.get("name") == "viewport" for _, attributes in page.tags)
    # On a narrow screen a table scrolls in its own box, and a figure has a switch to full size.
    boxes = [attributes.get("class") for tag, attributes in page.tags if tag == "div"]
    tables = [tag for tag, _ in page.tags if tag == "table"]
    assert boxes == ["scroll"] * len(tables)
    switches = [attributes for tag, attributes in page.tags if tag == "input"]
    assert len(switches) == len(pictures)
    assert all(attributes["type"] == "checkbox" for attributes in switches)
    assert not re.search(r"<th>[^<]*_[^<]*</th>", text)
    checks = pd.read_csv(path.with_name("checks.csv"))
    pd.testing.assert_frame_equal(checks, report.table)
    names = {item.name for item in path.parent.iterdir()}
    assert names == {"report.html", "checks.csv", "summary.md"}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_report(truth, guide, some, report: Report) -> None:
    state = torch.random.get_rng_state()
    again = diagnose(truth, guide, some, train=some, **SMALL)
    assert torch.equal(state, torch.random.get_rng_state())
    pd.testing.assert_frame_equal(again.table, report.table)


def test_a_folder_that_cannot_be_written_is_refused_at_once(truth, guide, people, tmp_path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("kept")
    with pytest.raises(OSError, match="file"):
        diagnose(truth, guide, people, blocked, **SMALL)
    assert blocked.read_text() == "kept"


class TooHighFarOut:
    """Draws as another density does, and overstates the density far from 0."""

    def __init__(self, base: NoiseDensity) -> None:
        self.base = base
        self.noise_width, self.like = base.noise_width, base.like

    def push(self, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        draws, log_prob = self.base.push(noise)
        return draws, log_prob + draws.square().sum(-1)

    def log_prob(self, draws: torch.Tensor) -> torch.Tensor:
        return self.base.log_prob(draws) + draws.square().sum(-1)


class MistakenGuide(NeuralProcessGuide):
    """States a wrong density of its draws, so that importance weights narrow the posterior."""

    def noise_density(self, *given: object, **options: object) -> TooHighFarOut:
        return TooHighFarOut(super().noise_density(*given, **options))


class DrawnByGuide(HeterogeneousBTL):
    """A linear model whose posteriors are drawn from the guide, as those of other utilities."""

    is_mixed_logit = False


@pytest.fixture
def drawn_by_guide(truth: HeterogeneousBTL) -> HeterogeneousBTL:
    model = copy.deepcopy(truth)
    model.__class__ = DrawnByGuide
    model.utility.is_product = False  # Nor do people share draws of the prior.
    return model


@pytest.mark.slow
def test_a_wrong_posterior_fails_on_simulated_people(drawn_by_guide, guide, people, only) -> None:
    only("simulated people")
    mistaken = MistakenGuide(drawn_by_guide, hidden_dim=16)
    mistaken.load_state_dict(guide.state_dict())
    report = diagnose(drawn_by_guide, mistaken, people, **SMALL)
    assert verdict(report, "simulation-based calibration of the posterior") == "fail"
    assert verdict(report, "joint coverage of the latent factors") == "note"
    assert not report.passed
    assert "The posteriors are not those of the fitted model" in report.summary[0]


@pytest.mark.slow
def test_a_fault_inside_a_check_is_an_error_and_no_skip(
    truth, guide, people, monkeypatch, tmp_path: Path
) -> None:
    def broken(*args: object, **options: object) -> pd.DataFrame:
        raise ValueError("a planted fault")

    monkeypatch.setattr("fssa_bayes.report.real.score_tests", broken)
    report = diagnose(truth, guide, people.subset(range(100)), tmp_path, **SMALL)
    row = report.table.set_index("check").loc["real people: score tests"]
    assert row["verdict"] == "error"
    assert row["value"] == "ValueError: a planted fault"
    assert "it stopped in report/real.py, line" in row["what to do"]
    assert "fail" not in set(report.table["verdict"])
    assert not report.passed
    assert report.summary[0].startswith("1 part of this report stopped with an error")
    assert "real people: score tests" in report.summary[0]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<td class="verdict error" data-label="verdict">error</td>' in page
    assert page.index("stopped with an error") < page.index("<table")
    assert "error" in set(pd.read_csv(tmp_path / "checks.csv")["verdict"])


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (KeyError("margin"), "error"),
        (ValueError("data must have 20 people"), "error"),
        (FloatingPointError("no finite posterior"), "error"),
        (NotEnoughDataError("data must have 20 people"), "skipped"),
    ],
)
def test_only_what_data_do_not_allow_is_skipped(
    truth, guide, people, raised: Exception, expected: str
) -> None:
    def stop(study: Study) -> None:
        raise raised

    study = Study(truth, guide, people, None, (0, 4), 200, 200, 60, 0)
    for part in (
        Part("a part", True, lambda study: 0.0, stop),
        Part("a part", True, stop, lambda study: ([], Section(""))),
    ):
        (check,), sections, times = run_parts([part], study, 1.0)
        assert (check.name, check.verdict, sections, times) == ("a part", expected, [], [])
        shown = check.advice if expected == "skipped" else check.value
        assert str(raised) in shown


def test_errors_everywhere_are_counted(drawn_by_guide, people) -> None:
    """A fault in the estimate of the time stops every part, and nothing is said to hold."""

    class Broken(NeuralProcessGuide):
        def encode(self, *arguments, **options) -> None:
            raise IndexError("a planted fault")

    report = diagnose(drawn_by_guide, Broken(drawn_by_guide), people, **SMALL)
    assert set(report.table["verdict"]) == {"error", "skipped"}  # No people of a fit are given.
    assert report.summary[0].startswith("7 parts of this report stopped with an error")
    assert "was not checked in full" in report.summary[1]
    assert report.summary[2] == "Whether the model fits real people was not checked."


def test_data_that_allow_no_check_are_skipped(truth, guide, make_data) -> None:
    report = diagnose(truth, guide, make_data([0, 0], num_items=30), **SMALL)
    assert set(report.table["verdict"]) == {"skipped"}
    assert not report.passed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "budget must be"),
        ({"budget": float("nan")}, "budget must be"),
        ({"budget": "1"}, "budget must be"),
        ({"seed": -1}, "seed must be"),
        ({"refit_steps": 0}, "refit_steps must be"),
        ({"sizes": ()}, "sizes must be"),
        ({"sizes": 3}, "sizes must be"),
        ({"sizes": (2, 2)}, "sizes must be"),
        ({"num_users": 10}, "num_users must be"),
        ({"num_samples": 10}, "num_samples must be"),
    ],
)
def test_options_are_checked(truth, guide, people, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diagnose(truth, guide, people, **options)


def test_a_homogeneous_model_is_refused(people) -> None:
    with pytest.raises(ValueError, match="latent_dim of at least 1"):
        diagnose(HeterogeneousBTL(3, 0, "linear"), None, people)


def test_text_is_escaped() -> None:
    table = pd.DataFrame({"<b>": ["<script>alert(1)</script>"]})
    section = Section("a < b", ["x & y"], table, [Figure(b"png", '"quoted"')])
    page = render("<title>", [section], "<footer>")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert 'alt="&quot;quoted&quot;"' in page
    assert "x &amp; y" in page


@pytest.mark.slow
def test_objectives_that_shrink_are_found_out(truth, people, only) -> None:
    """A model whose differences between people are too small gains by another objective."""
    only("real people: another objective")
    smaller = copy.deepcopy(truth)
    with torch.no_grad():
        smaller.utility.loading.mul_(0.3)
    guide = NeuralProcessGuide(smaller, hidden_dim=16)
    stages = [ImportanceWeightedELBO(steps=5), Sleep(steps=200)]
    fit(smaller, guide, people, objective=stages[1:], validation=None, progress_bar=False)
    report = diagnose(smaller, guide, people, train=people, **SMALL)
    assert verdict(report, "the fit continued") == "fail"


@pytest.mark.slow
def test_sizes_without_people_are_named(truth, guide, people, only) -> None:
    """The gain is that of the largest size that leaves people something to predict."""
    only("real people: predictions")
    table = diagnose(truth, guide, people, **SMALL | {"sizes": (4, 0, 50)}).table
    table = table.set_index("check")
    assert table["verdict"]["predictions at 50 known"] == "skipped"
    assert table["verdict"]["gain from 4 known choices"] == "pass"


def test_parameters_must_be_finite(truth, guide, people) -> None:
    broken, its_guide = copy.deepcopy((truth, guide))
    with torch.no_grad():
        broken.utility.mean[0] = torch.nan
    with pytest.raises(ValueError, match="finite parameters"):
        diagnose(broken, its_guide, people, **SMALL)
