"""The house is as planned: what may import what, what is public, what the README shows."""

import ast
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastcka
from fastcka.cli import parser
from fastcka.experiments.registry import experiments

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastcka"

# A module imports only from rows above its own, or from its own package.
ORDER = [
    [
        *("options", "warning", "report", "array_file", "result_tables", "cache"),
        *("stages", "process_memory", "machine"),
    ],
    ["kernels", "capture", "data", "models"],
    ["permutation", "analysis"],
    ["conditioning", "jackknife", "provenance", "result", "trail", "interrupts", "checkpoint"],
    ["gram_stack", "named_sums", "influence", "observations"],
    ["batch", "gram_queue", "hsic_sums", "centred_rows", "measures"],
    ["chance_sums", "measure_sums", "influence_sums"],
    ["stored_features"],
    ["functional", "streaming", "logbook"],
    ["participant", "distributed"],
    ["course", "fingerprints"],
    ["account", "arguments", "keeping"],
    ["measurement", "alone", "rehearsal"],
    ["one_by_one"],
    ["comparison", "fingerprinting"],
    ["planning"],
    ["info", "summary", "influence_table", "launch", "output_folder", "training"],
    ["experiments"],
    ["command"],
    [
        "compare_command",
        "data_command",
        "fingerprint_command",
        "list_command",
        "train_command",
    ],
    ["plan_command", "study_command"],
    ["cli"],
    ["__init__", "__main__"],
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(dotted):
    """fastcka.kernels.rbf.median -> kernels; fastcka.conditioning -> conditioning."""
    return dotted.split(".")[1]


SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imports_of(path):
        if not name.startswith("fastcka"):
            continue
        target = room(name)
        if own == "maths":
            assert target == "maths"
        else:
            assert target != "maths", "production code must not lean on its own oracle"
            assert target == own or LEVEL[target] < LEVEL[own], f"{own} imports {target}"


def test_one_module_knows_the_native_one():
    knowing = [path.name for path in SOURCES if "fastcka._native" in path.read_text()]
    assert knowing == ["native.py"]


def test_every_module_has_its_place_in_the_order():
    found = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in SOURCES}
    assert found == set(LEVEL) | {"maths"}


def test_definitions_need_numpy_alone():
    for path in (PACKAGE / "maths").glob("*.py"):
        outside = {name.split(".")[0] for name in imports_of(path)} - {"fastcka"}
        assert outside <= {"numpy", "itertools", "math"}, f"{path.name} imports {outside}"


def test_public_names_are_these():
    assert fastcka.__all__ == [
        "CKAResult",
        "CKAResults",
        "CKAWarning",
        "Fingerprint",
        "MinibatchCKA",
        "Plan",
        "Tap",
        "cka",
        "compare",
        "compare_many",
        "data",
        "fingerprint",
        "hsic",
        "models",
        "plan",
    ]
    assert all(hasattr(fastcka, name) for name in fastcka.__all__)


def test_no_module_outside_the_definitions_bears_the_name_of_a_public_function():
    modules = {path.stem for path in SOURCES if "maths" not in path.parts}
    assert not modules & {"cka", "hsic", "compare", "compare_many", "fingerprint", "plan"}


