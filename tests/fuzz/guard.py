"""What reading damaged input must not do: reach outside its folder, take long, or grow."""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from types import FrameType

MOST_SECONDS = 20  # for one input, on a busy machine
MOST_GROWTH_BYTES = 600 << 20
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = frozenset(
    ("os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate",
     "os.utime", "shutil.move", "shutil.rmtree", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn",
     "os.startfile", "socket.connect", "pickle.find_class", "ctypes.dlopen")
)  # fmt: skip
_NO_PLACE = frozenset(
    ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class")
)


class Guard:
    """Notes what is opened, changed or started outside of the allowed folders while `watching`."""

    def __init__(self, inside: Path) -> None:
        self.trespasses: list[str] = []
        self._watching = False
        temporary = os.path.realpath(tempfile.gettempdir())
        libraries = {sys.prefix, sys.base_prefix, *(path for path in sys.path if path), os.getcwd()}
        self._libraries = tuple(map(os.path.realpath, libraries))
        self._written = (os.path.realpath(inside), "/dev/null")
        self._read = (*self._written, *self._libraries, "/proc/", "/sys/", "/dev/", "/usr/")
        self._temporary = temporary + os.sep
        self._inside = os.path.realpath(inside) + os.sep
        sys.addaudithook(self._hear)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch a block, which must end within `MOST_SECONDS`."""

        def late(number: int, frame: FrameType | None) -> None:
            raise AssertionError(f"it took more than {MOST_SECONDS} s")

        before = signal.signal(signal.SIGALRM, late)
        signal.alarm(MOST_SECONDS)
        self._watching = True
        try:
            yield
        finally:
            self._watching = False
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self._watching:
            return
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and bool(flags & _WRITES)
            if not self._is_allowed(path, writes):
                self.trespasses.append(f"{event} {path!r} {'to write' if writes else ''}")
        elif event in _NO_PLACE:
            self.trespasses.append(f"{event} {arguments[:1]!r}")
        elif event in _CHANGES and not all(self._is_allowed(path, True) for path in _paths(arguments)):
            self.trespasses.append(f"{event} {arguments!r}")

    def _is_allowed(self, path: object, writes: bool) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return True  # a descriptor, of a file that was opened before
        try:
            folder, name = os.path.split(os.fsdecode(path))
            real = os.path.join(_real(folder), name)
            real = os.path.realpath(real) if name in ("", ".", "..") or os.path.islink(real) else real
        except ValueError:  # a null: the system opens nothing
            return True
        own = real.startswith((self._inside, *self._libraries))  # a checkout may lie in the temporary folder too
        if real.startswith(self._temporary) and not own and not writes:
            return False  # another test's files
        return real.startswith(self._written if writes else self._read)


@lru_cache(maxsize=1024)
def _real(folder: str) -> str:
    """The folder with links resolved; kept, as a reader opens many files of few folders."""
    return os.path.realpath(folder)


def _paths(arguments: tuple[object, ...]) -> list[str]:
    """The paths of a change; those relative to a descriptor of a folder are put together."""
    found = [os.fsdecode(path) for path in arguments if isinstance(path, str | bytes | os.PathLike)]
    folders = [number for number in arguments if isinstance(number, int) and number > 2]
    with suppress(OSError):
        if folders:
            return [os.path.join(os.readlink(f"/proc/self/fd/{folders[-1]}"), path) for path in found]
    return found


def peak_bytes() -> int:
    """The largest memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
