"""UltraFeedback from small files, by hand and through tiny language models."""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import WORDS, save_encoder, write_ultrafeedback

from fssa_bayes import HeterogeneousBTL, NeuralProcessGuide, Posterior, fit
from fssa_bayes.data.texts import embed_texts, load_encoder
from fssa_bayes.datasets import ultrafeedback
from fssa_bayes.datasets.ultrafeedback import HH, HHT, read


def completion(response: str, *ratings: object, names: tuple[str, ...] = HHT) -> dict:
    notes = {name: {"Rating": r, "Rationale": "so"} for name, r in zip(names, ratings, strict=True)}
    return {"model": "m", "response": response, "annotations": notes}


RECORDS = [
    {
        "source": "x",
        "instruction": "p0",
        "completions": [
            completion("a", "5", "1", "2"),
            completion("b", "1", "5", "3"),
            completion("c", "4", "2", "1"),
            completion("d", "5", "5", "N/A"),
        ],
    },
    {
        "source": "x",
        "instruction": "p1",
        "completions": [
            completion("e", "3", "3", "4"),
            completion("f", "2", "1", "4"),
            completion("  ", "2", "1", "4"),
        ],
    },
    {"source": "y", "instruction": "p2", "completions": [completion("g", "1", "1", "1")]},
    {"source": "y", "instruction": "p1", "completions": [completion("h", "1", "4", "5")]},
    {"source": "y", "instruction": "p3", "completions": []},
    {
        "source": "y",
        "instruction": "p4",
        "completions": [completion("same", "1", "2", "3"), completion("same", "3", "1", "2")],
    },
]


def write(path: Path, records: list[dict]) -> Path:
    text = "\n".join(json.dumps(record) for record in records) + "\n\n"
    if path.suffix == ".gz":
        with gzip.open(path, "wt") as file:
            file.write(text)
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(records), path)
    else:
        path.write_text(text)
    return path


@pytest.fixture
def small(tmp_path: Path) -> ultrafeedback.UltraFeedback:
    return read(write(tmp_path / "small.jsonl", RECORDS))


# Reading.


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_every_kind_of_file_is_read_alike(tmp_path: Path, name: str) -> None:
    found = read(write(tmp_path / name, RECORDS))
    assert found.prompts == ["p0", "p1", "p4"]
    assert found.responses == ["a", "b", "c", "e", "f", "h", "same", "same"]
    assert found.prompt.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert found.ratings[:4].tolist() == [[5, 1, 2], [1, 5, 3], [4, 2, 1], [3, 3, 4]]
    assert found.dropped.not_numeric == {"helpfulness": 0, "honesty": 0, "truthfulness": 1}
    assert found.dropped.empty == 1
    assert found.dropped.single == 2
    assert "1 of truthfulness" in str(found.dropped)


def test_only_the_objectives_asked_for_need_ratings(tmp_path: Path) -> None:
    found = read(write(tmp_path / "a.jsonl", RECORDS), objectives=HH)
    assert found.responses[:4] == ["a", "b", "c", "d"]
    assert found.ratings.shape == (9, 2)
    assert sum(found.dropped.not_numeric.values()) == 0


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", RECORDS[1:])
    write(tmp_path / "a.parquet", RECORDS[:1])
    (tmp_path / ".cache").mkdir()
    write(tmp_path / ".cache" / "old.jsonl", RECORDS)
    (tmp_path / "README.md").write_text("# no data")
    assert read(tmp_path).responses == ["a", "b", "c", "e", "f", "h", "same", "same"]


@pytest.mark.parametrize("rating", ["N/A", None, "", "nan", "good"])
def test_ratings_without_a_number_are_left_out_and_counted(tmp_path: Path, rating) -> None:
    records = [
        {
            "instruction": "p",
            "completions": [completion(text, "1", "2", "3") for text in "abc"],
        }
    ]
    records[0]["completions"][1]["annotations"]["honesty"]["Rating"] = rating
    found = read(write(tmp_path / "a.jsonl", records))
    assert found.responses == ["a", "c"]
    assert found.dropped.not_numeric["honesty"] == 1


