"""What each measure does and does not see: a table, and one test that reads it."""

from functools import partial

import numpy as np
import pytest
import torch
from data import minibatch_cka, rotation
from tolerance import INVARIANCE, INVARIANCE_16, assert_close

import fastcka

N, P = 60, 40


def linear_map(x):
    return x @ torch.diag(torch.linspace(1, 30, x.shape[1], dtype=x.dtype))


# name: what is done to x, and to y where examples move together.
CHANGES = {
    "rotation": (lambda x: x @ torch.from_numpy(rotation(x.shape[1])).to(x.dtype), None),
    "scale 1e-6": (lambda x: x * 1e-6, None),
    "scale 1e6": (lambda x: x * 1e6, None),
    "scale -3": (lambda x: x * -3, None),
    "offset 1e4": (lambda x: x + 1e4, None),
    "offset of every feature": (lambda x: x + torch.linspace(-50, 50, x.shape[1]), None),
    "permuted features": (lambda x: x.flip(1), None),
    "examples permuted together": (lambda x: x[ORDER], lambda y: y[ORDER]),
    "examples permuted in x alone": (lambda x: x[ORDER], None),
    "a general linear map": (linear_map, None),
    "one example far away": (lambda x: torch.cat([x[:1] + 20, x[1:]]), None),
}
ORDER = np.random.default_rng(5).permutation(N)
CHANGES_THE_VALUE = {
    "examples permuted in x alone",
    "a general linear map",
    "one example far away",
}


def wide(x):
    """More features than examples: each several times, which changes no similarity."""
    return x.repeat(1, 2)


def minibatch(x, y, device, **options):
    return minibatch_cka([(x.to(device), y.to(device))], **options)


MEASURES = {
    "cka in feature space": lambda x, y: fastcka.cka(x, y),
    "cka by Gram matrices": lambda x, y: fastcka.cka(wide(x), wide(y)),
    "biased cka": lambda x, y: fastcka.cka(x, y, estimator="biased"),
    "rbf cka": lambda x, y: fastcka.cka(x, y, gram="rbf"),
    "biased rbf cka": lambda x, y: fastcka.cka(x, y, gram="rbf", estimator="biased"),
}
MINIBATCH = {
    "": {},
    " equal": {"weighting": "equal"},
    " biased": {"estimator": "biased"},
    " rbf": {"gram": "rbf"},
}
for _backend, _device in (("native", "cpu"), ("torch", "cpu"), ("torch", "cuda")):
    for _name, _options in MINIBATCH.items():
        MEASURES[f"minibatch{_name} {_backend} {_device}"] = partial(
            minibatch, device=_device, backend=_backend, **_options
        )
NAMES = [
    pytest.param(name, marks=pytest.mark.gpu) if name.endswith("cuda") else name
    for name in MEASURES
]


def pair(dtype):
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(N, P, generator=generator)
    y = (x + torch.randn(N, P, generator=generator)).relu()
    return x.to(dtype), y.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("measure", NAMES)
def test_measures_see_what_they_should_and_nothing_else(measure, change, dtype):
    x, y = pair(dtype)
    of_x, of_y = CHANGES[change]
    before = MEASURES[measure](x, y)
    after = MEASURES[measure](of_x(x), y if of_y is None else of_y(y))
    if change in CHANGES_THE_VALUE:
        assert abs(after - before) > 0.01
    else:
        assert_close(after, before, INVARIANCE)


@pytest.mark.parametrize("change", sorted(set(CHANGES) - CHANGES_THE_VALUE))
@pytest.mark.parametrize("measure", NAMES)
def test_both_sides_may_change(measure, change):
    x, y = pair(torch.float32)
    of_x, _ = CHANGES[change]
    assert_close(MEASURES[measure](of_x(x), of_x(y)), MEASURES[measure](x, y), INVARIANCE)


@pytest.mark.parametrize(
    ("dtype", "offset"), [(torch.float16, 100.0), (torch.bfloat16, 10.0)], ids=str
)
@pytest.mark.parametrize("measure", NAMES)
def test_16_bit_inputs_bear_a_smaller_offset(measure, dtype, offset):
    x, y = pair(torch.float32)
    expected = MEASURES[measure](x, y)
    actual = MEASURES[measure]((x + offset).to(dtype), (y + offset).to(dtype))
    assert_close(actual, expected, INVARIANCE_16)


@pytest.mark.parametrize("measure", NAMES)
def test_measures_are_symmetric(measure):
    x, y = pair(torch.float64)
    assert_close(MEASURES[measure](x, y), MEASURES[measure](y, x), 1e-12)


@pytest.mark.parametrize("size", [8, 16, 64])
def test_unrelated_layers_have_an_unbiased_cka_around_zero_and_a_biased_one_far_above(size):
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(size, 256, generator=generator), torch.randn(size, 256, generator=generator))
        for _ in range(200)
    ]
    # HSIC_1 of white noise has the standard deviation √2/n relative to the norms.
    assert abs(minibatch_cka(batches)) < 4 * 2**0.5 / (size * len(batches) ** 0.5)
    assert minibatch_cka(batches, estimator="biased") > 0.7


def test_the_unbiased_value_does_not_depend_on_the_batch_size_and_the_biased_one_does():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(4096, 64, generator=generator)
    y = x + torch.randn(4096, 64, generator=generator)
    values = {}
    for estimator in ("unbiased", "biased"):
        values[estimator] = [
            minibatch_cka(list(zip(x.split(n), y.split(n), strict=True)), estimator=estimator)
            for n in (8, 32, 256)
        ]
    truth = fastcka.cka(x, y)
    assert_close(values["unbiased"], [truth] * 3, 0.02)
    assert values["biased"][0] - values["biased"][2] > 0.15


def test_a_negative_estimate_is_returned_as_it_is():
    values = [fastcka.cka(*np.random.default_rng(s).normal(size=(2, 6, 50))) for s in range(40)]
    assert min(values) < -0.05


def test_batches_sorted_by_class_measure_something_else():
    generator = torch.Generator().manual_seed(3)
    classes = 3 * torch.randn(10, 40, generator=generator).repeat_interleave(200, 0)
    x, y = (classes + torch.randn(2000, 40, generator=generator) for _ in range(2))
    order = torch.randperm(2000, generator=generator)
    by_class = minibatch_cka(list(zip(x.split(50), y.split(50), strict=True)))
    shuffled = minibatch_cka(list(zip(x[order].split(50), y[order].split(50), strict=True)))
    assert abs(by_class) < 0.02
    assert shuffled > 0.9
    assert abs(shuffled - fastcka.cka(x, y)) < 0.01
