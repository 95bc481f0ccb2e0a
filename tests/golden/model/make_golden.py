#!/usr/bin/env python3
"""Writes initial_values.json as docs/model-layout.md specifies, in plain Python, independent of the C++ code."""
import json
import math
import pathlib
import struct

MASK = 0xFFFFFFFF


def philox4x32(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & MASK, (p0 >> 32) ^ c[3] ^ k[1], p0 & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


def name_hash(name):
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def word(seed, name, i):
    h, b = name_hash(name), i // 4
    return philox4x32((b & MASK, b >> 32, h & MASK, h >> 32), (seed & MASK, seed >> 32))[i % 4]


def u(w):
    return (2.0 * w + 1.0) * 2.0 ** -33


def ln(v):
    m, e = math.frexp(v)
    if m < 0.70710678118654752:
        m, e = 2.0 * m, e - 1
    f = (m - 1.0) / (m + 1.0)
    g = f * f
    p = 1.0 / 21.0
    for k in (19, 17, 15, 13, 11, 9, 7, 5, 3):
        p = p * g + 1.0 / k
    return e * 0.69314718055994531 + 2.0 * (f + f * g * p)


def cos_sin(c):
    quadrant = ((c + 0x20000000) & MASK) >> 30
    t = (c - (quadrant << 30)) & MASK
    t = t - (1 << 32) if t >= 1 << 31 else t
    x = t * (1.5707963267948966 / 1073741824.0)
    g = x * x
    s = 0.0
    for k in (16, 14, 12, 10, 8, 6, 4, 2):
        s = (1.0 + s) * g / -(k * (k + 1.0))
    sine = x + x * s
    q = 0.0
    for k in (15, 13, 11, 9, 7, 5, 3, 1):
        q = (1.0 + q) * g / -(k * (k + 1.0))
    cosine = 1.0 + q
    return ((cosine, sine), (-sine, cosine), (-cosine, -sine), (sine, -cosine))[quadrant]


def value(kind, scale, seed, name, i):
    if kind == "uniform":
        return scale * (2.0 * u(word(seed, name, i)) - 1.0)
    even = i - i % 2
    c = word(seed, name, even + 1)
    assert max(abs(a - b) for a, b in zip(cos_sin(c), (math.cos(2 * math.pi * c / 2 ** 32),
                                                      math.sin(2 * math.pi * c / 2 ** 32)))) < 1e-15
    v = u(word(seed, name, even))
    assert abs(ln(v) - math.log(v)) <= 1e-15 * abs(math.log(v)) + 1e-15
    r = math.sqrt(-2.0 * ln(v))
    return scale * (r * cos_sin(c)[i % 2])


def f32_bits(v):
    return "%08x" % struct.unpack("<I", struct.pack("<f", v))[0]


CASES = [("normal", 0.02, 1, "model.embed_tokens.weight", 0, 64),
         ("normal", 1.0, 0xFEDCBA9876543210, "model.norm.weight", 3, 64),
         ("normal", 0.5, 17, "a", 4 * (1 << 32) - 2, 8),
         ("uniform", 0.25, 1, "weight", 0, 64),
         ("uniform", 1.0 / math.sqrt(784.0), 2 ** 63, "fc2.weight", 1001, 33)]

if __name__ == "__main__":
    out = [{"kind": kind, "scale": scale, "seed": "%016x" % seed, "name": name, "first": first,
            "bits": [f32_bits(value(kind, scale, seed, name, i)) for i in range(first, first + count)]}
           for kind, scale, seed, name, first, count in CASES]
    path = pathlib.Path(__file__).parent / "initial_values.json"
    path.write_text("[\n" + ",\n".join(json.dumps(case) for case in out) + "\n]\n")
