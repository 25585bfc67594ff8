"""The image this server was started from, as the bake wrote it into the image itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.errors import SettingsError

_FILE_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRecord:
    """Identity of an image; `facts` is whatever else the bake wrote (base, commit, built_at ..)."""

    id: str
    version: str | None
    facts: Mapping[str, Any] = field(default_factory=dict)


def read_image(path: Path) -> ImageRecord | None:
    """Read the image file, a JSON object with `id`, `version` and any further keys; None where there is none.

    Raises: SettingsError that names the file for everything that is there but can't be used: a server that
    can't say which image it runs would be rolled out, and back, blindly.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_LIMIT_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SettingsError(f"image_file {path}: {error.strerror}") from error
    if len(data) > _FILE_LIMIT_BYTES:
        raise SettingsError(f"image_file {path} is over {_FILE_LIMIT_BYTES} bytes; it is not an image record")
    try:
        record = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError names line and column
        raise SettingsError(f"image_file {path} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise SettingsError(f"image_file {path} must hold an object with id and version")
    image_id, version = record.pop("id", None), record.pop("version", None)
    if not isinstance(image_id, str) or not image_id.strip():
        raise SettingsError(f"image_file {path}: id must be a text that is not empty")
    if version is not None and not isinstance(version, str):
        raise SettingsError(f"image_file {path}: version must be a text, in quotes")
    return ImageRecord(id=image_id.strip(), version=version, facts=record)
