import numpy as np
import pytest
import torch
from data import related
from tolerance import FLOAT64, REORDERED, assert_close

from fastcka.kernels import dispatch, finish, gram, hsic_pairs, packed_length, rbf
from fastcka.kernels.operations import Gram
from fastcka.maths import finish as definition

ESTIMATORS = ["unbiased", "biased"]


def some_gram(n, device, offset=0.0):
    x = related(n, 12, 5)[0] + offset
    batch = gram(x.to(device))
    upper = torch.triu(torch.ones_like(batch.k, dtype=torch.bool), 1)
    k = torch.where(upper, torch.nan, batch.k)  # what lies above the diagonal is not defined
    return Gram(k, batch.stats), x


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [4, 5, 16, 33, 130])
def test_finish_is_the_centred_packed_triangle(version, estimator, n):
    batch, _ = some_gram(n, version)
    lower = batch.k.cpu().tril().nan_to_num()
    full = (lower + lower.tril(-1).T).numpy()
    expected = definition.pack(full, estimator)
    result = finish(batch, estimator=estimator)
    scale = np.abs(full).max()
    assert_close(result.packed / scale, expected / scale, FLOAT64)
    assert_close(result.diagonal, np.diag(full).copy(), 0.0)
    hollow = full - np.diag(np.diag(full))
    assert_close(result.row_sums / scale, hollow.sum(1) / scale, FLOAT64)


@pytest.mark.gpu
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("n", [4, 5, 33, 128, 1030])
def test_the_cuda_version_equals_the_cpu_version_on_any_stream_and_repeats_its_bits(estimator, n):
    reason = dispatch.obstacle("native", torch.device("cuda"))
    if reason:
        pytest.skip(reason)
    batch, _ = some_gram(n, torch.device("cpu"))
    expected = finish(batch, estimator=estimator)
    on_gpu = Gram(*(part.cuda() for part in batch))
    torch.cuda.synchronize()
    results = []
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            results.append(finish(on_gpu, estimator=estimator, backend="native"))
        stream.synchronize()
    for first, second, on_cpu in zip(*results, expected, strict=True):
        assert torch.equal(first, second)
        scale = on_cpu.abs().max()
        assert_close(first.cpu() / scale, on_cpu / scale, FLOAT64)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_gram_matrix_can_be_recovered(version, estimator):
    batch, _ = some_gram(21, version)
    result = finish(batch, estimator=estimator)
    parts = (result.packed, result.diagonal, result.row_sums)
    recovered = definition.unpack_gram(*(part.cpu().numpy() for part in parts), estimator)
    scale = result.diagonal.max().cpu()
    lower = torch.from_numpy(recovered).tril()
    assert_close(lower / scale, batch.k.cpu().tril().nan_to_num() / scale, FLOAT64)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_summary_holds_the_norms(version, estimator):
    batch, x = some_gram(40, version, offset=3.0)
    summary = finish(batch, estimator=estimator).summary.cpu()
    values = x - x.mean(0)
    k = (values @ values.T).numpy()
    centre = definition.u_centre if estimator == "unbiased" else definition.double_centre
    raw = (x @ x.T).numpy()
    off_diagonal = k - np.diag(np.diag(k))
    expected = [(centre(k) ** 2).sum(), (off_diagonal**2).sum(), np.trace(k), np.trace(raw)]
    assert_close(summary[:4] / torch.tensor(expected), torch.ones(4), 1e-9)
    rms = np.sqrt(expected[0] / (40 * 39))
    # |raw K| is known but for the cross terms of x and its mean, which are small here.
    assert_close(summary[4] * rms / np.sqrt((raw**2).mean()), 1.0, 0.05)


def test_conditioning_of_a_gaussian_matrix_is_that_of_the_matrix_itself(version):
    x = related(30, 6, 3)[0].to(version) + 100
    batch = rbf(gram(x))
    k = batch.k.cpu()
    rms = finish(batch).packed.square().sum().cpu() / (30 * 29)
    expected = (k.square().mean() / rms).sqrt()
    assert_close(finish(batch).summary[4] / expected, 1.0, 1e-9)


def test_norm_has_the_bits_of_the_inner_product_with_itself():
    results = [finish(gram(torch.randn(70, 30)), backend="native") for _ in range(7)]
    products = hsic_pairs(torch.stack([result.packed for result in results]), backend="native")
    norms = torch.stack([result.summary[0] for result in results])
    assert torch.equal(products.diagonal(), norms)


def test_centring_a_centred_matrix_changes_nothing(version):
    batch, _ = some_gram(15, version)
    once = finish(batch)
    u = definition.unpack_gram(once.packed.cpu().numpy(), np.zeros(15), np.zeros(15), "unbiased")
    again = finish(Gram(torch.from_numpy(u).to(version), batch.stats))
    assert_close(again.packed, once.packed, REORDERED * float(once.packed.abs().max()) * 100)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_one_bad_entry_shows_in_the_norms(version, bad):
    batch, _ = some_gram(12, version)
    batch.k[5, 2] = bad
    assert not finish(batch).summary[:2].isfinite().any()


def test_packed_lengths_count_the_pairs():
    assert packed_length(6, "unbiased") == 15
    assert packed_length(6, "biased") == 21
