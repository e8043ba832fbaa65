"""`fssa-bayes diagnose`: can the posteriors of a saved model be believed?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fssa_bayes.cli.output import Overwrite, Quiet, Results, WriteJson, Writer, prepare
from fssa_bayes.cli.tables import SkipUnknown, Votes, check_fitted, check_model, reads_votes

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command()
@reads_votes
def diagnose(
    votes: Votes,
    model: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="The saved model, such as `model` of the results of `analyse`.",
            show_default=False,
        ),
    ],
    out: Results,
    skip_unknown: SkipUnknown = False,
    overwrite: Overwrite = False,
    budget: Annotated[
        float, typer.Option(help="Seconds that the checks may take together.")
    ] = 300.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of people, splits and draws.")] = 0,
    quiet: Quiet = False,
    write_json: WriteJson = False,
) -> None:
    """Can the posteriors of a saved model be believed, for whom, and if not, what to do?

    FILE holds people who took no part in the fit. Checks on these people see a wrong model; checks
    on people simulated from the model judge the approximation of posteriors. The folder holds
    report.html, summary.md and checks.csv.
    """
    if not budget > 0:
        raise ValueError(f"--budget must be a positive number of seconds, got {budget}")
    votes.require_people()
    check_model(model)
    with Writer(out, "diagnose", overwrite=overwrite, quiet=quiet or write_json) as writer:
        from fssa_bayes.io import load
        from fssa_bayes.report import VERDICTS, Section
        from fssa_bayes.report import diagnose as run

        prepare()
        fitted = load(model)
        data, about_data = votes.read(fitted[0], skip_unknown=skip_unknown)
        check_fitted(fitted[0], data, model)
        writer.tell(about_data)
        caveat = (
            f"The people of {votes.path.name} are taken for people who took no part in the fit of "
            f"{model}: where they did, the checks on real people flatter the model."
        )
        report = run(
            *fitted,
            data,
            budget=budget,
            seed=seed,
            title=f"Can the posteriors of {model.name} be believed, on {votes.path.name}?",
            about_data=replace(about_data, text=[*about_data.text, caveat]),
        )
        report.write(writer.folder)
        columns = ["check", "verdict", "value"]
        writer.tell(Section("The answer", [*report.summary, caveat], report.table[columns]))
        verdicts = report.table["verdict"].value_counts()
        figures = {name: int(verdicts.get(name, 0)) for name in VERDICTS}
        writer.finish({"passed": report.passed} | figures, report, write_json=write_json)
