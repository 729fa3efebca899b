//! The bytes that are digested, and how.
//!
//! ```text
//! pre-image = version (1 byte), subject (1 byte: K or F), frame*
//! frame     = tag (1 byte), length (4 bytes, big endian), bytes
//! ```
//!
//! Frames can be parsed back in only one way, so different lists of frames have different pre-images: `("a",
//! "bc")` is not `("ab", "c")`, and a header's value is not a cookie's.

use super::Secret;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// Changes whenever the pre-image of any request does: records under the old keys are then never
/// found, and the changelog must say so.
const VERSION: u8 = 1;

/// The subject of a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    Key,
    Fingerprint,
}

/// The content of a frame. The numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    /// The rule's name.
    Rule = 0x01,
    /// A value, as it is.
    Bytes = 0x02,
    /// A JSON value in canonical form.
    Canonical = 0x03,
    /// An absent JSON value.
    Absent = 0x04,

    /// All callers are the same; empty.
    Anyone = 0x10,
    /// The caller is in this header.
    CallerHeader = 0x11,
    /// The caller is in this cookie.
    CallerCookie = 0x12,
    /// The caller is in metadata; a frame for each step of the path.
    CallerMetadata = 0x13,
    /// The caller is in the certificate; empty.
    CallerPeer = 0x14,

    /// The method.
    Method = 0x20,
    /// The host.
    Host = 0x21,
    /// The path.
    Path = 0x22,

    /// A part of the key, by its name.
    KeyHeader = 0x30,
    Header = 0x31,
    Query = 0x32,
    Cookie = 0x33,
    Capture = 0x34,
    Json = 0x35,
    Form = 0x36,
    /// The whole body is a part; empty.
    Body = 0x37,

    /// The media type of the body.
    MediaType = 0x40,
    /// A field of the body, by its pointer.
    Field = 0x41,
    /// The body without some fields; empty.
    Except = 0x42,
}

/// The bytes to digest.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Preimage(Vec<u8>);

impl Preimage {
    pub(super) fn new(subject: Subject) -> Self {
        let subject = match subject {
            Subject::Key => b'K',
            Subject::Fingerprint => b'F',
        };
        Self(vec![VERSION, subject])
    }

    pub(super) fn frame(&mut self, tag: Tag, bytes: &[u8]) {
        // Four bytes hold any length that is possible in a module's address space of 4 GiB.
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.0.push(tag as u8);
        self.0.extend_from_slice(&len.to_be_bytes());
        self.0.extend_from_slice(bytes);
    }

    /// SHA-256, or HMAC-SHA-256 (RFC 2104) with a secret.
    pub(super) fn digest(&self, secret: Option<&Secret>) -> [u8; 32] {
        let Some(secret) = secret else {
            return Sha256::digest(&self.0).into();
        };
        // RFC 2104 section 3: keys can be of any length, so the second is never made.
        let mut mac = Hmac::<Sha256>::new_from_slice(&secret.0)
            .unwrap_or_else(|_too_short_or_long| Hmac::<Sha256>::new(&Default::default()));
        mac.update(&self.0);
        mac.finalize().into_bytes().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn preimage(frames: &[(Tag, Vec<u8>)]) -> Preimage {
        let mut preimage = Preimage::new(Subject::Key);
        for (tag, bytes) in frames {
            preimage.frame(*tag, bytes);
        }
        preimage
    }

    /// Parses a pre-image back: because this is possible, no two lists of frames share one.
    fn frames(preimage: &Preimage) -> Vec<(u8, Vec<u8>)> {
        let mut rest = &preimage.0[2..];
        let mut frames = Vec::new();
        while let [tag, a, b, c, d, after @ ..] = rest {
            let len = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            frames.push((*tag, after[..len].to_vec()));
            rest = &after[len..];
        }
        assert!(rest.is_empty());
        frames
    }

    fn any_frames() -> impl Strategy<Value = Vec<(Tag, Vec<u8>)>> {
        let tag = prop::sample::select(vec![Tag::Bytes, Tag::Canonical, Tag::Header, Tag::Absent]);
        prop::collection::vec((tag, prop::collection::vec(0..3_u8, 0..4)), 0..4)
    }

    #[test]
    fn a_preimage_is_written_as_documented() {
        let preimage = preimage(&[(Tag::Rule, b"ab".to_vec()), (Tag::Absent, vec![])]);
        assert_eq!(preimage.0, b"\x01K\x01\x00\x00\x00\x02ab\x04\x00\x00\x00\x00");
        assert_eq!(Preimage::new(Subject::Fingerprint).0, b"\x01F");
    }

    #[test]
    fn the_digest_is_hmac_sha_256_with_a_secret() {
        // RFC 4231, test case 2, over a pre-image that is only the text of the case.
        let text = Preimage(b"what do ya want for nothing?".to_vec());
        let hex = |digest: [u8; 32]| digest.map(|byte| format!("{byte:02x}")).concat();
        assert_eq!(
            hex(text.digest(Some(&Secret(b"Jefe".to_vec())))),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        // FIPS 180-4, example of one block.
        assert_eq!(
            hex(Preimage(b"abc".to_vec()).digest(None)),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    proptest! {
        #[test]
        fn a_preimage_can_be_read_back(frames in any_frames()) {
            let expected: Vec<_> = frames.iter().map(|(tag, bytes)| (*tag as u8, bytes.clone())).collect();
            prop_assert_eq!(super::tests::frames(&preimage(&frames)), expected);
        }

        #[test]
        fn different_frames_have_different_preimages(a in any_frames(), b in any_frames()) {
            prop_assert_eq!(a == b, preimage(&a) == preimage(&b));
        }
    }
}