def broken(**changes: object) -> list[dict]:
    return [{**RECORDS[0], **changes}]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (
            broken(completions=[completion("a", "1", "2", names=HH)] * 2),
            r"has no scores of truthfulness \(completions\[\]\.annotations\.truthfulness\.Rating\);"
            " it has helpfulness, honesty",
        ),
        (broken(completions=[{"response": "a"}] * 2), "has no scores of helpfulness, honesty, tru"),
        (RECORDS[2:3] * 2 + RECORDS[4:5], None),
        (RECORDS[2:3], r"a prompt with two rated responses, .*: of 1 prompts"),
        ([{"completions": []}], r"every record must have 'instruction', line 1 of .*'completions'"),
        ([{"instruction": "p"}], "every record must have 'completions'"),
        ([[1, 2]], "every record must have 'instruction', line 1 of .* has list"),
        (broken(instruction=3), "'instruction' must be text, got int in line 1"),
        (broken(completions="abc"), "'completions' must be a list, got str in line 1"),
        (broken(completions=[{"text": "a"}]), "every completion must have a 'response' of text"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, records: list, message: str | None) -> None:
    path = write(tmp_path / "a.jsonl", records)
    if message is None:  # A prompt twice, with a response each, has two.
        assert read(path).responses == ["g", "g"]
        return
    with pytest.raises(ValueError, match=message):
        read(path)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="source must be a file, a folder or"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(FileNotFoundError, match=r"source must hold .jsonl"):
        read(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="source must end in one of"):
        read(tmp_path / "a.txt")
    (tmp_path / "b.jsonl").write_text('{"instruction": "p", "completions": []}\n{oops\n')
    with pytest.raises(ValueError, match=r"every line must be a JSON object, line 2 of"):
        read(tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match="objectives must be different names"):
        read(tmp_path / "b.jsonl", objectives=("honesty", "honesty"))


def test_the_hub_without_its_package_names_the_way_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install datasets; or .* pass the folder's path"):
        read()


def test_a_hub_that_cannot_be_reached_names_the_way_round(monkeypatch: pytest.MonkeyPatch) -> None:
    class Package:
        @staticmethod
        def load_dataset(name: str, split: str) -> None:
            raise ConnectionError(f"no route to {name} {split}")

    monkeypatch.setitem(sys.modules, "datasets", Package)
    with pytest.raises(OSError, match=r"no route to openbmb/UltraFeedback train.*hf download"):
        read()


def test_the_hub_is_read_as_a_file_is(
    monkeypatch: pytest.MonkeyPatch, small: ultrafeedback.UltraFeedback
) -> None:
    class Package:
        load_dataset = staticmethod(lambda name, split: RECORDS)

    monkeypatch.setitem(sys.modules, "datasets", Package)
    assert read().responses == small.responses


# Pairs.


def listed(pairs: ultrafeedback.ResponsePairs) -> list[tuple]:
    """Spells pairs out: left, right, and whether each objective prefers left."""
    texts = [pairs.source.responses[item] for item in pairs.items]
    return [
        (texts[a], texts[b], *choice)
        for a, b, choice in zip(pairs.left, pairs.right, pairs.choice.T.tolist(), strict=True)
    ]


def test_pairs_are_those_that_every_objective_decides(small: ultrafeedback.UltraFeedback) -> None:
    # Helpfulness, honesty, truthfulness: a 512, b 153, c 421; e 334, f 214, h 145. f and e tie in
    # truthfulness only; both responses to p4 are the same text.
    hh = small.pairs(HH, conflict=None)
    assert listed(hh) == [
        ("a", "b", True, False),
        ("a", "c", True, False),
        ("b", "c", False, True),
        ("e", "f", True, True),
        ("e", "h", True, False),
        ("f", "h", True, False),
    ]
    assert hh.conflict_fraction == pytest.approx(5 / 6)
    assert hh.prompt.tolist() == [0, 0, 0, 1, 1, 1]
    assert listed(small.pairs(HH)) == [row for row in listed(hh) if row[2] != row[3]]
    hht = small.pairs(HHT, conflict=None)
    assert listed(hht) == [
        ("a", "b", True, False, False),
        ("a", "c", True, False, True),
        ("b", "c", False, True, True),
        ("e", "h", True, False, False),
        ("f", "h", True, False, False),
    ]
    assert listed(small.pairs(HH, conflict=0.0)) == [("e", "f", True, True)]


def many(num_prompts: int = 60, *, seed: int = 0) -> ultrafeedback.UltraFeedback:
    """Draws ratings of four responses to each prompt."""
    rng = np.random.default_rng(seed)
    total = 4 * num_prompts
    return ultrafeedback.UltraFeedback(
        prompts=[f"prompt {n}" for n in range(num_prompts)],
        responses=[f"response {n}" for n in range(total)],
        prompt=np.repeat(np.arange(num_prompts), 4),
        ratings=rng.integers(1, 6, size=(total, 3)).astype(float),
        objectives=HHT,
        dropped=ultrafeedback.Dropped({}, 0, 0),
    )


