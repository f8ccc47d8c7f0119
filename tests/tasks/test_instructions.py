"""Instruction data: where rows come from, what of them is learned, and what is said of bad ones."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
import torch
from pyarrow import csv, parquet

from attent.models.language import IGNORED, train_tokenizer
from attent.pipeline.source import fetch_batch
from attent.tasks.data.dropped import told
from attent.tasks.data.instructions import PROMPT, Instructions
from attent.tasks.data.rows import Row, parse_split, read_rows, split_rows

ALPACA = [
    {"instruction": "Add one to two.", "input": "", "output": "three"},
    {"instruction": "Turn round.", "input": "abc", "output": "cba, which is abc turned round"},
    {"instruction": "Say nothing much at all, please.", "output": "well"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([PROMPT, *(json.dumps(row) for row in ALPACA)] * 3, 300)


def rows(values=ALPACA) -> list[Row]:
    return [Row(value, f"data.json row {i}", i) for i, value in enumerate(values, start=1)]


def values(found: list[Row]) -> list[dict]:
    return [row.values for row in found]


# --- reading


def write(path: Path, content=ALPACA) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(content), path)
    elif path.suffix == ".csv":
        csv.write_csv(pa.Table.from_pylist(content), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in content) + "\n")
    else:
        path.write_text(json.dumps(content))
    return path


FULL = [{"input": "", **row} for row in ALPACA]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.parquet"])
def test_a_file_of_each_kind(tmp_path, name):
    found = read_rows(str(write(tmp_path / name, FULL)))
    assert values(found) == FULL
    assert [row.number for row in found] == [1, 2, 3]
    assert found[1].place == f"{tmp_path / name} row 2"


def test_json_with_its_rows_under_data_and_an_object_a_line(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"version": 1, "data": ALPACA}))
    (tmp_path / "b.json").write_text("\n".join(map(json.dumps, ALPACA)))
    for name in ("a.json", "b.json"):
        assert values(read_rows(str(tmp_path / name))) == ALPACA


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", [0, 1, 2]), ("train[:2]", [0, 1]), ("train[1:]", [1, 2]), ("train[-1:]", [2]),
        ("train[1:2]", [1]), ("train[:34%]", [0]), ("train[:]", [0, 1, 2]),
    ],
)  # fmt: skip
def test_a_part_of_a_split(tmp_path, split, expected):
    path = write(tmp_path / "a.json")
    assert values(read_rows(str(path), split=split)) == [ALPACA[i] for i in expected]


@pytest.mark.parametrize("split", ["train[", "train[a:b]", "train[1]", "", "train[:1.5]"])
def test_a_split_of_another_form_is_refused(split):
    with pytest.raises(ValueError, match=r"dataset_split is like train or train\[:1000\]"):
        parse_split(split)


def test_a_folder_of_files_named_by_split(tmp_path):
    write(tmp_path / "train-00001.parquet", FULL[1:])
    write(tmp_path / "train-00000.parquet", FULL[:1])
    write(tmp_path / "test.json", FULL[:1])
    assert values(read_rows(str(tmp_path))) == FULL
    assert values(read_rows(str(tmp_path), split="test")) == FULL[:1]
    with pytest.raises(ValueError, match=r"no file of the split val; found test\.json, train-0"):
        read_rows(str(tmp_path), split="val")


def test_a_folder_whose_files_name_no_split_is_all_for_training(tmp_path):
    write(tmp_path / "a.json", ALPACA[:1])
    write(tmp_path / "b.jsonl", ALPACA[1:])
    write(tmp_path / "eval.json", ALPACA)
    assert values(read_rows(str(tmp_path))) == ALPACA


def test_sub_tasks_are_folders_and_may_be_counted(tmp_path):
    write(tmp_path / "sums" / "train.json", ALPACA[:2])
    write(tmp_path / "talk" / "train.json", ALPACA[1:])
    found = read_rows(str(tmp_path), sub_task=["talk", "sums:1"])
    assert values(found) == [*ALPACA[1:], ALPACA[0]]
    with pytest.raises(ValueError, match=r"no folder .*walk; .* has sums, talk"):
        read_rows(str(tmp_path), sub_task=["walk"])
    with pytest.raises(ValueError, match="sub_task is NAME or NAME:COUNT, not 'sums:all'"):
        read_rows(str(tmp_path), sub_task=["sums:all"])
    with pytest.raises(ValueError, match=r"'sums' is a folder of the data; .* is a file"):
        read_rows(str(tmp_path / "sums" / "train.json"), sub_task=["sums"])


def test_what_datasets_has_saved(tmp_path):
    saved = datasets.Dataset.from_list(FULL)
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": saved, "test": saved.select([1])}).save_to_disk(tmp_path / "two")
    assert values(read_rows(str(tmp_path / "one"))) == FULL
    assert values(read_rows(str(tmp_path / "two"), split="test")) == FULL[1:2]
    with pytest.raises(ValueError, match=r"two has train, test, not val"):
        read_rows(str(tmp_path / "two"), split="val")
    with pytest.raises(ValueError, match=r"one is one split, train, not test"):
        read_rows(str(tmp_path / "one"), split="test")


def test_classes_of_a_data_set_are_given_by_their_names(tmp_path):
    kinds = datasets.Features(
        {"n": datasets.Value("int64"), "k": datasets.ClassLabel(names=list("ab"))}
    )
    rows = [{"n": 1, "k": 1}, {"n": 2, "k": 0}, {"n": 3, "k": -1}, {"n": 4, "k": None}]
    datasets.Dataset.from_list(rows, features=kinds).save_to_disk(tmp_path / "one")
    found = [row.values for row in read_rows(str(tmp_path / "one"))]
    assert [row["k"] for row in found] == ["b", "a", None, None]
    assert [row["n"] for row in found] == [1, 2, 3, 4]


def test_a_name_of_the_hub_is_given_to_datasets(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return datasets.Dataset.from_list(FULL)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = read_rows("somebody/alpaca", split="train[:3]", sub_task=["python:2"])
    assert values(found) == FULL[:2]
    assert asked == [(("somebody/alpaca",), {"data_dir": "python", "split": "train[:3]"})]
    assert found[1].place == "somebody/alpaca row 2"

    def fails(*args, **kwargs):
        raise ConnectionError("no network\nhere")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(ValueError, match=r"datasets cannot load it: ConnectionError: no network h"):
        read_rows("somebody/alpaca")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"a": 1},\n {"b" 2}]', r"a\.json is not JSON: .* at line 2, column 7"),
        ("a.json", '"text"', r"a\.json holds a text; it must be a list of objects"),
        ("a.json", '[{"a": 1}, [2]]', r"a\.json row 2 is a list; it must be an object"),
        ("a.jsonl", '{"a": 1}\n\n{"b": }\n', r"a\.jsonl row 3 is not JSON: .* at column 7"),
        ("a.jsonl", '{"a": 1}\n3\n', r"a\.jsonl row 2 is a int; it must be an object"),
        ("a.parquet", "no parquet", r"a\.parquet cannot be read as parquet"),
        ("a.json", "[]", r"a\.json holds no rows in train"),
        ("a.csv", "a,b\n1,2\n3\n", r"a\.csv cannot be read as csv: .* Expected 2 col"),
        ("a.tsv", "a,b", r"a\.tsv must end in \.json, \.jsonl, \.csv, \.parquet"),
    ],
)
def test_a_malformed_file_is_named_with_its_row(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_rows(str(path))


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "a.json").write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(ValueError, match=r"a\.json is not UTF-8"):
        read_rows(str(tmp_path / "a.json"))


def test_a_file_that_is_not_there_and_a_split_that_a_file_has_not(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file or folder .*nowhere\.json"):
        read_rows(str(tmp_path / "nowhere.json"))
    with pytest.raises(ValueError, match=r"is one file, whose split is train, not test"):
        read_rows(str(write(tmp_path / "a.json")), split="test")


def test_rows_alike_are_held_out_together():
    many = rows([{"instruction": str(i // 3), "output": "x"} for i in range(300)])
    train, held = split_rows(many, 0.2, seed=0)
    assert sorted(row.number for row in train + held) == list(range(1, 301))
    assert not {r.values["instruction"] for r in train} & {r.values["instruction"] for r in held}
    assert 30 < len(held) < 95
    assert split_rows(many, 0.2, seed=0) == (train, held)
    assert split_rows(many, 0.2, seed=1)[1] != held
    with pytest.raises(ValueError, match=r"held_out 0\.2 of 1 rows leaves"):
        split_rows(many[:1], 0.2, seed=0)


# --- what is learned


def learned_text(source, i: int) -> str:
    batch = source.fetch(torch.tensor([i]))
    ids = batch["labels"][0]
    return source.tokenizer.decode(ids[ids != IGNORED].tolist())


def seen_text(source, i: int) -> str:
    batch = source.fetch(torch.tensor([i]))
    return source.tokenizer.decode(batch["input_ids"][0].tolist())


def test_the_response_alone_is_learned_and_the_prompt_is_the_published_one(tokenizer):
    source = Instructions(rows(), tokenizer)
    head = (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\n"
    )
    assert learned_text(source, 0) == "three<|end|>"
    assert seen_text(source, 0) == f"{head}Add one to two.\n\n### Response:three<|end|>"
    assert seen_text(source, 1) == (
        f"{head}Turn round.\n\n### Input:\nabc\n\n### Response:"
        "cba, which is abc turned round<|end|>"
    )
    assert source.targets.tolist() == [
        len(tokenizer(row["output"])["input_ids"]) + 1 for row in ALPACA
    ]


def test_all_of_a_text_may_be_learned(tokenizer):
    source = Instructions(rows(), tokenizer, learned="all")
    assert learned_text(source, 0) == seen_text(source, 0)
    assert torch.equal(source.targets, source.lengths - 1)


def test_a_batch_is_padded_on_the_right_and_each_row_is_as_it_is_alone(tokenizer):
    source = Instructions(rows(), tokenizer)
    batch = fetch_batch(source, torch.tensor([2, 0, 1]))
    assert batch["index"].tolist() == [2, 0, 1]
    assert batch["length"].tolist() == source.lengths[[2, 0, 1]].tolist()
    width = int(source.lengths.max())
    for row, i in enumerate((2, 0, 1)):
        alone, length = source.fetch(torch.tensor([i]))[0], int(source.lengths[i])
        assert alone["input_ids"].shape == (length,)
        assert batch["input_ids"].shape[1] == width
        for name in ("input_ids", "labels", "attention_mask"):
            assert torch.equal(batch[name][row, :length], alone[name])
        assert bool((batch["input_ids"][row, length:] == tokenizer.pad_token_id).all())
        assert bool((batch["labels"][row, length:] == IGNORED).all())
        assert not batch["attention_mask"][row, length:].any()
    assert batch["attention_mask"].dtype == torch.bool
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64


def test_rows_that_leave_nothing_to_learn_are_dropped_counted_and_listed(tokenizer):
    long = {"instruction": "word " * 300, "output": "x"}
    empty = {"instruction": "Say nothing.", "output": ""}
    null = {"instruction": "Say nothing.", "output": None}
    source = Instructions(rows([*ALPACA, long, long, empty, ALPACA[0], long, null]), tokenizer)
    assert [row.number for row in source.rows] == [1, 2, 3, 7]
    assert told(source.dropped, len(source)) == (
        "5 of 9 rows leave nothing to learn (the prompt fills model_max_length 512: rows 4-5, 8; "
        "the response is empty: rows 6, 9)"
    )
    assert bool((source.targets > 0).all())
    assert source.locate(3) == "data.json row 7"
    assert told(Instructions(rows(), tokenizer).dropped, 3) == ""
    with pytest.raises(
        ValueError, match=r"all of 1 rows leave nothing .*: data\.json row 1: the r"
    ):
        Instructions(rows([empty]), tokenizer)


def test_what_is_beyond_the_longest_length_is_cut_off(tokenizer):
    whole = Instructions(rows(), tokenizer)
    length = int(whole.lengths[1]) - 3
    cut = Instructions(rows(ALPACA[1:2]), tokenizer, max_length=length)
    assert cut.lengths.tolist() == [length]
    assert cut.targets.tolist() == [int(whole.targets[1]) - 3]


def test_one_token_after_the_prompt_is_enough_and_none_is_not(tokenizer):
    prompt = int(Instructions(rows()[:1], tokenizer).lengths[0]) - int(
        Instructions(rows()[:1], tokenizer).targets[0]
    )
    assert Instructions(rows()[:1], tokenizer, max_length=prompt + 1).targets.tolist() == [1]
    with pytest.raises(ValueError, match=f"the prompt fills model_max_length {prompt}"):
        Instructions(rows()[:1], tokenizer, max_length=prompt)


def test_fields_and_prompts_of_other_data(tokenizer):
    other = rows([{"q": "Why?", "a": "Because."}])
    source = Instructions(other, tokenizer, fields=["q", "a"], prompt="Q: {instruction} A: ")
    assert seen_text(source, 0) == "Q: Why? A: Because.<|end|>"
    assert learned_text(source, 0) == "Because.<|end|>"


def test_braces_in_data_are_no_placeholders(tokenizer):
    odd = rows([{"instruction": "{input} {0}", "input": "{instruction}", "output": "{}"}])
    assert "{input} {0}\n\n### Input:\n{instruction}" in seen_text(Instructions(odd, tokenizer), 0)


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        ({"question": "a"}, {}, r"data\.json row 1 has the fields question; expected instruction"),
        ({"instruction": 3, "output": "a"}, {}, r"row 1: instruction must be a text, not 3"),
        ({"instruction": "a", "output": 4}, {}, r"row 1: output must be a text, not 4"),
        ({"instruction": "a", "input": [], "output": "b"}, {}, r"row 1: input must be a text"),
        ({"q": "a"}, {"fields": ["q", "r"]}, r"dataset_field: data\.json row 1 has no 'r', but q"),
        ({"q": "a"}, {"fields": ["q"]}, r"names a query and a response, not \['q'\]"),
        ({"q": "a"}, {"prompt": "none"}, r"prompt must hold \{instruction\}"),
        ({"q": "a"}, {"max_length": 1}, r"model_max_length is at least 2, got 1"),
        ({"messages": "hello"}, {}, r"row 1: messages must be a list of objects"),
        ({"messages": [{"role": "user"}]}, {}, r"messages must be a list of objects with role"),
    ],
)
def test_a_malformed_row_is_named(tokenizer, value, options, message):
    with pytest.raises(ValueError, match=message):
        Instructions(rows([value]), tokenizer, **options)


# --- chats

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def chatting():
    tokenizer = train_tokenizer(["[user] hello [assistant] there"] * 3, 280)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def said(*turns: str) -> dict:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(turns)]}


def test_what_the_assistant_says_is_learned_by_the_template(chatting):
    source = Instructions(rows([said("hi", "hello", "why?", "because"), said("a", "b")]), chatting)
    whole = "[user]hi<|end|>[assistant]hello<|end|>[user]why?<|end|>[assistant]because<|end|>"
    assert seen_text(source, 0) == whole
    assert learned_text(source, 0) == "hello<|end|>because<|end|>"
    assert learned_text(source, 1) == "b<|end|>"
    before, response = source.texts(0)
    assert chatting.decode(before) == "[user]hi<|end|>[assistant]"
    assert response == "hellobecause"


def test_chats_that_cannot_be_learned_from_are_named(chatting, tokenizer):
    with pytest.raises(ValueError, match=r"row 1 has messages, but the tokenizer has no chat temp"):
        Instructions(rows([said("hi", "ho")]), tokenizer)
    with pytest.raises(ValueError, match=r"row 2: no message is of the role assistant"):
        Instructions(rows([said("hi", "ho"), said("hi")]), chatting)
    chatting.chat_template = "{{ raise_exception('no system') }}"
    with pytest.raises(ValueError, match=r"row 1: the chat template refuses it: no system"):
        Instructions(rows([said("hi", "ho")]), chatting)
    chatting.chat_template = "{% for m in messages[-1:] %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match=r"row 1: .* message 2 does not continue"):
        Instructions(rows([said("hi", "ho", "hu", "ha")]), chatting)


@pytest.mark.parametrize("learned", ["response", "all"])
def test_the_prompt_is_told_from_the_response_whatever_is_learned(tokenizer, learned):
    source = Instructions(rows(ALPACA), tokenizer, prompt="Q {instruction}\n", learned=learned)
    for i, row in enumerate(source.rows):
        before, response = source.texts(i)
        assert tokenizer.decode(before.tolist()).startswith("Q " + row.values["instruction"])
        assert response == row.values["output"]


def test_an_assistant_that_says_nothing_leaves_nothing_to_learn(chatting):
    source = Instructions(rows([said("hi", ""), said("a", "b")]), chatting)
    assert (
        told(source.dropped, 1)
        == "1 of 2 rows leave nothing to learn (the response is empty: rows 1)"
    )
