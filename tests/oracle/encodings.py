#!/usr/bin/python3
"""What each encoding's payload should be: docs/encodings.md in NumPy, written without a look at the C++ code.

    encodings.py encode NAME nearest|stochastic SEED STREAM < f32 values > payload
    encodings.py decode NAME ELEMENTS < payload > f32 values
"""
import sys

import numpy as np

F32 = np.float32
MAX = np.finfo(F32).max


def philox(counters, stream, seed):
    """Philox4x32-10: four words for each counter."""
    low = np.uint64(0xFFFFFFFF)
    c = [counters & low, counters >> np.uint64(32), np.full_like(counters, stream & 0xFFFFFFFF), np.full_like(counters, stream >> 32)]
    k = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a = np.uint64(0xD2511F53) * c[0]
        b = np.uint64(0xCD9E8D57) * c[2]
        c = [(b >> np.uint64(32)) ^ c[1] ^ np.uint64(k[0]), b & low, (a >> np.uint64(32)) ^ c[3] ^ np.uint64(k[1]), a & low]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(c, axis=1).reshape(-1)


class Chance:
    def __init__(self, stochastic, seed, stream, count):
        self.stochastic = stochastic
        self.words = philox(np.arange((count + 3) // 4, dtype=np.uint64), stream, seed)[:count]

    def u(self, where=slice(None)):
        return (self.words[where] >> np.uint64(8)).astype(np.float64) * 2.0**-24


def blocks(x, size):
    return [(at, x[at : at + size]) for at in range(0, len(x), size)]


def below_and_share(t, u):
    low = np.floor(t)
    return low + (t - low > u)


def bf16(x, chance):
    if not chance.stochastic:
        bits = x.view(np.uint32).astype(np.uint64)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        over = (bits & 0x7FFF) == 0x7F80
        return (bits - over).astype("<u2").tobytes()
    bits = x.view(np.uint32).astype(np.uint64)
    magnitude = np.minimum(bits & 0x7FFFFFFF, 0x7F7F0000) + (chance.words & np.uint64(0xFFFF))
    return ((magnitude >> 16) | (bits >> 16 & 0x8000)).astype("<u2").tobytes()


def f16(x, chance):
    limited = np.clip(x, -65504, 65504).astype(F32)
    if not chance.stochastic:
        return limited.astype("<f2").tobytes()
    m = np.abs(limited)
    bits = m.view(np.uint32).astype(np.int64)
    normal = (bits - 0x38000000 + (chance.words & np.uint64(0x1FFF)).astype(np.int64)) >> 13
    t = m.astype(np.float64) * 2.0**24
    small = below_and_share(t, chance.u()).astype(np.int64)
    half = np.where(m < 2.0**-14, small, normal)
    return (half | np.where(np.signbit(x), 0x8000, 0)).astype("<u2").tobytes()


def lanes_of_eight(values):
    s = np.zeros(8)
    for i in range(0, len(values), 8):
        part = values[i : i + 8]
        s[: len(part)] += part
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))


def int8(x, chance):
    out = b""
    for at, v in blocks(x, 65536):
        w = v.astype(np.float64)
        sigma = np.sqrt(lanes_of_eight(w * w) / max(len(v) - 1, 1))
        r = 256 / (6 * sigma) if sigma > 0 else 0.0
        book = np.zeros(256, F32)
        if not chance.stochastic:
            codes = (128 + np.rint(np.clip(w * r, -128, 127))).astype(np.int64)
            for c in np.unique(codes):
                book[c] = np.cumsum(w[codes == c])[-1] / np.count_nonzero(codes == c)
        elif r == 0:
            codes = np.full(len(v), 128)
        else:
            book = ((np.arange(256) - 128) / r).astype(F32)
            book[0] = min(book[0], v.min())
            book[255] = max(book[255], v.max())
            codes = np.clip(np.searchsorted(book, v, side="right") - 1, 0, 254)
            low = book[codes].astype(np.float64)
            share = (w - low) / (book[codes + 1].astype(np.float64) - low)
            codes = codes + (share > chance.u(slice(at, at + len(v))))
        out += book.astype("<f4").tobytes() + codes.astype(np.uint8).tobytes()
    return out


