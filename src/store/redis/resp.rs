//! Redis's protocol, RESP2: frames out of a stream of bytes, and commands into one.

use redis_protocol::resp2::decode::decode;
use redis_protocol::resp2::encode::encode_borrowed;
use redis_protocol::resp2::types::{BorrowedFrame, OwnedFrame};

/// A reply of Redis.
pub(super) type Frame = OwnedFrame;

/// The longest valid reply: an answer of 8 MiB, its headers, and some room. If it is longer, the stream
/// counts as broken, so that memory stays bounded.
const LONGEST_FRAME: usize = 16 * 1024 * 1024;

/// The longest valid array, in bytes: the reply of redis_proxy to `CONFIG GET` with a thousand shards, 41
/// bytes each.
const LONGEST_ARRAY: usize = 64 * 1024;

/// The longest valid line: a number, or the text of an error.
const LONGEST_LINE: usize = 1024;

/// The stream has bytes that are not RESP2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// Received bytes that are not decoded yet.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    bytes: Vec<u8>,
    read: usize,
}

impl Decoder {
    /// Takes received bytes, however they were split.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        // Once a batch, so that reading many small frames does not move the rest each time.
        self.bytes.drain(..self.read);
        self.read = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next frame; `None` until it is complete.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, Broken> {
        let rest = self.bytes.get(self.read..).unwrap_or_default();
        let is_array = rest.first() == Some(&b'*');
        let longest = if is_array { LONGEST_ARRAY } else { LONGEST_FRAME };
        let seen = rest.get(..longest).unwrap_or(rest);
        if is_array && has_array_inside(seen)? {
            return Err(Broken);
        }
        match decode(seen) {
            Ok(Some((frame, length))) => {
                self.read = self.read.saturating_add(length);
                Ok(Some(frame))
            }
            Ok(None) if seen.len() >= longest => Err(Broken),
            Ok(None) => Ok(None),
            Err(_) => Err(Broken),
        }
    }
}

/// Whether an array contains arrays, as far as it has come. No reply to our commands does, and the decoder
/// would recurse into them without a limit.
fn has_array_inside(array: &[u8]) -> Result<bool, Broken> {
    let Some(TextLine { text, mut rest }) = line(array)? else { return Ok(false) };
    for _ in 0..number(text).unwrap_or(0) {
        rest = match rest.first() {
            None => return Ok(false),
            Some(b'*') => return Ok(true),
            Some(b'$') => {
                let Some(TextLine { text, rest }) = line(rest)? else { return Ok(false) };
                // Null, of length -1, has no bytes and no end of line.
                let skipped = number(text).map_or(0, |length| length.saturating_add(2));
                let Some(rest) = rest.get(skipped..) else { return Ok(false) };
                rest
            }
            Some(_) => {
                let Some(TextLine { rest, .. }) = line(rest)? else { return Ok(false) };
                rest
            }
        };
    }
    Ok(false)
}

fn number(text: &[u8]) -> Option<usize> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A line without its first byte, and the bytes that follow it.
struct TextLine<'a> {
    text: &'a [u8],
    rest: &'a [u8],
}

/// The first line of these bytes; `None` until it is complete.
fn line(bytes: &[u8]) -> Result<Option<TextLine<'_>>, Broken> {
    let end = bytes.windows(2).take(LONGEST_LINE).position(|pair| pair == b"\r\n");
    let Some(end) = end else {
        return if bytes.len() > LONGEST_LINE { Err(Broken) } else { Ok(None) };
    };
    let line = bytes.get(1..end).zip(bytes.get(end.saturating_add(2)..));
    Ok(line.map(|(text, rest)| TextLine { text, rest }))
}

