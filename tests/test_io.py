"""save() and load(): the same draws after a reload, and errors that say what to do."""

from __future__ import annotations

import datetime
import errno
import json
import os
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from fssa_bayes import (
    HeterogeneousBTL,
    NeuralProcessELBO,
    NeuralProcessGuide,
    Posterior,
    Preferences,
    fit,
    load,
    save,
)
from fssa_bayes.model import align

KEPT = Path(__file__).parent / "saved"

CASES = {
    "bilinear": ({"utility": "bilinear", "num_factors": 5}, {"posterior": "flow"}),
    "linear": ({"utility": "linear"}, {"posterior": "multivariate_normal", "hidden_dim": 8}),
    "mlp": ({"utility": "mlp", "hidden_dim": 7}, {"posterior": "normal"}),
    "flow prior": ({"prior": "flow"}, {}),
}


def build(
    data: Preferences, options: dict, guide_options: dict
) -> tuple[HeterogeneousBTL, NeuralProcessGuide]:
    model = HeterogeneousBTL(data.num_features, 2, **options)
    guide = NeuralProcessGuide(model, **guide_options)
    fit(model, guide, data, steps=2, validation=None, progress_bar=False)
    return model, guide


def draws(model: HeterogeneousBTL, guide: NeuralProcessGuide, data: Preferences) -> Tensor:
    return Posterior(model, guide, data, num_samples=50, seed=3).z


@pytest.fixture
def data(make_data: Callable[..., Preferences]) -> Preferences:
    return make_data((3, 1, 5, 2))


@pytest.fixture
def saved(data: Preferences, tmp_path: Path) -> Path:
    save(tmp_path / "run", *build(data, {}, {}))
    return tmp_path / "run"


@pytest.mark.filterwarnings("ignore:choices are separated:UserWarning")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("featured", [True, False])
def test_a_reloaded_model_draws_the_same(
    name: str, featured: bool, make_data: Callable[..., Preferences], tmp_path: Path
) -> None:
    data = make_data((3, 1, 5, 2), num_features=3 if featured else None)
    model, guide = build(data, *CASES[name])
    save(tmp_path / "run", model, guide)
    state = torch.get_rng_state()
    loaded, loaded_guide = load(tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), state)
    assert not loaded.training
    assert not loaded_guide.training
    assert loaded.config == model.config
    assert loaded.feature_names.equals(model.feature_names)
    assert loaded_guide.largest_context == guide.largest_context > 0
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(loaded_guide.state_dict(), guide.state_dict(), rtol=0, atol=0)
    assert torch.equal(draws(loaded, loaded_guide, data), draws(model, guide, data))


def test_homogeneous_double_and_own_utilities_are_kept(data: Preferences, tmp_path: Path) -> None:
    model = HeterogeneousBTL(data.num_features, 0, utility="linear").double()
    save(tmp_path / "double", model)
    loaded, guide = load(tmp_path / "double")
    assert guide is None
    assert loaded.utility.mean.dtype == torch.float64

    class Distance(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.rand(3))

        def forward(self, items: Tensor, z: Tensor) -> Tensor:
            return -(self.scale * (items - z)).square().sum(-1)

    own = HeterogeneousBTL(3, 3, utility=Distance())
    save(tmp_path / "own", own, NeuralProcessGuide(own))
    with pytest.raises(ValueError, match="own' cannot be loaded: utility must be given"):
        load(tmp_path / "own")
    loaded, _ = load(tmp_path / "own", utility=Distance())
    assert torch.equal(loaded.utility.module.scale, own.utility.module.scale)
    with pytest.raises(ValueError, match="do not fit its config.json, or utility="):
        load(tmp_path / "own", utility=nn.Linear(2, 1))
    with pytest.raises(ValueError, match="utility must be None for a 'linear' utility"):
        load(tmp_path / "double", utility=Distance())


def test_files_are_json_and_safetensors_in_original_units(saved: Path, data: Preferences) -> None:
    assert sorted(os.listdir(saved)) == ["config.json", "model.safetensors"]
    config = json.loads((saved / "config.json").read_text())
    assert config["format_version"] == 3
    assert set(config["versions"]) == {"fssa_bayes", "torch", "pyro-ppl"}
    assert config["feature_names"] == [0, 1, 2]
    np.testing.assert_allclose(config["standardisation"]["mean"], data.items.mean(0), rtol=1e-6)
    tensors = safetensors.torch.load_file(saved / "model.safetensors")
    assert tensors["model.feature_scale"].shape == (3,)
    assert os.listdir(saved.parent) == ["run"]


