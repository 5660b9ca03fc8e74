"""The whole study from names of models and a folder of images: `fastcka study`."""

import argparse
import csv
import io
import json
import os
import re
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from fastcka import array_file, models
from fastcka.command import (
    RESULTS,
    before_crop,
    check_used,
    in_option_words,
    makers,
    own_warnings,
    tell,
    tell_untrained,
)
from fastcka.data import write_images
from fastcka.experiments.registry import experiments
from fastcka.experiments.runner.claims import VERDICTS, Verdict
from fastcka.experiments.runner.earlier import earlier
from fastcka.experiments.runner.embedded import embedded
from fastcka.experiments.runner.probing import Shots
from fastcka.experiments.runner.report import write_report
from fastcka.experiments.runner.sample import Sample
from fastcka.experiments.runner.skip_cut import skip_cut
from fastcka.experiments.runner.study import DONE, FAILED, LEFT_OUT, Outcome, Study
from fastcka.experiments.runner.subjects import KINDS, SKIP_CUT, Subject, Subjects, Variant
from fastcka.launch import device
from fastcka.output_folder import writing
from fastcka.participant import autocast_dtype
from fastcka.report.page import by_claim
from fastcka.report.saving import save_new

FOLDER = RESULTS / "study"
LOCK, CLAIMS, SUMMARY, PAGE = ".lock", "claims.csv", "study.json", "report.html"
ERROR = "error.txt"
# Of the embedded networks, where nothing is said: as many as are measured within minutes.
GENERATED = 2048


def run(options: argparse.Namespace) -> int:
    """`fastcka study`, with its options as parsed; 1 where an experiment failed."""
    options.silent = False
    check_used(options)
    if options.n and options.batch_size % options.n:
        raise ValueError(
            f"--batch-size must be a multiple of --n {options.n}, but is {options.batch_size}"
        )
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("`fastcka study` runs in one process: start it without torchrun")
    asked = experiments(options.experiments)
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    folder = Path(options.output or FOLDER)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"cannot make the folder {folder}: {error.strerror}; give another --output"
        ) from error
    with writing(folder / LOCK, folder), own_warnings(options), _in_option_words(options):
        subjects = _subjects(options)
        study = Study(
            subjects,
            _sample(options, subjects, RESULTS if options.output is None else folder),
            folder,
            Shots(options.shots, options.shots),
            device=device() if options.device in (None, "cuda") else options.device,
            autocast=autocast_dtype((options.amp_dtype or "float16") if options.amp else None),
            progress=not options.quiet,
            tell=lambda line: None if options.quiet else tell(options, line),
        )
        study.check_images()
        outcomes: dict[str, Outcome] = {}
        figures: dict[str, dict] = {}

        def done(name: str, outcome: Outcome) -> None:
            outcome.why = in_option_words(options, outcome.why)
            outcomes[name] = outcome
            figures[name] = _keep(options, folder / name, asked[name], outcome)

        try:
            study.run(asked, done)
        except BaseException:
            _write(folder, asked, outcomes, figures, study)
            tell(options, f"what is finished is in {folder}; the same command goes on")
            raise
        _write(folder, asked, outcomes, figures, study)
    if not options.quiet:
        print(_summary(asked, outcomes))
        print(f"{folder / PAGE} shows all of it; {CLAIMS} and a folder an experiment are beside it")
    return int(any(outcome.status == FAILED for outcome in outcomes.values()))


@contextmanager
def _in_option_words(options: argparse.Namespace) -> Iterator[None]:
    """Whatever ends the study is said of the options, not of arguments in Python."""
    try:
        yield
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        error.args = (in_option_words(options, str(error)),)
        raise


