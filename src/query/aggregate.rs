//! The metrics as aggregate functions of SQL: `select class, aupro(map, mask, 0.3) from … group by class`.
//!
//! They follow the protocol `exact`. A row with a null argument is left out. Without rows, and for rows of one kind
//! alone, a metric is null. Those of pixels take a last argument `roi`, the pixels that are counted; where it is null, all
//! are.

use std::{
    fmt::{self, Debug, Display},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, ArrowPrimitiveType, AsArray},
    compute::cast,
    datatypes::{DataType, Field, FieldRef, Float16Type, Float32Type, Float64Type},
};
use datafusion::{
    common::ScalarValue,
    error::{DataFusionError, Result},
    logical_expr::{
        Accumulator, AggregateUDF, AggregateUDFImpl, Signature, Volatility,
        function::{AccumulatorArgs, StateFieldsArgs},
    },
    physical_expr::expressions::Literal,
    prelude::SessionContext,
};
use vlmdiff_metrics::{Given, ImageMetrics, Kind, METRICS, Metric, PixelMetrics, Protocol, Score, State, count};

use super::wrong::type_in_words;
use crate::engine::store::tensor_shape;

/// The argument after the others that tells the pixels that are counted.
const ROI: &str = "roi";

/// Registers the functions with a session.
pub(super) fn register(context: &SessionContext) {
    for metric in METRICS {
        let signature = Signature::user_defined(Volatility::Immutable);
        context.register_udaf(AggregateUDF::from(Function { metric, signature }));
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Function {
    metric: Metric,
    signature: Signature,
}

impl Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.metric.call())
    }
}

impl AggregateUDFImpl for Function {
    fn name(&self) -> &str {
        self.metric.function
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        let needed = self.metric.arguments();
        let most = needed.len() + usize::from(self.metric.takes_roi());
        if !(needed.len()..=most).contains(&given.len()) {
            let arguments = if given.len() == 1 { "argument" } else { "arguments" };
            let roi = if self.metric.takes_roi() { "; `roi` may follow these" } else { "" };
            return Err(self.wrong(format!("it was given {} {arguments}{roi}", given.len())));
        }
        let types = needed.iter().chain([&ROI]).zip(given).map(|(argument, given)| {
            let (fits, taken, expected) = match *argument {
                ROI if given.is_null() => (true, DataType::new_list(DataType::Boolean, true), ""),
                "score" | "limit" | "threshold" => {
                    (given.is_numeric() || given.is_null(), DataType::Float64, "a number")
                }
                "label" => (is_flag(given) || given.is_null(), DataType::Boolean, "true or false, or a whole number"),
                "map" => (pixels(given).is_some_and(DataType::is_floating), given.clone(), "a list of floats"),
                _ => {
                    (pixels(given).is_some_and(is_flag), given.clone(), "a list of whole numbers or of true and false")
                }
            };
            fits.then_some(taken)
                .ok_or_else(|| self.wrong(format!("`{argument}` is {}, not {expected}", type_in_words(given))))
        });
        types.collect()
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn state_fields(&self, arguments: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        Ok(vec![Arc::new(Field::new(format!("{}[state]", arguments.name), DataType::LargeBinary, true))])
    }

    fn accumulator(&self, arguments: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        if arguments.is_distinct {
            return Err(self.wrong("`distinct` would leave out images that score the same"));
        }
        match pixels(arguments.expr_fields[0].data_type()) {
            None => self.of_scores(),
            Some(DataType::Float16) => self.of_maps::<Float16Type>(&arguments),
            Some(DataType::Float32) => self.of_maps::<Float32Type>(&arguments),
            Some(_) => self.of_maps::<Float64Type>(&arguments),
        }
    }
}

impl Function {
    fn wrong(&self, what: impl Display) -> DataFusionError {
        DataFusionError::Plan(format!("{self}: {what}"))
    }

