"""The process that runs one program, with everything taken away from it first; started by ``sandbox.py`` as a script.

Three processes: a keeper that moves into fresh namespaces, a watcher that is the first in them and tells how the
program ended, and the program. Each is killed when the one above it ends. Only the standard library is imported. If
something essential cannot be taken away, that is told and the program is not run.
"""

from __future__ import annotations

import builtins
import importlib.util
import json
import linecache
import os
import resource
import sys
import types
from pathlib import Path
from typing import Any

OUT_OF_MEMORY = 77
"""Exit status of a program that ended by a MemoryError."""
NOT_RUN = 78
"""Exit status where the program was not run."""
_NOBODY = 65534
_OWN_USERS = 0x70000000
_READABLE = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/random", "/dev/zero")


class _Missing(Exception):
    """Something essential cannot be taken away."""


def _sibling(name: str) -> Any:
    """A module beside this file, which is on no import path."""
    found = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


class _Child:
    """Sets up the processes.

    Args:
        task: What ``sandbox.py`` asks for.
        kernel: The module ``sandbox_kernel``.
    """

    def __init__(self, task: dict[str, Any], kernel: Any) -> None:
        self._task = task
        self._kernel = kernel
        self._layers: list[str] = []
        self._threads = False

    def keep(self) -> int:
        """The keeper: fresh namespaces, then the watcher, whose end it waits for."""
        self._kernel.die_with_parent(self._task["parent"])
        self._namespaces()
        own = os.getpid()
        watcher = os.fork()
        if watcher == 0:
            # In a namespace of its own it sees no parent.
            self._kernel.die_with_parent(0 if os.getpid() == 1 else own)
            os._exit(self._watch())
        os.waitpid(watcher, 0)
        return 0

    def _namespaces(self) -> None:
        kernel = self._kernel
        kinds = {
            "process namespace": kernel.NEW_PID,
            "network namespace": kernel.NEW_NET,
            "ipc namespace": kernel.NEW_IPC,
            "host name namespace": kernel.NEW_UTS,
        }
        if os.geteuid() != 0:
            user, group = os.geteuid(), os.getegid()
            if not kernel.unshare(kernel.NEW_USER):
                return
            self._layers.append("user namespace")
            # Processes of a user namespace are counted by themselves, so that a limit on them is one on these alone.
            self._threads = True
            try:
                Path("/proc/self/setgroups").write_text("deny")
                Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
                Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
            except OSError:
                # Without names for its ids it still has its files, which is all that matters here.
                pass
        self._layers += [name for name, flag in kinds.items() if kernel.unshare(flag)]

    def _watch(self) -> int:
        """The watcher: waits for the program and tells how it ended."""
        own = os.getpid()
        program = os.fork()
        if program == 0:
            try:
                self._become_program(own)
            except BaseException as error:
                self._tell({"refused": str(error) if isinstance(error, _Missing) else repr(error)})
                os._exit(NOT_RUN)
        for name in ("token", "passed"):
            os.close(self._task[name])
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        _, status, used = os.wait4(program, 0)
        ended = {"signal": os.WTERMSIG(status)} if os.WIFSIGNALED(status) else {"exit": os.WEXITSTATUS(status)}
        self._tell({**ended, "cpu": used.ru_utime + used.ru_stime})
        return 0

    def _tell(self, fact: dict[str, Any]) -> None:
        os.write(self._task["status"], json.dumps(fact).encode() + b"\n")

    def _become_program(self, watcher: int) -> None:
        kernel, task = self._kernel, self._task
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        rules = self._rules()
        self._change_user()
        kernel.no_new_rights()
        kernel.die_with_parent(watcher)
        rules.restrict()
        self._layers.append("files (landlock)")
        self._limits()
        os.umask(0o077)
        try:
            kernel.filter_calls(threads=self._threads)
        except OSError as error:
            raise _Missing(f"the kernel has no seccomp to keep it from the network ({error.strerror})") from None
        self._layers.append("system calls (seccomp)")
        self._tell({"layers": self._layers})
        os.close(task["status"])
        _run(task["program"], task["token"], task["passed"])

    def _rules(self) -> Any:
        """Landlock's rules, made while every path can still be opened."""
        try:
            rules = self._kernel.Landlock()
        except OSError as error:
            raise _Missing(f"the kernel has no Landlock to contain its files ({error.strerror})") from None
        for path in (*_READABLE, *self._task["readable"]):
            rules.allow(path)
        rules.allow("/dev/null", change=True)
        rules.allow(self._task["folder"], change=True)
        return rules

    def _change_user(self) -> None:
        """Give up root, and every capability but one where the interpreter's own files could not be read without."""
        kernel, folder = self._kernel, self._task["folder"]
        if os.geteuid() == 0:
            kernel.keep_capabilities()
            for user in (_OWN_USERS + self._task["number"], _NOBODY):
                try:
                    os.chown(folder, user, user)
                    os.setgroups([])
                    os.setresgid(user, user, user)
                    os.setresuid(user, user, user)
                except OSError:
                    continue
                self._layers.append("unprivileged user")
                self._threads = True
                break
        # An interpreter in a home folder is out of the reach of others; Landlock's rules hold for this right as well.
        kernel.set_capabilities(*(() if self._reaches_its_files() else (kernel.CAP_DAC_READ_SEARCH,)))

    def _reaches_its_files(self) -> bool:
        try:
            Path(os.__file__).open("rb").close()
            for folder in (self._task["folder"], *self._task["readable"]):
                os.listdir(folder)
        except PermissionError:
            return os.geteuid() == self._task["user"]
        except OSError:
            pass
        return True

    def _limits(self) -> None:
        asked = self._task["limits"]
        limits = {
            resource.RLIMIT_CORE: (0, 0),
            # At the first the process is told, and at the second killed.
            resource.RLIMIT_CPU: (asked["cpu_s"], asked["cpu_s"] + 1),
            resource.RLIMIT_AS: (asked["memory_bytes"],) * 2,
            resource.RLIMIT_FSIZE: (asked["file_bytes"],) * 2,
            resource.RLIMIT_NOFILE: (asked["open_files"],) * 2,
            resource.RLIMIT_NPROC: (asked["threads"],) * 2,
            resource.RLIMIT_MEMLOCK: (0, 0),
        }
        for which, (soft, hard) in limits.items():
            _, most = resource.getrlimit(which)
            if most != resource.RLIM_INFINITY:
                soft, hard = min(soft, most), min(hard, most)
            resource.setrlimit(which, (soft, hard))
        self._layers.append("limits")


def _run(program: str, token: int, passed: int) -> None:
    """Run the program as ``__main__``; that it came to its end is told by the token, and by nothing else.

    The token waits in a pipe until then: it is in no variable, file or argument that the program could come upon.
    """
    # The program may put anything in the place of these.
    read, write, leave, identify = os.read, os.write, os._exit, os.getpid
    own = identify()
    name = "<program>"
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    sys.argv = [name]
    linecache.cache[name] = (len(program), None, program.splitlines(keepends=True), name)
    try:
        exec(compile(program, name, "exec"), module.__dict__)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except MemoryError:
        leave(OUT_OF_MEMORY)
    except BaseException as error:
        try:
            sys.stdout.flush()
            text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            write(2, ("\n" + " ".join(text.split())[:500] + "\n").encode("utf-8", "replace"))
        finally:
            leave(1)
    if identify() == own:
        write(passed, read(token, 64))
    leave(0)


if __name__ == "__main__":
    _task = json.loads(sys.stdin.buffer.read())
    sys.exit(_Child(_task, _sibling("sandbox_kernel")).keep())
