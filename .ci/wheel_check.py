"""Builds the wheel, installs it into a fresh environment beside torch and numpy, and uses it away from the source."""

import subprocess
import sys
import tempfile
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

USE = """
import sys
# What the package does not require must not be needed to import it.
for name in "diffusers hypothesis jinja2 lightning matplotlib pybind11 pytest scipy sklearn tqdm transformers".split():
    sys.modules[name] = None
import importlib.metadata, torch, dlops
from dlops import courses
assert "B1" in courses.rows() and courses.find("B1").goals  # listed without the extra, trained with it
assert "site-packages" in dlops.__file__, dlops.__file__
assert importlib.metadata.version("dlops") == dlops.__version__
with dlops.backend("dlops"):
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(dlops.functional.group_norm(x, 4), torch.nn.functional.group_norm(x, 4))
    noise = dlops.diffusion.randn((2, 3, 4), seeds=torch.tensor([1, 2]))
assert noise.isfinite().all()
print(f"dlops {dlops.__version__} with torch {torch.__version__}: {len(dlops.kernels())} kernels, on {dlops.cpu_isa()}")
"""


def main() -> None:
    wheels = ROOT / "build" / "wheel"
    wheels.mkdir(parents=True, exist_ok=True)
    for old in wheels.glob("*.whl"):
        old.unlink()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", wheels, ROOT], check=True)
    (wheel,) = wheels.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    strays = {name.split("/")[0] for name in names} - {"dlops", "-".join(wheel.stem.split("-")[:2]) + ".dist-info"}
    assert not strays, f"the wheel also holds {strays}"
    print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 1e6:.1f} MB")

    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder)
        python = Path(folder) / "bin" / "python"
        # torch and numpy from where they are: the folders are added behind the environment's own.
        owners = {str(Path(find_spec(name).origin).parent.parent) for name in ("torch", "numpy", "typing_extensions")}
        own = Path(folder) / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"
        (own / "torch.pth").write_text("\n".join(owners))
        # No index: fails where the wheel requires more than these folders hold.
        subprocess.run([*pip, "--python", python, "install", "-q", "--no-index", wheel], check=True)
        subprocess.run([str(python), "-I", "-c", USE], check=True, cwd=folder)
        script = Path(folder) / "bin" / "dlops"
        subprocess.run([script, "kernels"], check=True, cwd=folder, stdout=subprocess.DEVNULL)
    print("wheel-check: passed")


if __name__ == "__main__":
    main()
