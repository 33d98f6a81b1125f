"""The tests as a part of `make gpu`: all of them, whatever one of them does to its process."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tools.gpu import needs
from tools.gpu.execute import FAILED, OK, Result, execute, last_line

HANG = {"cuda": 60.0, "not cuda": 250.0}  # seconds for a test; some on the CPU compile for long
SHOWN = 8  # names of failed tests in the summary

Record = dict[str, Any]  # see records.py


def read(records: Path) -> list[Record]:
    return [json.loads(line) for line in records.read_text().splitlines()]


def run(out: Path, marked: str, limit: float, selection: tuple[str, ...] = ()) -> Result:
    """pytest -m ``marked``, again and again until no test is left that has not run."""
    end = time.monotonic() + limit
    log = out / f"tests-{marked.replace(' ', '-')}.log"
    records = log.with_suffix(".jsonl")
    records.touch()
    command = [sys.executable, "-m", "pytest", *selection, "-m", marked, "-p", "no:cacheprovider"]
    command += ["-p", "tools.gpu.records", f"--records={records}", f"--hang={HANG[marked]}"]
    env = {}
    if marked != "cuda":
        env["CUDA_VISIBLE_DEVICES"] = ""  # none of these needs one
        command += ["-n", "auto"] * needs.is_installed("pytest-xdist")
    while True:
        before = len(read(records))
        left = end - time.monotonic()
        code = execute(command, log, left, **env) if left > 0 else None
        seen = read(records)
        if code is None or len(seen) == before or "end" in seen[-1]:
            return digest(log, code, seen, limit)
        culprit = None if "lost" in seen[-1] else unfinished(seen)
        if culprit is not None:
            text = f"ended its process, exit status {code}; see {log.stem}.hang.txt"
            with records.open("a") as file:
                file.write(json.dumps({"test": culprit, "outcome": "failed", "text": text}) + "\n")


def unfinished(records: list[Record]) -> str | None:
    """The test that was running at the end."""
    started = [record["start"] for record in records if "start" in record]
    done = {record["test"] for record in records if "test" in record}
    return started[-1] if started and started[-1] not in done else None


def digest(log: Path, code: int | None, records: list[Record], limit: float) -> Result:
    """Counts and names; the texts of failures go to a file."""
    worst: dict[str, Record] = {}
    for record in records:
        if "test" in record and worst.get(record["test"], {}).get("outcome") != "failed":
            worst[record["test"]] = record
    counts = Counter(record["outcome"] for record in worst.values())
    failed = {name: record["text"] for name, record in worst.items() if is_failed(record)}
    text = ", ".join(f"{counts[kind]} {kind}" for kind in ("passed", "failed", "skipped"))
    if code is None:
        text += f"; cut off after {limit:.0f} s, in {unfinished(records)}"
    elif code not in (0, 1):
        text += f"; pytest's exit status {code}: {last_line(log.read_text())}"
    lines = [f"  {name}: {reason(failed[name])}" for name in list(failed)[:SHOWN]]
    if failed:
        report = log.with_suffix(".failures.txt")
        report.write_text("\n\n".join(f"=== {name}\n{failed[name]}" for name in failed) + "\n")
        lines += [f"  and {len(failed) - SHOWN} more in {report.name}"] * (len(failed) > SHOWN)
    skips = Counter(record["text"] for record in worst.values() if record["outcome"] == "skipped")
    lines += [f"  {n} skipped: {why}" for why, n in skips.items() if "No module named" in why]
    status = OK if code == 0 and not failed else FAILED
    return Result(status, text, lines, {"counts": dict(counts), "failed": list(failed)})


def is_failed(record: Record) -> bool:
    return bool(record["outcome"] == "failed")


def reason(text: str) -> str:
    """A failure in a line: its exception."""
    errors = (line[1:].strip() for line in text.splitlines() if line.startswith("E  "))
    return next(errors, last_line(text))[:100]
