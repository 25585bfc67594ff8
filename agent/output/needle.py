"""The forms in which a secret may stand in output: as it is, encoded, quoted, wrapped, line by line.

Owns what is looked for, and what is too common to be masked. How it is found in a stream is `redact`'s.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator
from itertools import product
from typing import Final
from urllib.parse import quote_from_bytes

# Lines of a multi-line secret are also masked alone; shorter ones ("kind: X", "}") stand in every log.
LINE_BYTES: Final = 8
# Numbers with fewer digits are ports, sizes, process ids and dates in an ordinary log.
DIGITS: Final = 8

_COMMON: Final = frozenset(
    b"""true false null none undefined default password passwd secret secrets token username localhost
    127.0.0.1 0.0.0.0 example example.com admin administrator root user guest test testing
    localhost.localdomain production staging development develop master main trunk release latest snapshot
    enabled disabled unknown
    required optional public private internal ubuntu debian alpine docker github gitlab string object number
    boolean integer server client database python nodejs postgres postgresql mysql sqlite mongodb rabbitmq
    http:// https:// http://localhost https://localhost us-east-1 us-west-1 us-west-2 eu-west-1 eu-central-1
    """.split()
)
_ARMOUR: Final = re.compile(rb"-----(BEGIN|END) [A-Z0-9 ]+-----")
_BASH_QUOTED: Final = re.compile(r"([ !\"$&'()*,;<>?\[\\\]^`{|}])")
_BASH_ESCAPES: Final = {"\\": r"\\", "'": r"\'", "\n": r"\n", "\r": r"\r", "\t": r"\t"}
# What encoders leave as it is besides the unreserved characters of RFC 3986: a strict one nothing, then one
# for paths, encodeURIComponent, one for the user part of a URL, encodeURI.
_URL_SAFE: Final = ("", "/", "!'()*", "!$&'()*+,;=", ":/?#[]@!$&'()*+,;=")
# Columns at which `base64` and `openssl base64` break their lines, and `xxd -p`.
_BASE64_COLUMNS: Final = (76, 64)
_HEX_COLUMNS: Final = 60


def is_common(text: bytes) -> bool:
    """Return whether masking `text` would hide ordinary words, numbers or rulers ("======") of a log."""
    if text.isdigit():
        return len(text) < DIGITS
    if len(set(text)) == 1 and not text.isalnum() and text.isascii():
        return True
    return not text.strip() or text.lower() in _COMMON


def needles_of(secret: bytes, min_length: int) -> set[bytes]:
    """Return every form of a secret to look for, none shorter than `min_length` and none common."""
    unix = secret.replace(b"\r\n", b"\n")
    # A pty writes \r\n for \n; a secret with \r\n may be printed by a tool that writes \n.
    forms = {secret, unix, unix.replace(b"\n", b"\r\n")}
    for text in (secret, unix):
        forms.update(_url_forms(text))
        forms.update(form.encode("utf-8", "surrogateescape") for form in _quoted_forms(text))
        forms.update(_base64_forms(text))
        forms.update((text.hex().encode(), text.hex().upper().encode()))
        forms.update(_wrapped(text.hex().encode(), _HEX_COLUMNS))
    forms.update(_lines_of(unix, max(min_length, LINE_BYTES)))
    return {form for form in forms if len(form) >= min_length and not is_common(form)}


def _lines_of(text: bytes, min_length: int) -> Iterator[bytes]:
    for line in map(bytes.strip, text.split(b"\n")):
        # The armour of a key is the same for every key; a line without letters or digits is a ruler.
        if (
            len(line) >= min_length
            and not _ARMOUR.fullmatch(line)
            and re.search(rb"[0-9A-Za-z\x80-\xff]", line)
        ):
            yield line


def _url_forms(text: bytes) -> Iterator[bytes]:
    for safe in _URL_SAFE:
        upper = quote_from_bytes(text, safe)
        lower = re.sub(r"%[0-9A-F]{2}", lambda escape: escape[0].lower(), upper)
        for form in (upper, lower):
            yield form.encode()
            yield form.replace("%20", "+").encode()


def _quoted_forms(raw: bytes) -> Iterator[str]:
    """Yield the text as JSON, shells and HTML write it, without the quotes around it."""
    text = raw.decode("utf-8", "surrogateescape")
    for ascii_only in (True, False):
        plain = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        yield json.dumps(plain, ensure_ascii=ascii_only)[1:-1]  # JSON within JSON, as in structured logs
        for for_html, slash, upper in product((False, True), repeat=3):
            form = re.sub("[<>&]", lambda sign: f"\\u{ord(sign[0]):04x}", plain) if for_html else plain
            form = form.replace("/", r"\/") if slash else form
            yield re.sub(r"\\u[0-9a-f]{4}|\\.", _upper_hex, form) if upper else form
    yield text.replace("'", r"'\''")  # bash -x
    yield text.replace("'", "'\"'\"'")  # shlex.quote
    yield re.sub(r"([\\$`\"])", r"\\\1", text)  # within double quotes
    yield re.sub(r"^([#~])|(?<=[:=])(~)", r"\\\1\2", _BASH_QUOTED.sub(r"\\\1", text))  # printf %q
    yield "".join(_BASH_ESCAPES.get(character, character) for character in text)  # $'...'
    yield html.escape(text, quote=False)
    yield html.escape(text)
    yield html.escape(text).replace("&#x27;", "&#39;").replace("&quot;", "&#34;")


def _upper_hex(escape: re.Match[str]) -> str:
    return "\\u" + escape[0][2:].upper() if escape[0].startswith("\\u") else escape[0]


def _base64_forms(text: bytes) -> Iterator[bytes]:
    """Yield what is the same of the text's base64 whatever stands before it, and what stands after it.

    A character holds 6 bits. With `before` bytes in front of it, modulo 3, the text's bits begin at
    8 * before, so its first character of its own is the one at that, over 6, rounded up. After the text
    stands something unknown, nothing, or a line end (`echo "$SECRET" | base64`).
    """
    for before, after in product(range(3), (b"", b"\n")):
        encoded = base64.b64encode(bytes(before) + text + after)
        first = -(-8 * before // 6)
        for form in (encoded[first : 8 * (before + len(text)) // 6], encoded[first:].rstrip(b"=")):
            yield form
            yield form.replace(b"+", b"-").replace(b"/", b"_")
        if not before:
            for columns in _BASE64_COLUMNS:
                yield from _wrapped(encoded, columns)


def _wrapped(encoded: bytes, columns: int) -> Iterator[bytes]:
    """Yield encoded text as tools write it that break lines, whole and line by line."""
    if len(encoded) > columns:
        lines = [encoded[start : start + columns] for start in range(0, len(encoded), columns)]
        yield from lines
        yield b"\n".join(lines)
        yield b"\r\n".join(lines)
