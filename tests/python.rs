//! Tables read by Python, in which tensors are tensors.

use std::fs;

use crate::{
    lab::{LIGHT, Lab},
    remote::python,
};

const SCRIPT: &str = r#"
import sys
import numpy, polars, pyarrow, pyarrow.parquet

def tensors(path):
    column = pyarrow.parquet.read_table(path).column("pixels")
    assert isinstance(column.type, pyarrow.FixedShapeTensorType), f"{path}: {column.type}"
    assert column.type.shape == [32, 32, 3] and column.type.value_type == pyarrow.uint8(), column.type
    return column.combine_chunks().to_numpy_ndarray()

part, exported = map(tensors, sys.argv[1:3])
assert part.shape == exported.shape == (14, 32, 32, 3), (part.shape, exported.shape)
ids = [pyarrow.parquet.read_table(path).column("image_id").to_pylist() for path in sys.argv[1:3]]
by_id = dict(zip(ids[0], part))
assert len(by_id) == 14
for name, pixels in zip(ids[1], exported):
    assert (by_id[name] == pixels).all(), name
assert exported.std() > 1, "all pixels are alike"

for path, id_column, expected in zip(sys.argv[1:3], ids, (part, exported)):
    frame = polars.read_parquet(path)
    assert isinstance(frame["pixels"].dtype, (polars.Array, polars.List)), frame["pixels"].dtype
    values = numpy.array(frame["pixels"].to_list(), dtype=numpy.uint8).reshape(-1, 32, 32, 3)
    assert frame["image_id"].to_list() == id_column
    assert (values == expected).all(), path
print(int(exported[ids[1].index(sys.argv[3]), 5, 7, 2]))
"#;

#[test]
fn pyarrow_and_polars_read_parts_and_exports() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    let arguments = ["sql", "select * from images", "--format", "parquet", "-o", "images.parquet"];
    let ended = lab.vlmdiff(&arguments);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let parts = fs::read_dir(lab.path(".vlmdiff/parts")).unwrap().map(|entry| entry.unwrap().path());
    let part = parts.max_by_key(|part| part.metadata().unwrap().len()).unwrap();
    let id = lab.sql(".vlmdiff", "select image_id from images order by image_id limit 1").remove(0);
    lab.write("check.py", SCRIPT);
    let arguments = [lab.path("check.py"), part, lab.path("images.parquet"), id.clone().into()];
    let output = python().args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Row 5, column 7, blue. SQL counts from 1.
    let query = format!("select pixels[{}] from images where image_id = '{id}'", (5 * 32 + 7) * 3 + 2 + 1);
    assert_eq!(lab.sql(".vlmdiff", &query), [String::from_utf8(output.stdout).unwrap().trim()]);
}
