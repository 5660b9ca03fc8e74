"""Where a number comes from: versions, machine, commit."""

import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

from fastcka.kernels import native
from fastcka.machine import device_name, installed

PACKAGES = ("fastcka", "torch", "timm", "torchvision", "numpy", "scipy", "triton")


def provenance(device: torch.device | str = "cpu") -> dict:
    """What a result should say of the machine and the software that made it, ready for JSON."""
    device = torch.device(device)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        "python": platform.python_version(),
        "versions": {package: installed(package) for package in PACKAGES},
        "commit": commit(),
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": device_name(device),
    }


def commit() -> str | None:
    """The commit of fastcka's sources, `-dirty` where changed: of the checkout, or of the build."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return (native.module.build_info()["commit"] or None) if native.module else None
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
