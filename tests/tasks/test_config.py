from __future__ import annotations

import dataclasses
import re

import pytest
import yaml

from attent.tasks.classification.config import ClassifyConfig
from attent.tasks.cli import main
from attent.tasks.config import (
    RUNTIME,
    ConfigError,
    as_dict,
    did_you_mean,
    from_dict,
    without_effect,
)
from attent.tasks.words import explain, key_lines

FIELDS = [field.name for field in dataclasses.fields(ClassifyConfig)]


class _Started(Exception):
    """Stands for a run that would now start with these options."""

    def __init__(self, config) -> None:
        self.config = config


@pytest.fixture
def config_from(monkeypatch):
    """The options that a command line arrives at."""

    def start(command, config, say):
        raise _Started(config)

    def config_from(*argv: str) -> ClassifyConfig:
        with pytest.raises(_Started) as started:
            main(["classify", *argv])
        return started.value.config

    monkeypatch.setattr("attent.tasks.run.start", start)
    return config_from


def yaml_file(folder, text: str) -> str:
    path = folder / "config.yaml"
    path.write_text(text)
    return str(path)


# --- check

COMPLEX = {"method": "attent_complex"}
IN_SHARE = r"in \(0, 1\], got"
WRONG = [
    *[({name: 0.0}, rf"{name} must be {IN_SHARE} 0.0") for name in
      ("initial_ratio", "final_ratio", "attent_ratio")],
    *[({name: 1.5}, rf"{name} must be {IN_SHARE} 1.5") for name in
      ("initial_ratio", "final_ratio", "attent_ratio", "budget_share")],
    ({"initial_ratio": float("nan")}, rf"initial_ratio must be {IN_SHARE} nan"),
    *[({name: 0}, rf"{name} must be at least 1, got 0") for name in
      ("initial_interval", "max_interval", "total_cycles", "epochs", "batch_size", "accumulate",
       "steps_per_tick", "keep", "score_chunk", "score_batch_size")],
    *[({name: 0.0}, rf"{name} must be above 0, got 0.0") for name in
      ("gumbel_temperature", "eval_every", "save_every")],
    *[({name: 0.0}, rf"{name} must be above 0, or null, got 0.0")
      for name in ("lr", "blr", "worker_timeout")],
    ({"lr": None}, "lr and blr are both null; give one of them"),
    ({"betas": [0.9]}, r"betas must be two numbers in \[0, 1\), got \[0.9\]"),
    ({"betas": [0.9, 1.0]}, r"betas must be two numbers in \[0, 1\), got \[0.9, 1.0\]"),
    ({"lr": float("inf")}, "lr must be above 0, or null, got inf"),
    *[({name: -1}, rf"{name} must be at least 0, got -1") for name in
      ("weight_decay", "min_lr", "shift", "workers")],
    *[({name: 1.0}, rf"{name} must be in \[0, 1\), got 1.0") for name in
      ("label_smoothing", "drop_path", "momentum")],
    *[({"held_out": value}, rf"held_out must be in \(0, 1\), got {value}") for value in (0.0, 1.0)],
    *[({"flip": value}, rf"flip must be in \[0, 1\], got {value}") for value in (-0.1, 1.1)],
    ({"clip": 0.0}, "clip must be above 0, or null, got 0.0"),
    ({"warmup_epochs": -1}, "warmup_epochs must be at least 0, or null, got -1"),
    *[({name: 0}, rf"{name} must be at least 1, or null, got 0") for name in
      ("image_size", "threads")],
    ({"num_classes": 1}, "num_classes must be at least 2, or null, got 1"),
    ({"lr": 0.1, "min_lr": 0.2}, r"min_lr \(0.2\) is above lr \(0.1\)"),
    ({"epochs": 5, "warmup_epochs": 5.0}, r"warmup_epochs \(5\) must be below epochs \(5\)"),
    ({"interval_schedule": "incremental", "initial_interval": 4, "max_interval": 3},
     r"max_interval \(3\) is below initial_interval \(4\)"),
    (COMPLEX | {"scores": "observed", "signal": "last_layer"},
     "scores: observed records loss, relative_loss, loss_drop, grad_norm; signal is last_layer; it "
     "can be measured with scores: fresh"),
    (COMPLEX | {"signal": "relative_loss"},
     "signal relative_loss is observed in training, but scores is fresh here: give scores: "
     "observed"),
    ({"method": "attent_paced", "scores": "fresh"},
     "attent_paced selects by what training observes, but scores is fresh"),
    ({"method": "attent_paced", "first_epochs": 0},
     "attent_paced observes scores in its first_epochs: at least 1, got 0"),
    ({"logit_adjustment": -1.0}, "logit_adjustment must be at least 0, got -1.0"),
    ({"method": "attent_adaptive", "scores": "fresh"},
     "attent_adaptive selects by what training observes, but scores is fresh"),
    ({"method": "attent_adaptive", "selection_strategy": "random", "first_epochs": 0},
     "attent_adaptive observes scores in its first_epochs: at least 1, got 0"),
    ({"method": "infobatch", "selection_strategy": "random", "signal": "last_layer"},
     "infobatch selects by what training observes: loss, .*, grad_norm; signal is last_layer, .*"),
    ({"first_epochs": -1}, "first_epochs must be at least 0, got -1"),
    ({"patience": 0}, "patience must be at least 1, got 0"),
    ({"last_share": 1.0}, r"last_share must be in \[0, 1\), got 1.0"),
    ({"budget": "passes", "budget_share": 0.5},
     "budget_share is of examples or tokens; budget is passes"),
    ({"method": "attent_simple", "signal": "last_layer"},
     "scores: observed records loss, .*, grad_norm; signal is last_layer; .*"),
    ({"method": "attent_simple", "scores": "fresh", "reselect": True},
     "reselect goes by what training observes, but scores is fresh"),
    ({"device": "tpu"}, "device is auto, cpu, cuda or cuda:N, not 'tpu'"),
    ({"device": "cuda:"}, "device is auto, cpu, cuda or cuda:N, not 'cuda:'"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), WRONG, ids=lambda value: str(value)[:50])
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=rf"^{message}$"):
        ClassifyConfig(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"initial_ratio": 1.0, "final_ratio": 1.0, "attent_ratio": 1.0},
        {"flip": 1.0, "shift": 0, "label_smoothing": 0.0, "momentum": 0.0, "weight_decay": 0.0},
        {"min_lr": 1e-3, "lr": 1e-3},
        {"epochs": 1, "warmup_epochs": 0},
        {"interval_schedule": "incremental", "initial_interval": 3, "max_interval": 3},
        {"device": "cuda:1"},
        {"method": "attent_simple", "scores": "observed", "signal": "grad_norm"},
        {"method": "attent_simple", "scores": "fresh", "signal": "last_layer"},
        {"method": "attent_simple", "reselect": True},
        {"method": "attent_paced", "signal": "relative_loss", "last_share": 0.0},
        {"method": "attent_paced", "selection_strategy": "random", "first_epochs": 0},
        {"method": "attent_adaptive", "signal": "last_layer", "scores": "observed"},
        {"method": "attent_adaptive", "patience": 1},
        {"method": "infobatch", "signal": "grad_norm", "last_share": 0.0},
        COMPLEX | {"scores": "observed", "signal": "loss_drop", "budget_share": 1.0},
    ],
    ids=str,
)
def test_the_ends_of_the_ranges_are_accepted(options):
    config = ClassifyConfig(**options)
    assert {name: getattr(config, name) for name in options} == options


