from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from attent.pipeline import SIGNALS, ExampleError, PlanError, assert_stage_laws, run
from attent.pipeline.keys import differences, find, number
from attent.pipeline.validate import walk
from attent.tasks.build import device_of, optimizer_of
from attent.tasks.classification.build import build_classify
from attent.tasks.classification.config import ClassifyConfig
from attent.tasks.config import ConfigError
from attent.tasks.recipe import rule_of
from attent.tasks.selection import idle_selection

SMALL = {"depth": 1, "embed_dim": 16, "num_heads": 2}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tensors are small: threads would mostly wait for each other."""
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)


@pytest.fixture
def npz(tmp_path):
    """60 images of three classes: 48 to train on."""

    def write(side: tuple = (8, 8), labels: np.ndarray | None = None) -> str:
        images = np.random.default_rng(0).random((60, *side))
        path = tmp_path / "data.npz"
        np.savez(path, images=images, labels=np.arange(60) % 3 if labels is None else labels)
        return str(path)

    return write


def config_of(data: str, **options) -> ClassifyConfig:
    """Two cycles of one pass, 48 examples in batches of 16, ticks of two steps."""
    return ClassifyConfig(**{
        "data": data, "model_args": SMALL, "method": "attent_complex", "epochs": 4,
        "warmup_epochs": 1.0, "total_cycles": 2, "initial_interval": 1, "batch_size": 16,
        "steps_per_tick": 2, "device": "cpu", **options,
    })  # fmt: skip


# --- every program that can be asked for

PROGRAMS = {
    f"{method} {strategy}": {"method": method, "selection_strategy": strategy}
    for method in ("attent_complex", "attent_simple", "full")
    for strategy in ("hard", "soft", "random")
} | {
    "observed": {"scores": "observed"},
    "passes": {"budget": "passes"},
    "incremental": {
        "interval_schedule": "incremental", "max_interval": 2, "ratio_schedule": "incremental",
    },
    "augmented": {"shift": 1, "flip": 0.5, "drop_path": 0.2, "label_smoothing": 0.1},
    "sgd, clipped, accumulated": {"optimizer": "sgd", "clip": 1.0, "accumulate": 2},
    "bf16": {"bf16": True},
    "workers": {"workers": 2},
    "worker processes": {"workers": 2, "worker_processes": True},
    "infobatch": {"method": "infobatch"},
    **{signal: {"signal": signal} for signal in SIGNALS},
}  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_keeps_the_laws_of_stages(npz, program):
    """At the start, and where the tick has most to do: a score or a selection is due."""
    built = build_classify(config_of(npz(), **PROGRAMS[program]))
    tick, state = built.tick, built.state
    assert_stage_laws(tick, state)
    if built.plan.name == "full":
        return
    while not (number(state, "plan", "score_due") or number(state, "plan", "select_due")):
        state = run(tick, state, donate=True)
    assert_stage_laws(tick, state)


def test_what_is_built(npz):
    built = build_classify(config_of(npz()))
    assert (len(built.source), len(built.held_out)) == (48, 12)
    assert built.task.num_classes == 3
    assert built.plan.num_examples == 48
    assert built.plan.budget == number(built.state, "plan", "budget") == 4 * 48
    assert built.signal == "loss"


@pytest.mark.parametrize(
    ("options", "signal"),
    [
        ({"signal": "output_grad_norm"}, "output_grad_norm"),
        ({"scores": "observed"}, "loss"),
        ({"method": "attent_simple"}, "loss"),
        ({"method": "attent_simple", "selection_strategy": "random"}, None),
        ({"selection_strategy": "random"}, None),
        ({"method": "full"}, None),
    ],
    ids=str,
)
def test_which_scores_are_recorded(npz, options, signal):
    built = build_classify(config_of(npz(), **options))
    assert built.signal == signal
    assert signal is None or find(built.state, ("scores", signal)) is not None


def test_the_seed_decides_the_state(npz):
    data = npz()
    first, again, other = (build_classify(config_of(data, seed=seed)).state for seed in (0, 0, 1))
    assert differences(first, again) == []
    assert any(path[0] == "params" for path in differences(first, other))


def test_building_leaves_the_global_random_state_alone(npz):
    def snapshot() -> tuple:
        numpy_state = np.random.get_state()[1].tobytes()  # noqa: NPY002
        return torch.default_generator.get_state().tolist(), numpy_state, random.getstate()

    before = snapshot()
    build_classify(config_of(npz()))
    assert snapshot() == before


def test_digits_and_classes_are_counted():
    built = build_classify(config_of("digits"))
    assert built.task.num_classes == 10
    assert len(built.source) == 1437


def test_more_classes_than_are_found_may_be_asked_for(npz):
    assert build_classify(config_of(npz(), num_classes=5)).task.num_classes == 5


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"selection_strategy": "hard"}, "hard"),
        ({"selection_strategy": "random"}, "random"),
        (
            {"selection_strategy": "soft", "soft_normalization": "sigmoid",
             "gumbel_temperature": 0.5},
            "soft(sigmoid, T=0.5)",
        ),
    ],
)  # fmt: skip
def test_rules(options, name):
    assert rule_of(ClassifyConfig(**options)).name == name


def test_the_paced_method(npz):
    options = {"method": "attent_paced", "signal": "relative_loss", "initial_ratio": 0.5}
    built = build_classify(config_of(npz(), epochs=8, **options))
    first, paced, last = built.plan.phases
    assert (built.plan.name, first.passes, paced.ratio, last.ratio) == ("attent_paced", 1, 0.5, 1.0)
    assert built.plan.budget == 8 * len(built.source)
    assert built.signal == "relative_loss"
    assert built.notes == ()


def test_logit_adjustment_is_by_the_classes_shares_in_training(npz):
    built = build_classify(config_of(npz(), epochs=8, logit_adjustment=0.5))
    labels = built.source.fields["label"]
    shares = torch.bincount(labels).double() / len(labels)
    torch.testing.assert_close(built.task.prior.double(), 0.5 * shares.log())
    assert build_classify(config_of(npz(), epochs=8)).task.prior is None
    with pytest.raises(ConfigError, match=r"logit_adjustment: class 3 of 10 has no training"):
        build_classify(config_of(npz(), epochs=8, logit_adjustment=1.0, num_classes=10))


def test_the_adaptive_method_has_a_signal_an_end_and_a_ratio_of_its_own(npz):
    built = build_classify(config_of(npz(), epochs=8, method="attent_adaptive"))
    last = built.plan.phases[-1]
    assert built.plan.phases[1].until == 0.95
    assert last.ratio == 1.0
    assert built.signal == "relative_loss"
    (rule,) = [stage.note for _, stage in walk(built.tick) if stage.name == "select"]
    assert rule == "hard, 0.3 at random at 0.15 to 0.9 by concentration"
    assert "rank by patient" not in {stage.name for _, stage in walk(built.tick)}
    other = build_classify(
        config_of(npz(), epochs=8, method="attent_adaptive", last_share=0.5, patience=4)
    )
    assert "rank by patient" in {stage.name for _, stage in walk(other.tick)}
    assert other.plan.phases[1].until == 0.5
    assert build_classify(config_of(npz(), epochs=8, method="attent_paced")).plan.phases[
        1
    ].until == pytest.approx(0.875)


def test_infobatch_keeps_what_is_above_the_mean_and_weighs_the_rest_double(npz):
    config = config_of(npz(), epochs=8, method="infobatch")
    built = build_classify(config)
    assert built.signal == "loss"
    assert built.plan.phases[1].until == pytest.approx(0.875)
    assert idle_selection(config)["selection_strategy"].startswith("method is infobatch")
    state = built.state
    while not (number(state, "plan", "select_due") and state["plan", "ratio"] < 1):
        state = run(built.tick, state, donate=True)
    scores = state["scores", "loss"].clone()
    state = run(built.tick, state, donate=True)
    above = scores.double() >= scores.double().mean()
    mask, weight = state["mask"], state["weight"]
    assert mask[above].all()
    assert set(weight[above].tolist()) == {1.0}
    assert int(mask[~above].sum()) == int((~above).sum()) // 2
    assert set(weight[mask & ~above].tolist()) == {2.0}


def test_a_warm_up_is_of_what_is_trained(npz):
    """Two epochs of warm-up are two epochs, of a share of the budget too."""
    given = config_of(npz(), epochs=10, warmup_epochs=2.0, budget_share=0.5, lr=1.0)
    rate = optimizer_of(given).lr
    assert [rate(share) for share in (0.2, 0.4)] == [0.5, 1.0]  # 1 and 2 of its 5 epochs
    with pytest.raises(ConfigError, match=r"below epochs \(10\) x budget_share \(0.2\)"):
        config_of(npz(), epochs=10, warmup_epochs=2.0, budget_share=0.2)


def test_a_share_of_the_budget(npz):
    for method in ("full", "attent_simple", "attent_paced", "attent_adaptive", "infobatch"):
        built = build_classify(config_of(npz(), epochs=8, method=method, budget_share=0.5))
        assert built.plan.budget == 4 * len(built.source)


def test_where_selection_cannot_pay_training_is_plain_and_says_so(npz):
    built = build_classify(config_of(npz(), epochs=1, warmup_epochs=0.0, method="attent_paced"))
    assert built.plan.name == "full"
    assert built.signal is None  # and nothing is observed
    (note,) = built.notes
    assert note.startswith("this is plain training, attent_paced would select nothing: the plan")
    # Of the published methods it is an error, with the arithmetic.
    with pytest.raises(PlanError, match="the plan does not fit"):
        build_classify(config_of(npz(), epochs=1, warmup_epochs=0.0, method="attent_simple"))


# --- folders


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "val"):
        for name, grey in (("dark", 20), ("light", 200)):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(8):
                image = Image.new("RGB", (20, 16 + i), (grey + i,) * 3)
                image.save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def test_images_of_a_folder_are_of_the_size_asked_for(folder):
    built = build_classify(config_of(str(folder), image_size=16))
    assert built.source.fetch(torch.arange(3))["image"].shape == (3, 3, 16, 16)
    assert_stage_laws(built.tick, built.state)


def test_images_of_a_folder_are_of_the_models_size_by_default(folder):
    built = build_classify(config_of(str(folder)))
    assert built.source.fetch(torch.arange(3))["image"].shape == (3, 3, 8, 8)


def test_a_folder_without_the_held_out_split(folder):
    (folder / "val").rename(folder / "test")
    with pytest.raises(ValueError, match=r"no folder .*val; .* found test, train in"):
        build_classify(config_of(str(folder)))


def test_the_first_image_of_a_folder_is_corrupt(folder):
    (folder / "train" / "dark" / "0.png").write_bytes(b"not an image")
    with pytest.raises(ExampleError, match=r"example 0 \(.*dark/0\.png\) cannot be fetched"):
        build_classify(config_of(str(folder)))


# --- what cannot be


def labels_with(example: int, label: int) -> np.ndarray:
    """0, 1, 2, 0, ... but for two examples, so that each class has two."""
    labels = np.arange(60) % 3
    labels[[example, example + 1]] = label
    return labels


def test_labels_above_the_number_of_classes_name_an_example(npz):
    message = (
        r"labels out of range: training example \d+ has label 2; with num_classes 2 labels are 0 "
        r"to 1 \(16 examples are out of range\)"
    )
    with pytest.raises(ConfigError, match=message):
        build_classify(config_of(npz(), num_classes=2))


def test_negative_labels_name_an_example(npz):
    message = r"labels out of range: training example \d+ has label -1; .* labels are 0 to 2"
    labels = np.where(np.arange(60) % 3 == 0, -1, np.arange(60) % 3)
    with pytest.raises(ConfigError, match=message):
        build_classify(config_of(npz(labels=labels)))


def test_the_example_named_is_one_that_has_the_label(npz):
    data = npz(labels=labels_with(7, 9))
    with pytest.raises(ConfigError, match="labels out of range") as raised:
        build_classify(config_of(data, num_classes=3, held_out=0.5))
    example = int(str(raised.value).split("example ")[1].split()[0])
    source = build_classify(config_of(data, num_classes=10, held_out=0.5)).source
    assert source.fields["label"][example] == 9


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"data": "nowhere"}, ConfigError, "there is no nowhere; it is 'digits', 'scenes', a fold"),
        ({"data": __file__}, ConfigError, r"test_build\.py is one file, not a folder; it is"),
        ({"data": "nowhere.npz"}, ConfigError, r"data: there is no nowhere\.npz; it is 'digits'"),
        ({"batch_size": 49}, ValueError, "batch_size 49 is above the 48 training examples"),
        ({"batch_size": 8, "accumulate": 9}, ValueError, "8 cannot be cut into 9 parts"),
        ({"model": "vit_digit"}, ValueError, "no model 'vit_digit' .* did you mean vit_digits"),
        ({"epochs": 2, "total_cycles": 9}, PlanError, "does not fit: .* raise epochs to at least"),
        ({"held_out": 0.01}, ValueError, "held_out"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_is_refused_before_any_training(npz, options, kind, message):
    with pytest.raises(kind, match=message):
        build_classify(config_of(**({"data": npz()} | options)))


def test_images_that_are_not_square(npz):
    with pytest.raises(ConfigError, match="images are 8 x 6; they must be square"):
        build_classify(config_of(npz(side=(8, 6))))


def test_images_smaller_than_the_models_patches(npz):
    with pytest.raises(ValueError, match=r"(?i)image.*patch"):
        build_classify(config_of(npz(), model="vit_tiny_patch16_224", model_args={"depth": 1}))


def test_images_that_patches_do_not_divide_would_lose_their_edge(npz):
    with pytest.raises(ValueError, match=r"(?i)image.*patch"):
        build_classify(config_of(npz(side=(9, 9))))


def test_a_gpu_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="device cuda:1: torch sees no GPU here; use device cpu"):
        device_of("cuda:1")
