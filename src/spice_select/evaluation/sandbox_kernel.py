"""What the Linux kernel offers to take rights away from a process, through ctypes: seccomp, Landlock, namespaces.

Only the standard library is imported, as the process that calls this serves untrusted code. Numbers of system calls are
those of the kernel's own tables for x86-64 and arm64; a call newer than the last one known here is unknown to the
program as well, so that nothing slips in with a newer kernel.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Iterable
from typing import Any, ClassVar

# Names with their numbers on x86-64 and arm64; None where the architecture has no such call.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # Network. What socketpair makes stays within the process.
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    # Other processes and programs.
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "kcmp": (312, 272),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # Identity and rights.
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setreuid": (113, 145),
    "setregid": (114, 143),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "setgroups": (116, 159),
    "setfsuid": (122, 151),
    "setfsgid": (123, 152),
    "capset": (126, 91),
    "personality": (135, 92),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    # Mounts and namespaces.
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "unshare": (272, 97),
    "setns": (308, 268),
    # What Landlock leaves open: attributes of files, and files by other ways than their names.
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "truncate": (76, 45),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    # Memory that outlives the process or counts for no limit.
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    # Wide doors of the kernel.
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_setup": (206, 0),
    "io_submit": (209, 2),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "modify_ldt": (154, None),
    "iopl": (172, None),
    "ioperm": (173, None),
    "lookup_dcookie": (212, 18),
    # The machine.
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
}
_NEWEST = 450
_CLONE, _CLONE3, _KILL, _TGKILL = (56, 220), (435, 435), (62, 129), (234, 131)
_PRCTL, _PRLIMIT, _FCNTL, _IOCTL, _SOCKETPAIR = (157, 167), (302, 261), (72, 25), (16, 29), (53, 199)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_CLONE_THREAD = 0x00010000
_SOCK_STREAM, _SOCK_TYPE = 1, 0xF
_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA = 15, 16, 0x53564D41
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 8, 22, 38
# Commands that let a descriptor send signals to a process of one's choice.
_F_SIGNALS, _IOCTL_SIGNALS = (8, 10, 15), (0x8901, 0x8902)
_TIOCSTI = 0x5412
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _JEQ, _JGE, _JSET, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NR, _ARCH, _ARGUMENTS = 0, 4, 16

NEW_USER, NEW_PID, NEW_NET, NEW_IPC, NEW_UTS = 0x10000000, 0x20000000, 0x40000000, 0x08000000, 0x04000000
CAP_DAC_READ_SEARCH = 2

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ_FILE, _READ_DIR, _WRITE_FILE, _TRUNCATE = 1 << 2, 1 << 3, 1 << 1, 1 << 14
# Removing and making folders, files, pipes and links, and moving them about; no programs, devices or sockets.
_CHANGE = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 12 | 1 << 13

_libc = ctypes.CDLL(None, use_errno=True)


class _Filter(ctypes.Structure):
    _fields_: ClassVar[list[tuple[str, Any]]] = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]


def supported() -> bool:
    """Whether the system calls of this machine are known here."""
    return sys.platform == "linux" and platform.machine() in _ARCHITECTURES and sys.maxsize > 2**32


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _prctl(option: int, value: int = 0, address: int = 0) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(address), ctypes.c_ulong(0), ctypes.c_ulong(0)))


def die_with_parent(parent: int) -> None:
    """Let this process be killed when its parent ends; ends it now where the parent is gone already."""
    _prctl(_PR_SET_PDEATHSIG, 9)
    if os.getppid() != parent:
        os._exit(1)


def no_new_rights() -> None:
    """Let no program that this process might start have more rights than it, and nobody look into its memory."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)


def keep_capabilities() -> None:
    """Keep the permitted capabilities through the next change of user."""
    _prctl(_PR_SET_KEEPCAPS, 1)


