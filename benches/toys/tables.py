"""tables.py NAME: makes one of the eight tables of N rows from Parquet to Parquet, for DVC and Snakemake."""
import sys

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


def read(name):
    return pq.read_table(f"{name}.parquet")


def lengths():
    rows = read("rows")
    return pa.table({"id": rows["id"], "n": pc.utf8_length(rows["text"])})


def upper():
    rows = read("rows")
    return pa.table({"id": rows["id"], "text": pc.utf8_upper(rows["text"])})


def doubled():
    rows = read("lengths")
    return pa.table({"id": rows["id"], "n": pc.multiply(rows["n"], 2)})


def pairs():
    return read("lengths").join(read("upper"), "id", join_type="inner")


def scores():
    rows = read("doubled").join(read("pairs"), "id", join_type="inner", right_suffix="_of_pair")
    return pa.table({"id": rows["id"], "score": pc.add(rows["n"], rows["n_of_pair"])})


def counts():
    return read("scores").group_by("score").aggregate([([], "count_all")]).rename_columns(["score", "n"])


def total():
    return pa.table({"n": [pc.sum(read("counts")["n"]).as_py()]})


name = sys.argv[1]
pq.write_table(globals()[name](), f"{name}.parquet")
