"""What is installed and what will run, in words: `fastcka info`."""

import platform

import torch

from fastcka.kernels import dispatch, measure_speed, native, speed
from fastcka.machine import installed
from fastcka.options import BACKENDS
from fastcka.provenance import PACKAGES


def describe() -> str:
    """The text of `fastcka info`."""
    sections = [_versions(), _native(), _devices(), _measured(), _backends()]
    return "\n\n".join("\n".join(section) for section in sections)


def measure() -> None:
    """`measure_speed` of every kind of device here: `fastcka info --measure`."""
    for device in _kinds():
        measure_speed(device)


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


def _measured() -> list[str]:
    lines = []
    for device in _kinds():
        table, path, remarks = speed.known(device)
        if table is not None:
            threads = f", {table.threads} threads" if table.threads else ""
            lines.append(f"{f'speed of {device}':<18}measured {table.date}{threads}: {path}")
        else:
            lines.append(
                f"{f'speed of {device}':<18}nothing was measured on this {_KIND[device.type]} yet; "
                "`fastcka info --measure` does so"
            )
        lines += [f"{'':<18}{remark}" for remark in remarks]
    return lines


_KIND = {"cpu": "CPU", "cuda": "GPU"}


def _kinds() -> list[torch.device]:
    """The CPU, and of GPUs with the same name the first."""
    indices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    first: dict[str, torch.device] = {}
    for index in indices:
        first.setdefault(torch.cuda.get_device_name(index), torch.device("cuda", index))
    return [torch.device("cpu"), *first.values()]


def _backends() -> list[str]:
    lines = [f"{'operation':<12}{'device':<8}backend, or type of the activations"]
    for device in _kinds():
        barred = [name for name in BACKENDS if dispatch.obstacle(name, device)]
        for operation in dispatch.OPERATIONS:
            where = f"{operation:<12}{device!s:<8}"
            cases = speed.cases(operation, device)
            for dtype, n in cases:
                rows = dispatch.explain(operation, device, dtype, n)
                told = [_told(*row) for row in rows if row[1] or row[0] not in barred]
                lines.append(f"{where}{speed.dtype_name(dtype):<10}{'; '.join(told)}")
            for row in dispatch.explain(operation, device):
                if row[0] in barred or not cases:
                    lines.append(where + _told(f"{row[0]:<9}", *row[1:]))
    return lines


def _told(backend: str, runs: bool, reason: str) -> str:
    return f"{backend} {'runs' if runs else 'not used'}: {reason}"
