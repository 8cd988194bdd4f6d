"""Names that clients import from here; nothing of the toolkit does."""

from __future__ import annotations

from pathlib import Path

from ptycho.config.choices import BEST_CHECKPOINT, CHECKPOINT_FOLDER, LAST_CHECKPOINT

PREFERRED = (BEST_CHECKPOINT["pytorch"], LAST_CHECKPOINT["pytorch"])


def find_best_checkpoint(run_dir: str | Path) -> Path | None:
    """Find the checkpoint to go on with; Ptychodus 1.7 calls it after the training run.

    Parameters
    ----------
    run_dir : path-like
        ``output_dir`` of :class:`ptycho_torch.api.base_api.PtychoDataLoader`, or its ``checkpoints`` folder.

    Returns
    -------
    Path or None
        ``best-checkpoint.ckpt``, else ``last.ckpt``, else the newest ``.ckpt`` anywhere below, if any.
    """
    folder = Path(run_dir)
    for name in PREFERRED:
        for path in (folder / CHECKPOINT_FOLDER / name, folder / name):
            if path.is_file():
                return path
    # A dot marks the unfinished file of a run that was killed.
    others = (path for path in folder.rglob("*.ckpt") if not path.name.startswith("."))
    return max(others, key=lambda path: path.stat().st_mtime, default=None)
