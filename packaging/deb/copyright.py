"""Print debian/copyright: the project's own licence, then each package in the virtual environment with its licence.

Run by the environment's own Python: copyright.py. The form is that of
https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

OWN = "build-agent"
# Texts that every Debian system has: they are referred to, not repeated.
COMMON = (
    (re.compile(r"Apache License\s+Version 2\.0"), "Apache-2.0", "Apache-2.0"),
    (re.compile(r"GNU LESSER GENERAL PUBLIC LICENSE\s+Version 3"), "LGPL-3", "LGPL-3"),
    (re.compile(r"Mozilla Public License,? [Vv]ersion 2\.0"), "MPL-2.0", "MPL-2.0"),
)
HEAD = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: build-agent
Comment: This package carries a Python environment in /opt/build-agent. What in it is not the project's own is listed
 below, each with its licence; the files of those licences are in the package as well, beside the code.

Files: *
Copyright: The build-agent contributors
License: Apache-2.0
 Licensed under the Apache License, Version 2.0; on Debian systems its text is in
 /usr/share/common-licenses/Apache-2.0.
"""


def licence_files(one: Distribution) -> list[Path]:
    """Return the files of a distribution that hold licences; its metadata folder has them, at one of two places."""
    folder = Path(str(one.locate_file(""))) / metadata_folder(one)
    names = re.compile(r"(licen[cs]e|copying|notice|authors)", re.IGNORECASE)
    return sorted(path for path in folder.rglob("*") if path.is_file() and names.match(path.name))


def metadata_folder(one: Distribution) -> str:
    """Return the name of the folder *.dist-info."""
    found: Path = one._path  # type: ignore[attr-defined]  # RECORD is gone, and no other way tells
    return found.name


def licence_name(one: Distribution) -> str:
    """Return what the metadata calls the licence: the expression, else the old field, else the classifiers."""
    said = one.metadata["License-Expression"] or one.metadata["License"] or ""
    if not said or "\n" in said or len(said) > 60:
        classifiers = one.metadata.get_all("Classifier") or []
        said = ", ".join(it.split(" :: ")[-1] for it in classifiers if it.startswith("License :: "))
    return said


def holders(text: str) -> Iterator[str]:
    """Yield the lines of a licence that name who holds the copyright."""
    for line in text.splitlines():
        if re.match(r"\W*(copyright\b\s*(\(c\)|©|[0-9]|by)|\(c\) ?copyright|©)", line.strip(), re.IGNORECASE):
            yield re.sub(r"^\W*(copyright)?\W*(\([cC]\))?\W*", "", line.strip(), flags=re.IGNORECASE)


def indented(text: str) -> str:
    """Return text as the continuation of a field: each line indented, an empty one a dot."""
    return "\n".join(f" {line.rstrip()}" if line.strip() else " ." for line in text.strip().splitlines())


def stanza(one: Distribution) -> str:
    """Return the stanza of one distribution.

    Raises: SystemExit when it comes without a licence: nobody may pass it on then.
    """
    name, version = one.metadata["Name"], one.version
    files, said = licence_files(one), licence_name(one)
    if not said and not files:
        sys.exit(f"{name} {version} states no licence")
    top = (one.read_text("top_level.txt") or name.replace("-", "_")).split()
    folder = f"opt/build-agent/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    texts = []
    for path in files:
        text = path.read_text("utf-8", errors="replace")
        common = [short for pattern, _, short in COMMON if pattern.search(text)]
        where = f"/usr/share/common-licenses/{common[0]}" if common else ""
        texts.append(f"The text of {common[0]} is in {where}." if common else text.strip())
    if not texts:
        texts.append("The package comes without the text of its licence.")
    named = dict.fromkeys(
        line for path in files for line in holders(path.read_text("utf-8", errors="replace"))
    )
    by = [it for it in named if not re.search(r"\[yyyy\]|Free Software Foundation", it)]
    author = one.metadata["Author"] or one.metadata["Author-email"] or f"the authors of {name}"
    return "\n".join(
        (
            f"Files: {' '.join(f'{folder}/{it}*' for it in sorted({*top, metadata_folder(one)}))}",
            f"Copyright: {chr(10).join(by or [author]).replace(chr(10), chr(10) + ' ')}",
            f"License: {name}-{version}",
            *([f" {name} states as its licence: {said}.", " ."] if said else []),
            indented("\n\n".join(texts)),
            "",
        )
    )


def main() -> None:
    """Print all of it."""
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    others = [one for one in distributions() if one.metadata["Name"] != OWN]
    stanzas = [stanza(one) for one in sorted(others, key=lambda one: one.metadata["Name"].lower())]
    sys.stdout.write("\n".join((HEAD, *stanzas)))


if __name__ == "__main__":
    main()
