"""The tests as a part of `make gpu`: all of them, whatever one of them does to its process."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.gpu.execute import FAILED, OK, Result, execute, kill_all, last_line

HANG = {"cuda": 60.0, "not cuda": 250.0}  # seconds for a test; some on the CPU compile for long
SHOWN = 8  # names of failed tests in the summary
MOST_SHARDS = 8
NOTHING_TO_DO = 5  # pytest's exit status where a shard has no tests

Record = dict[str, Any]  # see records.py


def read(records: Path) -> list[Record]:
    return [json.loads(line) for line in records.read_text().splitlines()]


@dataclass
class Shard:
    """What one of several pytests at a time did."""

    log: Path
    code: int | None
    records: list[Record]


def run(out: Path, marked: str, limit: float, selection: tuple[str, ...] = ()) -> Result:
    """pytest -m ``marked``. Without a GPU to share, files are shared out over several pytests."""
    shards = 1 if marked == "cuda" else min(os.cpu_count() or 1, MOST_SHARDS)
    end, interrupted = time.monotonic() + limit, threading.Event()
    with ThreadPoolExecutor(shards) as pool:
        jobs = [
            pool.submit(run_shard, out, marked, selection, f"{k}/{shards}", end, interrupted)
            for k in range(shards)
        ]
        try:
            ended = [job.result() for job in jobs]
        except KeyboardInterrupt:
            interrupted.set()
            kill_all()
            raise
    return digest(out / f"tests-{marked.replace(' ', '-')}.failures.txt", ended, limit)


def run_shard(
    out: Path,
    marked: str,
    selection: tuple[str, ...],
    shard: str,
    end: float,
    interrupted: threading.Event,
) -> Shard:
    """One pytest after another, until no test of the shard is left that has not run."""
    log = out / f"tests-{marked.replace(' ', '-')}-{shard.replace('/', '-of-')}.log"
    records = log.with_suffix(".jsonl")
    records.touch()
    command = [sys.executable, "-m", "pytest", *selection, "-m", marked, "-p", "no:cacheprovider"]
    command += ["-p", "no:xdist", "-p", "tools.gpu.records", f"--records={records}"]
    command += [f"--shard={shard}", f"--hang={HANG[marked]}"]
    env = {}
    if marked != "cuda":
        threads = max(1, (os.cpu_count() or 1) // int(shard.split("/")[1]))
        env = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(threads)}
    while True:
        before = len(read(records))
        left = end - time.monotonic()
        code = execute(command, log, left, **env) if left > 0 else None
        seen = read(records)
        stopped = code is None or interrupted.is_set()
        if stopped or len(seen) == before or "end" in seen[-1]:
            return Shard(log, code, seen)
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


def digest(report: Path, shards: list[Shard], limit: float) -> Result:
    """Counts and names; the texts of failures go to a file."""
    worst: dict[str, Record] = {}
    for record in (record for shard in shards for record in shard.records):
        if "test" in record and worst.get(record["test"], {}).get("outcome") != "failed":
            worst[record["test"]] = record
    counts = Counter(record["outcome"] for record in worst.values())
    failed = {name: record["text"] for name, record in worst.items() if is_failed(record)}
    text = ", ".join(f"{counts[kind]} {kind}" for kind in ("passed", "failed", "skipped"))
    well = counts["passed"] > 0 and not failed
    for shard in shards:
        if shard.code is None:
            text += f"; cut off after {limit:.0f} s, in {unfinished(shard.records)}"
        elif shard.code not in (0, 1, NOTHING_TO_DO):
            text += f"; pytest's exit status {shard.code}: {last_line(shard.log.read_text())}"
        well = well and shard.code in (0, NOTHING_TO_DO)
    lines = [f"  {name}: {reason(failed[name])}" for name in list(failed)[:SHOWN]]
    if failed:
        report.write_text("\n\n".join(f"=== {name}\n{failed[name]}" for name in failed) + "\n")
        lines += [f"  and {len(failed) - SHOWN} more in {report.name}"] * (len(failed) > SHOWN)
    skips = Counter(record["text"] for record in worst.values() if record["outcome"] == "skipped")
    lines += [f"  {n} skipped: {why}" for why, n in skips.items() if "No module named" in why]
    data = {"counts": dict(counts), "failed": list(failed)}
    return Result(OK if well else FAILED, text, lines, data)


def is_failed(record: Record) -> bool:
    return bool(record["outcome"] == "failed")


def reason(text: str) -> str:
    """A failure in a line: its exception."""
    errors = (line[1:].strip() for line in text.splitlines() if line.startswith("E  "))
    return next(errors, last_line(text))[:100]
