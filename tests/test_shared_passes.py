"""One network under several names runs once; pairs that are not asked for are not compared."""

import numpy as np
import pytest
import torch
from torch import nn

import fastcka
from fastcka.analysis.observer import Taps
from fastcka.checkpoint import Checkpoint
from fastcka.distributed import Share
from fastcka.measurement import measure
from fastcka.observations import Observations
from fastcka.participant import Participant


class Counted(nn.Sequential):
    """Knows how often it ran."""

    def __init__(self, width: int):
        super().__init__(nn.Linear(8, width), nn.ReLU(inplace=True), nn.Linear(width, 4))
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        return super().forward(x)


@pytest.fixture
def nets():
    torch.manual_seed(0)
    return Counted(16), Counted(32)


@pytest.fixture
def batches():
    return torch.randn(96, 8, generator=torch.Generator().manual_seed(1)).split(32)


def several(nets, batches, **options):
    small, large = nets
    models = {"small": small, "small, top": small, "large": large}
    layers = {"small": ["0", "1"], "small, top": ["2"], "large": ["0", "2"]}
    return fastcka.compare_many(models, batches, layers=layers, progress=False, **options)


def test_a_network_under_two_names_runs_once_a_batch(nets, batches):
    several(nets, batches)
    assert [net.passes for net in nets] == [3, 3]


def test_names_that_share_a_pass_give_the_bits_of_passes_of_their_own(nets, batches):
    shared = several(nets, batches)
    alone = fastcka.compare(*nets, batches, layers_a=["2"], layers_b=["0", "2"], progress=False)
    np.testing.assert_array_equal(shared["small, top", "large"].cka, alone.cka)
    np.testing.assert_array_equal(shared["small, top", "large"].stderr, alone.stderr)


def test_only_the_pairs_asked_for_are_there_and_have_the_same_bits(nets, batches):
    every = several(nets, batches)
    some = several(nets, batches, pairs=[("large", "small"), ("small", "small")])
    assert list(some) == [("small", "small"), ("small", "large")]
    for pair, result in some.items():
        np.testing.assert_array_equal(result.cka, every[pair].cka)


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        ([("small", "huge")], "`pairs` must hold pairs of small, small, top, large"),
        (["ab"], "`pairs` must hold pairs of"),
        ([], "`pairs` is empty"),
    ],
)
def test_other_pairs_are_refused(nets, batches, pairs, told):
    with pytest.raises(ValueError, match=told):
        several(nets, batches, pairs=pairs)


def test_pairs_need_several_models():
    with pytest.raises(ValueError, match="`pairs` needs several models"):
        fastcka.MinibatchCKA(["x"], pairs=[("a", "a")])


def observed(nets, batches, **options):
    observations = Observations(
        {"a": {"norms": Taps(["0", "1"], lambda layer, x: x.double().norm(dim=1))}}
    )
    participants = [Participant("a", nets[0], "leaves"), Participant("b", nets[1], "leaves")]
    common = {"n": 16, "passes": 1, "progress": False, "many": True, "checkpoint": None}
    measure(participants, batches, share=Share(), observations=observations, **common | options)
    return observations


def test_observers_see_the_passes_of_the_comparison(nets, batches):
    observations = observed(nets, batches)
    assert [net.passes for net in nets] == [3, 3]
    with torch.no_grad():
        norms = nets[0][0](torch.cat(batches)).double().norm(dim=1).numpy()
    assert observations.count == 96
    np.testing.assert_allclose(observations.mean("a", "norms")["0"], norms.mean(), rtol=1e-12)
    stderr = norms.std(ddof=1) / np.sqrt(96)
    np.testing.assert_allclose(observations.stderr("a", "norms")["0"], stderr, rtol=1e-10)


def test_a_second_pass_over_the_images_counts_once_for_observers(nets, batches):
    once, twice = observed(nets, batches), observed(nets, batches, passes=2)
    assert twice.count == 96
    np.testing.assert_array_equal(once.mean("a", "norms")["1"], twice.mean("a", "norms")["1"])


class Broken(list):
    """Batches of which the last is lost once."""

    broken = True

    def __iter__(self):
        for number, batch in enumerate(super().__iter__()):
            if number == 2 and self.broken:
                raise OSError("the disk is gone")
            yield batch


def test_what_was_observed_before_an_error_is_resumed_to_the_same_bits(nets, batches, tmp_path):
    data = Broken(batches)
    path = tmp_path / "state"
    with pytest.raises(OSError, match="gone"):
        observed(nets, data, checkpoint=Checkpoint(path, False, 300))
    data.broken = False
    resumed = observed(nets, data, checkpoint=Checkpoint(path, True, 300))
    whole = observed(nets, batches)
    for values in ("mean", "stderr"):
        one, other = (getattr(o, values)("a", "norms") for o in (resumed, whole))
        assert one.keys() == other.keys() == {"0", "1"}
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_merged_observations_are_those_of_all_images():
    values = torch.randn(50, 3, generator=torch.Generator().manual_seed(2)) + 1e4
    whole, parts = Observations({}), [Observations({}) for _ in range(2)]
    whole.add({("a", "x"): {"y": values}})
    for part, some in zip(parts, values.split(30), strict=True):
        part.add({("a", "x"): {"y": some}})
    parts[0].merge(*parts[1].state())
    assert parts[0].count == whole.count == 50
    for get in ("mean", "stderr"):
        one, other = (getattr(o, get)("a", "x")["y"] for o in (parts[0], whole))
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_observers_that_see_different_numbers_of_images_are_refused():
    seen = {("a", "x"): {"y": torch.ones(3)}, ("b", "x"): {"y": torch.ones(4)}}
    with pytest.raises(ValueError, match=r"different numbers of images: \[3, 4\]"):
        Observations({}).add(seen)


def test_values_that_some_batches_lack_are_refused():
    observations = Observations({})
    observations.add({("a", "x"): {"y": torch.ones(3), "z": torch.ones(3)}})
    with pytest.raises(ValueError, match="observer 'x' saw 'z' of some images only"):
        observations.add({("a", "x"): {"y": torch.ones(3)}})
    assert observations.count == 3
