"""What single images do to CKA: against leaving them out, and in all the ways that a run can go."""

import copy
import warnings

import numpy as np
import pytest
import torch
from networks import activations, images, net
from tolerance import CKA, FLOAT64, assert_close
from torchvision.transforms.functional import to_tensor

import fastcka
from fastcka import CKAResult, MinibatchCKA
from fastcka.data import ImageBatches, write_images
from fastcka.influence import places_of_rows, without_each
from fastcka.kernels import gram_finish
from fastcka.maths.cka import minibatch
from fastcka.maths.gram import linear
from fastcka.maths.influence import influence, product_without

SIZES = (9, 4, 6, 5)


def batches(sizes=SIZES, dtype=torch.float64):
    """Two layers x, y of one model and one of another, z, that share directions."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    ways = [normal(3, p) for p in (4, 6, 5)]
    shared = [normal(n, 3) for n in sizes]
    return [
        [(s @ way + normal(len(s), way.shape[1]) + 3).to(dtype) for way in ways] for s in shared
    ]


def measured(data, pairs=(("x", "z"), ("y", "z")), **options):
    cka = MinibatchCKA(["x", "y"], ["z"], influence=pairs, **options)
    for x, y, z in data:
        cka.update([x, y], [z])
    return cka.compute()


def in64(data, place):
    return [xs[place].double().numpy() for xs in data]


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_a_product_without_each_example_is_that_of_the_definition(estimator):
    x, y = torch.randn(7, 3).double(), torch.randn(7, 5).double()
    packed = gram_finish([x, y], estimator=estimator).packed
    product = packed[0] * packed[1]
    found = product.sum() - without_each(product, places_of_rows(7, estimator), estimator)
    expected = product_without(linear(x.numpy()), linear(y.numpy()), estimator)
    assert_close(found, expected, FLOAT64 * float(packed.square().sum()))


@pytest.mark.parametrize("weighting", ["pairs", "equal"])
@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("gram", ["linear", "rbf"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, FLOAT64), (torch.float32, CKA)])
def test_influence_is_the_difference_that_leaving_out_makes(
    weighting, estimator, gram, dtype, tolerance
):
    data = batches(dtype=dtype)
    options = {"weighting": weighting, "estimator": estimator, "gram": gram}
    found = measured(data, **options).influence
    assert list(found) == [("x", "z"), ("y", "z")]
    for place, name in enumerate("xy"):
        expected = influence(in64(data, place), in64(data, 2), **options)
        assert found[name, "z"].shape == (sum(SIZES),)
        assert np.median(np.abs(expected)) > 100 * tolerance  # there is something to be seen
        # A difference of two values of CKA.
        assert_close(found[name, "z"], expected, 2 * tolerance)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_every_version_gives_it(version, estimator):
    data = batches(dtype=torch.float32)
    there = [[x.to(version) for x in xs] for xs in data]
    found = measured(there, estimator=estimator).influence["x", "z"]
    expected = influence(in64(data, 0), in64(data, 2), estimator=estimator)
    assert_close(found, expected, 2 * CKA)


def test_an_image_that_makes_layers_alike_raises_cka_and_one_that_does_not_lowers_it():
    x = torch.arange(12.0).reshape(12, 1).double()
    z = x.clone()
    z[5] = 60.0
    found = MinibatchCKA(["x"], ["z"], influence=[("x", "z")]).update([x], [z]).compute()
    change = found.influence["x", "z"]
    assert change.argmin() == 5
    assert found.cka[0, 0] - change[5] == pytest.approx(1, abs=FLOAT64)
    x, z = torch.randn(40, 6).double(), torch.randn(40, 6).double()
    x[[3, 30]] = z[[3, 30]] = 50 * torch.randn(1, 6).double()
    found = MinibatchCKA(["x"], ["z"], influence=[("x", "z")]).update([x], [z]).compute()
    assert (found.influence["x", "z"][[3, 30]] > 0.5).all()
    assert (np.delete(found.influence["x", "z"], [3, 30]) < 0.05).all()


def test_of_a_layer_with_itself_no_image_changes_anything():
    data = batches()
    cka = MinibatchCKA(["x", "y", "z"], influence=[("x", "x"), ("z", "y"), ("y", "z")])
    for xs in data:
        cka.update(xs)
    found = cka.compute().influence
    assert (found["x", "x"] == 0).all()
    assert_close(found["z", "y"], found["y", "z"], FLOAT64)
    assert_close(found["z", "y"], influence(in64(data, 2), in64(data, 1)), FLOAT64)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("weighting", ["pairs", "equal"])
def test_four_without_one_are_left_out_altogether(estimator, weighting):
    data = batches((8, 4))
    options = {"estimator": estimator, "weighting": weighting}
    result = measured(data, **options)
    less = minibatch(in64(data[:1], 0), in64(data[:1], 2), **options)
    assert_close(result.influence["x", "z"][8:], np.full(4, result.cka[0, 0] - less), FLOAT64)
    alone = measured(batches((4,)), **options)
    assert np.isnan(alone.influence["x", "z"]).all()
    assert np.isfinite(alone.cka).all()


def test_images_of_batches_that_are_too_small_are_not_among_them():
    data = batches((8, 3, 5))
    cka = MinibatchCKA(["x"], ["z"], influence=[("x", "z")])
    names = [[f"{b}-{i}" for i in range(len(xs[0]))] for b, xs in enumerate(data)]
    for xs, some in zip(data, names, strict=True):
        cka.update([xs[0]], [xs[2]], images=some)
    with pytest.warns(fastcka.CKAWarning, match="left out"):
        result = cka.compute()
    assert result.images == (*names[0], *names[2])
    kept = [data[0], data[2]]
    assert_close(result.influence["x", "z"], influence(in64(kept, 0), in64(kept, 2)), FLOAT64)


@pytest.mark.parametrize("value", [1.0, float("nan")], ids=["constant", "nan"])
def test_layers_without_a_value_have_no_influence_and_change_no_other(value):
    data = batches()
    for xs in data:
        xs[1] = torch.full_like(xs[1], value)
    with pytest.warns(fastcka.CKAWarning, match="constant|NaN"):
        result = measured(data)
    assert np.isnan(result.influence["y", "z"]).all()
    assert np.array_equal(result.influence["x", "z"], measured(batches()).influence["x", "z"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_nothing_is_left_without_an_image_there_is_no_number(dtype):
    # Two images alone differ from the rest: without either the layer is constant.
    x = torch.full((12, 4), 0.1, dtype=dtype)
    x[2] += torch.tensor([1.0, 0.5, 0.3, 0.1])
    x[7] += torch.tensor([0.3, 0.7, 0.2, 0.9])
    z = torch.randn(12, 5).to(dtype)
    result = MinibatchCKA(["x"], ["z"], influence=[("x", "z"), ("x", "z")]).update([x], [z])
    result = result.compute()
    assert list(result.influence) == [("x", "z")]
    assert np.isnan(result.influence["x", "z"]).nonzero()[0].tolist() == [2, 7]
    other = MinibatchCKA(["z"], ["x"], influence=[("z", "x")]).update([z], [x]).compute()
    assert np.isnan(other.influence["z", "x"]).nonzero()[0].tolist() == [2, 7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "distance"), [(12, 500), (256, 1)])
def test_rounding_that_is_left_of_a_layer_is_no_layer(dtype, n, distance):
    # An image far out in a direction of its own; two others share theirs. Without one of the two
    # nothing is left after centring, but the rounding of large entries.
    generator = torch.Generator().manual_seed(2)
    for _ in range(8):
        far, *near = torch.rand(3, 3, generator=generator, dtype=torch.float64) + 0.5
        x = torch.zeros(n, 9, dtype=torch.float64)
        x[1, :3], x[4, 3:6], x[9, 3:6] = distance * far, near[0], near[1]
        z = torch.randn(n, 5, generator=generator)
        cka = MinibatchCKA(["x"], ["z"], influence=[("x", "z")])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", fastcka.CKAWarning)  # digits are lost, it says
            result = cka.update([x.to(dtype)], [z.to(dtype)]).compute()
        assert np.isnan(result.influence["x", "z"]).nonzero()[0].tolist() == [4, 9]


def test_several_models_name_their_layers_in_any_order():
    data = batches()
    pairs = [(("n", "z"), ("m", "x")), (("m", "x"), ("m", "y"))]
    cka = MinibatchCKA({"m": ["x", "y"], "n": ["z"]}, influence=pairs)
    for x, y, z in data:
        cka.update({"m": [x, y], "n": [z]})
    results = cka.compute()
    assert list(results["m", "n"].influence) == [("x", "z")]
    assert_close(
        results["m", "n"].influence["x", "z"], influence(in64(data, 0), in64(data, 2)), FLOAT64
    )
    assert list(results["m", "m"].influence) == [("x", "y")]
    assert_close(
        results["m", "m"].influence["x", "y"], influence(in64(data, 0), in64(data, 1)), FLOAT64
    )
    assert results["n", "n"].influence == {}
    assert results["n", "n"].images is None


# Kept, merged, saved


def named(data):
    return [[f"{number}/{i}" for i in range(len(xs[0]))] for number, xs in enumerate(data)]


def indexed(data, numbers, pairs=(("x", "z"),)):
    cka = MinibatchCKA(["x"], ["z"], influence=pairs)
    for number in numbers:
        x, _, z = data[number]
        cka.update([x], [z], index=number, images=named(data)[number])
    return cka


def assert_same(found, expected):
    for pair, values in expected.influence.items():
        assert found.influence[pair].tobytes() == values.tobytes()
    assert found.influence.keys() == expected.influence.keys()
    assert found.images == expected.images


def test_parts_in_any_order_are_one_run_in_the_order_of_the_batches():
    data = batches()
    whole = indexed(data, range(4)).compute()
    assert whole.images == tuple(name for names in named(data) for name in names)
    for one, other in (((0, 2), (1, 3)), ((3,), (2, 1, 0)), ((), (2, 0, 3, 1))):
        found = indexed(data, one).merge(indexed(data, other))
        assert_close(found.compute().influence["x", "z"], whole.influence["x", "z"], FLOAT64)
        assert found.compute().images == whole.images
        loaded = indexed(data, ())
        loaded.load_state_dict(found.state_dict())
        assert_same(loaded.compute(), found.compute())


def test_merging_by_arrival_follows_and_leaves_the_other_as_it_was():
    data, more = batches(), batches((7, 5))

    def filled(some, names):
        cka = MinibatchCKA(["x"], ["z"], influence=[("x", "z")])
        for (x, _, z), called in zip(some, names, strict=True):
            cka.update([x], [z], images=called)
        return cka

    letters = [list("abcdefg"), list("hijkl")]
    one, other = filled(data, named(data)), filled(more, letters)
    before = other.state_dict()
    merged = one.merge(other).compute()
    assert merged.images[-12:] == tuple("abcdefghijkl")
    both = data + more
    assert_close(merged.influence["x", "z"], influence(in64(both, 0), in64(both, 2)), FLOAT64)
    one.update([data[0][0]], [data[0][2]], images=named(data)[0])
    assert other.state_dict()["counts"] == before["counts"]
    # One batch without names, and none has.
    unnamed = filled(more, [None, None])
    assert unnamed.compute().images is None
    assert one.merge(unnamed).compute().images is None


def test_a_state_does_not_follow_and_a_state_of_others_is_refused():
    data = batches()
    cka = indexed(data, (0, 1))
    state = cka.state_dict()
    before = copy.deepcopy(state["counts"])
    expected = cka.compute()
    cka.update([data[2][0]], [data[2][2]], index=2, images=named(data)[2])
    loaded = indexed(data, ())
    loaded.load_state_dict(state)
    loaded.update([data[2][0]], [data[2][2]], index=2, images=named(data)[2])
    assert_same(loaded.compute(), cka.compute())
    assert state["counts"] == before
    again = indexed(data, ())
    again.load_state_dict(state)
    assert_same(again.compute(), expected)
    with pytest.raises(ValueError, match="cannot load: `influence` is"):
        indexed(data, (), pairs=()).load_state_dict(state)
    with pytest.raises(ValueError, match="cannot merge: `influence` is"):
        indexed(data, (3,), pairs=()).merge(cka)
    state["tensors"]["influence.change"] = state["tensors"]["influence.change"][:, 1:]
    with pytest.raises(ValueError, match=r"cannot load the tensors: `influence.change` is"):
        again.load_state_dict(state)
    state = cka.state_dict()
    state["counts"]["images"].pop()
    with pytest.raises(
        ValueError, match="cannot load the names: `images` is 19 here, but 18 there"
    ):
        again.load_state_dict(state)
    empty = indexed(data, ())
    empty.load_state_dict(indexed(data, ()).state_dict())
    assert_same(empty.merge(indexed(data, (0, 1))).compute(), expected)


def test_it_is_saved_and_loaded_with_the_names(tmp_path):
    data = batches()
    result = indexed(data, range(4)).compute()
    assert_same(CKAResult.load(result.save(tmp_path / "a")), result)
    without = measured(data)
    loaded = CKAResult.load(without.save(tmp_path / "b"))
    assert_same(loaded, without)
    assert loaded.images is None
    plain = CKAResult.load(measured(data, pairs=()).save(tmp_path / "c"))
    assert plain.influence == {}
    unasked = indexed(data, (0,), pairs=())
    assert unasked.compute().images is None
    assert unasked.state_dict()["counts"]["images"] == []


# Whole comparisons

PAIRS = [("0", "6"), ("4", "4")]


def compared(data, size=8, **options):
    usual = {"layers_a": "leaves", "influence": PAIRS, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fastcka.CKAWarning)
        return fastcka.compare(net(size=size), net(seed=1, size=size), data, **usual | options)


def defined(data, size=8):
    models = net(size=size), net(seed=1, size=size)
    a, b = ([activations(model, x) for x in data] for model in models)
    found = {}
    for one, other in PAIRS:
        xs = [x[int(one)].flatten(1).double().numpy() for x in a]
        ys = [y[int(other)].flatten(1).double().numpy() for y in b]
        found[one, other] = influence(xs, ys)
    return found


def test_a_comparison_says_what_single_images_do():
    data = images(42).split(10)  # the last of 2 is left out
    result = compared(data)
    expected = defined(data[:4])
    for pair, values in expected.items():
        assert result.influence[pair].shape == (40,)
        assert_close(result.influence[pair], values, 2 * CKA)
    assert result.images is None
    assert result.meta["influence"] == [[["a", "0"], ["b", "6"]], [["a", "4"], ["b", "4"]]]
    usual = compared(data, influence=())
    assert usual.influence == {}
    assert np.array_equal(usual.cka, result.cka)


def test_images_are_named_by_ids_and_parts_of_a_batch_stay_in_order():
    x = images(60)
    names = iter([[f"im{i}" for i in range(start, start + 12)] for start in range(0, 60, 12)])
    result = compared(x.split(12), ids=lambda batch: next(names))
    assert result.images == tuple(f"im{i}" for i in range(60))
    # Three CKA batches of a batch of unknown length share two numbers.
    numbers = iter(torch.arange(60).split(12))
    parts = compared((batch for batch in x.split(12)), n=4, ids=lambda batch: next(numbers))
    assert parts.images == tuple(range(60))
    expected = defined(x.split(4))
    for pair, values in expected.items():
        assert_close(parts.influence[pair], values, 2 * CKA)
    # A later batch that is larger than the first.
    uneven = iter(torch.arange(60).split([8, 24, 8, 20]))
    larger = compared(list(x.split([8, 24, 8, 20])), n=4, ids=lambda batch: next(uneven))
    assert larger.images == tuple(range(60))


def test_files_are_named_as_in_their_folder(tmp_path):
    folder = write_images(tmp_path / "images", 44, size=16)
    data = ImageBatches(folder, {"x": to_tensor}, batch_size=11, max_images=33)
    views = {"input_a": lambda b: b["views"]["x"], "input_b": lambda b: b["views"]["x"]}
    result = compared(data, size=16, **views)
    assert len(result.images) == 33
    order = [name for batch in data for name in data.names(batch)]
    assert list(result.images) == order
    assert all((folder / name).is_file() for name in result.images)
    for pair, values in defined([batch["views"]["x"] for batch in data][:3], size=16).items():
        assert_close(result.influence[pair], values, 2 * CKA)
    paired = compared(
        ImageBatches(folder, {"x": to_tensor}, batch_size=11), size=16,
        data_b=ImageBatches(folder, {"x": to_tensor}, batch_size=11), **views,
    )  # fmt: skip
    assert len(set(paired.images)) == 44


@pytest.mark.parametrize("options", [{}, {"n": 5}, {"weighting": "equal"}], ids=str)
@pytest.mark.parametrize("count", [1, 3])
def test_a_stopped_comparison_goes_on_to_the_same_influence(tmp_path, options, count):
    data = list(images(57).split(10))

    def ids(batch):
        return [f"{float(one.sum()):.6f}" for one in batch]

    class Stop(Exception):
        pass

    def stops():
        yield from data[:count]
        raise Stop

    expected = compared(data, ids=ids, **options)
    resume = {"checkpoint": tmp_path / "state", "resume": True, "ids": ids}
    with pytest.raises(Stop) as stopped:
        compared(stops(), **resume, **options)
    assert len(stopped.value.partial.images) == 10 * count
    with pytest.raises(ValueError, match=r"cannot resume from .*: `influence` is"):
        compared(data, **resume | options | {"influence": PAIRS[:1]})
    found = compared(data, **resume, **options)
    assert_same(found, expected)


def test_a_batch_that_is_run_in_halves_has_the_same_influence():
    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = net()

        def forward(self, x):
            if len(x) > 10:
                raise torch.OutOfMemoryError("too large")
            return self.network(x)

    data = images(40).split(20)
    options = {"layers_a": ["network.0"], "layers_b": ["6"], "n": 10}
    pair = ("network.0", "6")
    with pytest.warns(fastcka.CKAWarning, match="ran out of memory"):
        found = fastcka.compare(Small(), net(seed=1), data, influence=[pair], **options)
    assert any("ran out of memory" in warning for warning in found.warnings)
    expected = defined(images(40).split(10))["0", "6"]
    assert_close(found.influence[pair], expected, 2 * CKA)


def test_fingerprints_know_their_images_by_number(tmp_path):
    x = images(40)
    data = list(x.split(10))

    def ids(batch):
        return [int((x == one).flatten(1).all(1).nonzero()) for one in batch]

    expected = compared(data, ids=ids)
    usual = {"layers": "leaves", "ids": ids, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fastcka.CKAWarning)
        for seed, name in enumerate("ab"):
            fastcka.fingerprint(net(seed=seed), data, tmp_path / f"{name}.fp", **usual)
        stored = fastcka.compare(tmp_path / "a.fp", tmp_path / "b.fp", influence=PAIRS)
        mixed = fastcka.compare(
            net(), tmp_path / "b.fp", data, layers_a="leaves", ids=ids, influence=PAIRS
        )
        several = fastcka.compare_many(
            {"a": tmp_path / "a.fp", "b": tmp_path / "b.fp"},
            influence=[(("a", one), ("b", other)) for one, other in PAIRS],
        )
    for found in (stored, mixed, several["a", "b"]):
        assert found.images == expected.images == tuple(range(40))
        for pair, values in expected.influence.items():
            assert_close(found.influence[pair], values, 2 * CKA)


def test_images_that_come_again_are_refused():
    with pytest.raises(ValueError, match="`influence` needs one pass, but `passes` is 2: an image"):
        compared([images(8)], passes=2)
    with pytest.raises(ValueError, match="`influence` needs one pass, but `passes` is 3"):
        fastcka.compare_many(
            {"a": net()}, [images(8)], influence=[(("a", "0"), ("a", "1"))], passes=3
        )
