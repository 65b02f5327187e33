"""A table stage for any engine: stage.py NAME OUT PARAMETER [IN ...]. Reads Parquet, adds a column, writes Parquet.

Every execution appends its name to runs.log, so that what ran can be counted.
"""
import sys

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

name, out, parameter, *inputs = sys.argv[1:]
if inputs:
    table = pq.read_table(inputs[0])
else:
    table = pa.table({"id": range(1000), "x": [i * 0.5 for i in range(1000)]})
for other in map(pq.read_table, inputs[1:]):
    last = other.column_names[-1]
    if last not in table.column_names:
        table = table.append_column(last, other[last])
table = table.append_column(name, pc.add(pc.multiply(table["x"], 2.0), float(parameter)))
pq.write_table(table, out)
with open("runs.log", "a") as log:
    log.write(f"{name}\n")