    fn of_scores(&self) -> Result<Box<dyn Accumulator>> {
        let kind = self.metric.kind;
        Ok(Box::new(Measured {
            function: self.to_string(),
            state: ImageMetrics::new(),
            update: Box::new(|state: &mut ImageMetrics, values, row| {
                let [score, label] = values else { return Ok(()) };
                let (score, label) = (score.as_primitive::<Float64Type>().value(row), label.as_boolean().value(row));
                state.update(score, label).map_err(|e| e.to_string())
            }),
            evaluate: Box::new(move |state| kind.of(&state.ranking())),
        }))
    }

    /// Returns the value of the third argument, which is one for all rows; `fits` and `expected` say which ones are
    /// taken.
    fn constant(&self, arguments: &AccumulatorArgs, fits: impl Fn(f64) -> bool, expected: &str) -> Result<f64> {
        let value = arguments.exprs[2].downcast_ref::<Literal>().map(Literal::value);
        match value {
            Some(ScalarValue::Float64(Some(value))) if fits(*value) => Ok(*value),
            other => {
                let given = other.map_or_else(|| "a column".into(), ToString::to_string);
                Err(self.wrong(format!("`{}` is {given}, not {expected}", self.metric.arguments()[2])))
            }
        }
    }

    fn of_maps<T: ArrowPrimitiveType<Native: Score>>(
        &self,
        arguments: &AccumulatorArgs,
    ) -> Result<Box<dyn Accumulator>> {
        let kind = self.metric.kind;
        let roi = Some(self.metric.arguments().len()).filter(|at| arguments.exprs.len() > *at);
        let (limit, threshold) = match kind {
            Kind::Aupro => {
                let fits = |limit: f64| limit > 0. && limit <= 1.;
                (self.constant(arguments, fits, "a number above 0 and up to 1, such as 0.3")?, None)
            }
            Kind::F1 => (1., Some(self.constant(arguments, |threshold| !threshold.is_nan(), "a number")?)),
            _ => (1., None),
        };
        let shape = arguments.expr_fields.iter().find_map(|field| tensor_shape(field));
        let width = match shape.as_deref() {
            // The beginnings and ends of rows matter for regions only.
            _ if kind != Kind::Aupro => Width::All,
            None => Width::Square,
            Some([ones @ .., _, width]) if ones.iter().all(|n| *n == 1) => Width::Known(*width),
            Some(shape) => return Err(self.wrong(format!("a map of the shape {shape:?} is not [H, W]"))),
        };
        Ok(Box::new(Measured {
            function: self.to_string(),
            state: PixelMetrics::new(),
            update: Box::new(move |state, values, row| {
                update_maps::<T>(state, width, (&values[0], &values[1], roi.map(|at| &values[at])), row)
            }),
            evaluate: Box::new(move |state| {
                Protocol::Exact.of_pixels(kind, state, &Given { limit, threshold, regions: None })
            }),
        }))
    }
}

fn is_flag(of: &DataType) -> bool {
    of.is_integer() || *of == DataType::Boolean
}

/// Returns the type of a list's items.
fn pixels(of: &DataType) -> Option<&DataType> {
    match of {
        DataType::FixedSizeList(item, _) | DataType::List(item) | DataType::LargeList(item) => Some(item.data_type()),
        _ => None,
    }
}

/// Returns the list in a row.
fn list(column: &ArrayRef, row: usize) -> ArrayRef {
    match column.data_type() {
        DataType::FixedSizeList(..) => column.as_fixed_size_list().value(row),
        DataType::LargeList(_) => column.as_list::<i64>().value(row),
        _ => column.as_list::<i32>().value(row),
    }
}

/// Returns the pixels of a mask in a row. `of` is what has it, for errors.
fn mask(column: &ArrayRef, row: usize, of: &str) -> Result<Vec<bool>, String> {
    let mask = list(column, row);
    if mask.null_count() > 0 {
        return Err(format!("a pixel of {of} is null"));
    }
    let mask = cast(&mask, &DataType::Boolean).map_err(|e| e.to_string())?;
    Ok(mask.as_boolean().values().iter().collect())
}

/// The length of a map's rows, in pixels.
#[derive(Debug, Clone, Copy)]
enum Width {
    Known(usize),
    /// The number of rows, because the map is square.
    Square,
    /// The whole map, as a single row.
    All,
}

fn update_maps<T: ArrowPrimitiveType<Native: Score>>(
    state: &mut PixelMetrics<T::Native>,
    width: Width,
    (maps, masks, rois): (&ArrayRef, &ArrayRef, Option<&ArrayRef>),
    row: usize,
) -> Result<(), String> {
    let map = list(maps, row);
    if map.null_count() > 0 {
        return Err("a pixel of a map is null".into());
    }
    let found = mask(masks, row, "a mask")?;
    let roi = rois.filter(|rois| rois.is_valid(row)).map(|rois| mask(rois, row, "`roi`")).transpose()?;
    let side = map.len().isqrt();
    let width = match width {
        Width::Known(width) => width,
        Width::All => map.len(),
        Width::Square if side * side == map.len() => side,
        Width::Square => {
            let pixels = map.len();
            return Err(format!(
                "a map of {pixels} pixels is not square, and its column is no tensor, which has a shape"
            ));
        }
    };
    let counts = count(map.as_primitive::<T>().values(), &found, roi.as_deref(), width, false);
    state.add(&counts.map_err(|e| e.to_string())?.0);
    Ok(())
}

/// Adds a row of the arguments to a state.
type Update<S> = dyn Fn(&mut S, &[ArrayRef], usize) -> Result<(), String> + Send + Sync;

/// The accumulated state of one group.
struct Measured<S> {
    /// The name of the function, for errors.
    function: String,
    state: S,
    update: Box<Update<S>>,
    evaluate: Box<dyn Fn(&S) -> Option<f64> + Send + Sync>,
}

impl<S: Debug> Debug for Measured<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {:?}", self.function, self.state)
    }
}

