#!/usr/bin/env python3
"""Writes the golden safetensors files of this folder and the fuzzer's corpus with nothing but struct and json.

Independent of Skerry's own reader and writer on purpose. Run it in any directory; the files are checked in.
"""
import json
import pathlib
import struct

HERE = pathlib.Path(__file__).parent
CORPUS = HERE.parents[1] / "fuzz" / "corpus" / "safetensors"
SIZES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I32": 4, "I64": 8, "U8": 1}


def bf16(value):
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    return struct.pack("<H", (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)


PACK = {"F32": lambda v: struct.pack("<f", v), "F16": lambda v: struct.pack("<e", v), "BF16": bf16,
        "F64": lambda v: struct.pack("<d", v), "I32": lambda v: struct.pack("<i", v),
        "I64": lambda v: struct.pack("<q", v), "U8": lambda v: struct.pack("<B", v)}


def document(tensors, metadata=None, align=0):
    """tensors: (name, dtype, shape, values) in file order."""
    header, data = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name, dtype, shape, values in tensors:
        raw = b"".join(PACK[dtype](v) for v in values)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    if align:
        text += b" " * (-(8 + len(text)) % align)
    return struct.pack("<Q", len(text)) + text + data


def raw(text, data=b"", length=None):
    if isinstance(text, str):
        text = text.encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(name="a", dtype="F32", shape="[2]", offsets="[0,8]"):
    return '{"%s":{"dtype":"%s","shape":%s,"data_offsets":%s}}' % (name, dtype, shape, offsets)


ALL = [("f32", "F32", [2, 3], [0.0, -1.0, 0.5, 3.140625, 1e-40, 3e38]),
       ("f16", "F16", [4], [1.0, -2.0, 65504.0, 2.0 ** -24]),
       ("bf16", "BF16", [2, 2], [1.0, -2.5, 3.140625, 1e30]),
       ("f64", "F64", [1], [0.1]),
       ("i32", "I32", [2], [-1, 2147483647]),
       ("i64", "I64", [2], [-9223372036854775808, 42]),
       ("u8", "U8", [3], [0, 7, 255])]

FOREIGN = [("z.last", "F32", [1, 2], [1.0, 2.0]), ("empty", "F32", [0, 5], []), ("scalar", "F64", [], [2.5]),
           ("größe", "U8", [3], [1, 2, 3])]

BAD = {
    "empty_file": b"",
    "seven_bytes": b"\0" * 7,
    "header_beyond_file": raw("{}", length=100),
    "header_absurd": raw("{}", length=2 ** 63),
    "not_json": raw("{nonsense}"),
    "not_object": raw("[1,2]"),
    "zero_byte": raw(b'{}\0{}'),
    "bad_utf8": raw(b'{"\xff":{}}'),
    "duplicate_name": raw('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', b"ab"),
    "duplicate_member": raw('{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"a"),
    "unknown_dtype": raw(one(dtype="F8_E4M3", offsets="[0,2]"), b"12"),
    "unknown_member": raw('{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}}', b"a"),
    "missing_member": raw('{"a":{"dtype":"U8","shape":[1]}}', b"a"),
    "negative_size": raw(one(shape="[-2]"), b"12345678"),
    "fraction_size": raw(one(shape="[2.0]"), b"12345678"),
    "overflowing_shape": raw(one(shape="[4294967296,4294967296,4294967296]"), b"12345678"),
    "overflowing_to_zero": raw(one(shape="[4294967296,4294967296]", offsets="[0,0]")),
    "offsets_disagree": raw(one(shape="[3]"), b"12345678"),
    "offsets_beyond": raw(one(shape="[4]", offsets="[0,16]"), b"12345678"),
    "offsets_reversed": raw(one(offsets="[8,0]"), b"12345678"),
    "offsets_one": raw(one(offsets="[8]"), b"12345678"),
    "offsets_three": raw(one(offsets="[0,8,8]"), b"12345678"),
    "overlap": raw('{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}}', b"1234567"),
    "gap": raw('{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}}', b"12345"),
    "data_after_last": raw(one(), b"123456789"),
    "truncated_data": raw(one(), b"1234567"),
    "metadata_number": raw('{"__metadata__":{"a":1}}'),
    "deep_nesting": raw("{\"a\":" + "[" * 5000),
    "many_dimensions": raw(one(shape="[" + ",".join(["1"] * 33) + "]", offsets="[0,4]"), b"1234"),
}

if __name__ == "__main__":
    CORPUS.mkdir(parents=True, exist_ok=True)
    good = {"all_dtypes": document(ALL, {"format": "pt", "note": "golden \"file\""}, align=64),
            "foreign": document(FOREIGN), "no_tensors": raw("{}")}
    for name, content in good.items():
        (HERE / (name + ".safetensors")).write_bytes(content)
        (CORPUS / name).write_bytes(content)
    for name, content in BAD.items():
        (CORPUS / name).write_bytes(content)
