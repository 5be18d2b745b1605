# SPDX-License-Identifier: Apache-2.0
"""Which answers are believed."""

from __future__ import annotations

from dnslib import RR, A, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.dns.forward import fits, question_bytes

ASKED = bytes(DNSRecord.question("web.example").pack())
REPLY = DNSRecord.parse(ASKED).reply()
REPLY.add_answer(RR("web.example", rdata=A("192.0.2.1")))
ANSWER = bytes(REPLY.pack())


def test_an_answer_to_the_question_fits_whatever_the_case_of_its_name() -> None:
    assert fits(ANSWER, ASKED)
    assert fits(ANSWER.replace(b"\x03web", b"\x03WEB"), ASKED)


def test_another_id_question_type_count_or_a_question_does_not_fit() -> None:
    assert not fits(bytes((ANSWER[0] ^ 1,)) + ANSWER[1:], ASKED)
    assert not fits(ANSWER.replace(b"\x03web", b"\x03bad"), ASKED)
    assert not fits(ASKED, ASKED)
    assert not fits(ANSWER[:4] + b"\x00\x02" + ANSWER[6:], ASKED)
    assert not fits(ANSWER[:11], ASKED)
    other = bytes(DNSRecord.question("web.example", "AAAA").pack())
    assert not fits(ANSWER, ANSWER[:2] + other[2:])


def test_questions_that_are_cut_or_compressed_are_none() -> None:
    assert question_bytes(ASKED) == b"\x03web\x07example\x00\x00\x01\x00\x01"
    assert question_bytes(ASKED[:-1]) is None
    assert question_bytes(ASKED[:12] + b"\xc0\x0c\x00\x01\x00\x01") is None


@given(st.binary(max_size=64))
def test_no_bytes_break_it(data: bytes) -> None:
    question_bytes(data)
    fits(data, ASKED)
