//! The frames of a vsock stream: one byte of kind, four bytes of length
//! (big-endian), then the payload.
//!
//! ```text
//!  0      1           5                    5 + length
//!  | kind | length    | payload            |
//! ```
//!
//! Sans-IO: [`Decoder`] takes bytes as they come and gives whole frames. A length
//! over the limit of its kind, or a kind nobody knows, ends the stream: the peer is
//! not trusted, and its claim is checked before any memory is set aside for it.
//! Nobody half-closes a stream (both vsock back ends turn that into a full close and
//! drop what is in flight): end of input is a frame.

/// Bytes before each payload.
pub const HEADER: usize = 5;
/// Most payload bytes of a data frame.
pub const MAX_DATA: usize = 64 * 1024;
/// Most payload bytes of a frame that holds JSON.
pub const MAX_JSON: usize = 4 * 1024 * 1024;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $limit:expr;)*) => {
        /// What a frame means.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Kind {
            $($(#[$doc])* $name = $code,)*
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Kind] = &[$(Kind::$name,)*];

            /// The kind with this code.
            pub fn from_code(code: u8) -> Option<Kind> {
                match code {
                    $($code => Some(Kind::$name),)*
                    _ => None,
                }
            }

            /// Most payload bytes of this kind.
            pub fn limit(self) -> usize {
                match self {
                    $(Kind::$name => $limit,)*
                }
            }
        }
    };
}

kinds! {
    /// First frame of a stream, either direction: JSON, see `agent` and `guest`.
    Request = 0x01, MAX_JSON;
    /// Bytes of the command's standard input, or of an archive sent in.
    Input = 0x02, MAX_DATA;
    /// End of input; no payload.
    InputEnd = 0x03, 0;
    /// New terminal size: columns then rows, two big-endian u16.
    Resize = 0x04, 4;
    /// Signal for the command's process group: its Linux number, one byte.
    Signal = 0x05, 1;
    /// JSON answer that ends the stream.
    Reply = 0x81, MAX_JSON;
    /// Bytes of standard output.
    Output = 0x82, MAX_DATA;
    /// Bytes of standard error.
    ErrorOutput = 0x83, MAX_DATA;
    /// The agent takes this many more bytes of input: big-endian u32. The sender
    /// starts with [`INITIAL_CREDIT`](super::agent::INITIAL_CREDIT) and never sends
    /// more than it was given, so a command that does not read its input cannot keep
    /// a signal or a resize from arriving.
    Credit = 0x84, 4;
    /// The command ended: JSON `Exit`; nothing follows.
    Exit = 0x85, MAX_JSON;
    /// The request failed in the agent: JSON `AgentFailure`; nothing follows.
    Failed = 0x86, MAX_JSON;
}

/// Why a stream is not ours; the connection is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A kind that this version does not know.
    #[error("a frame of unknown kind 0x{0:02x}")]
    UnknownKind(u8),
    /// A claimed length over the kind's limit.
    #[error("a {kind:?} frame of {length} bytes: {limit} are allowed", limit = .kind.limit())]
    TooLong {
        /// The frame's kind.
        kind: Kind,
        /// The length it claimed, bytes.
        length: u64,
    },
    /// A payload that its kind does not allow.
    #[error("a {kind:?} frame with a malformed payload: {why}")]
    Malformed {
        /// The frame's kind.
        kind: Kind,
        /// What is wrong with it.
        why: String,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended {missing} bytes before the end of a frame")]
    Truncated {
        /// Bytes that never came; at least this many.
        missing: usize,
    },
}

/// One whole frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it means.
    pub kind: Kind,
    /// Its bytes.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Reads a JSON payload.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, FrameError> {
        serde_json::from_slice(&self.payload).map_err(|error| FrameError::Malformed {
            kind: self.kind,
            why: error.to_string(),
        })
    }

    /// Reads a big-endian u32 payload (`Credit`).
    pub fn number(&self) -> Result<u32, FrameError> {
        let bytes = self.payload.as_slice().try_into();
        bytes
            .map(u32::from_be_bytes)
            .map_err(|_| FrameError::Malformed {
                kind: self.kind,
                why: format!("{} bytes instead of 4", self.payload.len()),
            })
    }

    /// Reads a `Resize` payload: columns, rows.
    pub fn size(&self) -> Result<(u16, u16), FrameError> {
        let both = self.number()?;
        Ok(((both >> 16) as u16, both as u16))
    }
}

