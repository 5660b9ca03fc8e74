"""What CUDA's compiler makes of the kernels, for GPUs that need not be here."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[1] / "csrc" / "cuda").glob("*.cu"))
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
# kB that a block of threads may use
SHARED = {"sm_80": 163, "sm_90a": 227}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NVCC is None, reason="there is no nvcc"),
]


def compiled(source, gpu, tmp_path):
    """What ptxas says of the kernels, and their instructions where a tool can read them."""
    cubin = tmp_path / "kernels.cubin"
    command = [NVCC, "-std=c++17", "-O3", "-DFASTCKA_WITH_CUDA", "-cubin", f"-arch={gpu}"]
    command += ["-Xptxas", "-v", source, "-o", cubin]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr, instructions(cubin)


def instructions(cubin):
    tool = shutil.which("cuobjdump") or cuobjdump_of_triton()
    if tool is None:
        return None
    return subprocess.run([tool, "-sass", cubin], capture_output=True, text=True, check=True).stdout


def cuobjdump_of_triton():
    try:
        import triton
    except ImportError:
        return None
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@pytest.mark.filterwarnings("ignore")  # of Triton
@pytest.mark.parametrize("gpu", SHARED)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_kernels_spill_nothing_and_use_the_tensor_cores(tmp_path, source, gpu):
    said, code = compiled(source, gpu, tmp_path)
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", said)
    assert frames
    assert set(frames) == {("0", "0", "0")}
    if code is None or not source.stem.startswith("products"):
        return
    kernels = code.split("Function : ")[1:]
    assert len(kernels) == len(frames)
    by_wgmma = source.stem == "products_sm90"
    if by_wgmma and gpu != "sm_90a":  # never launched there
        return
    for kernel in kernels:
        if by_wgmma:  # a triangle's strips of 64 rows and all that are before them
            assert set(re.findall(r"HGMMA\.64x(\d+)x16", kernel)) == {"64", "128", "192", "256"}
        else:
            assert re.search(r"\bHMMA", kernel)
            assert re.search(r"\bLDSM", kernel)
        # the pivot is taken away of two values an instruction
        same = "9half_bitsES" in kernel or "11bfloat_bitsES" in kernel
        assert bool(re.search(r"\bHFMA2", kernel)) == (same or by_wgmma)
        # on their way to shared memory, 16 bytes at once, past the first cache
        assert re.search(r"LDGSTS\.E\.BYPASS.*\.128", kernel)
        assert not re.search(r"\b(?:LDL|STL)\b", kernel)
