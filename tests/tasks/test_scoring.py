"""`score_dataset`: any task and source, as the score stage measures them."""

from __future__ import annotations

import csv
import errno
import io
import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import csv as arrow_csv
from pyarrow import parquet
from torch import nn

from attent.pipeline import (
    ExampleError,
    Loading,
    Signal,
    TensorSource,
    initial_state,
    initialize,
    run,
    score,
)
from attent.pipeline.skipped import SkippedList
from attent.tasks import scoring
from attent.tasks.classification import Classification
from attent.tasks.data.digits import digits
from attent.tasks.scoring import score_dataset
from attent.tasks.table_files import write_table


class Flat(nn.Module):
    """Linear on pixels, with dropout that scoring must not draw."""

    def __init__(self, inputs: int = 64, outputs: int = 10) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)
        self.dropout = nn.Dropout(0.5)
        with torch.no_grad():
            values = torch.arange(inputs * outputs).reshape(outputs, inputs)
            self.layer.weight.copy_((values * 0.37).sin() / 4)
            self.layer.bias.zero_()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layer(self.dropout(image.flatten(1)))


class Fixed(Classification):
    """Logits are the images themselves."""

    def forward(self, model, batch):
        return batch["image"] + 0 * model(batch["image"])


class Numbers:
    """A task of somebody's own, of numbers: no label, no classes."""

    name = "numbers"

    def __init__(self) -> None:
        self.model: nn.Module = nn.Linear(2, 1)

    def view(self, batch, keys, *, training):
        return batch

    def forward(self, model, batch):
        return model(batch["x"]).squeeze(1)

    def losses(self, output, batch):
        return (output - batch["y"]).square()

    def metrics(self):
        return {}

    def update(self, metrics, output, batch):
        pass


class Named(TensorSource):
    """Knows where its examples are; some are torn."""

    torn: tuple[int, ...] = ()
    classes = ("ant", "bee", "cow")

    def locate(self, index: int) -> str:
        return f"box,{index}.png"

    def fetch(self, index):
        if set(index.tolist()) & set(self.torn):
            raise OSError("torn")
        return super().fetch(index)


def by_hand() -> tuple[Fixed, Named]:
    """Five examples of three classes whose probabilities are those of `test_scoring_errors`."""
    shares = torch.tensor(
        [[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.1, 0.7, 0.2], [0.5, 0.4, 0.1], [0.1, 0.6, 0.3]]
    )
    source = Named({"image": shares.log(), "label": torch.tensor([0, 0, 0, 1, 1])})
    return Fixed(Flat(3, 3), 3), source


def numbers_source(count: int = 30) -> TensorSource:
    x = torch.arange(2.0 * count).reshape(count, 2) / count
    return TensorSource({"x": x, "y": x.sum(1) ** 2})


# --- what is measured


@pytest.mark.parametrize("name", ["loss", "grad_norm", "output_grad_norm", "last_layer"])
def test_each_column_is_what_the_score_stage_writes(name):
    source, _ = digits()
    task = Classification(Flat(), 10)
    state = initial_state(task, source, seed=3)
    stage = score(task, source, name, batch_size=100)
    wanted = run(stage, initialize(stage, state))["scores", name]
    found = score_dataset(task, source, ["loss", name], state=state, batch_size=100)
    assert np.array_equal(found.columns[name], wanted.numpy())
    assert wanted.unique().numel() > 1000


def test_probabilities_predictions_and_errors_by_hand():
    task, source = by_hand()
    table = score_dataset(task, source, batch_size=2).table()
    assert table.column_names == [
        "index", "name", "label", "label_name", "predicted", "predicted_name", "probability",
        "margin", "suggested", "suggested_name", "label_error", "loss",
    ]  # fmt: skip
    rows = table.to_pydict()
    assert rows["index"] == [0, 1, 2, 3, 4]
    assert rows["name"][4] == "box,4.png"
    assert rows["label_name"] == ["ant"] * 3 + ["bee"] * 2
    assert rows["predicted_name"] == ["ant", "ant", "bee", "ant", "bee"]
    assert rows["probability"] == pytest.approx([0.8, 0.6, 0.7, 0.5, 0.6], rel=1e-5)
    assert rows["margin"] == pytest.approx([0.7, 0.3, -0.6, -0.1, 0.3], abs=1e-5)
    # t0 = (0.8 + 0.6 + 0.1) / 3 = 0.5, which 0.5 may miss by its last bit; t1 = 0.5.
    assert rows["suggested_name"][2] == "bee"
    assert rows["label_error"][:3] == [False, False, True]
    assert rows["loss"] == pytest.approx(-np.log([0.8, 0.6, 0.1, 0.4, 0.6]), rel=1e-5)
    about = json.loads(table.schema.metadata[b"attent"])
    assert (about["task"], about["examples"]) == ("classification", 5)
    assert about["versions"]["torch"] == torch.__version__.split("+")[0]


