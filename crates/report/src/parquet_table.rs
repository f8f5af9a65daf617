//! The only file that knows the library that writes Parquet.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{LogicalType, Repetition, Type as PhysicalType};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::{Type, TypePtr};
use patchdoor_record::{MetricInfo, ResultTable, group_of, write_whole};

/// Name of the file in the folder of its run or sweep.
const PARQUET: &str = "table.parquet";

/// Writes a table in the format of Apache Parquet to the folder of its run or sweep and returns its path: a row for each number
/// of each seed.
///
/// # Columns
/// - text: `result` (the folder), `experiment`, `datasets`, `backend`, `commits`, `point`, a column `axis: NAME` for each axis of a
///   sweep, `run` (the seed's folder), `group` (such as a defense; empty for the attack), `number` and `unit`
/// - `quick`: whether the numbers mean nothing
/// - `seed`: unsigned, 64 bits
/// - `value`: double; shares in [0, 1]
///
/// # Errors
/// If it cannot be written.
pub fn write_parquet(folder: &Path, table: &ResultTable) -> Result<PathBuf, Box<dyn std::error::Error + Send + Sync>> {
    let path = folder.join(PARQUET);
    write_whole(&path, &encoded(&columns(table))?)?;
    Ok(path)
}

/// A column, and its value in each row.
struct Column {
    name: String,
    values: Values,
}

enum Values {
    Texts(Vec<String>),
    Flags(Vec<bool>),
    Seeds(Vec<u64>),
    Numbers(Vec<f64>),
}

/// A number of a seed of a point.
struct Row<'a> {
    /// Which point.
    index: usize,
    seed: u64,
    name: &'a str,
    value: f64,
}

fn columns(table: &ResultTable) -> Vec<Column> {
    let rows = table.points.iter().enumerate().flat_map(|(index, point)| {
        point.metrics.iter().flat_map(move |metric| {
            metric.values.iter().map(move |(&seed, &value)| Row { index, seed, name: &metric.name, value })
        })
    });
    let rows = rows.collect::<Vec<_>>();
    let point = |row: &Row| &table.points[row.index];
    let texts = |name: &str, of: &dyn Fn(&Row) -> String| Column {
        name: name.to_owned(),
        values: Values::Texts(rows.iter().map(of).collect()),
    };
    let own_name = |row: &Row| row.name.rsplit('/').next().unwrap_or(row.name).to_owned();
    let mut columns = vec![
        texts("result", &|_| table.result.clone()),
        texts("experiment", &|_| table.experiment.clone()),
        texts("datasets", &|_| table.datasets.join(", ")),
        texts("backend", &|_| table.backend.clone()),
        texts("commits", &|_| table.commits.join(", ")),
        Column { name: "quick".into(), values: Values::Flags(vec![table.quick; rows.len()]) },
        texts("point", &|row| point(row).label.clone()),
    ];
    columns.extend(table.axes.iter().enumerate().map(|(axis, name)| {
        texts(&format!("axis: {name}"), &|row| point(row).coordinates.get(axis).cloned().unwrap_or_default())
    }));
    columns.extend([
        Column { name: "seed".into(), values: Values::Seeds(rows.iter().map(|row| row.seed).collect()) },
        texts("run", &|row| point(row).runs.get(&row.seed).cloned().unwrap_or_default()),
        texts("group", &|row| group_of(row.name).to_owned()),
        texts("number", &own_name),
        texts("unit", &|row| MetricInfo::unit_of(row.name).name().to_owned()),
        Column { name: "value".into(), values: Values::Numbers(rows.iter().map(|row| row.value).collect()) },
    ]);
    columns
}

