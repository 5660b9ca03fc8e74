"""The runner of experiments: what is shared, what is isolated, what is resumed."""

import shutil
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastcka import data, models
from fastcka.analysis.observer import Taps
from fastcka.capture import Tap
from fastcka.experiments.runner.claims import Claim, Verdict
from fastcka.experiments.runner.needs import Comparison, Field, NotApplicable, Probe, Side, Watch
from fastcka.experiments.runner.probing import Shots
from fastcka.experiments.runner.result import Result
from fastcka.experiments.runner.sample import Sample
from fastcka.experiments.runner.study import DONE, FAILED, LEFT_OUT, Study
from fastcka.experiments.runner.subjects import Subject, Subjects, Variant

VIT, CNN = "fastcka_vit_mini", "fastcka_resnet_mini"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(data.write_images(tmp_path_factory.mktemp("images"), 96, size=64))


@pytest.fixture
def study(images, tmp_path):
    return new_study(images, tmp_path)


def new_study(images, folder, **options):
    subjects = Subjects([Subject(name, models.load(name, pretrained=True)) for name in (VIT, CNN)])
    sample = Sample(images, count=48, n=16, batch_size=16, fields=2, tests=32)
    return Study(subjects, sample, folder, Shots(2, 2, 1), progress=False, **options)


@dataclass(frozen=True)
class Config:
    """Nothing to choose."""


def experiment(*needs, finish=None, plan=None):
    """A question with these needs; its result is what was measured."""

    def numbers(config, subjects, measured):
        return Result({str(i): array_of(measured[need]) for i, need in enumerate(needs)})

    return SimpleNamespace(
        Config=Config,
        plan=plan or (lambda config, subjects: list(needs)),
        finish=finish or numbers,
    )


def array_of(measured):
    if hasattr(measured, "cka"):
        return measured.cka
    if hasattr(measured, "maps"):
        return measured.maps.numpy()
    return next(
        iter((measured.accuracy if hasattr(measured, "accuracy") else measured.mean).values())
    )


def norms(module):
    return Taps("blocks.0", lambda layer, x: x.double().norm(dim=-1))


WITHIN = Comparison(Side(VIT), Side(VIT))
ACROSS = Comparison(Side(CNN), Side(VIT, ("norm",)))
SEEN = Watch(VIT, "norms", norms)
FIELD = Field(CNN, (Tap("layer1.0"),), patch=8)
PROBE = Probe(CNN, "gap", lambda module: Taps([Tap("layer4.1", tokens="gap")]))
EVERY = (WITHIN, ACROSS, SEEN, FIELD, PROBE)


@pytest.fixture
def passes(monkeypatch):
    """How many images have run through the networks."""
    count = {}
    for name in (VIT, CNN):
        kind = type(models.load(name).module)
        forward = kind.forward

        def counted(self, x, *args, forward=forward, **options):
            count[type(self).__name__] = count.get(type(self).__name__, 0) + len(x)
            return forward(self, x, *args, **options)

        monkeypatch.setattr(kind, "forward", counted)
    return count


def test_experiments_share_their_passes(study, passes):
    asked = {"a": experiment(WITHIN, SEEN), "b": experiment(WITHIN), "c": experiment(ACROSS)}
    outcomes = study.run(asked)
    assert [outcome.status for outcome in outcomes.values()] == [DONE] * 3
    timed = 16 + 2  # of each network, to tell how long it will take
    assert passes == {"VisionTransformer": 48 + timed, "ResNet": 48 + timed}


def test_what_is_finished_is_not_measured_again(study, passes):
    first = study.run({"a": experiment(*EVERY)})["a"]
    before = dict(passes)
    again = study.run({"a": experiment(*EVERY), "b": experiment(PROBE, WITHIN)})["a"]
    assert passes == before
    for name, array in first.result.arrays.items():
        np.testing.assert_array_equal(array, again.result.arrays[name])


def test_two_runs_give_the_same_numbers(images, tmp_path):
    one, other = (
        new_study(images, tmp_path / name).run({"a": experiment(*EVERY)})["a"].result.arrays
        for name in ("one", "other")
    )
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])