/// Appends a command to `out`.
pub(super) fn write(out: &mut Vec<u8>, arguments: &[&[u8]]) {
    let parts: Vec<_> = arguments.iter().map(|part| BorrowedFrame::BulkString(part)).collect();
    let command = BorrowedFrame::Array(&parts);
    let start = out.len();
    out.resize(start.saturating_add(command.encode_len(false)), 0);
    // The room is as large as the encoder asked for, so this cannot fail. If it did, Redis would close the
    // pipe because of the zeros, and the commands on it would fail as they do when it breaks.
    if let Some(room) = out.get_mut(start..) {
        let _ = encode_borrowed(room, &command, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames(decoder: &mut Decoder) -> Result<Vec<Frame>, Broken> {
        std::iter::from_fn(|| decoder.next().transpose()).collect()
    }

    #[test]
    fn a_reply_split_at_any_byte_is_the_same_reply() {
        let stream =
            b"+OK\r\n$5\r\na\r\nbc\r\n-NOSCRIPT No\r\n:7\r\n*2\r\n$1\r\na\r\n:1\r\n$-1\r\n";
        let mut whole = Decoder::default();
        whole.push(stream);
        let whole = frames(&mut whole).unwrap();
        assert_eq!(whole.len(), 6);
        for at in 0..=stream.len() {
            let (first, second) = stream.split_at(at);
            let mut decoder = Decoder::default();
            decoder.push(first);
            let mut found = frames(&mut decoder).unwrap();
            decoder.push(second);
            found.extend(frames(&mut decoder).unwrap());
            assert_eq!(found, whole, "split at {at}");
        }
    }

    #[test]
    fn a_stream_that_promises_too_much_is_broken_and_not_waited_for() {
        let mut decoder = Decoder::default();
        decoder.push(b"*100000\r\n");
        decoder.push(&b"$1\r\na\r\n".repeat(LONGEST_ARRAY));
        assert_eq!(decoder.next(), Err(Broken));
        let mut endless = Decoder::default();
        endless.push(b"*1");
        endless.push(&vec![b'1'; 2 * LONGEST_LINE]);
        assert_eq!(endless.next(), Err(Broken));
        for times in [2, 1_000_000] {
            let mut nested = Decoder::default();
            nested.push(&b"*1\r\n".repeat(times));
            assert_eq!(nested.next(), Err(Broken));
        }
        let mut late = Decoder::default();
        late.push(b"*4\r\n$1\r\na\r\n$-1\r\n:1\r\n*1\r\n");
        assert_eq!(late.next(), Err(Broken));
        let mut long = Decoder::default();
        long.push(b"$999999999\r\n");
        assert_eq!(long.next(), Ok(None));
        long.push(&vec![b'a'; LONGEST_FRAME]);
        assert_eq!(long.next(), Err(Broken));
    }

    #[test]
    fn redis_proxy_joins_the_replies_of_a_thousand_shards() {
        let shard = b"$16\r\nmaxmemory-policy\r\n$10\r\nnoeviction\r\n";
        for shards in [1, 26, 1_000] {
            let stream =
                [format!("*{}\r\n", 2 * shards).as_bytes(), &shard.repeat(shards)].concat();
            let mut decoder = Decoder::default();
            // In pieces, as they come.
            let mut frames = Vec::new();
            for piece in stream.chunks(16 * 1024) {
                decoder.push(piece);
                frames.extend(decoder.next().unwrap());
            }
            let [Frame::Array(parts)] = &frames[..] else { panic!("{shards}: {frames:?}") };
            assert_eq!(parts.len(), 2 * shards);
        }
    }

    #[test]
    fn a_command_is_an_array_of_its_parts() {
        let mut out = b"before".to_vec();
        write(&mut out, &[b"SET", b"k", b"\r\n\xff", b""]);
        assert_eq!(out, b"before*4\r\n$3\r\nSET\r\n$1\r\nk\r\n$3\r\n\r\n\xff\r\n$0\r\n\r\n");
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..16)) {
            let mut decoder = Decoder::default();
            for piece in pieces {
                decoder.push(&piece);
                if frames(&mut decoder).is_err() {
                    break;
                }
            }
        }
    }
}