def set_capabilities(*numbers: int) -> None:
    """Hold these capabilities and no others."""
    mask = sum(1 << number for number in numbers)
    header = struct.pack("=Ii", 0x20080522, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    _check(_libc.capset(header, struct.pack("=6I", low, low, 0, high, high, 0)))


def unshare(flags: int) -> bool:
    """Leave namespaces for fresh ones; False where that is not allowed."""
    return _libc.unshare(flags) == 0


def filter_code(own: int, *, threads: bool) -> bytes:
    """The seccomp filter as the kernel takes it.

    Args:
        own: Process id of the program, the one that it may signal.
        threads: Whether it may start threads.
    """
    side, architecture = _ARCHITECTURES[platform.machine()]
    refused, unknown = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
    code: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _ARCH),
        (_JEQ, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NR),
        # This also covers the x32 calls, whose numbers have a high bit.
        (_JGE, 0, 1, _NEWEST + 1),
        (_RETURN, 0, 0, unknown),
        # Its flags are behind a pointer that a filter cannot follow; the C library falls back on clone.
        (_JEQ, 0, 1, _CLONE3[side]),
        (_RETURN, 0, 0, unknown),
    ]
    for numbers in _DENIED.values():
        if (number := numbers[side]) is not None:
            code += [(_JEQ, 0, 1, number), (_RETURN, 0, 0, refused)]

    def only(call: tuple[int, int], argument: int, values: Iterable[int], *, allowed: bool, mask: int = 0) -> None:
        """Allow (or refuse) a call where the low half of an argument is one of the values."""
        hit, miss = (_ALLOW, refused) if allowed else (refused, _ALLOW)
        block = [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument)]
        block += [(_AND, 0, 0, mask)] if mask else []
        for value in values:
            block += [(_JEQ, 0, 1, value), (_RETURN, 0, 0, hit)]
        block.append((_RETURN, 0, 0, miss))
        code.extend([(_JEQ, 0, len(block), call[side]), *block])

    if threads:
        only(_CLONE, 0, (_CLONE_THREAD,), allowed=True, mask=_CLONE_THREAD)
    else:
        code += [(_JEQ, 0, 1, _CLONE[side]), (_RETURN, 0, 0, refused)]
    only(_KILL, 0, (own, 0), allowed=True)
    only(_TGKILL, 0, (own,), allowed=True)
    only(_PRCTL, 0, (_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA), allowed=True)
    only(_PRLIMIT, 0, (0,), allowed=True)
    only(_SOCKETPAIR, 1, (_SOCK_STREAM,), allowed=True, mask=_SOCK_TYPE)
    only(_FCNTL, 1, _F_SIGNALS, allowed=False)
    only(_IOCTL, 1, (*_IOCTL_SIGNALS, _TIOCSTI), allowed=False)
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in code)


def filter_calls(*, threads: bool) -> None:
    """Refuse this process the network, other processes and signals to them, mounts, and the doors of the kernel.

    Raises:
        OSError: The kernel has no seccomp filters.
    """
    code = ctypes.create_string_buffer(filter_code(os.getpid(), threads=threads))
    program = _Filter((len(code) - 1) // 8, ctypes.addressof(code))
    _prctl(_PR_SET_SECCOMP, 2, ctypes.addressof(program))


class Landlock:
    """Rules of which files a process may reach; they bind it once :meth:`restrict` is called.

    Raises:
        OSError: The kernel has no Landlock, or it is off.
    """

    def __init__(self) -> None:
        self.version = _check(_libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1))
        bits = 13 if self.version == 1 else 14 if self.version == 2 else 15 if self.version < 5 else 16
        self._files = (1 << bits) - 1
        network, scoped = (3 if self.version >= 4 else 0), (3 if self.version >= 6 else 0)
        rules = struct.pack("=QQQ", self._files, network, scoped)
        size = 8 if self.version < 4 else 16 if self.version < 6 else 24
        self._rules = _check(_libc.syscall(_LANDLOCK_CREATE, rules, ctypes.c_size_t(size), 0))

    def allow(self, path: str, *, change: bool = False) -> None:
        """Let a file or folder be read, and with ``change`` written; one that isn't there is passed over."""
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return
        try:
            rights = _READ_FILE | (_WRITE_FILE | _TRUNCATE if change else 0)
            if os.path.isdir(path):
                rights |= _READ_DIR | (_CHANGE if change else 0)
            rule = struct.pack("=Qi", rights & self._files, place)
            _check(_libc.syscall(_LANDLOCK_ADD, self._rules, 1, rule, 0))
        finally:
            os.close(place)

    def restrict(self) -> None:
        """Bind this process to the rules for good."""
        _check(_libc.syscall(_LANDLOCK_RESTRICT, self._rules, 0))
        os.close(self._rules)
