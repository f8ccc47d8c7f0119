"""What a run says where it ends before its end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch.distributed as dist

from attent.tasks import cli
from attent.tasks.lost import LostProcessError, noticing_the_lost, terminable
from tests.tasks.test_cli import TINY_FLAGS

CLOSED = "[/src/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:7"

TEXTS = (
    CLOSED,
    "[/src/gloo/gloo/transport/tcp/pair.cc:301] readv [::1]:7: Connection reset by peer",
    "[/src/gloo/gloo/transport/tcp/pair.cc:255] writev [::1]:7: Broken pipe",
    "[/src/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms for recv",
    "[/src/gloo/gloo/transport/tcp/pair.cc:72] what it may say one day",
    "NCCL error: remote process exited or there was a network error",
    "Wait timeout",
    "Socket Timeout",
    "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown?",
)


@pytest.fixture
def two(monkeypatch):
    """As in one of two processes."""
    monkeypatch.setenv("WORLD_SIZE", "2")


@pytest.fixture
def unheard():
    """SIGTERM ends nothing, also where what is tested does not take it."""
    former = signal.signal(signal.SIGTERM, lambda number, frame: None)
    yield
    signal.signal(signal.SIGTERM, former)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_said_of_others_that_are_gone(text, two):
    with pytest.raises(LostProcessError) as told, noticing_the_lost("runs/a"):
        raise RuntimeError(f"{text}\nand where")
    assert str(told.value) == (
        "another process of this run is gone; attent resume runs/a goes on from what was saved "
        f"last ({text})"
    )


@pytest.mark.parametrize("kind", [dist.DistNetworkError, dist.DistStoreError])
def test_what_the_store_says_of_them(kind, two):
    error = kind("no answer")
    with pytest.raises(LostProcessError, match=r"\(no answer\)$"), noticing_the_lost("runs/a"):
        raise error


def test_the_folder_is_named_once_it_is_known(two):
    unknown, known = r"nothing was done yet: start it again", r"attent resume runs/a goes on"
    with pytest.raises(LostProcessError, match=unknown), noticing_the_lost():
        raise RuntimeError(CLOSED)
    outer = noticing_the_lost()
    with pytest.raises(LostProcessError, match=known), outer, noticing_the_lost("runs/a"):
        raise RuntimeError(CLOSED)


def test_other_errors_are_let_through(two, monkeypatch):
    with pytest.raises(RuntimeError, match=r"^mat1 and mat2"), noticing_the_lost("runs/a"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    monkeypatch.delenv("WORLD_SIZE")  # alone there is nobody to lose
    with pytest.raises(RuntimeError) as told, noticing_the_lost("runs/a"):
        raise RuntimeError(CLOSED)
    assert str(told.value) == CLOSED


def test_a_process_that_is_ended_says_what_resumes_its_run(unheard):
    outer, inner = noticing_the_lost(), noticing_the_lost("runs/a")
    with pytest.raises(KeyboardInterrupt, match=r"^attent resume runs/a$"):
        within(lambda: within(terminate, inner), outer)
    terminate()  # as it was before


def within(act: Callable[[], None], noticing: AbstractContextManager[None]) -> None:
    with terminable(), noticing:
        act()


def test_what_was_noticed_is_said_first(two, unheard):
    """The launcher ends the process for the same reason, wherever it then is."""

    def notice() -> None:
        try:
            with noticing_the_lost("runs/a"):
                try:
                    raise RuntimeError(CLOSED)
                finally:
                    terminate()
        finally:
            terminate()

    with pytest.raises(LostProcessError):
        within(notice, noticing_the_lost())


def test_another_error_does_not_keep_a_process_from_being_ended(two, unheard):
    def work() -> None:
        try:
            raise ValueError("of no account")
        except ValueError:
            terminate()

    with pytest.raises(KeyboardInterrupt):
        within(work, noticing_the_lost())


def test_signals_are_the_main_threads(unheard):
    met: list[str] = []

    def work() -> None:
        with terminable():
            met.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert met == ["done"]


@pytest.mark.parametrize("where", ["start", "write_report"])
def test_the_command_line_says_it(where, attent, monkeypatch):
    """Before the folder is known, and when all is done but the report."""
    from attent.tasks import run
    from attent.tasks.report import page

    monkeypatch.setattr(
        run if where == "start" else page, where, lambda *args: os.kill(os.getpid(), signal.SIGTERM)
    )
    status, _, told = attent("classify", *TINY_FLAGS, "--output_dir", "out")
    assert status == cli.EXIT_INTERRUPTED
    end = "attent resume RUN" if where == "start" else "attent resume out"
    assert told.splitlines()[-1] == (
        f"stopped at once; what was saved last is whole: {end} goes on from there"
    )


def test_the_command_line_says_who_is_gone_before_it_ends(attent, monkeypatch, two):
    from attent.tasks import run

    def start(*args: object) -> None:
        with noticing_the_lost("runs/a"):
            raise RuntimeError(CLOSED)

    say, told = cli.say, []

    def slowly(message: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        told.append(message)
        say(message)

    monkeypatch.setattr(run, "start", start)
    monkeypatch.setattr(cli, "say", slowly)
    status, _, _ = attent("classify", *TINY_FLAGS, "--output_dir", "out")
    assert status == cli.EXIT_LOST
    assert told[-1].startswith("error: another process of this run is gone; attent resume runs/a")
