"""Parts of libraries that an agent never touches are not loaded, and are as they were for whoever touches them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from agent.daemon import lean

_IDLE = """
import json, sys
from agent.daemon import lean
lean.install()
with lean.without_collector():
    import agent.cli.run, agent.daemon.agent, agent.store.postgres
    import sqlalchemy.dialects.postgresql.psycopg
is_loaded = lambda name: getattr(sys.modules.get(name), "__file__", None) is not None
"""
# Six threads at once ask for what the module has; none may see a part of it.
_TOUCH = """
import importlib, threading
name = sys.argv[1]
module = sys.modules[name]
gate, found = threading.Barrier(6), []
def touch():
    gate.wait(10)
    found.append(len(dir(module)))
threads = [threading.Thread(target=touch) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
real = importlib.import_module(name)
print(json.dumps({
    "is_loaded": is_loaded(name),
    "found": found,
    "names": len(dir(real)),
    "missing": [key for key in dir(real) if not key.startswith("__") and getattr(module, key) is not getattr(real, key)],
    "inner": [key for key in sys.modules if key.rpartition(".")[0] == name and not hasattr(real, key.rpartition(".")[2])],
}))
"""


def _run(script: str, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_idle_agent_has_loaded_none_of_them() -> None:
    """One that is loaded has come into use, perhaps by an update of its library: take it out of the list."""
    loaded = _run(f"{_IDLE}print(json.dumps([name for name in lean.UNUSED if is_loaded(name)]))")
    assert loaded == []


@pytest.mark.parametrize("name", lean.UNUSED)
def test_each_is_whole_for_every_thread_that_touches_it(name: str) -> None:
    found = _run(f"{_IDLE}assert not is_loaded({name!r})\n{_TOUCH}", name)
    assert found["is_loaded"]
    assert found["found"] == [found["names"]] * 6
    assert found["missing"] == []
    assert found["inner"] == []


def test_module_that_is_not_there_stays_missing() -> None:
    script = (
        "import json\nfrom agent.daemon import lean\nlean.install(['no_such_module'])\n"
        "try:\n import no_such_module\n"
        "except ModuleNotFoundError as error:\n print(json.dumps(error.name))"
    )
    assert _run(script) == "no_such_module"


def test_collector_runs_again_after_the_imports() -> None:
    script = "import gc, json\nfrom agent.daemon import lean\nwith lean.without_collector():\n inside = gc.isenabled()\n"
    assert _run(f"{script}print(json.dumps([inside, gc.isenabled(), gc.get_freeze_count() > 0]))") == [
        False,
        True,
        True,
    ]
