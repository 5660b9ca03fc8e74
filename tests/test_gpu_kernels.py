"""What only a GPU can show of the kernels in Triton and CUDA."""

import pytest
import torch
from tolerance import CKA, HSIC, OPERAND, UNIT, assert_close

from fastcka.kernels import gram_finish, hsic_pairs

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu_kernels")]


def some(n, p, dtype=torch.float16, mean=0.0):
    """Rows that share eight directions, around a mean of so many standard deviations."""
    shared = torch.randn(n, 8, device="cuda") @ torch.randn(8, p, device="cuda")
    x = shared / 8**0.5 + torch.randn(n, p, device="cuda")
    return (x + mean * torch.randn(1, p, device="cuda")).to(dtype)


def exact(x):
    """The packed, centred Gram matrix of the values as they are, in float64.

    That of all features is the sum of those of some.
    """
    parts = x.split(2**19, dim=1)
    return sum(gram_finish([part.double()], backend="torch").packed[0] for part in parts)


def check(x):
    found, expected = gram_finish([x]).packed[0], exact(x)
    cosine = hsic_pairs(found[None], expected[None])[0, 0] / found.norm() / expected.norm()
    assert 1 - cosine <= (CKA if x.dtype == torch.float32 else OPERAND[name_of(x.dtype)])
    hsic = found.square().sum() / expected.square().sum()
    # Rounded operands add their own norm to HSIC: two of them, squared.
    assert_close(hsic, 1.0, HSIC + 4 * UNIT.get(x.dtype, 0.0))


def name_of(dtype):
    return {torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("n", [5, 64, 100, 256, 300, 1024])
@pytest.mark.parametrize("p", [768, 100_352, 100_351])
def test_centred_gram_matrices_are_those_of_the_values(n, p, dtype):
    check(some(n, p, dtype))


@pytest.mark.parametrize("n", [64, 256])
def test_a_million_features_cost_no_digits(n):
    check(some(n, 1_000_000))


@pytest.mark.parametrize(
    ("dtype", "mean"), [(torch.float16, 100.0), (torch.bfloat16, 10.0), (torch.float32, 1e4)]
)
def test_features_that_a_mean_dominates_keep_their_digits(dtype, mean):
    check(some(256, 150_000, dtype, mean))


@pytest.mark.parametrize("n", [64, 256, 1024])
def test_the_same_layers_give_the_same_bits_on_any_stream(n):
    layers = [some(n, p) for p in (151_296, 768, 3001, 100_352)]
    torch.cuda.synchronize()
    results = []
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            results.append(gram_finish(layers))
        stream.synchronize()
    for parts in zip(*results, strict=True):
        assert all(torch.equal(parts[0], other) for other in parts[1:])


def test_joint_and_separate_runs_agree():
    layers = [some(256, p) for p in (151_296, 768, 3001, 100_352)]
    joint = gram_finish(layers).packed
    for row, x in enumerate(layers):
        alone = gram_finish([x]).packed[0]
        # Runs of another length are cut off by another factor, which CKA does not see.
        assert 1 - alone @ joint[row] / alone.norm() / joint[row].norm() <= 1e-6


def test_a_layer_with_more_than_two_to_the_31_values_is_addressed_right():
    if torch.cuda.mem_get_info()[0] < 16 << 30:
        pytest.skip("needs 16 GB")
    check(torch.cat([*(some(256, 2**20) for _ in range(8)), some(256, 64)], dim=1))


def test_a_layer_is_reduced_within_a_cuda_graph():
    x = some(64, 5000)
    expected = gram_finish([x]).packed.clone()  # compiles
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        gram_finish([x])
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        result = gram_finish([x]).packed
    x.copy_(2 * x)
    graph.replay()
    torch.cuda.synchronize()
    assert_close(result / 4, expected, float(expected.abs().max()) * UNIT[torch.float16])
