#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/text/parquet/: small Parquet files by pyarrow, and rows.jsonl, what each row is as JSON.

Run with the Python of the test environment (pyarrow) from anywhere:  python tests/golden/make_parquet.py
"""
import json
import math
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

OUT = pathlib.Path(__file__).resolve().parents[1] / "golden/text/parquet"

CALL = pa.struct([("name", pa.string()), ("args", pa.list_(pa.string()))])
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string()), ("tool_calls", pa.list_(CALL))])
SCHEMA = pa.schema([
    ("text", pa.string()), ("empty", pa.string()), ("number", pa.int64()), ("small", pa.int8()), ("flag", pa.bool_()),
    ("score", pa.float64()), ("single", pa.float32()), ("input_ids", pa.list_(pa.int32())),
    ("labels", pa.large_list(pa.int64())), ("messages", pa.list_(MESSAGE)),
    ("meta", pa.struct([("source", pa.string()), ("tags", pa.list_(pa.string()))])),
    ("map", pa.map_(pa.string(), pa.int32())),
])  # fmt: skip


def row(i):
    call = {"name": "f", "args": ["x", None]}
    return {
        "text": f"row {i} Größe 你好 \"q\" \n",
        "empty": None if i % 3 else "",
        "number": i * 10**9,
        "small": i % 100,
        "flag": i % 2 == 0,
        "score": math.nan if i == 2 else i / 7,
        "single": i / 4,
        "input_ids": list(range(i % 5)),
        "labels": None if i == 3 else [-100, i],
        "messages": [
            {"role": "user", "content": f"q{i}", "tool_calls": None},
            {"role": "assistant", "content": None if i == 4 else "a", "tool_calls": [call]},
        ],
        "meta": {"source": "s", "tags": []},
        "map": [("k", i)],
    }


def as_json(value):
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        return dict(value)
    if isinstance(value, list):
        return [as_json(item) for item in value]
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    return value


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([row(i) for i in range(25)], schema=SCHEMA)
    lines = [json.dumps(as_json(values), ensure_ascii=False) + "\n" for values in table.to_pylist()]
    (OUT / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    for codec in ["none", "snappy", "gzip", "zstd", "lz4", "brotli"]:
        version, dictionary = "2.0" if codec == "zstd" else "1.0", codec != "gzip"
        options = {"data_page_version": version, "use_dictionary": dictionary, "store_schema": False}
        pq.write_table(table, OUT / f"{codec}.parquet", compression=codec, row_group_size=10, **options)
    pq.write_table(table.slice(0, 0), OUT / "empty.parquet")
    for name, text, rows in (("many", "", 2500), ("long", "x" * 400_000, 6)):  # one row group each
        pq.write_table(pa.table({"number": range(rows), "text": [text] * rows}), OUT / f"{name}.parquet", compression="zstd")
    pq.write_table(pa.table({"bytes": [b"\xff\xfe"]}), OUT / "binary.parquet")


if __name__ == "__main__":
    main()
