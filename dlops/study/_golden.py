"""What a GPU gave for the conformance cases of ``csrc/simt/conformance.h``, and which wrappers that confirms.

``make gpu`` runs the conformance program and packs what it left into one archive per GPU. To keep an archive::

    python -m dlops.study._golden build/gpu/conformance-*.npz

copies it to ``tests/simt/golden`` and writes ``dlops/study/confirmed.json``, which an installed package has too.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

CONFIRMED = Path(__file__).with_name("confirmed.json")
GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "simt" / "golden"


def pack(folder: Path, archive_folder: Path) -> Path:
    """Packs index.json and the .bin files that the conformance program left in `folder`; a failed case has no bytes."""
    index = json.loads((folder / "index.json").read_text())
    passed = [name for name, case in index["cases"].items() if case["error"] is None]
    arrays: dict[str, Any] = {name: np.fromfile(folder / f"{name}.bin", dtype=np.uint8) for name in passed}
    archive = archive_folder / f"conformance-{re.sub('[^a-z0-9]+', '-', index['gpu'].lower())}.npz"
    np.savez_compressed(archive, index=np.frombuffer(json.dumps(index).encode(), np.uint8), **arrays)
    return archive


def load(archive: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The index (gpu, architecture, driver, runtime, date, cases) and the bytes of every case that ran."""
    with np.load(archive) as data:
        index = json.loads(data["index"].tobytes())
        return index, {name: data[name].tobytes() for name in data.files if name != "index"}


def keep(archives: Iterable[Path]) -> None:
    """Copies archives to tests/simt/golden and lists in confirmed.json what all archives there confirm."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for archive in archives:
        shutil.copy(archive, GOLDEN)
    rows = []
    for archive in sorted(GOLDEN.glob("*.npz")):
        index, outputs = load(archive)
        rows.append({key: index[key] for key in ("gpu", "driver", "runtime", "date")} | {"cases": sorted(outputs)})
    CONFIRMED.write_text(json.dumps(rows, indent=1) + "\n")


def confirmed_wrappers(cases: Mapping[str, Iterable[str]]) -> tuple[dict[str, str], list[str]]:
    """Wrapper -> the GPUs that confirm it, and the wrappers of which some case has run on no GPU.

    Args:
        cases: every conformance case and the wrappers that it covers.
    """
    rows = json.loads(CONFIRMED.read_text()) if CONFIRMED.exists() else []
    seen = {f"{row['gpu']}, driver {row['driver']}, {row['date']}": set(row["cases"]) for row in rows}
    on = {name: [gpu for gpu, passed in seen.items() if name in passed] for name in cases}
    confirmed, unconfirmed = {}, []
    for wrapper in sorted({wrapper for wrappers in cases.values() for wrapper in wrappers}):
        gpus = [on[name] for name, wrappers in cases.items() if wrapper in wrappers]
        if all(gpus):
            confirmed[wrapper] = "; ".join(sorted({gpu for several in gpus for gpu in several}))
        else:
            unconfirmed.append(wrapper)
    return confirmed, unconfirmed


if __name__ == "__main__":
    keep(map(Path, sys.argv[1:]))
