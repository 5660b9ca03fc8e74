"""From names of models and a folder of images to what comparing them will take: `fastcka plan`."""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from fastcka import process_memory
from fastcka.compare_command import FIGURES, SUMMARY, asked, loaded, measured, write
from fastcka.launch import processes
from fastcka.planning import Plan, rehearsed
from fastcka.result import CKAResult, CKAResults


def run(options: argparse.Namespace) -> None:
    """`fastcka plan`, with its options as parsed."""
    starting = time.process_time()  # nobody else knows when the process began
    options.silent = options.quiet = True
    options.save_every, options.errors, options.title, options.overwrite = 300, False, None, False
    options.one_by_one = False
    labels, layers = asked(options)
    with processes(options.threads) as share, TemporaryDirectory() as folder:
        if share.ranks > 1:
            raise ValueError("a plan is of one process: start it without torchrun")
        place = Path(folder)
        began = time.perf_counter()
        everyone, data = loaded(options, labels, layers, place, share)
        loading = time.perf_counter() - began
        plan, result = rehearsed(lambda: measured(options, everyone, layers, data, place, share))
        plan = _with_files(plan, result, options, place)
    seconds = {"starting": starting, "loading": loading} | plan.seconds
    plan = replace(plan, seconds=seconds)
    print(json.dumps(plan.to_dict(), indent=1) if options.json else plan)


def _with_files(
    plan: Plan, result: CKAResult | CKAResults, options: argparse.Namespace, place: Path
) -> Plan:
    """With what is drawn of a result of as many layers."""
    process_memory.reset_peak()
    began = time.perf_counter()
    write(options, place, result)
    drawing = time.perf_counter() - began
    size = sum((place / name).stat().st_size for name in (*FIGURES, SUMMARY))
    more = max(0, process_memory.peak() - sum(plan.memory.values()))
    return replace(
        plan,
        seconds=plan.seconds | {"drawing": drawing},
        memory=plan.memory | {"drawing": more},
        disk=plan.disk | {"figures and summary": size},
    )
