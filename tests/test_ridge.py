"""Probes in closed form: against the normal equations, NumPy, and what the data allow."""

import math
import re

import numpy as np
import pytest
import torch
from tolerance import REORDERED, assert_close

from fastcka.analysis import few_shot as few_shot_module
from fastcka.analysis import ridge as ridge_module
from fastcka.analysis.few_shot import Draw, FewShot, draw
from fastcka.analysis.ridge import LAMBDAS, RidgePath
from fastcka.maths import ridge as definition

SHAPES = [(40, 7, 3), (12, 30, 4), (20, 20, 2), (2, 5, 2)]
SOME = (2.0**-10, 1.0, 2.0**9, 2.0**20)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(images, width, classes, seed=0, probes=()):
    g = generator(seed)
    x = torch.randn(*probes, images, width, generator=g, dtype=torch.float64)
    x = x * torch.rand(width, generator=g) * 10 + torch.randn(width, generator=g) * 5
    labels = torch.arange(images) % classes
    new = torch.randn(*probes, 9, width, generator=g, dtype=torch.float64) * 6
    return x, labels, new


def planted(images, width, separation, seed, tokens=1, knowing=(0,)):
    """[tokens, images, width], white but for classes `separation` apart in the tokens that know."""
    g = generator(seed)
    labels = torch.randint(0, 2, (images,), generator=g)
    x = torch.randn(tokens, images, width, generator=g)
    for token in knowing:
        x[token, :, 1] += separation * (labels - 0.5)
    return x, labels


def fitted(fit, held_out, classes, **options):
    """Probes of images that were chosen one by one."""
    (x, y), (x_held, y_held) = fit, held_out
    chosen = Draw(*torch.arange(len(y) + len(y_held)).split([len(y), len(y_held)]))
    return FewShot(torch.cat([x, x_held], -2), torch.cat([y, y_held]), chosen, classes, **options)


def near(measured, expected, images):
    """Within 4 binomial standard errors, and 1 % that a probe of finitely many images loses."""
    error = math.sqrt(expected * (1 - expected) / images)
    assert expected - 4 * error - 0.01 < measured < expected + 4 * error


@pytest.mark.parametrize(("images", "width", "classes"), SHAPES)
def test_scores_are_those_of_the_normal_equations_with_an_explicit_bias(images, width, classes):
    x, labels, new = problem(images, width, classes)
    path = RidgePath.fit(x, labels, classes)
    for lam in SOME:
        expected = definition.scores(x.numpy(), labels.numpy(), classes, lam, new.numpy())
        # The column of 100 makes a condition number of 10⁴N/λ, which costs the definition digits.
        assert_close(path.scores(new, lam), expected, 1e-8 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize(("images", "width", "classes"), SHAPES)
def test_scores_are_those_of_least_squares_of_numpy(images, width, classes):
    x, labels, new = problem(images, width, classes)
    mean, scale = x.mean(0), x.std(0, correction=0) + 1e-5
    ones = torch.full((images, 1), 100.0, dtype=torch.float64)
    a = torch.cat([(x - mean) / scale, ones], 1).numpy()
    a_new = torch.cat([(new - mean) / scale, ones[:1].expand(len(new), 1)], 1).numpy()
    y = 2 * np.eye(classes)[labels] - 1
    path = RidgePath.fit(x, labels, classes)
    for lam in SOME:
        rows = np.vstack([a, math.sqrt(lam) * np.eye(width + 1)])
        below = np.zeros((width + 1, classes))
        expected = a_new @ np.linalg.lstsq(rows, np.vstack([y, below]), rcond=None)[0]
        assert_close(path.scores(new, lam), expected, 1e-10 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize(("images", "width"), [(40, 7), (30, 20), (20, 20)])
def test_both_ways_to_solve_are_one(images, width):
    """Constant features beside the others count for nothing, but make them more than the images."""
    x, labels, new = problem(images, width, 3)
    more = images - width + 1
    tall = RidgePath.fit(x, labels, 3)
    wide = RidgePath.fit(torch.cat([x, x.new_ones(images, more)], 1), labels, 3)
    assert tall._basis.shape[-1] == width
    assert wide._basis.shape[-1] == images
    for lam in (1.0, 64.0, 2.0**20):
        scores, other = (
            tall.scores(new, lam),
            wide.scores(torch.cat([new, new[:, :1].expand(-1, more)], 1), lam),
        )
        assert_close(other, scores, REORDERED * max(1.0, float(scores.abs().max())))


@pytest.mark.parametrize(("images", "width"), [(40, 6), (12, 30)])
def test_scores_do_not_depend_on_the_scale_and_place_of_features(images, width):
    x, labels, new = problem(images, width, 3)
    g = generator(3)
    scale = (torch.rand(width, generator=g) * 10 + 1).double()
    shift = torch.randn(width, generator=g).double() * 100
    a, b = RidgePath.fit(x, labels, 3), RidgePath.fit(x * scale + shift, labels, 3)
    for lam in (1.0, 2.0**9):
        expected = a.scores(new, lam)
        # The 10⁻⁵ beside standard deviations of some tenths and more.
        assert_close(
            b.scores(new * scale + shift, lam), expected, 1e-3 * float(expected.abs().max())
        )
    far = RidgePath.fit(x + 1e6, labels, 3).scores(new + 1e6, 2.0**-10)
    # Features near 10⁶ are rounded to 10⁻¹⁰, and so is the mean that is left in them.
    expected = a.scores(new, 2.0**-10)
    assert_close(far, expected, 1e-8 * float(expected.abs().max()))


def test_probes_beside_each_other_are_those_alone():
    x, labels, new = problem(25, 6, 3, probes=(2, 3))
    path = RidgePath.fit(x, labels, 3, lambdas=SOME)
    scores, accuracy = path.scores(new, 4.0), path.accuracy(x, labels)
    assert scores.shape == (2, 3, 9, 3)
    assert accuracy.shape == (2, 3, 4)
    for i in range(2):
        for j in range(3):
            alone = RidgePath.fit(x[i, j], labels, 3, lambdas=SOME)
            assert_close(scores[i, j], alone.scores(new[i, j], 4.0), 1e-9)
            assert accuracy[i, j].equal(alone.accuracy(x[i, j], labels))
    lam = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]]).double()
    assert_close(path.scores(new, lam)[1, 2], path.scores(new, 32.0)[1, 2], 1e-12)


