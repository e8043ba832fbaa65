"""What people see of items, and that the items are those of the model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from fssa_bayes import HeterogeneousBTL, Preferences
from fssa_bayes.questions import Stop
from fssa_bayes.serve import Items, Store, Study

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
TABLE = """\
item,name,kind,price,note,picture
a,Early train,train,29.5,Leaves *hourly*,a.png
b,Night bus,bus,12,,
c,Car,car,60,,a.png
"""


@pytest.fixture(scope="module")
def travellers() -> HeterogeneousBTL:
    """A model of a categorical feature and a number."""
    columns = {"kind": ["train", "bus", "car", "train"], "price": [10.0, 20.0, 30.0, 40.0]}
    items = pd.DataFrame(columns, index=list("wxyz"))
    data = Preferences.empty(["somebody"], items)
    model = HeterogeneousBTL(3, 1, "linear").eval()
    model.take_units(data)
    with torch.no_grad():
        model.utility.loading.fill_(0.5)
    return model


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Returns a function that writes a file of items, beside a folder with an image."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(PNG)

    def put(text: str = TABLE) -> Path:
        (tmp_path / "items.csv").write_text(text)
        return tmp_path / "items.csv"

    return put


def test_features_of_the_model_are_shown_beside_each_other(
    travellers: HeterogeneousBTL, write: Callable, open_page
) -> None:
    path = write()
    options = {"title": "name", "text": "note", "image": "picture"}
    items = Items.read(path, travellers, **options, folder=path.parent / "pictures")
    assert items.labels == ["kind", "price"]
    early, bus = items.show("a"), items.show("b")
    assert (early.title, early.features, early.body) == (
        "Early train",
        ("train", "29.5"),
        "<p>Leaves <em>hourly</em></p>\n",
    )
    assert (bus.features, bus.body, bus.image) == (("bus", "12"), None, None)
    assert items.images.get(early.image) == ("image/png", PNG)
    study = Study(travellers, None, items, stop=Stop(best=None, max_questions=2), num_samples=50)
    client, (ann,) = open_page(study)
    ann.agree()
    page = ann.look()
    assert page.count('<th scope="row">kind</th>') == page.count('<th scope="row">price</th>') == 2
    for image in re.findall(r'src="(/images/\w+)"', page):
        assert client.get(image).content == PNG
    ann.finish()


def test_another_order_of_rows_is_the_same_study(
    travellers: HeterogeneousBTL, write: Callable, store: Store
) -> None:
    def claim(text: str) -> None:
        items = Items.read(write(text), travellers)
        stop = Stop(best=None, max_questions=2)
        study = Study(travellers, None, items, stop=stop, num_samples=50)
        store.claim(study.digests, items.describe())

    claim(TABLE)
    header, *rows = TABLE.splitlines(keepends=True)
    claim("".join([header, *rows[::-1]]))
    claim(TABLE.replace("Night bus", "Bus at night"))  # What people see may be mended.
    for text, told in (
        (TABLE.replace("60", "65"), "other context: 'price' of item 'c' is 60 there, 65 here"),
        (TABLE.replace("Car,car", "Car,bus"), "'kind' of item 'c' is car there, bus here"),
        (TABLE + "d,Walk,bus,0,,\n", "other context, pool, items: item 'd' is new"),
        (header + rows[0] + rows[1], "other context, pool, items: item 'c' is missing"),
    ):
        with pytest.raises(ValueError, match=f"{told}$"):
            claim(text)


def test_columns_to_show_are_chosen(travellers: HeterogeneousBTL, write: Callable) -> None:
    path = write()
    assert Items.read(path, travellers, features=[]).labels == []
    items = Items.read(path, travellers, features=["note", "price"])
    assert items.show("a").features == ("Leaves *hourly*", "29.5")
    assert items.context.columns.tolist() == ["kind", "price"]  # The model still knows both.


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (TABLE.replace("bus,12", "boat,12"), {}, "cannot be used: they do not fit .*'boat'"),
        (TABLE.replace("60", "dear"), {}, "'price' must be a number for every item, got 'dear'"),
        (TABLE.replace("60", ""), {}, "'price' must be a number for every item, got '' for 'c'"),
        (TABLE.replace("price", "cost"), {}, "they do not fit the model"),
        ("item,x\na,1\nb,2\n", {}, r"they must have the model's features .* got the columns"),
        ("item,kind,price\na,bus,1\n", {}, "items must be two at least, got 1"),
        (TABLE.replace("\nb,", "\na,"), {}, "must have a name each of their own, got 'a'"),
        ("", {}, "items must be a csv file"),
        (TABLE, {"features": ["colour"]}, "features must be columns of the items, got 'colour'"),
        (TABLE, {"image": "picture"}, "image and folder go together"),
        (TABLE, {"title": "nothing"}, "title must be a column of the items, got 'nothing'"),
        (TABLE.replace("a.png", "../a.png"), "picture", "images must be names of files in"),
        (TABLE.replace("a.png", "b.png"), "picture", "images must be files in .*, no links"),
    ],
)
def test_items_that_do_not_fit_are_refused(
    travellers: HeterogeneousBTL, write: Callable, text: str, options, message: str
) -> None:
    path = write(text)
    if options == "picture":
        options = {"image": "picture", "folder": path.parent / "pictures"}
    with pytest.raises(ValueError, match=message):
        Items.read(path, travellers, **options)
