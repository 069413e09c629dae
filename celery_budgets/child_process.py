"""Programs that do not outlive the one that started them.

A leashed program runs in a session of its own, so that the terminal's Ctrl-C reaches only the
program that started it. A tiny shell beside it holds the read end of a pipe: when the starting
process ends in any way, even by SIGKILL, the pipe closes and the shell ends the program.
Linux's ``PR_SET_PDEATHSIG`` would do it without the shell, but it fires when the *thread* that
started the program ends, needs ``preexec_fn``, and exists nowhere else.

Does not cover: a starting process that itself forks without exec. Its children hold the pipe
open, and the program ends with the last of them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import IO, Any

__all__ = ["PARTING_SECONDS", "BoundProcess"]

#: Seconds between the parting signal and SIGKILL for the whole process group.
PARTING_SECONDS = 10

# The shell execs the program, so the program keeps the pid that Popen knows. The guard is
# forked twice: a worker that counts its children must not count it. It is in the program's
# process group, so that number cannot be given to anybody else while the guard lives.
_SCRIPT = f"""
exec 3<&0 </dev/null
( {{
    read -r _ <&3
    kill -s "$0" $$
    n=0
    while [ $n -lt {PARTING_SECONDS} ] && kill -0 $$; do sleep 1; n=$((n + 1)); done
    kill -s KILL 0
}} >/dev/null 2>&1 & )
exec "$@" 3<&-
"""


class BoundProcess(subprocess.Popen[bytes]):
    """A running program that ends with this process at the latest.

    Args:
        command: The program and its arguments.
        parting: Signal it gets when this process ends without ending it;
            :data:`PARTING_SECONDS` later its process group is killed.
        environment: Variables of its environment; ``None``: those of this process.
        output: Where its output and its errors go, as for :class:`subprocess.Popen`.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        parting: signal.Signals = signal.SIGTERM,
        environment: dict[str, str] | None = None,
        output: int | IO[Any] | None = None,
    ) -> None:
        super().__init__(
            ["/bin/sh", "-c", _SCRIPT, parting.name.removeprefix("SIG"), *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            env=environment,
            start_new_session=True,
        )
        self._group_ended = False

    def end(self, *, grace: float, how: signal.Signals = signal.SIGTERM) -> bool:
        """Ask the program to end, and kill its process group where it does not.

        Args:
            grace: Seconds it has.
            how: The signal that asks.

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
        """Kill what is left of its process group, the guard included. May be called again."""
        # Only once: afterwards the number may belong to somebody else's group.
        if not self._group_ended:
            self._group_ended = True
            # macOS answers "not permitted" for a group of which only zombies are left.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self.wait()
        if self.stdin is not None:
            self.stdin.close()
