"""The table of comparisons that a subcommand reads, and the options that say how to read it.

One place for all subcommands: another layout of a table is a few more options here, and a row of
`_LAYOUTS`.
"""

from __future__ import annotations

import csv
import functools
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from fssa_bayes.data import Preferences
    from fssa_bayes.model import HeterogeneousBTL
    from fssa_bayes.report import Section

__all__ = [
    "Penalty",
    "SkipUnknown",
    "Ties",
    "Votes",
    "check_fitted",
    "check_model",
    "check_penalty",
    "reads_votes",
]

_PANEL = "How to read the file"
_OTHER_PANEL = "Other layouts of the file"
# Options that a layout needs, and those that it takes besides; --user goes with each.
_LAYOUTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("left", "right", "choice"), ("side", "count", "choice_labels")),
    (("winner", "loser"), ("side", "count")),
    (("left", "right", "left_wins", "right_wins"), ("side", "tied")),
    (("pair_columns",), ("choice_labels",)),
    (("user", "item", "rank"), ("ranking", "choice_set")),
    (("orderings",), ("choice_set",)),
    (("ranks",), ("choice_set",)),
    (
        ("item", "chosen"),
        ("situation", "features", "constants", "outside", "available", "worst"),
    ),
)
_MOST_COLUMNS = 20  # Columns of a file that a message names.
_ROWS_OF_PEOPLE = ("pair_columns", "orderings", "ranks")
_LISTS = ("orderings", "ranks", "choice_set", "features")
_ROLES = (
    *("user", "left", "right", "choice", "winner", "loser", "side", "count", "left_wins"),
    *("right_wins", "tied", "pair_columns", "item", "rank", "ranking"),
    *("situation", "chosen", "available", "worst"),
)


Penalty = Annotated[
    float,
    typer.Option(
        help="Weight of a prior on the utilities of the ranking, which keeps them finite where an "
        "item won or lost everything: 0.5, say; 0 for none.",
    ),
]
SkipUnknown = Annotated[
    bool,
    typer.Option(
        "--skip-unknown",
        help="Leave out comparisons with items that --model does not know, and count them.",
    ),
]


class Ties(StrEnum):
    """What a tie is."""

    drop = "drop"
    half = "half"
    keep = "keep"


def _option(metavar: str, help: str, panel: str = _PANEL) -> Any:
    return typer.Option(metavar=metavar, help=help, rich_help_panel=panel, show_default=False)


def _column(role: str, panel: str = _PANEL) -> Any:
    return _option("COLUMN", f"Column that {role}.", panel)


