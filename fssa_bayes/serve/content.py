"""What a person sees of an item: a name, text, Markdown, an image, features."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pandas as pd
from markupsafe import Markup

from fssa_bayes.data import Preferences, canonical_names
from fssa_bayes.model import HeterogeneousBTL, align, positions
from fssa_bayes.serve.security import Images, render_markdown

__all__ = ["Items", "Shown"]


@dataclass(frozen=True)
class Shown:
    """Holds what is shown of an item.

    Attributes:
        title: Short name of the item.
        body: Rendered Markdown; None for none.
        image: Id of an image, see :class:`Images`; None for none.
        features: Values of the features shown, as text, in the order of :attr:`Items.labels`.
    """

    title: str
    body: Markup | None
    image: str | None
    features: tuple[str, ...]


class Items:
    """Holds the items of a study: what a model knows of them, and what people see of them.

    Args:
        table: One row an item, indexed by name. Columns that the model names are its features.
        model: The model.
        title: Column with the name that people see; the item's own name if None.
        text: Column with Markdown; None for no text.
        image: Column with names of files in `folder`, empty for no image; None for no images.
        folder: Folder of the images.
        features: Columns that are shown side by side; if None, the features of the model that
            the table has. Empty for none.

    Attributes:
        names: Names of the items.
        context: What :class:`fssa_bayes.questions.Interview` takes as its context.
        labels: Names of the features that are shown.
        images: The images.

    Raises:
        ValueError: If the table lacks a column, or does not fit the model.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        model: HeterogeneousBTL,
        *,
        title: str | None = None,
        text: str | None = None,
        image: str | None = None,
        folder: str | Path | None = None,
        features: Sequence[str] | None = None,
    ) -> None:
        if len(table) < 2:
            raise ValueError(f"items must be two at least, got {len(table)}")
        for role, column in (("title", title), ("text", text), ("image", image)):
            if column is not None and column not in table.columns:
                raise ValueError(f"{role} must be a column of the items, got {column!r}")
        if (image is None) != (folder is None):
            raise ValueError("image and folder go together: a column, and where its files lie")
        known = _features_of(model, table)
        shown = list(known.columns if features is None else features)
        if missing := [column for column in shown if column not in table.columns]:
            raise ValueError(f"features must be columns of the items, got {missing[0]!r}")
        self.names = canonical_names("items", table.index).tolist()
        self.context = known if len(known.columns) else self.names
        self._check(model)
        self.labels = [str(column) for column in shown]
        files = [] if image is None else [str(name) for name in table[image] if _is_given(name)]
        self.images = Images(Path(folder or "."), files)
        rows = table.to_dict("records")
        self._shown = {
            name: Shown(
                str(row[title]) if title and _is_given(row[title]) else str(name),
                render_markdown(str(row[text])) if text and _is_given(row[text]) else None,
                self.images.ids[str(row[image])] if image and _is_given(row[image]) else None,
                tuple(_as_text(row[column]) for column in shown),
            )
            for name, row in zip(self.names, rows, strict=True)
        }

    @classmethod
    def read(cls, path: str | Path, model: HeterogeneousBTL, **options: object) -> Self:
        """Reads a csv file, whose column `item`, or else the first one, names the items.

        The items are sorted by name, so that another order of rows makes the same study.

        Args:
            path: The file.
            model: The model.
            **options: As for the class.

        Raises:
            FileNotFoundError: If there is no file.
            ValueError: If the file is no table of items, or does not fit the model.
        """
        path = Path(path)
        try:
            table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        except (ValueError, pd.errors.ParserError) as error:  # Of encoding and of form.
            raise ValueError(f"items must be a csv file, got {str(path)!r}: {error}") from error
        if not len(table.columns):
            raise ValueError(f"items must be a csv file with a header, got {str(path)!r}")
        names = "item" if "item" in table.columns else table.columns[0]
        table = table.set_index(names)
        if "" in table.index or not table.index.is_unique:
            twice = table.index[table.index.duplicated()].tolist()[:1] or [""]
            raise ValueError(
                f"items must have a name each of their own, got {twice[0]!r} in column {names!r} "
                f"of {str(path)!r}"
            )
        try:
            return cls(table.sort_index(), model, **options)
        except ValueError as error:
            raise ValueError(f"items {str(path)!r} cannot be used: {error}") from error

    def show(self, name: Hashable) -> Shown:
        """Returns what is shown of an item."""
        return self._shown[name]

    def describe(self) -> dict[str, dict[str, str]]:
        """Returns what the model knows of each item, by name: values of features, as text."""
        if isinstance(self.context, list):
            return {str(name): {} for name in self.names}
        rows = self.context.to_dict("records")
        return {
            str(name): {str(column): _as_text(value) for column, value in row.items()}
            for name, row in zip(self.names, rows, strict=True)
        }

    def _check(self, model: HeterogeneousBTL) -> None:
        """Raises a ValueError unless the model can score the items."""
        try:
            if not model.is_standardised and model.feature_names is not None:
                positions("items", self.names, model.feature_names)
            align(model, Preferences.empty(["person"], self.context))
        except (ValueError, TypeError) as error:
            raise ValueError(f"they do not fit the model: {error}") from error


def _features_of(model: HeterogeneousBTL, table: pd.DataFrame) -> pd.DataFrame:
    """Returns the columns that the model takes as features, as numbers where they are numbers."""
    if not model.is_standardised:
        return table[[]]
    names = [*model.feature_levels]
    names += [name for name in model.feature_names.tolist() if name in table.columns]
    found = table[[name for name in dict.fromkeys(names) if name in table.columns]].copy()
    for column in found.columns:
        if column in model.feature_levels:
            continue
        numbers = pd.to_numeric(found[column], errors="coerce")
        if numbers.isna().any():
            row = int(numbers.isna().to_numpy().argmax())
            raise ValueError(
                f"feature {column!r} must be a number for every item, got "
                f"{found[column].iloc[row]!r} for {table.index[row]!r}"
            )
        found[column] = numbers.astype(float)
    if not len(found.columns):
        raise ValueError(
            f"they must have the model's features {model.feature_names.tolist()[:5]}, got the "
            f"columns {table.columns.tolist()[:5]}"
        )
    return found


def _is_given(value: object) -> bool:
    return (
        value is not None and value != "" and not (isinstance(value, float) and math.isnan(value))
    )


def _as_text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
