"""What a server that was started from an image does before its agent: it refuses to be half of a server, and reads its
settings from the user data it was launched with.

Owns the form of user data: TOML as in agent.toml, under a first line `#build-agent`. Anything else there, such as
cloud-init's, is somebody else's and left alone.
"""

from __future__ import annotations

import grp
import os
from collections.abc import Callable
from pathlib import Path

from agent import clock, config_load, log
from agent.config import Settings
from agent.errors import AgentFailed, ServerUnfit, SettingsError
from agent.host.identity import looks_like_ec2
from agent.host.metadata import MetadataClient, MetadataUnavailable

HEAD = "#build-agent"
GROUP = "build-agent"
# An image may be started where no cloud has a metadata service: then it is as it was made.
_WITHOUT_CLOUD_S = 60.0

_log = log.get("boot")


def refuse_unfinished(settings: Settings) -> None:
    """Raise ServerUnfit while the machine's set-up has not come to its good end; the text says how far it came."""
    unfinished = settings.setup_dir / "unfinished"
    if unfinished.exists():
        try:
            words = " ".join(unfinished.read_text("utf-8", "replace").split())
        except OSError as error:
            words = str(error.strerror)
        raise ServerUnfit(f"this machine is set up in part and takes no builds ({unfinished}): {words}")


def fetch_user_data(settings: Settings, *, root: Path = Path("/")) -> str | None:
    """Return the user data, `None` where there is none or nobody to ask. A network that comes late is waited for.

    On EC2 it is waited for as long as it takes: a server with the settings of its image alone would join the wrong
    queue. Elsewhere a server from an image asks for a minute.
    Raises: SettingsError for a malformed address.
    """
    is_ec2 = settings.cloud == "ec2" or (settings.cloud == "auto" and looks_like_ec2(root))
    if not is_ec2 and (settings.cloud == "none" or not settings.image_file.exists()):
        return None
    client = MetadataClient(settings.metadata_url)
    deadline = clock.Deadline(None) if is_ec2 else clock.Deadline.after(_WITHOUT_CLOUD_S)
    waits = clock.backoff(limit_s=5.0)
    is_told = False
    while True:
        try:
            return client.user_data()
        except MetadataUnavailable as error:
            if deadline.is_passed:
                _log.warning("boot.no_metadata", str(error))
                return None
            if not is_told:
                _log.warning("boot.waiting", str(error))
            is_told = True
        clock.sleep(next(waits))


def apply_user_data(text: str | None, path: Path, *, group: str = GROUP) -> bool:
    """Make the settings file from user data; whether it was changed. Nothing else than ours is touched.

    Raises: SettingsError that names each fault with its line; AgentFailed without the agent's group.
    """
    if text is None or text.partition("\n")[0].strip() != HEAD:
        if text:
            _log.info("boot.user_data_passed_over", f"its first line is not {HEAD}")
        return False
    try:
        number = grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise AgentFailed(
            f"there is no group {group}: install the package, or run systemd-sysusers"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    try:
        with os.fdopen(
            os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
        ) as file:
            file.write(text if text.endswith("\n") else f"{text}\n")
            file.flush()
            os.fchown(file.fileno(), -1, number)
            os.fchmod(file.fileno(), 0o640)
            os.fsync(file.fileno())
        _check(new)
        if path.exists() and path.read_bytes() == new.read_bytes():
            return False
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    _log.info("boot.settings_written", str(path))
    return True


def _check(new: Path) -> None:
    try:
        config_load.load(new, {}, {})
    except SettingsError as error:
        raise SettingsError(str(error).replace(str(new), "user data")) from None


def run(settings: Settings, path: Path, *, fetch: Callable[[Settings], str | None] = fetch_user_data) -> bool:
    """Do all of it; whether the settings were changed.

    Raises: ServerUnfit; SettingsError.
    """
    refuse_unfinished(settings)
    return apply_user_data(fetch(settings), path)