def test_accuracy_counts_what_scores_say_whatever_fits_at_once(monkeypatch):
    x, labels, new = problem(30, 8, 3)
    path = RidgePath.fit(x, labels, 3)
    wanted = torch.arange(9) % 3
    by_hand = [(path.scores(new, lam).argmax(1) == wanted).double().mean() for lam in LAMBDAS]
    monkeypatch.setattr(ridge_module, "SCORES", 1)
    assert_close(path.accuracy(new, wanted), torch.stack(by_hand), 1e-15)
    one = path.accuracy(new, wanted, torch.tensor(1.0))
    assert one == by_hand[LAMBDAS.index(1.0)]


@pytest.mark.parametrize(("images", "width"), [(80, 20), (40, 100)])
def test_the_error_of_float32_is_what_the_docstring_says(images, width):
    x, labels, new = problem(images, width, 4)
    exact = RidgePath.fit(x, labels, 4)
    rough = RidgePath.fit(x, labels, 4, dtype=torch.float32)
    for lam in (1e-4 * images * width, images * width):
        scores = exact.scores(new, lam)
        assert_close(rough.scores(new, lam), scores, 1e-2 * float(scores.abs().max()))


def test_16_bit_features_are_taken_as_they_are():
    x, labels, new = problem(30, 6, 2)
    x, new = x.half(), new.half()
    expected = RidgePath.fit(x.double(), labels, 2).scores(new.double(), 1.0)
    assert RidgePath.fit(x, labels, 2).scores(new, 1.0).equal(expected)


def test_the_same_bits_again():
    x, labels, new = problem(60, 9, 3, probes=(4,))
    twice = [RidgePath.fit(x, labels, 3).scores(new, 0.5) for _ in range(2)]
    assert twice[0].equal(twice[1])


def test_a_feature_that_is_constant_counts_for_nothing_even_where_it_is_not():
    x, labels, new = problem(40, 6, 3)
    x[:, 2] = 0.1  # of no exact mean
    moved = new.clone()
    moved[:, 2] += 1e6
    path = RidgePath.fit(x, labels, 3)
    assert path.scores(new, 1e-3).equal(path.scores(moved, 1e-3))


def test_constant_features_score_alike_and_the_first_class_is_chosen():
    labels = torch.arange(8) % 4
    path = RidgePath.fit(torch.ones(8, 3), labels, 4)
    scores = path.scores(torch.randn(5, 3), 1.0)
    assert bool((scores == scores[0, 0]).all())
    assert path.accuracy(torch.ones(8, 3), labels).unique().tolist() == [0.25]


