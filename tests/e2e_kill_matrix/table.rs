//! The result: rows are boundaries, columns are faults.

use std::fmt;
use std::path::PathBuf;

use crate::fault::Fault;
use crate::operation::Operation;

/// How a cell ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The operation did not take place: the host is as before it.
    AsBefore,
    /// The operation reached its end all the same, and the host is as it is to be then.
    Done,
    /// The VM runs on under the new daemon and answers.
    Adopted,
    /// Something could not be brought to its end; tried again, it came to this.
    Stuck(Box<Verdict>),
    /// It failed and said what to type; typed, it reached its end.
    Again,
    /// The same, by a restart of the VM.
    Restarted,
    /// It cannot be brought back and says so; deleted, nothing of it is left.
    Lost,
    /// There is nothing to do the fault to at this boundary.
    NotThere,
    /// What was left, or how it went wrong.
    Fail(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::AsBefore => f.write_str("as before"),
            Verdict::Done => f.write_str("done"),
            Verdict::Adopted => f.write_str("adopted"),
            Verdict::Stuck(later) => write!(f, "stuck, then {later}"),
            Verdict::Lost => f.write_str("deleted"),
            Verdict::Again => f.write_str("again, then done"),
            Verdict::Restarted => f.write_str("restarted, then done"),
            Verdict::NotThere => f.write_str("·"),
            Verdict::Fail(why) => write!(f, "FAIL: {}", why.replace(['\n', '|'], " ")),
        }
    }
}

/// The cells of one operation.
#[derive(Debug)]
pub struct Table {
    operation: Operation,
    places: Vec<String>,
    cells: Vec<(String, Fault, Verdict)>,
}

impl Table {
    /// No cell yet.
    pub fn new(operation: Operation) -> Table {
        Table {
            operation,
            places: Vec::new(),
            cells: Vec::new(),
        }
    }

    /// Notes how a cell ended.
    pub fn note(&mut self, place: &str, fault: Fault, verdict: Verdict) {
        if !self.places.iter().any(|known| known == place) {
            self.places.push(place.to_owned());
        }
        self.cells.push((place.to_owned(), fault, verdict));
    }

    /// The cells that failed.
    pub fn failures(&self) -> Vec<String> {
        let failed = self.cells.iter().filter_map(|(place, fault, verdict)| {
            let is_failure = matches!(verdict, Verdict::Fail(_));
            is_failure.then(|| format!("{place}, {}: {verdict}", fault.word()))
        });
        failed.collect()
    }

    /// Writes it into the folder that `BANGER_KILL_MATRIX_OUT` names.
    pub fn write(&self) {
        let Some(folder) = std::env::var_os("BANGER_KILL_MATRIX_OUT").map(PathBuf::from) else {
            return;
        };
        let name = self.operation.word().replace(' ', "-");
        std::fs::write(folder.join(format!("{name}.md")), self.markdown())
            .expect("the folder of the tables takes a file");
    }

    fn markdown(&self) -> String {
        let faults = Fault::of(self.operation);
        let words: Vec<&str> = faults.iter().map(|fault| fault.word()).collect();
        let mut text = format!("| {} | {} |\n", self.operation.word(), words.join(" | "));
        text += &format!("|---|{}\n", "---|".repeat(faults.len()));
        for place in &self.places {
            let cells: Vec<String> = faults
                .iter()
                .map(|fault| self.cell(place, *fault))
                .collect();
            text += &format!("| {place} | {} |\n", cells.join(" | "));
        }
        text
    }

    fn cell(&self, place: &str, fault: Fault) -> String {
        let mut cells = self.cells.iter();
        let found = cells.find(|(at, with, _)| at == place && *with == fault);
        found.map_or(String::new(), |(_, _, verdict)| verdict.to_string())
    }
}
