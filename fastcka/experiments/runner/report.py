"""The page of a study, from the experiments and what became of them."""

import inspect
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import ModuleType

from fastcka.array_file import replacing
from fastcka.experiments.runner.claims import Verdict
from fastcka.experiments.runner.study import DONE, FAILED, Outcome
from fastcka.experiments.runner.subjects import Variant
from fastcka.report.figures import in_words, shown
from fastcka.report.page import Figure, Section, page

PAPER = ("Raghu et al. 2021", "https://arxiv.org/abs/2108.08810")
TITLE = "Do these networks see alike?"
LEAD = (
    "How vision transformers, CNNs and other networks represent the same images, layer by layer: "
    "the questions of a study of transformers and CNNs, asked of the networks below."
)
NOT_REACHED = Outcome(FAILED, why="it was not reached")


def write_report(
    path: str | os.PathLike,
    experiments: Mapping[str, ModuleType],
    outcomes: Mapping[str, Outcome],
    about: Mapping,
    *,
    figures: Mapping[str, Mapping] | None = None,
    pdf: Callable[[str, str], str] | None = None,
    earlier: Collection[str] = (),
    command: str = "",
    title: str = TITLE,
) -> Path:
    """Write the page of a study.

    Args:
        path: of the file.
        experiments: modules by name, in order.
        outcomes: by name; those that are missing were not reached.
        about: of the study, as `Study.about`.
        figures: by the name of the experiment, then their own; those that are missing are drawn.
        pdf: from the name of an experiment and of a figure to the path of the figure for print,
            relative to the page.
        earlier: names of experiments that another command made.
        command: that runs the study; "" is the one that `about` holds.

    Returns:
        The path.
    """
    path = Path(path)
    text = page(
        [
            section(name, module, outcomes.get(name, NOT_REACHED), (figures or {}).get(name), pdf)
            for name, module in experiments.items()
        ],
        title=title,
        lead=LEAD,
        paper=PAPER,
        networks=_networks(about),
        facts=_facts(about) | _made_earlier(experiments, earlier),
        command=command or about.get("command", ""),
        folder=path.parent,
    )
    with replacing(path) as file:
        file.write(text.encode())
    return path


def section(
    name: str,
    module: ModuleType,
    outcome: Outcome,
    figures: Mapping | None = None,
    pdf: Callable[[str, str], str] | None = None,
) -> Section:
    """What the page says of an experiment."""
    result = outcome.result if outcome.status == DONE else None
    if result is not None and figures is None:
        figures = module.plot(result)
    if result is not None:
        verdicts = result.verdicts
    else:
        why = f"{outcome.status}: {outcome.why}"
        verdicts = [Verdict(claim, "", None, why=why) for claim in module.CLAIMS]
    question, source, notes = asked(inspect.getdoc(module) or module.TITLE)
    return Section(
        numbers=module.NUMBERS,
        title=module.TITLE,
        question=question,
        source=source,
        finding=module.FINDING,
        notes=notes,
        status=outcome.status,
        why=outcome.why,
        claims=[verdict.as_row() for verdict in verdicts],
        figures=[
            Figure(
                one,
                in_words(figure),
                shown(figure, result.arrays.get(f"stderr/{one}")),
                pdf(name, one) if pdf else None,
            )
            for one, figure in (figures or {}).items()
        ]
        if result is not None
        else (),
        command=f"fastcka study --experiments {' '.join(module.NUMBERS)}",
        config=result.config if result is not None else {},
        about=result.about if result is not None else {},
    )


def asked(words: str) -> tuple[str, str, list[str]]:
    """The question that the description of an experiment begins with, where it is from, the rest.

    >>> asked("How alike? E1: Raghu et al. 2021, figure 1.\\n\\nVery much\\nso.")
    ('How alike?', 'Raghu et al. 2021, figure 1', ['Very much so.'])
    """
    first, *rest = [" ".join(paragraph.split()) for paragraph in words.split("\n\n")]
    question, mark, source = first.partition("?")
    return question + mark, source.partition(":")[2].strip().rstrip("."), rest


def _networks(about: Mapping) -> list[dict]:
    rows = []
    for name, facts in about.get("subjects", {}).items():
        variant = facts.get("variant")
        kind = Variant(**variant).in_words() if variant else ""
        size = facts.get("input_size")
        rows.append(
            {
                "Network": name,
                "Class": facts.get("class", ""),
                "Parameters": f"{facts['parameters']:,}" if "parameters" in facts else "",
                "Images of": f"{size[1]} × {size[2]} px" if size else "",
                "Weights": facts.get("weights", ""),
                "Differs": kind or "–",
            }
        )
    if not any(row["Differs"] != "–" for row in rows):
        rows = [{key: row[key] for key in row if key != "Differs"} for row in rows]
    return rows


def _made_earlier(experiments: Mapping[str, ModuleType], names: Collection[str]) -> dict[str, str]:
    """Which experiments are of earlier commands; each says which, where its numbers come from."""
    numbers = [n for name in experiments if name in names for n in experiments[name].NUMBERS]
    told = f"{', '.join(numbers)}, on the same networks and images with the same settings"
    return {"Made by earlier commands": told} if numbers else {}


def _facts(about: Mapping) -> dict[str, str]:
    images, sample = about.get("images", {}), about.get("sample", {})
    count, classes = images.get("files_used"), images.get("classes")
    facts = {
        "Images": images.get("root"),
        "How many": count and (f"{count:,}" + (f", of {classes} classes" if classes else "")),
        "Images in a CKA batch": sample.get("n"),
        "Measured": (about.get("date") or "").partition("T")[0],
        "On": about.get("processor"),
        "fastcka": about.get("versions", {}).get("fastcka"),
    }
    return {name: str(value) for name, value in facts.items() if value}
