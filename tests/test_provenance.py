"""Where a number comes from."""

import json
import subprocess

import torch

import fastcka
from fastcka import machine, provenance


def test_versions_and_machine_are_named():
    facts = provenance.provenance()
    assert facts["versions"]["fastcka"] == fastcka.__version__
    assert facts["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert facts["processor"]
    json.dumps(facts)


def test_what_is_not_installed_has_no_version():
    assert machine.installed("no-such-package-at-all") is None


def test_the_commit_is_that_of_the_checkout(monkeypatch, tmp_path):
    def git(*arguments):
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments],
            cwd=tmp_path, check=True, capture_output=True,
        )  # fmt: skip

    package = tmp_path / "fastcka"
    package.mkdir()
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    built = provenance.native.module.build_info()["commit"]
    assert provenance.commit() == (built or None)  # no checkout: what the build has seen
    git("init", "-q")
    assert provenance.commit() is None
    (package / "a.py").write_text("1")
    git("add", "-A")
    git("commit", "-qm", "first")
    clean = provenance.commit()
    assert len(clean) == 40
    (package / "a.py").write_text("2")
    assert provenance.commit() == f"{clean}-dirty"
