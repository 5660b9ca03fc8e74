import subprocess
import sys

import pytest
import torch

from fastcka.kernels import dispatch, gram, native, torch_gram

CPU = torch.device("cpu")


def gram_by(backend=None):
    return dispatch.choose("gram", CPU, torch.float32, 64, backend)


def test_the_argument_wins_over_the_block_over_the_environment(monkeypatch):
    assert gram_by() is native.gram
    monkeypatch.setenv("FASTCKA_BACKEND", "torch")
    assert gram_by() is torch_gram.gram
    with dispatch.using("native"):
        assert gram_by() is native.gram
        assert gram_by("torch") is torch_gram.gram
    assert gram_by() is torch_gram.gram


def test_a_block_ends_with_an_exception():
    with pytest.raises(KeyError), dispatch.using("torch"):
        raise KeyError
    assert gram_by() is native.gram


def test_every_operation_and_device_has_a_backend_that_runs():
    for operation in dispatch.OPERATIONS:
        for device in ("cpu", "cuda", "mps"):
            rows = dispatch.explain(operation, torch.device(device))
            assert [runs for _, runs, _ in rows].count(True) == 1
            assert all(reason for _, _, reason in rows)


def test_a_backend_that_is_not_installed_is_an_error_by_name_and_a_warning_otherwise(monkeypatch):
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "missing", "no compiler")
    monkeypatch.setattr(dispatch, "_told", False)
    x = torch.randn(5, 3)
    with pytest.raises(RuntimeError, match=r"are not installed \(no compiler\)"):
        gram(x, backend="native")
    with pytest.warns(RuntimeWarning, match="runs on torch alone"):
        gram(x)
    gram(x)  # once is enough


def test_a_device_without_native_kernels_is_an_error_by_name():
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match=r"there is no GPU|was built without CUDA"):
            dispatch.choose("gram", torch.device("cuda"), torch.float16, 64, "native")
    with pytest.raises(RuntimeError, match="no native kernels for mps"):
        dispatch.choose("gram", torch.device("mps"), torch.float16, 64, "native")


@pytest.mark.slow
@pytest.mark.parametrize("isa", native.module.build_info()["isas"] if native.module else [])
def test_every_instruction_set_of_this_processor_gives_the_definition(isa):
    if not native.module.build_info()["isas"][isa]:
        pytest.skip(f"this processor has no {isa}")
    if isa == native.module.isa():
        pytest.skip(f"all tests run by {isa}")
    code = (
        "import torch, pytest, sys\n"
        "from fastcka.kernels import native\n"
        f"assert native.module.isa() == {isa!r}\n"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-k', 'native',"
        f" *{[str(path) for path in KERNEL_TESTS]!r}]))"
    )
    run_with_isa(isa, code)


KERNEL_TESTS = [
    __file__.replace("test_dispatch", stem) for stem in ("test_gram", "test_finish", "test_hsic")
]


def run_with_isa(isa, code):
    import os

    environment = os.environ | {"FASTCKA_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


def test_an_unknown_instruction_set_is_an_error():
    code = (
        "import torch, pytest\n"
        "from fastcka.kernels import gram\n"
        "with pytest.raises(RuntimeError, match='FASTCKA_ISA must be one of'):\n"
        "    gram(torch.randn(5, 3), backend='native')"
    )
    run_with_isa("AVX2", code)
