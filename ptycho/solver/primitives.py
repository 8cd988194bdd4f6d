"""What a backend supplies to the solver: sums over one chunk of patterns, and steps on its own arrays.

Arrays are those of the backend (``Any`` here): they add, subtract, and multiply with Python numbers. Shapes:
object and illumination (H, W), probe (P, N, N), per pattern (J, ...). A chunk is some patterns with their
places on the canvas; what it holds is between the backend and its :class:`Patterns`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

Array = Any
Chunk = Any
PerPattern = Any
"""What a chunk tells of each of its patterns; it stays with whoever holds the patterns."""
PER_PATTERN = ("normal", "right", "fit", "variation_normal", "variation_right")
"""Names of what may be in it."""
Sums = dict[str, Array]
"""Sums over patterns by name, see :meth:`Primitives.chunk_sums`; they add up over chunks and processes."""
Reduce = Callable[[Sums], Sums]
"""Adds the sums of all processes that hold patterns of the scan."""


class Wanted(NamedTuple):
    """What the solver wants to know of a chunk; plain values, so that a compiled function can depend on
    them."""

    likelihood: str  # amplitude or poisson: what the gradients of object and probe descend on
    misfit: bool = False  # the misfit is watched
    probe: bool = False  # what moves in this iteration
    positions: bool = False
    frames: bool = False
    background: bool = False
    variation: bool = False  # with the probe alone
    strains: bool = False  # the positions move together
    illumination: bool = False  # the illumination of these patterns is not known yet


class Patterns(Protocol):
    """The patterns of a scan as chunks, and what is known about each.

    Plain updates with the whole scan only iterate: a list of chunks will do. More than one subset needs
    ``part``, a refinement all the rest.
    """

    subsets: int  # most of an iteration, from ``ptycho.geometry.batches.most_subsets``
    shifts: Array  # real (J, 2), offset of each position from the corner of its patch [px]
    frame_gain: Array  # real (J,), factor on the amplitude of every pattern
    wave_pixels: int  # pixels of the exit waves of all patterns and modes

    @property
    def probe(self) -> Array:
        """Probe modes, complex (P, N, N) [sqrt(photons)]."""

    def __iter__(self) -> Iterator[Chunk]:
        """Yield all patterns."""

    def part(self, index: int, count: int) -> Iterable[Chunk]:
        """Return the chunks of subset ``index`` of ``count``; each subset covers the canvas."""

    def change(
        self,
        *,
        probe: Array = None,
        shifts: Array = None,
        frame_gain: Array = None,
        background: Array = None,
    ) -> None:
        """Take over what was refined; the next chunks have it."""

    def next_background(self, sums: Sums) -> Array:
        """Return the background (N, N) [photons / pixel] that ``excess`` and ``weight`` of an iteration ask
        for (eq. 25)."""

    def start_variation(self, count: int, search_steps: int) -> None:
        """Let the probe change from pattern to pattern by so many modes, dark at first (eq. 26); some more
        are tried in the first steps."""

    def vary(self, sums: Sums, found: Sequence[PerPattern]) -> Sums:
        """Move variable modes and coefficients by what an iteration found; return the sums over patterns that
        :meth:`settle` needs."""

    def settle(
        self, sums: Sums, count: Array, probe: Array, before: Array, start: Array
    ) -> tuple[Array, Array]:
        """Bring the variation into its gauge; return the probe (P, N, N), and the one before, with what
        the gauge moves into them. The former has the power of ``start``; ``count`` patterns went into
        ``sums``."""

    def position_steps(
        self, found: Sequence[PerPattern], ridge: Array, limit_px: float, deformation: Any = None
    ) -> Array:
        """Return how far each position is to move, shape (J, 2) [px], 0 for patterns that ``found`` does not
        tell of (eq. 16), beside a ``deformation`` of all.

        ``found`` is from :meth:`Primitives.chunk_sums`, of some chunks. ``ridge`` is added to the diagonal of
        every normal matrix, and ``limit_px`` is the most that a position moves along an axis.
        """

    def deformation_sums(self, found: Sequence[PerPattern], *, affine: bool) -> Sums:
        """Return the sums over patterns that a deformation of the scan is found from (eq. 23); ``affine``:
        only of scale, rotation and shear. ``found`` is of all chunks, with their strains."""

    def deformation(self, sums: Sums) -> tuple[Any, Array]:
        """Return the deformation that sums ask for, and how far it moves every position (J, 2) [px]."""

    def deformed(self, obj: Array, deformation: Any, offset_yx_px: Array) -> Array:
        """Return an object (H, W) that moved along, less an offset (2,) of all [px]."""


class Primitives(Protocol):
    """The arithmetic of one backend. A step that is returned is still to be taken, by the loop."""

    def constant(self, array: Array) -> Array:
        """Return the same array, of which nothing is differentiated."""

    def chunk_sums(self, obj: Array, chunk: Chunk, wanted: Wanted) -> tuple[Sums, PerPattern]:
        """Return what one chunk adds to every sum that is ``wanted``, and what the positions
        and :meth:`frame_factors` need of each pattern.

        The sums are ``gradient`` (H, W): by the object, eq. 9 or 17 [photons]. With ``misfit``: ``error`` and
        ``energy``, numerator and denominator of eq. 7a [photons]. With ``probe``: ``probe_gradient``
        (P, N, N), eq. 13, and ``object_power`` (N, N), the sum of ``|O_j|**2``. With ``variation``:
        ``variation_gradient`` and ``variation_power`` (K, N, N), eq. 26, and of each pattern the equations of
        its coefficients. With ``positions``:
        ``curvature``, the sum of the mean diagonal of the normal matrices of eq. 16; they tell of
        ``strains`` too where these are wanted. With ``background``: ``excess`` and ``weight`` (N, N),
        eq. 25. With ``positions``, ``frames`` or ``variation``: ``patterns``, their number. With
        ``illumination``: ``illumination`` (H, W), eq. 8
        [photons / pixel].
        """

    def mapped(
        self, obj: Array, chunk: Chunk, waves: Array | None, *, illumination: bool
    ) -> tuple[Sums, Array]:
        """Return what one chunk adds to the ``gradient`` (H, W) of a step of the difference map (eq. 27), and
        to the ``illumination`` where it is asked for, and its next exit waves (J, P, N, N); ``waves`` are
        those of the last step, None before the first."""

    def count_score(
        self, obj: Array, chunk: Chunk, *, change: Array | None = None, noise: Array | None = None
    ) -> Array:
        """Return how the Poisson likelihood of one chunk answers counts that are off, (H, W) [photons], by a
        ``change`` (H, W) of the object and by ``noise`` (J, N, N), standard normal (eq. 30)."""

    def preconditioned(self, gradient: Array, illumination: Array) -> Array:
        """Return the gradient over the damped illumination, minus the step of eq. 10, shape (H, W)."""

    def phase_gain(
        self, obj: Array, chunk: Chunk, count: int, least: float, stiffness_px2: float = 0.0
    ) -> Array:
        """Return the gain on the slow phase of a step with one of ``count`` subsets, real (H, W) (eq. 24),
        for the probe of the first pattern of a chunk: it must not depend on how a scan is cut. A canvas that
        needs less than ``least`` gets none, and a step that takes the share ``stiffness_px2`` k^2 of a wave
        goes no further than to take all of it."""

    def advanced(
        self, leading: Array, step: Array, illumination: Array, gain: Array, slow: Any
    ) -> tuple[Array, Any]:
        """Return the object (H, W) after a step, its slow phase further by the gain (eq. 24), and what the
        next call is to be given as ``slow``, None at first: it notices a gain that is too large."""

    def uphill(self, step: Array, new: Array, old: Array) -> Array:
        """Return 1 where the way from ``old`` to ``new`` runs against the step, since the momentum has
        overshot, 0 where it does not, and in between where both are nearly at right angles; in a compiled
        function a number of the dtype of the object."""

    def total_variation_gradient(self, obj: Array) -> Array:
        """Return the gradient of the total variation, smoothed below ``TV_SMOOTHING``, shape (H, W).

        Its modulus is below about 4; a step along minus it flattens noise and keeps edges.
        """

    def probe_step(self, gradient: Array, object_power: Array) -> Array:
        """Return the probe gradient over the strongest object power (eq. 14), shape (P, N, N)."""

    def same_power(self, probe: Array, reference: Array) -> Array:
        """Return the probe times the factor that gives it the total power of a reference."""

    def frame_factors(
        self, found: Sequence[PerPattern], gain: Array, previous: Array, momentum: float
    ) -> Array:
        """Return the new factor of every frame, shape (J,), its mean not yet 1, in the order of the scan.

        Eq. 21: the factor so far, times what fits the measured pixels best (1 without any light), times the
        last change, ``gain / previous``, to the power of ``momentum``.
        """

    def pattern_sum(self, values: Array) -> Array:
        """Return the sum over patterns, the first axis."""
