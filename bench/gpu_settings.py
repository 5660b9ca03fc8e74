"""Which settings of the Triton kernels are fastest on this GPU: `python bench/gpu_settings.py`.

For each number of rows the tiles and settings that may be best, on layers whose values are
multiplied as they are and on layers that are centred first. What is found goes into the tables of
`fastcka/kernels/triton_launch.py`. Appends rows as gpu.py does; a variant is named by its setting.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from unittest.mock import patch

import measurements
import torch
from cases import FEATURES, FULL, activations
from provenance import provenance
from reference import TOLERANCE, gram64, packed, relative_error
from rows import Rows, result_file
from runner import Runner, Variant

from fastcka.kernels import gram_finish
from fastcka.kernels.schedule import MIDDLE, PAIR, SMALL, TRIANGLE, WIDE

SHAPE = "vit_b_tokens"
LAYERS = {64: 8, 128: 8, 256: 8, 1024: 2}
# Means in standard deviations: beside the larger ones, values are centred.
MEANS = {"as they are": 0.0, "centred": 30.0}


def candidates():
    """Rows of the layers, tile, its setting, and the tile of pairs: for sm_90."""
    from fastcka.kernels.triton_launch import Setting

    for tma in (False, True):
        for step, stages, programs in ((128, 4, 2), (128, 3, 3), (64, 5, 4), (64, 8, 3)):
            yield 64, SMALL, Setting(step, 4, stages, programs, tma), WIDE
        for step, stages, programs in ((64, 4, 1), (64, 3, 2), (128, 3, 1)):
            yield 128, MIDDLE, Setting(step, 8, stages, programs, tma), WIDE
    for step, stages in ((64, 3), (64, 4), (64, 5), (32, 8)):
        yield 256, TRIANGLE, Setting(step, 8, stages, tma=True), WIDE
    yield 256, TRIANGLE, Setting(32, 8, 4), WIDE
    for tma, stages in ((True, 3), (True, 4), (False, 4)):
        yield 1024, WIDE, Setting(64, 8, stages, tma=tma), WIDE
        yield 1024, PAIR, Setting(64, 8, stages, tma=tma), PAIR


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, help="default: bench/results/<device>_settings.jsonl"
    )
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        print("bench/gpu_settings.py needs a GPU of compute capability 9.0.", file=sys.stderr)
        return 2
    source = provenance("cuda")
    rows = Rows(options.output or result_file(source["device"], "_settings"), source)
    runner = Runner(torch.device("cuda", 0), FULL, rows)
    measurements.bandwidth(runner)
    measurements.matrix_rate(runner)
    for n, layers in LAYERS.items():
        for kind, mean in MEANS.items():
            print(f"n = {n}, {kind}", file=sys.stderr, flush=True)
            measure(runner, f"{SHAPE}, {kind}", n, FEATURES[SHAPE], layers, mean)
    print(rows.table())
    return 0


def measure(runner, shape, n, p, layers, mean):
    dtype = torch.float16
    common = (mean * torch.randn(p, device=runner.device)).to(dtype)
    together = activations(n, p * layers, dtype, runner.device)
    stack = [(x + common).contiguous() for x in together.split(p, dim=1)]
    del together
    expected = torch.stack([packed(gram64(x)) for x in stack])
    variants = [
        Variant(
            " ".join(map(str, (tile.kind, tile.rows, tile.columns, *setting))),
            partial(_with, tile, setting, pair, stack),
            lambda out: relative_error(out.packed, expected),
            TOLERANCE[dtype],
            judged=False,  # a setting that does not fit is a finding
        )
        for rows, tile, setting, pair in candidates()
        if rows == n
    ]
    size, flop = dtype.itemsize * n * p * layers, 2 * n * n * p * layers
    floor = runner.floor(size, runner.triangle(n) * flop, dtype)
    case = {"op": "gram_finish", "shape": shape, "n": n, "p": p, "layers": layers}
    runner.run(variants, flop=flop, size=size, floor=floor, dtype="float16", **case)


def _with(tile, setting, pair, layers):
    from fastcka.kernels import triton_launch

    target = triton_launch.SM90
    target = target._replace(pair=pair, narrow=target.narrow | {tile: setting})
    with patch.object(triton_launch, "target_of", lambda device: target):
        return gram_finish(layers, backend="triton")


if __name__ == "__main__":
    sys.exit(main())