@pytest.mark.parametrize("at", [5, 30, 60, 100, 140])
def test_a_study_killed_anywhere_gives_the_numbers_of_one_that_was_not(
    images, tmp_path, monkeypatch, at
):
    whole = new_study(images, tmp_path / "whole").run({"a": experiment(*EVERY)})["a"].result
    calls = 0
    call = torch.nn.Module.__call__

    def killed(self, *args, **options):
        nonlocal calls
        calls += type(self).__name__ in ("VisionTransformer", "ResNet")
        if calls == at // 5:
            calls += 1
            raise KeyboardInterrupt
        return call(self, *args, **options)

    monkeypatch.setattr(torch.nn.Module, "__call__", killed)
    asked = {"a": experiment(*EVERY)}
    while True:
        try:
            resumed = new_study(images, tmp_path / "killed").run(asked)["a"].result
            break
        except KeyboardInterrupt:
            continue
    assert whole.arrays.keys() == resumed.arrays.keys()
    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(array, resumed.arrays[name])


def test_a_killed_study_is_asked_for_other_experiments(images, tmp_path, monkeypatch):
    call, calls = torch.nn.Module.__call__, 0

    def killed(self, *args, **options):
        nonlocal calls
        calls += type(self).__name__ == "VisionTransformer"
        if calls == 5:
            raise KeyboardInterrupt
        return call(self, *args, **options)

    monkeypatch.setattr(torch.nn.Module, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        new_study(images, tmp_path).run({"a": experiment(WITHIN, ACROSS)})
    assert list(tmp_path.glob("measured/*.state"))
    calls = 10
    outcome = new_study(images, tmp_path).run({"a": experiment(WITHIN)})["a"]
    assert outcome.status == DONE, outcome.why
    calls = 10
    outcome = new_study(images, tmp_path).run({"a": experiment(WITHIN, ACROSS)})["a"]
    assert outcome.status == DONE, outcome.why


def interrupted(images, folder, monkeypatch, *needs):
    """A study that was stopped in the middle of its pass."""
    with monkeypatch.context() as patch:
        call, calls = torch.nn.Module.__call__, []

        def killed(self, *args, **options):
            calls.append(type(self).__name__)
            if calls.count("VisionTransformer") == 5:
                raise KeyboardInterrupt
            return call(self, *args, **options)

        patch.setattr(torch.nn.Module, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            new_study(images, folder).run({"a": experiment(*needs)})
    (state,) = folder.glob("measured/*.state")
    return state


def test_an_interrupted_pass_goes_on_whatever_the_order_of_its_needs(
    images, tmp_path, monkeypatch, passes
):
    interrupted(images, tmp_path, monkeypatch, WITHIN, ACROSS)
    before = passes["ResNet"]
    outcome = new_study(images, tmp_path).run({"a": experiment(ACROSS, WITHIN)})["a"]
    assert outcome.status == DONE, outcome.why
    assert passes["ResNet"] == before + 18 + 16  # one batch was left
    assert not list(tmp_path.glob("measured/*.state"))


def test_a_damaged_state_is_told_and_the_pass_begins_anew(images, tmp_path, monkeypatch):
    state = interrupted(images, tmp_path, monkeypatch, WITHIN)
    state.write_bytes(state.read_bytes()[:-9])
    lines = []
    study = new_study(images, tmp_path, tell=lines.append)
    assert study.run({"a": experiment(WITHIN)})["a"].status == DONE
    assert any("damaged" in line and "begins anew" in line for line in lines)


def test_a_network_that_cannot_run_fails_what_needs_it_alone(study):
    def broken(self, x):
        raise RuntimeError("no such operation")

    module = study.subjects[CNN].network.module
    module.forward = broken.__get__(module)
    outcomes = study.run({"vit": experiment(WITHIN), "both": experiment(WITHIN, ACROSS)})
    assert outcomes["vit"].status == DONE
    assert outcomes["both"].status == FAILED
    assert "no such operation" in outcomes["both"].trace


def test_classes_of_two_folders_are_the_same_by_name(images, tmp_path):
    fewer = tmp_path / "fewer"
    shutil.copytree(images, fewer)
    first = min(path for path in fewer.iterdir() if path.is_dir())
    shutil.rmtree(first)  # all numbers of classes are one less
    apart = replace(new_study(images, tmp_path).sample, root=str(fewer), probe_root=images)
    study = replace(new_study(images, tmp_path / "a"), sample=apart, shots=Shots(4, 2, 2))
    found = study.run({"a": experiment(PROBE)})["a"].result
    assert found.arrays["0"] > 0.8  # of a network that is always right


def test_images_of_probes_and_preprocessing_are_part_of_what_is_measured(images, tmp_path, passes):
    probed = tmp_path / "probed"
    shutil.copytree(images, probed)
    study = new_study(images, tmp_path / "out")
    study = replace(study, sample=replace(study.sample, probe_root=str(probed)))
    asked = {"a": experiment(PROBE, WITHIN)}
    study.run(asked)
    vit, cnn = passes["VisionTransformer"], passes["ResNet"]
    next(probed.glob("*/*.png")).unlink()
    replace(study).run(asked)
    assert passes["VisionTransformer"] == vit  # CKA does not depend on them
    assert passes["ResNet"] > cnn
    cnn = passes["ResNet"]
    config = {**study.subjects[VIT].network.data_config, "mean": (0.4, 0.4, 0.4)}
    network = replace(study.subjects[VIT].network, data_config=config)
    subjects = Subjects([Subject(VIT, network), study.subjects[CNN]])
    replace(study, subjects=subjects).run(asked)
    assert passes["VisionTransformer"] > vit
    assert passes["ResNet"] == cnn


def test_broken_images_are_left_out_of_probes(images, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(images, broken)
    for path in sorted(broken.glob("*/*.png"))[::5]:
        path.write_bytes(b"no image")
    study = new_study(images, tmp_path / "out")
    sample = replace(study.sample, root=str(broken), on_broken="skip")
    outcome = replace(study, sample=sample, shots=Shots(4, 2, 2)).run({"a": experiment(PROBE)})["a"]
    assert outcome.status == DONE, outcome.why
    assert outcome.result.arrays["0"] > 0.8


def test_one_that_fails_leaves_the_others_their_results(study):
    def broken(module):
        return Taps("blocks.0", lambda layer, x: x.nonsense)

    def unplanned(config, subjects):
        raise NotApplicable("there is no mixer")

    def unfinished(config, subjects, measured):
        raise ZeroDivisionError("of nothing")

    outcomes = study.run(
        {
            "fine": experiment(WITHIN),
            "broken": experiment(WITHIN, Watch(VIT, "broken", broken)),
            "left out": experiment(plan=unplanned),
            "unfinished": experiment(WITHIN, finish=unfinished),
        }
    )
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "fine": DONE,
        "broken": FAILED,
        "left out": LEFT_OUT,
        "unfinished": FAILED,
    }
    assert "nonsense" in outcomes["broken"].why
    assert outcomes["left out"].why == "there is no mixer"
    assert "of nothing" in outcomes["unfinished"].why


def test_probes_without_labels_are_not_applicable(tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(data.write_images(tmp_path / "images", 40).glob("*/*.png")):
        path.rename(flat / f"{number}.png")
    outcome = new_study(str(flat), tmp_path / "out").run({"a": experiment(PROBE)})["a"]
    assert outcome.status == LEFT_OUT
    assert "labelled images" in outcome.why


def test_probes_with_too_few_images_of_a_class_are_not_applicable(study):
    study = replace(study, shots=Shots(50, 50, 1))
    outcome = study.run({"a": experiment(PROBE)})["a"]
    assert outcome.status == LEFT_OUT
    assert "ask for fewer" in outcome.why


def test_other_weights_and_other_images_are_measured_anew(study, passes):
    study.run({"a": experiment(WITHIN)})
    before = passes["VisionTransformer"]
    subjects = Subjects([Subject(VIT, models.load(VIT, seed=1))])
    replace(study, subjects=subjects).run({"a": experiment(WITHIN)})
    assert passes["VisionTransformer"] == before + 48 + 18
    replace(study, sample=replace(study.sample, seed=1)).run({"a": experiment(WITHIN)})
    assert passes["VisionTransformer"] == before + 2 * (48 + 18)


def test_a_damaged_measurement_is_told_and_measured_again(images, tmp_path):
    lines = []
    study = new_study(images, tmp_path, tell=lines.append)
    study.run({"a": experiment(WITHIN)})
    (path,) = tmp_path.glob("measured/*.safetensors")
    path.write_bytes(path.read_bytes()[:-9])
    assert study.run({"a": experiment(WITHIN)})["a"].status == DONE
    assert any("is damaged" in line and "measured again" in line for line in lines)


def test_a_pair_in_either_order_is_the_transposed(study):
    other = Comparison(ACROSS.b, ACROSS.a)
    result = study.run({"a": experiment(ACROSS, other)})["a"].result
    np.testing.assert_array_equal(result.arrays["0"], result.arrays["1"].T)
    assert result.arrays["0"].shape == (8, 1)


def test_what_is_seen_is_the_mean_over_the_images(study):
    result = study.run({"a": experiment(SEEN)})["a"].result
    module = study.subjects[VIT].network.module
    seen = []
    handle = module.blocks[0].register_forward_hook(lambda m, x, y: seen.append(y))
    with torch.no_grad():
        for batch in study.sample.batches(study.subjects.values(), 48):
            module(batch["views"][VIT])
    handle.remove()
    expected = torch.cat(seen).double().norm(dim=-1).mean(0)
    np.testing.assert_allclose(result.arrays["0"], expected.numpy(), rtol=1e-6)


def test_a_result_survives_the_disk(tmp_path):
    claim = Claim("E1", "more is more", ">=", 0.5)
    verdicts = (Verdict(claim, "x", 0.7, 0.1), Verdict(claim, "y", None, why="no y"))
    result = Result({"x": np.arange(6.0).reshape(2, 3)}, {"names": ["a", "b"]}, verdicts, {"k": 4})
    loaded = Result.load(result.save(tmp_path / "result"))
    np.testing.assert_array_equal(loaded.arrays["x"], result.arrays["x"])
    assert (loaded.facts, loaded.verdicts, loaded.config) == (
        {"names": ["a", "b"]},
        verdicts,
        {"k": 4},
    )


@pytest.mark.parametrize(
    ("measured", "sense", "verdict"),
    [
        (0.5, ">=", "holds"),
        (0.4, ">=", "does not hold"),
        (0.4, "<=", "holds"),
        (None, "<=", "not tested"),
        (float("nan"), ">=", "not tested"),
    ],
)
def test_a_number_decides_a_claim(measured, sense, verdict):
    assert Verdict(Claim("E1", "", sense, 0.5), "", measured, why="a test").verdict == verdict


@pytest.mark.parametrize("measured", [None, float("nan"), float("inf"), -float("inf")])
def test_without_a_number_a_claim_is_not_tested_and_it_must_be_said_why(measured):
    claim = Claim("E1", "", ">=", 0.5)
    row = Verdict(claim, "vit", measured, float("inf"), why="no field").as_row()
    assert (row["verdict"], row["measured"], row["stderr"]) == ("not tested", None, None)
    with pytest.raises(ValueError, match="`why` must say why E1 was not tested on 'vit'"):
        Verdict(claim, "vit", measured)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Claim("E1", "", "=", 1), "`sense` must be '>=' or '<=', but is '='"),
        (lambda: Variant("smaller", "vit"), "`kind` must be one of less-data, no-skip, skip-cut"),
        (lambda: Variant("less-data", "vit"), "needs a value: per cent of the images"),
        (lambda: Variant("other-seed", "vit", 3), "has no value, but 3 came"),
        (lambda: Variant("less-data", "vit", 150), "less than 100 %, but is 150"),
    ],
)
def test_what_is_neither_claim_nor_variant_is_refused(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def test_networks_of_one_name_and_variants_of_none_are_refused():
    network = models.load(VIT)
    with pytest.raises(ValueError, match="two networks are called 'vit'"):
        Subjects([Subject("vit", network), Subject("vit", network)])
    with pytest.raises(ValueError, match="'vit' cannot be a variant of itself"):
        Subjects([Subject("vit", network, Variant("other-seed", "vit"))])
    with pytest.raises(ValueError, match="'vit' is a variant of 'cnn', which is not in the study"):
        Subjects([Subject("vit", network, Variant("other-seed", "cnn"))])
