"""`fssa-bayes analyse`: from a file of comparisons to a folder that a colleague can read."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fssa_bayes.cli.output import Overwrite, Quiet, Results, WriteJson, Writer, prepare
from fssa_bayes.cli.tables import (
    Penalty,
    SkipUnknown,
    Votes,
    check_fitted,
    check_model,
    check_penalty,
    reads_votes,
)

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

_PANEL = "The model of individual people"


class Utility(StrEnum):
    """Names the utilities that the command offers."""

    bilinear = "bilinear"
    linear = "linear"
    mlp = "mlp"


@app.command()
@reads_votes
def analyse(
    votes: Votes,
    out: Results,
    overwrite: Overwrite = False,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="A model saved before, such as `model` of earlier results: used without a fit, "
            "for another file about the same items or some of them, or about items with the same "
            "features (--items).",
            rich_help_panel=_PANEL,
            show_default=False,
        ),
    ] = None,
    skip_unknown: SkipUnknown = False,
    utility: Annotated[
        Utility | None,
        typer.Option(
            help="Form of the utility. If absent, linear for items without features, for choice "
            "sets, of which it makes a mixed logit with coefficients of people, and where people "
            "are few for a network; else bilinear.",
            rich_help_panel=_PANEL,
            show_default=False,
        ),
    ] = None,
    latent_dim: Annotated[
        str | None,
        typer.Option(
            metavar="INTEGER|auto",
            help="Dimensions in which people differ. If absent, one for each attribute for the "
            "mixed logit of choice sets, as many as features, up to 5, for another linear utility "
            "of items with features, else 2. `auto` chooses 1, 2, 4 or 8 by people left out, and "
            "takes a fit more for each.",
            rich_help_panel=_PANEL,
            show_default=False,
        ),
    ] = None,
    price: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="The feature that is a price: what people are willing to pay for a unit of the "
            "others, with standard errors. It takes a linear utility.",
            rich_help_panel=_PANEL,
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Steps of each stage of the fit.", rich_help_panel=_PANEL)
    ] = 600,
    draws: Annotated[
        int, typer.Option(min=25, help="Posterior draws of a person.", rich_help_panel=_PANEL)
    ] = 500,
    test_size: Annotated[
        float,
        typer.Option(help="Share of the people left out to judge by.", rich_help_panel=_PANEL),
    ] = 0.2,
    bootstraps: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Data sets simulated for the test of whether people differ, where the "
            "distribution of its statistic is not known: 19 if absent, none where fits take long; "
            "0 leaves the test out there.",
            rich_help_panel=_PANEL,
            show_default=False,
        ),
    ] = None,
    penalty: Penalty = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of splits, weights and draws.")] = 0,
    quiet: Quiet = False,
    write_json: WriteJson = False,
) -> None:
    """Do people differ, who leads, how sure is that? One folder with everything.

    Fits a model of individual people and one of the average person, compares both on people left
    out, tests whether people differ, ranks the items and describes who differs. Choice sets have
    coefficients in place of ranks, of a multinomial and of a mixed logit, and with --price what
    people are willing to pay. The folder holds report.html (one page, to be opened in a browser),
    summary.md, the tables as CSV, posterior.nc for ArviZ and the fitted model. It takes two to five
    minutes on two cores for ten thousand comparisons. A run that was interrupted goes on where it
    stopped when the same command is given again.
    """
    if not 0 < test_size < 1:
        raise ValueError(f"--test-size must lie between 0 and 1, got {test_size}")
    if skip_unknown and model is None:
        raise ValueError("--skip-unknown leaves out what --model does not know, got no --model")
    check_penalty(penalty)
    if price is not None and model is not None:
        raise ValueError("--price needs a fit for its standard errors: leave out --model")
    if price is not None and utility not in (None, Utility.linear):
        raise ValueError(f"--price needs --utility linear, got {utility}")
    if model is not None and (utility is not None or latent_dim is not None):
        raise ValueError("--utility and --latent-dim are those of --model: leave them out")
    dimensions = _read_latent_dim(latent_dim)
    votes.require_people()
    check_model(model)
    with Writer(out, "analyse", overwrite=overwrite, quiet=quiet or write_json) as writer:
        from fssa_bayes.io import load, save
        from fssa_bayes.report import Section, check_price, name_kind
        from fssa_bayes.report import analyse as run

        prepare()
        fitted = None if model is None else load(model)
        data, about_data = votes.read(
            None if fitted is None else fitted[0], skip_unknown=skip_unknown
        )
        if fitted is not None:
            check_fitted(fitted[0], data, model)
        if price is not None:
            check_price(data, price, None, "--price")
        analysis = run(
            data,
            title=f"{name_kind(data)} in {votes.path.name}",
            about_data=about_data,
            fitted=fitted,
            utility=None if utility is None else utility.value,
            latent_dim=dimensions,
            price=price,
            steps=steps,
            num_samples=draws,
            test_size=test_size,
            penalty=penalty,
            num_bootstrap=bootstraps,
            seed=seed,
            checkpoint=writer.checkpoint,
            progress_bar=not (quiet or write_json),
            tell=writer.tell,
        )
        analysis.report.write(writer.folder)
        if analysis.model is not None:
            save(writer.folder / "model", analysis.model, analysis.guide, overwrite=True)
            writer.write_netcdf(analysis.posterior, "posterior.nc")
        writer.tell(Section("The answer", analysis.report.summary))
        writer.finish(analysis.figures, analysis.report, write_json=write_json)


def _read_latent_dim(text: str | None) -> int | str | None:
    """Reads `--latent-dim`: a number from 1 up, or `auto`."""
    if text is None:
        return None
    if text != "auto" and not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError(f"--latent-dim must be an integer of at least 1 or auto, got {text!r}")
    return text if text == "auto" else int(text)
