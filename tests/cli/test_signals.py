"""SIGTERM and SIGHUP end a command as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lpjax._files import replacing as _replacing
from lpjax._files.signals import Stopped, stopped_by_signals
from lpjax.cli._notes import ends_by_signals


@pytest.fixture(autouse=True)
def default_handlers() -> Iterator[None]:
    """What a terminal's processes have; under nohup SIGHUP is ignored."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def status_of(main: Callable[[], None]) -> int:
    with pytest.raises(SystemExit) as caught:
        ends_by_signals()(main)()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_cleans_up_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str):
    number = getattr(signal, name)

    def main() -> None:
        with _replacing.replacing_folder(tmp_path / "out", False) as staging:
            (staging / "half").touch()
            os.kill(os.getpid(), number)
            time.sleep(60)

    assert status_of(main) == 128 + number
    assert capsys.readouterr().err == f"stopped by {name}; nothing is left half written\n"
    assert not any(tmp_path.iterdir())


def test_an_exception_of_compiled_code_in_its_place():
    def main() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except Stopped:
            raise RuntimeError("INTERNAL: a callback failed") from None

    assert status_of(main) == 143


def test_a_signal_that_a_destructor_swallows_comes_again():
    class Loud:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    def main() -> None:
        Loud()
        time.sleep(60)

    assert status_of(main) == 143


def test_a_command_that_is_done_stays_so():
    def main() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except Stopped:
            sys.exit(0)

    assert status_of(main) == 0


def test_others_handlers_stay():
    def own(*_: object) -> None:
        seen.append(1)

    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, own)
    try:
        with stopped_by_signals() as received:
            os.kill(os.getpid(), signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as by nohup
        with stopped_by_signals() as received:
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (seen, received) == ([1], [])


def test_other_threads_set_no_handlers():
    handlers = []

    def run() -> None:
        with stopped_by_signals():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [signal.SIG_DFL]


def test_a_second_signal_ends_at_once():
    code = (
        "import os, signal, time\nfrom lpjax.cli._notes import ends_by_signals\n"
        "@ends_by_signals()\ndef main():\n"
        " try:\n  os.kill(os.getpid(), signal.SIGTERM)\n  time.sleep(60)\n"
        " finally:\n  print('cleaning', flush=True)\n  os.kill(os.getpid(), signal.SIGTERM)\n  time.sleep(60)\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "cleaning\n"), done.stderr