def test_a_task_of_somebodys_own_has_its_scores_alone():
    task, source = Numbers(), numbers_source()
    told = []
    found = score_dataset(task, source, batch_size=8, tell=lambda *how: told.append(how))
    assert found.table().column_names == ["index", "loss"]
    with torch.no_grad():
        wanted = task.losses(task.forward(task.model, source.fields), source.fields)
    np.testing.assert_allclose(found.columns["loss"], wanted.numpy(), rtol=1e-6)
    assert told == [(8, 30), (16, 30), (24, 30), (30, 30)]
    assert task.model.training  # as it was


def test_a_task_of_somebodys_own_may_say_what_its_probabilities_are():
    task, source = by_hand()

    class Own(Numbers):
        def forward(self, model, batch):
            return batch["image"] + 0 * model(batch["image"][:, :2])

        def losses(self, output, batch):
            return -output.gather(1, batch["label"][:, None]).squeeze(1)

        def probabilities(self, output, batch):
            return output.exp()

    found, wanted = score_dataset(Own(), source), score_dataset(task, source)
    assert found.columns["predicted"].tolist() == wanted.columns["predicted"].tolist()
    np.testing.assert_allclose(found.columns["margin"], wanted.columns["margin"], atol=1e-6)


def test_a_signal_of_somebodys_own_is_a_column():
    own = Signal(name="first", measure=lambda task, p, b, batch, chunk: batch["x"][:, 0])
    found = score_dataset(Numbers(), numbers_source(), [own, "loss", own])
    assert found.signals == ("first", "loss")
    np.testing.assert_allclose(found.columns["first"], 2 * np.arange(30) / 30, rtol=1e-6)


def test_longer_examples_first_and_each_score_still_in_its_own_row():
    source = numbers_source()
    wanted = score_dataset(task := Numbers(), source, batch_size=7).columns["loss"]
    source.lengths = torch.arange(30) % 7  # type: ignore[attr-defined]
    found = score_dataset(task, source, batch_size=7)
    np.testing.assert_allclose(found.columns["loss"], wanted, rtol=1e-6)


def test_rows_are_made_some_at_a_time():
    task, source = by_hand()
    found = score_dataset(task, source)
    assert [batch.num_rows for batch in found.batches(2)] == [2, 2, 1]
    assert pa.Table.from_batches(found.batches(2)).equals(found.table())


def test_a_model_of_one_class_has_its_losses_alone():
    task, source = Classification(Flat(2, 1), 1), numbers_source(5)
    source.fields["image"] = source.fields.pop("x")
    source.fields["label"] = torch.zeros(5, dtype=torch.int64)
    assert score_dataset(task, source).table().column_names == ["index", "label", "loss"]


# --- what cannot be


def test_no_examples():
    empty = TensorSource({"x": torch.zeros(0, 2), "y": torch.zeros(0)})
    state = initial_state(Numbers(), numbers_source())
    with pytest.raises(ValueError, match="the data hold no examples"):
        score_dataset(Numbers(), empty, state=state)


def test_probabilities_that_are_not_of_classes():
    task, source = by_hand()
    task.probabilities = lambda output, batch: output[:, 0]  # type: ignore[attr-defined]
    message = r"are \[B, K\], here \[2, K\]; task 'classification' gives \[2\]"
    with pytest.raises(ValueError, match=message):
        score_dataset(task, source, batch_size=2)


def test_probabilities_that_are_not_finite():
    task, source = by_hand()
    task.probabilities = lambda output, batch: output / (batch["index"] != 3)[:, None]  # type: ignore[attr-defined]
    with pytest.raises(ExampleError, match=r"probabilities of example 3 \(box,3.png\) is -inf"):
        score_dataset(task, source)


