import sys

import pytest
import torch

from fastcka import process_memory

SIZE = 200_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="one peak, of all that ever was")
def test_the_peak_is_of_what_came_since_it_was_reset():
    process_memory.reset_peak()
    before = process_memory.resident()
    held = torch.ones(SIZE, dtype=torch.uint8)
    assert process_memory.resident() - before == pytest.approx(SIZE, rel=0.05)
    del held
    assert process_memory.resident() - before < 0.05 * SIZE
    assert process_memory.peak() - before == pytest.approx(SIZE, rel=0.05)
    process_memory.reset_peak()
    assert process_memory.peak() - before < 0.05 * SIZE


@pytest.mark.skipif(sys.platform == "win32", reason="the operating system does not tell the peak")
def test_elsewhere_the_peak_is_of_all_that_ever_was(monkeypatch, tmp_path):
    monkeypatch.setattr(process_memory, "PROC", tmp_path / "none")
    process_memory.reset_peak()
    assert 100e6 < process_memory.resident() == process_memory.peak()


def test_where_the_system_says_nothing_it_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(process_memory, "PROC", tmp_path / "none")
    monkeypatch.setitem(sys.modules, "resource", None)
    with pytest.raises(RuntimeError, match="the memory of a process cannot be measured here"):
        process_memory.peak()
