"""The files of a replay store: their layout, their checks, and how they are made."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from modules.errors import UserError

FORMAT_VERSION = 2
RENAMED = {"lanes": "num_envs", "validation_lanes": "num_validation_envs"}
"""Fields of meta.json by their names in format version 1."""
COLUMNS = ("action", "reward", "terminated", "is_first", "is_last")
DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
"""Types of extra columns: plain numbers, for which any bytes are safe. Mapped objects would follow pointers."""
MOST_ACTIONS = 1 << 16
MOST_META_BYTES = 1 << 20
ROWS, HIGH = 0, 1
GIB = 1024**3


@dataclass(frozen=True)
class Layout:
    """The layout of a store, which `meta.json` holds."""

    observation_shape: tuple[int, ...]
    observation_dtype: str
    num_actions: int
    num_envs: int
    capacity: int
    num_validation_envs: int = 0
    spare: int = 0
    extras: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    description: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = [*self.observation_shape, self.num_actions]
        if not all(type(number) is int and number >= 1 for number in numbers) or self.num_actions > MOST_ACTIONS:
            raise UserError(
                f"observation_shape {self.observation_shape}, num_actions {self.num_actions}: expected whole numbers "
                f"of at least 1, and at most {MOST_ACTIONS} actions"
            )
        numbers = [self.capacity, self.spare, self.num_envs, self.num_validation_envs]
        whole = all(type(number) is int and number >= 0 for number in numbers)
        if not (whole and self.capacity >= 1 and self.num_validation_envs < self.num_envs):
            raise UserError(
                f"capacity {self.capacity}, spare {self.spare}, environments {self.num_envs}, num_validation_envs "
                f"{self.num_validation_envs}: expected a capacity and environments of at least 1, no negative number, "
                "and fewer validation environments than environments"
            )
        if self.observation_dtype not in ("uint8", "float32"):
            raise UserError(f"observation_dtype {self.observation_dtype}: expected uint8 or float32")
        if taken := {*COLUMNS, "checksum"} & set(self.extras):
            raise UserError(f"extras {sorted(taken)} are columns of every store; expected other names")
        for name, (dtype, shape) in self.extras.items():
            if not name.isidentifier() or dtype not in DTYPES or not all(type(n) is int and n >= 1 for n in shape):
                raise UserError(
                    f"extras: {name} is {dtype} {shape}; expected a name, one of {', '.join(DTYPES)}, a shape"
                )

    @property
    def slots(self) -> int:
        """Number of slots per environment; one slot is reserved."""
        return self.capacity + self.spare + 1

    @property
    def record(self) -> np.dtype:
        """A row without its observation; the checksum, which covers all before it, is last."""
        fields: list[Any] = [("action", "<i8"), ("reward", "<f4")]
        fields += [("terminated", "?"), ("is_first", "?"), ("is_last", "?")]
        fields += [(name, np.dtype(dtype).newbyteorder("<"), shape) for name, (dtype, shape) in self.extras.items()]
        return np.dtype([*fields, ("checksum", "<u4")])

    @property
    def files(self) -> dict[str, int]:
        """Bytes of every binary file."""
        width = math.prod(self.observation_shape) * np.dtype(self.observation_dtype).itemsize
        num_slots = self.num_envs * self.slots
        return {"observation.bin": num_slots * width, "rows.bin": num_slots * self.record.itemsize, "head.bin": 16}

    def write(self, path: Path) -> None:
        """Make the files of an empty store with all disk space reserved; a failure leaves no files.

        Raises:
            UserError: the folder is not empty, or there is too little disk space.
        """
        content = json.loads(json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}))
        text = json.dumps({**content, "checksum": _json_checksum(content)}, indent=1)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} exists already; expected a new or an empty folder")
        needed = sum(self.files.values())
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        free = shutil.disk_usage(missing[-1].parent if missing else path).free
        room = f"{needed / GIB:.1f} GiB for {self.capacity} rows of {self.num_envs} environments"
        if needed > free:
            raise UserError(f"{path} needs {room}, {free / GIB:.1f} GiB are free")
        try:
            path.mkdir(parents=True, exist_ok=True)
            for name, size in self.files.items():
                _reserve(path / name, size)
            head = struct.pack("<QQ", _to_word(0, ROWS), _to_word(0, HIGH))
            with (path / "head.bin").open("r+b") as file:
                file.write(head)
            # meta.json comes last: a folder without it is no store.
            (path / "meta.tmp").write_text(text, encoding="utf-8")
            os.replace(path / "meta.tmp", path / "meta.json")
        except OSError as error:
            for name in (*self.files, "meta.tmp"):
                (path / name).unlink(missing_ok=True)
            for folder in missing:
                if folder.exists():
                    folder.rmdir()
            raise UserError(f"{path} could not be made with {room}: {error.strerror}") from None

    @staticmethod
    def read(path: Path) -> Layout:
        """Read `meta.json` of a store and check the sizes of its files.

        Raises:
            UserError: the folder is no store, is damaged or cut short, has another format version or invalid numbers.
        """
        _check_files(path)
        try:
            content = json.loads((path / "meta.json").read_text(encoding="utf-8"))
            intact = content.pop("checksum") == _json_checksum(content)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{path} is not a replay store: expected a folder with a meta.json") from None
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            intact = False
        if not intact:
            raise UserError(f"{path} is damaged: meta.json does not match its checksum")
        if (version := content.pop("format_version", None)) not in (1, FORMAT_VERSION):
            raise UserError(f"{path} has format version {version}, expected {FORMAT_VERSION}")
        content = {RENAMED.get(name, name) if version == 1 else name: value for name, value in content.items()}
        try:
            content["observation_shape"] = tuple(content["observation_shape"])
            content["extras"] = {name: (dtype, tuple(shape)) for name, (dtype, shape) in content["extras"].items()}
            layout = Layout(**content)
            files = layout.files
            assert isinstance(layout.description, dict)
        except UserError as error:
            raise UserError(f"{path} is no store: {error}") from None
        except Exception as error:  # a valid checksum does not prove that the content is valid
            raise UserError(f"{path} is no store: its meta.json lacks the fields of a store ({error})") from None
        for name, expected in files.items():
            size = (path / name).stat().st_size if (path / name).exists() else 0
            if size != expected:
                raise UserError(f"{path} was cut short: {name} has {size} bytes, expected {expected}")
        return layout


def _check_files(path: Path) -> None:
    """Raise a UserError if a store's file is a link, a device or a pipe."""
    for file in [path / name for name in ("meta.json", "observation.bin", "rows.bin", "head.bin")]:
        if file.is_symlink() or (file.exists() and not file.is_file()):
            raise UserError(f"{file} is a link or no file: expected a file in the store's own folder")
    if (path / "meta.json").is_file() and (path / "meta.json").stat().st_size > MOST_META_BYTES:
        raise UserError(f"{path} is damaged: meta.json is larger than {MOST_META_BYTES} bytes")