@pytest.mark.parametrize("names", [["a", "ü,ß"], [1, 2], [0.1, 2.5], ["a", 7], [True, False]])
def test_names_of_features_survive(names: list, tmp_path: Path) -> None:
    model = HeterogeneousBTL(2, 0, utility="linear")
    model.feature_names = pd.Index(names)
    save(tmp_path / "run", model)
    assert load(tmp_path / "run")[0].feature_names.equals(pd.Index(names))


DTYPES = {
    "whole numbers": [
        *("int64", "Int64", "int32", "uint8", "float64", "Float32", "int64[pyarrow]", "object"),
        "category",
    ],
    "text": ["str", "object", "string[python]", "string[pyarrow]", "category"],
    "times": ["datetime64[ns]", "datetime64[s]", "timestamp[us][pyarrow]", "object", "category"],
}


@pytest.mark.parametrize("kind", DTYPES)
def test_a_reloaded_model_reads_its_items_from_columns_of_every_type(
    kind: str, tmp_path: Path
) -> None:
    names = {
        "whole numbers": [7, 3, 5],
        "text": ["b", "c", "a"],
        "times": list(pd.to_datetime(["2024-02-29", "2024-03-01", "2023-01-01"])),
    }[kind]
    table = pd.DataFrame({"l": names, "r": names[1:] + names[:1]}, dtype=object)
    tables = [table.astype({"l": dtype, "r": DTYPES[kind][0]}) for dtype in DTYPES[kind]]
    tables += [table.astype({"l": DTYPES[kind][0]}), tables[0].convert_dtypes()]
    readings = [
        Preferences.from_dataframe(
            table.assign(u=table["r"], y=[1, 0, 1]), user="u", left="l", right="r", choice="y"
        )
        for table in tables
    ]
    for first in readings[:2]:
        model = HeterogeneousBTL(3, 0, utility="linear")
        model.take_units(first)
        save(tmp_path / "run", model, overwrite=True)
        loaded, _ = load(tmp_path / "run")
        assert loaded.feature_names.tolist() == names
        for data in readings:
            align(loaded, data)
            assert data.digest() == first.digest()


EVERY_KIND = [
    *(True, 3, -(2**70), 0.1, 1e300, Decimal("0.1"), "a", "3", b"\xff", UUID(int=5)),
    *(pd.Timestamp("2024-02-29 12:00:00.000000001"), datetime.datetime(1, 1, 1, 12)),
    *(pd.Timestamp("2024-02-29 12:00", tz="Europe/Berlin"), datetime.date(2024, 2, 29)),
]


def test_whatever_names_an_item_can_be_saved(tmp_path: Path) -> None:
    table = pd.DataFrame({"l": EVERY_KIND, "r": EVERY_KIND[1:] + EVERY_KIND[:1]}, dtype=object)
    table = table.assign(u=table["r"], y=np.arange(len(table)) % 2)
    with pytest.warns(UserWarning, match="read alike and are different names"):
        data = Preferences.from_dataframe(table, user="u", left="l", right="r", choice="y")
    assert data.item_names.tolist() == EVERY_KIND
    model = HeterogeneousBTL(len(EVERY_KIND), 0, utility="linear")
    model.take_units(data)
    save(tmp_path / "run", model)
    names = load(tmp_path / "run")[0].feature_names
    assert names.equals(data.feature_names)
    assert list(map(type, names)) == list(map(type, data.feature_names))


def test_data_of_other_features_is_refused_after_a_reload(
    saved: Path, make_data: Callable[..., Preferences]
) -> None:
    model, guide = load(saved)
    other = make_data((3, 1))
    other.feature_names = pd.Index(["x", "y", "w"])
    with pytest.raises(ValueError, match="data must have the features the model was fitted to"):
        Posterior(model, guide, other)


# Overwriting.


def test_nothing_is_overwritten_unasked(saved: Path, data: Preferences, tmp_path: Path) -> None:
    model, guide = build(data, {}, {})
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        save(saved, model, guide)
    save(saved, model, guide, overwrite=True)
    assert torch.equal(draws(*load(saved), data), draws(model, guide, data))
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.tex").write_text("years of work")
    for overwrite in (True, False):
        with pytest.raises(FileExistsError):
            save(tmp_path / "papers", model, guide, overwrite=overwrite)
    assert (tmp_path / "papers" / "thesis.tex").read_text() == "years of work"
    assert sorted(os.listdir(tmp_path)) == ["papers", "run"]


