//! What QEMU says and is told when a guest's write finds no room on this machine
//! (QEMU's qapi/block-core.json, `BLOCK_IO_ERROR`, and qapi/run-state.json, 7.2).

use serde::Deserialize;

/// Leaves negotiation and asks what the guest does: a halt may be older than the question.
pub const OPENING: &[u8] = b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-status\"}\n";

/// Lets the guest go on; the failed write is tried again.
pub const CONTINUE: &[u8] = b"{\"execute\":\"cont\"}\n";

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Event {
        event: String,
        data: Data,
    },
    Answer {
        #[serde(rename = "return")]
        answer: Status,
    },
}

#[derive(Deserialize)]
struct Data {
    action: String,
}

#[derive(Deserialize)]
struct Status {
    status: String,
}

/// What the monitor says of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It is halted by an error of a disk.
    Halted,
    /// Asked, that it is not.
    Runs,
}

/// What a line of the monitor says of the guest, if anything.
pub fn told(line: &str) -> Option<Told> {
    match serde_json::from_str(line).ok()? {
        Line::Event { event, data } => {
            (event == "BLOCK_IO_ERROR" && data.action == "stop").then_some(Told::Halted)
        }
        Line::Answer { answer } => Some(match answer.status == "io-error" {
            true => Told::Halted,
            false => Told::Runs,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halts_are_told_from_other_lines() {
        let error = |action: &str| {
            format!(
                "{{\"timestamp\": {{\"seconds\": 1}}, \"event\": \"BLOCK_IO_ERROR\", \"data\": \
                 {{\"device\": \"work\", \"nospace\": true, \"action\": \"{action}\"}}}}"
            )
        };
        assert_eq!(told(&error("stop")), Some(Told::Halted));
        assert_eq!(told(&error("report")), None);
        let status = |word: &str| format!("{{\"return\": {{\"status\": \"{word}\"}}}}");
        assert_eq!(told(&status("io-error")), Some(Told::Halted));
        assert_eq!(told(&status("running")), Some(Told::Runs));
        for other in ["{\"return\": {}}", "{\"event\": \"STOP\"}", "garbage"] {
            assert_eq!(told(other), None);
        }
    }
}