@pytest.mark.parametrize(
    "name",
    ["method", "selection_strategy", "ratio_schedule", "interval_schedule", "soft_normalization",
     "signal", "scores", "budget", "optimizer"],
)  # fmt: skip
def test_a_choice_that_there_is_not_is_refused_in_python_too(name):
    with pytest.raises(ConfigError, match=rf"{name}.*sort"):
        ClassifyConfig(**{name: "sort"})


@pytest.mark.parametrize(("name", "value"), [("lr", "1e-3"), ("epochs", "60"), ("epochs", 2.5)])
def test_a_value_of_another_type_is_refused_in_python_too(name, value):
    """A hand-edited config.yaml comes this way; PyYAML reads ``1e-3`` as a string."""
    with pytest.raises(ConfigError, match=name):
        from_dict(ClassifyConfig, {name: value}, "config.yaml")


# --- without_effect

COMPLEX_ONLY = {
    "initial_ratio": 0.5, "final_ratio": 0.5, "ratio_schedule": "incremental",
    "initial_interval": 2, "max_interval": 12, "interval_schedule": "incremental",
    "total_cycles": 3, "budget": "passes",
}  # fmt: skip
IDLE = [
    (COMPLEX | {"max_interval": 7}, "max_interval = 7", "interval_schedule is fixed"),
    (COMPLEX | {"attent_ratio": 0.5}, "attent_ratio = 0.5", "method is attent_complex"),
    *[(COMPLEX | {name: value}, f"{name} = ", "selection_strategy is hard")
      for name, value in {"gumbel_temperature": 2.0, "soft_normalization": "sigmoid"}.items()],
    (COMPLEX | {"score_chunk": 8}, "score_chunk = 8", "only signal vmap_grad_norm maps by vmap"),
    ({"momentum": 0.5}, "momentum = 0.5", "optimizer is adamw"),
    *[(COMPLEX | {"selection_strategy": "random", name: value}, name, "random asks no scores")
      for name, value in {"signal": "grad_norm", "scores": "observed"}.items()],
    ({"method": "full", "selection_strategy": "soft"}, "selection_strategy", "method is full"),
    *[({"method": method, name: value}, name, f"method is {method}")
      for method in ("full", "attent_simple") for name, value in COMPLEX_ONLY.items()],
    *[({"method": "full", name: value}, name, "method is full")
      for name, value in {"signal": "grad_norm", "scores": "observed", "reselect": True}.items()],
    (COMPLEX | {"reselect": True}, "reselect = True", "method is attent_complex"),
    ({"method": "attent_simple", "reselect": True, "selection_strategy": "random"}, "reselect",
     "random asks no scores"),
    ({"worker_processes": True}, "worker_processes = True", "workers is 0"),
    ({"worker_timeout": 60}, "worker_timeout = 60", "workers is 0"),
    ({"image_size": 16}, "image_size = 16", "digits"),
    ({"data": "images.npz", "image_size": 16}, "image_size = 16", "npz"),
    ({"data": "images", "held_out": 0.5}, "held_out = 0.5", "folder"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "named", "why"), IDLE, ids=lambda value: str(value)[:60])
