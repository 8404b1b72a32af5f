"""Sentences of translated manual pages, a file a language: `python -m experiments.man_pages OUT PACKAGE.deb ...`.

The packages are Debian's manpages and manpages-de, -es, -fr, -ja, -pl, -ru and -zh, as `apt-get download` gets them.
Paragraphs lose their markup; a paragraph of a script other than Latin is kept if most of its letters are of it, for
translators leave passages in English. Needs `dpkg-deb`.
"""

from __future__ import annotations

import argparse
import gzip
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

SHORTEST, LONGEST = 40, 400  # characters of a paragraph; half of it in scripts without spaces
LANGUAGES = ("en", "de", "es", "fr", "pl", "ru", "ja", "zh_CN")
_OTHER_SCRIPTS = {"ru": "[\u0400-\u04ff]", "ja": "[\u3040-\u30ff\u4e00-\u9fff]", "zh_CN": "[\u4e00-\u9fff]"}
_ESCAPES = (  # fonts, sizes and spaces; characters by name; other marks
    (r"\\f(\[.*?\]|\(..|.)|\\[,/&|^]|\\s[-+]?\d", ""),
    (r"\\\(..|\\\[.*?\]", " "),
    (r"\\", ""),
)


def main() -> None:
    """Unpack the packages, and write a file of distinct paragraphs for each language."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("out", type=Path)
    arguments.add_argument("packages", type=Path, nargs="+")
    options = arguments.parse_args()
    options.out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        for package in options.packages:
            subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
        manuals = Path(folder) / "usr" / "share" / "man"
        for language in LANGUAGES:
            pages = sorted((manuals if language == "en" else manuals / language).glob("man[1-8]/*.gz"))
            lines = dict.fromkeys(text for page in pages for text in _paragraphs(page, language))
            (options.out / f"{language}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            print(f"{language}: {len(pages)} pages, {len(lines)} paragraphs")


def _paragraphs(page: Path, language: str) -> Iterator[str]:
    """Prose of a page: lines between requests, without escapes."""
    text = gzip.decompress(page.read_bytes()).decode("utf-8", errors="replace")
    spaced = language not in ("ja", "zh_CN")
    for part in re.split(r"\n(?:[.'][^\n]*\n)+", text):
        lines = [line for line in part.split("\n") if line and line[0] not in ".'"]
        prose = (" " if spaced else "").join(lines)
        for pattern, other in _ESCAPES:
            prose = re.sub(pattern, other, prose)
        prose = re.sub(r"\s+", " ", prose).strip()
        letters = sum(char.isalpha() for char in prose)
        script = _OTHER_SCRIPTS.get(language)
        if len(prose) < SHORTEST * (1 if spaced else 0.5) or letters < 0.7 * len(prose):
            continue
        if script is None or len(re.findall(script, prose)) > 0.6 * letters:
            yield prose[:LONGEST]


if __name__ == "__main__":
    main()
