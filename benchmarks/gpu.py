"""Everything worth knowing from a short visit to a machine with a GPU: make gpu [WHAT=family]

Builds, runs the conformance program (what each instruction wrapper does on this GPU, for the simt runner to be compared
with), the GPU tests, the benchmarks (GPU; CPU at 1 and at all threads), a sample of the tests under compute-sanitizer and
the CPU tests, in at most 8 minutes: every phase has a limit, none stops the next. The logs and
figures go into one archive in $OUT, or in benchmarks/results/ where that is unset; a short table comes last.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 460.0  # s for all phases; the rest of the 8 minutes is for the archive
KEPT = 12.0  # s kept for each phase that is still to come
SANITIZED = 40  # tests under compute-sanitizer, spread evenly over the GPU tests
PYTHON = sys.executable


@dataclass
class Phase:
    """One step of the visit: its command, its limit in seconds, and whether it is pointless without a GPU."""

    name: str
    limit: float
    command: list[str]
    gpu: bool = True
    status: str = "not run"
    seconds: float = 0.0
    summary: str = ""


def run(phase: Phase, log: Path, seconds: float) -> None:
    """Runs one phase in a process group of its own, so that a limit ends all of it."""
    start = time.monotonic()
    with log.open("w") as out:
        child = subprocess.Popen(phase.command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True)
        try:
            phase.status = "ok" if child.wait(timeout=seconds) == 0 else f"failed ({child.returncode})"
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            phase.status = "timed out"
    phase.seconds = time.monotonic() - start
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if re.search(r"\d+ (passed|failed|error)|ERROR SUMMARY|RACECHECK SUMMARY", line)]
    phase.summary = "; ".join(line.strip("= ") for line in told[-2:])
    if phase.name.startswith("bench") or phase.status != "ok":
        print("\n".join(lines[-25:]), flush=True)


def phases(what: str, results: Path, sanitizer: str | None) -> list[Phase]:
    """The plan, the most valuable first."""
    tests = [f"tests/{what}"] if what and (ROOT / "tests" / what).exists() else []
    pytest = [PYTHON, "-m", "pytest", "-rf", "--tb=short", *tests]
    bench = [PYTHON, "-m", "dlops", "bench", *(["--family", what] if what else [])]

    def measure(name: str, limit: float, options: str, gpu: bool) -> Phase:
        return Phase(name, limit, [*bench, *options.split(), "--json", str(results / f"{name}.json")], gpu)

    def on_cpu(threads: int) -> Phase:
        options = f"--threads {threads} --seconds 0.15 --compile none --here-only"
        return measure(f"bench-cpu-{threads}", 60, options, gpu=False)

    plan = [
        Phase("build", 150, [PYTHON, "setup.py", "-q", "build_ext", "--inplace"], gpu=False),
        Phase("doctor", 30, [PYTHON, "-m", "dlops", "doctor"], gpu=False),
        Phase("conformance", 90, [PYTHON, __file__, "--conformance", str(results)]),
        Phase("tests-cuda", 120, [*pytest, "-k", "cuda"]),
        measure("bench-cuda", 120, "--device cuda --seconds 0.2", gpu=True),
    ]
    if sanitizer:
        # Only kernels with dlops in their name: torch's own are neither ours nor quick to check.
        check = [sanitizer, "--kernel-name", "kernel_substring=dlops", "--error-exitcode", "9"]
        again = [PYTHON, __file__, "--sanitized", *tests]
        plan += [Phase(tool, 60, [*check, "--tool", tool, *again]) for tool in ("memcheck", "racecheck")]
    cores = len(os.sched_getaffinity(0))
    plan += [on_cpu(1), on_cpu(cores)] if cores > 1 else [on_cpu(1)]
    return [*plan, Phase("tests-cpu", 90, [*pytest, "-k", "not cuda"], gpu=False)]


def conformance(results: Path) -> int:
    """Builds and runs the conformance program, packs its outputs and compares them with the simt runner's."""
    from dlops.study import _golden, _runner, planting

    build = planting.build_tree()
    planting.ninja(build, "conformance_program")
    folder = results / "conformance"
    folder.mkdir()
    code = subprocess.run([build / "conformance", folder], check=False).returncode
    archive = _golden.pack(folder, results)
    shutil.rmtree(folder)
    index, outputs = _golden.load(archive)
    runner = _runner.module()
    different = [name for name, output in outputs.items() if runner.run_conformance(name) != output]
    for name, case in index["cases"].items():
        if name in different or case["error"]:
            print(f"{name}: {case['error'] or 'the simt runner gives other bytes'}")
    print(
        f"conformance: {len(outputs) - len(different)} passed, {len(index['cases']) - len(outputs)} not run, "
        f"{len(different)} failed"
    )
    print(f"to keep them: python -m dlops.study._golden {archive.name}")
    return code or int(bool(different))