def test_an_option_that_does_nothing_here_is_said_to(options, named, why):
    said = [line for line in without_effect(ClassifyConfig(**options)) if line.startswith(named)]
    assert len(said) == 1
    assert "has no effect: " in said[0]
    assert why in said[0]


def test_it_is_said_which_methods_would_use_an_option():
    (said,) = without_effect(ClassifyConfig(method="full", final_ratio=0.5))
    assert said.endswith("method is full; attent_complex, attent_paced would use it")


@pytest.mark.parametrize(
    "options",
    [
        {},
        COMPLEX,
        {"method": "attent_simple", "attent_ratio": 0.5},
        {"method": "attent_simple", "scores": "fresh", "signal": "last_layer"},
        {"method": "attent_simple", "signal": "grad_norm", "reselect": True},
        {"method": "attent_simple", "selection_strategy": "soft", "gumbel_temperature": 0.5},
        COMPLEX | {"interval_schedule": "incremental", "max_interval": 12, "initial_interval": 2},
        COMPLEX | {"selection_strategy": "soft", "gumbel_temperature": 2.0},
        COMPLEX | {"selection_strategy": "soft", "soft_normalization": "sigmoid"},
        COMPLEX | {"selection_strategy": "random"},
        {"optimizer": "sgd", "momentum": 0.5},
        COMPLEX | {"signal": "vmap_grad_norm", "score_chunk": 8},
        {"data": "images", "image_size": 64},
        {"workers": 1, "worker_processes": True, "worker_timeout": None},
        {"skip_unreadable": True},
    ],
    ids=str,
)
def test_options_that_do_something_are_not_warned_of(options):
    assert without_effect(ClassifyConfig(**options)) == []


# --- explain, key_lines, did_you_mean


@pytest.fixture
def file(tmp_path):
    return yaml_file(tmp_path, "# a comment\nepochs: 30\n\ninitial_ratio: 1.5\nmodel_args:\n  a: 1")


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"]])
def test_explain_says_the_line_of_the_file(file, form):
    argv = ["classify", *(word.format(file) for word in form)]
    lines = explain("initial_ratio must be in (0, 1], got 1.5", argv).splitlines()
    assert lines[1:] == [f"  initial_ratio: set in {file}, line 4"]


@pytest.mark.parametrize("flag", [["--initial_ratio", "2"], ["--initial_ratio=2"]])
@pytest.mark.parametrize("first", [True, False])
def test_explain_says_the_flag_which_wins_over_the_file(file, flag, first):
    argv = [*flag, "--config", file] if first else ["--config", file, *flag]
    lines = explain("initial_ratio must be in (0, 1], got 2.0", argv).splitlines()
    assert lines[1:] == ["  initial_ratio: set by the flag --initial_ratio"]