@pytest.mark.parametrize("conflict", [0.0, 0.25, 0.6, 1.0])
def test_the_share_of_conflict_is_as_asked(conflict: float) -> None:
    source = many()
    everything = source.pairs(HH, conflict=None)
    pairs = source.pairs(HH, conflict=conflict, seed=1)
    assert pairs.conflict_fraction == pytest.approx(conflict, abs=0.01)
    assert len(set(listed(pairs))) == len(pairs)
    assert set(listed(pairs)) <= set(listed(everything))
    # As many as possible: one of both kinds is used up.
    used = [(pairs.conflicting == kind).sum() for kind in (True, False)]
    held = [(everything.conflicting == kind).sum() for kind in (True, False)]
    assert any(
        h - u <= 1 for h, u, s in zip(held, used, (conflict, 1 - conflict), strict=True) if s
    )
    other = source.pairs(HH, conflict=conflict, seed=2)
    assert (listed(other) != listed(pairs)) == (0 < conflict < 1)


def test_prompts_are_split_and_their_pairs_with_them() -> None:
    pairs = many().pairs(HHT)
    train, test = pairs.split_prompts(0.25, seed=1)
    assert not set(train.prompt) & set(test.prompt)
    assert len(train) + len(test) == len(pairs)
    assert sorted(listed(train) + listed(test)) == sorted(listed(pairs))
    assert len(set(test.prompt)) == round(0.25 * len(set(pairs.prompt)))
    assert len(pairs.split_prompts(0.25, seed=2)[1]) > 0
    assert set(pairs.split_prompts(0.25, seed=2)[1].prompt) != set(test.prompt)
    assert train.texts() == pairs.texts()


@pytest.mark.parametrize("num_comparisons", [5, 45])
def test_people_answer_different_prompts_by_their_objective(num_comparisons: int) -> None:
    source = many()
    pairs = source.pairs(HHT)
    features = torch.randn(len(pairs.items), 3)
    data, objective = pairs.users(features, 31, num_comparisons, seed=1)
    assert sorted(Counter(objective.tolist()).values()) == [10, 10, 11]
    assert data.items.equal(features)
    for user in range(31):
        rows = slice(*data.offsets[user : user + 2])
        left, right = (pairs.items[side[rows]] for side in (data.left, data.right))
        assert (source.prompt[left] == source.prompt[right]).all()
        assert len(set(source.prompt[left])) == num_comparisons
        column = HHT.index(objective[user])
        gap = source.ratings[left, column] - source.ratings[right, column]
        assert np.array_equal(data.choice[rows] == 1, gap > 0)
        assert (gap != 0).all()


def test_pairs_are_asked_equally_often() -> None:
    pairs = many(400).pairs(HH)
    data = pairs.users(np.zeros((len(pairs.items), 1)), 3000, 2, seed=1).data
    asked = np.bincount(data.left * len(pairs.items) + data.right)
    counts = asked[pairs.left * len(pairs.items) + pairs.right]
    expected = 6000 / len(pairs)
    assert counts.sum() == 6000
    assert ((counts - expected) ** 2 / expected).sum() / len(pairs) == pytest.approx(1, abs=0.25)


def test_people_depend_on_the_seed_alone_and_may_be_of_one_objective() -> None:
    pairs = many().pairs(HHT)
    features = np.ones((len(pairs.items), 2))
    first, again, other = (pairs.users(features, 6, 4, seed=seed).data for seed in (1, 1, 2))
    assert first.digest() == again.digest() != other.digest()
    honest = pairs.users(features, 6, 4, objectives=["honesty"])
    assert set(honest.objective) == {"honesty"}
    won = pairs.items[np.where(honest.data.choice == 1, honest.data.left, honest.data.right)]
    lost = pairs.items[np.where(honest.data.choice == 1, honest.data.right, honest.data.left)]
    assert (pairs.source.ratings[won, 1] > pairs.source.ratings[lost, 1]).all()


