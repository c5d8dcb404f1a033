//! All rows in a shape for people and programs; `docs/crash-recovery.md` describes it.

use serde::Serialize;
use serde_json::Value;

use super::copy::StoreRows;
use super::migrate::SCHEMA;
use super::rows::{self, Rows, Unread};

/// The version of this shape.
const FORMAT: u32 = 1;

/// Everything that a store holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Export {
    /// The version of this shape.
    pub format: u32,
    /// The file.
    pub store: String,
    /// The version of the rows.
    pub schema: u64,
    /// VMs, by id.
    pub vms: Vec<ExportRow>,
    /// Images, by name.
    pub images: Vec<ExportRow>,
    /// Kernels, by name.
    pub kernels: Vec<ExportRow>,
}

/// One row: its value in the first form that can hold it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExportRow {
    /// Id or name.
    pub key: String,
    /// What lies in the store.
    #[serde(flatten)]
    pub value: ExportValue,
    /// Why this version does not understand it; absent for a row that it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
}

/// A row's value.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportValue {
    /// It is JSON, as every row of ours.
    Row(Value),
    /// It is text, and no JSON.
    Text(String),
    /// It is bytes, two digits each.
    Hex(String),
}

/// The rows of a store; `store` is its file, for people.
pub fn export(rows: &StoreRows, store: String) -> Export {
    Export {
        format: FORMAT,
        store,
        schema: SCHEMA,
        vms: all(&rows.vms, rows::vm_unread),
        images: all(&rows.images, rows::image_unread),
        kernels: all(&rows.kernels, rows::kernel_unread),
    }
}

fn all(rows: &Rows, unread: fn(&str, &[u8]) -> Option<Unread>) -> Vec<ExportRow> {
    let row = |(key, value): &(String, Vec<u8>)| ExportRow {
        key: key.clone(),
        value: ExportValue::of(value),
        unreadable: unread(key, value).map(|why| why.to_string()),
    };
    rows.iter().map(row).collect()
}

impl ExportValue {
    fn of(bytes: &[u8]) -> ExportValue {
        let text = || std::str::from_utf8(bytes).ok();
        match (serde_json::from_slice(bytes), text()) {
            (Ok(row), _) => ExportValue::Row(row),
            (Err(_), Some(text)) => ExportValue::Text(text.to_owned()),
            (Err(_), None) => {
                let digits = bytes.iter().map(|byte| format!("{byte:02x}"));
                ExportValue::Hex(digits.collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample_rows() -> StoreRows {
        let row = |key: &str, value: &[u8]| (key.to_owned(), value.to_vec());
        StoreRows {
            vms: vec![
                row("00000001", b"{\"name\":\"torn"),
                row("00000002", b"\xff\x00"),
            ],
            images: vec![row(
                "debian-bookworm",
                include_bytes!("samples/image.v1.json"),
            )],
            kernels: vec![row(
                "debian-6.1-cloud",
                include_bytes!("samples/kernel.v1.json"),
            )],
        }
    }

    #[test]
    fn every_row_is_there_also_what_nobody_can_read() {
        let export = export(&sample_rows(), "/var/lib/banger/store.redb".to_owned());
        let found = serde_json::to_value(&export).unwrap();
        let sample: Value = serde_json::from_str(include_str!("samples/export.json")).unwrap();
        let text = serde_json::to_string_pretty(&found).unwrap();
        assert_eq!(found, sample, "{text}");
    }

    #[test]
    fn row_that_is_understood_is_there_as_it_lies_in_the_store() {
        let bytes = include_bytes!("samples/vm.v1.json");
        let rows = StoreRows {
            vms: vec![("0badcafe".to_owned(), bytes.to_vec())],
            ..StoreRows::default()
        };
        let export = export(&rows, String::new());
        let row = serde_json::from_slice(bytes).unwrap();
        assert_eq!(export.vms[0].value, ExportValue::Row(row));
        assert_eq!(export.vms[0].unreadable, None);
    }
}
