"""Where a number comes from."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def provenance(device="cpu"):
    """What belongs into every row, flat and ready for JSON."""
    device = torch.device(device)
    cuda = device.type == "cuda"
    commit, dirty = _commit()
    return {
        "device": torch.cuda.get_device_properties(device).name if cuda else _processor(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "isa": _isa(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "numpy": _version("numpy"),
        "scipy": _version("scipy"),
        "fastcka": _version("fastcka"),
        "cuda": torch.version.cuda if cuda else None,
        "driver": nvidia_smi("driver_version").get("driver_version") if cuda else None,
        # Left as torch ships it, where cuBLAS may add partial products up in half precision.
        "fp16_reduced_reduction": torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        "commit": commit,
        "dirty": dirty,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(),
    }


def clocks(device):
    """Clocks, temperature and power of a GPU just now; empty where nvidia-smi does not say."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    fields = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")
    return nvidia_smi(*fields, gpu=f"GPU-{uuid}") if uuid else {}


def nvidia_smi(*fields, gpu=None):
    """Ask nvidia-smi, which is no part of torch and may be missing."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    if gpu:
        command.append(f"--id={gpu}")
    lines = _output(command).splitlines()
    return dict(zip(fields, lines[0].split(", "), strict=False)) if lines else {}


def _isa():
    """The instruction set of the native CPU kernels."""
    try:
        from fastcka.kernels import native
    except ImportError:
        return None
    return native.module.isa() if native.module else None


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit():
    """Commit and whether anything but results differs from it.

    A copy of the tree without git says which commit it is in FASTCKA_BENCH_COMMIT.
    """
    commit = _output(["git", "-C", str(ROOT), "rev-parse", "HEAD"]).strip()
    if not commit:
        return os.environ.get("FASTCKA_BENCH_COMMIT"), None
    status = ["git", "-C", str(ROOT), "status", "--porcelain", "--", ".", ":!bench/results"]
    return commit, bool(_output(status).strip())


def _command():
    program = Path(sys.argv[0]).resolve()
    if program.name == "__main__.py":  # python -m pytest
        program = program.parent
    # Not an environment that lies in the folder.
    inside = program.is_relative_to(ROOT / "bench")
    command = [str(program.relative_to(ROOT)) if inside else program.name, *sys.argv[1:]]
    return " ".join(command).replace(f"{ROOT}/", "").replace(str(ROOT), ".")


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _output(command):
    """What a command prints; nothing where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
