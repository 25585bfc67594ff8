"""Deployments of the fleet's own sources: a commit's tests run as a build, then an image is made of it and rolled out.

    test      a build of the commit, by the definition in the repository
    package   a checkout of the commit, and the Debian package made there
    bake      `build-agent images bake`, a process of its own, which can be resumed
    rollout   a roll-out, which tries the image first

Each step is on record before it is taken and can be taken again. A stage that fails ends the deployment; what the fleet
runs on is touched by the last stage alone, and that one goes back by itself.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent import log
from agent.errors import AgentError
from agent.fleet import owner
from agent.fleet.ground import FLEET, Ground
from agent.model.build import BuildState
from agent.model.fleet import (
    Deployment,
    RolloutKind,
    RolloutState,
    Stage,
    StageName,
    StageState,
)
from agent.model.image import Bake, BakeState
from agent.output.redact import Redactor
from agent.queue.submit import new_build, submit
from agent.store import bakes, builds, deployments, fleet_events, pools, rollouts

_TELL_S = 0.5
_LINE_CHARS = 2000
_END_S = 20.0

_log = log.get("deploy")


class StageFailed(AgentError):
    """A stage did not come to its end; the text says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How deployments are made. `package` is a command in the checkout that puts the package into its `dist/`.

    `bake_argv` is the command line of `build-agent`, its settings included.
    """

    folder: Path
    profile: str
    package: str
    environment: Mapping[str, str]
    base: str = ""
    bake_argv: Sequence[str] = (sys.executable, "-m", "agent.cli")
    secrets: Sequence[str] = ()


@dataclass(slots=True)
class _Work:
    """A command that runs for a stage, and what became of it."""

    thread: threading.Thread
    stopped: threading.Event = field(default_factory=threading.Event)
    is_cancelled: bool = False
    fault: str | None = None


class Deployer:
    """Takes every open deployment one step on; used by the controller's thread, for one life as leader."""

    def __init__(self, ground: Ground, plan: Plan) -> None:
        self._ground = ground
        self._plan = plan
        self._works: dict[tuple[str, StageName], _Work] = {}

    def step(self) -> None:
        """Do what there is to do in this cycle."""
        standing = deployments.list_deployments(self._ground.store, only_open=True)
        self._stop_others({it.id for it in standing})
        is_making = False
        for deployment in reversed(standing):
            stages = deployments.list_stages(self._ground.store, deployment.id)
            stage = next((it for it in stages if it.state in (StageState.WAITING, StageState.RUNNING)), None)
            if stage is None:
                continue
            # Packages and images are made one after the other: each takes a machine of its own.
            if stage.name in (StageName.PACKAGE, StageName.BAKE):
                if is_making:
                    continue
                is_making = True
            self._take_on(deployment, stage)

    def _take_on(self, deployment: Deployment, stage: Stage) -> None:
        steps: dict[StageName, Callable[[Deployment, Stage], str | None]] = {
            StageName.TEST: self._test,
            StageName.PACKAGE: self._package,
            StageName.BAKE: self._bake,
            StageName.ROLLOUT: self._roll_out,
        }
        try:
            detail = steps[stage.name](deployment, stage)
            state = StageState.PASSED
        except StageFailed as error:
            detail, state = str(error), StageState.FAILED
        except AgentError as error:
            if error.is_retriable:
                raise
            detail, state = str(error), StageState.FAILED
        if detail is None:
            return
        with self._ground.writing() as connection:
            deployments.end_stage(connection, deployment.id, stage.name, state, detail=detail)
        _log.info("deployment.stage_ended", detail, deployment=deployment.id, stage=stage.name, state=state)
        if state is StageState.FAILED or stage.name is StageName.ROLLOUT:
            shutil.rmtree(self._checkout(deployment), ignore_errors=True)

    def _begin(self, deployment: Deployment, stage: Stage, output_id: str | None) -> None:
        if stage.state is StageState.WAITING or stage.output_id != output_id:
            with self._ground.writing() as connection:
                deployments.begin_stage(connection, deployment.id, stage.name, output_id=output_id)

    # The stages: each returns what to say once it has passed, `None` while it goes on.

    def _test(self, deployment: Deployment, stage: Stage) -> str | None:
        ground, build_id = self._ground, f"deploy-{deployment.id}"
        if stage.state is StageState.WAITING:
            pool = pools.get(ground.store, deployment.pool)
            document = {
                "project": "fleet",
                "source": {"git": deployment.repository, "commit": deployment.commit},
            }
            new = new_build(document, build_id=build_id, queue=pool.queues[0], by=deployment.created_by)
            submit(ground.store, ground.carrier, new)
            self._begin(deployment, stage, build_id)
            return None
        build = builds.get(ground.store, build_id)
        if build.state is not BuildState.ENDED or build.outcome is None:
            return None
        if not build.outcome.is_success:
            raise StageFailed(f"build {build_id}: {build.outcome}: {build.detail or 'see its output'}")
        return f"build {build_id} passed"

    def _package(self, deployment: Deployment, stage: Stage) -> str | None:
        self._begin(deployment, stage, None)
        folder = self._checkout(deployment)
        work = self._work(deployment, stage, lambda work: self._make_package(deployment, work))
        if work.thread.is_alive():
            return None
        del self._works[(deployment.id, stage.name)]
        if work.fault is not None:
            raise StageFailed(work.fault)
        return f"{_package_in(folder).name} made"

    def _make_package(self, deployment: Deployment, work: _Work) -> None:
        folder = self._checkout(deployment)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        git = ["git", "-c", "protocol.ext.allow=never", "-C", str(folder)]
        for argv in (
            ["git", "init", "--quiet", str(folder)],
            [*git, "fetch", "--quiet", "--depth", "1", "--", deployment.repository, deployment.commit],
            [*git, "checkout", "--quiet", "--detach", "FETCH_HEAD"],
            ["bash", "-euo", "pipefail", "-c", self._plan.package],
        ):
            self._run(deployment, work, argv, cwd=folder)
        _package_in(folder)

    def _bake(self, deployment: Deployment, stage: Stage) -> str | None:
        version = f"{deployment.commit[:12]}-{deployment.id[:4]}"
        found = self._find_bake(deployment, version)
        self._begin(deployment, stage, None if found is None else found.id)
        key = (deployment.id, stage.name)
        work = self._works.get(key)
        if work is not None and work.thread.is_alive():
            return None
        if found is None or found.state in (BakeState.RUNNING, BakeState.INTERRUPTED):
            if work is not None and work.fault is not None and found is None:
                del self._works[key]
                raise StageFailed(work.fault)
            if found is not None and found.owner_beat is not None and not owner.is_gone(found.owner_process):
                return None  # a former controller's command goes on with it, or its lease is not over yet
            self._works.pop(key, None)
            words = ["--resume", found.id] if found is not None else ["--version", version]
            self._work(deployment, stage, lambda work: self._run_bake(deployment, work, words))
            return None
        self._works.pop(key, None)
        if found.state is BakeState.FAILED:
            raise StageFailed(f"bake {found.id}: {found.error or 'see its output'}")
        with self._ground.writing() as connection:
            deployments.note_image(connection, deployment.id, found.image_id)
        return f"image {version} is verified"

    def _run_bake(self, deployment: Deployment, work: _Work, words: Sequence[str]) -> None:
        folder = self._checkout(deployment)
        provider = pools.get(self._ground.store, deployment.pool).provider
        asked = ["images", "bake", *words, "--scripts", str(folder / "setup_scripts")]
        asked += ["--deb", str(_package_in(folder))]
        if "--resume" not in words:
            asked += ["--provider", provider, "--profile", self._plan.profile]
            asked += ["--from", self._plan.base] if self._plan.base else []
        self._run(deployment, work, [*self._plan.bake_argv, *asked], cwd=folder)

    def _find_bake(self, deployment: Deployment, version: str) -> Bake | None:
        provider = pools.get(self._ground.store, deployment.pool).provider
        found = bakes.list_bakes(self._ground.store)
        return next(
            (it for it in found if it.options.get("version") == version and it.provider == provider), None
        )

    def _roll_out(self, deployment: Deployment, stage: Stage) -> str | None:
        ground = self._ground
        if stage.state is StageState.WAITING:
            with ground.writing() as connection:
                if rollouts.read_open(connection, deployment.pool) is not None:
                    return None  # another is under way: this one comes after it
                rollout = rollouts.begin_in(
                    connection,
                    deployment.pool,
                    str(deployment.image_id),
                    kind=RolloutKind.ROLLOUT,
                    by=FLEET,
                    why=f"deployment {deployment.id[:8]} of {deployment.commit[:12]}",
                )
                deployments.begin_stage(connection, deployment.id, stage.name, output_id=rollout.id)
            return None
        rollout = rollouts.get(ground.store, str(stage.output_id))
        if not rollout.state.is_over:
            return None
        if rollout.state is not RolloutState.DONE:
            raise StageFailed(
                f"roll-out {rollout.id[:8]}: {rollout.state}: {rollout.reason or ''}".rstrip(": ")
            )
        return f"roll-out {rollout.id[:8]}: {rollout.reason}"

    # Commands.

    def _work(self, deployment: Deployment, stage: Stage, call: Callable[[_Work], None]) -> _Work:
        key = (deployment.id, stage.name)
        if key in self._works:
            return self._works[key]

        def run() -> None:
            try:
                call(work)
            except AgentError as error:
                work.fault = str(error)
            except Exception as error:  # noqa: BLE001 - the stage ends with it
                _log.exception("deployment.work_failed", deployment=deployment.id, stage=stage.name)
                work.fault = f"{type(error).__name__}: {error}"

        work = _Work(threading.Thread(target=run, name=f"deploy-{stage.name}", daemon=True))
        self._works[key] = work
        work.thread.start()
        return work

    def _run(self, deployment: Deployment, work: _Work, argv: Sequence[str], *, cwd: Path) -> None:
        """Run a command to its end; each of its lines is an event of the deployment. Raises: StageFailed."""
        process = subprocess.Popen(
            argv,
            cwd=cwd,
            env={**self._plan.environment, "GIT_TERMINAL_PROMPT": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        lines: list[str] = []
        reader = threading.Thread(target=self._read, args=(process, lines), daemon=True)
        reader.start()
        try:
            while process.poll() is None and not work.stopped.wait(_TELL_S):
                self._tell(deployment, lines)
        finally:
            _end(process, in_order=work.is_cancelled)
            reader.join(_END_S)
            self._tell(deployment, lines)
        if work.stopped.is_set():
            raise StageFailed("stopped")
        if process.returncode != 0:
            raise StageFailed(f"{Path(argv[0]).name} ended with exit code {process.returncode}")

    def _read(self, process: subprocess.Popen[bytes], lines: list[str]) -> None:
        redactor = Redactor(self._plan.secrets)
        stream = process.stdout
        while stream is not None and (line := stream.readline()):
            stream_of_line = redactor.stream()
            masked = stream_of_line.feed(line) + stream_of_line.finish()
            lines.append(masked.decode("utf-8", "replace").rstrip("\r\n")[:_LINE_CHARS])

    def _tell(self, deployment: Deployment, lines: list[str]) -> None:
        count = len(lines)
        if count:
            # Not the leader's own to write: output of a command that runs is true whoever leads.
            with contextlib.suppress(AgentError), self._ground.store.begin() as connection:
                for line in lines[:count]:
                    fleet_events.write(connection, "deployment", deployment.id, f"  {line}")
                del lines[:count]

    def _stop_others(self, standing: set[str]) -> None:
        """End what runs for deployments that somebody has cancelled."""
        for (deployment_id, name), work in list(self._works.items()):
            if deployment_id not in standing:
                work.is_cancelled = True
                work.stopped.set()
                del self._works[(deployment_id, name)]

    def close(self) -> None:
        """Let go of what runs: a package is made anew, a bake is resumed by whoever leads next."""
        for work in self._works.values():
            work.stopped.set()
        for work in self._works.values():
            work.thread.join(_END_S)

    def _checkout(self, deployment: Deployment) -> Path:
        return self._plan.folder / deployment.id


def _package_in(folder: Path) -> Path:
    found = sorted((folder / "dist").glob("*.deb"), key=lambda it: it.stat().st_mtime)
    if not found:
        raise StageFailed("the package command has put no .deb into dist/")
    return found[-1]


def _end(process: subprocess.Popen[bytes], *, in_order: bool) -> None:
    """End a command. In order, a bake removes what it made; killed, it is resumed by whoever leads next."""
    with contextlib.suppress(ProcessLookupError):
        if in_order and process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
