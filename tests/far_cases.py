"""What a script does whose processes are on other hosts: ``python far_cases.py NAME``; exit status 0 if it went well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import multihost as mp

USR1 = signal.SIGUSR1


def signal_parent(parent: int, signum: int) -> None:
    assert parent == mp.parent_process().pid  # type: ignore[union-attr]
    os.kill(parent, signum)


def signal_others() -> int:
    """How a process ends that was started here and is sent a signal."""
    os.kill(os.getpid(), 0)
    with subprocess.Popen(["sleep", "60"]) as other:
        os.kill(other.pid, signal.SIGTERM)
    return other.returncode


def signals() -> None:
    """A process and a task signal the script."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [USR1])
    process = mp.Process(target=signal_parent, args=(os.getpid(), USR1))
    process.start()
    assert signal.sigtimedwait([USR1], 30) is not None
    with mp.Pool(1) as pool:
        pool.apply(os.kill, (os.getpid(), 0))
        pool.apply(os.kill, (os.getpid(), USR1))
        assert signal.sigtimedwait([USR1], 30) is not None
        assert pool.apply(signal_others) == -signal.SIGTERM
    process.join()
    assert process.exitcode == 0
    interrupting = mp.Process(target=signal_parent, args=(os.getpid(), signal.SIGINT))
    try:
        interrupting.start()
        mp.Event().wait(30)
    except KeyboardInterrupt:
        interrupting.join()
        assert interrupting.exitcode == 0
    else:
        raise AssertionError("it was not interrupted")


if __name__ == "__main__":
    globals()[sys.argv[1]]()
