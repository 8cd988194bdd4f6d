"""The data set under the path and with the calls that Ptychodus and older programs use."""

from __future__ import annotations

from pathlib import Path

from ptycho import params
from ptycho.data import raw
from ptycho.data.grouped import GroupedData, grouped_fields
from ptycho.data.optics import FileOptions
from ptycho.data.prepare import checked
from ptycho.errors import ConfigError
from ptycho.files.reader import pattern_size, read_data
from ptycho.geometry.grouping import Groups, make_groups

__all__ = ["RawData", "peek_pattern_size"]


class RawData(raw.RawData):
    """A data set, as :class:`ptycho.data.raw.RawData`, that reads files and groups; Ptychodus uses it."""

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        probe_key: str | None = None,
        pattern_axis: int | None = None,
        options: FileOptions | None = None,
    ) -> RawData:
        """Read a data set as in ``specs/data_contracts.md``, arguments as for
        :func:`ptycho.files.reader.read_data`; raise ``DataError`` where it breaks them."""
        found = cls.__new__(cls)
        found.__dict__.update(vars(read_data(path, options, probe_key, pattern_axis)))
        return found

    def generate_grouped_data(
        self,
        N: int,
        K: int = 4,
        nsamples: int = 1,
        dataset_path: str | Path | None = None,
        seed: int | None = None,
        sequential_sampling: bool = False,
        gridsize: int | None = None,
        enable_oversampling: bool = False,
        neighbor_pool_size: int | None = None,
    ) -> GroupedData:
        """Group the patterns with their neighbours, C = gridsize**2 to a group.

        ``N`` must be the side of the patterns [px]. Partners are drawn from the ``K`` nearest neighbours,
        raised to C, with a warning, when below; ``neighbor_pool_size``, >= C, replaces it. There are
        ``nsamples`` groups B; exactly 1 means one group per scan point, ``enable_oversampling`` allows more
        than scan points when gridsize > 1, and patterns that tell nothing (``ptycho.data.checks.frames``)
        take no part. ``sequential_sampling`` is ``sequential`` of
        :func:`ptycho.geometry.grouping.make_groups`. ``seed`` and ``gridsize`` are by default 'npseed', so
        that the same data give the same groups every time, and 'gridsize' of ``ptycho.params``.
        ``dataset_path`` is not used: nothing is cached on disk.

        The result has ``diffraction`` as stored, ``X_full`` float32 amplitude normalised by the input scale
        of :mod:`ptycho.data.scaling`, ``Y`` complex object patches or None: each (B, N, N, C), made when
        asked for. ``nn_indices`` (B, C), ``sample_indices`` (B,), ``objectGuess``. ``coords_nn``
        (B, 1, 2, C), ``coords_offsets`` (B, 1, 2, 1) group mean, ``coords_relative`` = -(coords - mean):
        (x, y) along axis 2 [object pixels]; ``coords_start_*`` likewise for the nominal positions.

        Raise ``ConfigError`` where N is not the pattern size or a grouping number is out of range;
        ``DataError`` where there are fewer than C patterns, or, on asking for ``Y``, a patch leaves
        objectGuess.
        """
        if self.N != N:
            raise ConfigError(
                f"{self.source}: N is not the pattern size (got {N}, expected {self.N}). Set N to {self.N}."
            )
        draft = checked(self)
        usable = draft.usable
        if 1 < nsamples <= self.n_patterns:
            nsamples = min(nsamples, len(usable))
        groups = make_groups(
            self.positions_yx_px[usable],
            gridsize=params.get("gridsize") if gridsize is None else gridsize,
            n_groups=None if nsamples == 1 else nsamples,
            neighbor_count=K,
            seed=params.get("npseed") if seed is None else seed,
            sequential=sequential_sampling,
            enable_oversampling=enable_oversampling,
            neighbor_pool_size=neighbor_pool_size,
        )
        groups = Groups(usable[groups.indices], groups.centres_yx_px, groups.offsets_yx_px)
        return GroupedData(grouped_fields(draft.raw, groups), self)


def peek_pattern_size(
    path: str | Path, probe_key: str | None = None, options: FileOptions | None = None
) -> int:
    """Return the side N of a pattern [px] from the headers of a data file, as
    :func:`ptycho.files.reader.pattern_size`; scripts call this."""
    return pattern_size(path, probe_key, options)
