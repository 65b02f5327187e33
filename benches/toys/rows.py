"""rows.py FILE N: writes N rows (id, text) as Parquet."""
import sys

import pyarrow as pa
import pyarrow.parquet as pq

file, n = sys.argv[1], int(sys.argv[2])
rows = {"id": [f"row-{i:07}" for i in range(n)], "text": [f"a photograph of part {i}" for i in range(n)]}
pq.write_table(pa.table(rows), file)
