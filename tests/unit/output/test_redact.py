"""Secrets in a stream of bytes: found in every form, at every split, and nothing else is touched (F23)."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import shlex
import subprocess
import threading
import tracemalloc
from collections.abc import Callable
from itertools import pairwise, product
from urllib.parse import quote, quote_plus, urlencode

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent.output import redact
from agent.output.redact import MASKS, PIECE_BYTES, Redactor

MASK = MASKS[0]
KEY = (
    "-----BEGIN OPENSSH PRIVATE KEY-----\n"
    + base64.encodebytes(bytes((byte * 89 + 7) % 251 for byte in range(700))).decode()
    + "-----END OPENSSH PRIVATE KEY-----\n"
)
SECRETS = [
    "hunter2-hunter2",
    "correct horse battery staple",
    "p@ss/w+rd?&=#%\"\\'$`!<x>|~",
    "grüße-an-alle-日本",
    "line one\nand line two\nline three",
    "windows line\r\nand another one",
    KEY,
]


def run(redactor: Redactor, *pieces: bytes) -> bytes:
    stream = redactor.stream()
    return b"".join([*map(stream.feed, pieces), stream.finish()])


def expected(redactor: Redactor, data: bytes) -> bytes:
    """What the output has to be, found the slow way: byte by byte, from the needles alone."""
    masked = bytearray(len(data))
    for needle in redactor._needles:
        start = data.find(needle)
        while start >= 0:
            masked[start : start + len(needle)] = b"\1" * len(needle)
            start = data.find(needle, start + 1)
    mask = redactor._current_matcher().mask
    out, in_mask = bytearray(), False
    for byte, hidden in zip(data, masked, strict=True):
        if not hidden or byte == 0x0A:
            out.append(byte)
            in_mask = False
        elif not in_mask:
            out += mask
            in_mask = True
    return bytes(out)


# -- forms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", SECRETS, ids=lambda secret: repr(secret[:12]))
def test_secret_is_masked_at_every_split(secret: str) -> None:
    raw = secret.strip().encode()
    data = b"before " + raw + b" after\n"
    redactor = Redactor([secret])
    whole = run(redactor, data)
    assert whole == expected(redactor, data)
    assert whole.startswith(b"before [masked]")
    assert whole.endswith(b"[masked] after\n")
    for cut in range(len(data) + 1):
        assert run(redactor, data[:cut], data[cut:]) == whole


@pytest.mark.parametrize("secret", SECRETS, ids=lambda secret: repr(secret[:12]))
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_is_masked_in_every_alignment(secret: str, encode: Callable[[bytes], bytes]) -> None:
    redactor = Redactor([secret])
    neighbours = product([b"", b"x", b"xy", b"user:", b"token "], [b"", b"\n", b"z", b"zz", b":rest"])
    for before, after in neighbours:
        header = b"Authorization: Basic "
        masked = run(redactor, header + encode(before + secret.strip().encode() + after) + b"\n")
        assert masked.count(MASK) == 1, (before, after)
        rest = masked.removeprefix(header).replace(MASK, b"").strip()
        # Only groups of four characters that a neighbour has a part in may be left.
        assert len(rest) <= 4 * (-(-len(before) // 3) + -(-len(after) // 3)) + 4, (before, after)


def forms_of(secret: str) -> dict[str, str]:
    text = secret.strip()
    raw = text.encode()
    pretty_json = json.dumps(text)[1:-1]
    forms = {
        "quote": quote(text, safe=""),
        "quote path": quote(text),
        "quote lower": re.sub("%..", lambda escape: escape[0].lower(), quote(text, safe="")),
        "plus": quote_plus(text),
        "form": urlencode({"k": text})[2:],
        "encodeURIComponent": quote(text, safe="!'()*"),
        "json": pretty_json,
        "json as is": json.dumps(text, ensure_ascii=False)[1:-1],
        "json in json": json.dumps(json.dumps(text)[1:-1])[1:-1],
        "json with escaped slash": pretty_json.replace("/", "\\/"),
        "json for html": pretty_json.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"),
        "hex": raw.hex(),
        "HEX": raw.hex().upper(),
        "shlex": shlex.quote(text)[1:-1] if shlex.quote(text) != text else text,
        "html": html.escape(text),
        "html text": html.escape(text, quote=False),
    }
    return forms | {
        "crlf": text.replace("\r\n", "\n").replace("\n", "\r\n"),
        "lf": text.replace("\r\n", "\n"),
    }


@pytest.mark.parametrize("secret", SECRETS, ids=lambda secret: repr(secret[:12]))
def test_encoded_forms_are_masked_whole(secret: str) -> None:
    redactor = Redactor([secret])
    for name, form in forms_of(secret).items():
        masked = run(redactor, b"<" + form.encode() + b">")
        assert not masked.strip(b"<>\r\n").replace(MASK, b"").strip(), name


def test_json_with_upper_case_escapes_is_masked() -> None:
    redactor = Redactor(["grüße \\u00fc <da>"])
    form = b"gr\\u00FC\\u00DFe \\\\u00fc \\u003Cda\\u003E"
    assert run(redactor, form) == MASK


@pytest.mark.parametrize("secret", SECRETS[:6], ids=lambda secret: repr(secret[:12]))
def test_what_bash_prints_of_a_secret_is_masked(secret: str) -> None:
    script = 'printf "%s|%q|" "$S" "$S"; set -x; : "$S"'
    done = subprocess.run(
        ["bash", "-c", script],
        env={"S": secret, "LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]},
        capture_output=True,
        check=True,
    )
    redactor = Redactor([secret])
    plain, quoted, _ = (
        run(redactor, done.stdout).split(b"|") if b"|" not in secret.encode() else (MASK, MASK, b"")
    )
    traced = run(redactor, done.stderr)
    assert plain.replace(MASK, b"").strip() == b""
    assert quoted.replace(MASK, b"").strip() in (b"", b"$''")
    assert traced.replace(MASK, b"").split() in ([b"+", b":"], [b"+", b":", b"''"], [b"+", b":", b"'", b"'"])


def test_every_sign_that_bash_quotes_is_known() -> None:
    signs = "".join(map(chr, range(0x20, 0x7F)))
    secret = f"~#{signs}=~:~end"
    quoted = subprocess.run(
        ["bash", "-c", 'printf %q "$1"', "-", secret], capture_output=True, check=True
    ).stdout
    assert run(Redactor([secret]), quoted) == MASK


@pytest.mark.parametrize("command", [["base64"], ["base64", "-w64"], ["od", "-An", "-tx1", "-v", "-w30"]])
def test_long_secrets_are_masked_in_wrapped_encodings(command: list[str]) -> None:
    for text in (KEY.strip(), KEY):
        encoded = subprocess.run(command, input=text.encode(), capture_output=True, check=True).stdout
        if command[0] == "od":
            encoded = encoded.replace(b" ", b"")  # as `xxd -p` prints it, which is not on every machine
        for printed in (encoded, encoded.replace(b"\n", b"\r\n")):
            masked = run(Redactor([KEY]), printed)
            # A closing line end of the secret may stand at the end, encoded.
            assert masked.replace(MASK, b"").strip(b"\r\n=") in (b"", b"0a")


def test_multi_line_secret_is_masked_through_a_pty() -> None:
    primary, secondary = os.openpty()
    try:
        os.write(secondary, b"key:\n" + KEY.encode() + b"done\n")
        printed = os.read(primary, 65536)
    finally:
        os.close(secondary)
        os.close(primary)
    assert b"\r\n" in printed
    masked = run(Redactor([KEY]), printed)
    assert masked == b"key:\r\n" + MASK + (b"\n" + MASK) * (len(KEY.splitlines()) - 1) + b"\r\ndone\r\n"


def test_each_long_line_of_a_key_is_masked_alone_but_not_its_armour() -> None:
    redactor = Redactor([KEY])
    lines = KEY.splitlines()
    for line in lines[1:-1]:
        assert run(redactor, f"  {line}  x".encode()) == b"  [masked]  x"
    assert run(redactor, lines[0].encode()) == lines[0].encode()


def test_line_ends_in_a_masked_secret_are_kept() -> None:
    redactor = Redactor(["first part\nsecond part"])
    masked = run(redactor, b"a\nfirst part\nsecond part\nb\n")
    assert masked == b"a\n[masked]\n[masked]\nb\n"


def test_line_end_around_a_secret_is_no_part_of_it() -> None:
    stream = Redactor(["hunter2-hunter2\r\n", "\nanother-secret"]).stream()
    assert stream.feed(b"hunter2-hunter2.another-secret.\n") == b"[masked].[masked].\n"


# -- what is not masked ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "secret", ["", "abc", "12345", "true", "PASSWORD", "localhost", "8080443", "======", " " * 9]
)
def test_short_and_common_strings_are_not_masked_but_named(secret: str) -> None:
    redactor = Redactor([secret, "hunter2-hunter2"])
    data = f"x {secret} y true password localhost\n".encode()
    assert run(redactor, data) == data
    assert secret.encode() in redactor.unmaskable
    assert not redactor.add(secret)


def test_masked_secret_is_not_among_the_unmaskable() -> None:
    redactor = Redactor()
    assert redactor.add("hunter2-hunter2\n")
    assert redactor.add(b"hunter2-hunter2")
    assert redactor.unmaskable == frozenset()


def test_length_from_which_secrets_are_masked_can_be_set() -> None:
    assert run(Redactor(["abcd"], min_length=4), b"xabcdx") == b"x[masked]x"
    with pytest.raises(ValueError, match="1 or more"):
        Redactor(min_length=0)


def test_invalid_utf8_and_controls_pass_untouched() -> None:
    data = bytes(range(256)) * 4 + b"\x1b[31m\r 50%\r100%\r\n\0\xff\xfe"
    assert run(Redactor(["hunter2-hunter2"]), data) == data


def test_binary_secret_is_masked_with_its_encodings() -> None:
    secret = b"\xff\xfe\x00\x01secret\x80"
    redactor = Redactor([secret])
    assert run(redactor, b"<" + secret + b"> " + secret.hex().encode()) == b"<[masked]> [masked]"
    assert run(redactor, base64.b64encode(secret)).replace(b"=", b"") == MASK


# -- overlaps ----------------------------------------------------------------------------------------------


def test_overlapping_secrets_are_masked_as_one() -> None:
    redactor = Redactor(["secret-alpha", "alpha-omega", "pha-ome"])
    assert run(redactor, b"<secret-alpha-omega>") == b"<[masked]>"
    assert run(redactor, b"<secret-alphasecret-alpha>") == b"<[masked]>"


def test_union_that_reaches_the_end_of_the_buffer_is_continued_by_the_next_feed() -> None:
    stream = Redactor(["secret-alpha", "alpha-omega"]).stream()
    assert stream.feed(b"<secret-alpha") == b"<[masked]"
    assert stream.held_bytes == 0
    assert stream.feed(b"-ome") == b""
    assert stream.feed(b"ga>") == b">"
    assert stream.masked_count == 1


def test_union_that_is_not_continued_leaves_the_rest_in_clear() -> None:
    stream = Redactor(["secret-alpha", "alpha-omega"]).stream()
    assert stream.feed(b"secret-alpha-om") == b"[masked]"
    assert stream.feed(b"elette") == b"-omelette"


def test_tail_that_turns_out_to_be_no_secret_is_let_out() -> None:
    stream = Redactor(["hunter2-hunter2"]).stream()
    assert stream.feed(b"a hunter2-hunter") == b"a "
    assert stream.held_bytes == 14
    assert stream.feed(b"s\n") == b"hunter2-hunters\n"


def test_line_that_begins_no_secret_is_not_held_back() -> None:
    stream = Redactor(SECRETS).stream()
    assert stream.feed(b"an ordinary line\n") == b"an ordinary line\n"


def test_self_overlapping_secret_is_masked_in_an_endless_run() -> None:
    secret = b"abaababaab" * 3
    stream = Redactor([secret, "aaaaaa"]).stream()
    run_of_a = b"a" * PIECE_BYTES
    out = stream.feed(b"x" + run_of_a)
    for _ in range(16):
        out += stream.feed(run_of_a)
        assert stream.held_bytes <= len(secret)
    out += stream.feed(b"x") + stream.finish()
    assert out == b"x[masked]x"


def test_memory_is_bounded_by_the_longest_secret_while_nothing_matches_or_all_does() -> None:
    redactor = Redactor([b"ab" * 3000, b"a" * 7])
    stream = redactor.stream()
    run(redactor, b"warm up")
    kept = []
    tracemalloc.start()
    try:
        for data in (b"ab" * 8000, b"a" * 8000, b"-" * 8000) * 12:
            stream.feed(data)
            assert stream.held_bytes < 6000
            kept.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert max(kept[24:]) < max(kept[:12]) + 10_000


def test_mask_never_makes_up_a_secret_with_its_neighbours() -> None:
    secrets = [b"hunter2-hunter2", b"x[mask", b"ed]tail", b"masked", b"a[masked]b"]
    data = b"xhunter2-hunter2tail ahunter2-hunter2b"
    masked = run(Redactor(secrets), data)
    assert not [secret for secret in secrets if secret in masked]
    assert masked == b"x***tail a***b"


def test_mask_is_found_though_every_usual_one_is_a_secret() -> None:
    secrets = [*MASKS, *(mask + b"tail" for mask in MASKS), b"hunter2-hunter2"]
    masked = run(Redactor(secrets, min_length=3), b"<hunter2-hunter2tail>")
    assert not [secret for secret in secrets if secret in masked]
    assert masked.endswith(b"tail>")


def test_bytes_pass_uncopied_when_nothing_is_found() -> None:
    data = b"nothing here\n" * 5000
    assert Redactor().stream().feed(data * 2) == data * 2
    for redactor in (Redactor(), Redactor(["hunter2-hunter2"])):
        assert redactor.stream().feed(data) is data


# -- late registration -------------------------------------------------------------------------------------


def test_secret_registered_late_is_masked_from_then_on_in_every_stream() -> None:
    redactor = Redactor(["hunter2-hunter2"])
    streams = [redactor.stream() for _ in range(3)]
    assert [stream.feed(b"late-secret\n") for stream in streams] == [b"late-secret\n"] * 3
    redactor.add("late-secret")
    assert [stream.feed(b"late-secret\n") for stream in streams] == [b"[masked]\n"] * 3


def test_secret_registered_while_its_beginning_is_held_is_masked_whole() -> None:
    redactor = Redactor(["late-secure-one"])
    stream = redactor.stream()
    assert stream.feed(b"< late-sec") == b"< "
    redactor.add("late-secret")
    assert stream.feed(b"ret >") == b"[masked] >"


def test_secret_registered_between_its_first_and_last_byte_is_not_let_out_whole() -> None:
    secret = b"late-secret"
    for cut in range(1, len(secret)):
        for feeds in ([secret[cut:]], [secret[cut : cut + 1], secret[cut + 1 :]]):
            redactor = Redactor()
            stream = redactor.stream()
            out = stream.feed(b"x" * 5000) + stream.feed(secret[:cut])
            redactor.add(secret)
            out += b"".join(map(stream.feed, feeds)) + stream.feed(b"!") + stream.finish()
            assert out == b"x" * 5000 + secret[:cut] + b"[masked]!"


def test_secret_that_is_known_already_costs_no_new_automaton() -> None:
    redactor = Redactor(["hunter2-hunter2"])
    before = redactor._current_matcher()
    redactor.add("hunter2-hunter2\n")
    assert redactor._current_matcher() is before


def test_secrets_may_be_added_while_other_threads_feed() -> None:
    redactor = Redactor()
    secrets = [f"secret-number-{number:04}-end" for number in range(60)]
    leaks: list[str] = []
    added: list[str] = []
    stop = threading.Event()

    def print_known() -> None:
        stream = redactor.stream()
        while not stop.is_set():
            known = added[-1:]
            out = stream.feed("".join(f"<{secret}>\n" for secret in known).encode())
            leaks.extend(secret for secret in known if secret.encode() in out)

    threads = [threading.Thread(target=print_known) for _ in range(3)]
    for thread in threads:
        thread.start()
    for secret in secrets:
        redactor.add(secret)
        added.append(secret)
    stop.set()
    for thread in threads:
        thread.join(timeout=30)
    assert not leaks
    assert run(redactor, "".join(secrets).encode()) == MASK


# -- properties --------------------------------------------------------------------------------------------

signs = st.sampled_from([b"a", b"b", b"[", b"]", b"masked", b"\n", b"\r\n", b" ", b"%", b"0"])
short_secrets = st.lists(signs, min_size=2, max_size=5).map(b"".join)
# Longer than an anchor and alike at the beginning, so that candidates fail late and overlap themselves.
long_secrets = st.lists(st.sampled_from([b"aab", b"aabaab", b"a" * 12, b"ab"]), min_size=3, max_size=9).map(
    b"".join
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[bytes], bytes, list[int]]:
    secrets = draw(st.lists(short_secrets | long_secrets, min_size=1, max_size=5))
    piece = st.sampled_from(secrets)
    cut = st.tuples(piece, st.integers(0, 40), st.integers(0, 40)).map(lambda it: it[0][it[1] % 7 : it[2]])
    encoded = piece.map(base64.b64encode) | piece.map(lambda secret: secret.hex().encode())
    data = b"".join(draw(st.lists(piece | cut | signs | encoded, max_size=14)))
    cuts = draw(st.lists(st.integers(0, len(data)), max_size=8))
    return secrets, data, sorted(cuts)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(streams())
@example(([b"aaaaaa"], b"a" * 40, [1, 7, 8, 30]))
@example(([b"x[mask", b"ed]x", b"secret"], b"xsecretx", [3]))
def test_output_is_the_same_for_every_split_and_holds_no_secret(
    case: tuple[list[bytes], bytes, list[int]],
) -> None:
    secrets, data, cuts = case
    redactor = Redactor(secrets, min_length=2)
    needles = redactor._needles
    stream = redactor.stream()
    out = b""
    for start, end in pairwise([0, *cuts, len(data)]):
        out += stream.feed(data[start:end])
        held = stream.held_bytes
        tail = data[:end]
        assert held == 0 or any(
            needle.startswith(tail[-length:]) and length < len(needle)
            for length in range(held, len(tail) + 1)
            for needle in needles
        )
    out += stream.finish()
    assert stream.held_bytes == 0
    assert out == expected(redactor, data)
    assert run(redactor, *[data[at : at + 1] for at in range(len(data))]) == out
    assert stream.masked_count == out.count(redactor._current_matcher().mask)
    assert not [needle for needle in needles if needle in out]


@settings(max_examples=200, deadline=None)
@given(streams(), st.integers(0, 8))
def test_secret_complete_after_its_registration_is_never_stored_whole(
    case: tuple[list[bytes], bytes, list[int]], late: int
) -> None:
    secrets, data, cuts = case
    redactor = Redactor(secrets[1:], min_length=2)
    stream = redactor.stream()
    edges = [0, *cuts, len(data)]
    out = []
    for number, (start, end) in enumerate(pairwise(edges)):
        if number == late:
            redactor.add(secrets[0])
        out.append(stream.feed(data[start:end]))
    clean_from = sum(map(len, out[:late]))
    out.append(stream.finish())
    whole = b"".join(out)
    if late < len(edges) - 1:
        for needle in redactor._needles:
            place = whole.find(needle, max(0, clean_from - len(needle) + 1))
            # What reaches over the seam may only stand there by chance of a mask of before the registration.
            assert (
                place < 0 or place + len(needle) <= clean_from or any(mask[-1:] in needle for mask in MASKS)
            )


def test_anchor_length_is_what_the_needles_are_cut_to() -> None:
    matcher = Redactor(["x" * 100 + "y"])._current_matcher()
    assert max(map(len, matcher._beginnings)) == redact.ANCHOR_BYTES - 1
