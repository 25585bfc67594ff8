"""Deploys: only on their branch, only after all else has passed, one at a time, and never re-run by the system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.errors import StateConflict
from agent.model.outcome import Outcome
from agent.store import builds, steps
from tests.acceptance.farm import Farm
from tests.acceptance.repository import make_repository
from tests.services import wait_until


def document_of(repository: Path, **parts: Any) -> dict[str, Any]:
    return {"source": {"directory": str(repository)}, "steps": ["true"], **parts}


def pipelines_run(farm: Farm, build_id: str) -> list[str]:
    listed = steps.list_steps(farm.store, build_id, 1)
    return [item.pipeline for item in listed if item.pipeline_class == "deploy"]


@pytest.mark.parametrize(
    ("branch", "expected"),
    [
        ("main", ["everywhere", "production"]),
        ("release/1.2", ["everywhere", "staging"]),
        ("topic", ["everywhere"]),
    ],
)
def test_deploys_run_on_the_branches_they_name_in_the_order_of_the_definition(
    farm: Farm, tmp_path: Path, branch: str, expected: list[str]
) -> None:
    farm.agent(slots=1, source_roots=tmp_path)
    repository = make_repository(tmp_path / "repository", {"a": "b"}, branch=branch)
    show = "echo $BUILD_ENVIRONMENT on $BUILD_BRANCH"
    deploy = {
        "everywhere": {"branches": ["*"], "steps": [show]},
        "staging": {"branches": ["release/*"], "steps": [show]},
        "production": {"branches": ["main", "master"], "environment": "prod", "steps": [show]},
    }
    build = farm.wait_ended(farm.submit(document_of(repository, deploy=deploy)))
    assert build.outcome is Outcome.PASSED
    assert pipelines_run(farm, build.id) == expected
    words = {"production": "prod"}
    told = "".join(f"{words.get(name, name)} on {branch}\n" for name in expected)
    assert farm.text(build.id).endswith(told)


def test_deploy_does_not_run_after_a_failure_nor_without_a_branch(sqlite_farm: Farm, tmp_path: Path) -> None:
    farm = sqlite_farm
    farm.agent(slots=1, source_roots=tmp_path)
    repository = make_repository(tmp_path / "repository", {"a": "b"})
    deploy = {
        "first": {"branches": ["*"], "steps": ["exit 3", {"run": "echo rolled back", "always": True}]},
        "second": {"branches": ["*"], "steps": ["echo never"]},
    }
    failed = farm.wait_ended(farm.submit(document_of(repository, steps=["false"], deploy=deploy)))
    assert (failed.outcome, pipelines_run(farm, failed.id)) == (Outcome.FAILED, [])
    half = farm.wait_ended(farm.submit(document_of(repository, deploy=deploy)))
    assert (half.outcome, pipelines_run(farm, half.id)) == (Outcome.FAILED, ["first", "first"])
    assert farm.text(half.id).endswith("rolled back\n")
    without = farm.wait_ended(farm.submit({"steps": ["true"], "deploy": deploy}))
    assert (without.outcome, pipelines_run(farm, without.id)) == (Outcome.PASSED, [])


@pytest.mark.slow
def test_deploys_to_one_environment_never_overlap_on_two_servers(farm: Farm, tmp_path: Path) -> None:
    farm.agent(slots=2, source_roots=tmp_path)
    farm.agent(slots=2, source_roots=tmp_path)
    repository = make_repository(tmp_path / "repository", {"a": "b"})
    lock, log = tmp_path / "held", tmp_path / "log"
    # mkdir is atomic: a second deploy beside the first would fail by it.
    command = f"mkdir {lock}; sleep 0.3; echo $BUILD_SERVER >> {log}; rmdir {lock}"
    deploy = {"production": {"branches": ["main"], "steps": [command]}}
    ids = [farm.submit(document_of(repository, deploy=deploy)) for _ in range(6)]
    assert {farm.wait_ended(build_id).outcome for build_id in ids} == {Outcome.PASSED}
    servers = log.read_text().split()
    assert len(servers) == 6
    assert set(servers) == {"server-1", "server-2"}


def test_deploys_of_other_projects_and_environments_do_not_wait(sqlite_farm: Farm, tmp_path: Path) -> None:
    farm = sqlite_farm
    farm.agent(slots=3, source_roots=tmp_path)
    repository = make_repository(tmp_path / "repository", {"a": "b"})

    def submit(project: str, environment: str) -> str:
        # Each waits until all three are there.
        meet = f"touch {tmp_path}/{project}-{environment}.here; "
        meet += f"until [ $(ls {tmp_path}/*.here | wc -l) = 3 ]; do sleep 0.05; done"
        deploy = {"it": {"branches": ["*"], "environment": environment, "steps": [meet]}}
        return farm.submit(document_of(repository, project=project, deploy=deploy, timeout=20))

    ids = [submit("shop", "production"), submit("shop", "staging"), submit("blog", "production")]
    assert [farm.wait_ended(build_id).outcome for build_id in ids] == [Outcome.PASSED] * 3


@pytest.mark.slow
@pytest.mark.parametrize("retry_safe", [False, True])
def test_begun_deploy_on_a_lost_server_is_run_again_only_if_it_says_so(
    sqlite_farm: Farm, tmp_path: Path, *, retry_safe: bool
) -> None:
    farm = sqlite_farm
    first = farm.agent(slots=1, source_roots=tmp_path)
    repository = make_repository(tmp_path / "repository", {"a": "b"})
    command = '[ "$BUILD_ATTEMPT" -gt 1 ] || { echo up; sleep 600; }'
    deploy = {"production": {"branches": ["*"], "steps": [command], "retry_safe": retry_safe}}
    build_id = farm.submit(document_of(repository, deploy=deploy))
    farm.wait_running(build_id, printed="up")
    first.kill()
    farm.agent(slots=1, source_roots=tmp_path)
    build = farm.wait_ended(build_id)
    if retry_safe:
        assert build.outcome is Outcome.PASSED
    else:
        assert build.outcome is Outcome.LOST
        assert farm.attempts(build_id) == [(1, Outcome.LOST)]
        # By a person, it is: and the lock of the lost attempt does not stand in the way.
        queued = builds.retry(farm.store, build_id, by="ann", max_attempts=1)
        farm.carrier.publish(build_id, queued.queue)
        wait_until(lambda: farm.build(build_id).outcome is Outcome.PASSED, 30)
    assert farm.attempts(build_id) == [(1, Outcome.LOST), (2, Outcome.PASSED)]


def test_passed_build_is_run_again_by_force_alone(sqlite_farm: Farm) -> None:
    farm = sqlite_farm
    farm.agent(slots=1)
    build_id = farm.submit("true")
    farm.wait_ended(build_id)
    with pytest.raises(StateConflict, match="passed"):
        builds.retry(farm.store, build_id, by="ann", max_attempts=1)
    queued = builds.retry(farm.store, build_id, by="ann", max_attempts=1, force=True)
    farm.carrier.publish(build_id, queued.queue)
    wait_until(lambda: farm.attempts(build_id) == [(1, Outcome.PASSED), (2, Outcome.PASSED)], 20)
    assert farm.wait_ended(build_id).outcome is Outcome.PASSED