def test_a_disk_without_room_for_the_probabilities(monkeypatch):
    class Full(io.BytesIO):
        def write(self, data) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(scoring.tempfile, "TemporaryFile", Full)
    with pytest.raises(ValueError, match=r"No space left on device.* let the variable TMPDIR name"):
        score_dataset(*by_hand())


@pytest.mark.parametrize(
    ("signals", "message"),
    [
        (["los"], r"signals: there is no 'los'; did you mean 'loss'\? \(there are loss, grad_norm"),
        (["loss_drop"], "signals: loss_drop is of when training saw an example"),
        ([], "signals: name at least one of loss, grad_norm"),
        ([Signal(name="label", measure=lambda *_: None)], "'label' is the name of another column"),  # type: ignore[arg-type, return-value]
    ],
)
def test_wrong_signals(signals, message):
    with pytest.raises(ValueError, match=message):
        score_dataset(Numbers(), numbers_source(), signals)


def test_a_batch_of_nothing():
    with pytest.raises(ValueError, match="batch_size is at least 1, got 0"):
        score_dataset(Numbers(), numbers_source(), batch_size=0)


def test_a_score_that_is_not_finite_is_named():
    source = numbers_source()
    source.fields["y"][17] = float("inf")
    with pytest.raises(ExampleError, match="loss of example 17 is inf"):
        score_dataset(Numbers(), source, batch_size=8)


def test_an_example_that_cannot_be_read():
    task, source = by_hand()
    source.torn = (2,)
    with pytest.raises(ExampleError, match=r"example 2 \(box,2.png\) cannot be fetched"):
        score_dataset(task, source)
    found = score_dataset(task, source, loading=Loading(skipped=SkippedList()))
    rows = found.table().to_pydict()
    assert rows["unreadable"] == [None, None, "OSError: torn", None, None]
    assert (rows["index"][2], rows["name"][2]) == (2, "box,2.png")
    measured = set(rows) - {"index", "name", "unreadable"}
    assert all(rows[name][2] is None for name in measured)
    assert None not in [rows["loss"][i] for i in (0, 1, 3, 4)]
    # Its stand-in is not counted twice: t0 is the mean of 0.8 and 0.6, t1 of 0.4 and 0.6; none
    # but their own labels reach them.
    assert rows["label_error"] == [False, False, None, False, False]
    assert found.summary()[-1] == "1 example could not be read and has no scores"
    assert found.likely_errors().tolist() == []


# --- files


def read(path) -> list[dict]:
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".csv":
        strings = ("name", "label_name", "predicted_name", "suggested_name", "unreadable")
        convert = arrow_csv.ConvertOptions(
            column_types={"loss": pa.float32(), "margin": pa.float32(), "probability": pa.float32()}
            | dict.fromkeys(strings, pa.string()),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        return arrow_csv.read_csv(path, convert_options=convert).to_pylist()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {k: float(np.float32(v)) if isinstance(v, float) else v for k, v in row.items()}
        for row in rows
    ]


def test_the_three_kinds_of_files_hold_the_same(tmp_path):
    task, source = by_hand()
    source.torn = (1,)
    found = score_dataset(task, source, loading=Loading(skipped=SkippedList()))
    for kind in ("parquet", "csv", "jsonl"):
        write_table(tmp_path / f"s.{kind}", found.schema, found.batches(2))
        assert read(tmp_path / f"s.{kind}") == found.table().to_pylist(), kind
    assert parquet.read_schema(tmp_path / "s.parquet").metadata == found.schema.metadata
    with (tmp_path / "s.csv").open() as file:  # as anybody reads it
        assert [row["name"] for row in csv.DictReader(file)][3] == "box,3.png"


def test_a_table_that_is_not_finished_leaves_what_was_there(tmp_path):
    task, source = by_hand()
    found = score_dataset(task, source)
    path = tmp_path / "s.parquet"
    path.write_text("before")

    def broken():
        yield next(found.batches(2))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_table(path, found.schema, broken())
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["s.parquet"]
    with pytest.raises(ValueError, match=r"s.txt must end in .parquet, .csv or .jsonl"):
        write_table(tmp_path / "s.txt", found.schema, found.batches())
