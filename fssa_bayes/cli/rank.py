"""`fssa-bayes rank`: classical Bradley–Terry in one command."""

from __future__ import annotations

from typing import Annotated

import typer

from fssa_bayes.cli.output import OptionalResults, Overwrite, Quiet, WriteJson, Writer, prepare
from fssa_bayes.cli.tables import Penalty, Votes, check_penalty, reads_votes

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command()
@reads_votes
def rank(
    votes: Votes,
    out: OptionalResults = None,
    overwrite: Overwrite = False,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the draws that intervals of ranks come from.")
    ] = 0,
    penalty: Penalty = 0.0,
    quiet: Quiet = False,
    write_json: WriteJson = False,
) -> None:
    """Which item leads, by how much, how sure is that? Everybody alike, in seconds.

    The classical Bradley–Terry model: utilities in nats, standard errors clustered by person, 90 %
    intervals of utilities and of ranks. Rankings are scored by Plackett and Luce, choice sets by
    the multinomial (conditional) logit; alternatives with --features of their own have coefficients
    in place of ranks. With --items the ranking is that of the utility fitted to the features of
    items, without it that of free strengths. With --out also a folder with ranking.csv, a picture,
    the page report.html and summary.md.
    """
    check_penalty(penalty)
    with Writer(out, "rank", overwrite=overwrite, quiet=quiet or write_json) as writer:
        from fssa_bayes.report import has_own_items
        from fssa_bayes.report import rank as run

        prepare()
        data, about_data = votes.read()
        what = "Multinomial logit" if has_own_items(data) else "Ranking"
        analysis = run(
            data,
            title=f"{what} of {votes.path.name}",
            about_data=about_data,
            penalty=penalty,
            seed=seed,
            tell=writer.tell,
        )
        if writer.folder is not None:
            analysis.report.write(writer.folder)
        writer.finish(analysis.figures, analysis.report, write_json=write_json)