def test_explain_says_where_every_option_was_set_that_the_message_names(file):
    argv = ["--config", file, "--warmup_epochs", "40"]
    lines = explain("warmup_epochs (40) must be below epochs (30)", argv).splitlines()
    assert sorted(lines[1:]) == [
        f"  epochs: set in {file}, line 2",
        "  warmup_epochs: set by the flag --warmup_epochs",
    ]


def test_explain_says_nothing_of_defaults_paths_and_other_words(file):
    message = "no such thing at /tmp/epochs; epochs_done, initial_ratios"
    assert explain(message, ["--config", file]) == message


def test_key_lines_counts_from_one_and_stays_at_the_top_level(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("a: 1\nb:\n  c: 2\nd: 3\n")
    assert key_lines(path) == {"a": 1, "b": 2, "d": 4}


@pytest.mark.parametrize("content", [b"a: [1", b"- a\n- b", b"", b"\xff\xfe\x00"], ids=repr)
def test_key_lines_of_a_file_that_is_no_mapping(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    assert key_lines(path) == {}


def test_did_you_mean():
    assert did_you_mean("intial_ratio", FIELDS) == "; did you mean 'initial_ratio'?"
    assert did_you_mean("qqqq", FIELDS) == ""


# --- one dataclass, three ways


def test_python_yaml_and_flags_give_the_same_options(tmp_path, config_from):
    wanted = ClassifyConfig(
        epochs=20, lr=1.5e-4, clip=1.0, bf16=True, model_args={"depth": 1}, held_out=0.25
    )
    text = "epochs: 20\nlr: 1.5e-4\nclip: 1.0\nbf16: true\nmodel_args: {depth: 1}\nheld_out: 0.25\n"
    flags = [
        "--epochs",
        "20",
        "--lr",
        "1.5e-4",
        "--clip",
        "1",
        "--bf16",
        "true",
        "--held_out",
        "0.25",
    ]
    assert config_from("--config", yaml_file(tmp_path, text)) == wanted
    assert config_from(*flags, "--model_args", '{"depth": 1}') == wanted
    assert from_dict(ClassifyConfig, yaml.safe_load(text), "test") == wanted


def test_no_options_are_the_defaults(config_from):
    assert config_from() == ClassifyConfig()


@pytest.mark.parametrize("order", ["flag first", "file first"])
def test_flags_win_over_the_file_wherever_they_stand(tmp_path, config_from, order):
    file, flag = ["--config", yaml_file(tmp_path, "epochs: 20\nlr: 0.1\n")], ["--epochs", "30"]
    config = config_from(*(flag + file if order == "flag first" else file + flag))
    assert (config.epochs, config.lr) == (30, 0.1)


@pytest.mark.parametrize("text", ["1.5e-4", "1e-3", "2E-2", "1", ".5"])
def test_numbers_in_yaml_are_floats_however_they_are_written(tmp_path, config_from, text):
    lr = config_from("--config", yaml_file(tmp_path, f"lr: {text}\n")).lr
    assert isinstance(lr, float)
    assert lr == float(text)


def test_null_in_yaml_is_none(tmp_path, config_from):
    text = "clip: null\nthreads: ~\nmodel_args: null\n"
    assert config_from("--config", yaml_file(tmp_path, text)) == ClassifyConfig()


def test_options_survive_yaml():
    config = ClassifyConfig(lr=1e-5, min_lr=1e-7, model_args={"depth": 1}, data="a: b # c", clip=2)
    text = yaml.safe_dump(as_dict(config))
    assert from_dict(ClassifyConfig, yaml.safe_load(text), "test") == config


def test_an_unknown_key_is_answered_with_the_nearest():
    message = "run/config.yaml: unknown option 'intial_ratio'; did you mean 'initial_ratio'"
    with pytest.raises(ConfigError, match=message):
        from_dict(ClassifyConfig, {"intial_ratio": 0.3}, "run/config.yaml")


def test_runtime_options_are_options():
    assert set(FIELDS) >= RUNTIME


def test_every_option_is_explained_in_the_help(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["classify", "--help"])
    text = capsys.readouterr().out
    said = dict(
        re.findall(
            r"^  --(\w+)(?: \S+, --\w+\+)? \S+\s+(\S.*?) ?\(type: .*default: .*\)$", text, re.M
        )
    )
    assert set(FIELDS) - set(said) == set()
    assert [name for name in FIELDS if len(said[name].split()) < 2] == []
