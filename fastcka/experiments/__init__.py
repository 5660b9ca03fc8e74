"""WHY: the questions of the study, a file each.

An experiment is a module with `NUMBERS`, `TITLE`, `FINDING`, `CLAIMS`, a frozen `Config`, and

- `plan(config, subjects)`: the needs, which are measured for all experiments together; raises
  `NotApplicable` where the networks cannot answer the question;
- `finish(config, subjects, measured)`: a `Result`, arrays and verdicts on the claims;
- `plot(result)`: figures by name, of a result that was made or loaded.

The smallest is `within_model`. `registry` lists them all, `runner` runs them, and `shared` is what
several have in common.
"""