@pytest.mark.parametrize("conversational", [False, True])
def test_records_spell_the_choices_out(conversational: bool) -> None:
    pairs = many().pairs(HH)
    users = pairs.users(np.ones((len(pairs.items), 1)), 4, 6, seed=3)
    context, target = users.data.split_context(2, seed=0)
    for data in (users, context, target):
        rows = pairs.records(data, conversational=conversational)
        assert [row["user"] for row in rows] == np.repeat(range(4), len(rows) // 4).tolist()
        for row in rows:
            if conversational:
                assert [m["role"] for m in row["prompt"] + row["chosen"]] == ["user", "assistant"]
                row = {k: v if k == "user" else v[0]["content"] for k, v in row.items()}
            prompt = pairs.source.prompts.index(row["prompt"])
            won, lost = (pairs.source.responses.index(row[k]) for k in ("chosen", "rejected"))
            assert pairs.source.prompt[won] == pairs.source.prompt[lost] == prompt
            column = HH.index(users.objective[row["user"]])
            assert pairs.source.ratings[won, column] > pairs.source.ratings[lost, column]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.pairs(("honesty", "wit")), "among those read, .*, got 'wit'"),
        (lambda s: s.pairs(("honesty",)), "objectives must be two or more different names"),
        (lambda s: s.pairs("honesty"), "objectives must be two or more different names"),
        (lambda s: s.pairs(conflict=2), "conflict must lie between 0 and 1 or be None, got 2"),
        (lambda s: s.pairs(HHT, conflict=0), r"no pair is left: of 7 pairs 5 have no tie in .* 5 "),
        (lambda s: s.pairs().split_prompts(1.5), "test_size must lie between 0 and 1, got 1.5"),
        (lambda s: s.pairs(HH, conflict=0).split_prompts(), "needs at least 2 prompts, got 1"),
        (lambda s: s.pairs().texts("{prompt}"), "template must hold {prompt} and {response}"),
        (
            lambda s: s.pairs().users(np.ones((2, 3)), 1, 1),
            r"one row for each of the 6 items, got shape \(2, 3\)",
        ),
        (lambda s: s.pairs().users(np.ones((6, 3)), 0, 1), "num_users must be at least 1, got 0"),
        (
            lambda s: s.pairs().users(np.ones((6, 3)), 1, 3),
            "num_comparisons must be at most the number of prompts, 2, got 3",
        ),
        (
            lambda s: s.pairs().users(np.ones((6, 3)), 1, 1, objectives=["wit"]),
            "objectives must be among",
        ),
        (
            lambda s: s.pairs().records(many().pairs().users(np.ones((127, 1)), 1, 1)),
            "users must be made by these pairs, of 6 items",
        ),
    ],
)
def test_bad_requests_are_refused(small: ultrafeedback.UltraFeedback, call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(small)


# From end to end.


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "pooling"), [("bert", "mean"), ("llama", "last")])
def test_from_a_file_to_what_a_new_person_prefers(tmp_path: Path, kind: str, pooling: str) -> None:
    """Words tell how helpful and how honest an answer is, so that contexts tell people apart."""
    pytest.importorskip("transformers")
    pairs = read(write_ultrafeedback(tmp_path / "a.jsonl", 150)).pairs(HH)
    model, tokenizer = load_encoder(save_encoder(tmp_path / kind, kind, WORDS), device="cpu")
    features = embed_texts(
        pairs.texts(), model, tokenizer, pooling=pooling, cache=tmp_path / "c", progress_bar=False
    )
    train, test = pairs.split_prompts(0.3, seed=0)
    torch.manual_seed(0)
    people = train.users(features, 200, 12, seed=1)
    model = HeterogeneousBTL(people.data.num_features, latent_dim=2)
    guide = NeuralProcessGuide(model)
    fit(model, guide, people.data, steps=60, learning_rate=1e-2, validation=None,
        seed=0, progress_bar=False)  # fmt: skip
    fresh = test.users(features, 60, 11, seed=2)
    accuracy = {}
    for n in (0, 5):
        context, target = fresh.data.split_context(n, seed=0)
        prob = Posterior(model, guide, context, 200).choice_prob(target).mean.flatten().numpy()
        accuracy[n] = ((prob > 0.5) == (target.choice == 1)).mean()
    assert accuracy[0] < 0.65  # every pair divides the two objectives
    assert accuracy[5] > 0.85


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([1, 2], r"completions\[\]\.annotations must be an object .* got list in line 1 of"),
        (
            {"honesty": 3},
            r"annotations\.honesty must be an object with a 'Rating', got int in line 1",
        ),
        ({"honesty": [{"Rating": "3"}]}, r"annotations\.honesty must .* got list in line 1 of"),
    ],
)
def test_annotations_of_another_structure_are_named(
    tmp_path: Path, annotations: object, message: str
) -> None:
    records = broken(completions=[{"response": "a", "annotations": annotations}] * 2)
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path / "a.jsonl", records), objectives=("honesty",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"\xff\xfe\x00", r"a\.jsonl' must be text in UTF-8"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz' is no whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 1000, mtime=0)[:-12], "a.jsonl.gz' is no whole gzip"),
        ("a.parquet", b"abc", r"a\.parquet' is no whole parquet file"),
    ],
)
def test_files_that_cannot_be_decoded_are_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["data/none.jsonl", "data/none.parquet", "data/none.jsonl.gz"])
def test_a_file_that_is_not_there_is_no_name_on_the_hub(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="source must be a file, a folder or"):
        read(name)


def test_objectives_are_named_once(small: ultrafeedback.UltraFeedback) -> None:
    with pytest.raises(ValueError, match="two or more different names"):
        small.pairs(("honesty", "helpfulness", "honesty"))
    pairs = small.pairs(HH, conflict=None)
    features = np.zeros((len(pairs.items), 1), dtype=np.float32)
    with pytest.raises(ValueError, match="objectives must be different names"):
        pairs.users(features, 2, 1, objectives=("honesty", "honesty"))
