"""Runs experiments: what several need is measured once, what is finished is not measured again."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType

import torch

from fastcka.experiments.runner import gradients, measured_file, probing, similarity
from fastcka.experiments.runner.measured_file import Measured
from fastcka.experiments.runner.needs import Field, Need, NotApplicable, Probe
from fastcka.experiments.runner.parts import Part, involved, pace, parts, seconds
from fastcka.experiments.runner.probing import Shots
from fastcka.experiments.runner.result import Result
from fastcka.experiments.runner.sample import Sample
from fastcka.experiments.runner.subjects import Subjects
from fastcka.provenance import provenance

MEASURED = "measured"  # the folder of what is finished, and of the pass under way
DONE, LEFT_OUT, FAILED = "done", "not applicable", "failed"
SCHEMA = 1  # of what is measured; what was measured under another is not read


@dataclass
class Outcome:
    """What became of an experiment.

    Attributes:
        status: "done", "not applicable" or "failed".
        result: of one that is done.
        why: of the others.
        error: of one that failed.
    """

    status: str
    result: Result | None = None
    why: str = ""
    error: Exception | None = None


@dataclass(frozen=True)
class Study:
    """Networks and images, and how experiments on them are run.

    Attributes:
        subjects: the networks.
        sample: the images.
        folder: where what is measured is kept, and found when the study is run again.
        shots: of the probes.
        device: where the networks run; None is where they are.
        autocast: a 16-bit type in which they run, or None.
        progress: bars where the output is a terminal.
        tell: is given a line for each part that begins.
    """

    subjects: Subjects
    sample: Sample
    folder: Path
    shots: Shots = field(default_factory=Shots)
    device: str | None = None
    autocast: torch.dtype | None = None
    progress: bool = True
    tell: Callable[[str], None] = lambda line: None

    def run(
        self,
        experiments: Mapping[str, ModuleType],
        done: Callable[[str, Outcome], None] = lambda name, outcome: None,
        configs: Mapping[str, object] | None = None,
    ) -> dict[str, Outcome]:
        """Run experiments, by name; an error of one is its outcome, and the others go on.

        Args:
            experiments: as `registry.experiments` gives them.
            done: called with each outcome as soon as it is there.
            configs: by name; the others have their defaults.
        """
        configs = {name: module.Config() for name, module in experiments.items()} | dict(
            configs or {}
        )
        outcomes: dict[str, Outcome] = {}
        planned: dict[str, list[Need]] = {}

        def end(name: str, outcome: Outcome) -> None:
            outcomes[name] = outcome
            planned.pop(name, None)
            done(name, outcome)

        for name, module in experiments.items():
            try:
                planned[name] = module.plan(configs[name], self.subjects)
            except Exception as error:
                end(name, _unfinished(error))
        measured: dict[Need, Measured] = {}
        todo = parts(need for needs in planned.values() for need in needs)
        clock = _Clock(self, todo)
        for part in todo:
            failures = self._measure(part, planned, measured, clock)
            for name in list(planned):
                failed = next((need for need in planned[name] if need in failures), None)
                if failed is not None:
                    end(name, _unfinished(failures[failed]))
                elif all(need in measured for need in planned[name]):
                    end(name, self._finish(experiments[name], configs[name], measured))
        return {name: outcomes[name] for name in experiments}

    def _measure(
        self,
        part: Part,
        planned: Mapping[str, Sequence[Need]],
        measured: dict[Need, Measured],
        clock: "_Clock",
    ) -> dict[Need, Exception]:
        """Measure what is not on disk; what could not be, with the reason."""
        missing = []
        for need in part.needs:
            try:
                measured[need] = measured_file.read(self._path(need), need)
            except FileNotFoundError:
                missing.append(need)
            except ValueError as error:
                self.tell(f"{error}; it is measured again")
                missing.append(need)
        wanted = [need for need in missing if any(need in needs for needs in planned.values())]
        if not wanted:
            return {}
        clock.begin(part)
        try:
            self._keep(self._passes(part.title, wanted), measured)
            clock.end(part)
            return {}
        except Exception as error:
            shares = {name: [n for n in wanted if n in needs] for name, needs in planned.items()}
            shares = {name: share for name, share in shares.items() if share}
            if len(shares) < 2:
                return dict.fromkeys(wanted, error)
            self.tell(f"{part.title}: {error}; each experiment is tried alone")
        failures = {}
        for name, share in shares.items():
            left = [need for need in share if need not in measured]
            try:
                self._keep(self._passes(f"{part.title}, for {name}", left), measured)
            except Exception as error:
                failures |= dict.fromkeys(left, error)
        return {need: error for need, error in failures.items() if need not in measured}

    def _passes(self, title: str, needs: Sequence[Need]) -> dict[Need, Measured]:
        if not needs:
            return {}
        where = {"device": self.device}
        if isinstance(needs[0], Field):
            return gradients.run(needs, self.subjects[needs[0].subject], self.sample, **where)
        where |= {"autocast": self.autocast}
        if isinstance(needs[0], Probe):
            subject = self.subjects[needs[0].subject]
            where |= {"progress": self.progress}
            return probing.run(needs, subject, self.sample, self.shots, **where)
        # Another choice of needs is another pass, which cannot go on from there.
        names = "".join(sorted(self._path(need).name for need in needs))
        place = self.folder / MEASURED
        state = place / f"{hashlib.sha256(names.encode()).hexdigest()[:24]}.state"
        place.mkdir(parents=True, exist_ok=True)
        where |= {"progress": self.progress and title, "state": state}
        found = similarity.run(needs, self.subjects, self.sample, **where)
        for left in place.glob("*.state"):
            left.unlink()
        return found

    def _keep(self, found: Mapping[Need, Measured], measured: dict[Need, Measured]) -> None:
        for need, value in found.items():
            measured_file.write(self._path(need), value)
            measured[need] = value

    def _finish(
        self, module: ModuleType, config: object, measured: Mapping[Need, Measured]
    ) -> Outcome:
        try:
            result = module.finish(config, self.subjects, measured)
        except Exception as error:
            return _unfinished(error)
        config = asdict(config)
        return Outcome(DONE, replace(result, config=config, about=self.about))

    @cached_property
    def about(self) -> dict:
        """Networks, images, versions and machine: for every result."""
        return {
            "subjects": {
                one.name: {
                    **one.network.provenance,
                    "variant": None if one.variant is None else asdict(one.variant),
                }
                for one in self.subjects.values()
            },
            "images": self._images.provenance(),
            "sample": self.sample.identity(),
            "shots": asdict(self.shots),
            "autocast": None if self.autocast is None else str(self.autocast),
            **provenance(self.device or "cpu"),
        }

    @cached_property
    def _images(self):
        return self.sample.batches(list(self.subjects.values())[:1], None)

    @cached_property
    def _facts(self) -> dict:
        """What all measurements depend on."""
        return {
            "schema": SCHEMA,
            "sample": self.sample.identity(),
            "images": self._images.provenance()["sha256"],
            "shots": asdict(self.shots),
            "autocast": str(self.autocast),
            "device": torch.device(self.device or "cpu").type,
        }

    def _path(self, need: Need) -> Path:
        weights = {name: self.subjects[name].network.provenance for name in involved([need])}
        return measured_file.path_of(self.folder / MEASURED, need, self._facts | weights)


class _Clock:
    """Says which part begins, and about how long all of them will take yet."""

    def __init__(self, study: Study, todo: Sequence[Part]):
        self._study, self._todo = study, list(todo)
        self._paces: dict[str, float] = {}
        self._expected: dict[Part, float] = {}
        self._took = self._foreseen = 0.0  # seconds of the parts that were measured
        self._started = 0.0

    def begin(self, part: Part) -> None:
        study, place = self._study, self._todo.index(part)
        left = self._todo[place:]
        for name in involved(need for one in left for need in one.needs):
            if name not in self._paces:
                self._paces |= pace(study.subjects, [name], study.device)
        images = study._images
        counts = (len(images) * images.batch_size, max(1, len(images.classes)))
        for one in left:
            self._expected[one] = seconds(one, self._paces, study.sample, study.shots, *counts)
        ratio = self._took / self._foreseen if self._foreseen else 1.0
        expected = sum(self._expected[one] for one in left) * ratio
        study.tell(
            f"part {place + 1} of {len(self._todo)}, {part.title}; about {_in_words(expected)} left"
        )
        self._started = time.perf_counter()

    def end(self, part: Part) -> None:
        self._took += time.perf_counter() - self._started
        self._foreseen += self._expected[part]


def _in_words(expected: float) -> str:
    if expected < 90:
        return f"{max(1, round(expected))} s"
    if expected < 5400:
        return f"{round(expected / 60)} min"
    return f"{expected / 3600:.1f} h"


def _unfinished(error: Exception) -> Outcome:
    if isinstance(error, NotApplicable):
        return Outcome(LEFT_OUT, why=str(error))
    return Outcome(FAILED, why=f"{type(error).__name__}: {error}", error=error)
