"""Ctrl-C at a prompt that has just appeared."""

import os
import signal
import sys
import threading
import time

import pytest

from numpy_gpt2.cli.interrupts import interruptible_prompt

# Ctrl-C comes once the prompt is shown, before readline waits for a key: sent in C, since Python would notice at once.
WITH_CTRL_C = """
import ctypes, functools, readline, runpy, sys
del sys.argv[0]
readline.set_pre_input_hook(functools.partial(ctypes.CDLL(None)["raise"], {signal}))
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="terminals are POSIX's")
@pytest.mark.parametrize("command, answer", [(["step", "Once"], r"step> (\^C)?\r\n"),
                                             (["generate", "--interactive"], "\nstopped; /quit or Ctrl-D exits")])
def test_ctrl_c_is_noticed_as_soon_as_a_prompt_appears(command, answer):
    pytest.importorskip("readline")
    pexpect = pytest.importorskip("pexpect", reason="a terminal needs pexpect (the extra `test`)")
    program = WITH_CTRL_C.format(signal=int(signal.SIGINT))
    child = pexpect.spawn(sys.executable, ["-c", program, f"numpy_gpt2.{command[0]}", *command[1:]], encoding="utf-8",
                          timeout=30, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    child.expect(answer)
    child.close(force=True)


@pytest.mark.skipif(os.name == "nt", reason="timers of POSIX")
def test_a_timer_of_the_caller_goes_on_while_a_prompt_waits():
    rings = []
    before = signal.signal(signal.SIGALRM, lambda *_: rings.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with interruptible_prompt():
            time.sleep(0.2)
        assert rings == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_prompt_can_wait_in_a_thread_where_no_signal_is_handled():
    done = []

    def wait():
        with interruptible_prompt():
            done.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    assert done == [True]