def test_a_class_without_images_is_never_chosen():
    x, _, new = problem(40, 60, 3)
    labels = torch.arange(40) % 3 * 2  # 0, 2, 4 of 6
    path = RidgePath.fit(x, labels, 6)
    for lam in LAMBDAS:
        assert set(path.scores(new * 100, lam).argmax(1).tolist()) <= {0, 2, 4}


@pytest.mark.parametrize("separation", [0.0, 1.0, 2.0, 3.0])
def test_classes_apart_are_told_as_often_as_they_can_be(separation):
    (x, y), test = planted(3000, 16, separation, 1), planted(4000, 16, separation, 2)
    held_out = planted(1000, 16, separation, 3)
    found = fitted((x, y), held_out, 2).accuracy(*test)
    near(float(found), definition.accuracy_at(separation), 4000)


@pytest.mark.parametrize("knowing", [(5,), range(9)], ids=["one token", "all tokens"])
def test_a_label_is_found_in_the_tokens_that_know_it(knowing):
    """What tokens know, and their mean: Φ(δ/2), Φ(δ/(2√N)) and Φ(δ√N/2)."""
    separation = 3.0 if len(knowing) == 1 else 0.75
    parts = [planted(n, 12, separation, seed, 9, knowing) for n, seed in
             ((3000, 1), (500, 2), (4000, 3))]  # fmt: skip
    tokens, pooled = (
        fitted(fit, held_out, 2).accuracy(*test)
        for fit, held_out, test in (parts, [(x.mean(0), y) for x, y in parts])
    )
    separations = [separation if token in knowing else 0.0 for token in range(9)]
    for token in range(9):
        near(float(tokens[token]), definition.accuracy_at(separations[token]), 4000)
    of_mean = definition.separation_of_the_mean(separations)
    near(float(pooled), definition.accuracy_at(of_mean), 4000)


def test_a_probe_curve_over_layers_is_that_of_their_separations():
    separations = [0.2, 0.8, 1.5, 2.5]
    parts = []
    for images, seed in ((3000, 4), (500, 5), (4000, 6)):
        x, labels = planted(images, 10, 0.0, seed, tokens=len(separations))
        x[..., 3] += torch.tensor(separations)[:, None] * (labels - 0.5)
        parts.append((x, labels))
    fit, held_out, test = parts
    curve = fitted(fit, held_out, 2).accuracy(*test)
    for layer, separation in enumerate(separations):
        near(float(curve[layer]), definition.accuracy_at(separation), 4000)


def test_lambda_is_chosen_on_the_held_out_images_and_of_equals_the_largest():
    x, labels, new = problem(30, 8, 3)
    wanted = torch.arange(9) % 3
    found = fitted((x, labels), (new, wanted), 3, lambdas=SOME)
    path = RidgePath.fit(x, labels, 3, lambdas=SOME)
    assert found.held_out.equal(path.accuracy(new, wanted))
    best = [lam for lam, a in zip(SOME, found.held_out, strict=True) if a == found.held_out.max()]
    assert found.lam == max(best)
    assert found.accuracy(x, labels) == path.accuracy(x, labels, found.lam)
    easy = torch.cat([torch.zeros(9, 8), torch.ones(9, 8)]), torch.arange(18) // 9
    assert fitted(easy, easy, 2).lam == LAMBDAS[-1]


def test_probes_that_do_not_fit_together_are_fitted_one_after_the_other(monkeypatch):
    x, labels, new = problem(25, 6, 3, probes=(2, 3))
    fit, others = (x, labels), (new, torch.arange(9) % 3)
    together = fitted(fit, others, 3)
    monkeypatch.setattr(few_shot_module, "WORKSPACE", 1)
    alone = fitted(fit, others, 3)
    assert together.lam.shape == together.accuracy(*others).shape == (2, 3)
    assert together.held_out.shape == (2, 3, len(LAMBDAS))
    assert together.lam.equal(alone.lam)
    assert together.held_out.equal(alone.held_out)
    assert together.accuracy(*others).equal(alone.accuracy(*others))


def test_a_draw_has_so_many_images_of_each_class_and_none_twice():
    labels = torch.randint(0, 5, (200,), generator=generator())
    chosen = draw(labels, 5, shots=10, held_out=4, seed=3)
    assert labels[chosen.fit].bincount().tolist() == [10] * 5
    assert labels[chosen.held_out].bincount().tolist() == [4] * 5
    assert len(set(torch.cat(chosen).tolist())) == 70
    more = draw(labels, 5, shots=20, held_out=4, seed=3)
    assert set(chosen.fit.tolist()) < set(more.fit.tolist())
    assert chosen.held_out.equal(more.held_out)
    assert not chosen.fit.equal(draw(labels, 5, shots=10, held_out=4, seed=4).fit)


