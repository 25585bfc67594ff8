"""What build definitions may say, how faults are told, and that no document does more than be refused."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent import clock
from agent.cli.schema import schema
from agent.errors import DefinitionError
from agent.model.definition import (
    Definition,
    DirectorySource,
    GitSource,
    PipelineClass,
    from_document,
    json_schema,
    parse,
    plan,
)

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs" / "build-definition.md").read_text(encoding="utf-8")
JOB = {"project": "shop", "source": {"git": "https://git.example.org/shop.git", "branch": "main"}}


VARIABLE = "a variable's name: letters, digits and `_`, not beginning with a digit"
RESERVED = "reserved: the agent sets `CI` and `BUILD_*`, so that a step can trust them"


def read(text: str) -> Definition:
    return parse(text, origin="t.yml")


def fault(text: str | bytes) -> str:
    with pytest.raises(DefinitionError) as caught:
        parse(text, origin="t.yml")
    return str(caught.value)


def with_steps(**more: Any) -> dict[str, Any]:
    return {"project": "p", "steps": ["make"], **more}


def document_fault(document: object) -> str:
    with pytest.raises(DefinitionError) as caught:
        from_document(document, origin="job 7")
    return str(caught.value)


# What is read


def test_short_form_is_one_pipeline_called_main() -> None:
    pipelines = plan(read("project: p\nsteps: [make, make test]\n"), branch=None)
    assert [(p.name, p.pipeline_class, [s.run for s in p.steps]) for p in pipelines] == [
        ("main", PipelineClass.BUILD, ["make", "make test"])
    ]


def test_document_of_a_definition_is_minimal_and_reads_back_the_same() -> None:
    definition = read((ROOT / "build.yml").read_text(encoding="utf-8"))
    document = definition.to_document()
    again = from_document(json.loads(json.dumps(document)), origin="job")
    assert again.to_document() == document
    assert again == definition
    assert read("project: p\nsteps:\n- run: make\n").to_document() == {"project": "p", "steps": ["make"]}
    assert read("project: p\ntimeout: 90s\nsteps: [a]").to_document()["timeout"] == 90


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("3.10", "3.10"),
        ("012", "012"),
        ("no", "no"),
        ("on", "on"),
        ("true", "true"),
        ("0x1F", "0x1F"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("1e3", "1e3"),
        ("'quoted'", "quoted"),
    ],
)
def test_variables_keep_what_stands_in_the_text(written: str, value: str) -> None:
    text = f"project: p\nsteps: [{{run: make, env: {{A: {written}}}}}]\ntags: {{t: {written}}}"
    definition = read(text)
    assert definition.steps[0].env == {"A": value}
    assert definition.tags == {"t": value}


def test_typed_variables_of_a_job_become_the_text_users_expect() -> None:
    env = {"A": True, "B": False, "C": 3, "D": 1.5, "E": ""}
    definition = from_document(with_steps(env=env), origin="job")
    assert definition.env == {"A": "true", "B": "false", "C": "3", "D": "1.5", "E": ""}


def test_keys_are_text_as_written() -> None:
    text = "project: p\npipelines: {3.10: {steps: [a]}, on: {steps: [b]}, env: {steps: [c]}}"
    assert list(read(text).pipelines) == ["3.10", "on", "env"]


def test_a_deploy_called_env_keeps_its_booleans() -> None:
    text = "project: p\ndeploy: {env: {branches: [main], retry_safe: true, steps: [a]}}"
    assert read(text).deploy["env"].retry_safe is True


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("90", 90),
        ("0.5", 0.5),
        ("90s", 90),
        ("10min", 600),
        ("1h30m", 5400),
        ("1h 30min", 5400),
        ("250ms", 0.25),
    ],
)
def test_durations_are_numbers_or_text(written: str, seconds: float) -> None:
    assert read(f"project: p\nsteps: [make]\ntimeout: {written}\n").timeout == seconds
    assert from_document(with_steps(timeout=written), origin="job").timeout == seconds


@pytest.mark.parametrize("written", ["0", "-1", "true", "10 years", "''", "31d", "1h30", "[]", "٣s", "1e300"])
def test_other_durations_are_refused(written: str) -> None:
    assert "t.yml:3:10: timeout: expected " in fault(f"project: p\nsteps: [make]\ntimeout: {written}\n")


def test_sources_are_git_or_a_directory() -> None:
    git = from_document(with_steps(source={"git": "git@host:a/b.git", "depth": 1}), origin="job").source
    directory = from_document(with_steps(source={"directory": "/srv/a"}), origin="job").source
    assert isinstance(git, GitSource)
    assert git.depth == 1
    assert isinstance(directory, DirectorySource)
    assert directory.directory == "/srv/a"


@pytest.mark.parametrize(
    "url",
    [
        "ext::sh -c touch% /tmp/x",
        "--upload-pack=touch",
        "https://user:secret@host/a",
        "https://token@host/a",
        "ssh://-oProxyCommand=x/a",
        "user@-host:a",
        "file://host/a",
        "relative/path",
        "https://host/a b",
        "/srv/../etc",
    ],
)
def test_addresses_that_run_commands_or_hold_secrets_are_refused(url: str) -> None:
    assert "job 7: source.git: " in document_fault(with_steps(source={"git": url}))


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "~/.ssh", "a\nb"])
def test_paths_stay_inside_the_workspace(path: str) -> None:
    document = with_steps(
        artifacts=[{"path": path}],
        caches=[{"key": f"{{{{ hash('{path}') }}}}", "paths": [path]}],
        definition_file=path,
    )
    text = document_fault(document)
    for place in ("artifacts[0].path", "caches[0].key", "caches[0].paths[0]", "definition_file"):
        assert f"job 7: {place}: " in text


def test_cache_keys_are_filled_in_without_running_code() -> None:
    keys = [{"key": "a-{{os}}-{{ branch }}-{{ hash('r*.txt') }}", "paths": ["x"]}]
    (cache,) = from_document(with_steps(caches=keys), origin="job").caches
    variables = {"os": "linux", "arch": "amd64", "branch": "{{ os }}"}
    assert cache.key_template.render(variables, lambda glob: f"<{glob}>") == "a-linux-{{ os }}-<r*.txt>"


@pytest.mark.parametrize(
    "key", ["{{ env.HOME }}", "{{ hash(x) }}", "{{ os", "os }}", "{{ hash('a') + 'b' }}", "{{}}"]
)
def test_cache_keys_know_four_names_only(key: str) -> None:
    assert "job 7: caches[0].key: " in document_fault(with_steps(caches=[{"key": key, "paths": ["x"]}]))


def test_skip_markers_are_found_anywhere_in_capitals_or_not() -> None:
    definition = read("project: p\nsteps: [make]")
    assert definition.should_skip("Fix typo\n\n[CI Skip]")
    assert not definition.should_skip("skip ci")
    assert not definition.should_skip(None)
    assert not read("project: p\nsteps: [make]\nskip: []").should_skip("[skip ci]")


# The plan


def test_steps_are_numbered_through_setup_pipelines_and_matching_deploys() -> None:
    text = """
    project: p
    env: {A: build, B: build, C: build}
    step_timeout: 60
    setup: [one, two]
    pipelines:
      x: {steps: [three], env: {B: pipeline, C: pipeline}, workdir: sub}
      y: {steps: [{run: four, timeout: 5, env: {C: step}, workdir: own, shell: python3 -c}]}
    deploy:
      no: {branches: [other], steps: [never]}
      live: {branches: ["release/*"], steps: [five, six], retry_safe: true}
      second: {branches: ["*"], environment: shared, steps: [seven]}
    """
    pipelines = plan(read(text), branch="release/1/2")
    steps = [step for pipeline in pipelines for step in pipeline.steps]
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6, 7]
    assert [step.run for step in steps] == ["one", "two", "three", "four", "five", "six", "seven"]
    assert [(p.name, p.pipeline_class, p.environment, p.retry_safe) for p in pipelines] == [
        ("setup", "setup", None, False),
        ("x", "build", None, False),
        ("y", "build", None, False),
        ("live", "deploy", "live", True),
        ("second", "deploy", "shared", False),
    ]
    three, four = steps[2], steps[3]
    assert (three.timeout_s, three.workdir, three.shell) == (60, "sub", None)
    assert three.env == {"A": "build", "B": "pipeline", "C": "pipeline"}
    assert (four.timeout_s, four.workdir, four.shell) == (5, "own", ("python3", "-c"))
    assert four.env == {"A": "build", "B": "build", "C": "step"}


def test_no_deploy_runs_without_a_known_branch() -> None:
    definition = read("project: p\nsteps: [a]\ndeploy: {d: {branches: ['*'], steps: [b]}}")
    assert [pipeline.name for pipeline in plan(definition, branch=None)] == ["main"]
    assert [pipeline.name for pipeline in plan(definition, branch="x")] == ["main", "d"]


def test_a_step_without_a_name_is_called_by_its_first_line() -> None:
    definition = from_document(with_steps(steps=["\n\n  make all \nmake rest", "x" * 200]), origin="job")
    names = [step.name for step in plan(definition, branch=None)[0].steps]
    assert names == ["make all", "x" * 97 + "..."]


# The repository's file


def test_repository_file_fills_in_what_the_job_leaves_open() -> None:
    job = from_document({**JOB, "env": {"A": "job"}, "timeout": 60, "secrets": ["TOKEN"]}, origin="job")
    assert job.needs_repository_file
    file = """
    project: another
    source: {directory: /etc}
    env: {A: file, B: file}
    timeout: 2h
    queue: other
    secrets: [TOKEN]
    skip: ["[no]"]
    pipelines: {t: {env: {A: pipeline}, steps: [{run: make, env: {A: step, C: step}}]}}
    """
    merged = job.merge_from_repository(file, "build.yml")
    assert not merged.needs_repository_file
    assert (merged.project, merged.source, merged.queue) == ("shop", job.source, None)
    assert (merged.timeout, merged.skip, merged.secrets) == (60, ("[no]",), ("TOKEN",))
    (pipeline,) = plan(merged, branch="main")
    assert pipeline.env == {"A": "job", "B": "file"}
    assert pipeline.steps[0].env == {"A": "job", "B": "file", "C": "step"}


def test_steps_of_the_job_replace_pipelines_of_the_file() -> None:
    job = from_document({**JOB, "steps": ["mine"]}, origin="job")
    merged = job.merge_from_repository("pipelines: {t: {steps: [theirs]}}\nsetup: [first]", "build.yml")
    assert [(p.name, p.steps[0].run) for p in plan(merged, branch=None)] == [
        ("setup", "first"),
        ("main", "mine"),
    ]


def test_repository_file_cannot_grant_itself_a_secret() -> None:
    job = from_document({**JOB, "secrets": ["A"]}, origin="job")
    with pytest.raises(DefinitionError) as caught:
        job.merge_from_repository("secrets: [A, DEPLOY_TOKEN]\nsteps: [make]", "build.yml")
    assert "build.yml:1:14: secrets[1]: the job does not grant `DEPLOY_TOKEN`" in str(caught.value)


def test_repository_file_cannot_turn_a_secret_into_a_variable() -> None:
    job = from_document({**JOB, "secrets": ["A"]}, origin="job")
    with pytest.raises(DefinitionError, match=r"env\.A: `A` is one of `secrets` already"):
        job.merge_from_repository("env: {A: shown}\nsteps: [make]", "build.yml")


def test_repository_file_with_nothing_to_run_is_refused() -> None:
    job = from_document(JOB, origin="job")
    with pytest.raises(DefinitionError, match=r"build\.yml:1:1: nothing to run"):
        job.merge_from_repository("source: {git: /srv/a}\n", "build.yml")


# How faults are told


def test_every_fault_is_told_at_once_in_the_order_of_the_text() -> None:
    text = """
