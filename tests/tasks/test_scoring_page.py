"""What is said and shown of scores: the summary, and the page."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from tensordict import TensorDict

from attent.pipeline import Loading, TensorSource
from attent.pipeline.skipped import SkippedList
from attent.tasks.classification import Classification
from attent.tasks.data.digits import digits
from attent.tasks.report import scores as page
from attent.tasks.report.scores import write_scores_page
from attent.tasks.scored import Scored, share
from attent.tasks.scoring import score_dataset
from tests import test_readme
from tests.pages import ROOT, run_python
from tests.tasks.test_scoring import Fixed, Flat, Numbers, by_hand, numbers_source


def page_of(scored: Scored, path, **how) -> str:
    write_scores_page(path, scored, **how)
    return path.read_text()


def test_a_page_shows_the_hardest_first_and_the_errors_before_them(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "SHOWN", 2)
    task, source = by_hand()
    scored = score_dataset(task, source, ["loss", "output_grad_norm"])

    def told(source, index):
        return f"<text {index}>" + "x" * 700 + f"<end {index}>"

    found = page_of(scored, tmp_path / "p.html", text=told)
    parts = found.split("<h2>")[1:]
    assert [part.partition("</h2>")[0].partition(":")[0] for part in parts] == [
        "Likely label errors", "Hardest", "Easiest",
    ]  # fmt: skip
    hard, easy = ([i for i in range(5) if f"&lt;text {i}&gt;" in part] for part in parts[1:])
    assert (hard, easy) == ([2, 3], [0, 1])  # losses of 0.1, 0.4 and of 0.8, 0.6 (the first of two)
    assert parts[1].index("text 2") < parts[1].index("text 3")
    assert parts[2].index("text 0") < parts[2].index("text 1")
    assert "<text" not in found
    assert found.count("&lt;text 2&gt;xxx") == found.count("xxx&lt;end 2&gt;</pre>") == 2
    assert "x" * 600 not in found
    assert "ant → <b class=wrong>bee</b> 70.0%" in parts[0]
    assert "ant → <b>ant</b> 80.0%" in parts[2]
    assert found.count("data:image/png") == 1  # the histograms
    assert "http" not in found.replace("http-equiv", "")


def test_a_page_of_pictures_has_each_inside(tmp_path):
    source, _ = digits()
    few = TensorSource({name: value[:30] for name, value in source.fields.items()})
    scored = score_dataset(Classification(Flat(), 10), few)

    def small(batch: TensorDict):
        return [(image, "") for image in batch["image"]]

    found = page_of(scored, tmp_path / "p.html", thumbnails=small)
    errors = len(scored.likely_errors())
    assert found.count("data:image/png") == 1 + 15 + 15 + min(errors, 48)
    bare = page_of(score_dataset(Numbers(), numbers_source()), tmp_path / "q.html")
    assert "Likely label errors" not in bare
    assert bare.count("<figcaption>") == 30


# --- how far the model is to be trusted


def held_against_labels(alike: int, of: int, trained_on: bool | None = None) -> Scored:
    """Scores of a classifier sure of class 0, where so many of the labels are 0."""
    shares = torch.tensor([[0.8, 0.1, 0.1]]).repeat(of, 1)
    label = torch.zeros(of, dtype=torch.int64)
    label[alike:] = 1
    source = TensorSource({"image": shares.log(), "label": label})
    return score_dataset(Fixed(Flat(3, 3), 3), source, trained_on=trained_on)


def test_how_often_the_model_agrees_is_said_and_what_it_means_where_it_is_little(tmp_path):
    strong, weak = held_against_labels(27, 30), held_against_labels(26, 30)
    assert (strong.agreement(), strong.is_weak) == ((27, 30), False)  # 3 of 30 are a tenth
    assert (weak.agreement(), weak.is_weak) == ((26, 30), True)
    assert strong.summary()[-1] == "the model predicts the given label of 90.0% of 30 examples"
    assert weak.summary()[-1] == (
        "the model predicts the given label of 86.6% of 30 examples: it is weak on them, and many "
        "of those labels are right"
    )
    told = page_of(strong, tmp_path / "p.html")
    assert "predicts the given label of 90.0% of 30 examples. Of the other 3 " in told
    assert "weak" not in told
    told = page_of(weak, tmp_path / "q.html")
    assert "predicts the given label of only 86.6% of 30 examples: it is weak on these" in told
    assert "It contradicts 4 labels." in told
    assert "many of the labels below are right" in told


def test_of_what_cannot_be_read_nothing_is_held_against_the_label():
    task, source = by_hand()
    source.torn = (0,)
    found = score_dataset(task, source, loading=Loading(skipped=SkippedList()))
    assert found.agreement() == (2, 4)  # of 1 to 4 it agrees with 1 and 4
    assert score_dataset(Numbers(), numbers_source()).agreement() is None


@pytest.mark.parametrize(
    ("trained_on", "there", "gone"),
    [
        (True, "The model was trained on these examples.", "If the model was trained"),
        (None, "If the model was trained on some of these", "The model was trained"),
        (False, "predicts the given label", "trained on"),
    ],
)
def test_what_training_on_the_examples_hides_is_said(trained_on, there, gone, tmp_path):
    found = held_against_labels(30, 30, trained_on)
    told = page_of(found, tmp_path / "p.html").partition("<h2>Likely")[2]
    assert there in told
    assert gone not in told
    assert ("trained on these: yes" in page_of(found, tmp_path / "p.html")) is (trained_on is True)
    assert found.about.get("trained on these") is trained_on
    learned = [line for line in found.summary() if "learned by heart" in line]
    assert len(learned) == (trained_on is True)


def test_the_rest_is_said_only_where_something_is_left_out(tmp_path):
    found = replace(held_against_labels(3, 3), notes=["2 rows <are> empty"])
    assert "2 rows <are> empty" in found.summary()
    assert "2 rows &lt;are&gt; empty" in page_of(found, tmp_path / "p.html")


@pytest.mark.parametrize(
    ("count", "of", "words"),
    [
        (2, 3, "66.6% of 3 examples"),
        (1, 1, "100.0% of 1 example"),
        (9999, 10000, "99.9% of 10,000 examples"),  # not all
        (0, 0, "no example"),
    ],
)
def test_shares_are_never_rounded_up(count, of, words):
    assert share(count, of) == words


def test_the_page_of_the_documentation_says_what_runs(tmp_path, monkeypatch, capsys):
    test_readme.test_commands_are_understood("docs/scoring.md", {"score"}, monkeypatch, tmp_path)
    names = run_python("docs/scoring.md", 1)
    assert "loss of 360 examples: median " in capsys.readouterr().out
    cells = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/scoring.md").read_text(), re.MULTILINE)
    told = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert set(names["table"].column_names) - told == {"output_grad_norm"}
    losses = names["scored"].columns["loss"]
    assert losses[names["hardest"][0]] == losses.max()
    assert (tmp_path / "scores.parquet").is_file()
    assert (tmp_path / "scores.html").is_file()
