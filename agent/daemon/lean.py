"""Parts of libraries that the libraries load by themselves and an agent never uses: loaded if touched, else not.

Each is a module like any other: whoever asks it for a name gets it loaded first, so a library that begins to use one of
them works as before and merely costs what it did. Knows nothing of what is inside them.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.machinery
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType
from typing import Any

# 2 MB together: redis loads its asyncio side, SQLAlchemy the code for every driver that PostgreSQL has.
UNUSED = (
    "redis.asyncio",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlalchemy.dialects.postgresql.pg8000",
    "sqlalchemy.dialects.postgresql.psycopg2",
    "sqlalchemy.dialects.postgresql.psycopg2cffi",
)


def install(names: Iterable[str] = UNUSED) -> None:
    """Load `names` when they are touched; what is loaded already stays. Call it before the libraries are imported."""
    sys.meta_path.insert(0, _Finder(names))


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Import with no look for garbage: there is none, and looking through all that was made takes 60 ms.

    What is there at the end stays for good and is left out of later collections.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class _Finder(MetaPathFinder):
    def __init__(self, names: Iterable[str]) -> None:
        self._names = set(names)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return a stand-in for one of the names, once; nothing where there is no such module."""
        if name not in self._names:
            return None
        self._names.discard(name)
        found = importlib.machinery.PathFinder.find_spec(name, path, target)
        if found is None:
            return None
        spec = importlib.machinery.ModuleSpec(name, _StandIn.Made(), origin=found.origin)
        # Of a package, so that its modules can be imported without it, as redis does.
        spec.submodule_search_locations = found.submodule_search_locations
        return spec


class _StandIn(ModuleType):
    """In a module's place until it is touched.

    The real one is imported by Python's own import, whose locks let one thread do it while the others wait;
    importlib.util.LazyLoader shows a second thread a module that is not complete (CPython issue 114781).
    """

    class Made(Loader):
        """Makes the stand-in, and loads nothing."""

        def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
            """Return the stand-in."""
            return _StandIn(spec.name)

        def exec_module(self, module: ModuleType) -> None:
            """Do nothing yet."""

    def __getattr__(self, name: str) -> Any:
        # Python itself looks for these on every module it imports.
        if name.startswith("__") and name not in ("__all__", "__version__"):
            raise AttributeError(name)
        return getattr(_load(self), name)

    def __dir__(self) -> list[str]:
        return dir(_load(self))


_swap = threading.Lock()


def _load(stand_in: ModuleType) -> ModuleType:
    """Return the real module, imported in place of its stand-in."""
    name = stand_in.__name__
    with _swap:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
    real = importlib.import_module(name)
    for key, value in list(vars(stand_in).items()):
        # Modules of the package that were imported before it.
        if isinstance(value, ModuleType) and not hasattr(real, key):
            setattr(real, key, value)
    return real
