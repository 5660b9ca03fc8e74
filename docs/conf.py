"""`sphinx-build -W docs DIR` makes the site: these pages, the public functions, the experiments."""

from pathlib import Path

from fastcka.experiments import registry

project = "fastcka"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = project
autodoc_default_options = {"members": True, "show-inheritance": False}
exclude_patterns = []
# Pages of the repository that are not within docs are read on its site.
suppress_warnings = ["myst.xref_missing"]
PAGES = Path(__file__).parent / "experiments"


def write_pages(app) -> None:
    """A page an experiment, of the docstring that `fastcka list experiments` quotes too."""
    PAGES.mkdir(exist_ok=True)
    rows = []
    for name, module in registry.experiments().items():
        title = f"{', '.join(module.NUMBERS)}: {module.TITLE}"
        claims = "".join(
            f"- **{claim.experiment}** {claim.text} {claim.sense} {claim.threshold:.3g}\n"
            for claim in module.CLAIMS
        )
        (PAGES / f"{name}.md").write_text(
            f"# {title}\n\n{module.__doc__}\n**In the paper:** {module.FINDING}\n\n"
            f"## Claims\n\nEach with the limit from which on it holds.\n\n{claims}\n"
            f"## Options and figures\n\n"
            f"```{{eval-rst}}\n.. autoclass:: {module.__name__}.Config\n   :no-index:\n\n"
            f".. autofunction:: {module.__name__}.plot\n   :no-index:\n```\n"
        )
        rows.append(f"{title} <{name}>")
    (PAGES / "index.md").write_text(
        "# Experiments\n\n`fastcka study` runs all, `fastcka study --experiments E1 E3` some.\n\n"
        "```{toctree}\n" + "\n".join(rows) + "\n```\n"
    )


def setup(app) -> None:
    app.connect("builder-inited", write_pages)
