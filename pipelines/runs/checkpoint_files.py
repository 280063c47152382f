"""Checkpoint files, which are written atomically, sealed by a checksum, and read as plain data only.

A checkpoint file is a zip archive of `torch.save`. The archive's comment is the SHA-256 of all bytes before it, so that
reading detects a cut or a flipped bit anywhere. `torch.load` reads the file unchanged. The seal detects damage, but no
malicious change.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from modules.errors import UserError
from pipelines.machine.provenance import version

FORMAT_VERSION = 2
LAST, PREVIOUS, DAMAGED = "last.ckpt", "previous.ckpt", "damaged.ckpt"
MARK = b"dreamcade checkpoint, sha256 "
DIGEST = 64
"""Number of hexadecimal digits of the checksum, at the end of the file."""
ARCHIVE_END = b"PK\5\6"
"""Signature of the last 22 bytes of a zip archive without a comment; their last two give the comment's length."""


class DamagedError(UserError):
    """A checkpoint is missing, cut short or changed; the one before it may be intact."""


class SealedCheckpointIO(CheckpointIO):
    """Writes and reads the Trainer's checkpoints as sealed files."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint by `write`."""
        write(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint by `read`, always as plain data on the CPU."""
        return read(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint if it exists."""
        Path(path).unlink(missing_ok=True)


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint and flush it to the disk; a last.ckpt that exists becomes previous.ckpt.

    One of these two files is intact at any moment, even if the process or the machine dies or the disk is full.
    """
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    content = buffer.getbuffer()
    assert content[-22:-18] == ARCHIVE_END
    content[-2:] = (len(MARK) + DIGEST).to_bytes(2, "little")
    digest = hashlib.sha256(content)
    digest.update(MARK)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.write(MARK + digest.hexdigest().encode())
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if path.name == LAST and path.exists():
        path.replace(path.with_name(PREVIOUS))
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # flushes the file names
    finally:
        os.close(folder)


def read(path: Path) -> dict[str, Any]:
    """Load a checkpoint, which may hold only tensors and plain data.

    Raises:
        DamagedError: the file is missing, cut short or changed.
        UserError: the file holds other objects, or has another format version.
    """
    if not path.is_file():
        raise DamagedError(f"there is no checkpoint {path}")
    try:
        _check(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        reason = next(
            (line.strip() for line in str(error).splitlines() if "Unsupported" in line or "GLOBAL" in line), ""
        )
        raise UserError(f"{path} is refused: it holds more than tensors and plain data. {reason}".strip()) from None
    except Exception as error:  # foreign or damaged bytes may raise any exception
        raise DamagedError(f"{path} is damaged: {(str(error) or type(error).__name__).splitlines()[0]}") from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}: expected a checkpoint that `dreamcade fit` wrote")
    format_version = checkpoint.get("format_version", FORMAT_VERSION)
    if format_version != FORMAT_VERSION:
        older = isinstance(format_version, int) and format_version < FORMAT_VERSION
        way = "train it again, or use the commit that wrote it" if older else "install a newer one"
        raise UserError(
            f"{path} has checkpoint format {format_version}, of dreamcade {checkpoint.get('version')}, commit "
            f"{checkpoint.get('commit')}: dreamcade {version()} reads format {FORMAT_VERSION}, {way}"
        )
    return checkpoint


def newest(folder: Path, keep: bool) -> Path:
    """Return the newest intact checkpoint of a run: last.ckpt, or previous.ckpt with a message if last.ckpt is damaged.

    Args:
        folder: folder of the run's checkpoints.
        keep: rename a damaged last.ckpt to damaged.ckpt, so that it never replaces previous.ckpt.

    Raises:
        UserError: there is no intact checkpoint, or last.ckpt is intact but refused.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    try:
        read(last)
        return last
    except DamagedError as error:
        if not previous.exists():
            raise
        damage = str(error)
    try:
        read(previous)
    except UserError as error:
        raise UserError(f"{damage}; and {error}") from None
    _say(f"dreamcade: {damage}; resuming from the checkpoint before it, {previous}")
    if keep and last.exists():
        _move(last, folder / DAMAGED)
    return previous


@rank_zero_only
def _say(line: str) -> None:
    print(line, file=sys.stderr)


@rank_zero_only
def _move(path: Path, to: Path) -> None:
    path.replace(to)


def _check(path: Path) -> None:
    """Compare the checksum, and refuse an archive whose members are compressed or larger than the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - len(MARK) - DIGEST))
        tail = file.read()
        sealed = tail.startswith(MARK)
        if sealed:
            file.seek(0)
            digest = hashlib.sha256()
            for start in range(0, size - DIGEST, 1 << 20):
                digest.update(file.read(min(1 << 20, size - DIGEST - start)))
            if digest.hexdigest().encode() != tail[-DIGEST:]:
                raise DamagedError(f"{path} is damaged: it does not match its checksum")
        elif tail[-22:-18] != ARCHIVE_END or tail[-2:] != b"\0\0":
            raise DamagedError(f"{path} is no whole checkpoint: it was cut short or damaged")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(m.file_size for m in members) > size or any(m.compress_type != zipfile.ZIP_STORED for m in members):
            raise UserError(f"{path} is refused: its content is compressed, or larger than the file")
        # Older files have no seal, only the archive's own checksums, which torch does not compare.
        if not sealed and (damaged := archive.testzip()) is not None:
            raise DamagedError(f"{path} is damaged: {damaged} does not match its checksum")
