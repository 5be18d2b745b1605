# SPDX-License-Identifier: Apache-2.0
"""Header blocks: what is let through, in which form, and that caches change nothing."""

from __future__ import annotations

import hpack as reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.hbone.frames import StreamFailedError
from mesh.hbone.hpack import Header, HpackDecoder, HpackError, encode
from tests.support.http2 import GET, OK, POST, request, response
from waypoint.http import h2_fields
from waypoint.http.h2_fields import FieldReader, encode_fields, encode_request, encode_response
from waypoint.http.h2_limits import Http2Limits
from waypoint.http.message import BadMessageError, Framing

CONNECT = [(b":method", b"CONNECT"), (b":authority", b"a:1")]


def reader(**limits: int) -> FieldReader:
    return FieldReader(Http2Limits(**limits))


def without(fields: list[Header], name: bytes) -> list[Header]:
    return [field for field in fields if field[0] != name]


def changed(name: bytes, value: bytes) -> list[Header]:
    return [(n, value if n == name else v) for n, v in GET]


def test_a_request_becomes_a_head() -> None:
    fields = [*POST, (b"x-a", b"1"), (b"te", b"trailers"), (b"x-a", b"\xe4"), (b"expect", b"100-Continue")]
    head = reader().request(encode(fields), end=False)
    assert (head.method, head.target, head.authority) == ("POST", "/", "shop")
    assert head.headers == [("x-a", "1"), ("te", "trailers"), ("x-a", "\xe4"), ("expect", "100-Continue")]
    assert (head.framing, head.expects_continue) == (Framing.CHUNKED, True)


@pytest.mark.parametrize(
    ("field", "expected"), [((b"te", b"trailers"), True), ((b"trailer", b"x"), True), ((b"x", b"te"), False)]
)
def test_fields_for_one_connection_are_known(field: Header, expected: bool) -> None:
    assert reader().request(encode([*GET, field]), end=True).hop_by_hop is expected
    assert reader().response(encode([*OK, field]), "GET", end=True).hop_by_hop is expected


@pytest.mark.parametrize(
    ("length", "end", "framing", "bytes_"),
    [(None, True, Framing.NONE, 0), (b"0", True, Framing.NONE, 0), (b"5", False, Framing.LENGTH, 5)],
)
def test_how_the_end_of_a_body_is_found(
    length: bytes | None, end: bool, framing: Framing, bytes_: int
) -> None:
    fields = POST if length is None else [*POST, (b"content-length", length)]
    head = reader().request(encode(fields), end=end)
    assert (head.framing, head.length) == (framing, bytes_)


@pytest.mark.parametrize(
    "fields",
    [
        *(without(GET, name) for name in (b":method", b":scheme", b":path", b":authority")),
        [*GET, (b":path", b"/")],
        [*GET, (b":status", b"200")],
        [*GET, (b":x", b"1")],
        [(b"x", b"1"), *GET],
        changed(b":path", b""),
        changed(b":path", b"x"),
        changed(b":path", b"*"),
        changed(b":path", b"/a b"),
        changed(b":path", b"/a#b"),
        changed(b":path", b"/\xe4"),
        changed(b":method", b"G T"),
        changed(b":method", b""),
        changed(b":scheme", b"ftp"),
        changed(b":authority", b"user@shop"),
        changed(b":authority", b""),
        changed(b":authority", b"shop:port"),
        [*GET, (b"host", b"other")],
        [*without(GET, b":authority"), (b"host", b"a"), (b"host", b"b")],
        [*GET, (b"X-Upper", b"1")],
        [*GET, (b"", b"1")],
        [*GET, (b"a b", b"1")],
        [*GET, (b"x", b"a\r\nb: c")],
        [*GET, (b"x", b"a\0")],
        [*GET, (b"x", b"\x7f")],
        [*GET, (b"x", b" a")],
        [*GET, (b"x", b"a\t")],
        [*GET, (b"connection", b"close")],
        [*GET, (b"keep-alive", b"1")],
        [*GET, (b"proxy-connection", b"close")],
        [*GET, (b"transfer-encoding", b"chunked")],
        [*GET, (b"upgrade", b"h2c")],
        [*GET, (b"te", b"gzip")],
        [*GET, (b"content-length", b"1"), (b"content-length", b"1")],
        [*GET, (b"content-length", b"+1")],
        [*GET, (b"content-length", b"")],
        [*GET, (b":protocol", b"websocket")],
    ],
    ids=lambda fields: repr(fields[-1] if fields[:4] == GET else fields)[:60],
)
def test_a_malformed_request_is_refused(fields: list[Header]) -> None:
    with pytest.raises(StreamFailedError, match="malformed"):
        reader().request(encode(fields), end=False)