def test_import_is_cheap():
    code = (
        "import sys, fastcka; heavy = {'timm', 'triton', 'matplotlib', 'scipy', 'pandas'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_versions_agree():
    from fastcka.kernels import native

    assert fastcka.__version__ == re.search(
        r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M
    ).group(1)
    if native.module is not None:
        assert native.module.build_info()["version"] == fastcka.__version__


MODULES = [m.name for m in pkgutil.walk_packages(fastcka.__path__, "fastcka.")
           if not m.name.endswith(("__main__", "_native"))]  # fmt: skip


@pytest.mark.parametrize("name", ["fastcka", *MODULES])
def test_examples_in_docstrings_run(name):
    import doctest

    failures, _ = doctest.testmod(importlib.import_module(name), verbose=False)
    assert failures == 0


PUBLIC = [
    fastcka.cka,
    fastcka.hsic,
    fastcka.compare,
    fastcka.compare_many,
    fastcka.fingerprint,
    fastcka.plan,
    fastcka.Fingerprint,
    fastcka.MinibatchCKA,
    fastcka.Tap,
    fastcka.CKAResult.ci,
]


@pytest.mark.parametrize("member", PUBLIC, ids=lambda m: m.__qualname__)
def test_public_docstrings_have_an_example(member):
    assert ">>>" in member.__doc__


README = (ROOT / "README.md").read_text()


PAGES = [ROOT / "README.md", ROOT / "docs" / "long_runs.md", ROOT / "docs" / "pictures.md"]


def blocks(language, page=PAGES[0]):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_a_page_runs_and_prints_what_it_says(capsys, tmp_path, monkeypatch, page):
    monkeypatch.chdir(tmp_path)
    torch.use_deterministic_algorithms(False)
    for code in blocks("python", page):
        expected = [line.split("# prints ")[1] for line in code.splitlines() if "# prints" in line]
        exec(compile(code, page.name, "exec"), {})
        printed = capsys.readouterr().out.splitlines()
        assert printed == expected


def test_commands_of_the_pages_are_commands():
    lines = "".join(block for page in PAGES for block in blocks("bash", page))
    lines = lines.replace("\\\n", " ").splitlines()
    commands = [line.split("fastcka ", 1)[1] for line in lines if re.search(r"\bfastcka ", line)]
    assert len(commands) >= 5
    for command in commands:
        parser().parse_args(shlex.split(command))


def test_commands_with_real_weights_name_networks_that_have_them():
    import timm

    page = ROOT / "docs" / "real_weights.md"
    lines = [block.replace("\\\n", " ") for block in blocks("bash", page)]
    lines += re.findall(r"`(fastcka [^`]*)`", page.read_text())
    with_weights = set(timm.list_models(pretrained=True))
    assert len(lines) > 12
    for line in lines:
        options = parser().parse_args(shlex.split(line)[1:])
        assert set(options.models) <= with_weights
        assert experiments(options.experiments)
        named = {name for _, *names in options.variant for name in names[:2]}
        assert {name for name in named if not name.isdigit()} <= with_weights  # or a block


# What commands of the README and of builds leave in the tree.
IGNORED = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}


def test_map_of_the_readme_is_the_tree():
    listing = next(block for block in blocks("text") if "csrc/" in block)
    named = re.findall(r"^( *)([\w.]+/?)", listing, re.M)
    parents, paths = {}, set()
    for indent, name in named:
        depth = len(indent) // 2
        parents[depth] = name
        paths.add("".join(parents[d] for d in range(depth + 1)).rstrip("/"))
    assert all((ROOT / path).exists() for path in paths), paths
    tracked = {
        path.relative_to(ROOT).as_posix()
        for folder in (ROOT, PACKAGE, ROOT / "csrc")
        for path in folder.iterdir()
        if (path.is_dir() and path.name[0] not in "._" and path.name not in IGNORED)
        or (folder == PACKAGE and path.suffix == ".py" and path.stem[0] != "_")
    }
    tracked = {path for path in tracked if not path.endswith("__pycache__")}
    assert tracked <= paths, f"the map lacks {sorted(tracked - paths)}"


@pytest.mark.parametrize("path", sorted((ROOT / "csrc").rglob("*.[ch]*")), ids=lambda p: p.name)
def test_only_the_binding_knows_python(path):
    text = path.read_text()
    assert path.name == "bindings.cpp" or "pybind11" not in text
    assert "torch/" not in text
    assert "ATen" not in text


def test_no_file_is_a_drawer():
    names = {path.stem for path in [*SOURCES, *(ROOT / "csrc").rglob("*")]}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


def test_every_row_of_the_table_of_faults_is_a_test():
    named = re.findall(r"`(test_\w+)` \|$", (ROOT / "docs" / "long_runs.md").read_text(), re.M)
    written = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    assert len(named) > 15
    assert [name for name in named if f"def {name}(" not in written] == []
