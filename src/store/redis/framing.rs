//! The gRPC header in front of each message: removed and added.
//!
//! A stream that a Wasm plugin keeps open must be gRPC; Redis does not speak gRPC. The bridge, an upstream
//! filter, removes the headers from bytes to Redis, and adds one before each piece that comes back. (gRPC
//! over HTTP/2, "Length-Prefixed-Message": one byte for the compression, and the length in four bytes, big
//! endian.)

/// Length of a message header.
const HEAD_LEN: usize = 5;

/// Removes message headers, wherever the pieces of the stream were split.
#[derive(Debug, Default)]
pub struct GrpcDeframer {
    head: Vec<u8>,
    left: usize,
}

impl GrpcDeframer {
    /// The message bytes of the next piece of the stream.
    pub fn strip(&mut self, piece: &[u8]) -> Vec<u8> {
        let mut stripped = Vec::with_capacity(piece.len());
        let mut piece = piece;
        while !piece.is_empty() {
            if self.left == 0 {
                let missing = HEAD_LEN.saturating_sub(self.head.len()).min(piece.len());
                let (head, rest) = piece.split_at(missing);
                self.head.extend_from_slice(head);
                piece = rest;
                if let [_, a, b, c, d] = *self.head {
                    self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                    self.head.clear();
                }
            } else {
                let (message, rest) = piece.split_at(self.left.min(piece.len()));
                stripped.extend_from_slice(message);
                self.left = self.left.saturating_sub(message.len());
                piece = rest;
            }
        }
        stripped
    }
}

/// The header of a message of `length` bytes.
pub fn head(length: usize) -> [u8; HEAD_LEN] {
    // Envoy passes pieces of a megabyte at most.
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [0, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_split_at_any_two_bytes_loses_its_heads_and_nothing_else() {
        let mut stream = Vec::new();
        for message in [&b"*1\r\n"[..], b"", b"$4\r\nPING\r\n"] {
            stream.extend_from_slice(&head(message.len()));
            stream.extend_from_slice(message);
        }
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let mut deframer = GrpcDeframer::default();
                let mut stripped = deframer.strip(&stream[..first]);
                stripped.extend(deframer.strip(&stream[first..second]));
                stripped.extend(deframer.strip(&stream[second..]));
                assert_eq!(stripped, b"*1\r\n$4\r\nPING\r\n", "split at {first} and {second}");
            }
        }
    }
}
