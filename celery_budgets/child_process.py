"""Child processes that do not outlive their parent.

The child runs in a session of its own, so that the terminal's Ctrl-C reaches only the parent. A
small shell beside it, the guard, holds the read end of a pipe: when the parent ends in any way,
even by SIGKILL, the pipe closes and the guard ends the child. Linux's ``PR_SET_PDEATHSIG`` would
do it without a guard, but it fires when the *thread* that started the child ends, needs
``preexec_fn``, and exists on no other system.

Does not cover: a parent that itself forks without exec. Its forks hold the pipe open, and the
child ends with the last of them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import IO, Any

__all__ = ["PARTING_SECONDS", "BoundProcess"]

#: Seconds between the parting signal and SIGKILL for the whole process group, unless given.
PARTING_SECONDS = 10

# The shell execs the program, so the program keeps the pid that Popen knows. The guard is forked
# twice: a worker that counts its children must not count it. It is in the program's process group,
# so the system cannot reuse the group's number while the guard lives.
_SCRIPT = """
exec 3<&0 </dev/null
seconds=$1
shift
( {
    read -r _ <&3
    kill -s "$0" $$
    n=0
    while [ $n -lt "$seconds" ] && kill -0 $$; do sleep 1; n=$((n + 1)); done
    kill -s KILL 0
} >/dev/null 2>&1 & )
exec "$@" 3<&-
"""


class BoundProcess(subprocess.Popen[bytes]):
    """A child process that ends with this process at the latest.

    Args:
        command: The program and its arguments.
        parting: Signal that the guard sends when this process ends first.
        parting_seconds: How much later it kills the process group.
        environment: Variables of its environment; ``None``: those of this process.
        output: Where its output and its errors go, as for :class:`subprocess.Popen`.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        parting: signal.Signals = signal.SIGTERM,
        parting_seconds: int = PARTING_SECONDS,
        environment: dict[str, str] | None = None,
        output: int | IO[Any] | None = None,
    ) -> None:
        super().__init__(
            [
                "/bin/sh",
                "-c",
                _SCRIPT,
                parting.name.removeprefix("SIG"),
                str(parting_seconds),
                *command,
            ],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            env=environment,
            start_new_session=True,
        )
        self._group_ended = False

    def end(self, *, grace: float, how: signal.Signals = signal.SIGTERM) -> bool:
        """Signal the program to end, and kill its process group when it does not.

        Args:
            grace: Seconds between the signal and the kill.
            how: The signal.

        Returns:
            Whether it ended by itself.
        """
        self.send_signal(how)
        try:
            self.wait(grace)
            warm = True
        except subprocess.TimeoutExpired:
            warm = False
        self.end_group()
        return warm

    def end_group(self) -> None:
        """Kill the rest of its process group, including the guard. May be called again."""
        # Only once: afterwards the system may reuse the number for another group.
        if not self._group_ended:
            self._group_ended = True
            # macOS reports "not permitted" for a group of which only zombies are left.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self.wait()
        if self.stdin is not None:
            self.stdin.close()
