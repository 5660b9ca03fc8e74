"""`fastcka study`: what it takes, what it writes, and what it says."""

import csv
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch

from fastcka import data
from fastcka.cli import main
from fastcka.experiments import registry, within_model
from fastcka.experiments.registry import experiments
from fastcka.experiments.runner.claims import UNTESTED

SMALL = ["--max-images", "16", "--n", "8", "--batch-size", "8", "--fields", "1", "--quiet"]
PAIR = ["--models", "fastcka_vit_mini", "fastcka_resnet_mini"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return str(data.write_images(tmp_path_factory.mktemp("images"), 48, size=64))


@pytest.fixture
def undrawn(monkeypatch):
    """Drawing takes longest."""
    for module in experiments().values():
        monkeypatch.setattr(module, "plot", lambda result: {})


def study(*arguments):
    return main(["study", *arguments, *SMALL])


def rows_of(folder):
    return list(csv.DictReader((folder / "claims.csv").read_text().splitlines()))


def test_a_study_writes_all_of_it_and_the_same_command_runs_no_network_again(
    images, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "study"
    arguments = ["--experiments", "E1", "--data", images, "--output", str(folder), *PAIR]
    assert study(*arguments) == 0
    assert "untrained" in capsys.readouterr().err
    names = {path.name for path in folder.iterdir()}
    assert names == {"claims.csv", "measured", "report.html", "study.json", "within_model"}
    inner = {path.name for path in (folder / "within_model").iterdir()}
    assert {"result.safetensors", "result.json", "fastcka_resnet_mini_(untrained).pdf"} <= inner
    rows = rows_of(folder)
    assert all(name.endswith("(untrained)") for row in rows for name in row["of"].split(", "))
    assert {row["experiment"] for row in rows} == {"E1"}
    summary = json.loads((folder / "study.json").read_text())
    assert summary["experiments"]["within_model"]["status"] == "done"
    assert len(summary["claims"]) == len(rows)
    call = torch.nn.Module.__call__

    def counted(self, *args, **options):
        assert type(self).__name__ not in ("VisionTransformer", "ResNet")
        return call(self, *args, **options)

    monkeypatch.setattr(torch.nn.Module, "__call__", counted)
    monkeypatch.setattr(within_model, "plot", lambda result: {})  # takes longest
    assert study(*arguments) == 0
    assert rows_of(folder) == rows


def test_an_experiment_that_fails_is_told_and_the_others_are_there(
    images, tmp_path, monkeypatch, capsys, undrawn
):
    def broken(config, subjects, measured):
        raise ZeroDivisionError("of nothing")

    monkeypatch.setattr(within_model, "finish", broken)
    arguments = ["--experiments", "E1", "E2", "--data", images, "--output", str(tmp_path)]
    assert study(*arguments, *PAIR) == 1
    told = capsys.readouterr().err
    assert "E1, Layers within a network failed: ZeroDivisionError: of nothing" in told
    assert "of nothing" in (tmp_path / "within_model" / "error.txt").read_text()
    rows = rows_of(tmp_path)
    assert {row["verdict"] for row in rows if row["experiment"] == "E1"} == {UNTESTED}
    assert {row["verdict"] for row in rows if row["experiment"] == "E2"} != {UNTESTED}
    assert "of nothing" in (tmp_path / "report.html").read_text()


def test_what_fails_is_told_in_words_of_the_options(images, tmp_path, undrawn, capsys):
    broken = shutil.copytree(images, tmp_path / "broken")
    for path in broken.glob("*/*.png"):
        path.write_bytes(b"no image")
    arguments = ["--experiments", "E1", "--data", str(broken), "--output", str(tmp_path)]
    assert study(*arguments, *PAIR) == 1
    assert "or skip such images (--on-broken)" in capsys.readouterr().err
    assert all("(--on-broken)" in row["why"] for row in rows_of(tmp_path))
    assert "(--on-broken)" in (tmp_path / "report.html").read_text()


def test_an_interrupted_study_leaves_what_is_finished(
    images, tmp_path, monkeypatch, capsys, undrawn
):
    def interrupted(config, subjects, measured):
        raise KeyboardInterrupt

    module = experiments(["E2"])["cross_model"]
    monkeypatch.setattr(module, "finish", interrupted)
    arguments = ["--experiments", "E1", "E2", "--data", images, "--output", str(tmp_path)]
    assert study(*arguments, *PAIR) == 130
    assert "the same command goes on" in capsys.readouterr().err
    summary = json.loads((tmp_path / "study.json").read_text())["experiments"]
    assert [summary[name]["status"] for name in ("within_model", "cross_model")] == [
        "done",
        "not reached",
    ]


def test_the_page_has_what_earlier_commands_found_with_the_same_settings(images, tmp_path, undrawn):
    arguments = ["--data", images, "--output", str(tmp_path), *PAIR]
    assert study(*arguments, "--experiments", "E1") == 0
    within = rows_of(tmp_path)
    assert study(*arguments, "--experiments", "E2") == 0
    rows = rows_of(tmp_path)
    assert rows[: len(within)] == within
    assert {row["experiment"] for row in rows} == {"E1", "E2"}
    told = "E1, on the same networks and images with the same settings"
    assert told in (tmp_path / "report.html").read_text()
    assert study(*arguments, "--experiments", "E2", "--seed", "1") == 0
    assert {row["experiment"] for row in rows_of(tmp_path)} == {"E2"}
    assert "earlier commands" not in (tmp_path / "report.html").read_text()


def test_variants_are_named_by_the_models_as_given(images, tmp_path, undrawn):
    arguments = ["--experiments", "E17", "--data", images, "--output", str(tmp_path)]
    arguments += ["--models", "vit_tiny_patch16_224", "vit_tiny_patch16_224.augreg_in21k"]
    arguments += ["--img-size", "32"]
    arguments += ["--variant", "less-data", "vit_tiny_patch16_224.augreg_in21k"]
    arguments += ["vit_tiny_patch16_224", "10"]
    assert study(*arguments) == 0
    about = json.loads((tmp_path / "study.json").read_text())["about"]["subjects"]
    assert about["vit_tiny_patch16_224.augreg_in21k (untrained)"]["variant"] == {
        "kind": "less-data",
        "of": "vit_tiny_patch16_224 (untrained)",
        "value": 10,
    }


def test_skip_connections_cut_post_hoc_are_named_so_and_decide_no_claim(
    images, tmp_path, undrawn, capsys
):
    arguments = ["--experiments", "E10", "--data", images, "--output", str(tmp_path)]
    arguments += ["--models", "fastcka_vit_mini", "fastcka_vit_mini_noskip4.shape", "--pretrained"]
    arguments += ["--variant", "no-skip", "fastcka_vit_mini_noskip4.shape", "fastcka_vit_mini", "4"]
    arguments += ["--variant", "skip-cut", "fastcka_vit_mini", "4"]
    assert study(*arguments) == 0
    cut = "fastcka_vit_mini (skips of block 4 cut post hoc)"
    rows = rows_of(tmp_path)
    assert {row["of"] for row in rows} == {"fastcka_vit_mini_noskip4.shape", cut}
    of_cut = [row for row in rows if row["of"] == cut]
    assert {row["verdict"] for row in of_cut} == {UNTESTED}
    assert all("cut post hoc, not trained" in row["why"] for row in of_cut)
    about = json.loads((tmp_path / "study.json").read_text())["about"]["subjects"][cut]
    assert about["skips_cut"] == "blocks.4"
    assert about["variant"] == {"kind": "skip-cut", "of": "fastcka_vit_mini", "value": 4}
    assert "block 4 cut post hoc" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--experiments", "E99"], "there is no experiment 'E99': ask for E1 to E20, or all;"),
        (["--experiments", "within_modle"], "'within_modle': ask for within_model;"),
        (["--variant", "less-data", "a", "b"], "--variant is about the models of --models"),
        (["--img-size", "32"], "--img-size is about the models of --models"),
        (["--amp-dtype", "bfloat16"], "--amp-dtype does nothing without --amp"),
        (
            ["--models", "resnet10t", "--variant", "less-data", "resnet10t"],
            "--variant less-data takes MODEL OF VALUE, but came with 'resnet10t'",
        ),
        (
            ["--models", "resnet10t", "--variant", "skip-cut", "resnet10t"],
            "--variant skip-cut takes OF BLOCK, but came with 'resnet10t'",
        ),
        (
            ["--models", "resnet10t", "--variant", "smaller", "resnet10t", "resnet18"],
            "--variant knows less-data, no-skip, skip-cut, fine-tuned, other-seed, but came with "
            "'smaller'",
        ),
        (
            ["--models", "resnet10t", "--variant", "no-skip", "resnet10t", "resnet10t", "x"],
            "--variant no-skip resnet10t resnet10t x: 'x' is no number",
        ),
        (
            ["--models", "resnet10t", "--variant", "other-seed", "resnet18", "resnet10t"],
            "--variant speaks of 'resnet18', which --models does not name",
        ),
        (
            ["--models", "resnet10t", "--variant", "other-seed", "resnet10t", "resnet18"],
            "--variant speaks of 'resnet18', which --models does not name",
        ),
        (
            ["--models", "resnet10t", "--variant", "skip-cut", "resnet10t", "0"],
            "the skip connections of layer1.0 of resnet10t cannot be cut: it must be a Block",
        ),
        (
            ["--models", "fastcka_vit_mini", "--variant", "skip-cut", "fastcka_vit_mini", "8"],
            "of block 8 of fastcka_vit_mini (untrained) cannot be cut: its blocks are 0 to 7",
        ),
        (["--data", "/nowhere"], "/nowhere"),
        (["--batch-size", "8", "--n", "12"], "--batch-size must be a multiple of --n 12, but is 8"),
        (["--models", "resnet10t", "--img-size", "0"], "--img-size must be a whole number from 1"),
    ],
)
def test_bad_input_gets_one_sentence(arguments, told, tmp_path, capsys):
    assert main(["study", *SMALL, *arguments, "--output", str(tmp_path)]) == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if told in x]
    assert line.startswith("fastcka: ")
    assert "Traceback" not in line