@pytest.mark.parametrize("call", range(1, 8))
def test_a_full_disk_changes_nothing(
    call: int, saved: Path, data: Preferences, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (saved / name).read_bytes() for name in os.listdir(saved)}
    model, guide = build(data, {}, {})
    calls = iter(range(1, 100))

    def full(*_: object) -> None:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")

    rename = Path.rename
    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(Path, "rename", lambda *paths: (full(), rename(*paths))[1])
    failed = call in (1, 2, 4, 5)  # The others only make names durable, or tidy up.
    if failed:
        with pytest.raises(OSError, match="No space left on device") as raised:
            save(saved, model, guide, overwrite=True)
        assert "nothing was changed" in raised.value.__notes__[0]
    else:
        save(saved, model, guide, overwrite=True)
    after = {name: (saved / name).read_bytes() for name in os.listdir(saved)}
    assert (after == before) == failed
    monkeypatch.undo()
    load(saved)
    if failed:
        assert os.listdir(saved.parent) == ["run"]


# Damage.


def test_a_missing_model_is_named(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(FileNotFoundError, match="folder with a saved model, got .*nowhere"):
        load(tmp_path / "nowhere")
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"without model\.safetensors"):
        load(saved)
    # A crash between the two renames of an overwrite.
    saved.rename(saved.with_name(".run.previous"))
    with pytest.raises(FileNotFoundError, match=r"is whole in .*\.run\.previous"):
        load(saved)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_truncated_files_are_refused(share: float, saved: Path) -> None:
    for name, message in (
        ("model.safetensors", "damaged or truncated"),
        ("config.json", "config.json in .* is damaged"),
    ):
        content = (saved / name).read_bytes()
        (saved / name).write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match=message):
            load(saved)
        (saved / name).write_bytes(content)


def test_one_changed_bit_is_refused(saved: Path) -> None:
    content = bytearray((saved / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (saved / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="damaged or truncated"):
        load(saved)


@pytest.mark.parametrize(("version", "advice"), [(0, "an older"), (4, "a newer")])
def test_other_format_versions_are_refused(version: int, advice: str, saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text()) | {"format_version": version}
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"must be one of .1, 2, 3., got {version} .*{advice}"):
        load(saved)


def edits(config: dict) -> Iterator[object]:
    """Yields configs in which an entry, or an entry of one, is absent or something else."""
    values = ("a word", 7, [], {}, None)
    yield from values
    for part in (None, "model", "guide"):
        for entry in config if part is None else config[part]:
            for value in ("absent", *values):
                edited = json.loads(json.dumps(config))
                where = edited if part is None else edited[part]
                where[entry] = value
                if value == "absent":
                    del where[entry]
                yield edited


def test_edited_configs_end_in_a_value_error_if_in_any(tmp_path: Path) -> None:
    model = HeterogeneousBTL(2, 1, "linear")
    save(tmp_path / "run", model, NeuralProcessGuide(model, "normal", hidden_dim=2))
    path = tmp_path / "run" / "config.json"
    messages = []
    for edited in edits(json.loads(path.read_text())):
        path.write_text(json.dumps(edited))
        try:
            load(tmp_path / "run")
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 60
    assert all("run'" in message for message in messages)


@pytest.mark.parametrize(
    ("entry", "value", "match"),
    [
        ("feature_names", ["a"], "feature_names in config.json must be 2 different names, got 1"),
        ("feature_names", ["a", "a"], "must be 2 different names"),
        ("feature_names", [["a"], "b"], "feature_names in config.json must be a list of names"),
        ("feature_names", [{"date": "may"}, "b"], "feature_names in config.json must be a list of"),
        ("model", {"num_features": 2}, r"config.json was edited or is damaged \(KeyError"),
        ("format_version", "2", "config.json in .* is damaged .*version '2'"),
    ],
)
def test_what_is_wrong_with_a_config_is_named(
    entry: str, value: object, match: str, tmp_path: Path
) -> None:
    model = HeterogeneousBTL(2, 0, utility="linear")
    model.feature_names = pd.Index(["a", "b"])
    save(tmp_path / "run", model)
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {entry: value}))
    with pytest.raises(ValueError, match=match):
        load(tmp_path / "run")


def test_a_guide_with_another_encoder_is_refused(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    assert config["guide"].get("encoder") == "deep_set"
    config["guide"]["encoder"] = "attention"
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="encoder in config.json must be 'deep_set', got 'atten"):
        load(saved)


def test_only_models_and_their_own_guides_are_saved(data: Preferences, tmp_path: Path) -> None:
    _, guide = build(data, {}, {})
    with pytest.raises(TypeError, match="model must be a HeterogeneousBTL, got Linear"):
        save(tmp_path / "run", nn.Linear(1, 1))
    with pytest.raises(ValueError, match="guide must be the guide of this model"):
        save(tmp_path / "run", HeterogeneousBTL(3, 2), guide)


