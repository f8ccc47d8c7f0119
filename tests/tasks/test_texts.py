"""Texts with their classes: what a batch holds, how classes are numbered, what is refused."""

from __future__ import annotations

import pytest
import torch

from attent.pipeline.source import fetch_batch
from attent.tasks.data.dropped import told
from attent.tasks.data.rows import Row
from attent.tasks.data.texts import Texts
from tests.tasks.texts import tokenizer_of

VALUES = [
    {"text": "a red apple falls", "label": "fruit"},
    {"text": "the dog", "label": "animal"},
    {"text": "a pear and a plum on the table", "label": "fruit"},
    {"text": "one cat or a horse", "label": "animal"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of([value["text"] for value in VALUES] * 3, 120)


def rows(values=VALUES) -> list[Row]:
    return [Row(value, f"a.json row {i}", i) for i, value in enumerate(values, start=1)]


def test_a_batch_is_as_long_as_its_longest_text_and_marks_its_tokens(tokenizer):
    source = Texts(rows(), tokenizer)
    batch = fetch_batch(source, torch.tensor([1, 2]))
    lengths = source.lengths[[1, 2]]
    assert batch["input_ids"].shape == (2, int(lengths.max()))
    assert batch["attention_mask"].sum(1).tolist() == lengths.tolist()
    assert lengths[0] < lengths[1]
    for i, length in enumerate(lengths):
        ids = batch["input_ids"][i, :length]
        assert tokenizer.decode(ids, skip_special_tokens=True) == VALUES[i + 1]["text"]
        assert ids[0] == tokenizer.cls_token_id
        assert ids[-1] == tokenizer.sep_token_id
        assert (batch["input_ids"][i, length:] == tokenizer.pad_token_id).all()
    assert batch["label"].tolist() == [0, 1]
    assert source.classes == ["animal", "fruit"]
    assert source.locate(2) == "a.json row 3"


def test_a_pair_is_one_row_of_two_kinds_of_tokens(tokenizer):
    values = [
        {"premise": "a dog", "hypothesis": "an animal", "label": 1},
        {"premise": "a dog", "hypothesis": "a pear falls", "label": 0},
    ]
    source = Texts(rows(values), tokenizer, fields=["premise", "hypothesis"])
    batch = fetch_batch(source, torch.arange(2))
    kinds = batch["token_type_ids"]
    assert (kinds.sum(1) > 0).all()
    second = tokenizer.decode(batch["input_ids"][1][kinds[1] == 1], skip_special_tokens=True)
    assert second == "a pear falls"
    assert source.text(1) == "premise: a dog\nhypothesis: a pear falls"


def test_rows_are_cut_to_a_length_with_their_end(tokenizer):
    source = Texts(rows(), tokenizer, max_length=5)
    assert source.lengths.tolist() == [5, 4, 5, 5]
    batch = fetch_batch(source, torch.tensor([2]))
    assert batch["input_ids"][0, -1] == tokenizer.sep_token_id
    assert source.text(2) == VALUES[2]["text"]


@pytest.mark.parametrize(
    ("labels", "known", "expected"),
    [
        (["b", "a", "c", "a"], [], ["a", "b", "c"]),
        ([10, 9, 2, 2], [], ["2", "9", "10"]),
        (["10", "9", "-1", "9"], [], ["-1", "9", "10"]),
        (["007", "7", "10", "8"], [], ["007", "7", "8", "10"]),
        (["10", "9", "b", "9"], [], ["10", "9", "b"]),
        (["\u00b2", "1", "1", "1"], [], ["1", "\u00b2"]),
        (["b", "a", "c", "a"], ["c", "a", "b"], ["c", "a", "b"]),
        (["b", "a", "c", "a"], ["LABEL_0", "LABEL_1", "LABEL_2"], ["a", "b", "c"]),
    ],
)
def test_classes_are_in_order_or_as_the_model_knows_them(tokenizer, labels, known, expected):
    values = [{"text": "a dog", "label": label} for label in labels]
    source = Texts(rows(values), tokenizer, known=known)
    assert source.classes == expected
    assert [source.classes[i] for i in source.labels] == list(map(str, labels))


def test_held_out_rows_have_the_classes_of_those_trained_on(tokenizer):
    classes = ["fruit", "animal", "stone"]
    assert Texts(rows(), tokenizer, classes).labels.tolist() == [0, 1, 0, 1]
    with pytest.raises(
        ValueError,
        match=r"a\.json row 1: label is 'fruit', which no row that is trained on has \('anim",
    ):
        Texts(rows(), tokenizer, ["animal", "stone"])


def test_rows_without_a_text_are_dropped_counted_and_listed(tokenizer):
    empty = [" \n", "", None]
    values = [*VALUES, *({"text": text, "label": "stone"} for text in empty)]
    source = Texts(rows(values), tokenizer)
    assert len(source) == 4
    assert source.classes == ["animal", "fruit"]
    assert (
        told(source.dropped, len(source))
        == "3 of 7 rows leave nothing to learn (text is empty: rows 5-7)"
    )
    with pytest.raises(ValueError, match=r"all of 3 rows are empty: a\.json row 1: text is empty"):
        Texts(rows(values[4:]), tokenizer)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"text": 3}, r"a\.json row 2: text must be a text, not 3"),
        (
            {"label": 3},
            r"row 2: label is 3, but 'fruit' in a\.json row 1: all are whole numbers, or",
        ),
        ({"label": None}, r"a\.json row 2: label must be a text or a whole number, not None"),
        ({"label": True}, r"a\.json row 2: label must be a text or a whole number, not True"),
        ({"label": " "}, r"a\.json row 2: label is empty"),
        ({"label": 0.5}, r"a\.json row 2: label must be a text or a whole number, not 0\.5"),
    ],
)
def test_a_row_of_another_form_is_named(tokenizer, changed, message):
    values = [VALUES[0], VALUES[1] | changed, *VALUES[2:]]
    with pytest.raises(ValueError, match=message):
        Texts(rows(values), tokenizer)


def test_fields_that_are_not_there_are_told_with_those_that_are(tokenizer):
    values = [{"review": "a dog", "stars": 1}, {"review": "a cat", "stars": 2}]
    with pytest.raises(
        ValueError, match=r"row 1 has no 'text', but review, stars; text_field names another"
    ):
        Texts(rows(values), tokenizer)
    with pytest.raises(
        ValueError, match=r"row 1 has no 'label', but review, stars; label_field names another"
    ):
        Texts(rows(values), tokenizer, fields=["review"])
    assert len(Texts(rows(values), tokenizer, fields=["review"], label_field="stars")) == 2


def test_one_class_is_nothing_to_tell_apart(tokenizer):
    with pytest.raises(ValueError, match="label is 'fruit' in every row: there is nothing to tell"):
        Texts(rows([VALUES[0], VALUES[2]]), tokenizer)


def test_a_tokenizer_cuts_and_pads_nothing_when_others_use_it(tokenizer):
    """What is saved beside the model must not cut the rows of those who load it."""
    Texts(rows(), tokenizer, max_length=5)
    assert tokenizer.backend_tokenizer.truncation is None
    assert tokenizer.backend_tokenizer.padding is None
    assert len(tokenizer.backend_tokenizer.encode(VALUES[2]["text"]).ids) > 5
