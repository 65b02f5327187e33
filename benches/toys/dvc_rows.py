"""A stage of DVC: reads the file, works row by row, writes a file."""
import pyarrow as pa
import pyarrow.parquet as pq

import work

rows = pq.read_table("rows.parquet")
lengths = [work.length(text) for text in rows["text"].to_pylist()]
pq.write_table(rows.append_column("n", pa.array(lengths)), "lengths.parquet")
work.report()