def test_a_length_without_a_body_is_refused() -> None:
    made = reader()
    block = encode([*POST, (b"content-length", b"1")])
    assert made.request(block, end=False).length == 1
    with pytest.raises(StreamFailedError):
        made.request(block, end=True)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([*GET, *[(b"x", b"1")] * 17], 431),
        ([*GET, (b"x", b"y" * 4096)], 431),
        (changed(b":path", b"/" + b"a" * 64), 414),
        (CONNECT, 501),
    ],
)
def test_what_is_over_a_limit_gets_a_status(fields: list[Header], status: int) -> None:
    made = reader(max_fields=20, max_header_list_bytes=4096, max_target_bytes=64)
    with pytest.raises(BadMessageError) as caught:
        made.request(encode(fields), end=True)
    assert caught.value.status == status


@pytest.mark.parametrize("count", [20, 21])
def test_the_number_of_fields_at_its_limit(count: int) -> None:
    made = reader(max_fields=20)
    block = encode([*GET, *[(b"x", b"1")] * (count - 4)])
    if count == 20:
        assert len(made.request(block, end=True).headers) == 16
    else:
        with pytest.raises(BadMessageError, match="more than 20 fields"):
            made.request(block, end=True)


def test_host_stands_for_a_missing_authority_and_may_repeat_it() -> None:
    named = [*without(GET, b":authority"), (b"host", b"shop:80"), (b"x", b"1")]
    for fields in (named, [(b":authority", b"shop:80"), *named]):
        head = reader().request(encode(fields), end=True)
        assert (head.authority, head.headers) == ("shop:80", [("x", "1")])


def test_crumbs_of_a_cookie_are_one_field() -> None:
    fields = [*GET, (b"cookie", b"a=1"), (b"x", b"1"), (b"cookie", b"b=2")]
    assert reader().request(encode(fields), end=True).headers == [("x", "1"), ("cookie", "a=1; b=2")]


@pytest.mark.parametrize(
    ("status", "length", "method", "end", "framing"),
    [
        (b"200", None, "GET", False, Framing.CHUNKED),
        (b"200", None, "GET", True, Framing.CHUNKED),
        (b"200", b"3", "GET", False, Framing.LENGTH),
        (b"200", b"3", "HEAD", True, Framing.NONE),
        (b"304", b"3", "GET", True, Framing.NONE),
        (b"204", None, "GET", True, Framing.NONE),
        (b"103", None, "GET", False, Framing.NONE),
    ],
)
def test_a_response_becomes_a_head(
    status: bytes, length: bytes | None, method: str, end: bool, framing: Framing
) -> None:
    fields = [(b":status", status)] + ([] if length is None else [(b"content-length", length)])
    head = reader().response(encode(fields), method, end=end)
    assert (head.status, head.framing) == (int(status), framing)


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ([], False),
        ([(b":status", b"20")], False),
        ([(b":status", b"600")], False),
        ([(b":status", b"101")], False),
        ([(b":status", b"100")], True),
        ([*OK, (b":path", b"/")], False),
        ([*OK, *OK], False),
        ([*OK, (b"content-length", b"1")], True),
        ([*OK, (b"connection", b"close")], False),
    ],
)
def test_a_malformed_response_is_refused(fields: list[Header], end: bool) -> None:
    with pytest.raises(StreamFailedError):
        reader().response(encode(fields), "GET", end=end)


@pytest.mark.parametrize("name", [b":status", b"content-length", b"host", b"authorization", b"connection"])
def test_trailers_hold_nothing_that_belongs_to_a_head(name: bytes) -> None:
    assert reader().trailers(encode([(b"grpc-status", b"0")])) == [("grpc-status", "0")]
    with pytest.raises(StreamFailedError):
        reader().trailers(encode([(name, b"1")]))


def test_a_broken_block_is_the_connections_end() -> None:
    for call in (lambda r: r.request(b"\xff", end=True), lambda r: r.skip(b"\x80")):
        with pytest.raises(HpackError):
            call(reader())


# --- Caches

names = st.sampled_from([b"x-a", b"accept", b"cookie", b"grpc-timeout"])
values = st.sampled_from([b"", b"1", b"long enough to be worth an index", b"2"])
messages = st.lists(st.tuples(names, values), max_size=5).map(lambda extra: [*GET, *extra])


