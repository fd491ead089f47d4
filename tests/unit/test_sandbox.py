"""The sandbox by programs that try to get out of it; all of them are run for real."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spice_select.errors import ResourceError
from spice_select.evaluation import sandbox, sandbox_kernel
from spice_select.evaluation.code import Outcome, SandboxRunner
from spice_select.evaluation.sandbox import Ended, Limits, layers, run_program

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not sandbox_kernel.supported(), reason="generated code is only run on Linux"
)

SHORT = Limits(wall_s=1.5, cpu_s=8)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No process of a sandbox and no folder of it outlives its program."""
    before = set(Path(tempfile.gettempdir()).glob("spice-select-*"))
    yield
    assert set(Path(tempfile.gettempdir()).glob("spice-select-*")) <= before
    assert not [pid for pid in children() if "sandbox_child" in command(pid)]


def children() -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.append(int(status.parent.name))
    return found


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def outcome(program: str, limits: Limits | None = None) -> Outcome:
    return SandboxRunner(limits)([textwrap.dedent(program)])[0]


def ended(program: str, limits: Limits | None = None) -> Ended:
    return run_program(textwrap.dedent(program), limits)


def test_a_right_program_passes_and_a_wrong_one_fails_with_its_reason():
    right = """
        def double(x):
            return 2 * x
        assert double(4) == 8
        assert double("ä€😀") == "ä€😀ä€😀"
    """
    assert outcome(right) == Outcome(True, "passed", "")
    assert outcome("assert 1 + 1 == 3, 'sums'") == Outcome(False, "failed", "AssertionError: sums")
    assert outcome("def f(:\n  pass").detail.startswith("SyntaxError")
    assert outcome("raise ValueError('ä€😀')").detail == "ValueError: ä€😀"
    assert outcome("undefined").status == "failed"


def test_the_layers_are_told():
    assert {"limits", "files (landlock)", "system calls (seccomp)"} <= set(layers())


@pytest.mark.parametrize(
    "program",
    [
        "import sys\nsys.exit(0)\nassert False",
        "import os\nos._exit(0)",
        "raise SystemExit",
        "quit()",
        "import os, atexit\natexit.register(print, 'passed')\nos._exit(0)",
        "import os\nos.close(0)\nos.closerange(3, 64)\nassert False",
        "print('passed')\nraise KeyboardInterrupt",
        "import sys\nsys.exit = lambda *a: None\ndel sys.modules['__main__']\nassert False",
    ],
)
def test_ending_before_the_checks_is_no_pass(program: str):
    found = outcome(program)
    assert (found.passed, found.status) == (False, "failed"), found


def test_a_forked_child_cannot_pass_for_a_parent_that_fails():
    found = outcome("import os\nif os.fork():\n    raise AssertionError")
    assert not found.passed


def test_changing_the_functions_of_the_interpreter_changes_nothing():
    spoiled = """
        import builtins, os, sys
        os.write = os.read = os._exit = os.getpid = None
        builtins.compile = builtins.exec = builtins.open = None
        sys.stdout = sys.stderr = None
    """
    assert outcome(spoiled).passed is False
    assert outcome("import os\nos.write = os.read = os._exit = os.getpid = None").passed
    assert outcome("import os\nos._exit = os.write = None\nassert False").status == "failed"


def test_an_endless_loop_is_ended_in_time():
    began = time.monotonic()
    found = ended("while True: pass", SHORT)
    assert found.stopped == "time"
    assert found.wall_s < 10
    assert time.monotonic() - began < 60
    assert outcome("import time\ntime.sleep(100)", SHORT).status == "timeout"
    assert (
        outcome("import signal\nsignal.pthread_sigmask(2, range(1, 65))\nwhile True: pass", SHORT).status == "timeout"
    )


def test_processor_time_is_limited_even_where_its_signal_is_ignored():
    found = outcome(
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", Limits(wall_s=60, cpu_s=1)
    )
    assert found == Outcome(False, "timeout", "used more than 1 s of processor time")


def test_a_fork_bomb_makes_no_process():
    began = time.monotonic()
    bomb = """
        import os
        made = 0
        for _ in range(1000):
            try:
                os.fork()
                made += 1
            except OSError:
                pass
        print("made", made, flush=True)
        while True:
            try:
                os.fork()
            except OSError:
                pass
    """
    found = ended(bomb, SHORT)
    assert "made 0" in found.output
    assert found.stopped == "time"
    assert time.monotonic() - began < 60
    for way in ("os.posix_spawn('/bin/true', ['true'], {})", "os.execv('/bin/true', ['true'])", "os.forkpty()"):
        assert outcome(f"import os\n{way}").status == "failed"
    assert "PermissionError" in outcome("import subprocess\nsubprocess.run(['/bin/true'])").detail