def _subjects(options: argparse.Namespace) -> Subjects:
    """The networks named, or those of the package with their training arms."""
    if not options.models:
        for name in ("variant", "img_size"):
            if getattr(options, name):
                option = name.replace("_", "-")
                raise ValueError(f"--{option} is about the models of --models: name these")
        subjects, missing = embedded()
        if missing:
            tell(options, f"not trained yet, and left out: {', '.join(missing)}; "
                 "`fastcka train --all --output DIR` trains them")  # fmt: skip
        return subjects
    variants = [_variant(words, options.models) for words in options.variant]
    labels = models.labels(options.models)
    loaded = {label: make() for label, make in makers(options, options.models, labels).items()}
    tell_untrained(options, loaded)
    subjects, names = {}, {}  # names by what was given; of two that were given alike, the first
    for given, (label, network) in zip(options.models, loaded.items(), strict=True):
        name = f"{label} (untrained)" if network.untrained else label
        names.setdefault(given, name)
        subjects[name] = Subject(name, network)
    for given, variant in variants:
        variant = replace(variant, of=names[variant.of])
        if variant.kind == SKIP_CUT:
            one = skip_cut(subjects[variant.of], variant.value)
        else:
            one = replace(subjects[names[given]], variant=variant)
        subjects[one.name] = one
    return Subjects(subjects.values())


def _variant(words: list[str], known: list[str]) -> tuple[str, Variant]:
    """KIND MODEL OF [VALUE], or skip-cut OF BLOCK, which makes its model: by names as given."""
    kind, *given = words
    if kind not in KINDS:
        raise ValueError(f"--variant knows {', '.join(KINDS)}, but came with {kind!r}")
    makes = kind == SKIP_CUT
    takes = "OF BLOCK" if makes else f"MODEL OF{'' if KINDS[kind] is None else ' VALUE'}"
    if len(given) != len(takes.split()):
        raise ValueError(f"--variant {kind} takes {takes}, but came with {' '.join(given)!r}")
    model, of, *value = given[:1] + given if makes else given
    for name in (model, of):
        if name not in known:
            raise ValueError(f"--variant speaks of {name!r}, which --models does not name")
    try:
        return model, Variant(kind, of, _number(value[0]) if value else None)
    except ValueError as error:
        raise ValueError(f"--variant {' '.join(words)}: {error}") from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None
    return int(value) if value.is_integer() else value


def _sample(options: argparse.Namespace, subjects: Subjects, place: Path) -> Sample:
    """The images; without --data they are made within `place`."""
    root = options.data
    if root is None:
        count = GENERATED if options.generate is None else options.generate
        size = max(before_crop(one.network) for one in subjects.values())
        root = str(place / f"images-{count}-{size}px-seed{options.seed}")
        tell(options, f"no --data: {count} generated images, in {root}")
        write_images(root, count, size=size, seed=options.seed)
    return Sample(
        root,
        split=options.split,
        probe_root=options.probe_data,
        probe_split=options.probe_split,
        count=options.max_images,
        n=options.n or options.batch_size,
        fields=options.fields,
        batch_size=options.batch_size,
        seed=options.seed,
        workers=options.workers,
        on_broken=options.on_broken,
    )


def _keep(
    options: argparse.Namespace, folder: Path, experiment: ModuleType, outcome: Outcome
) -> dict[str, object]:
    """Write the result and the figures of an experiment, or why there are none; the figures."""
    title = f"{', '.join(experiment.NUMBERS)}, {experiment.TITLE}"
    figures = {}
    for left in folder.glob("result.*"):  # of an earlier study
        left.unlink()
    if outcome.status == DONE:
        try:
            outcome.result.save(folder)
            figures = experiment.plot(outcome.result)
            for name, figure in figures.items():
                save_new(figure, folder / f"{file_name(name)}.pdf")
        except Exception as error:  # a figure that fails does not end the study
            outcome.status, outcome.trace, figures = FAILED, traceback.format_exc(), {}
            outcome.why = f"its figures: {type(error).__name__}: {error}"
    written = {f"{file_name(name)}.pdf" for name in figures}
    for left in folder.glob("*.pdf"):  # of an earlier study
        if left.name not in written:
            left.unlink()
    if outcome.status == FAILED:
        folder.mkdir(exist_ok=True)
        (folder / ERROR).write_text(outcome.trace)
        tell(options, f"{title} failed: {outcome.why}; {folder / ERROR} has all of it")
    else:
        (folder / ERROR).unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()  # of one that is not applicable
    if outcome.status == LEFT_OUT:
        tell(options, f"{title}: not applicable, {outcome.why}")
    return figures


