import subprocess
import sys

import pytest
import torch

import fastcka
from fastcka.cli import main
from fastcka.kernels import native


def run(*arguments, **environment):
    import os

    return subprocess.run(
        [sys.executable, "-P", "-m", "fastcka", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_info_says_what_is_installed_and_what_runs(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert f"fastcka     {fastcka.__version__}" in text
    assert f"torch       {torch.__version__.split('+')[0]}" in text
    assert f"{torch.get_num_threads()} threads" in text
    for operation in ("gram", "finish", "hsic_pairs"):
        assert f"{operation:<12}cpu" in text
    assert "native    runs: the first here that can run" in text
    assert "not used: native comes first" in text


def test_info_marks_the_instruction_set_in_use(capsys):
    assert main(["info"]) == 0
    assert f"{native.module.isa()} (in use)" in capsys.readouterr().out
    assert "base (in use)" in run("info", FASTCKA_ISA="base").stdout


def test_info_says_who_named_the_backend(monkeypatch, capsys):
    monkeypatch.setenv("FASTCKA_BACKEND", "torch")
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert "torch     runs: named by FASTCKA_BACKEND" in text
    assert "native    not used: torch comes first" in text


def test_info_says_why_there_are_no_native_kernels(monkeypatch, capsys):
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "missing", "No module named 'fastcka._native'")
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert "native kernels    not installed: No module named 'fastcka._native'" in text
    assert "torch     runs: the first here that can run" in text
    assert "native    not used: the native kernels are not installed" in text


def test_a_wrong_setting_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setenv("FASTCKA_BACKEND", "fastest")
    assert main(["info"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("fastcka: FASTCKA_BACKEND must be one of")
    assert told.count("\n") == 1
    done = run("info", FASTCKA_ISA="fastest")  # it is read once in a process
    assert done.returncode == 1
    assert done.stderr.startswith("fastcka: FASTCKA_ISA must be one of")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_stops_reading_is_no_error():
    command = f"{sys.executable} -P -m fastcka list models | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_an_unknown_command_names_the_known(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["measure"])
    assert "info" in capsys.readouterr().err
