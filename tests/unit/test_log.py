"""Log records: forms, fields, and that no value forges a line."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import config, log
from agent.errors import SettingsError

ROOT = Path(__file__).parents[2]
NASTY = "x\nbuild.passed forged=1\r\x1b[2J\u2028\u202e"


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    names = ("", "agent", "rq", "sqlalchemy", "redis")
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    for handler in [each for each in logging.getLogger().handlers if each.get_name() == "agent"]:
        logging.getLogger().removeHandler(handler)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def record(
    message: str = "", *args: object, level: int = logging.INFO, **fields: object
) -> logging.LogRecord:
    made = logging.LogRecord("agent.x", level, __file__, 1, message, args, None)
    made.event, made.fields, made.created = "build.started", fields, 1_700_000_000.1239
    return made


def fail(text: str) -> None:
    raise ValueError(text)


class TestText:
    def test_a_line_is_time_event_message_and_fields(self) -> None:
        line = log.TextFormatter().format(record("on %s", "b7", build_id="42", attempt=1))
        assert line == "22:13:20.123Z build.started on b7 build_id=42 attempt=1"

    def test_the_level_is_said_unless_it_is_info(self) -> None:
        line = log.TextFormatter(has_time=False).format(record("late", level=logging.WARNING))
        assert line == "build.started WARNING: late"

    def test_a_value_with_spaces_can_not_pass_for_a_field(self) -> None:
        line = log.TextFormatter(has_time=False).format(record(why='full attempt=2 "quoted"'))
        assert line == r'build.started why="full attempt=2 \"quoted\""'

    @given(st.text(), st.text(min_size=1), st.text())
    def test_whatever_the_values_a_record_is_one_line(self, message: str, name: str, value: str) -> None:
        made = record("%s", message)
        made.fields = {name: value}
        line = log.TextFormatter().format(made)
        assert len(line.splitlines()) == 1
        assert "\x1b" not in line
        assert line.encode()

    def test_line_ends_escapes_and_reordering_are_written_out(self) -> None:
        line = log.TextFormatter(has_time=False).format(record("%s", NASTY, why=NASTY))
        assert line.startswith(r"build.started x\nbuild.passed forged=1\r\x1b[2J\u2028\u202e why=")
        assert len(line.splitlines()) == 1

    def test_a_traceback_is_set_off_and_its_text_forges_no_line(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        log.setup("text", "info")
        try:
            fail(NASTY)
        except ValueError:
            log.get("agent.x").exception("step.broke", "in %s", "sh", step=3)
        first, *rest = capsys.readouterr().err.splitlines()
        assert first.endswith("step.broke ERROR: in sh step=3")
        assert len(rest) > 2
        assert all(line.startswith("    | ") for line in rest)


class TestJson:
    def test_fields_stand_beside_the_record_s_own(self) -> None:
        made = json.loads(log.JsonFormatter().format(record("on %s", "b7", build_id="42", attempt=1)))
        assert made["at"] == "2023-11-14T22:13:20.123+00:00"
        assert (made["level"], made["event"], made["message"]) == ("info", "build.started", "on b7")
        assert (made["build_id"], made["attempt"], made["logger"]) == ("42", 1, "agent.x")

    def test_a_field_does_not_replace_one_of_the_record_s_own(self) -> None:
        made = json.loads(log.JsonFormatter().format(_named()))
        assert (made["level"], made["event"]) == ("info", "build.started")
        assert (made["field_level"], made["field_event"]) == ("fake", "fake")

    @given(st.text(), st.recursive(st.floats() | st.text() | st.none() | st.binary(), st.lists))
    def test_whatever_the_values_a_record_is_one_line_of_strict_json(self, message: str, value: Any) -> None:
        made = record("%s", message)
        made.fields = {"value": value}
        line = log.JsonFormatter().format(made)
        assert len(line.splitlines()) == 1
        assert json.loads(line, parse_constant=pytest.fail)["message"] == message

    def test_an_exception_is_a_field(self, capsys: pytest.CaptureFixture[str]) -> None:
        log.setup("json", "info")
        try:
            fail(NASTY)
        except ValueError:
            log.get("agent.x").exception("step.broke", step=3)
        (line,) = capsys.readouterr().err.splitlines()
        assert "ValueError: x\nbuild.passed" in json.loads(line)["exception"]


def _named() -> logging.LogRecord:
    made = record()
    made.fields = {"level": "fake", "event": "fake"}
    return made


class TestLogger:
    def test_a_record_carries_event_fields_and_the_place_it_comes_from(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        log.setup("text", "info")
        log.get("agent.x").bind(server_id="s1", slot=1).info("build.started", "on %s", "b7", slot=2)
        (made,) = caplog.records
        assert made.__dict__["event"] == "build.started"
        assert made.__dict__["fields"] == {"server_id": "s1", "slot": 2}
        assert (made.name, made.filename) == ("agent.x", "test_log.py")
        assert made.funcName == "test_a_record_carries_event_fields_and_the_place_it_comes_from"

    def test_fields_may_be_named_like_the_parameters(self, caplog: pytest.LogCaptureFixture) -> None:
        log.setup("text", "info")
        log.get("agent.x").info("build.started", event=1, message=2, args=3, name=4, self=5)
        assert caplog.records[0].__dict__["fields"] == {
            "event": 1,
            "message": 2,
            "args": 3,
            "name": 4,
            "self": 5,
        }

    def test_nothing_is_formatted_below_the_level(self, capsys: pytest.CaptureFixture[str]) -> None:
        class Loud:
            def __str__(self) -> str:
                raise AssertionError("was formatted")

        log.setup("text", "info")
        log.get("agent.x").debug("step.seen", "%s", Loud(), what=Loud())
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize("level", log.LEVELS)
    def test_levels_below_the_one_that_is_set_are_left_out(
        self, level: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        log.setup("text", level)
        logger = log.get("agent.x")
        for each in log.LEVELS:
            getattr(logger, each)(f"at.{each}")
        written = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
        assert written == [f"at.{each}" for each in log.LEVELS[log.LEVELS.index(level) :]]

    def test_a_name_outside_the_package_is_put_under_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        log.setup("text", "info")
        log.get("plugin").info("plugin.ready")
        assert "plugin.ready" in capsys.readouterr().err

    def test_a_value_that_can_not_be_written_ends_nothing(self, capsys: pytest.CaptureFixture[str]) -> None:
        log.setup("text", "info")
        (handler,) = [each for each in logging.getLogger().handlers if each.get_name() == "agent"]
        handler.handle(record("%d", "no number"))
        log.get("agent.x").info("build.passed")
        assert "build.passed" in capsys.readouterr().err


class TestSetup:
    @pytest.mark.parametrize("name", ["rq.worker", "sqlalchemy.engine", "redis", "urllib3"])
    def test_libraries_are_heard_from_warning_up(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        log.setup("text", "debug")
        logging.getLogger(name).info("chatter")
        logging.getLogger(name).warning("trouble %s", 1)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(f"{name} WARNING: trouble 1")

    def test_a_second_call_replaces_the_first(self, capsys: pytest.CaptureFixture[str]) -> None:
        log.setup("text", "info")
        log.setup("json", "info")
        log.get("agent.x").info("build.started")
        (line,) = capsys.readouterr().err.splitlines()
        assert json.loads(line)["event"] == "build.started"

    @pytest.mark.parametrize(("log_format", "level"), [("xml", "info"), ("text", "loud")])
    def test_an_unknown_word_is_refused(self, log_format: str, level: str) -> None:
        with pytest.raises(SettingsError, match="log_format is one of auto"):
            log.setup(log_format, level)

    def test_the_words_are_those_of_the_settings(self) -> None:
        assert config.TABLE["log_format"].metadata["choices"] == log.FORMATS
        assert config.TABLE["log_level"].metadata["choices"] == log.LEVELS

    def test_importing_and_writing_a_line_loads_nothing_heavy(self) -> None:
        code = (
            "import sys; from agent import config, log;"
            "log.setup('text', 'info'); log.get('x').info('a.b', 'c');"
            "heavy = {'systemd.journal', 'tomllib', 'difflib', 'json', 'sqlalchemy', 'rq'};"
            "print(sorted(heavy & set(sys.modules)))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout == "[]\n"
        assert done.stderr.endswith("Z a.b c\n")


class TestJournal:
    def test_without_the_library_journal_is_refused_with_what_to_do(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "systemd.journal", None)
        with pytest.raises(SettingsError, match=r"build-agent\[systemd\]"):
            log.setup("journal", "info")

    def test_without_the_library_auto_is_text(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "systemd.journal", None)
        log.setup("auto", "info")
        log.get("agent.x").info("build.started")
        assert "build.started" in capsys.readouterr().err

    def test_a_journal_s_name_inherited_by_another_stderr_is_not_believed(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("JOURNAL_STREAM", "9:12345")
        log.setup("auto", "info")
        log.get("agent.x").info("build.started")
        assert "build.started" in capsys.readouterr().err

    def test_auto_is_the_journal_when_stderr_leads_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("systemd.journal", reason="needs systemd-python")
        stderr = os.fstat(2)
        monkeypatch.setenv("JOURNAL_STREAM", f"{stderr.st_dev}:{stderr.st_ino}")
        log.setup("auto", "info")
        (handler,) = [each for each in logging.getLogger().handlers if each.get_name() == "agent"]
        assert type(handler).__name__ == "JournalHandler"

    def test_the_journal_gets_event_and_fields_and_nothing_else_of_the_record(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        journal = pytest.importorskip("systemd.journal", reason="needs systemd-python")
        sent: list[dict[str, object]] = []
        monkeypatch.setattr(journal, "send", lambda text, **fields: sent.append({"MESSAGE": text, **fields}))
        log.setup("journal", "info")
        try:
            fail("broken")
        except ValueError:
            log.get("agent.x").exception("step.broke", "in %s", "sh", build_id="42", priority=9, né="a\nb")
        assert len(caplog.records) == 1
        (fields,) = sent
        message = str(fields["MESSAGE"])
        assert message.startswith(
            'step.broke ERROR: in sh build_id=42 priority=9 né="a\\nb"\n    | Traceback'
        )
        assert (fields["EVENT"], fields["BUILD_ID"], fields["PRIORITY"]) == ("step.broke", "42", "3")
        assert (fields["FIELD_PRIORITY"], fields["N_"]) == ("9", r"a\nb")
        assert (fields["SYSLOG_IDENTIFIER"], fields["CODE_FUNC"]) == (
            "build-agent",
            "test_the_journal_gets_event_and_fields_and_nothing_else_of_the_record",
        )
        allowed = {"LOGGER", "THREAD_NAME", "PROCESS_NAME", "CODE_FILE", "CODE_LINE"}
        known = {
            "MESSAGE",
            "EVENT",
            "BUILD_ID",
            "PRIORITY",
            "FIELD_PRIORITY",
            "N_",
            "SYSLOG_IDENTIFIER",
            "CODE_FUNC",
        }
        assert set(fields) <= allowed | known