@dataclass(frozen=True)
class Votes:
    """Says which file holds the comparisons and how to read it.

    The fields are the arguments and options that :func:`reads_votes` gives to a subcommand.
    """

    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Comparisons, one row each (rankings, choice sets and other layouts below): csv "
            "(compressed or not), tsv or parquet.",
            show_default=False,
        ),
    ]
    user: Annotated[
        str | None,
        _column(
            "names the person; without it every comparison has a judge of its own, and in layouts "
            "with a row a person or a ranking every row"
        ),
    ] = None
    left: Annotated[str | None, _column("names the first item")] = None
    right: Annotated[str | None, _column("names the second item")] = None
    choice: Annotated[
        str | None,
        _column("holds 1 / 0 / 0.5, left / right / tie, or the preferred item's name"),
    ] = None
    choice_labels: Annotated[
        str | None,
        _option("WORD=MEANING,…", "The file's own words, such as a1=left,a2=right,equal=tie."),
    ] = None
    ties: Annotated[
        Ties | None,
        typer.Option(
            help="What a tie is: left out, half a win for either item, or an answer of its own, "
            "for which the model has a parameter. If absent, ties are kept for a --model that has "
            "the parameter, and left out for others.",
            rich_help_panel=_PANEL,
            show_default=False,
        ),
    ] = None
    items: Annotated[
        Path | None,
        _option(
            "FILE",
            "Features of items, a row an item: csv, tsv, parquet or npz. A ranking is then that of "
            "the utility fitted to the features, and without them that of free strengths of items.",
        ),
    ] = None
    users: Annotated[
        Path | None,
        _option("FILE", "Covariates of people, a row a person: csv, tsv, parquet or npz."),
    ] = None
    delimiter: Annotated[
        str | None,
        _option(
            "CHARACTER",
            "What stands between two cells of a text file; by the file's name if absent.",
        ),
    ] = None
    side: Annotated[
        str | None,
        _column(
            "tells whose place is an advantage, such as a home: 1 left's (the winner's), 0 "
            "nobody's, -1 right's (the loser's)"
        ),
    ] = None
    count: Annotated[
        str | None, _column("holds the number of equal comparisons that a row stands for")
    ] = None
    winner: Annotated[
        str | None,
        _column(
            "names the preferred item, with --loser in place of --left to --choice", _OTHER_PANEL
        ),
    ] = None
    loser: Annotated[str | None, _column("names the other item", _OTHER_PANEL)] = None
    left_wins: Annotated[
        str | None,
        _column(
            "holds how often left was preferred, with --right-wins in place of --choice",
            _OTHER_PANEL,
        ),
    ] = None
    right_wins: Annotated[
        str | None, _column("holds how often right was preferred", _OTHER_PANEL)
    ] = None
    tied: Annotated[str | None, _column("holds how often neither was preferred", _OTHER_PANEL)] = (
        None
    )
    pair_columns: Annotated[
        str | None,
        _option(
            "TEXT",
            "What stands between the items in the names of columns, such as a:b, that hold a "
            "person's answers to one pair each.",
            _OTHER_PANEL,
        ),
    ] = None
    item: Annotated[
        str | None,
        _column(
            "names an item of a ranking, with --rank, or an alternative on offer, with --chosen",
            _OTHER_PANEL,
        ),
    ] = None
    rank: Annotated[
        str | None,
        _column("holds the item's rank, 1 the best, empty below all ranked ones", _OTHER_PANEL),
    ] = None
    ranking: Annotated[
        str | None, _column("tells the rankings of a person apart", _OTHER_PANEL)
    ] = None
    orderings: Annotated[
        str | None,
        _option(
            "COLUMN,…", "Columns with the first, second, … item of a ranking a row.", _OTHER_PANEL
        ),
    ] = None
    ranks: Annotated[
        str | None,
        _option(
            "COLUMN,…", "Columns named by items with their ranks, a ranking a row.", _OTHER_PANEL
        ),
    ] = None
    choice_set: Annotated[
        str | None,
        _option(
            "ITEM,…",
            "Items that every ranking was made from; those that it leaves out lie below.",
            _OTHER_PANEL,
        ),
    ] = None
    chosen: Annotated[
        str | None,
        _column(
            "marks the alternative that was chosen: 1 / 0, true / false, or its name", _OTHER_PANEL
        ),
    ] = None
    situation: Annotated[
        str | None, _column("tells the choice situations of a person apart", _OTHER_PANEL)
    ] = None
    features: Annotated[
        str | None,
        _option(
            "COLUMN,…",
            "Columns with features (attributes) of the alternatives on offer, such as a price, in "
            "place of --items.",
            _OTHER_PANEL,
        ),
    ] = None
    constants: Annotated[
        bool,
        typer.Option(
            "--constants",
            help="Give each alternative but one a constant beside --features.",
            rich_help_panel=_OTHER_PANEL,
        ),
    ] = False
    outside: Annotated[
        str | None,
        _option(
            "NAME",
            "The outside option, such as none, on offer in every situation with a row or without.",
            _OTHER_PANEL,
        ),
    ] = None
    available: Annotated[
        str | None, _column("tells whether the alternative is on offer: 1 / 0", _OTHER_PANEL)
    ] = None
    worst: Annotated[
        str | None, _column("marks the worst alternative, as --chosen the best", _OTHER_PANEL)
    ] = None

    def check(self) -> None:
        """Raises an error for what is wrong without a look into the files, before any import."""
        self._check_layout()
        self.labels()
        for option, path in (("FILE", self.path), ("--items", self.items), ("--users", self.users)):
            if path is not None and not path.is_file():
                raise FileNotFoundError(f"{option} must be an existing file, got {str(path)!r}")
        self._check_header()

    def _check_header(self) -> None:
        """Raises a ValueError for a column that a plain text file lacks, before any import.

        What else is wrong with a file, and columns of other files, are for the reader to say.
        """
        name = self.path.name.lower()
        if not name.endswith((".csv", ".tsv", ".tab")):
            return
        delimiter = self.delimiter or ("," if name.endswith(".csv") else "\t")
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                header = next(filter(None, csv.reader(file, delimiter=delimiter)), [])
        except (OSError, ValueError, TypeError, csv.Error):  # UnicodeDecodeError is a ValueError.
            return
        if len(header) < 2:  # Another delimiter, probably.
            return
        header = [name or f"column {number}" for number, name in enumerate(header, start=1)]
        named = [(role, getattr(self, role)) for role in _ROLES if role != "pair_columns"]
        for role in ("orderings", "ranks", "features"):
            named += [(role, column) for column in _listed(getattr(self, role)) or ()]
        for role, column in named:
            if column and column not in header:
                shown = ", ".join(repr(other[:60]) for other in header[:_MOST_COLUMNS])
                if len(header) > _MOST_COLUMNS:
                    shown += f", … ({len(header)} in all)"
                raise ValueError(
                    f"{_flag(role)} {column!r} is not a column of {self.path}; its columns are "
                    f"{shown}"
                )

    def require_people(self) -> None:
        """Raises a ValueError unless the file tells people apart."""
        if self.user is None and not any(getattr(self, name) for name in _ROWS_OF_PEOPLE):
            raise ValueError(
                "--user must name the column of people, who are to be told apart, got none; rank "
                "does without"
            )

    def _check_layout(self) -> None:
        """Raises a ValueError unless the columns named make one of the layouts."""
        named = {name for needed, also in _LAYOUTS for name in (*needed, *also)} - {"user"}
        given = {name for name in named if getattr(self, name) not in (None, False)}
        if self.user is None and self.users is not None:
            raise ValueError("--users needs --user, got no column that names people")
        for needed, also in _LAYOUTS:
            if set(needed) - {"user"} <= given <= {*needed, *also}:
                if "user" in needed and self.user is None:
                    raise ValueError("--item and --rank need --user, got none")
                return
        layouts = "; ".join(", ".join(map(_flag, needed)) for needed, _ in _LAYOUTS)
        found = ", ".join(map(_flag, sorted(given))) or "none"
        lacking = [
            set(needed) - given - {"user"}
            for needed, also in _LAYOUTS
            if given & set(needed) and given <= {*needed, *also}
        ]
        if lacking:
            fewest = min(lacking, key=len)
            nearest = [sorted(names) for names in lacking if len(names) == len(fewest)]
            found += "; add " + " or ".join(", ".join(map(_flag, names)) for names in nearest)
        raise ValueError(f"columns must be named for one layout of FILE ({layouts}), got {found}")

    def labels(self) -> dict[str, str] | None:
        """Reads `choice_labels`."""
        if self.choice_labels is None:
            return None
        pairs = [pair.split("=") for pair in self.choice_labels.split(",")]
        meanings = {pair[-1] for pair in pairs}
        if any(len(pair) != 2 for pair in pairs) or not meanings <= {"left", "right", "tie"}:
            raise ValueError(
                "--choice-labels must read like a1=left,a2=right,equal=tie, got "
                f"{self.choice_labels!r}"
            )
        return dict(pairs)

    def read(
        self, model: HeterogeneousBTL | None = None, *, skip_unknown: bool = False
    ) -> tuple[Preferences, Section]:
        """Reads the file, and describes what is in it.

        Args:
            model: The model that decides what a tie is, unless an option does; None for no model.
            skip_unknown: Whether to leave out comparisons with items that the model does not know.

        Returns:
            The comparisons, and the part of a report that describes them, with what reading warned
            of.

        Raises:
            ValueError: As :func:`fssa_bayes.datasets.table.read`.
        """
        from fssa_bayes.datasets import table
        from fssa_bayes.report import describe_data, hear_warnings

        keeps = model is not None and model.has_ties
        ties = self.ties or (Ties.keep if keeps else Ties.drop)
        try:
            with hear_warnings() as heard:
                read = table.read(
                    self.path,
                    **{role: getattr(self, role) for role in _ROLES},
                    **{role: _listed(getattr(self, role)) for role in _LISTS},
                    choice_labels=self.labels(),
                    constants=self.constants,
                    outside=self.outside,
                    items=self.items,
                    users=self.users,
                    ties=ties.value,
                    delimiter=self.delimiter,
                )
        except ValueError as error:
            raise ValueError(_as_options(str(error))) from error
        data, text = read.data, []
        if skip_unknown and model is not None:
            data, text = _leave_out_unknown(data, model, self.path)
        heard = [_as_options(warning) for warning in heard]
        section = describe_data(data, read.rows, read.missing, heard)
        return data, replace(section, text=[*section.text, *text])


