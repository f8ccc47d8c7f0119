"""An option that a command does not take: what it takes instead is said."""

from __future__ import annotations

import pytest

from attent.tasks.commands import COMMANDS
from tests.tasks.test_cli import only_an_error

OTHERS = ("resume", "report", "export", "merge", "evaluate", "predict")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "resume run --threads 2",
            "unknown option 'threads'; attent resume takes --allow_previous; a run's threads "
            "stands in its config.yaml, where it may be changed",
        ),
        ("resume run --epochs=2", "unknown option 'epochs'; attent resume takes --allow_previous"),
        (
            "evaluate run --epochs 3",
            "unknown option 'epochs'; attent evaluate takes --data, --batch_size, --best, --device",
        ),
        ("evaluate run --bset", "unknown option 'bset'; did you mean 'best'?"),
        ("predict run a.jpg --device cpu", "'device'; attent predict takes --output_dir"),
        ("report run --output_dir x", "unknown option 'output_dir'; did you mean 'report_dir'?"),
        ("export run --best", "unknown option 'best'; attent export takes --format, --output"),
        ("merge run --format timm", "unknown option 'format'; attent merge takes --output"),
        ("segment --target depth", "unknown option 'target'; it is of attent depth"),
        ("classify --allow_previous", "unknown option 'allow_previous'"),
        ("plan segment --report_dir x", "'report_dir'; did you mean 'report_to'?"),
        ("plan segment --beta 0.9", "'beta'; did you mean 'betas'?"),
        ("depth --headd dpt", "unknown option 'headd'; did you mean 'head'?"),
    ],
)
def test_an_option_of_another_command_is_answered_with_those_of_this_one(attent, words, message):
    error = only_an_error(*attent(*words.split()))
    assert error.strip().endswith(message)


@pytest.mark.parametrize("command", [*COMMANDS, *OTHERS])
def test_no_option_is_its_own_correction(attent, command):
    for option in ("threads", "output", "report_dir", "head", "best", "images", "allow_previous"):
        error = only_an_error(*attent(command, "run", f"--{option}=1"))
        assert f"did you mean {option!r}" not in error


def test_what_is_missing_is_named_without_its_command(attent):
    error = only_an_error(*attent("predict", "run"))
    assert error == "error: the following arguments are required: images\n"
