"""Activations are reduced in the hooks: memory holds Gram matrices, not activations."""

import json
import os
import subprocess
import sys

import pytest

# The bare forward passes come first: what the peak of the process rises by afterwards is ours.
PROGRAM = """
import json, resource, timm, torch, fastcka
from fastcka.capture import Capture

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
torch.manual_seed(0)
n = 32
a = timm.create_model("resnet18", zero_init_last=False).eval()
b = timm.create_model("vit_tiny_patch16_224", img_size=160, depth=4).eval()
x = torch.randn(n, 3, 160, 160)
with torch.no_grad():
    a(x), b(x)
before = peak()
result = fastcka.compare(a, b, [x, x + 1], layers_a="leaves")
above = peak() - before
sizes = []
with torch.no_grad():
    for model in (a, b):
        Capture(model, "leaves").run(
            lambda net: net(x), n, lambda name, y: sizes.append(y.numel() * y.itemsize)
        )
layers = len(result.layers_a) + len(result.layers_b)
assert layers == len(sizes)
print(json.dumps({"above": above, "stacks": layers * 4 * n * (n - 1), "sizes": sizes}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the operating system does not tell the peak")
def test_a_comparison_needs_its_gram_matrices_and_no_more_than_two_activations():
    # What glibc keeps after it was freed depends on what happened before, so it keeps nothing.
    keep_nothing = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM],
        env=os.environ | keep_nothing,
        capture_output=True,
        text=True,
        check=True,
    )
    facts = json.loads(done.stdout)
    assert facts["above"] <= facts["stacks"] + 2 * max(facts["sizes"])
    # Kept, they would need several times as much.
    assert sum(facts["sizes"]) > 3 * (facts["stacks"] + 2 * max(facts["sizes"]))
