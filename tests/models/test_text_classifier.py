"""Classifiers of text from a path: what is fresh, what is trained beside adapters, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from attent.models.adapters import with_adapters
from attent.models.text_classifier import (
    accepted,
    build_classifier,
    head_of,
    known_classes,
    load_text_tokenizer,
    pad_alike,
)
from attent.tasks.data.texts import INPUTS
from tests.tasks.texts import encoder_of, release, tokenizer_of

CLASSES = ["animal", "fruit", "stone"]
HEADS = {
    "bert": ["classifier", "bert.pooler"],
    "roberta": ["classifier"],
    "distilbert": ["pre_classifier", "classifier"],
    "modernbert": ["head", "classifier"],
    "llama": ["score"],
}
"""The test's BERT is one of masked language modelling, which has no pooler."""


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The folder of an encoder; each is made once."""
    made: dict[str, Path] = {}

    def released(family: str) -> Path:
        if family not in made:
            made[family] = release(tmp_path_factory.mktemp(family), family, ["a dog", "a pear"] * 9)
        return made[family]

    return released


@pytest.mark.parametrize("family", HEADS)
def test_the_head_is_trained_whole_and_of_the_encoder_adapters_alone(released, family):
    model, fresh = build_classifier(str(released(family)), CLASSES)
    head = head_of(model, fresh)
    assert head == HEADS[family]
    adapted = with_adapters(model, "lora", rank=2, head=head)
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert {name.split(".modules_to_save")[0] for name in trained if "lora" not in name} == {
        f"base_model.model.{name}" for name in head
    }
    assert sum("lora_A" in name for name in trained) >= 2 * 4
    assert not any("lora" in name and "modules_to_save" in name for name in trained)


@pytest.mark.parametrize("family", HEADS)
def test_what_the_path_has_is_loaded_and_what_it_has_not_is_told(released, family):
    model, fresh = build_classifier(str(released(family)), CLASSES)
    origin = encoder_of(family, len(load_text_tokenizer(str(released(family))))).base_model
    for name, value in model.base_model.state_dict().items():
        if "pooler" not in name:
            assert torch.equal(value, origin.state_dict()[name]), name
    assert any(name.startswith(("classifier.", "score.")) for name in fresh)
    assert ("bert.pooler.dense.weight" in fresh) == (family == "bert")
    assert model.config.id2label == dict(enumerate(CLASSES))
    assert model.config.label2id == {name: i for i, name in enumerate(CLASSES)}


def test_a_classifier_goes_on_from_its_own_head_or_gets_another(released, tmp_path):
    model, _ = build_classifier(str(released("bert")), CLASSES)
    model.save_pretrained(tmp_path)
    again, fresh = build_classifier(str(tmp_path), CLASSES)
    assert fresh == []
    assert head_of(again, fresh) == ["classifier"]
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    other, fresh = build_classifier(str(tmp_path), ["a", "b"])
    assert sorted(fresh) == ["classifier.bias", "classifier.weight"]
    assert other.classifier.out_features == 2
    assert known_classes(str(tmp_path)) == CLASSES


def test_the_report_of_transformers_is_not_printed(released, capsys):
    build_classifier(str(released("bert")), CLASSES)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_weights_of_another_model_are_refused(released, tmp_path):
    encoder_of("distilbert", 60).save_pretrained(tmp_path)
    config = json.loads((released("bert") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 60}))
    with pytest.raises(
        ValueError, match=r"has no weights of bert\.embeddings.* and more, which Be"
    ):
        build_classifier(str(tmp_path), CLASSES)


def test_what_is_no_model_is_told_with_what_is_there(tmp_path):
    (tmp_path / "weights.bin").write_text("")
    for ask in (known_classes, lambda path: build_classifier(path, CLASSES)):
        with pytest.raises(ValueError, match=r"cannot be loaded \(the folder holds weights\.bin\)"):
            ask(str(tmp_path))


@pytest.mark.parametrize("family", HEADS)
def test_a_folder_without_a_tokenizer_is_refused(tmp_path, family):
    """Of some families transformers makes one that knows no word."""
    encoder_of(family, 60).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds no tokenizer|cannot be loaded"):
        load_text_tokenizer(str(tmp_path))


def test_a_tokenizer_that_does_not_pad_is_refused(tmp_path):
    tokenizer = tokenizer_of(["a dog", "a pear"], 60)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no token for padding \(pad_token\)"):
        load_text_tokenizer(str(tmp_path))


def test_a_causal_model_knows_the_padding_of_its_tokenizer(released):
    """It classifies by the last token that is none; one that is told another reads padding."""
    tokenizer = load_text_tokenizer(str(released("llama")))
    tokenizer.padding_side = "left"
    for known in (None, 7):
        model, _ = build_classifier(str(released("llama")), CLASSES)
        model.config.pad_token_id = known
        pad_alike(model, tokenizer)
        assert model.config.pad_token_id == tokenizer.pad_token_id == 0
    assert tokenizer.padding_side == "right"


def test_an_encoder_is_padded_as_its_tokenizer_does_it(released):
    model, _ = build_classifier(str(released("bert")), CLASSES)
    tokenizer = load_text_tokenizer(str(released("bert")))
    tokenizer.padding_side = "left"
    model.config.pad_token_id = 7
    pad_alike(model, tokenizer)
    assert (model.config.pad_token_id, tokenizer.padding_side) == (7, "left")


def test_a_model_is_given_what_its_forward_takes(released):
    for family, expected in (("bert", list(INPUTS)), ("distilbert", list(INPUTS[:2]))):
        model, fresh = build_classifier(str(released(family)), CLASSES)
        assert accepted(model, INPUTS) == expected
        adapted = with_adapters(model, "lora", rank=2, head=head_of(model, fresh))
        assert accepted(adapted, INPUTS) == expected


def test_merging_keeps_the_trained_head(released):
    model, fresh = build_classifier(str(released("bert")), CLASSES)
    adapted = with_adapters(model, "lora", rank=2, head=head_of(model, fresh)).eval()
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.ones_like(p).cumsum(-1).cos())
    ids = torch.arange(5, 12)[None]
    expected = adapted(input_ids=ids).logits
    merged = adapted.merge_and_unload()
    assert isinstance(merged, type(AutoModelForSequenceClassification.from_config(merged.config)))
    torch.testing.assert_close(merged(input_ids=ids).logits, expected)
