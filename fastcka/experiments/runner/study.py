"""Runs experiments: what several need is measured once, what is finished is not measured again."""

import hashlib
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import torch

from fastcka.data import ImageBatches
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
        trace: of one that failed, where.
    """

    status: str
    result: Result | None = None
    why: str = ""
    trace: str = ""


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

    def check_images(self) -> None:
        """Find the images, before anything runs.

        Raises: as `fastcka.data.ImageBatches`.
        """
        _ = self._digest, self._probed

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
        measured = self._kept(need for needs in planned.values() for need in needs)

        def settle(failures: Mapping[Need, Outcome]) -> None:
            for name in list(planned):
                failed = next((need for need in planned[name] if need in failures), None)
                if failed is not None:
                    end(name, failures[failed])
                elif all(need in measured for need in planned[name]):
                    end(name, self._finish(experiments[name], configs[name], measured))

        settle({})
        todo = parts(n for needs in planned.values() for n in needs if n not in measured)
        clock = _Clock(self, todo)
        for part in todo:
            settle(self._measure(part, planned, measured, clock))
        return {name: outcomes[name] for name in experiments}

    def _kept(self, needs: Iterable[Need]) -> dict[Need, Measured]:
        """What is on disk already."""
        found = {}
        for need in dict.fromkeys(needs):
            try:
                found[need] = measured_file.read(self._path(need), need)
            except FileNotFoundError:
                continue
            except ValueError as error:
                self.tell(f"{error}; it is measured again")
        return found

    def _measure(
        self,
        part: Part,
        planned: Mapping[str, Sequence[Need]],
        measured: dict[Need, Measured],
        clock: "_Clock",
    ) -> dict[Need, Outcome]:
        """Measure a part; what could not be, with what becomes of the experiments that need it."""
        wanted = [need for need in part.needs if any(need in needs for needs in planned.values())]
        if not wanted:
            return {}
        clock.begin(part)
        failed = self._attempt(part.title, wanted, measured)
        if failed is None:
            clock.end(part)
            return {}
        shares = {name: [n for n in wanted if n in needs] for name, needs in planned.items()}
        shares = {name: share for name, share in shares.items() if share}
        if len(shares) < 2:
            return dict.fromkeys(wanted, failed)
        self.tell(f"{part.title}: {failed.why}; each experiment is tried alone")
        failures = {}
        for name, share in shares.items():
            left = [need for need in share if need not in measured]
            failed = self._attempt(f"{part.title}, for {name}", left, measured)
            failures |= dict.fromkeys(left if failed else (), failed)
        return {need: failed for need, failed in failures.items() if need not in measured}

    def _attempt(
        self, title: str, needs: Sequence[Need], measured: dict[Need, Measured]
    ) -> Outcome | None:
        """Measure and keep; None, or why it could not be."""
        try:
            found = self._passes(title, needs)
        except Exception as error:
            return _unfinished(error)
        for need, value in found.items():
            measured_file.write(self._path(need), value)
            measured[need] = value
        return None

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
        return self._similarity(title, sorted(needs, key=self._path), **where)

    def _similarity(self, title: str, needs: Sequence[Need], **where) -> dict[Need, Measured]:
        """In one pass, which goes on from where it was interrupted."""
        # Another choice of needs is another pass, which cannot go on from there.
        names = "".join(self._path(need).name for need in needs)
        place = self.folder / MEASURED
        state = place / f"{hashlib.sha256(names.encode()).hexdigest()[:24]}.state"
        place.mkdir(parents=True, exist_ok=True)
        where |= {"progress": self.progress and title, "state": state}
        try:
            found = similarity.run(needs, self.subjects, self.sample, **where)
        except ValueError as error:
            if str(state) not in str(error):
                raise
            self.tell(f"{error}; the pass begins anew")
            state.unlink()
            found = similarity.run(needs, self.subjects, self.sample, **where)
        state.unlink(missing_ok=True)
        return found

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
            "probed": self._probed,
            "autocast": None if self.autocast is None else str(self.autocast),
            **provenance(self.device or "cpu"),
        }

    @cached_property
    def _images(self) -> ImageBatches:
        return self.sample.batches(list(self.subjects.values())[:1], None)

    @cached_property
    def _probed(self) -> str | None:
        """A digest of the images that probes are fitted to, where they are others."""
        if self.sample.probe_root is None:
            return None
        first = list(self.subjects.values())[:1]
        return self.sample.probes(first, None).provenance()["sha256"]

    @cached_property
    def _digest(self) -> str:
        return self._images.provenance()["sha256"]

    def _path(self, need: Need) -> Path:
        """The file of a measurement, by all that it depends on."""
        if need not in self._paths:
            facts = {
                "schema": SCHEMA,
                "fastcka": version("fastcka"),
                "images": self._digest,
                "sample": self.sample.identity(type(need).__name__),
                "autocast": str(self.autocast),
                "networks": {name: self._identity(name) for name in involved([need])},
            }
            if isinstance(need, Probe):
                facts |= {"shots": asdict(self.shots), "probed": self._probed}
            self._paths[need] = measured_file.path_of(self.folder / MEASURED, need, facts)
        return self._paths[need]

    @cached_property
    def _paths(self) -> dict[Need, Path]:
        return {}

    def _identity(self, name: str) -> dict:
        network = self.subjects[name].network
        known = dict(network.provenance)
        if known.get("sha256") is None:  # drawn by the initialisation of these
            known |= {"torch": version("torch"), "timm": version("timm")}
        device = self.device or next(network.module.parameters()).device
        preprocessing = {key: str(value) for key, value in network.data_config.items()}
        return known | {"preprocessing": preprocessing, "device": torch.device(device).type}


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
        title = f"part {place + 1} of {len(self._todo)}, {part.title}"
        self._started = time.perf_counter()
        try:
            study.tell(f"{title}; about {_in_words(self._left(self._todo[place:]))} left")
        except Exception:  # a network that cannot run is told where it is measured
            study.tell(title)
        self._started = time.perf_counter()

    def _left(self, left: Sequence[Part]) -> float:
        study = self._study
        for name in involved(need for one in left for need in one.needs):
            if name not in self._paces:
                self._paces |= pace(study.subjects, [name], study.device)
        images = study._images
        counts = (len(images) * images.batch_size, max(1, len(images.classes)))
        for one in left:
            self._expected[one] = seconds(one, self._paces, study.sample, study.shots, *counts)
        ratio = self._took / self._foreseen if self._foreseen else 1.0
        return sum(self._expected[one] for one in left) * ratio

    def end(self, part: Part) -> None:
        self._took += time.perf_counter() - self._started
        self._foreseen += self._expected.get(part, 0.0)


def _in_words(expected: float) -> str:
    if expected < 90:
        return f"{max(1, round(expected))} s"
    if expected < 5400:
        return f"{round(expected / 60)} min"
    return f"{expected / 3600:.1f} h"


def _unfinished(error: Exception) -> Outcome:
    if isinstance(error, NotApplicable):
        return Outcome(LEFT_OUT, why=str(error))
    # As text: an error holds on to all that was on the device when it came.
    trace = "".join(traceback.format_exception(error))
    return Outcome(FAILED, why=f"{type(error).__name__}: {error}", trace=trace)
