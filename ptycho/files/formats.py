"""What a kind of data file is to the reader: one object that recognises it, reads it and tells its size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from ptycho.data.optics import FileOptions
from ptycho.data.raw import RawData
from ptycho.errors import ConfigError
from ptycho.files.hdf5 import File

Headers: TypeAlias = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""Shape and dtype of every array of an NPZ file."""
Source: TypeAlias = "File | Headers"
"""A data file as the formats see it: HDF5 open, NPZ by its headers, a ``dict``."""


class Request(NamedTuple):
    """Which file is read, and what the user says about it."""

    path: Path
    options: FileOptions
    probe_key: str | None = None
    pattern_axis: int | None = None

    def refuse_pattern_axis(self) -> None:
        """Raise ``ConfigError`` where a file whose first axis counts the patterns is given another one."""
        if self.pattern_axis not in (None, 0):
            raise ConfigError(
                f"{self.path}: --pattern-axis does not apply to HDF5 (got {self.pattern_axis}, expected 0). "
                "Leave it out."
            )


class Format(Protocol):
    """A kind of data file; one object of it stands in :data:`ptycho.files.reader.FORMATS`."""

    name: str  # as the message on an unknown HDF5 layout has it

    def recognises(self, source: Source) -> bool:
        """Tell by its content whether a file is of this kind, and of none earlier in the table."""

    def read(self, source: Source, request: Request) -> Callable[[], RawData]:
        """Read what is needed, and return what makes the checked data set of it when the file is closed.

        ``DataError`` names what is missing or has the wrong shape, ``ConfigError`` a setting that does not
        apply to this kind.
        """

    def pattern_size(self, source: Source, request: Request) -> int:
        """Return the side N of a pattern [px], from headers alone."""
