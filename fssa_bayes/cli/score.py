"""`fssa-bayes score`: what do very many people prefer, by a saved model?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fssa_bayes.cli.output import Quiet, WriteJson
from fssa_bayes.cli.tables import Ties, check_model

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

_PANEL = "How to read FILE"
_ASKED = "What is asked of everybody"


def _column(help: str) -> object:
    return typer.Option(metavar="COLUMN", help=help, rich_help_panel=_PANEL)


@app.command()
def score(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Comparisons, one a row in any order: a parquet file, or a folder with some.",
            show_default=False,
        ),
    ],
    model: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="The saved model, such as `model` of the results of `analyse`.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Folder of the scores, a dataset of parquet files. The same command goes on with "
            "a folder of its own that is not finished.",
            show_default=False,
        ),
    ],
    user: Annotated[str, _column("Column that names the person.")] = "user",
    left: Annotated[str, _column("Column that names the first item.")] = "left",
    right: Annotated[str, _column("Column that names the second item.")] = "right",
    choice: Annotated[
        str,
        _column(
            "Column that holds 1 / 0 / 0.5, true / false, left / right / tie, or the preferred "
            "item's name."
        ),
    ] = "choice",
    ties: Annotated[
        Ties,
        typer.Option(
            help="What a tie is: left out, half a win for either item, or an answer of its own.",
            rich_help_panel=_PANEL,
        ),
    ] = Ties.drop,
    items: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Features of items, a row an item: csv, tsv, parquet or npz. Needed where the "
            "model was fitted to items with features.",
            rich_help_panel=_PANEL,
            show_default=False,
        ),
    ] = None,
    best: Annotated[
        int, typer.Option(min=0, help="Number of best items.", rich_help_panel=_ASKED)
    ] = 1,
    utilities: Annotated[
        bool,
        typer.Option("--utilities", help="The utility of every item.", rich_help_panel=_ASKED),
    ] = False,
    pair: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ITEM:ITEM",
            help="The probability that the first item is preferred; may be given again.",
            rich_help_panel=_ASKED,
            show_default=False,
        ),
    ] = None,
    among: Annotated[
        str | None,
        typer.Option(
            metavar="ITEM,…",
            help="Items whose utilities are centred and of which the best are found; all if "
            "absent.",
            rich_help_panel=_ASKED,
            show_default=False,
        ),
    ] = None,
    draws: Annotated[
        int, typer.Option(min=25, help="Posterior draws a person.", rich_help_panel=_ASKED)
    ] = 1000,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the draws.", rich_help_panel=_ASKED)
    ] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 1,
    quiet: Quiet = False,
    write_json: WriteJson = False,
) -> None:
    """What do very many people prefer, by a saved model? In bounded memory, by several processes.

    The folder holds one row a person and quantity; a person who cannot be scored has a row with the
    reason. Where nobody can be scored, the exit code is 2. Scores are the same for any number of
    processes and any order of rows. Names of items are text, or whole numbers where the model has
    such.
    """
    check_model(model)
    if not source.exists():
        raise FileNotFoundError(f"FILE must exist, got {str(source)!r}")
    if items is not None and not items.is_file():
        raise FileNotFoundError(f"--items must be an existing file, got {str(items)!r}")
    pairs = [tuple(text.split(":")) for text in pair or ()]
    if wrong := [text for text, ends in zip(pair or (), pairs, strict=True) if len(ends) != 2]:
        raise ValueError(f"--pair must read like ITEM:ITEM, got {wrong[0]!r}")
    from fssa_bayes.datasets import table
    from fssa_bayes.io import load
    from fssa_bayes.scale import score_parquet

    fitted = load(model)[0]
    if bool(fitted.is_standardised) != (items is not None):
        rule, kind = ("be given", "with") if items is None else ("be left out", "without")
        raise ValueError(
            f"--items must {rule}: the model in {str(model)!r} was fitted to items {kind} features"
        )
    features = None if items is None else table.read_items(items)
    known = fitted.feature_names if features is None else features.index
    names = {} if known is None else {str(name): name for name in known.tolist()}
    job = score_parquet(
        model,
        source,
        out,
        workers=workers,
        tell=None if quiet or write_json else lambda text: print(text, flush=True),
        user=user,
        left=left,
        right=right,
        choice=choice,
        ties=ties.value,
        items=features,
        best=best,
        utilities=utilities,
        pairs=[tuple(names.get(end, end) for end in ends) for ends in pairs],
        among=None if among is None else [names.get(name, name) for name in among.split(",")],
        num_samples=draws,
        seed=seed,
    )
    if write_json:
        figures = {"people": job.num_people, "failed": job.num_failed, "parts": job.num_parts}
        print(json.dumps({"out": str(job.out)} | figures))
    elif not quiet:
        example = "" if job.reason is None else f", such as {job.reason!r}"
        print(
            f"{_count(job.num_people, 'person', 'people')}, {job.num_failed:,} of whom could not "
            f"be scored (column reason{example}), in {_count(job.num_parts, 'part', 'parts')} in "
            f"{job.out}"
        )
    if job.num_people and job.num_failed == job.num_people:
        raise ValueError(
            f"nobody could be scored, {_count(job.num_people, 'person', 'people')} in all: "
            f"{job.reason} (column reason of {job.out} has the reason of each)"
        )


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