impl<S> Measured<S> {
    fn failed(&self, why: impl Display) -> DataFusionError {
        DataFusionError::Execution(format!("{}: {why}", self.function))
    }
}

impl<S: State> Accumulator for Measured<S> {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for row in 0..values[0].len() {
            // The third argument, a limit or a threshold, is the same in all rows, and `roi` may be null.
            if values[..2].iter().all(|column| column.is_valid(row)) {
                (self.update)(&mut self.state, values, row).map_err(|why| self.failed(why))?;
            }
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let states = states[0].as_binary::<i64>().iter().flatten();
        states.into_iter().try_for_each(|bytes| self.state.merge_bytes(bytes)).map_err(|why| self.failed(why))
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![ScalarValue::LargeBinary(Some(self.state.to_bytes()))])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Float64((self.evaluate)(&self.state)))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.state.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::{
        array::{BooleanArray, FixedSizeListArray, Float16Array, ListArray, RecordBatch, StringArray, UInt8Array},
        datatypes::{Schema, UInt8Type},
    };
    use datafusion::{datasource::MemTable, prelude::SessionConfig};
    use half::f16;

    use crate::engine::store::tensor_field;

    const SHAPE: [usize; 2] = [3, 4];

    /// Makes rows of two groups, some without a mask.
    fn rows() -> Vec<(&'static str, Vec<f16>, Option<Vec<u8>>)> {
        (0..40u32)
            .map(|row| {
                let noise = |i: u32| (row * 12 + i).wrapping_mul(2_654_435_761) >> 20;
                let map = (0..12).map(|i| f16::from_f32((noise(i) % 50) as f32 / 16.)).collect();
                let mask = (0..12).map(|i| u8::from(noise(i + 5) % 7 == 0) * 255).collect();
                (if row % 3 == 0 { "a" } else { "b" }, map, (row % 5 != 0).then_some(mask))
            })
            .collect()
    }

    fn batch(rows: &[(&str, Vec<f16>, Option<Vec<u8>>)]) -> RecordBatch {
        let fields = [
            tensor_field("map", DataType::Float16, &SHAPE, false),
            tensor_field("mask", DataType::UInt8, &SHAPE, true),
        ];
        let list = |field: &Field, values: ArrayRef, valid: Vec<bool>| -> ArrayRef {
            let DataType::FixedSizeList(item, size) = field.data_type() else { panic!("a tensor is a list") };
            Arc::new(FixedSizeListArray::new(item.clone(), *size, values, Some(valid.into())))
        };
        let maps = Float16Array::from_iter_values(rows.iter().flat_map(|row| row.1.clone()));
        let masks = UInt8Array::from_iter_values(rows.iter().flat_map(|row| row.2.clone().unwrap_or(vec![0; 12])));
        let columns = vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.0))) as ArrayRef,
            list(&fields[0], Arc::new(maps), vec![true; rows.len()]),
            list(&fields[1], Arc::new(masks), rows.iter().map(|row| row.2.is_some()).collect()),
        ];
        let [map, mask] = fields;
        let schema = Schema::new(vec![Field::new("class", DataType::Utf8, false), map, mask]);
        RecordBatch::try_new(Arc::new(schema), columns).unwrap()
    }

    fn query(sql: &str, partitions: Vec<Vec<RecordBatch>>) -> Result<Vec<RecordBatch>> {
        let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(partitions.len()));
        register(&context);
        let schema = partitions[0][0].schema();
        context.register_table("t", Arc::new(MemTable::try_new(schema, partitions)?))?;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async { context.sql(sql).await?.collect().await })
    }

    fn numbers(batches: &[RecordBatch], column: usize) -> Vec<Option<f64>> {
        batches.iter().flat_map(|batch| batch.column(column).as_primitive::<Float64Type>().iter()).collect()
    }

    #[test]
    fn groups_and_partitions_give_the_metrics_of_one_state() {
        let rows = rows();
        let expected = ["a", "b"].map(|class| {
            let mut state = PixelMetrics::new();
            for (_, map, mask) in rows.iter().filter(|row| row.0 == class) {
                let Some(mask) = mask else { continue };
                state.update(map, &mask.iter().map(|pixel| *pixel > 0).collect::<Vec<_>>(), SHAPE[1]).unwrap();
            }
            [state.auroc(), state.average_precision(), state.f1_max(), state.aupro(0.3), state.aupro(1.)]
        });
        let sql = "select class, pixel_auroc(map, mask), pixel_ap(map, mask), pixel_f1_max(map, mask), \
                   aupro(map, mask, 0.3), aupro(map, mask, 1) from t group by class order by class";
        for parts in [1, 2, 5] {
            let partitions = rows.chunks(rows.len().div_ceil(parts)).map(|rows| rows.chunks(3).map(batch).collect());
            let found = query(sql, partitions.collect()).unwrap();
            for (column, (a, b)) in expected[0].iter().zip(&expected[1]).enumerate() {
                assert_eq!(numbers(&found, column + 1), [*a, *b], "{parts} partitions, column {column}");
            }
        }
    }

    #[test]
    fn pixels_outside_of_the_region_are_not_counted() {
        let rows = rows();
        // The mask of the next row is taken for the region, so that a null is among them.
        let region = |row: usize| rows[(row + 1) % rows.len()].2.as_ref();
        let mut state = PixelMetrics::new();
        for (row, (_, map, mask)) in rows.iter().enumerate() {
            let Some(mask) = mask else { continue };
            let flags = |pixels: &Vec<u8>| pixels.iter().map(|pixel| *pixel > 0).collect::<Vec<_>>();
            let roi = region(row).map(flags);
            state.add(&count(map, &flags(mask), roi.as_deref(), SHAPE[1], false).unwrap().0);
        }
        let moved: Vec<_> =
            (0..rows.len()).map(|row| (rows[row].0, rows[row].1.clone(), region(row).cloned())).collect();
        let (table, regions) = (batch(&rows), batch(&moved));
        let mut fields = table.schema().fields().to_vec();
        fields.push(Arc::new(regions.schema().field(2).clone().with_name("roi")));
        let columns = table.columns().iter().chain([regions.column(2)]).cloned().collect();
        let table = vec![vec![RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()]];
        let ask = |select: &str| query(&format!("select {select} from t"), table.clone());
        let sql = "pixel_auroc(map, mask, roi), pixel_ap(map, mask, roi), aupro(map, mask, 0.3, roi), pixel_f1(map, mask, 1, roi)";
        let found = ask(sql).unwrap();
        let f1 = Protocol::Exact.of_pixels(Kind::F1, &state, &Given { limit: 1., threshold: Some(1.), regions: None });
        let expected = [state.auroc(), state.average_precision(), state.aupro(0.3), f1];
        for (column, expected) in expected.into_iter().enumerate() {
            assert!(expected.is_some());
            assert_eq!(numbers(&found, column), [expected], "column {column}");
        }
        // Without a region, and where it is null, the whole map is counted.
        let whole = numbers(&ask("pixel_auroc(map, mask)").unwrap(), 0);
        assert_ne!(whole, [state.auroc()]);
        assert_eq!(numbers(&ask("pixel_auroc(map, mask, null)").unwrap(), 0), whole);
        let wrong = |select: &str| ask(select).unwrap_err().to_string();
        let message = wrong("pixel_auroc(map, mask, map)");
        assert!(
            message.contains("pixel_auroc(map, mask): `roi` is a list of float16, not a list of whole numbers"),
            "{message}"
        );
        let message = wrong("pixel_auroc(map, mask, roi, roi)");
        assert!(message.contains("it was given 4 arguments; `roi` may follow these"), "{message}");
    }

    #[test]
    fn lists_of_any_kind_are_accepted_as_maps() {
        let map = ListArray::from_iter_primitive::<Float64Type, _, _>([Some([0.1, 0.9, 0.3, 0.2].map(Some))]);
        let mask = ListArray::from_iter_primitive::<UInt8Type, _, _>([Some([0, 1, 1, 0].map(Some))]);
        let lists = |map: ListArray, mask: ListArray| {
            vec![vec![
                RecordBatch::try_from_iter([("map", Arc::new(map) as ArrayRef), ("mask", Arc::new(mask))]).unwrap(),
            ]]
        };
        let square = lists(map.clone(), mask.clone());
        assert_eq!(numbers(&query("select aupro(map, mask, 0.5) from t", square.clone()).unwrap(), 0), [Some(1.)]);
        let flags = "select pixel_auroc(map, arrow_cast(mask, 'LargeList(Boolean)')) from t";
        assert_eq!(numbers(&query(flags, square).unwrap(), 0), [Some(1.)]);
        let map = ListArray::from_iter_primitive::<Float64Type, _, _>([Some([0.1, 0.9, 0.3].map(Some))]);
        let mask = ListArray::from_iter_primitive::<UInt8Type, _, _>([Some([0, 1, 1].map(Some))]);
        let line = lists(map, mask);
        assert_eq!(numbers(&query("select pixel_auroc(map, mask) from t", line.clone()).unwrap(), 0), [Some(1.)]);
        let message = query("select aupro(map, mask, 0.5) from t", line).unwrap_err().to_string();
        assert!(message.contains("aupro(map, mask, limit): a map of 3 pixels is not square"), "{message}");
    }

    #[test]
    fn row_without_a_score_or_a_label_is_left_out() {
        let scores = Arc::new(arrow::array::Float32Array::from(vec![Some(0.9), None, Some(0.1), Some(0.5)]));
        let labels = Arc::new(BooleanArray::from(vec![Some(true), Some(false), Some(false), None]));
        let table = RecordBatch::try_from_iter([("score", scores as ArrayRef), ("label", labels)]).unwrap();
        let table = vec![vec![table]];
        let found = query("select auroc(score, label), f1_max(score, null) from t", table.clone()).unwrap();
        assert_eq!((numbers(&found, 0), numbers(&found, 1)), (vec![Some(1.)], vec![None]));
        let message = query("select auroc(distinct score, label) from t", table).unwrap_err().to_string();
        assert!(message.contains("auroc(score, label): `distinct` would leave out"), "{message}");
    }
}
