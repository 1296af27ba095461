"""New bytes as copies of old ones and of themselves, and what is left as it is.

Old and new bytes lie one after the other in one window. The new ones are told in turns: so many
bytes as they are, then so many copied from anywhere before (a copy may run into its own output, as
a repeat does). Where a copy begins is told as the distance from where the last one would go on.
The same bytes give the same delta. docs/patch-format.md has the bytes; the C++ runtime reads them.
"""

from __future__ import annotations

from hydrapack.support.errors import Invalid

_KEY = 8
"""Bytes by which a copy is found."""
_INDEX = 1 << 20
"""Places that are looked up, at most about so many."""
_NEAR, _FAR = 4, 12
"""Bytes that a copy must save, where it goes on at the expected place and elsewhere."""


def write_number(value: int) -> bytes:
    """An unsigned integer, seven bits a byte, the low ones first; the top bit says: more."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


class Reader:
    """Numbers and pieces out of bytes, one after the other."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self) -> int:
        """What ``write_number`` wrote, below 2^63.

        Raises:
            Invalid: the data end before, or the number does not.
        """
        value = 0
        for shift in range(0, 63, 7):
            byte = self.piece(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise Invalid("a number is too large")

    def piece(self, size: int) -> bytes:
        """So many bytes.

        Raises:
            Invalid: the data end before.
        """
        if size > len(self.data) - self.at:
            raise Invalid("it ends too early")
        self.at += size
        return self.data[self.at - size : self.at]


def encode(old: bytes, new: bytes) -> bytes:
    """The delta that ``decode`` makes ``new`` of."""
    window, start = old + new, len(old)
    step = max(4, len(window) // _INDEX)
    places = {window[i : i + _KEY]: i for i in range(0, start - _KEY + 1, step)}
    out = bytearray()
    at = literal = known = start
    going_on = 0
    while at < len(window):
        while known + _KEY <= at:
            places[window[known : known + _KEY]] = known
            known += step
        expected = going_on + at - literal
        source, back = expected, 0
        size = _common(window, source, at)
        if size < _NEAR:
            source = places.get(window[at : at + _KEY], at)
            size = _common(window, source, at)
            most = min(at - literal, source) if size else 0
            while back < most and window[source - back - 1] == window[at - back - 1]:
                back += 1
            if size + back < _FAR:
                at += 1
                continue
        distance = source - expected
        out += write_number(at - back - literal) + window[literal : at - back]
        out += write_number(size + back)
        out += write_number(2 * distance if distance >= 0 else -2 * distance - 1)
        going_on = source + size
        at = literal = at + size
    if literal < at:
        out += write_number(at - literal) + window[literal:at]
    return bytes(out)


def decode(old: bytes, delta: Reader, size: int) -> bytes:
    """The ``size`` new bytes; ``delta`` then stands behind what it read.

    Raises:
        Invalid: a delta that is none: more bytes than ``size``, or a copy from nowhere.
    """
    window, end = bytearray(old), len(old) + size
    going_on = 0
    while len(window) < end:
        literal = delta.number()
        if literal > end - len(window):
            raise Invalid("it gives more bytes than it says")
        window += delta.piece(literal)
        if len(window) == end:
            break
        count, coded = delta.number(), delta.number()
        source = going_on + literal + (-(coded + 1) // 2 if coded & 1 else coded // 2)
        if not 0 <= source < len(window):
            raise Invalid("it copies from where nothing is")
        if not 0 < count <= end - len(window):
            raise Invalid("it gives more bytes than it says")
        while count > 0:
            piece = window[source : source + count]
            window += piece
            source, count = source + len(piece), count - len(piece)
        going_on = source
    return bytes(window[len(old) :])


def _common(window: bytes, one: int, other: int) -> int:
    """How many bytes from ``one`` on are those from ``other`` on, which must lie behind it."""
    size, step, limit = 0, 16, len(window) - other if one < other else 0

    def same() -> bool:
        one_end, other_end = one + size + step, other + size + step
        return size + step <= limit and (
            window[one + size : one_end] == window[other + size : other_end]
        )

    while same():
        size, step = size + step, step * 2
    while step:
        size += step if same() else 0
        step //= 2
    return size
