"""Ways to a device: push a file, run a command, pull a file; over adb, over ssh, or on this machine.

    reach = Adb("2A111FDH200")
    reach.push(Path("secateur-ncnn"), "/data/local/tmp/secateur-ncnn")
    reach.run(["/data/local/tmp/secateur-ncnn", "--version"])

A connection that is cut looks like a program that ended early. So every command prints a last line with its exit code;
whoever does not find that line has lost the device.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from secateur.core.errors import DeviceLostError, ExportError, TargetUnavailableError

TIMEOUT_S = 120.0
"""For what should be quick: a pull, a command that only looks."""
SLOW = 250_000
"""Bytes a second at which a push is still waited for."""
_END = re.compile(r"secateur-exit (\d+)\s*$")


class Reach(ABC):
    """One device, by the way to it. `name` is what error messages call it."""

    name: str

    @abstractmethod
    def _shell(self, script: str, timeout_s: float, given: bytes | None = None) -> tuple[bytes, str]:
        """(output, complaints) of a script for the device's shell, whatever its exit code."""

    def push(self, local: Path, remote: str) -> None:
        """Copy a file onto the device.

        Raises:
            DeviceLostError
        """
        content = local.read_bytes()
        quoted = shlex.quote(remote)
        patience = TIMEOUT_S + len(content) / SLOW
        said = self.run_script(f"cat > {quoted} && wc -c < {quoted}", patience, given=content)
        if said.strip() != str(len(content)):
            raise DeviceLostError(
                f"{self.name}: {local.name} did not arrive whole", "check cable or network, and its space"
            )

    def pull(self, remote: str) -> bytes:
        """The content of a file on the device.

        Raises:
            DeviceLostError, ExportError
        """
        return self._checked(f"cat {shlex.quote(remote)}", TIMEOUT_S)

    def run(self, command: Sequence[str], timeout_s: float = TIMEOUT_S, folder: str | None = None) -> str:
        """Standard output of a command.

        Raises:
            DeviceLostError: no connection, or none to the end; or no answer for `timeout_s` seconds.
            ExportError: the command itself failed; with its first complaint.
        """
        script = shlex.join(command)
        return self.run_script(f"cd {shlex.quote(folder)} && {script}" if folder else script, timeout_s)

    def run_script(self, script: str, timeout_s: float = TIMEOUT_S, given: bytes | None = None) -> str:
        """As `run`, for a script of the device's shell, which may read what is `given`."""
        return self._checked(script, timeout_s, given).decode(errors="replace")

    def _checked(self, script: str, timeout_s: float, given: bytes | None = None) -> bytes:
        # The script runs in a shell of its own, so that whatever ends it, the last line is still printed.
        output, complaints = self._shell(f'( {script}\n); echo "secateur-exit $?"', timeout_s, given)
        head, _, tail = output.rpartition(b"secateur-exit ")
        end = _END.search("secateur-exit " + tail.decode(errors="replace")) if tail else None
        if end is None:
            why = (complaints.strip().splitlines() or ["the connection ended early"])[-1]
            raise DeviceLostError(f"{self.name} is lost: {why[:200]}", "check that it is on, connected and authorised")
        if end[1] != "0":
            why = (complaints.strip().splitlines() or [f"exit code {end[1]}"])[-1]
            raise ExportError(f"{self.name}: {why[:200]}", "run the command there by hand to see more")
        return head


@dataclass(frozen=True)
class Local(Reach):
    """This machine: for trying the whole way without a device."""

    name: str = "this machine"

    def _shell(self, script: str, timeout_s: float, given: bytes | None = None) -> tuple[bytes, str]:
        return call(["sh", "-c", script], self.name, timeout_s, given)


@dataclass(frozen=True)
class Ssh(Reach):
    """A board that has an ssh server and lets this user in without a password.

    Args:
        host: as ssh takes it, `user@board` or a name of ~/.ssh/config.
        options: for ssh itself, such as `("-p", "2222")`.
        program: the ssh client.
    """

    host: str
    options: tuple[str, ...] = ()
    program: str = "ssh"

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.host

    def _shell(self, script: str, timeout_s: float, given: bytes | None = None) -> tuple[bytes, str]:
        careful = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5")
        return call([self.program, *careful, *self.options, "--", self.host, script], self.name, timeout_s, given)


@dataclass(frozen=True)
class Adb(Reach):
    """An Android device in developer mode.

    Args:
        serial: as `adb devices` lists it, or `address:port`.
        program: adb itself.
    """

    serial: str
    program: str = "adb"

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.serial

    def _shell(self, script: str, timeout_s: float, given: bytes | None = None) -> tuple[bytes, str]:
        # exec-out and exec-in leave bytes as they are; `shell` may turn line ends.
        verb = "exec-out" if given is None else "shell"
        flags = ["-T"] if verb == "shell" else []
        return call([self.program, "-s", self.serial, verb, *flags, script], self.name, timeout_s, given)


def call(command: Sequence[str], name: str, timeout_s: float, given: bytes | None = None) -> tuple[bytes, str]:
    """(output, complaints) of a program of this machine.

    Raises:
        TargetUnavailableError: it is not installed.
        DeviceLostError: it did not end in time.
    """
    try:
        done = subprocess.run(  # noqa: S603 - what the user's farm file names
            list(command),
            input=given if given is not None else b"",
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError as error:
        raise TargetUnavailableError(
            f"{command[0]} is not installed", f'it reaches {name}: install it, or name its "program" in the farm file'
        ) from error
    except OSError as error:
        raise TargetUnavailableError(
            f"{command[0]} cannot be run: {error.strerror}", f'name the "program" that reaches {name} in the farm file'
        ) from error
    except subprocess.TimeoutExpired as error:
        raise DeviceLostError(
            f"{name} gave no answer for {timeout_s:g} s", "check that it is on and connected"
        ) from error
    return done.stdout, done.stderr.decode(errors="replace")