/// The bytes of a file with these columns.
fn encoded(columns: &[Column]) -> Result<Vec<u8>, ParquetError> {
    let fields = columns.iter().map(field).collect::<Result<Vec<_>, _>>()?;
    let schema = Type::group_type_builder("numbers").with_fields(fields).build()?;
    let properties = WriterProperties::builder().build();
    let mut file = SerializedFileWriter::new(Vec::new(), Arc::new(schema), Arc::new(properties))?;
    let mut group = file.next_row_group()?;
    for column in columns {
        let Some(mut writer) = group.next_column()? else { break };
        match &column.values {
            Values::Texts(values) => {
                let values = values.iter().map(|text| ByteArray::from(text.as_str())).collect::<Vec<_>>();
                writer.typed::<ByteArrayType>().write_batch(&values, None, None)?;
            }
            Values::Flags(values) => {
                writer.typed::<BoolType>().write_batch(values, None, None)?;
            }
            Values::Seeds(values) => {
                // The bits of an unsigned number, by its type in the schema.
                let values = values.iter().map(|&seed| seed.cast_signed()).collect::<Vec<_>>();
                writer.typed::<Int64Type>().write_batch(&values, None, None)?;
            }
            Values::Numbers(values) => {
                writer.typed::<DoubleType>().write_batch(values, None, None)?;
            }
        }
        writer.close()?;
    }
    group.close()?;
    file.into_inner()
}

fn field(column: &Column) -> Result<TypePtr, ParquetError> {
    let (physical, logical) = match column.values {
        Values::Texts(_) => (PhysicalType::BYTE_ARRAY, Some(LogicalType::String)),
        Values::Flags(_) => (PhysicalType::BOOLEAN, None),
        Values::Seeds(_) => (PhysicalType::INT64, Some(LogicalType::integer(64, false))),
        Values::Numbers(_) => (PhysicalType::DOUBLE, None),
    };
    let builder = Type::primitive_type_builder(&column.name, physical).with_repetition(Repetition::REQUIRED);
    Ok(Arc::new(builder.with_logical_type(logical).build()?))
}

#[cfg(test)]
mod tests {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::RowAccessor;

    use super::*;
    use crate::sweep_table::example_table;

    #[test]
    fn every_value_of_every_seed_is_read_back_to_the_last_bit() {
        let mut table = example_table();
        // More than fits a signed number.
        table.points[0].metrics[3].values = [(u64::MAX, 0.1 + 0.2), (0, 1.0)].into();
        let folder = tempfile::tempdir().unwrap();
        let path = write_parquet(folder.path(), &table).unwrap();
        let reader = SerializedFileReader::new(std::fs::File::open(path).unwrap()).unwrap();
        let schema = reader.metadata().file_metadata().schema_descr();
        let names = schema.columns().iter().map(|column| column.name().to_owned()).collect::<Vec<_>>();
        let at = |name: &str| names.iter().position(|other| other == name).expect("the column is there");
        assert!(names.contains(&"axis: placement".to_owned()), "{names:?}");
        let rows = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect::<Vec<_>>();
        let mut expected = Vec::new();
        for point in &table.points {
            for metric in &point.metrics {
                expected.extend(metric.values.iter().map(|(&seed, &value)| (point, &metric.name, seed, value)));
            }
        }
        assert_eq!(rows.len(), expected.len());
        for (row, (point, name, seed, value)) in rows.iter().zip(expected) {
            let text = |column: &str| row.get_string(at(column)).unwrap().clone();
            assert_eq!((text("point"), text("axis: placement")), (point.label.clone(), point.coordinates[1].clone()));
            let group = text("group");
            let own = text("number");
            assert_eq!(patchdoor_record::in_group(&group, &own), *name);
            assert_eq!(row.get_ulong(at("seed")).unwrap(), seed);
            assert_eq!(row.get_double(at("value")).unwrap().to_bits(), value.to_bits());
            assert!(!row.get_bool(at("quick")).unwrap());
        }
        let units = rows.iter().map(|row| row.get_string(at("unit")).unwrap().as_str()).collect::<Vec<_>>();
        assert_eq!(units[0], "images");
        assert!(units.contains(&"share") && units.contains(&"seconds"), "{units:?}");
    }

    #[test]
    fn a_table_without_numbers_is_a_file_without_rows() {
        let mut table = example_table();
        table.points.clear();
        let folder = tempfile::tempdir().unwrap();
        let path = write_parquet(folder.path(), &table).unwrap();
        let reader = SerializedFileReader::new(std::fs::File::open(path).unwrap()).unwrap();
        assert_eq!(reader.metadata().file_metadata().num_rows(), 0);
    }
}