/// Appends a frame to `buffer`. The payload must be within the kind's limit: data is
/// cut by its sender (see [`MAX_DATA`]).
pub fn encode(kind: Kind, payload: &[u8], buffer: &mut Vec<u8>) {
    assert!(
        payload.len() <= kind.limit(),
        "a {kind:?} frame of {} bytes",
        payload.len()
    );
    buffer.push(kind as u8);
    buffer.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    buffer.extend_from_slice(payload);
}

/// The bytes of one frame.
pub fn encoded(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(HEADER + payload.len());
    encode(kind, payload, &mut buffer);
    buffer
}

/// The bytes of one frame that holds `value` as JSON.
pub fn encoded_json<T: serde::Serialize>(kind: Kind, value: &T) -> Vec<u8> {
    let payload = serde_json::to_vec(value).expect("our own messages have string keys only");
    encoded(kind, &payload)
}

/// Turns bytes into frames, in any split.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// A decoder at the start of a stream.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Takes the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, `None` when more bytes are needed.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let rest = &self.buffer[self.start..];
        let Some((header, body)) = rest.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let kind = Kind::from_code(header[0]).ok_or(FrameError::UnknownKind(header[0]))?;
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if length > kind.limit() {
            return Err(FrameError::TooLong {
                kind,
                length: length as u64,
            });
        }
        if body.len() < length {
            return Ok(None);
        }
        let payload = body[..length].to_vec();
        self.start += HEADER + length;
        Ok(Some(Frame { kind, payload }))
    }

    /// Checks at the end of a stream that it did not end inside a frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        let rest = &self.buffer[self.start..];
        if rest.is_empty() {
            return Ok(());
        }
        let wanted = rest.first_chunk::<HEADER>().map_or(HEADER, |header| {
            HEADER + u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize
        });
        Err(FrameError::Truncated {
            missing: wanted.saturating_sub(rest.len()).max(1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn codes_round_trip_and_are_unique() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_code(*kind as u8), Some(*kind));
        }
    }

    #[test]
    fn a_claimed_length_over_the_limit_is_refused_before_the_payload_comes() {
        let mut decoder = Decoder::new();
        decoder.push(&[Kind::Input as u8, 0xff, 0xff, 0xff, 0xff]);
        let error = decoder.next_frame().unwrap_err();
        assert_eq!(
            error,
            FrameError::TooLong {
                kind: Kind::Input,
                length: 0xffff_ffff
            }
        );
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        let mut decoder = Decoder::new();
        decoder.push(&[0x7f, 0, 0, 0, 0]);
        assert_eq!(decoder.next_frame(), Err(FrameError::UnknownKind(0x7f)));
    }

    #[test]
    fn a_stream_cut_inside_a_frame_is_truncated() {
        let mut decoder = Decoder::new();
        decoder.push(&encoded(Kind::Output, b"hello")[..7]);
        assert_eq!(decoder.next_frame(), Ok(None));
        assert_eq!(decoder.finish(), Err(FrameError::Truncated { missing: 3 }));
    }

    #[test]
    fn resize_carries_columns_then_rows() {
        let frame = Frame {
            kind: Kind::Resize,
            payload: vec![0, 120, 0, 40],
        };
        assert_eq!(frame.size(), Ok((120, 40)));
    }

    proptest! {
        #[test]
        fn any_split_of_the_bytes_gives_the_same_frames(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..8),
            step in 1_usize..40,
        ) {
            let mut bytes = Vec::new();
            for payload in &payloads {
                encode(Kind::Output, payload, &mut bytes);
            }
            let mut decoder = Decoder::new();
            let mut seen = Vec::new();
            for part in bytes.chunks(step) {
                decoder.push(part);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame.payload);
                }
            }
            prop_assert_eq!(seen, payloads);
            prop_assert_eq!(decoder.finish(), Ok(()));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = Decoder::new();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
    }
}
