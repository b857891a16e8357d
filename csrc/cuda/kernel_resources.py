"""Reads the logs of `nvcc -Xptxas -v,--warn-on-spills` and says what each kernel uses on each architecture.

    kernel_resources.py LOG... [-o FILE] [--check]

-o writes the rows as JSON; --check exits 1 if a kernel spills registers or ptxas gave warning C7508 (setmaxnreg
ignored), C7510 or C7517 (wgmma serialised). Without -o, or with --check, a short table goes to stdout.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
PROPERTIES = re.compile(r"Function properties for (\w+)")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
WARNING = re.compile(r"C(7508|7510|7517)\b")
SPILLED = re.compile(r"Registers are spilled to local memory in function '(\w+)', (.*)")


def demangle(names: list[str]) -> dict[str, str]:
    """Mangled -> readable, without the return type and the parameters; unchanged where c++filt is missing."""
    if not names or shutil.which("c++filt") is None:
        return {name: name for name in names}
    out = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return {name: shorten(text) for name, text in zip(names, out.splitlines())}


def shorten(signature: str) -> str:
    """'void dlops::norm::f<float, true>(P, bool)' -> 'dlops::norm::f<float, true>'."""
    text, depth = signature.removeprefix("void "), 0
    for i, character in enumerate(text):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0 and not text.startswith("(anonymous namespace)", i):
            return text[:i]
    return text


def parse(text: str) -> tuple[list[dict], list[str]]:
    """(rows, complaints) of one log."""
    rows: list[dict] = []
    complaints: list[str] = []
    warned: list[tuple[str, str]] = []
    inside = ""  # the function that the frame line describes: a kernel, or a helper it calls
    for line in text.splitlines():
        if entry := ENTRY.search(line):
            rows.append({"kernel": entry[1], "architecture": entry[2], "registers": 0, "shared_static": 0})
            rows[-1] |= {"spill_stores": 0, "spill_loads": 0, "stack": 0}
        elif properties := PROPERTIES.search(line):
            inside = properties[1]
        elif (frame := FRAME.search(line)) and rows:
            stack, stores, loads = (int(n) for n in frame.groups())
            if inside == rows[-1]["kernel"]:
                rows[-1] |= {"stack": stack, "spill_stores": stores, "spill_loads": loads}
        elif (used := USED.search(line)) and rows:
            shared = SHARED.search(line)
            rows[-1] |= {"registers": int(used[1]), "shared_static": int(shared[1]) if shared else 0}
        elif WARNING.search(line):
            complaints.append(line.strip())
        elif spilled := SPILLED.search(line):
            warned.append((spilled[1], spilled[2]))
    for row in rows:
        if row["spill_stores"] or row["spill_loads"]:
            spills = f"{row['spill_stores']} bytes of spill stores, {row['spill_loads']} of loads"
            complaints.append(f"{row['kernel']} ({row['architecture']}): {spills}")
    kernels = {row["kernel"] for row in rows}
    complaints += [f"{name}: {amount}" for name, amount in warned if name not in kernels]  # a helper it calls
    return rows, complaints


def table(rows: list[dict]) -> None:
    print(f"{'kernel':58} {'arch':8} {'regs':>4} {'shared':>6} {'spill':>5} {'stack':>5}")
    for row in rows:
        spill = row["spill_stores"] + row["spill_loads"]
        print(
            f"{row['kernel']:58} {row['architecture']:8} {row['registers']:4} {row['shared_static']:6}"
            f" {spill:5} {row['stack']:5}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    rows, complaints = [], []
    for log in options.logs:
        more_rows, more_complaints = parse(log.read_text(errors="replace"))
        rows += more_rows
        complaints += more_complaints
    readable = demangle([row["kernel"] for row in rows])
    for row in rows:
        row["kernel"] = readable[row["kernel"]]
    # A template kernel that two files use is compiled twice, alike.
    rows = list({(row["kernel"], row["architecture"]): row for row in rows}.values())
    rows.sort(key=lambda row: (row["kernel"], row["architecture"]))
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")
    if options.check or not options.output:
        table(rows)
    names = [m[0] for c in complaints if (m := re.match(r"_Z\w+", c))]
    readable |= demangle(names)
    for complaint in complaints:
        print("error: " + re.sub(r"_Z\w+", lambda m: readable.get(m[0], m[0]), complaint), file=sys.stderr)
    return 1 if options.check and complaints else 0


if __name__ == "__main__":
    sys.exit(main())
