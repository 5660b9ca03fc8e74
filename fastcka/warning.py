"""The one category of warning, so that users can turn it into an error or silence it."""


class CKAWarning(UserWarning):
    """A result holds, but not for all that was given: layers without a value, batches left out."""
