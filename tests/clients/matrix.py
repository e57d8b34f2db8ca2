#!/usr/bin/env python3
"""Runs real clients and real proxies while oxicorn's workers are replaced: `make clients` (short), `make soak-clients`.

Prints the versions, then the matrix row by row: how many requests were tried and how many were lost. Fails when a cell
has lost requests that the row's `known` does not explain, or when a cell cannot be tried because a tool is missing.
"""

import argparse
import collections
import concurrent.futures
import re
import signal
import subprocess
import sys
import time

import direct
import proxies
from drive import EVENTS, TARGET, Broken, Result, certificate

ROWS = [*direct.ROWS, *proxies.ROWS]


def arguments():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--list", action="store_true", help="only print the names of the rows")
    ask.add_argument("--short", action="store_true", help="the rows of `make clients`")
    ask.add_argument("--direct", action="store_true", help="the rows without a proxy")
    ask.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="WORD",
        help="only rows whose name holds this; may be given several times",
    )
    ask.add_argument("--event", action="append", choices=list(EVENTS), help="only these events")
    ask.add_argument("--seconds", type=float, default=6, help="the time of each cell")
    ask.add_argument("--jobs", type=int, default=2, help="cells side by side")
    return ask.parse_args()


def cell(row, event, seconds):
    """Tries one cell. Returns ({method: Result}, oxicorn's counts), or the reason why it could not be tried."""
    try:
        return row.run(EVENTS[event], seconds)
    except Broken as error:
        return str(error)


def wrong(row, event, outcome):
    """Yields one sentence for each fault of one cell, so nothing if the cell is as it should be."""
    if isinstance(outcome, str):
        yield f"{row.title}, {event}: {outcome}"
        return
    results, counted = outcome
    for method, result in results.items():
        known, said = (
            row.explains(event, method),
            "; ".join(f"{n} × {text}" for text, n in result.errors.most_common(4)),
        )
        what = f"{row.title}, {event}, {method}: {result.lost} of {result.tried} lost"
        if result.tried - result.lost == 0:
            yield f"{what}: nothing was answered ({said})"
        elif result.lost > (known.share * result.tried if known else 0):
            yield f"{what} ({said})"
        elif result.lost:
            print(f"   known: {what} ({said}): {known.why}", file=sys.stderr)
    if counted["crashed"] or counted["hung"]:
        yield f"{row.title}, {event}: {counted}"
    tried, left = sum(result.tried for result in results.values()), row.load.threads * len(results)
    # A load generator may end in the middle of a request on each connection, so oxicorn may have counted a few more.
    if counted["requests"] > tried + left:
        print(
            f"   repeated: {row.title}, {event}: {counted['requests']} requests executed of {tried} tried",
            file=sys.stderr,
        )


def figures(outcome):
    if isinstance(outcome, str):
        return "broken"
    return " / ".join(f"{result.tried:,} ({result.lost})" for result in outcome[0].values())


def versions():
    """Yields name and version of each client and proxy: from a Python package's folder, or a program's output."""
    for info in sorted(TARGET.glob("clients-*/*.dist-info")):
        yield " ".join(info.stem.rsplit("-", 1))
    for name, command in (direct.VERSIONS | proxies.VERSIONS).items():
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
        except OSError:
            continue  # the cells of this program report that it is missing
        yield f"{name} {found[0]}" if (found := re.search(r"\d+(\.\d+)+", done.stdout)) else name


def main():
    ask = arguments()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the run and its programs at once
    rows = [
        row
        for row in (direct.ROWS if ask.direct else ROWS)
        if (row.short or not ask.short) and (not ask.only or any(word in row.title for word in ask.only))
    ]
    if ask.list:
        return print(*(row.title for row in rows), sep="\n")
    certificate()  # makes it now, so that two cells do not make it at the same time
    events, faults, good, began = ask.event or list(EVENTS), [], 0, time.monotonic()
    everything, happened = Result(), collections.Counter()
    print(*versions(), sep=", ")
    print(
        f"\nRequests (lost), GET / POST:\n\n| client | {' | '.join(events)} |\n|{'---|' * (len(events) + 1)}",
        flush=True,
    )
    with concurrent.futures.ThreadPoolExecutor(ask.jobs) as pool:
        cells = {
            (row.title, event): pool.submit(cell, row, event, ask.seconds)
            for row in rows
            for event in events
            if event in row.events
        }
        for row in rows:
            line = []
            for event in events:
                if (row.title, event) not in cells:
                    line.append("–")
                    continue
                outcome = cells[row.title, event].result()
                line.append(figures(outcome))
                found = list(wrong(row, event, outcome))
                faults, good = faults + found, good + (not found)
                if not isinstance(outcome, str):
                    everything, happened = sum(outcome[0].values(), everything), happened + outcome[1]
            print(f"| {row.title} | {' | '.join(line)} |", flush=True)
    events = ", ".join(f"{happened[name]:,} {name}" for name in ("reloads", "recycled", "upgrades", "stops"))
    print("", *(f"FAILED: {fault}" for fault in faults), "", sep="\n")
    print(
        f"{everything.tried:,} requests, {everything.lost:,} lost, "
        f"the longest wait {everything.longest_ms:.0f} ms; {events}"
    )
    print(f"It took {time.monotonic() - began:.0f} s\n{good} passed, {len(cells) - good} failed")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
