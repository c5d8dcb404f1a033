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

/// Whether a line of the monitor says that the guest is halted by an error of a disk.
pub fn is_told(line: &str) -> bool {
    match serde_json::from_str(line) {
        Ok(Line::Event { event, data }) => event == "BLOCK_IO_ERROR" && data.action == "stop",
        Ok(Line::Answer { answer }) => answer.status == "io-error",
        Err(_) => false,
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
        assert!(is_told(&error("stop")));
        assert!(!is_told(&error("report")));
        let status = |word: &str| format!("{{\"return\": {{\"status\": \"{word}\"}}}}");
        assert!(is_told(&status("io-error")));
        assert!(!is_told(&status("running")));
        for other in ["{\"return\": {}}", "{\"event\": \"STOP\"}", "garbage"] {
            assert!(!is_told(other));
        }
    }
}