def test_too_few_images_for_probes_are_told_and_fewer_shots_will_do(
    images, tmp_path, undrawn, capsys
):
    arguments = ["--experiments", "E16", "--data", images, *PAIR]
    assert study(*arguments, "--output", str(tmp_path / "ten")) == 0
    assert "10 images of each class to fit" in capsys.readouterr().err
    assert study(*arguments, "--output", str(tmp_path / "one"), "--shots", "1") == 0
    assert {row["verdict"] for row in rows_of(tmp_path / "one")} & {"holds", "does not hold"}


def test_several_processes_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert study() == 1
    assert "start it without torchrun" in capsys.readouterr().err


def test_two_studies_in_one_folder_keep_out_of_each_others_way(images, tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from fastcka.output_folder import writing\n"
        f"with writing(Path({str(tmp_path)!r}) / '.lock', Path({str(tmp_path)!r})):\n"
        "    print('there', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "there\n"
        assert study("--experiments", "E1", "--data", images, "--output", str(tmp_path)) == 1
    finally:
        other.kill()
        other.communicate()


def test_experiments_are_listed_with_question_and_cost(capsys):
    assert main(["list", "experiments"]) == 0
    printed = capsys.readouterr().out
    for name, module in registry.experiments().items():
        (row,) = [line for line in printed.splitlines() if f" {name} " in line]
        assert row.startswith(", ".join(module.NUMBERS))
        assert "?" in row


def test_every_experiment_tells_all_that_page_and_site_need():
    numbers = []
    for name, module in registry.experiments().items():
        numbers += module.NUMBERS
        assert all((module.TITLE, module.FINDING, module.CLAIMS)), name
        assert {claim.experiment for claim in module.CLAIMS} <= set(module.NUMBERS), name
        first, _, rest = module.__doc__.partition("\n\n")
        assert "? " in " ".join(first.split()), name
        assert re.search(r"fastcka study --experiments.*Costs? ", rest, re.DOTALL), name
    assert len(set(numbers)) == len(numbers)
