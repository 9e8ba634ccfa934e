"""The JSON files of a run directory: written as a whole, read as anybody's data. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from compressor.errors import CompressorError, RunError
from compressor.files import write_json
from compressor.plain import decode, encode
from compressor.report.reading import read_plain


@dataclass(frozen=True)
class Form:
    """Of one kind of file.

    Attributes:
        file: its name in a run directory.
        what: what it holds, in words such as `a result`.
        schema: grows whenever a key changes its meaning.
        remedy: how to come by one.
    """

    file: str
    what: str
    schema: int
    remedy: str


class Record:
    """What a frozen dataclass, with a field `schema`, has in common with others of such files.

    Attributes:
        form: of the file.
    """

    form: ClassVar[Form]
    schema: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, schema number first."""
        return {"schema": self.schema, **encode(self)}

    def write(self, run: Path) -> Path:
        """Writes the file into the run directory: as a whole or not at all.

        Raises:
            RunError: the directory cannot be written.
        """
        return write_json(run / self.form.file, self.to_json())

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Inverse of `to_json`.

        Raises:
            RunError: `data` has another form.
        """
        form = cls.form
        found = data.get("schema") if isinstance(data, dict) else None
        if found != form.schema:
            raise RunError(
                f"it is not {form.what} of this program: schema {form.schema} is needed, but got "
                f"{found!r:.80}"
            )
        try:
            record = decode(cls, data)
            record.check()
        except (ValueError, CompressorError) as error:
            raise RunError(f"it is not {form.what} of this program: {error}") from error
        return record

    @classmethod
    def read(cls, run: Path) -> Self:
        """Reads the file of a run directory.

        Raises:
            RunError: the directory or the file is missing, broken or of another program.
        """
        path = run / cls.form.file
        try:
            record = cls.from_json(read_plain(path))
            _require_no_links(run, record.folders())
        except FileNotFoundError as error:
            raise RunError(cls.missing(run)) from error
        except (OSError, ValueError, RecursionError, RunError) as error:
            raise RunError(f"{str(path)!r} cannot be read: {error}") from error
        return record

    @classmethod
    def missing(cls, run: Path) -> str:
        """What to say of a run directory without the file."""
        form = cls.form
        return f"{form.what} is in {form.file}, but there is none in {str(run)!r}; {form.remedy}"

    def check(self) -> None:
        """Raises `ValueError` or an error of ours where values cannot be meant."""
        for folder in self.folders():
            if folder in ("", ".", "..") or Path(folder).name != folder:
                raise ValueError(f"a network's folder lies in the run's, but got {folder!r:.80}")

    def folders(self) -> Sequence[str]:
        """Folders of networks, inside of the run's."""
        return ()


def _require_no_links(run: Path, folders: Sequence[str]) -> None:
    """What is written for a network must not follow a link out of the run.

    Raises:
        ValueError: it would.
    """
    for folder in folders:
        if (run / folder).is_symlink():
            raise ValueError(f"a network's folder lies in the run, but {folder!r} is a link")
