"""Secrets: their format, their checksum, and what is stored of them."""

import hashlib
import hmac
import itertools
import re
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formgate_server.core import secrets
from formgate_server.core.secrets import TOKEN_PREFIX, Peppers, base62, hint, new_id, new_secret, prefix_of

EXAMPLES = settings().max_examples
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

prefixes = st.one_of(
    st.sampled_from(("fg_live_", "fg_test_", "jf_", "pf_", "jd_", "sk_live_", "fbk_", TOKEN_PREFIX)),
    st.from_regex(r"[A-Za-z0-9_-]{1,32}", fullmatch=True),
)


def number_of(digits: str) -> int:
    """Read base 62, big-endian."""
    return sum(ALPHABET.index(digit) * 62**power for power, digit in enumerate(reversed(digits)))


def written(number: int, length: int) -> str:
    """Write base 62, big-endian."""
    return "".join(ALPHABET[number // 62**power % 62] for power in reversed(range(length)))


def with_checksum(body: str) -> str:
    """Add the checksum, as the contract says and not by the code under test."""
    return body + written(zlib.crc32(body.encode()), 6)


made = st.builds(
    lambda prefix, random: with_checksum(prefix + written(random, 43)), prefixes, st.integers(0, 2**256 - 1)
)


@given(prefixes)
def test_a_secret_has_the_contract_s_format(prefix: str) -> None:
    """A prefix, 43 base62 characters of 256 bits, and the 6-character base62 CRC-32 of all before it."""
    secret = new_secret(prefix)
    assert secret.startswith(prefix)
    assert len(secret) == len(prefix) + 43 + 6
    random, checksum = secret[len(prefix) : -6], secret[-6:]
    assert number_of(random) < 2**256
    assert number_of(checksum) == zlib.crc32((prefix + random).encode())
    assert prefix_of(secret) == prefix


def test_a_secret_s_random_is_all_of_its_256_bits() -> None:
    """Among 200 secrets each bit is now 0, now 1, and none comes twice."""
    numbers = [number_of(new_secret("pf_")[3:-6]) for _ in range(200)]
    assert len(set(numbers)) == len(numbers)
    for bit in range(256):
        assert {number >> bit & 1 for number in numbers} == {0, 1}


@given(st.integers(0, 62**9 - 1))
def test_base62_is_big_endian_and_padded(number: int) -> None:
    """What is written can be read again, in nine digits however small it is."""
    digits = base62(number, 9)
    assert len(digits) == 9
    assert number_of(digits) == number
    assert digits == written(number, 9)


@given(made)
def test_a_well_formed_secret_is_recognised(secret: str) -> None:
    """A secret that was made elsewhere by the contract's words tells its prefix."""
    assert prefix_of(secret) == secret[:-49]


@settings(max_examples=EXAMPLES // 10)
@given(made)
def test_every_changed_character_is_noticed(secret: str) -> None:
    """Another character anywhere, in the prefix and the checksum too, is another secret or none: never the same."""
    for place, character in itertools.product(range(len(secret)), (*ALPHABET, "_", "-", ".", "\u0661")):
        if character != secret[place]:
            changed = secret[:place] + character + secret[place + 1 :]
            assert prefix_of(changed) is None, (place, character)


@given(made)
def test_every_swap_and_every_lost_or_doubled_character_is_noticed(secret: str) -> None:
    """Two neighbours swapped, a character left out or typed twice, a secret cut short or followed by anything."""
    for place in range(len(secret)):
        swapped = secret[:place] + secret[place + 1 : place + 2] + secret[place] + secret[place + 2 :]
        if swapped != secret:
            assert prefix_of(swapped) is None, place
        shorter = secret[:place] + secret[place + 1 :]
        assert prefix_of(shorter) is None, place
        doubled = secret[:place] + secret[place] + secret[place:]
        assert prefix_of(doubled) is None, place
        assert prefix_of(secret[:place]) is None
    for more in (" ", "\n", "0", "\0", secret):
        assert prefix_of(secret + more) is None
        assert prefix_of(more + secret) is None


@settings(max_examples=3 * EXAMPLES)
@given(st.one_of(st.text(max_size=100), st.text(ALPHABET + "_-", min_size=40, max_size=90)))
def test_garbage_is_no_secret(text: str) -> None:
    """Any text has no prefix: empty, of any alphabet, lone surrogates included."""
    assert prefix_of(text) is None


@pytest.mark.parametrize("prefix", ["", "x" * 33, "fg live_", "fg.live_", "fg\n", "f\u00fc_", "\u0661_"], ids=ascii)
def test_a_prefix_is_1_to_32_letters_digits_and_lines(prefix: str) -> None:
    """With a good checksum, a secret whose prefix is no prefix is none."""
    body = prefix + "0" * 43
    assert prefix_of(with_checksum(body)) is None


@pytest.mark.parametrize("character", ["\u0661", "\u00e9", "\uff21", "_", "-", "+"], ids=ascii)
def test_the_random_is_of_the_62_characters_only(character: str) -> None:
    """Other letters and digits of Unicode are no base62, good checksum or not."""
    body = "fg_live_" + "0" * 42 + character
    assert prefix_of(with_checksum(body)) is None


@pytest.mark.parametrize("length", [82, 10_000, 1_000_000])
@pytest.mark.parametrize("character", ["0", "_", "\u0661", "\ud800"], ids=ascii)
def test_a_huge_key_is_refused_by_its_length(monkeypatch: pytest.MonkeyPatch, length: int, character: str) -> None:
    """Nothing is computed over a megabyte of nonsense: its length is enough."""

    def read(_: bytes) -> int:
        pytest.fail("the checksum of a key that is too long was computed")

    monkeypatch.setattr("formgate_server.core.secrets.zlib.crc32", read)
    assert prefix_of(character * length) is None


@given(made)
def test_a_hint_shows_the_prefix_and_the_last_4(secret: str) -> None:
    """What may be shown of a secret holds none of its random."""
    assert hint(secret) == f"{secret[:-49]}...{secret[-4:]}"


def test_ids_are_unique_and_ids() -> None:
    """An id has 128 bits and the characters that the contract allows in one."""
    ids = [new_id("key") for _ in range(200)]
    assert len(set(ids)) == len(ids)
    for one in ids:
        assert re.fullmatch(r"key_[0-9A-Za-z]{22}", one)
        assert number_of(one[4:]) < 2**128
    for bit in range(128):
        assert {number_of(one[4:]) >> bit & 1 for one in ids} == {0, 1}


peppers = st.binary(min_size=32, max_size=32)


@given(st.lists(peppers, min_size=1, max_size=3), made)
def test_stored_is_the_hmac_of_the_sha_256(values: list[bytes], secret: str) -> None:
    """HMAC-SHA-256(pepper, SHA-256(secret)): made by the newest pepper, found by every one of up to three."""
    hashed = hashlib.sha256(secret.encode()).digest()
    expected = [hmac.new(value, hashed, hashlib.sha256).digest() for value in values]
    live = Peppers(values)
    assert list(live.digests(secret)) == expected
    assert live.digest(secret) == (expected[0], live.ids[0])


@given(st.lists(peppers, min_size=1, max_size=3, unique=True), peppers, made)
def test_peppers_rotate(values: list[bytes], newer: bytes, secret: str) -> None:
    """What was stored under a pepper is found while it is one of the three, and by no other pepper."""
    stored, pepper_id = Peppers(values).digest(secret)
    rotated = Peppers([newer, *values][:3])
    assert stored in rotated.digests(secret)
    assert pepper_id in rotated.ids
    if newer not in values:
        assert stored not in Peppers([newer]).digests(secret)
        assert pepper_id not in Peppers([newer]).ids


@given(peppers)
def test_a_pepper_s_fingerprint_tells_nothing_of_it(value: bytes) -> None:
    """The same for the same pepper, in the database for all to see: 64 bits of an HMAC of a fixed text."""
    expected = hmac.new(value, b"formgate pepper fingerprint", hashlib.sha256).hexdigest()[:16]
    assert Peppers([value]).ids == (expected,)


@pytest.mark.parametrize(
    "values",
    [[], [b"\1" * 32, b"\2" * 32, b"\3" * 32, b"\4" * 32], [b""], [b"\1" * 31], [b"\1" * 33], [b"\1" * 32, b"\2" * 16]],
    ids=["none", "four", "empty", "short", "long", "one of two short"],
)
def test_1_to_3_peppers_of_32_bytes_are_needed(values: list[bytes]) -> None:
    """Anything else stops the start, without showing a pepper."""
    with pytest.raises(ValueError, match=r"^1 to 3 peppers of 32 bytes are needed$"):
        Peppers(values)


def test_a_pepper_s_value_is_not_shown() -> None:
    """Neither by repr nor by str, as a log or a traceback would show it."""
    value = b"0123456789abcdef0123456789abcdef"
    live = Peppers([value])
    pepper = secrets.Pepper(value)
    for shown in (repr(live), str(live), repr(pepper), str(pepper), f"{pepper}"):
        assert "0123456789abcdef" not in shown
        assert value.hex() not in shown