def test_a_draw_is_the_same_everywhere():
    torch.manual_seed(99)
    labels = torch.arange(30) % 3
    chosen = draw(labels, 3, shots=3, held_out=2, seed=0)
    # As drawn once: another process, machine or release of torch must draw the same.
    assert chosen.fit.tolist() == FIT
    assert chosen.held_out.tolist() == HELD_OUT


FIT = [6, 0, 12, 22, 25, 10, 2, 29, 20]
HELD_OUT = [24, 21, 16, 19, 5, 11]


def test_probes_are_of_the_images_that_were_drawn():
    x, labels = planted(400, 8, 2.0, 1, tokens=3, knowing=(0, 2))
    test = planted(500, 8, 2.0, 2, tokens=3, knowing=(0, 2))
    chosen = draw(labels, 2, shots=20, held_out=10, seed=7)
    found = FewShot(x, labels, chosen, 2)
    again = fitted(*((x[:, rows], labels[rows]) for rows in chosen), 2)
    assert found.accuracy(*test).equal(again.accuracy(*test))
    assert bool((found.accuracy(*test)[[0, 2]] > 0.7).all())
    assert abs(float(found.accuracy(*test)[1]) - 0.5) < 0.15


good, zeros = torch.randn(6, 3), torch.zeros(6, dtype=torch.int64)
path = RidgePath.fit(good, torch.arange(6) % 2, 2)
broken = torch.zeros(2, 6, 3)
broken[1, 0, 0] = math.nan

REFUSALS = [
    (lambda: RidgePath.fit(good.long(), zeros, 1), TypeError,
     "`features` must be a floating tensor [..., images, features], not torch.int64"),
    (lambda: RidgePath.fit([1.0], zeros, 1), TypeError, "not list"),
    (lambda: RidgePath.fit(good[0], zeros, 1), ValueError,
     "`features` must be [..., images, features], none of them 0, but is [3]"),
    (lambda: RidgePath.fit(broken, zeros, 1), ValueError, "`features` of probe [1] hold inf or"),
    (lambda: RidgePath.fit(broken[1], zeros, 1), ValueError,
     "`features` hold inf or nan, of which no probe can be made; leave that layer"),
    (lambda: RidgePath.fit(good[:1], zeros[:1], 1), ValueError, "2 images to fit, but are of 1"),
    (lambda: RidgePath.fit(good, zeros, 0), ValueError, "`classes` must be 1, 2, 3, …, but is 0"),
    (lambda: RidgePath.fit(good, zeros.double(), 1), TypeError,
     "`labels` must be a tensor of integers [images], not torch.float64"),
    (lambda: RidgePath.fit(good, zeros[:5], 1), ValueError,
     "`labels` must be one for each of the 6 images, but is [5]"),
    (lambda: RidgePath.fit(good, torch.arange(6), 4), ValueError,
     "`labels` must be from 0 to 3 for 4 classes, but are from 0 to 5"),
    (lambda: RidgePath.fit(good, zeros, 1, lambdas=[1, 0]), ValueError,
     "`lambdas` must be one or more numbers above 0, but are (1.0, 0.0)"),
    (lambda: RidgePath.fit(good, zeros, 1, dtype=torch.float16), TypeError,
     "`dtype` must be torch.float64 or torch.float32, not torch.float16"),
    (lambda: path.scores(good, 0.0), ValueError, "`lam` must be above 0, but is 0.0"),
    (lambda: path.scores(good[:, :2], 1.0), ValueError,
     "`features` must be [images, 3] as those fitted, but are [images, 2]"),
    (lambda: path.accuracy(good[None], zeros), ValueError, "but are [1, images, 3]"),
    (lambda: path.accuracy(good.to("meta"), zeros), RuntimeError, "must be on cpu as those fitted"),
    (lambda: draw(zeros, 1, 0, 1, 0), ValueError,
     "`shots` and `held_out` must be 1, 2, 3, …, but are 0 and 1"),
    (lambda: draw(torch.tensor([0, 0, 0, 1, 1]), 2, 2, 1, 0), ValueError,
     "2 images of each class to fit and 1 to hold out, but has 2 of class 1; ask for fewer"),
    (lambda: draw(zeros[None], 1, 2, 1, 0), ValueError, "each of the images, but is [1, 6]"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "text"), REFUSALS)
def test_refusals_say_what_was_expected_and_what_came(call, kind, text):
    with pytest.raises(kind, match=re.escape(text)):
        call()
