"""What Triton's compiler makes of every kernel, for GPUs that need not be here."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastcka.kernels import triton_finish, triton_gram, triton_hsic, triton_launch
from fastcka.kernels.schedule import MIDDLE, SMALL, TRIANGLE, WIDE
from fastcka.kernels.triton_launch import GFX942, SM80, SM90, SM100
from fastcka.kernels.triton_versions import FUSED

pytestmark = pytest.mark.filterwarnings("ignore")  # of Triton itself

GPUS = {
    SM80.name: GPUTarget("cuda", 80, 32),
    SM90.name: GPUTarget("cuda", 90, 32),
    SM100.name: GPUTarget("cuda", 100, 32),
    GFX942.name: GPUTarget("hip", "gfx942", 64),
}
# kB that a program may use
SHARED = {SM80.name: 163, SM90.name: 227, SM100.name: 227, GFX942.name: 64}
# Products of matrices by tensor cores, as the instructions are called.
TENSOR_CORES = {SM80.name: r"\bHMMA", SM90.name: r"\bHGMMA", SM100.name: r"\bUTC\w*MMA"}
TENSOR_CORES[GFX942.name] = r"\bv_mfma"
FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TABLES = {"segments": "*i64", "begins": "*i64", "pivots": "*fp32", "largest": "*i32"}
TABLES |= {"partials": "*fp32"}


def compiled(kernel, gpu, signature, constants, aligned, **options):
    """The kernel for a GPU, by its argument names; `aligned` are at multiples of 16."""
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: signature.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        # As Triton itself finds them of tensors; on AMD's GPUs also that they are below 2 GB.
        attrs={
            (names.index(name),): [["tt.divisibility", 16]]
            + ([["tt.pointer_range", 32]] if gpu == GFX942.name and name != "base" else [])
            for name in aligned
        },
    )
    return triton.compile(source, target=GPUS[gpu], options=options | FUSED)


def compiled_products(target, constants, setting, dtype, aligned=True):
    return compiled(
        triton_gram.products_kernel,
        target.name,
        {"base": "i64", "n": "i32"} | TABLES,
        constants,
        [*TABLES, "base"] if aligned else TABLES,
        num_warps=setting.warps,
        num_stages=setting.stages,
    )


def dump(option, cubin, tmp_path):
    file = tmp_path / "kernel.cubin"
    file.write_bytes(cubin)
    return subprocess.run([TOOL, option, file], capture_output=True, text=True, check=True).stdout


def check_resources(binary, gpu, tmp_path):
    """No spills, no local memory, and shared memory within the limit. Returns the instructions."""
    assert binary.metadata.shared <= SHARED[gpu] << 10
    if gpu == GFX942.name:
        text = binary.asm["amdgcn"]
        for what in ("vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size"):
            assert re.findall(rf"\.{what}:\s*(\d+)", text) == ["0"], what
        return text
    usage = dump("-res-usage", binary.asm["cubin"], tmp_path)
    assert re.findall(r"STACK:(\d+)", usage)[-1] == "0"
    code = dump("-sass", binary.asm["cubin"], tmp_path)
    assert not re.findall(r"\b(?:LDL|STL)\b", code)
    return code


def used(target):
    """Tiles of 16-bit values."""
    unused = [] if target.triangles else [TRIANGLE]
    unused += [] if target.pair is WIDE else [WIDE]
    return [tile for tile in target.narrow if tile not in unused]


def products():
    for target in (SM80, SM90, SM100, GFX942):
        for tile in used(target):
            for dtype in (FP16, BF16):
                for decided in uses(tile):
                    yield target, tile, dtype, dtype, True, False, decided
            for decided in uses(tile):  # rows far apart
                yield target, tile, FP16, FP16, True, True, decided
            if tile.kind != "triangle" and tile is not WIDE:  # value by value
                yield target, tile, FP16, FP16, False, False, False
        for tile in target.wide:
            for dtype, operand in ((FP32, FP32), (FP32, FP16), (FP16, FP32)):
                yield target, tile, dtype, operand, True, False, False
            yield target, tile, FP32, FP32, False, True, False


def uses(tile):
    """Without and with values that go as they are: from 129 rows on, which have other tiles too."""
    return {SMALL: [False], MIDDLE: [False, True]}.get(tile, [True])


def label(case):
    target, tile, dtype, operand, aligned, far, decided = case
    types = f"{str(dtype)[6:]}-{str(operand)[6:]}"
    ends = ("" if aligned else "-ragged") + ("-far" if far else "") + "-decided" * decided
    return f"{target.name}-{tile.kind}-{tile.rows}x{tile.columns}-{types}{ends}"


def often(case):
    """A few in every run, the rest in the slow one."""
    target, tile, dtype, operand, aligned, far, _ = case
    told = tile in (SMALL, TRIANGLE) and target is SM90
    return told and dtype == operand == FP16 and aligned and not far


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=label(case), marks=() if often(case) else pytest.mark.slow)
        for case in products()
    ],
)
def test_products_use_the_tensor_cores_and_spill_nothing(tmp_path, case):
    target, tile, dtype, operand, aligned, far, decided = case
    constants, setting = triton_launch.products_constants(
        target, tile, dtype, operand, decided=decided, aligned=aligned, far=far
    )
    binary = compiled_products(target, constants, setting, dtype, aligned)
    code = check_resources(binary, target.name, tmp_path)
    assert re.search(TENSOR_CORES[target.name], code)
    if constants["BY_TMA"]:
        assert re.search(r"\bUTMALDG", code)
    elif aligned and target is not GFX942:  # on their way to shared memory, 16 bytes at once
        assert re.search(r"LDGSTS\.E.*\.128", code)


@pytest.mark.slow
def test_settings_that_a_gpu_is_to_choose_from_are_compiled_without_spills(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    for n, tile, setting, _ in importlib.import_module("gpu_settings").candidates():
        target = SM90._replace(narrow=SM90.narrow | {tile: setting})
        constants, setting = triton_launch.products_constants(
            target, tile, FP16, FP16, decided=n >= triton_launch.DECIDED
        )
        binary = compiled_products(target, constants, setting, FP16)
        check_resources(binary, SM90.name, tmp_path)
        assert setting.programs * binary.metadata.shared <= SHARED[SM90.name] << 10, setting


def others():
    n = {"n": "i32"}
    sample = {"base": "i64", "layers": "*i64", "pivots": "*fp32", "largest": "*i32"}
    sums = {"norms": "*fp64", "pairs": "*fp64"}
    for rows in (4, 8):
        constants = {"DTYPE": tl.float16, "PIECE": 8, "ROWS": rows, "BLOCK": 1024, "PADDING": 256}
        constants["DECIDED"] = rows == 8
        yield f"sample-{rows}", triton_gram.sample_kernel, sample | sums | n, constants
    constants = {"LIMIT": triton_launch.LIMIT[FP16], "ROWS": 8, "TOGETHER": triton_launch.TOGETHER}
    decide = sums | {"blocks": "i32", "largest": "*i32"}
    yield "decide", triton_gram.decide_kernel, decide, constants
    works = {"works": "*i64", "partials": "*fp32", "largest": "*i32", "k": "*fp64"} | n
    for tile in SM90.narrow:
        constants = {"KIND": tile.kind, "A": tile.rows, "B": tile.columns}
        constants["SIDE"] = triton_launch.SIDE
        name = f"add-up-{tile.kind}-{tile.rows}x{tile.columns}"
        yield name, triton_gram.add_up_kernel, works, constants
    sums = {"k": "*fp64", "sums": "*fp64"} | n
    outputs = {name: "*fp64" for name in ("packed", "diagonal", "row_sums", "squares")}
    pack = sums | outputs | {"packed_stride": "i64"}
    pack |= {"diagonal_stride": "i32", "row_sums_stride": "i32"}
    summary = {"squares": "*fp64", "diagonal": "*fp64", "stats": "*fp64", "summary": "*fp64"}
    summary |= n | {"blocks": "i32", "diagonal_stride": "i32", "summary_stride": "i32"}
    whole = {
        name: kind for name, kind in (pack | summary).items() if name not in ("sums", "squares")
    }
    for columns in (8, 64, 256, 2048):
        size = {"COLUMNS": columns}
        yield f"recentre-{columns}", triton_gram.recentre_kernel, sums, size
        yield f"row-sums-{columns}", triton_finish.row_sums_kernel, sums, size
        for pivoted in (False, True):
            kind = "-pivoted" * pivoted
            for biased in (False, True):
                constants = size | {"BIASED": biased, "PIVOTED": pivoted}
                name = f"{columns}{kind}{'-biased' * biased}"
                yield f"pack-{name}", triton_finish.centre_and_pack_kernel, pack, constants
                if columns <= triton_finish.WHOLE:
                    yield f"finish-{name}", triton_finish.finish_kernel, whole, constants
            constants = size | {"PIVOTED": pivoted}
            yield f"summary-{columns}{kind}", triton_finish.summary_kernel, summary, constants
    hsic = {name: "*fp64" for name in ("a", "b", "partials")}
    hsic |= {"rows_a": "i32", "rows_b": "i32", "length": "i32", "run": "i32"}
    hsic |= {"a_stride": "i64", "b_stride": "i64"}
    constants = {"TILE": triton_hsic.TILE, "STEP": triton_hsic.STEP}
    yield "hsic", triton_hsic.hsic_kernel, hsic, constants


@pytest.mark.slow
@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("kernel", list(others()), ids=lambda kernel: kernel[0])
def test_the_other_kernels_spill_nothing(tmp_path, kernel, gpu):
    _, function, signature, constants = kernel
    pointers = [name for name, kind in signature.items() if kind.startswith("*")]
    options = {"num_warps": 16} if function is triton_finish.finish_kernel else {}
    binary = compiled(function, gpu, signature, constants, pointers, **options)
    check_resources(binary, gpu, tmp_path)


def test_a_kernel_that_needs_too_many_registers_would_be_seen(tmp_path):
    constants, setting = triton_launch.products_constants(SM90, WIDE, FP16, FP16)
    constants |= {"A": 256, "STEP": 64}
    binary = compiled_products(SM90, constants, setting._replace(stages=2), FP16)
    with pytest.raises(AssertionError):
        check_resources(binary, SM90.name, tmp_path)


def test_fastcka_does_not_import_triton_until_it_is_used():
    code = "import fastcka, sys; raise SystemExit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code]).returncode == 0