def test_a_daemon_left_behind_is_no_more():
    """By a double fork, and by threads that go on when the program has come to its end."""
    daemon = """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(60)
            os._exit(0)
    """
    assert not outcome(daemon).passed
    thread = """
        import threading, time
        threading.Thread(target=time.sleep, args=(60,)).start()
    """
    began = time.monotonic()
    outcome(thread)
    assert time.monotonic() - began < 50


def test_threads_are_few():
    bomb = """
        import threading, time
        for _ in range(500):
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    """
    assert "can't start new thread" in outcome(bomb).detail


@pytest.mark.parametrize("program", ["x = bytearray(10 << 30)", "x = []\nwhile True: x.append(bytearray(1 << 24))"])
def test_memory_is_limited(program: str):
    assert outcome(program) == Outcome(False, "memory", "needed more than 1024 MiB")


def test_files_outside_its_folder_cannot_be_written_read_or_changed(tmp_path: Path):
    # The folder lets everyone in, so that it is the sandbox that keeps them out.
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if folder.stat().st_uid == os.getuid() and folder != Path("/tmp"):
            folder.chmod(0o777)
    there = tmp_path / "there.txt"
    there.write_text("mine")
    there.chmod(0o666)
    ways = [
        f"open({str(tmp_path / 'new')!r}, 'w')",
        f"open({str(there)!r}, 'w')",
        f"open({str(there)!r}, 'a')",
        f"open({str(there)!r})",
        f"os.remove({str(there)!r})",
        f"os.rename({str(there)!r}, 'taken')",
        f"os.link({str(there)!r}, 'taken')",
        f"os.truncate({str(there)!r}, 0)",
        f"os.chmod({str(there)!r}, 0)",
        f"os.utime({str(there)!r}, (0, 0))",
        f"os.mkdir({str(tmp_path / 'made')!r})",
        f"os.symlink('x', {str(tmp_path / 'link')!r})",
        f"os.symlink({str(there)!r}, 'link'); open('link')",
        f"os.listdir({str(tmp_path)!r})",
        "open('/dev/shm/spice-select', 'w')",
        "open('/proc/self/environ')",
        "open('/etc/passwd')",
        "os.memfd_create('x')",
    ]
    program = f"""
        import os
        for way in {ways!r}:
            try:
                exec(way)
            except PermissionError:
                continue
            except OSError as error:
                # A link across the border of the rules is refused by another name.
                assert "cross-device" in str(error), way
                continue
            raise AssertionError(way)
    """
    assert outcome(program) == Outcome(True, "passed", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there.txt"]
    assert there.read_text() == "mine"
    assert there.stat().st_mode & 0o777 == 0o666


def test_its_own_folder_is_empty_and_its_own():
    program = """
        import os, tempfile
        assert os.listdir(".") == []
        open("a", "w").write("x")
        os.mkdir("b")
        os.rename("a", "b/a")
        assert open(os.path.abspath("b/a")).read() == "x"
        with tempfile.TemporaryDirectory() as folder:
            open(os.path.join(folder, "c"), "w").close()
        import input_of_no_one
    """
    assert outcome(program).detail == "ModuleNotFoundError: No module named 'input_of_no_one'"


def test_the_environment_holds_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET_TOKEN", "0123")
    found = ended("import os\nprint(sorted(os.environ))\nprint(input())")
    assert "SECRET_TOKEN" not in found.output
    assert "EOFError" in found.output


def test_much_written_is_ended_and_removed():
    one = "f = open('big', 'wb')\nfor _ in range(100): f.write(bytes(1 << 20))\nf.flush()"
    assert outcome(one).status in ("failed", "killed")
    many = """
        import time
        for n in range(100):
            with open(f"big{n}", "wb") as f:
                f.write(bytes(8 << 20))
            time.sleep(0.05)
    """
    assert outcome(many) == Outcome(False, "killed", "wrote more than 64 MiB, or too many files")
    deep = "import os\nwhile True:\n    os.mkdir('x' * 100)\n    os.chdir('x' * 100)"
    assert outcome(deep).status == "killed"
    assert outcome("import os\nos.mkdir('a', 0)\nos.mkdir('b')\nos.mkdir('b/c', 0)\nassert False").status == "failed"


def test_nothing_goes_to_the_network():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        server.settimeout(0.2)
        ways = [
            f"socket.create_connection(('127.0.0.1', {port}), 2)",
            "socket.socket(socket.AF_INET6)",
            "socket.socket(socket.AF_UNIX)",
            "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
            "socket.socketpair(type=socket.SOCK_DGRAM)",
        ]
        program = f"""
            import socket
            for way in {ways!r}:
                try:
                    eval(way)
                except PermissionError:
                    continue
                raise AssertionError(way)
        """
        assert outcome(program) == Outcome(True, "passed", "")
        assert "gaierror" in outcome("import socket\nsocket.getaddrinfo('example.org', 80)").detail
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_signal_reaches_no_one_else():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        program = f"""
            import os
            for pid in (os.getppid(), -1, 1, {os.getpid()}, {other.pid}):
                try:
                    os.kill(pid, 9)
                except (PermissionError, ProcessLookupError):
                    continue
                raise AssertionError(pid)
        """
        assert outcome(program).passed
        assert other.poll() is None
        assert other.stdin is not None
        other.stdin.write(b"\n")
    assert outcome("import os\nos.killpg(0, 9)") == Outcome(False, "killed", "ended by SIGKILL")
    assert outcome("import os\nos.abort()") == Outcome(False, "killed", "ended by SIGABRT")


def test_a_flood_of_output_is_cut():
    found = ended("print('first')\nfor _ in range(200): print('x' * 100000)\nprint('last')")
    assert found.passed
    assert len(found.output) < 20000
    assert found.output.startswith("first\n")
    assert found.output.endswith("last\n")
    assert "[...]" in found.output


def test_deep_recursion_ends_with_an_error():
    assert outcome("def f(n): return f(n + 1)\nf(0)").detail.startswith("RecursionError")
    deep = "import sys\nsys.setrecursionlimit(1 << 30)\ndef f(n): return f(n + 1)\nf(0)"
    assert outcome(deep, Limits(memory_bytes=1 << 27)).status in ("memory", "killed", "failed", "timeout")


def test_several_programs_come_back_in_their_order():
    programs = [f"import time\ntime.sleep({0.2 if n == 0 else 0})\nassert {n} % 2 == 0, '{n}'" for n in range(5)]
    one = SandboxRunner()(programs)
    two = SandboxRunner(workers=3)(programs)
    assert one == two
    assert [found.passed for found in one] == [True, False, True, False, True]
    assert one[3].detail == "AssertionError: 3"
    assert SandboxRunner()([]) == ()


def test_the_death_of_the_evaluation_is_that_of_the_program():
    source = """
        from spice_select.evaluation.sandbox import Limits, run_program
        run_program("while True: pass", Limits(wall_s=300, cpu_s=200))
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(sandbox.__file__).parents[2])}
    with tempfile.TemporaryDirectory() as folder:
        environment["TMPDIR"] = folder
        evaluation = subprocess.Popen([sys.executable, "-c", textwrap.dedent(source)], env=environment)
        held = wait_for(lambda: [pid for pid in everyone() if f"HOME={folder}/" in environment_of(pid)], 60)
        evaluation.kill()
        evaluation.wait()
        assert wait_for(lambda: not any(f"HOME={folder}/" in environment_of(pid) for pid in held), 60)


def everyone() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def environment_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_text()
    except OSError:
        return ""


def wait_for(found: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)
    return value


def test_sets_have_one_order():
    program = "print([hash(text) for text in ('a', 'b')])"
    assert ended(program).output == ended(program).output


def test_no_program_is_run_on_another_system(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sandbox_kernel, "supported", lambda: False)
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(ResourceError, match=r"needs Linux on x86-64 or arm64, which darwin is not"):
        outcome("print(1)")


REFUSING = """
import ctypes, json, struct, sys
from pathlib import Path
from spice_select.errors import ResourceError
from spice_select.evaluation import sandbox_kernel as kernel
from spice_select.evaluation.sandbox import run_program

# From here on the call is answered as by a kernel that does not know it.
lines = [(0x20, 0, 0, 0), (0x15, 0, 1, int(sys.argv[1])), (0x06, 0, 0, 0x00050026), (0x06, 0, 0, 0x7FFF0000)]
if sys.argv[1] == "157":
    lines[1:2] = [(0x15, 0, 3, 157), (0x20, 0, 0, 16), (0x15, 0, 1, 22)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
kernel._prctl(38, 1)
program = kernel._Filter((len(code) - 1) // 8, ctypes.addressof(code))
kernel._prctl(22, 2, ctypes.addressof(program))
try:
    print(json.dumps(["ran", run_program("print('it ran')").output]))
except ResourceError as error:
    print(json.dumps(["refused", str(error)]))
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of system calls of x86-64")
@pytest.mark.parametrize(("call", "named"), [("444", "no Landlock"), ("157", "no seccomp")])
def test_no_program_is_run_without_an_essential_layer(call: str, named: str):
    environment = {**os.environ, "PYTHONPATH": str(Path(sandbox.__file__).parents[2])}
    said = subprocess.run(
        [sys.executable, "-c", REFUSING, call], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    kind, text = json.loads(said.stdout.splitlines()[-1])
    assert kind == "refused"
    assert named in text
    assert "it ran" not in said.stdout