def quotients(v, levels, chance, at):
    m = np.abs(v).max()
    s = F32(np.float64(m) / levels)
    if np.float64(s) * levels < np.float64(m):
        s = np.nextafter(s, F32(MAX))
    s = min(s, F32(MAX / F32(levels + 1)))
    if s == 0:
        return s, np.zeros(len(v), np.int64)
    t = v.astype(np.float64) / np.float64(s)
    q = below_and_share(t, chance.u(slice(at, at + len(v)))) if chance.stochastic else np.rint(t)
    return s, np.clip(q, -levels, levels).astype(np.int64)


def int8_block(x, chance):
    out = b""
    for at, v in blocks(x, 256):
        s, q = quotients(v, 127, chance, at)
        out += s.astype("<f4").tobytes() + q.astype(np.int8).tobytes()
    return out


def packed(codes):
    half = (len(codes) + 1) // 2
    high = np.zeros(half, np.int64)
    high[: len(codes) - half] = codes[half:] & 15
    return ((codes[:half] & 15) | high << 4).astype(np.uint8).tobytes()


def int4(x, chance):
    out = b""
    for at, v in blocks(x, 256):
        s, q = quotients(v, 7, chance, at)
        out += s.astype("<f4").tobytes() + packed(q)
    return out


def e3m0(x, chance):
    out = b""
    for at, v in blocks(x, 256):
        a = np.abs(v)
        m = a.max()
        powers = F32(2) ** np.arange(-6, 1, dtype=F32)
        if not chance.stochastic:
            middle = np.concatenate([[F32(2.0**-7)], powers[1:] * F32(0.75)]).astype(F32)
            e = (a[:, None] > m * middle[None, :]).sum(axis=1)
        else:
            levels = np.concatenate([[F32(0)], m * powers]).astype(F32)
            e = (a[:, None] >= levels[None, 1:]).sum(axis=1) if m > 0 else np.zeros(len(v), np.int64)
            low, high = levels[e], levels[np.minimum(e + 1, 7)]
            u = chance.u(slice(at, at + len(v))).astype(F32)
            e = np.minimum(e + (a - low > u * (high - low)), 7)
        codes = np.where(e > 0, e | np.where(np.signbit(v), 8, 0), 0)
        out += m.astype("<f4").tobytes() + packed(codes)
    return out