class Head(NamedTuple):
    """The valid rows of every environment: from `oldest` up to, not including, `rows`."""

    cuts: int
    oldest: int
    rows: int


class HeadFile:
    """`head.bin`: two words, each written by one aligned 8-byte store and each with its own check.

    The first word holds the number of rows whose append returned, and the number of cuts modulo 256. A reader
    therefore notices a cut even if the same number of rows was appended since. The second word holds the highest row
    ever written, plus one.
    """

    def __init__(self, path: Path, capacity: int, spare: int, writable: bool) -> None:
        self.path, self.capacity, self.spare = path, capacity, spare
        self.map = np.memmap(path / "head.bin", "<u8", "r+" if writable else "r", shape=(2,))
        self._words = np.asarray(self.map)
        self._intact: dict[int, int] = {}
        """Words that last passed their check."""
        self.read()

    def read(self) -> Head:
        """Return the head; raise a UserError if a word is damaged."""
        while True:
            before, high = self._read(ROWS), self._read(HIGH)
            # If a writer appended in between, the two words together would show too few valid rows.
            if self._read(ROWS) == before:
                cuts, rows = divmod(before, 1 << 32)
                if rows > high:
                    raise UserError(f"{self.path} is damaged: head.bin says that {rows} of {high} rows are valid")
                return Head(cuts, max(0, rows - self.capacity, high - self.capacity - self.spare), rows)

    @property
    def kept(self) -> int:
        """The oldest row that no append has overwritten, which is the earliest target of a cut."""
        return max(0, self._read(HIGH) - self.capacity - self.spare)

    def raise_high(self, high: int) -> None:
        """Record that rows up to `high` may be written; called before write_rows, so that no reader trusts old rows."""
        if high > self._read(HIGH):
            self._words[HIGH] = _to_word(high, HIGH)

    def write_rows(self, rows: int, cuts: int) -> None:
        """Record that rows up to `rows` are valid."""
        self._words[ROWS] = _to_word(cuts % 256 << 32 | rows, ROWS)

    def _read(self, which: int) -> int:
        word = int(self._words[which])
        value = word & (1 << 40) - 1
        if word != self._intact.get(which):
            if word != _to_word(value, which):
                raise UserError(f"{self.path} is damaged: head.bin does not match its checksum")
            self._intact[which] = word
        return value


def _to_word(value: int, which: int) -> int:
    """Return a word of 64 bits: a number in the low 40 bits, and its check in the high 24 bits."""
    return value | (zlib.crc32(value.to_bytes(5, "little") + bytes([which])) & 0xFFFFFF) << 40


def row_checksum(observation: np.ndarray, content: np.ndarray, env: int, row: int) -> int:
    """Return the checksum of an observation, the bytes of its record, its environment and its row.

    The row number is included, so that neither zeros nor the old content of a slot pass as the row.
    """
    return zlib.crc32(struct.pack("<qq", env, row), zlib.crc32(content.data, zlib.crc32(observation.data)))


def difference(held: Any, expected: Any, name: str) -> str | None:
    """Return the first difference of two pieces of plain JSON with both values; None if they are equal."""
    if isinstance(held, dict) and isinstance(expected, dict):
        each = (difference(held.get(key), expected.get(key), f"{name}.{key}") for key in {**expected, **held})
        return next(filter(None, each), None)
    return None if held == expected else f"{name} {held!r}, expected {expected!r}"


def _json_checksum(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def _reserve(path: Path, size: int) -> None:
    """Make a file of zeros with all blocks reserved: a mapped write into a sparse file on a full disk kills."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            for offset in range(0, size, 1 << 24):
                file.write(bytes(min(1 << 24, size - offset)))
