"""Processes: what multiprocessing's do, on this machine and on a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from types import BuiltinFunctionType

import pytest
from scripts import environment, script, write
from sites import Site

import multihost as mp
from multihost.pool import Pool
from multihost.process import Process

#: Seconds after which a process that should have ended has not.
LIMIT = 20.0


def leave(how: object) -> None:
    sys.exit(how)  # type: ignore[arg-type]


def fail() -> None:
    raise ValueError("this one fails")


def send_self(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(LIMIT)


def be_named(name: str, authkey: bytes) -> None:
    process, parent = mp.current_process(), mp.parent_process()
    assert process.authkey == authkey
    assert process.name == name
    assert process.daemon
    assert process.pid == os.getpid()
    assert isinstance(process, Process)
    assert parent is not None
    assert parent.name == "MainProcess"
    assert parent.is_alive()
    assert not mp.active_children()
    sys.exit(11)


class Counting(Process):
    def __init__(self, number: int, address: str) -> None:
        super().__init__(address=address)
        self.number = number

    def run(self) -> None:
        sys.exit(self.number)


def started(address: str, target: Callable[..., object], *args: object, **options: object) -> Process:
    process = Process(target=target, args=args, address=address, **options)  # type: ignore[arg-type]
    process.start()
    return process


@pytest.mark.parametrize(
    ("target", "args", "exitcode"),
    [
        (leave, (0,), 0),
        (leave, (7,), 7),
        (leave, (None,), 0),
        (leave, ("some text",), 1),
        (fail, (), 1),
        (send_self, (signal.SIGTERM,), -signal.SIGTERM),
        (send_self, (signal.SIGKILL,), -signal.SIGKILL),
        (lambda: sys.exit(5), (), 5),
    ],
)
def test_the_exit_code_tells_how_it_ended(
    address: str, target: Callable[..., object], args: tuple[object, ...], exitcode: int
) -> None:
    process = started(address, target, *args)
    process.join(LIMIT)
    assert process.exitcode == exitcode
    assert not process.is_alive()
    process.close()


def test_a_process_knows_who_it_is(address: str) -> None:
    key = bytes(mp.current_process().authkey)
    process = started(address, be_named, "somebody", key, name="somebody", daemon=True)
    assert process in mp.active_children()
    process.join(LIMIT)
    assert process.exitcode == 11
    assert process.pid != os.getpid()
    assert process.host
    assert process not in mp.active_children()


def test_run_may_be_overridden(address: str) -> None:
    process = Counting(4, address)
    process.start()
    process.join(LIMIT)
    assert process.exitcode == 4


def test_terminate_and_kill_end_it(address: str) -> None:
    for end, number in ((Process.terminate, signal.SIGTERM), (Process.kill, signal.SIGKILL)):
        process = started(address, time.sleep, 60)
        assert process.is_alive()
        process.join(0.05)
        assert process.exitcode is None
        end(process)
        process.join(LIMIT)
        assert process.exitcode == -number


def test_fifty_at_once_beside_the_slots(address: str) -> None:
    processes = [started(address, time.sleep, 60) for _ in range(50)]
    assert len({(each.host, each.pid) for each in processes}) == 50
    sentinels = [each.sentinel for each in processes]
    assert wait(sentinels, 0) == []
    processes[17].kill()
    assert wait(sentinels, LIMIT) == [processes[17].sentinel]
    for each in processes:
        each.kill()
    for each in processes:
        each.join(LIMIT)
        assert each.exitcode == -signal.SIGKILL
        each.close()


@pytest.mark.local
def test_misuse_is_told_as_multiprocessing_tells_it(address: str) -> None:
    process = Process(target=time.sleep, args=(60,), address=address)
    assert "initial" in repr(process)
    assert process.exitcode is None
    with pytest.raises(ValueError, match="process not started"):
        _ = process.sentinel
    with pytest.raises(AssertionError, match="can only join a started process"):
        process.join()
    process.start()
    with pytest.raises(AssertionError, match="cannot start a process twice"):
        process.start()
    with pytest.raises(ValueError, match="Cannot close a process while it is still running"):
        process.close()
    assert f"pid={process.pid}" in repr(process)
    process.kill()
    process.join(LIMIT)
    assert "stopped exitcode=-SIGKILL" in repr(process)
    process.close()
    with pytest.raises(ValueError, match="process object is closed"):
        process.is_alive()


def nest(depth: int) -> None:
    if depth:
        process = mp.Process(target=nest, args=(depth - 1,))
        process.start()
        assert process.name == f"{mp.current_process().name}:1"
        process.join(LIMIT)
        sys.exit((process.exitcode or 0) + 1)


def test_processes_start_processes(address: str) -> None:
    process = started(address, nest, 3)
    process.join(LIMIT)
    assert process.exitcode == 3


def start_one() -> int | None:
    process = mp.Process(target=leave, args=(6,))
    process.start()
    process.join(LIMIT)
    return process.exitcode


def test_tasks_of_a_pool_start_processes(make_pool: Callable[..., Pool]) -> None:
    assert make_pool(1).apply(start_one) == 6


def in_a_fork(process: Process) -> str:
    """What a forked process is told about a process of this one's."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            process.join()
        except AssertionError as error:
            os.write(writer, f"{error}; {process!r}; {mp.active_children()}".encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    with open(reader) as told:
        os.close(writer)
        return told.read()


@pytest.mark.local
def test_a_forked_process_has_no_such_children(address: str) -> None:
    process = started(address, time.sleep, 60)
    shown = f"<Process name={process.name!r} pid={process.pid} parent={os.getpid()} unknown>"
    assert in_a_fork(process) == f"can only join a child process; {shown}; []"
    assert process.is_alive()
    process.kill()
    process.join(LIMIT)


def tell_of_parent(path: str) -> None:
    parent = mp.parent_process()
    assert parent is not None
    Path(path).write_text(f"{parent.is_alive()} ")
    parent.join(LIMIT)
    with open(path, "a") as file:
        file.write(f"{parent.is_alive()}")


def start_one_and_die(path: str) -> None:
    mp.Process(target=tell_of_parent, args=(path,)).start()
    while not os.path.exists(path) or not Path(path).read_text():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt(parent: int) -> None:
    assert isinstance(os.kill, BuiltinFunctionType), "here it is the system's own"
    os.kill(parent, signal.SIGINT)


def test_a_process_of_this_host_signals_its_parent_as_ever(address: str) -> None:
    process = Process(target=interrupt, args=(os.getpid(),), address=address)
    with pytest.raises(KeyboardInterrupt):
        process.start()
        time.sleep(20.0)
    process.join()
    assert process.exitcode == 0


def test_a_process_learns_that_its_parent_is_gone(address: str, tmp_path: Path) -> None:
    path = tmp_path / "told"
    process = started(address, start_one_and_die, str(path))
    process.join(LIMIT)
    assert process.exitcode == -signal.SIGKILL
    deadline = time.monotonic() + LIMIT
    while path.read_text() != "True False" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.read_text() == "True False"


# -- hosts and brokers that are lost -------------------------------------------------------------------


def test_a_process_outlives_a_broker_and_ends_with_its_host(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    worker = site.worker()
    process, other = (started(site.address, time.sleep, 60) for _ in range(2))
    assert process.pid
    assert other.pid
    site.restart()
    other.terminate()
    other.join(LIMIT)
    assert other.exitcode == -signal.SIGTERM
    worker.signal(signal.SIGKILL)
    process.join(LIMIT)
    assert process.exitcode == -signal.SIGKILL
    assert "was lost" in caplog.text


# -- scripts -------------------------------------------------------------------------------------------

SCRIPT = """
    import os, sys, time
    import multihost as mp

    FACTOR = 2

    class Leaver(mp.Process):
        def run(self):
            sys.exit(FACTOR * 10 + self.extra)

    def tell(path, text):
        time.sleep(0.2)
        with open(path, "a") as file:
            file.write(text)

    if __name__ == "__main__":
        FACTOR = 3
        leaver = Leaver(name="leaver")
        leaver.extra = 4
        also = mp.Process(target=lambda: sys.exit(print("hello") or FACTOR))
        leaver.start(), also.start()
        leaver.join(), also.join()
        print(leaver.exitcode, also.exitcode)
        mp.Process(target=time.sleep, args=(60,), daemon=True).start()
        mp.Process(target=tell, args=(sys.argv[1], "joined")).start()
"""


def test_a_script_joins_its_processes_at_its_end_and_ends_daemons(address: str, tmp_path: Path) -> None:
    path = tmp_path / "told"
    settings = {"MULTIHOST_BROKER": address, "MULTIHOST_KEYS": os.environ.get("MULTIHOST_KEYS", "")}
    out = script(tmp_path, SCRIPT, str(path), env=settings if address else None)
    # What a process has printed is there when it is joined.
    assert out == "hello\n34 3\n"
    assert path.read_text() == "joined"


def test_a_socket_goes_to_a_process_of_this_machine(tmp_path: Path) -> None:
    text = """
        import socket
        import multihost as mp

        def echo(connection):
            connection.sendall(connection.recv(5)[::-1])

        if __name__ == "__main__":
            ours, theirs = socket.socketpair()
            with ours, theirs:
                mp.Process(target=echo, args=(theirs,)).start()
                ours.sendall(b"hello")
                print(ours.recv(5))
    """
    assert script(tmp_path, text) == "b'olleh'\n"


@pytest.mark.parametrize("waits", ["process.join()", "time.sleep(60)"])
def test_ctrl_c_reaches_the_processes_of_a_script(waits: str, tmp_path: Path) -> None:
    text = f"""
        import sys, time
        import multihost as mp

        def work():
            # Not where the script writes, too: their lines would mix.
            sys.stderr = open({str(tmp_path / "told")!r}, "w", buffering=1)
            print("begun", flush=True)
            time.sleep(60)

        if __name__ == "__main__":
            process = mp.Process(target=work)
            process.start()
            {waits}
    """
    write(tmp_path, {"script.py": text})
    command = [sys.executable, tmp_path / "script.py"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment(), text=True, **pipes) as script:  # type: ignore[call-overload]
        assert script.stdout is not None
        assert script.stdout.readline() == "begun\n"
        script.send_signal(signal.SIGINT)
        _, told = script.communicate(timeout=LIMIT)
    assert script.returncode == -signal.SIGINT
    assert told.count("\nKeyboardInterrupt") == 1
    told = (tmp_path / "told").read_text()
    assert told.startswith("Process Process-1:\n")
    assert told.count("\nKeyboardInterrupt") == 1
