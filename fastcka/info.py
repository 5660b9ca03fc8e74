"""What is installed and what will run, in words: `fastcka info`."""

import platform

import torch

from fastcka.kernels import dispatch, native
from fastcka.provenance import PACKAGES, installed


def describe() -> str:
    """The text of `fastcka info`."""
    sections = [_versions(), _native(), _devices(), _backends()]
    return "\n\n".join("\n".join(section) for section in sections)


def _versions() -> list[str]:
    lines = [f"python      {platform.python_version()} on {platform.machine()}"]
    for package in PACKAGES:
        lines.append(f"{package:<12}{installed(package) or 'not installed'}")
    return lines


def _native() -> list[str]:
    if native.module is None:
        return [f"native kernels    not installed: {native.missing}"]
    build = native.module.build_info()
    in_use = native.module.isa()
    isas = [
        f"{isa} ({'in use' if isa == in_use else 'available' if supported else 'not on this CPU'})"
        for isa, supported in build["isas"].items()
    ]
    return [
        f"native kernels    built by {build['compiler']}",
        f"instruction sets  {', '.join(isas)}; FASTCKA_ISA forces one",
        f"OpenMP            {'yes' if build['openmp'] else 'no: one thread'}",
        f"CUDA              {'built for ' + build['cuda'] if build['cuda'] else 'not built'}",
    ]


def _devices() -> list[str]:
    lines = [f"cpu               {torch.get_num_threads()} threads"]
    if not torch.cuda.is_available():
        why = "this torch has no CUDA" if torch.version.cuda is None else "no GPU or no driver"
        return [*lines, f"cuda              none ({why})"]
    return lines + [
        f"cuda:{index}            {torch.cuda.get_device_name(index)}"
        for index in range(torch.cuda.device_count())
    ]


def _backends() -> list[str]:
    kinds = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    lines = [f"{'operation':<12}{'device':<8}{'backend':<10}"]
    for kind in kinds:
        for operation in dispatch.OPERATIONS:
            for backend, runs, reason in dispatch.explain(operation, torch.device(kind)):
                mark = "runs" if runs else "not used"
                lines.append(f"{operation:<12}{kind:<8}{backend:<10}{mark}: {reason}")
    return lines
