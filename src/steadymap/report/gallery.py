"""Figures and pictures of the report, kept within a size."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from steadymap.report import words
from steadymap.report.document import Picture
from steadymap.report.figures import theme

# Bytes above which a picture's colors are reduced. Reports go to git: many small pictures rather
# than few sharp ones.
LIMITS = {"": 300_000, "lead": 120_000, "paper": 64_000}

_PICTURE = re.compile(r"^!\[(.*)\]\(figures/(.+)\.png\)\n\n((?:.+\n)+)", re.MULTILINE)


def committed_captions(reports: Path) -> dict[str, tuple[str, str]]:
    """Alternative text and caption of each figure of an earlier report, by name."""
    captions = {}
    for path in (reports / "report.md", reports / "details.md"):
        for alt, name, caption in _PICTURE.findall(path.read_text() if path.is_file() else ""):
            if (reports / "figures" / f"{name}.png").is_file():
                captions[name] = alt, " ".join(caption.split())
    return captions


NOT_HERE = "not here: run `make repro`"


class Gallery:
    """Figures written so far; those `committed` before, with their words, are kept."""

    def __init__(self, folder: Path, committed: Mapping[str, tuple[str, str]] | None = None):
        self.folder = folder
        self.committed = committed or {}
        self.paths: list[Path] = []

    def draw(
        self, name: str, figure: Figure, /, *, text: str = "", folds: bool = False, **values: Any
    ) -> Picture:
        """Write a figure and return it as a picture of the report.

        Parameters
        ----------
        name : str
            Of the file.
        figure : Figure
        text : str, optional
            Name of its texts and limit in `texts.yaml`; the file's where not given.
        folds : bool
            Whether Markdown alone shows it.
        **values
            What the texts have in braces.
        """
        texts = words.captions(text or name, **values)
        path = self.folder / f"{name}.png"
        if name not in self.committed:
            theme.save(figure, path, max_bytes=LIMITS[texts.get("limit", "")])
        if path not in self.paths:
            self.paths.append(path)
        return Picture(path, texts["alt"], texts["caption"], folds)

    def earlier(self, *names: str) -> list[Picture]:
        """Show committed figures that can't be drawn anew."""
        paths = {name: self.folder / f"{name}.png" for name in names if name in self.committed}
        self.paths += paths.values()
        return [Picture(path, *self.committed[name]) for name, path in paths.items()]

    def delete_others(self) -> None:
        """Delete figures that this report does not show."""
        for path in self.folder.glob("*.png"):
            if path not in self.paths and path.stem not in self.committed:
                path.unlink()
