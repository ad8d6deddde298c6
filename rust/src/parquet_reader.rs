// SPDX-License-Identifier: Apache-2.0
//! The C face of the `parquet` crate's row reader: some rows at a time, as JSON lines.

use bytes::Bytes;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use crate::{bytes, guarded, silence_panics, Buffer, Failure, Outcome};

/// A row group may hold millions of rows; what one call gives stays small.
const MOST_ROWS: usize = 1024;
const MOST_BYTES: usize = 1 << 20;

pub struct ParquetReader {
    rows: RowIter<'static>,
    count: i64,
}

fn open(data: &'static [u8]) -> Outcome<ParquetReader> {
    let reader = SerializedFileReader::new(Bytes::from_static(data))?;
    let count = reader.metadata().file_metadata().num_rows();
    let groups = reader.metadata().row_groups().iter();
    if groups.map(|group| i128::from(group.num_rows())).sum::<i128>() != i128::from(count) || count < 0 {
        return Err(Failure::new(format!("its row groups do not have the {count} rows of its footer")));
    }
    Ok(ParquetReader { rows: RowIter::from_file_into(Box::new(reader)), count })
}

fn row_to_json(row: &Row) -> Outcome<Value> {
    let mut object = Map::new();
    for (name, field) in row.get_column_iter() {
        let value =
            field_to_json(field).map_err(|failure| Failure::new(format!("column '{name}': {}", failure.message)))?;
        object.insert(name.clone(), value);
    }
    Ok(Value::Object(object))
}

fn field_to_json(field: &Field) -> Outcome<Value> {
    match field {
        Field::Group(row) => row_to_json(row),
        Field::ListInternal(list) => {
            list.elements().iter().map(field_to_json).collect::<Outcome<_>>().map(Value::Array)
        }
        Field::MapInternal(map) => {
            let mut object = Map::new();
            for (key, value) in map.entries() {
                let key = match field_to_json(key)? {
                    Value::String(text) => text,
                    other => other.to_string(),
                };
                object.insert(key, field_to_json(value)?);
            }
            Ok(Value::Object(object))
        }
        // Old writers leave strings without the UTF-8 annotation.
        Field::Bytes(data) => match std::str::from_utf8(data.data()) {
            Ok(text) => Ok(text.into()),
            Err(_) => Err(Failure::new("binary values, which are not UTF-8 text")),
        },
        scalar => Ok(scalar.to_json_value()),
    }
}

fn next_rows(reader: &mut ParquetReader) -> Outcome<Option<Vec<u8>>> {
    let mut lines = Vec::new();
    for row in reader.rows.by_ref().take(MOST_ROWS) {
        serde_json::to_writer(&mut lines, &row_to_json(&row?)?)?;
        lines.push(b'\n');
        if lines.len() >= MOST_BYTES {
            break;
        }
    }
    Ok(if lines.is_empty() { None } else { Some(lines) })
}

/// # Safety
/// See the header; `data` stays readable and unchanged until the handle is freed.
#[no_mangle]
pub unsafe extern "C" fn fettle_parquet_new(
    data: *const u8,
    size: usize,
    out: *mut *mut ParquetReader,
    error: *mut Buffer,
) -> i32 {
    silence_panics();
    guarded(error, || {
        let data: &'static [u8] = bytes(data, size);
        *out = Box::into_raw(Box::new(open(data)?));
        Ok(())
    })
}

/// # Safety
/// `reader` is null or a live handle, used by nobody else.
#[no_mangle]
pub unsafe extern "C" fn fettle_parquet_free(reader: *mut ParquetReader) {
    if !reader.is_null() {
        drop(Box::from_raw(reader));
    }
}

/// # Safety
/// `reader` is a live handle.
#[no_mangle]
pub unsafe extern "C" fn fettle_parquet_rows(reader: *const ParquetReader) -> i64 {
    (*reader).count
}

/// # Safety
/// `reader` is a live handle, used by nobody else during the call; `out` and `more` are writable.
#[no_mangle]
pub unsafe extern "C" fn fettle_parquet_next(
    reader: *mut ParquetReader,
    out: *mut Buffer,
    more: *mut i32,
    error: *mut Buffer,
) -> i32 {
    guarded(error, || {
        let lines = next_rows(&mut *reader)?;
        *more = i32::from(lines.is_some());
        *out = Buffer::from_vec(lines.unwrap_or_default());
        Ok(())
    })
}
