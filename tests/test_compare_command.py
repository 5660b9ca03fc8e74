"""`fastcka compare` and `fastcka list` as a user types them."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from test_cli import run

import fastcka
from fastcka import data
from fastcka.cli import main
from fastcka.course import Course

SMALL = ["--img-size", "32", "--batch-size", "16", "--quiet"]
VIT, CNN = "test_vit", "test_resnet"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return data.write_images(tmp_path_factory.mktemp("images"), 40, size=40)


def compare(*arguments, images, output, expect=0):
    assert main(
        ["compare", *arguments, "--data", str(images), "--output", str(output), *SMALL]
    ) == (expect)


def test_two_models_and_a_folder_become_a_result_and_its_figure(images, tmp_path, capsys):
    code = main(
        ["compare", VIT, CNN, "--data", str(images), "--output", str(tmp_path), *SMALL[:-1]]
    )
    assert code == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["heatmap.pdf", "heatmap.png", "result.safetensors", "summary.json"]
    assert (tmp_path / "heatmap.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "heatmap.pdf").read_bytes().startswith(b"%PDF")
    result = fastcka.CKAResult.load(tmp_path / "result.safetensors")
    short = json.loads((tmp_path / "summary.json").read_text())
    assert result.n_examples == short["n_examples"] == 40
    assert result.models == (VIT, CNN)
    assert result.meta["models"]["a"]["weights"] == "untrained, seed 0"
    assert result.measured == "40 examples in 3 batches, unbiased CKA, untrained networks"
    assert result.meta["data"]["files_used"] == 40
    out, err = capsys.readouterr()
    assert out.startswith(f"{VIT} and {CNN}\n")
    assert str(tmp_path) in out
    assert f"untrained, for want of --pretrained or NAME@FILE: {VIT}, {CNN}" in err


def test_the_command_gives_what_the_python_interface_gives(images, tmp_path):
    from fastcka import models

    compare(VIT, CNN, "--seed", "3", images=images, output=tmp_path)
    a, b = (models.load(name, img_size=32, seed=3) for name in (VIT, CNN))
    batches = data.ImageBatches(
        images, {"a": a.transform(), "b": b.transform()}, batch_size=16, seed=3
    )
    expected = fastcka.compare(
        a.module, b.module, batches,
        input_a=lambda batch: batch["views"]["a"], input_b=lambda batch: batch["views"]["b"],
    )  # fmt: skip
    found = fastcka.CKAResult.load(tmp_path / "result.safetensors")
    assert np.array_equal(found.cka, expected.cka)


def test_options_reach_the_measurement(images, tmp_path):
    compare(
        VIT, CNN, "--layers", "leaves", "--layers-b", "conv1", "layer1.*", "--n", "8", "--passes",
        "2", "--estimator", "biased", "--gram", "rbf", "--bandwidth", "0.5", "--operand", "fp16",
        "--weighting", "equal", "--backend", "torch", "--device", "cpu", "--amp", "--amp-dtype",
        "bfloat16", "--max-images", "32", "--errors", "--title", "Two", images=images,
        output=tmp_path,
    )  # fmt: skip
    result = fastcka.CKAResult.load(tmp_path / "result.safetensors")
    expected = {
        "n": 8, "passes": 2, "estimator": "biased", "gram": "rbf", "bandwidth": 0.5,
        "operand": "fp16", "weighting": "equal", "backend": "torch", "autocast": "bf16",
    }  # fmt: skip
    assert expected.items() <= result.meta.items()
    assert result.layers_b[0] == "conv1"
    assert (result.n_examples, result.n_batches) == (64, 8)


def test_three_models_become_every_pair(images, tmp_path):
    compare(VIT, CNN, VIT, images=images, output=tmp_path)
    results = fastcka.CKAResults.load(tmp_path / "result.safetensors")
    assert len(results) == 6
    twice = results[VIT, f"{VIT} (2)"]
    assert twice.meta["models"]["b"]["weights"] == "untrained, seed 1"
    assert not np.allclose(twice.cka, results[VIT, VIT].cka)


def influence_csv(folder):
    with open(folder / "influence.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_what_single_images_do_is_a_table(images, tmp_path, capsys):
    pairs = ["--influence", "blocks.0", "layer1.0", "--influence", "blocks.2", "layer2.0"]
    arguments = ["compare", VIT, CNN, *pairs, "--data", str(images), "--output", str(tmp_path)]
    assert main([*arguments, *SMALL[:-1]]) == 0
    result = fastcka.CKAResult.load(tmp_path / "result.safetensors")
    assert list(result.influence) == [("blocks.0", "layer1.0"), ("blocks.2", "layer2.0")]
    table = influence_csv(tmp_path)
    assert [row["image"] for row in table] == 2 * list(result.images)
    assert len(set(result.images)) == 40
    assert all((images / name).is_file() for name in result.images)
    both = np.concatenate(list(result.influence.values()))
    assert [float(row["influence"]) for row in table] == both.tolist()
    first = [table[0][name] for name in ("model_a", "layer_a", "model_b", "layer_b")]
    assert first == [VIT, "blocks.0", CNN, "layer1.0"]
    short = json.loads((tmp_path / "summary.json").read_text())["pairs"][0]["influence"]
    assert [pair["layer_b"] for pair in short] == ["layer1.0", "layer2.0"]
    most = np.abs(result.influence["blocks.0", "layer1.0"]).argmax()
    assert short[0]["images"][0]["image"] == result.images[most]
    out = capsys.readouterr().out
    assert "what single images do to the CKA of blocks.2 and layer2.0, the largest:" in out
    assert "summary.json, influence.csv are in" in out
    compare(VIT, CNN, "--overwrite", images=images, output=tmp_path)
    assert not (tmp_path / "influence.csv").exists()


def test_of_more_models_each_layer_is_named_with_its_own(images, tmp_path, capsys):
    pair = [f"{CNN}:layer1.0", f"{VIT} (2):blocks.1"]
    compare(VIT, CNN, VIT, "--influence", *pair, images=images, output=tmp_path)
    results = fastcka.CKAResults.load(tmp_path / "result.safetensors")
    assert list(results[CNN, f"{VIT} (2)"].influence) == [("layer1.0", "blocks.1")]
    assert {row["model_b"] for row in influence_csv(tmp_path)} == {f"{VIT} (2)"}
    refused = ["layer1.0", f"{VIT}:blocks.1"]
    compare(VIT, CNN, VIT, "--influence", *refused, images=images, output=tmp_path / "b", expect=1)
    assert (
        "--influence names 'layer1.0', but of which of the models: write test_vit:LAYER, or "
        "another of test_vit, test_resnet, test_vit (2)" in capsys.readouterr().err
    )


def test_one_model_is_compared_with_itself(images, tmp_path):
    compare(CNN, images=images, output=tmp_path)
    result = fastcka.CKAResult.load(tmp_path / "result.safetensors")
    assert result.models == (CNN,)
    assert (np.diag(result.cka) == 1).all()


def test_a_checkpoint_is_what_is_measured(images, tmp_path):
    from safetensors.torch import save_file

    from fastcka import models

    weights = models.load(CNN, seed=7).module.state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    checkpoint = f"{CNN}@{tmp_path}/weights.safetensors"
    compare(checkpoint, "--seed", "7", images=images, output=tmp_path / "a")
    compare(CNN, "--seed", "7", images=images, output=tmp_path / "b")
    a, b = (fastcka.CKAResult.load(tmp_path / name / "result.safetensors") for name in "ab")
    assert a.models == (f"{CNN}@weights.safetensors",)
    assert a.meta["models"]["a"]["sha256"]
    assert np.array_equal(a.cka, b.cka)


def test_without_data_images_are_generated_and_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", CNN, "--generate", "8", *SMALL]) == 0
    folder = tmp_path / "fastcka-results"
    assert len(list(folder.glob("images-8-33px-seed0/*/*.png"))) == 8
    assert (folder / CNN / "heatmap.png").exists()
    assert "no --data: 8 generated images, in fastcka-results" in capsys.readouterr().err


def test_without_models_two_that_come_trained_are_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--generate", "32", "--batch-size", "16"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("fastcka_vit_mini and fastcka_resnet_mini\n8 x 8 layers, 32 examples")
    assert "untrained" not in err
    folder = tmp_path / "fastcka-results"
    assert len(list(folder.glob("images-32-64px-seed0/*/*.png"))) == 32
    found = fastcka.CKAResult.load(
        folder / "fastcka_vit_mini-fastcka_resnet_mini" / "result.safetensors"
    )
    assert found.meta["models"]["a"]["weights"] == "trained fastcka_vit_mini.shape"


def test_a_second_run_has_a_folder_of_its_own(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(3):
        assert main(["compare", CNN, "--data", str(images), *SMALL]) == 0
    folders = sorted(path.name for path in (tmp_path / "fastcka-results").iterdir())
    assert folders == [CNN, f"{CNN}-2", f"{CNN}-3"]


def test_an_earlier_result_is_not_replaced_unasked(images, tmp_path, capsys):
    compare(CNN, images=images, output=tmp_path)
    before = (tmp_path / "result.safetensors").read_bytes()
    compare(CNN, images=images, output=tmp_path, expect=1)
    assert "result.safetensors is there already: give another --output" in capsys.readouterr().err
    compare(CNN, "--seed", "5", "--overwrite", images=images, output=tmp_path)
    assert (tmp_path / "result.safetensors").read_bytes() != before


SEED_WITH_IT_LATE = "4"  # of the orders of 41 images, one in which the broken one is not first


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_broken_image_is_named(images, tmp_path, policy, capsys):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    (folder / "disc" / "broken.png").write_bytes(b"no image")
    arguments = ["compare", CNN, "--data", str(folder), "--output", str(tmp_path), *SMALL]
    code = main([*arguments, "--on-broken", policy, "--seed", SEED_WITH_IT_LATE])
    text = capsys.readouterr().err
    assert "disc/broken.png" in text
    if policy == "stop":
        assert code == 1
        assert text.splitlines()[-1].startswith("fastcka: cannot read the image 'disc/broken.png'")
        partial = fastcka.CKAResult.load(tmp_path / "partial.safetensors")
        assert partial.models == (CNN,)
        assert partial.meta["models"]["a"]["weights"] == "untrained, seed 4"
        assert 0 < partial.n_examples < 41
        assert f"what was measured until then is in {tmp_path}" in text
    else:
        assert code == 0
        result = fastcka.CKAResult.load(tmp_path / "result.safetensors")
        assert result.n_examples == 40
        assert result.warnings[0].startswith("1 of 41 images could not be read and are left out")


def test_one_batch_is_drawn_without_the_errors_asked_for(images, tmp_path, capsys):
    compare(CNN, "--max-images", "16", "--errors", images=images, output=tmp_path)
    assert (tmp_path / "heatmap.pdf").exists()
    assert "one batch alone has no standard errors" in capsys.readouterr().err


def test_the_summary_is_json_where_layers_are_constant(images, tmp_path):
    with_constant = ["resnet10t", "--layers", "leaves"]  # its last norms begin at zero
    compare(*with_constant, images=images, output=tmp_path)
    text = (tmp_path / "summary.json").read_text()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    assert "are constant" in json.loads(text, parse_constant=refuse)["warnings"][0]


REFUSALS = [
    (["resnet5O"], "unknown model 'resnet5O': did you mean 'resnet50"),
    ([f"{CNN}@nowhere.pth"], "there is no checkpoint 'nowhere.pth'"),
    ([CNN, "--data", "/no/such/folder"], "the image folder '/no/such/folder' does not exist"),
    ([CNN, "--layers", "layer9"], "model 'a' has no layer 'layer9'; did you mean 'layer4'"),
    ([CNN, "--layers-b", "fc"], "--layers-b needs a second model"),
    ([CNN, "--amp-dtype", "float16"], "--amp-dtype does nothing without --amp"),
    ([CNN, "--generate", "8"], "--generate does nothing beside --data"),
    (
        [CNN, "--layers", "layer1", VIT],
        f"--layers was given '{VIT}', which is a model: models come",
    ),
    ([CNN, "--layers-a", "a.fp"], "--layers-a was given 'a.fp', which is a model: models come"),
    ([CNN, "--layers", "leafs"], "did you mean 'leaves'"),
    ([CNN, "--n", "3"], "`n` must be a whole number from 4 on, but is 3"),
    ([CNN, "--n", "5"], "`n` is 5, but the batches of `data` hold 16 images"),
    ([CNN, "--batch-size", "0"], "`batch_size` must be a whole number from 1 on"),
    ([CNN, "--batch-size", "2"], "no batch of 4 or more examples was given"),
    (
        [CNN, "--influence", "layer1.0", "layer2.0", "--passes", "2"],
        "`influence` needs one pass, but",
    ),
    (
        [CNN, "--influence", "layer1.0", "layer9"],
        "names layer 'layer9', which is none of those com",
    ),
    ([CNN, "--bandwidth", "2"], "`bandwidth` belongs to gram='rbf'"),
    ([CNN, "--output", "/proc/none"], "cannot make the folder /proc/none: "),
]


@pytest.mark.parametrize(("arguments", "text"), REFUSALS, ids=[text for _, text in REFUSALS])
def test_bad_input_is_one_sentence(arguments, text, images, tmp_path, capsys):
    usual = ["--data", str(images), "--output", str(tmp_path / "out"), *SMALL]
    assert main(["compare", *arguments[:1], *usual, *arguments[1:]]) == 1
    told = capsys.readouterr().err.splitlines()
    assert text in told[-1]
    assert told[-1].startswith("fastcka: ")
    assert sum(not line.startswith("fastcka: untrained") for line in told) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--calibrate", CNN], ["--also", "cknna", CNN]],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("command", ["compare", "plan"])
def test_a_model_behind_an_option_of_several_values_is_told(command, arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([command, *arguments])
    assert capsys.readouterr().err.endswith("; models come before the options\n")


def test_other_mistakes_are_told_as_ever(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["compare", CNN, "--n", "many"])
    assert "models come" not in capsys.readouterr().err


def test_an_interrupt_ends_with_a_sentence(monkeypatch, capsys):
    from fastcka import compare_command

    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare_command.models, "labels", interrupted)
    assert main(["compare", CNN]) == 130
    assert capsys.readouterr().err == "fastcka: interrupted\n"


def test_models_are_listed_by_pattern(capsys):
    assert main(["list", "models", "test_v*"]) == 0
    assert VIT in capsys.readouterr().out.splitlines()
    assert main(["list", "models", "no_such_*"]) == 1
    assert "no model matches 'no_such_*'" in capsys.readouterr().err


def test_layers_are_listed_in_order_with_their_shapes(capsys):
    assert main(["list", "layers", VIT, "--img-size", "32"]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["layer", "type", "activation", "parameters", "preset"]
    names = [line[0] for line in lines]
    assert names.index("blocks.0.norm1") < names.index("blocks.0") < names.index("blocks.1")
    block = next(line for line in lines if line[0] == "blocks.0")
    assert block[1] == "Block"
    assert block[-2:] == ["blocks", "raghu"]
    assert "never calls" in out
    assert main(["list", "layers", VIT, "--img-size", "32", "--layers", "blocks"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + sum(
        n.startswith("blocks.") and n.count(".") == 1 for n in names
    )


def test_a_listed_name_can_be_compared(images, tmp_path, capsys):
    main(["list", "layers", CNN, "--img-size", "32"])
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    names = [name for name in names if "." in name][:5]
    compare(CNN, "--layers", *names, images=images, output=tmp_path)
    assert fastcka.CKAResult.load(tmp_path / "result.safetensors").layers_a == tuple(names)


def test_the_command_runs_as_a_program(images, tmp_path):
    done = run("compare", CNN, "--data", str(images), "--output", str(tmp_path), *SMALL)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines() == [
        f"fastcka: untrained, for want of --pretrained or NAME@FILE: {CNN}"
    ]
    assert (
        torch.cuda.is_available()
        or "device" in json.loads((tmp_path / "summary.json").read_text())["provenance"]
    )


# Stopped and resumed

STATE = "state.safetensors"


@pytest.fixture
def interrupted_after(monkeypatch):
    """Ctrl-C comes when so many batches have been added up."""

    def after(count):
        done, left = Course.done, [count]

        def interrupt(self, turn, number):
            done(self, turn, number)
            left[0] -= 1
            if left[0] == 0:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(Course, "done", interrupt)

    return after


def test_an_interrupted_run_goes_on_to_the_same_numbers(
    images, tmp_path, interrupted_after, monkeypatch, capsys
):
    compare(VIT, CNN, images=images, output=tmp_path / "whole")
    interrupted_after(2)
    compare(VIT, CNN, images=images, output=tmp_path / "cut", expect=130)
    told = capsys.readouterr().err
    assert "what was measured until then is in" in told
    assert "--resume goes on" in told
    assert sorted(os.listdir(tmp_path / "cut")) == ["partial.safetensors", STATE]
    assert fastcka.CKAResult.load(tmp_path / "cut" / "partial.safetensors").n_batches == 2
    monkeypatch.undo()
    compare(VIT, CNN, images=images, output=tmp_path / "cut", expect=1)
    assert "holds an unfinished run: add --resume to go on" in capsys.readouterr().err
    compare(VIT, CNN, "--seed", "1", "--resume", images=images, output=tmp_path / "cut", expect=1)
    assert "`data.seed` is 1 now, and was 0 there" in capsys.readouterr().err
    compare(VIT, CNN, "--resume", images=images, output=tmp_path / "cut")
    results = [
        fastcka.CKAResult.load(tmp_path / d / "result.safetensors") for d in ("whole", "cut")
    ]
    assert np.array_equal(results[0].cka, results[1].cka)
    assert np.array_equal(results[0].stderr, results[1].stderr)
    assert results[1].meta["resumed"] == 2
    assert sorted(os.listdir(tmp_path / "cut")) == sorted(os.listdir(tmp_path / "whole"))


def test_an_unfinished_run_is_passed_over_or_resumed_or_replaced(
    images, tmp_path, interrupted_after, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    usual = ["compare", CNN, "--data", str(images), *SMALL]
    interrupted_after(1)
    assert main(usual) == 130
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    first, second = (tmp_path / "fastcka-results" / name for name in (CNN, f"{CNN}-2"))
    assert main(usual) == 0
    assert (first / STATE).exists()
    assert (second / "result.safetensors").exists()
    assert main([*usual, "--resume"]) == 0
    assert fastcka.CKAResult.load(first / "result.safetensors").meta["resumed"] == 1
    capsys.readouterr()
    assert main([*usual, "--resume"]) == 0
    assert "there is nothing to resume in" in capsys.readouterr().err
    shutil.copy(second / "result.safetensors", second / STATE)
    assert main([*usual, "--output", str(second), "--overwrite"]) == 0
    assert not (second / STATE).exists()


def test_who_always_resumes_is_told_when_all_is_done(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fastcka", "compare", CNN, "--resume"])
    compare(CNN, "--resume", images=images, output=tmp_path)
    assert "there is nothing to resume in" in capsys.readouterr().err
    before = (tmp_path / "result.safetensors").read_bytes()
    compare(CNN, "--resume", images=images, output=tmp_path)
    assert f"there is nothing to resume: {tmp_path} is finished" in capsys.readouterr().err
    assert (tmp_path / "result.safetensors").read_bytes() == before
    monkeypatch.setattr(sys, "argv", ["fastcka", "compare", CNN, "--seed", "1", "--resume"])
    compare(CNN, "--seed", "1", "--resume", images=images, output=tmp_path, expect=1)
    assert "result.safetensors is there already" in capsys.readouterr().err


def test_a_run_that_was_killed_while_it_cleaned_up_is_finished_by_resuming(
    images, tmp_path, interrupted_after, monkeypatch
):
    interrupted_after(2)
    compare(CNN, images=images, output=tmp_path, expect=130)
    monkeypatch.undo()
    (tmp_path / "result.safetensors").write_bytes(b"written before the state was removed")
    compare(CNN, "--resume", images=images, output=tmp_path)
    assert fastcka.CKAResult.load(tmp_path / "result.safetensors").meta["resumed"] == 2
    assert STATE not in os.listdir(tmp_path)


def test_files_of_the_user_beside_a_state_stay(images, tmp_path):
    (tmp_path / "state_dict.pth").write_bytes(b"weights")
    (tmp_path / "state").mkdir()
    compare(CNN, images=images, output=tmp_path)
    compare(CNN, "--overwrite", images=images, output=tmp_path)
    assert {"state_dict.pth", "state", "result.safetensors"} <= set(os.listdir(tmp_path))


def test_states_of_another_number_of_processes_are_refused_and_stay(
    images, tmp_path, interrupted_after, monkeypatch, capsys
):
    interrupted_after(2)
    compare(CNN, images=images, output=tmp_path, expect=130)
    monkeypatch.undo()
    other = tmp_path / "state-0-of-2.safetensors"
    os.rename(tmp_path / STATE, other)
    compare(CNN, "--resume", images=images, output=tmp_path, expect=1)
    assert "is of process 0 of 2, but there are 1 now; start as many" in capsys.readouterr().err
    assert other.exists()


def test_a_file_system_without_locks_is_no_obstacle(images, tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    compare(CNN, images=images, output=tmp_path)


def test_two_runs_do_not_write_to_one_folder(images, tmp_path, monkeypatch, capsys):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.chdir(tmp_path)
    busy = tmp_path / "fastcka-results" / CNN
    busy.mkdir(parents=True)
    with open(busy / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        compare(CNN, images=images, output=busy, expect=1)
        assert f"another run is writing to {busy}: wait" in capsys.readouterr().err
        assert main(["compare", CNN, "--data", str(images), *SMALL]) == 0
    assert (tmp_path / "fastcka-results" / f"{CNN}-2" / "result.safetensors").exists()
    compare(CNN, images=images, output=busy)  # what a killed run left locks nobody out
    assert ".lock" not in os.listdir(busy)


@pytest.mark.parametrize(
    ("signals", "code"),
    [([signal.SIGTERM], 143), pytest.param([signal.SIGINT] * 2, 130, marks=pytest.mark.slow)],
    ids=["SIGTERM", "Ctrl-C twice"],
)
def test_a_signal_leaves_what_can_be_gone_on_from(signals, code, images, tmp_path):
    arguments = ["compare", CNN, "--data", str(images), "--output", str(tmp_path), *SMALL]
    arguments += ["--passes", "40", "--save-every", "0"]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "fastcka", *arguments], stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 300
    while not (tmp_path / STATE).exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    for number in signals:
        process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert (tmp_path / "partial.safetensors").exists()
    assert main([*arguments, "--resume"]) == 0
    whole = tmp_path / "whole"
    assert main([*arguments, "--output", str(whole)]) == 0
    results = [fastcka.CKAResult.load(d / "result.safetensors") for d in (tmp_path, whole)]
    assert np.array_equal(results[0].cka, results[1].cka)
    assert 1 <= results[0].meta["resumed"] < 120


def test_threads_are_set_and_recorded(images, tmp_path):
    threads = torch.get_num_threads()
    try:
        compare(CNN, "--threads", str(threads + 1), images=images, output=tmp_path)
    finally:
        torch.set_num_threads(threads)
    meta = fastcka.CKAResult.load(tmp_path / "result.safetensors").meta
    assert meta["threads"] == threads + 1