def sanitized(tests: list[str]) -> int:
    """Runs an even sample of the GPU tests in this process, the one that compute-sanitizer watches."""
    import pytest

    class Sample:
        @pytest.hookimpl(trylast=True)  # after -k and -m
        def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
            items[:] = items[:: max(1, len(items) // SANITIZED)]

    return pytest.main(["-k", "cuda", "-p", "no:cacheprovider", *tests], plugins=[Sample()])


def facts(results: Path) -> str:
    """What the machine is, into machine.txt; returns one line of it."""
    commands = ("nvidia-smi", "nvidia-smi -q", "lscpu", "nvcc --version", "g++ --version", "git rev-parse HEAD")
    with (results / "machine.txt").open("w") as out:
        for command in commands:
            words = command.split()
            if shutil.which(words[0]):
                done = subprocess.run(words, capture_output=True, text=True, timeout=30, cwd=ROOT, check=False)
                out.write(f"$ {command}\n{done.stdout}{done.stderr}\n")
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    asked = "import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else '-')"
    done = subprocess.run([PYTHON, "-c", asked], capture_output=True, text=True, check=False)
    torch, _, gpu = done.stdout.strip().partition(" ")
    return f"torch {torch} | {gpu or '-'} | {cpu[1] if cpu else 'unknown CPU'}, {len(os.sched_getaffinity(0))} cores"


def main(what: str) -> int:
    start = time.monotonic()
    results = ROOT / "build" / "gpu"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    machine = facts(results)
    print(machine, flush=True)
    has_gpu = "| - |" not in machine
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    plan = phases(what, results, sanitizer)
    for position, phase in enumerate(plan):
        left = LIMIT - (time.monotonic() - start) - KEPT * (len(plan) - 1 - position)
        if phase.gpu and not has_gpu:
            phase.status = "no GPU"
        elif position and plan[0].status != "ok":
            phase.status = "no build"
        elif left < KEPT:
            phase.status = "no time"
        else:
            print(f"--- {phase.name}: {' '.join(phase.command)}", flush=True)
            run(phase, results / f"{phase.name}.log", min(phase.limit, left))

    lines = [f"{p.name:14}{p.status:14}{p.seconds:6.1f} s  {p.summary}" for p in plan]
    if not sanitizer:
        lines.append("compute-sanitizer is not installed: memcheck and racecheck were left out")
    table = "\n".join([machine, *lines, f"{time.monotonic() - start:.0f} s in all"])
    (results / "summary.txt").write_text(table + "\n")
    folder = Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results")
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"dlops-gpu{'-' + what if what else ''}-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(results, arcname=archive.name.removesuffix(".tar.gz"))
    print(f"\n{table}\n{archive}")
    return 0 if has_gpu and all(p.status in ("ok", "no time") for p in plan) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--sanitized"]:
        sys.exit(sanitized(sys.argv[2:]))
    if sys.argv[1:2] == ["--conformance"]:
        sys.exit(conformance(Path(sys.argv[2])))
    sys.exit(main(" ".join(sys.argv[1:])))
