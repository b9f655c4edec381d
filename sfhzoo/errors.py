"""The exceptions of sfhzoo.

    SfhzooError
    ├── ArtifactError        a prior, grid or posterior network is unusable   (exit code 4)
    │   ├── UnknownName      no such name in the zoo
    │   ├── NotCached        known, but not on this disk
    │   ├── HashMismatch     a file's sha256 is not the recorded one
    │   └── Incompatible     readable, but not by this version or not with its partner
    ├── DataError            the user's spectrum or table cannot be used      (exit code 3)
    ├── GridError            a grid cannot be built or evaluated              (exit code 4)
    ├── UsageError           an option's value cannot be used here            (exit code 2)
    └── SamplingError        the sampler did not produce a posterior          (exit code 5)

Every message says what was expected, what came, and what to do.
"""

from __future__ import annotations


class SfhzooError(Exception):
    """Base of all errors that a user can cause or mend; `exit_code` is the CLI's."""

    exit_code = 1


class UsageError(SfhzooError):
    """An option has a value that is wrong, or wrong on this machine."""

    exit_code = 2


class ArtifactError(SfhzooError):
    """An artifact is missing, corrupt or unusable."""

    exit_code = 4


class UnknownName(ArtifactError):
    """The zoo has no artifact of this name."""


class NotCached(ArtifactError):
    """The artifact exists in the catalogue but not on this disk."""


class HashMismatch(ArtifactError):
    """A file's content is not what its manifest promises."""


class Incompatible(ArtifactError):
    """The artifact was written by a newer format, or does not fit its partner."""


class DataError(SfhzooError):
    """The input spectrum cannot be used."""

    exit_code = 3


class GridError(SfhzooError):
    """A grid of stellar populations cannot be built or evaluated."""

    exit_code = 4


class SamplingError(SfhzooError):
    """The sampler failed; nothing was written."""

    exit_code = 5
