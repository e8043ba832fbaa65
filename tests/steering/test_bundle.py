"""A bundle: trained by the command, loaded in another process, used for a new person."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_bundle import ASKS, choice
from tiny_models import save_encoder
from tiny_texts import user
from transformers import AutoModelForCausalLM, AutoTokenizer

from fssa_bayes.policy import PreferenceRows
from fssa_bayes.steering import Bundle, read_rows

ASK = [user("say word")]
NEW_PERSON = """
import sys, json
from fssa_bayes.steering import Bundle
bundle = Bundle.load(sys.argv[1])
person = bundle.person(json.load(sys.stdin))
texts = person.generate([json.loads(sys.argv[2])] * 4, max_new_tokens=4)
print(json.dumps([person.z.tolist(), texts]))
"""


@pytest.fixture(scope="module")
def bundle(files: Path) -> Bundle:
    return Bundle.load(files / "bundle")


def of_taste(colour: str, number: int = 5) -> list[dict]:
    return [choice(ask, colour) for ask in ASKS[:number]]


def share(texts: list[str], colour: str) -> float:
    return float(np.mean([colour in text.split() for text in texts]))


@pytest.mark.slow
def test_a_new_person_in_another_process_is_served_in_five_lines(files: Path, bundle) -> None:
    lines = [line for line in NEW_PERSON.strip().split("\n") if line]
    assert len(lines) <= 6  # Of them one prints.
    run = subprocess.run(
        [sys.executable, "-c", NEW_PERSON, str(files / "bundle"), json.dumps(ASK)],
        input=json.dumps(of_taste("red")), capture_output=True, text=True, check=True,
    )  # fmt: skip
    z, texts = json.loads(run.stdout.strip().split("\n")[-1])
    person = bundle.person(of_taste("red"))
    assert z == person.z.tolist()
    assert texts == person.generate([ASK] * 4, max_new_tokens=4)


def test_what_is_written_follows_the_choices(bundle: Bundle) -> None:
    people = {colour: bundle.person(of_taste(colour)) for colour in ("red", "green")}
    written = {name: p.generate([ASK] * 200, max_new_tokens=3) for name, p in people.items()}
    for colour, other in (("red", "green"), ("green", "red")):
        assert share(written[colour], colour) > share(written[other], colour) + 0.1
        own = people[colour]
        new = PreferenceRows.from_records([choice(ASKS[7], colour) | {"user": 0}])
        reverse = PreferenceRows.from_records([choice(ASKS[7], other) | {"user": 0}])
        found, opposite = own.choice_prob(new), own.choice_prob(reverse)
        assert found["mean"][0] > 0.8
        assert found["mean"][0] + opposite["mean"][0] == pytest.approx(1, abs=1e-5)
        assert found["lower"][0] == pytest.approx(1 - opposite["upper"][0], abs=1e-5)
        assert 0.5 < found["lower"][0] < found["upper"][0] <= 1
    records = [choice(ASKS[7], "red") | {"user": name} for name in ("ann", None)]
    known = people["red"].choice_prob(PreferenceRows.from_records([records[0]] * 2))
    assert people["red"].choice_prob(records).equals(known)
    assert people["red"].choice_prob(choice(ASKS[7], "red") for _ in range(2)).equals(known)
    nobody = bundle.person()
    assert nobody.num_choices == 0
    assert nobody.z.abs().max() < 0.2  # The mean of the prior.
    assert (nobody.z_sd > people["red"].z_sd * 0.9).all()
    assert people["red"].draws.mean(0) == pytest.approx(people["red"].z.numpy(), abs=0.15)
    with pytest.raises(ValueError, match="choices must be of one person, got .'a', 'b'"):
        bundle.person([choice("now", "red") | {"user": name} for name in "ab"])


@pytest.mark.parametrize(
    ("given", "got"),
    [
        (choice("now", "red"), "dict"),
        ("rows.jsonl", "str"),
        (3, "int"),
        (["a"], "a list with str"),
    ],
)
def test_choices_of_another_type_are_refused(bundle: Bundle, given: object, got: str) -> None:
    message = f"must be PreferenceRows, or a list of records with .*, got {got}$"
    with pytest.raises(TypeError, match=f"choices {message}"):
        bundle.person(given)
    with pytest.raises(TypeError, match=f"rows {message}"):
        bundle.person().choice_prob(given)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # Of peft.
def test_the_adapter_of_a_person_merges_to_the_same_greedy_text(
    files: Path, bundle: Bundle, tmp_path: Path
) -> None:
    from peft import PeftModel

    person = bundle.person(of_taste("green"))
    person.export(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(files / "base")
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    tokenizer = AutoTokenizer.from_pretrained(files / "base")
    for ask in ASKS:
        prompt = tokenizer.apply_chat_template(
            [user(ask)], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        tokens = merged.generate(**prompt, max_new_tokens=8, do_sample=False)
        text = tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        expected = person.generate([[user(ask)]], max_new_tokens=8, temperature=0)
        assert [text] == expected


def test_a_bundle_is_replaced_whole_and_nothing_else_is(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "again")
    bundle.save(tmp_path / "again")
    assert Bundle.load(tmp_path / "again").digest() == bundle.digest()
    (tmp_path / "again" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="hold a bundle alone, got .* with notes.txt"):
        bundle.save(tmp_path / "again")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="folder must not be a file"):
        bundle.save(tmp_path / "file")


def damage(folder: Path, what: str) -> None:
    if what == "no bundle":
        (folder / "bundle.json").unlink()
    elif what == "cut":
        (folder / "bundle.json").write_bytes((folder / "bundle.json").read_bytes()[:40])
    elif what == "newer":
        text = (
            (folder / "bundle.json")
            .read_text()
            .replace('"format_version": 1', '"format_version": 9')
        )
        (folder / "bundle.json").write_text(text)
    elif what == "no guide":
        shutil.rmtree(folder / "preference_model")
    elif what == "swapped":  # Of another training, by itself in order.
        from safetensors.torch import load_file, save_file

        path = folder / "features" / "components.safetensors"
        tensors = load_file(path)
        save_file({name: value + 1 for name, value in tensors.items()}, path)
    else:
        path = folder / what
        content = bytearray(path.read_bytes())
        content[-5] ^= 255
        path.write_bytes(content)


DAMAGES = {
    "no bundle": (FileNotFoundError, "must hold a bundle, got .* without bundle.json"),
    "cut": (ValueError, "bundle.json' is damaged"),
    "newer": (ValueError, "must be 1, got 9: it was written by"),
    "no guide": (FileNotFoundError, "must hold preference_model, got"),
    "swapped": (ValueError, "damaged: its parts are not those that were saved together"),
    "policy/policy.safetensors": (ValueError, "policy.safetensors in .* is damaged"),
    "preference_model/model.safetensors": (ValueError, "preference_model"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_bundle_is_refused(files: Path, tmp_path: Path, what: str) -> None:
    shutil.copytree(files / "bundle", tmp_path / "bundle")
    damage(tmp_path / "bundle", what)
    error, message = DAMAGES[what]
    with pytest.raises(error, match=message):
        Bundle.load(tmp_path / "bundle")


def test_base_model_and_encoder_may_move_and_must_be_the_same(files: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(files / "encoder", moved)
    Bundle.load(files / "bundle", encoder=moved, base_model=files / "base")
    save_encoder(tmp_path / "other", "bert", ["user:", "red"])
    with pytest.raises(
        ValueError, match="encoder must be the one that the bundle was trained with"
    ):
        Bundle.load(files / "bundle", encoder=tmp_path / "other")
    with pytest.raises(OSError, match="nowhere"):
        Bundle.load(files / "bundle", encoder=tmp_path / "nowhere" / "at all")
    model = AutoModelForCausalLM.from_pretrained(files / "base")
    with torch.no_grad():
        model.lm_head.weight[3, 3] += 1
    with pytest.raises(ValueError, match="must be the one that the policy was trained on"):
        Bundle.load(files / "bundle", base_model=model)


def test_files_of_rows(tmp_path: Path, files: Path) -> None:
    rows = read_rows(files / "prefs.jsonl")
    assert (len(rows), len(rows.user_names)) == (64, 8)
    table = [{"prompt": "a", "chosen": " b", "rejected": " c", "user": 1, "tools": None}]
    (tmp_path / "rows.json").write_text(json.dumps(table))
    import pandas as pd

    pd.DataFrame(table).to_parquet(tmp_path / "rows.parquet")
    pd.DataFrame(table).to_csv(tmp_path / "rows.csv", index=False)
    for kind in ("json", "parquet", "csv"):
        found = read_rows(tmp_path / f"rows.{kind}", user="ann")
        assert (found.prompts, found.users.tolist()) == (["a"], ["ann"])
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    for name, message in {
        "rows.jsonl": "a JSON object a line, got .* with line 2",
        "rows.txt": "must be .jsonl, .json, .parquet or .csv",
    }.items():
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=message):
            read_rows(tmp_path / name)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="must hold rows, got none"):
        read_rows(tmp_path / "empty.jsonl")