pipelins: {}
env: {A-B: 1, CI: x, BUILD_ID: 1}
steps:
  - run: make
    tiemout: 3
  - 5
  - name: no command
""".lstrip()
    assert fault(text).splitlines() == [
        "t.yml:1:1: `project` is missing",
        "t.yml:1:1: pipelins: unknown key `pipelins`: did you mean `pipelines`?",
        f"t.yml:2:7: env.A-B: expected {VARIABLE}, not `A-B`",
        f"t.yml:2:15: env.CI: `CI` is {RESERVED}",
        f"t.yml:2:22: env.BUILD_ID: `BUILD_ID` is {RESERVED}",
        "t.yml:5:5: steps[0].tiemout: unknown key `tiemout`: did you mean `timeout`?",
        "t.yml:6:5: steps[1]: expected a mapping, not a number",
        "t.yml:7:5: steps[2]: `run` is missing",
    ]


def test_at_most_twenty_faults_are_told() -> None:
    lines = document_fault(with_steps(**{f"key{i}": 1 for i in range(300)})).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "job 7: and 280 more"


def test_json_faults_have_line_and_column() -> None:
    text = '{\n\t"project": "p",\n\t"steps": ["a", {"run": "b", "timeout": -1}]\n}'
    assert fault(text).startswith("t.yml:3:41: steps[1].timeout: expected a duration")


def test_faults_of_a_job_are_named_by_their_path() -> None:
    document = {"project": "p", "pipelines": {"test": {"steps": ["a", "b", {"run": "c", "timeout": 0}]}}}
    assert document_fault(document).startswith("job 7: pipelines.test.steps[2].timeout: expected a duration")


def test_a_later_version_is_refused_before_anything_else() -> None:
    text = "definition version 2 is newer than this agent reads (1)"
    assert document_fault({"version": 2, "unheard": "of"}) == f"job 7: version: {text}"
    assert fault("new: thing\nversion: 2\n") == f"t.yml:2:10: version: {text}"
    assert "version: expected a whole number" in document_fault(with_steps(version="1"))


def test_faults_never_carry_control_characters_of_the_document() -> None:
    text = document_fault({"project": "p\x1b[31m\nx", "\x9b\ud800" + "k" * 500: 1})
    assert all(line.isprintable() for line in text.splitlines())
    assert len(text) < 1000


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "project: a\nsteps: [b]\nproject: c\n",
            "t.yml:3:1: project: duplicate key `project` in line 3, first in line 1",
        ),
        ("project: a\nsteps:\n\t- b\n", "t.yml:3:1: a tab where YAML takes spaces only"),
        ("project: a\0b", "t.yml:1:11: a NUL byte"),
        ('project: "a\\0b"\nsteps: [x]', "t.yml:1:10: project: holds a NUL byte"),
        ('project: "\\uD800"\nsteps: [x]', "t.yml:1:10: project: holds half of a surrogate pair"),
        ("project: [a\n", "t.yml:2:1: not YAML: "),
        ("", "t.yml:1:1: the definition is empty"),
        ("text", "t.yml:1:1: expected a mapping with `project` and `steps`, not text"),
        ("a: b\n---\nc: d", "t.yml:2:1: a second document begins here"),
        ("? [a]\n: b", "t.yml:1:3: a list or a mapping stands as a key"),
        (
            "a: !!python/object/apply:os.system [id]",
            "t.yml:1:4: the tag `tag:yaml.org,2002:python/object/apply:os",
        ),
        ("a: &x [*x]", "t.yml:1:8: the alias `x` stands inside of what it names"),
        ("a: *x", "t.yml:1:4: the alias `x` has no anchor before it"),
        ("a: {<<: 5}", "t.yml:1:9: `<<` takes in mappings"),
        (b"project: \xff", "t.yml:1:10: not UTF-8"),
        (
            "project: p\nsteps: [a]\npipelines: {x: {steps: [b]}}",
            "t.yml:2:1: steps: `steps` is short for one",
        ),
        ("project: p", "t.yml:1:1: nothing to run"),
        (
            "project: p\nsteps: [a]\nenv: {T: 1}\nsecrets: [T]",
            "t.yml:3:7: env.T: `T` is one of `secrets` already",
        ),
        (
            "project: p\nsteps: [a]\nenv: {T: }",
            "t.yml:3:9: env.T: expected text, a number or true/false, not nothing",
        ),
        (
            "project: p\nsteps: [a]\nsource: {git: /a, directory: /b}",
            "t.yml:3:9: source: expected a mapping with either",
        ),
        ("project: ../../etc\nsteps: [a]", "t.yml:1:10: project: expected no empty, `.` or `..` part"),
    ],
)
def test_faults_name_place_and_expectation(text: str | bytes, told: str) -> None:
    assert fault(text).startswith(told)


def test_merge_keys_and_aliases_work() -> None:
    text = "project: p\npipelines: {a: &a {steps: [x], env: {M: 1}}, b: {<<: *a, env: {M: 2}}, c: *a}"
    pipelines = read(text).pipelines
    assert [(p.steps[0].run, p.env["M"]) for p in pipelines.values()] == [("x", "1"), ("x", "2"), ("x", "1")]


def test_json_is_read_as_json_even_where_yaml_differs() -> None:
    command = 'tab\t "q" \\ / \u2028 \x7f \U0001f600 {{ x }} # no comment'
    document = with_steps(steps=[command], env={"A": "1.10", "B": "yes"})
    for text in (
        json.dumps(document),
        json.dumps(document, indent="\t"),
        json.dumps(document, ensure_ascii=False),
    ):
        assert read(text).to_document() == document


# F29: nothing but a definition or a DefinitionError, within bounded time


BOMBS = {
    "lists": "[" * 200_000,
    "keys in keys": "{" * 200_000,
    "complex keys": "? " * 100_000,
    "blocks": "- " * 100_000,
    "json": '{"a":' * 40_000,
    "laughs": "a0: &a0 [x,x,x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]\n" for i in range(1, 40)),
    "long laughs": "a: &a " + "x" * 100_000 + "\nb: [" + "*a," * 10_000 + "]",
    "merges": "b: &b {" + ",".join(f"k{i}: 1" for i in range(5000)) + "}\nc:\n" + " - <<: *b\n" * 10_000,
    "values": "[" + "a," * 120_000,
    "unknown keys": "".join(f"k{i}: 1\n" for i in range(9_000)),
    "directive": "%YAML 1." + "1" * 5_000 + "\n---\na: b",
    "escape": '"\\UFFFFFFFF"',
    "number": "project: " + "9" * 100_000,
    "size": "a" * 300_000,
    "durations": json.dumps(with_steps(timeout="1" * 200_000)),
    "braces": json.dumps(with_steps(caches=[{"key": "{{" * 255, "paths": ["x"]}])),
    "branches": json.dumps({"project": "p", "deploy": {"d": {"branches": ["*a" * 200], "steps": [1]}}}),
}


@pytest.mark.parametrize("name", BOMBS)
def test_f29_bombs_are_refused_in_bounded_time(name: str) -> None:
    began = clock.mono()
    assert fault(BOMBS[name]).startswith("t.yml:")
    assert clock.mono() - began < 5


def test_f29_documents_that_are_no_json_are_refused() -> None:
    loop: list[Any] = []
    loop.extend([loop, loop])
    deep: Any = "x"
    for _ in range(5_000):
        deep = [deep]
    for value in (
        loop,
        deep,
        {1: "a"},
        b"bytes",
        {"a"},
        object(),
        float("nan"),
        10**5000,
        "a\0b",
        ["x"] * 30_000,
    ):
        assert document_fault(with_steps(env=value)).startswith("job 7: ")
        assert document_fault(value).startswith("job 7: ")


def test_branch_patterns_match_in_bounded_time() -> None:
    deploy = {"d": {"branches": ["*a" * 100 + "b"], "steps": ["x"]}}
    definition = from_document(with_steps(deploy=deploy), origin="job")
    began = clock.mono()
    assert len(plan(definition, branch="a" * 244)) == 1
    assert clock.mono() - began < 1


KEYS = st.sampled_from(
    [*Definition.model_fields, "run", "branches", "path", "paths", "key", "git", "name", "A", "x"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["1h", "main", "*", "[a", "[!]", "{{ os }}", "/a", "../b", "CI", "[z-a]", "-x", "[key]"]
    )
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=8), inner, max_size=5)
    ),
    max_leaves=25,
)
VALID: dict[str, Any] = {
    "version": 1,
    "project": "a/b",
    "source": {"git": "https://host/a", "commit": "a" * 40, "branch": "main", "depth": 1, "submodules": True},
    "env": {"A": 1, "B": "x"},
    "secrets": ["TOKEN"],
    "setup": ["a", {"run": "b", "timeout": "10min", "shell": ["sh", "-c"]}],
    "pipelines": {"t": {"steps": [{"run": "c", "env": {"C": True}, "pty": True}], "workdir": "x"}},
    "deploy": {"d": {"branches": ["main", "v*"], "steps": ["e"], "environment": "live", "retry_safe": True}},
    "artifacts": [{"path": "dist/**", "name": "n"}],
    "caches": [{"key": "{{ hash('x') }}", "paths": ["y"], "restore_keys": ["{{ os }}"]}],
    "timeout": 3,
    "skip": ["[no]"],
    "max_attempts": 2,
    "tags": {"python": 3},
    "queue": "q",
}


def holders(document: Any) -> list[tuple[Any, Any]]:
    """List every place in a document as (its holder, key or index)."""
    found: list[tuple[Any, Any]] = []
    entries = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in list(entries):
        found.append((document, key))
        if isinstance(value, dict | list):
            found.extend(holders(value))
    return found


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    document = json.loads(json.dumps(VALID))
    for _ in range(draw(st.integers(1, 3))):
        holder, key = draw(st.sampled_from(holders(document)))
        if draw(st.booleans()):
            holder[key] = draw(DOCUMENTS)
        elif isinstance(holder, dict):
            holder[draw(KEYS | st.text(max_size=5))] = holder.pop(key)
        if not document:
            break
    return document


def judge(document: object, reading: Any) -> None:
    """Hold the reader to its promise, and a definition it returns to its own document."""
    try:
        definition = reading(document)
    except DefinitionError as error:
        told = str(error)
    else:
        hold_to_its_document(definition)
        return
    assert told.startswith("o")


def hold_to_its_document(definition: object) -> None:
    assert isinstance(definition, Definition)
    assert from_document(definition.to_document(), origin="o").to_document() == definition.to_document()
    steps = [step.step for pipeline in plan(definition, branch="main") for step in pipeline.steps]
    assert all(after == before + 1 for before, after in pairwise([0, *steps]))


MANY = settings(max_examples=1500, deadline=2000, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.slow
@MANY
@given(DOCUMENTS | mutated())
@example(VALID)
def test_f29_generated_documents_are_read_or_refused(document: object) -> None:
    judge(document, lambda value: from_document(value, origin="o"))


@pytest.mark.slow
@MANY
@given((DOCUMENTS | mutated()).map(lambda document: json.dumps(document, ensure_ascii=False)))
def test_f29_generated_json_is_read_or_refused(text: str) -> None:
    judge(text, lambda value: parse(value, origin="o"))


@pytest.mark.slow
@MANY
@given(
    st.text(alphabet="{}[]<>:-?&*!|%@`'\"\\, \t\nabux01#~=.\ud800\u2028", max_size=60)
    | st.binary(max_size=60)
    | st.tuples(st.text(max_size=6), st.integers(0, 400)).map(
        lambda cut: (t := yaml.safe_dump(VALID))[: cut[1]] + cut[0] + t[cut[1] :]
    )
)
def test_f29_generated_text_is_read_or_refused(text: str | bytes) -> None:
    judge(text, lambda value: parse(value, origin="o"))


# The repository's own file, the schema, the documentation


def test_own_definition_is_valid_and_deploys_a_wheel_on_any_branch() -> None:
    definition = read((ROOT / "build.yml").read_text(encoding="utf-8"))
    pipelines = plan(definition, branch="feature")
    assert [(p.name, p.pipeline_class) for p in pipelines] == [
        ("setup", "setup"),
        ("lint", "build"),
        ("unit", "build"),
        ("wheel", "deploy"),
    ]
    assert pipelines[-1].environment == "demo"
    assert pipelines[-1].env["DEPLOY_DIR"] == "dist"


def schema_keys() -> set[str]:
    parts = [json_schema(), *json_schema()["$defs"].values()]
    return {key for part in parts for key in part.get("properties", {})}


def test_every_key_of_the_schema_is_documented_and_described() -> None:
    rows = {key for row in re.findall(r"^\| (`[^|]*`) \|", DOCS, re.M) for key in re.findall(r"`(\w+)`", row)}
    assert schema_keys() == rows
    parts = [json_schema(), *json_schema()["$defs"].values()]
    bare = [
        key
        for part in parts
        for key, value in part.get("properties", {}).items()
        if "description" not in value
    ]
    assert bare == []


@pytest.mark.parametrize("text", re.findall(r"```(?:yaml|json)\n(.*?)```", DOCS, re.S))
def test_every_example_of_the_documentation_is_valid(text: str) -> None:
    assert read(text).project


def test_schema_is_json_and_refuses_unknown_keys() -> None:
    written = json.loads(json.dumps(json_schema()))
    parts = [written, *written["$defs"].values()]
    assert all(part["additionalProperties"] is False for part in parts if part.get("type") == "object")
    env = written["properties"]["env"]
    assert list(env["patternProperties"]) == ["^(?:[A-Za-z_][A-Za-z0-9_]*)$"]
    assert env["additionalProperties"] is False


def test_schema_command_prints_the_schema() -> None:
    result = CliRunner().invoke(schema, [])
    assert result.exit_code == 0
    assert json.loads(result.output) == json_schema()


def test_schema_command_checks_a_file(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yml", tmp_path / "bad.yml"
    good.write_text("pipelines: {t: {steps: [make, make test]}}\n")
    bad.write_text("pipelins: {}\n")
    result = CliRunner().invoke(schema, ["--check", str(good)])
    expected = f"{good}: valid: 1 pipeline, 0 deploys, 2 steps; it names no project, so the job has to\n"
    assert (result.exit_code, result.output) == (0, expected)
    result = CliRunner().invoke(schema, ["--check", str(bad)])
    assert result.exit_code == DefinitionError.exit_code
    assert f"{bad}:1:1: pipelins: unknown key `pipelins`: did you mean `pipelines`?" in result.output