def _as_options(message: str) -> str:
    """Writes the arguments in a message of the library, such as ties='half', as options."""
    names = "|".join(item.name for item in fields(Votes))
    return re.sub(rf"\b({names})=(?=['\"])", lambda found: f"{_flag(found[1])} ", message)


def _find_unknown(data: Preferences, model: HeterogeneousBTL) -> tuple[pd.Index, np.ndarray]:
    """Finds the items that a model of items without features does not know.

    Returns:
        Names of those that were compared, and which comparisons are about one, with shape (R,).
    """
    import numpy as np

    from fssa_bayes.data import find_names

    if data.items is not None or model.feature_names is None:
        return data.item_names[:0], np.zeros(data.num_comparisons, dtype=bool)
    unknown = find_names(data.item_names, model.feature_names) < 0
    about = unknown[data.left] | unknown[data.right]
    compared = np.unique(np.concatenate([data.left, data.right]))
    return data.item_names[compared[unknown[compared]]], about


def _leave_out_unknown(
    data: Preferences, model: HeterogeneousBTL, path: Path
) -> tuple[Preferences, list[str]]:
    """Leaves out comparisons with items that the model does not know, and says how many."""
    from fssa_bayes.data import first_names

    names, about = _find_unknown(data, model)
    if not len(names):
        return data, []
    if about.all():
        raise ValueError(
            f"{path} must have comparisons of items that --model knows, got none besides those "
            f"with [{first_names(names)}]"
        )
    kept = data.select_items(model.feature_names)
    people = kept.counts > 0
    lost, idle = data.num_comparisons - kept.num_comparisons, len(people) - int(people.sum())
    text = (
        f"{lost:,} of {data.num_comparisons:,} comparisons were left out (--skip-unknown), with "
        f"items that the model does not know: {first_names(names)}."
    )
    if idle:
        text += f" {idle:,} of {len(people):,} people have no other comparisons."
    return kept.subset(people), [text]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _listed(names: str | None) -> list[str] | None:
    return None if names is None else names.split(",")


