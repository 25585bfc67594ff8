"""Each language compiles and runs a program, as the build user, without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.full
SUM = "5050"
# Language: file, its program, the command line.
PROGRAMS = {
    "python": ("sum.py", "print(sum(range(101)))", "python3 -m py_compile sum.py && python sum.py"),
    "nodejs": ("sum.js", "let s = 0; for (let i = 0; i < 101; i++) s += i; console.log(s)", "node sum.js"),
    "ruby": ("sum.rb", "puts (0..100).sum", "ruby -w sum.rb"),
    "go": (
        "sum.go",
        'package main\nimport "fmt"\nfunc main() { s := 0; for i := 0; i < 101; i++ { s += i }; fmt.Println(s) }\n',
        "go build -o sum sum.go && ./sum",
    ),
    "java": (
        "Sum.java",
        "class Sum { public static void main(String[] a) {"
        " System.out.println(java.util.stream.IntStream.rangeClosed(0, 100).sum()); } }",
        "javac Sum.java && java -cp . Sum",
    ),
    "c": (
        "sum.c",
        "#include <stdio.h>\nint main(void) { int s = 0; for (int i = 0; i < 101; i++) s += i; printf(\"%d\\n\", s); }\n",
        "gcc -Wall -Werror -O2 -o sum sum.c && ./sum",
    ),
    "c++": (
        "sum.cc",
        "#include <iostream>\n#include <numeric>\n#include <vector>\nint main() { std::vector<int> v(101);"
        " std::iota(v.begin(), v.end(), 0); std::cout << std::accumulate(v.begin(), v.end(), 0) << std::endl; }\n",
        "g++ -Wall -Werror -std=c++20 -o sum sum.cc && ./sum && clang++ -o sum2 sum.cc && ./sum2 >/dev/null",
    ),
    "php": ("sum.php", "<?php echo array_sum(range(0, 100)), PHP_EOL;", "php -l sum.php >/dev/null && php sum.php"),
}  # fmt: skip
MANAGERS = (
    "pip3 --version",
    "npm --version",
    "gem --version",
    "bundle --version",
    "mvn --version",
    "composer --version",
)


@pytest.mark.parametrize("language", PROGRAMS)
def test_language_compiles_and_runs_a_program(language: str, home: Path, as_user: Callable[..., str]) -> None:
    name, program, command = PROGRAMS[language]
    (home / name).write_text(program)
    printed = as_user("bash", "-euc", command, timeout=180).strip()
    assert printed == SUM, f"{language} does not work: {printed!r} instead of {SUM}; see 30-languages.sh"


def test_python_makes_a_virtual_environment_with_pip(home: Path, as_user: Callable[..., str]) -> None:
    as_user("python3", "-m", "venv", "env")
    assert "pip" in as_user(f"{home}/env/bin/pip", "--version")


@pytest.mark.parametrize("command", MANAGERS)
def test_package_manager_answers(command: str, as_user: Callable[..., str]) -> None:
    assert as_user(*command.split()), f"{command} says nothing; see 30-languages.sh"