@settings(deadline=None)
@given(st.lists(messages, min_size=1, max_size=12), st.sampled_from([0, 90, 4096]))
def test_a_long_lived_reader_reads_what_a_new_one_does(blocks: list[list[Header]], table: int) -> None:
    encoder, made = reference.Encoder(), reader()
    encoder.header_table_size = table
    for fields in blocks:
        expected = reader().request(encode(fields), end=True)
        assert made.request(encoder.encode(fields), end=True) == expected


statuses = st.sampled_from([b"200", b"404"])
answers = st.tuples(statuses, st.lists(st.tuples(names, values), max_size=4), st.booleans())


@settings(deadline=None)
@given(st.lists(answers, min_size=1, max_size=20), st.sampled_from([0, 90, 4096]))
def test_responses_of_any_encoder_are_read_alike(
    blocks: list[tuple[bytes, list[Header], bool]], table: int
) -> None:
    encoder, made, plain = reference.Encoder(), reader(), HpackDecoder(4096)
    encoder.header_table_size = table
    for status, fields, like_nginx in blocks:
        listed = [(b":status", status), *fields]
        if like_nginx:
            parts = [b"\x40%c%b%c%b" % (len(n), n, len(v), v) for n, v in listed]
            block = b"".join(parts)
            # The reference's own table has to follow.
            for field in listed:
                encoder.header_table.add(*field)
        else:
            block = encoder.encode(listed)
        assert plain.decode(block, 65536) == listed
        head = made.response(block, "GET", end=False)
        assert (head.status, head.headers) == (int(status), [(n.decode(), v.decode()) for n, v in fields])
        assert made._hpack._entries == plain._entries


def test_a_head_is_its_receivers_to_change() -> None:
    made, block = reader(), encode([*GET, (b"x", b"1")])
    made.request(block, end=True).headers.clear()
    assert made.request(block, end=True).headers == [("x", "1")]
    block = encode([(b"x", b"1")])
    made.trailers(block).clear()
    assert made.trailers(block) == [("x", "1")]


def test_the_same_bytes_mean_something_else_after_the_table_changed() -> None:
    made = reader()
    first = b"\x40\x01a\x011"  # a: 1, indexed
    block = encode(GET) + b"\xbe"  # the newest entry
    made.trailers(first)
    assert made.request(block, end=True).headers == [("a", "1")]
    assert made.request(block, end=True).headers == [("a", "1")]
    made.skip(b"\x40\x01b\x012")
    assert made.request(block, end=True).headers == [("b", "2")]


def test_secrets_are_not_kept() -> None:
    secret = b"Bearer only-once"
    made = reader()
    fields = made.request(encode([*GET, (b"authorization", secret), (b"x-kept", b"kept")]), end=True).headers
    encode_fields(fields)
    assert (b"x-kept", b"kept") in h2_fields._decoded
    assert ("x-kept", "kept") in h2_fields._encoded
    assert not any(value == secret for _, value in h2_fields._decoded)
    assert not any(value == secret.decode() for _, value in h2_fields._encoded)


def test_caches_are_bounded() -> None:
    for index in range(h2_fields._CACHED_FIELDS + 10):
        encode_fields([("x-id", str(index))])
    assert len(h2_fields._encoded) <= h2_fields._CACHED_FIELDS


# --- Writing


def decoded(block: bytes) -> list[Header]:
    return reference.Decoder().decode(block, raw=True)  # type: ignore[return-value]


def test_a_request_is_written_without_what_is_for_one_connection_only() -> None:
    headers = [
        ("connection", "x-gone, keep-alive"),
        ("x-gone", "1"),
        ("keep-alive", "5"),
        ("te", "gzip, Trailers"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("X-Kept", " v\t"),
    ]
    expected = [*POST, (b"te", b"trailers"), (b"x-kept", b"v")]
    for _ in range(2):
        assert decoded(encode_request(request(headers=headers))) == expected
    assert decoded(encode_fields([("x-gone", "1"), ("te", "gzip")])) == [(b"x-gone", b"1")]


def test_a_response_is_written() -> None:
    block = encode_response(response(404, [("x", "\xe4"), ("set-cookie", "a")]))
    assert decoded(block) == [(b":status", b"404"), (b"x", b"\xe4"), (b"set-cookie", b"a")]


def test_no_literal_may_enter_a_table_further_on() -> None:
    for field in reference.Decoder().decode(encode_fields([("authorization", "x"), ("a", "b")]), raw=True):
        assert isinstance(field, reference.NeverIndexedHeaderTuple)


texts = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=12)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["x-a", "accept", "x-b"]), texts), max_size=6))
def test_what_is_written_is_read_again(headers: list[tuple[str, str]]) -> None:
    head = reader().request(encode_request(request(headers=headers)), end=False)
    assert head == request(headers=headers, hop_by_hop=False)
