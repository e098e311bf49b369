import os
import signal
import subprocess
import sys
import threading

import pytest

from lrdist_keras import interrupts


def test_the_first_one_waits_and_the_second_does_not(capfd):
    before = signal.getsignal(signal.SIGINT)
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts.kept_for_steps():
        interrupts.check()
        os.kill(os.getpid(), signal.SIGINT)
        done.append("what was begun")
        interrupts.check()
        done.append("never")
    assert done == ["what was begun"] and signal.getsignal(signal.SIGINT) is before
    assert "press Ctrl-C again" in capfd.readouterr().err
    interrupts.check()  # forgotten with the block
    with pytest.raises(KeyboardInterrupt), interrupts.kept_for_steps():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        done.append("never")
    assert done == ["what was begun"]


def test_it_is_not_lost_in_the_garbage_collection():
    """An exception raised in a finalizer is printed, and the program goes on."""

    class Finalized:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), interrupts.kept_for_steps():
        Finalized()
        interrupts.check()


def test_other_threads_may_use_it(capfd):
    def other():
        with interrupts.kept_for_steps():
            interrupts.check()

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_a_comparison_that_is_interrupted_goes_on(toml, tmp_path):
    (tmp_path / "c.toml").write_text(toml)
    # Many small steps: it must end between two of them, not after the run.
    long = [
        "--set", "training.epochs=2000", "--set", "seeds=[0]",
        "--set", "training.steps_per_call=4",
    ]  # fmt: skip
    program = "from lrdist_keras.cli import main; main()"
    command = [sys.executable, "-u", "-c", program, "compare", str(tmp_path / "c.toml")]
    out = ["--out", str(tmp_path / "out")]
    with subprocess.Popen(
        [*command, *long, *out], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        for line in process.stdout:
            if line.lstrip().startswith("Labels"):  # the next thing is training
                break
        timer = threading.Timer(8, process.send_signal, [signal.SIGINT])
        timer.start()
        _, errors = process.communicate(timeout=200)
    assert process.returncode == 130, errors
    assert "press Ctrl-C again" in errors and "interrupted. What is finished" in errors
    assert "Traceback" not in errors
    # The folder can be started again, with what is finished.
    short = ["--set", "training.epochs=1", "--set", "seeds=[0]"]
    again = subprocess.run(
        [*command, *short, *out], capture_output=True, text=True, timeout=200
    )
    assert again.returncode == 0, again.stderr
