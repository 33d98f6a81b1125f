"""Runs one command of a part, within its time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
KILL = 10.0  # seconds between asking a command to end and ending it
running: set[int] = set()  # process groups
OK, FAILED, NOT_RUN = "ok", "FAILED", "not run"


@dataclass
class Result:
    """What became of a part; ``lines`` are for the summary, ``data`` for summary.json."""

    status: str
    text: str
    lines: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)


def execute(command: list[str], log: Path, limit: float, **env: str) -> int | None:
    """Exit status, or None where the time was over; the output goes to the end of ``log``.

    Nothing that the command has started outlives it.
    """
    with log.open("a") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **env},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        running.add(process.pid)
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)  # pytest then says what it has so far
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(KILL)
            return None
        finally:
            kill(process.pid)
            process.wait()
            running.discard(process.pid)


def kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def kill_all() -> None:
    """All that threads are executing."""
    for group in list(running):
        kill(group)


def outcome(code: int | None, log: Path, limit: float, text: str) -> Result:
    if code == 0:
        return Result(OK, text)
    reason = f"longer than {limit:.0f} s" if code is None else f"exit status {code}"
    return Result(FAILED, f"{reason}; {log.name} says: {telling_line(log.read_text())}")


def telling_line(text: str) -> str:
    """The first that a compiler calls an error, else the last."""
    errors = (line.strip() for line in text.splitlines() if " error: " in line)
    return next(errors, last_line(text))[:200]


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "nothing")
