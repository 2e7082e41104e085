"""Finding a data set's films under the spellings that its copies use."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from videoprune.errors import UsageError


class Films:
    """Looks names up in some folders, in order; each folder is listed once, so ten thousand look-ups are fast.

    Args:
        root: folder of the data set.
        folders: names below it, the likeliest first; those that do not exist are left out.
    """

    def __init__(self, root: Path, folders: Sequence[str]) -> None:
        self.root = root
        self.folders = [root / name for name in folders]
        self._there = [folder for folder in self.folders if folder.is_dir()]
        self._names: dict[Path, dict[str, str]] = {}

    def find(self, name: str, where: str, endings: Sequence[str] = ()) -> Path:
        """Absolute path of a film; where there is none, the path at which it is missed.

        Args:
            name: as the data set writes it; capitals in it do not matter, and `endings` are tried behind it.
            where: for the message.

        Raises:
            UsageError: a name that leads out of the folder.
        """
        if "\0" in name or os.path.isabs(name) or name.startswith("\\") or ".." in Path(name).parts or not name.strip():
            raise UsageError(
                f"{where}: the film {name!r} is outside the data set's folder; names below {self.root} are allowed"
            )
        parent, leaf = os.path.split(name)
        for folder in self._there:
            names = self._listed(folder / parent)
            for ending in endings or ("",):
                for form in (f"{leaf}{ending}", f"{leaf}{ending}".lower()):
                    if form in names:
                        return Path(os.path.abspath(folder / parent / names[form]))
        first = (self._there or self.folders)[0]
        return Path(os.path.abspath(first / f"{name}{endings[0] if endings else ''}"))

    def _listed(self, folder: Path) -> dict[str, str]:
        """Names of a folder by themselves and in lower case; the exact spelling wins."""
        if folder not in self._names:
            try:
                found = sorted(entry.name for entry in os.scandir(folder))
            except OSError:
                found = []
            self._names[folder] = {name.lower(): name for name in reversed(found)} | {name: name for name in found}
        return self._names[folder]
