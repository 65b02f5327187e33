"""pixeltable_rows.py N: Makes a table of Pixeltable with a computed column if it is absent, and inserts rows up to N."""
import os
import sys

os.environ["PIXELTABLE_HOME"] = os.path.abspath("pixeltable")
import pixeltable as pxt

import work
from pixeltable_length import length

n = int(sys.argv[1])
if "rows" not in pxt.list_tables():
    rows = pxt.create_table("rows", {"id": pxt.String, "text": pxt.String})
    rows.add_computed_column(n=length(rows.text))
rows = pxt.get_table("rows")
rows.insert([{"id": f"row-{i:07}", "text": f"a photograph of part {i}"} for i in range(rows.count(), n)])
work.report()