def check_model(model: Path | None) -> None:
    """Raises a FileNotFoundError unless there is a saved model, or none is asked for."""
    if model is not None and not (model / "config.json").is_file():
        raise FileNotFoundError(f"--model must be the folder of a saved model, got {str(model)!r}")


def check_penalty(penalty: float) -> None:
    """Raises a ValueError unless the weight of a prior is a finite number from 0."""
    if not 0 <= penalty < math.inf:
        raise ValueError(f"--penalty must be a number of at least 0, got {penalty}")


def check_fitted(fitted: HeterogeneousBTL, data: Preferences, model: Path) -> None:
    """Raises a ValueError that names --model unless the model can score the comparisons."""
    from fssa_bayes.data import explain_unknown, first_names
    from fssa_bayes.model import align
    from fssa_bayes.report import hear_warnings

    names, about = _find_unknown(data, fitted)
    if len(names):
        raise ValueError(
            f"--model {str(model)!r} was fitted to the items [{first_names(fitted.feature_names)}]"
            f", got [{first_names(names)}] in {int(about.sum()):,} of {len(about):,} comparisons: "
            "pass --skip-unknown to leave these out, or fit again with them"
            f"{explain_unknown(names[0], fitted.feature_names)}"
        )
    try:
        with hear_warnings():  # The report repeats them beside the results.
            align(fitted, data)
    except ValueError as error:
        raise ValueError(
            f"--model {str(model)!r} does not fit FILE, --items, --users and --ties as they are "
            f"given: {error}"
        ) from error


def reads_votes(subcommand: Callable[..., None]) -> Callable[..., None]:
    """Gives a subcommand the options of :class:`Votes`, which it gets as one argument `votes`.

    The check of the options comes before the subcommand, and before any import of torch.

    Args:
        subcommand: A function whose argument `votes` is of the type :class:`Votes`.
    """
    hints = get_type_hints(Votes, include_extras=True)
    signature = inspect.signature(subcommand, eval_str=True)
    others = [parameter for name, parameter in signature.parameters.items() if name != "votes"]
    own = [
        inspect.Parameter(
            item.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if item.default is MISSING else item.default,
            annotation=hints[item.name],
        )
        for item in fields(Votes)
    ]
    names = [parameter.name for parameter in own]

    @functools.wraps(subcommand)
    def command(**options: object) -> None:
        votes = Votes(**{name: options.pop(name) for name in names})
        votes.check()
        subcommand(votes=votes, **options)

    parameters = [*own, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in others)]
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command