def bit_string(values, width):
    number = 0
    for i, v in enumerate(values):
        number |= int(v) << (width * i)
    return number.to_bytes((width * len(values) + 7) // 8, "little")


def topk2(x, chance):
    out = b""
    for at, v in blocks(x, 4096):
        a = np.abs(v)
        k = (len(v) + 63) // 64
        kept = np.sort(np.lexsort((np.arange(len(v)), -a.astype(np.float64)))[:k])
        own = a[kept]
        if chance.stochastic:
            low, high = own.min(), own.max()
            u = chance.u(at + kept).astype(F32)
            upper = own - low > u * (high - low)
        else:
            s = np.sort(own).astype(np.float64)
            total = np.cumsum(s)[-1]
            low = high = F32(total / k)
            upper = np.ones(k, bool)
            best = -1.0
            below = 0.0
            for j in range(1, k):
                below += s[j - 1]
                if s[j] == s[j - 1]:
                    continue
                p, q = below / j, (total - below) / (k - j)
                explained = below * p + (total - below) * q
                if explained > best:
                    best, low, high, upper = explained, F32(p), F32(q), own >= F32(s[j])
        codes = upper.astype(int) | np.where(v[kept] < 0, 2, 0)
        out += np.array([low, high], "<f4").tobytes() + bit_string(kept, 12) + bit_string(codes, 2)
    return out


def sign(x, chance):
    out = b""
    for at, v in blocks(x, 4096):
        a = np.abs(v)
        if chance.stochastic:
            s = a.max()
            c = (2 * chance.u(slice(at, at + len(v))) - (1 - 2.0**-24)).astype(F32)
            bits = c * s > v
        else:
            s = F32(lanes_of_eight(a.astype(np.float64)) / len(v))
            bits = v < 0
        out += F32(s).astype("<f4").tobytes() + bit_string(bits, 1)
    return out


def decode(name, p, n):
    x = np.zeros(n, F32)

    def scale(at):
        return np.frombuffer(p, "<f4", 1, at)[0]

    def nibbles(at, count):
        b = np.frombuffer(p, np.uint8, (count + 1) // 2, at)
        return np.concatenate([b & 15, b >> 4])[:count].astype(np.int64), at + (count + 1) // 2

    at = 0
    if name == "f32":
        return np.frombuffer(p, "<f4")
    if name == "bf16":
        return (np.frombuffer(p, "<u2").astype(np.uint32) << 16).view(F32)
    if name == "f16":
        return np.frombuffer(p, "<f2").astype(F32)
    for first in range(0, n, {"int8": 65536, "topk2": 4096, "sign": 4096}.get(name, 256)):
        v = x[first : first + {"int8": 65536, "topk2": 4096, "sign": 4096}.get(name, 256)]
        c = len(v)
        if name == "int8":
            v[:] = np.frombuffer(p, "<f4", 256, at)[np.frombuffer(p, np.uint8, c, at + 1024)]
            at += 1024 + c
        elif name == "int8_block":
            v[:] = scale(at) * np.frombuffer(p, np.int8, c, at + 4).astype(F32)
            at += 4 + c
        elif name == "int4":
            s = scale(at)
            q, at = nibbles(at + 4, c)
            v[:] = s * ((q ^ 8) - 8).astype(F32)
        elif name == "e3m0":
            s = scale(at)
            q, at = nibbles(at + 4, c)
            e = q & 7
            v[:] = s * np.where(e > 0, F32(2) ** (e - 7).astype(F32), F32(0)).astype(F32) * np.where(q & 8, F32(-1), F32(1))
        elif name == "topk2":
            k = (c + 63) // 64
            low, high = np.frombuffer(p, "<f4", 2, at)
            at += 8
            indices = int.from_bytes(p[at : at + (12 * k + 7) // 8], "little")
            at += (12 * k + 7) // 8
            codes = int.from_bytes(p[at : at + (2 * k + 7) // 8], "little")
            at += (2 * k + 7) // 8
            for i in range(k):
                code = codes >> 2 * i & 3
                v[indices >> 12 * i & 4095] = (high if code & 1 else low) * (-1 if code & 2 else 1)
        elif name == "sign":
            s = scale(at)
            bits = np.unpackbits(np.frombuffer(p, np.uint8, (c + 7) // 8, at + 4), bitorder="little")[:c]
            v[:] = np.where(bits, -s, s)
            at += 4 + (c + 7) // 8
    return x


ENCODERS = {"f32": lambda x, _: x.astype("<f4").tobytes(), "bf16": bf16, "f16": f16, "int8": int8, "int8_block": int8_block,
            "int4": int4, "e3m0": e3m0, "topk2": topk2, "sign": sign}


def encode(name, x, rounding="nearest", seed=0, stream=0):
    return ENCODERS[name](x, Chance(rounding == "stochastic", seed, stream, len(x)))


def main():
    data = sys.stdin.buffer.read()
    if sys.argv[1] == "encode":
        sys.stdout.buffer.write(encode(sys.argv[2], np.frombuffer(data, "<f4"), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))
    else:
        sys.stdout.buffer.write(decode(sys.argv[2], data, int(sys.argv[3])).astype("<f4").tobytes())


if __name__ == "__main__":
    main()