def file_name(name: str) -> str:
    """A figure's name, as a file can have it.

    >>> file_name("vit, cnn@w.pth")
    'vit_cnn@w.pth'
    """
    return re.sub(r"[^\w.@()-]+", "_", name)


def _rows(asked: Mapping[str, ModuleType], outcomes: Mapping[str, Outcome]) -> list[dict]:
    """Every claim of every experiment with its verdict; of those without a result, untested."""
    rows = []
    for name, experiment in asked.items():
        outcome = outcomes.get(name, Outcome(FAILED, why="it was not reached"))
        verdicts = outcome.result.verdicts if outcome.status == DONE else ()
        rows += [verdict.as_row() for verdict in verdicts]
        if outcome.status != DONE:
            why = f"{outcome.status}: {outcome.why}"
            rows += [Verdict(claim, "", None, why=why).as_row() for claim in experiment.CLAIMS]
    return rows


def _write(
    folder: Path,
    asked: Mapping[str, ModuleType],
    outcomes: Mapping[str, Outcome],
    figures: Mapping[str, dict],
    study: Study,
) -> None:
    """The page, the claims as a table, and all that became of the experiments, earlier ones too."""
    every = experiments()
    others = earlier(folder, set(every) - set(asked), study.about)
    shown = {name: module for name, module in every.items() if name in asked or name in others}
    outcomes = {**outcomes, **{name: Outcome(DONE, result) for name, result in others.items()}}
    write_report(
        folder / PAGE,
        shown,
        outcomes,
        study.about,
        figures=figures,
        pdf=lambda name, figure: f"{name}/{file_name(figure)}.pdf",
        earlier=others,
    )
    rows = _rows(shown, outcomes)
    with array_file.replacing(folder / CLAIMS) as file:
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        file.write(text.getvalue().encode())
    summary = {
        "experiments": {
            name: {"numbers": experiment.NUMBERS, "title": experiment.TITLE}
            | ({"status": outcomes[name].status, "why": outcomes[name].why} if name in outcomes
               else {"status": "not reached", "why": ""})
            for name, experiment in shown.items()
        },
        "claims": rows,
        "about": study.about,
    }  # fmt: skip
    text = json.dumps(array_file.plain(summary, "summary"), indent=1, ensure_ascii=False)
    with array_file.replacing(folder / SUMMARY) as file:
        file.write((text + "\n").encode())


def _summary(asked: Mapping[str, ModuleType], outcomes: Mapping[str, Outcome]) -> str:
    """Each claim, and below it a line for the networks that it is about."""
    lines, rows = [], _rows(asked, outcomes)
    for claim, about in by_claim(rows):
        lines.append(f"{about[0]['experiment']:4}{claim}")
        for row in about:
            error = "" if row["stderr"] is None else f" ± {row['stderr']:.2g}"
            told = row["why"]
            if row["measured"] is not None:
                told = (
                    f"{row['measured']:.3g}{error}, claimed {row['sense']} {row['threshold']:.3g}"
                )
            doubt = ", within error" if row["within_error"] else ""
            of = f"{row['of']}: " if row["of"] else ""
            lines.append(f"      {row['verdict']}{doubt}: {of}{told}")
    count = Counter(row["verdict"] for row in rows)
    counted = ", ".join(f"{count[verdict]} {verdict}" for verdict in VERDICTS)
    near = sum(row["within_error"] for row in rows)
    return "\n".join([*lines, f"claims: {counted}; {near} of these within 2 standard errors"])
