"""Phases on the server: it is set up, checked, and freed of everything that is its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from agent import clock
from agent.clock import Deadline
from agent.fleet.job import Job
from agent.fleet.phase_server import BUILDER
from agent.fleet.push import deb_path
from agent.fleet.work import BakeFailed, Work
from agent.model.image import ImageReport, ReportWhen
from agent.store import images

_DISK_FULL = "No space left on device"
_NAMES_SHOWN = 8


def setup(work: Work) -> None:
    """Run the set-up scripts, in the background of the server."""
    scripts = f"{work.places.setup}/setup_scripts"
    command = ["bash", f"{scripts}/setup.sh", "--profile", work.image.profile]
    if work.bundle.deb is not None:
        command += ["--deb", deb_path(work.bundle, work.places.setup)]
    code = run_job(work, BUILDER, "setup", command, work.limits.setup_s)
    if code != 0:
        raise _setup_failed(work, code)


def verify(work: Work) -> None:
    """Run the checks on the server that was set up."""
    check_server(work, BUILDER, ReportWhen.BAKE)


def scrub(work: Work) -> None:
    """Write the image's own record, remove what must not be in it, and look for what is left."""
    facts = {
        "id": work.image.id,
        "version": work.image.version,
        "profile": work.image.profile,
        "base": work.image.base,
        "commit": work.bundle.commit,
        "built_at": clock.utc_now().isoformat(timespec="seconds"),
    }
    remote, scripts = work.remote(BUILDER), f"{work.places.setup}/setup_scripts"
    remote.put(json.dumps(facts).encode(), work.places.image_file, mode=0o644)
    # The keys that let us in go, too: from here on there is only the connection that is open.
    work.note(scrub_began=True)
    # The scripts go with the rest, so both halves are one job whose script lies elsewhere; what is found is printed last.
    copied = f"{work.places.work}/scrub"
    remote.run(f"rm -rf {copied}; cp -r {scripts} {copied}")
    command = f"bash {copied}/scrub.sh || exit 2; echo '-- what is left:'; bash {copied}/scrub.sh --check"
    code = run_job(work, BUILDER, "scrub", ["bash", "-c", command], work.limits.scrub_s, is_repeatable=False)
    if code == 0:
        return
    left = work.recording.tail.rpartition("-- what is left:")[2].strip().splitlines()
    if code == 1 and left:
        raise BakeFailed(f"the image would hold what must not be in it: {_listed(left)}")
    raise BakeFailed(f"the scrub failed with exit code {code}: {_last_line(work)}")


def check_server(work: Work, role: str, ran: ReportWhen) -> None:
    """Run the checks on a server and keep their report with the image.

    Raises: BakeFailed that names the checks which did not pass.
    """
    scripts, folder = f"{work.places.setup}/setup_scripts", f"{work.places.setup}/report"
    command = ["bash", f"{scripts}/verify/run.sh", "--profile", work.image.profile, "--report", folder]
    code = run_job(work, role, f"verify-{ran}", command, work.limits.verify_s)
    report = _fetch_report(work, role, ran, folder)
    if report is not None:
        work.persist(lambda: images.store_report(work.store, report))
    if code == 0 and report is not None and not report.failed_checks:
        return
    if report is None:
        raise BakeFailed(f"the checks left no report; their exit code is {code}: {_last_line(work)}")
    if not report.failed_checks:
        raise BakeFailed(f"the checks ended with exit code {code}: {_last_line(work)}")
    raise BakeFailed(f"these checks did not pass: {_listed(report.failed_checks)}")


def run_job(
    work: Work, role: str, name: str, command: Sequence[str], limit_s: float, *, is_repeatable: bool = True
) -> int:
    """Run a command in the background of a server, its output going to the log; return its exit code."""
    deadline = Deadline.after(limit_s)

    def hear(data: bytes) -> None:
        work.hear(data)
        if deadline.is_passed:
            raise BakeFailed(f"{name} did not end within {limit_s:g} s")

    job = Job(
        work.remote(role), folder=work.places.work, name=name, command=command, is_repeatable=is_repeatable
    )
    return job.run(hear, on_cut=lambda why: work.say(f"the connection was cut ({why}); {name} goes on there"))


def _fetch_report(work: Work, role: str, ran: ReportWhen, folder: str) -> ImageReport | None:
    remote = work.remote(role)
    document = remote.run(f"cat {folder}/report.json", has_to_pass=False)
    junit = remote.run(f"cat {folder}/junit.xml", has_to_pass=False)
    try:
        report: Any = json.loads(document.output) if document.exit_code == 0 else None
    except ValueError:
        return None
    if not isinstance(report, dict):
        return None
    text = junit.output if junit.exit_code == 0 else ""
    return ImageReport(image_id=work.image.id, ran=ran, junit=text, report=report)


def _setup_failed(work: Work, code: int) -> BakeFailed:
    """Say which script failed, and why, as far as the server can tell."""
    answer = work.remote(BUILDER).run(f"cat {work.places.setup}/progress", has_to_pass=False)
    script = ""
    for line in answer.output.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("state") == "failed":
            script = f" in {entry.get('script')}"
    if _DISK_FULL in work.recording.tail or _is_disk_full(work):
        return BakeFailed(f"the set-up failed{script}: the server's disk is full", is_disk_full=True)
    return BakeFailed(f"the set-up failed{script} with exit code {code}: {_last_line(work)}")


def _is_disk_full(work: Work) -> bool:
    answer = work.remote(BUILDER).run("df --output=avail -B1 / | tail -1", has_to_pass=False)
    free = answer.output.strip()
    return free.isdigit() and int(free) < 1 << 20


def _last_line(work: Work) -> str:
    lines = [line.strip() for line in work.recording.tail.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing"


def _listed(names: Sequence[str]) -> str:
    shown = "; ".join(names[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{shown}; and {more} more" if more > 0 else shown