def test_a_model_saved_in_format_1_still_loads() -> None:
    """The folder was written by version 0.1.0 and must load for as long as the format is read."""
    model, guide = load(KEPT / "format_1")
    assert not model.answer_parameters()
    data = Preferences(
        [0, 1, 2], [1, 2, 0], [1, 0, 1], [0, 2, 3],
        items=[[0.1, 10.0], [0.4, -5.0], [-0.3, 2.0]], feature_names=["sweetness", "price"],
    )  # fmt: skip
    expected = json.loads((KEPT / "format_1" / "expected.json").read_text())
    with torch.no_grad():
        z = torch.tensor(expected["z"])
        utility = model.item_utility(data.items, z)
        loc = guide.posterior(data.batch()).base_dist.mean
    np.testing.assert_allclose(utility, expected["utility"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loc, expected["loc"], rtol=1e-4, atol=1e-5)


def test_a_model_saved_in_format_2_still_loads() -> None:
    """With ties, position bias, lapses and a lower precision, which format 1 does not know."""
    model, guide = load(KEPT / "format_2")
    data = Preferences(
        [0, 1, 2], [1, 2, 0], [1, 0.5, 1], [0, 2, 3], ties="keep",
        items=[[0.1, 10.0], [0.4, -5.0], [-0.3, 2.0]], feature_names=["sweetness", "price"],
    )  # fmt: skip
    expected = json.loads((KEPT / "format_2" / "expected.json").read_text())
    assert model.config["matmul_precision"] == "bf16"
    with torch.no_grad():
        batch = data.batch()
        log_prob = model.choice(batch, torch.tensor(expected["z"])).log_prob(batch.choice)
        loc = guide.posterior(batch).base_dist.mean
    np.testing.assert_allclose(log_prob, expected["log_prob"], rtol=1e-2)  # bf16 has 8 bits.
    np.testing.assert_allclose(loc, expected["loc"], rtol=1e-2, atol=1e-2)


def data_of_format_3() -> Preferences:
    return Preferences(
        [0, 1, 2], [1, 2, 0], [1, 0, 1], [0, 2, 3],
        items=[[1.7e9 + 7, 0.1], [1.7e9 - 20, 0.4], [1.7e9 + 33, -0.3]],
        feature_names=["time", datetime.date(2024, 2, 29)],
        covariates=[[1.6e9 + 1], [1.6e9 + 4]], covariate_names=[17],
    )  # fmt: skip


def test_a_model_saved_in_format_3_still_loads() -> None:
    """With means and scales in double precision, covariates, and a date that names a feature."""
    model, guide = load(KEPT / "format_3")
    data = data_of_format_3()
    assert align(model, data) is data
    assert (model.dtype, model.feature_mean.dtype) == (torch.float32, torch.float64)
    expected = json.loads((KEPT / "format_3" / "expected.json").read_text())
    with torch.no_grad():
        batch = data.batch()
        log_prob = model.choice(batch, torch.tensor(expected["z"])).log_prob(batch.choice)
        loc = guide.posterior(batch).base_dist.mean
    np.testing.assert_allclose(log_prob, expected["log_prob"], rtol=1e-4)
    np.testing.assert_allclose(loc, expected["loc"], rtol=1e-4, atol=1e-5)


def test_the_guide_remembers_its_objective(data: Preferences, tmp_path: Path) -> None:
    model = HeterogeneousBTL(3, 2)
    guide = NeuralProcessGuide(model)
    options = {"steps": 2, "validation": None, "progress_bar": False}
    fit(model, guide, data, objective=NeuralProcessELBO(), **options)
    save(tmp_path / "run", model, guide)
    model, guide = load(tmp_path / "run")
    with pytest.warns(UserWarning, match="fitted by NeuralProcessELBO"):
        Posterior(model, guide, data, num_samples=25)
    Posterior(model, guide, data, num_samples=25, correct=None)
    fit(model, guide, data, **options)
    Posterior(model, guide, data, num_samples=25)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_moves_between_devices(data: Preferences, tmp_path: Path) -> None:
    model, guide = build(data, {}, {})
    save(tmp_path / "cpu", model, guide)
    model, guide = load(tmp_path / "cpu", device="cuda")
    assert model.device.type == "cuda"
    save(tmp_path / "cuda", model, guide)
    back, back_guide = load(tmp_path / "cuda")
    assert torch.equal(draws(back, back_guide, data), draws(*load(tmp_path / "cpu"), data))
