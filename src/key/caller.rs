//! The caller of a request: keeps one caller from getting another caller's answers.

use super::digest::{Preimage, Tag};
use super::part::Values;
use super::{KeyError, RequestHead};

/// The source of the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallerSource {
    /// No caller: all callers share keys and therefore answers.
    Anyone,
    /// Every value of a header (lower case).
    Header(String),
    /// The value of a cookie; all of them, when there are several.
    Cookie(String),
    /// A leaf of dynamic metadata, by its path below `filter_metadata`, e.g. one that `jwt_authn` sets.
    Metadata(Vec<String>),
    /// The URI SAN of the client certificate: the SPIFFE identity in a mesh.
    Peer,
}

impl CallerSource {
    /// Adds the caller to the digest.
    pub(super) fn add(
        &self,
        head: &RequestHead<'_>,
        preimage: &mut Preimage,
    ) -> Result<(), KeyError> {
        let values = match self {
            Self::Anyone => {
                preimage.frame(Tag::Anyone, b"");
                return Ok(());
            }
            Self::Header(name) => {
                preimage.frame(Tag::CallerHeader, name.as_bytes());
                head.headers_named(name).map(<[u8]>::to_vec).collect()
            }
            Self::Cookie(name) => {
                preimage.frame(Tag::CallerCookie, name.as_bytes());
                head.cookies(name)
            }
            Self::Metadata(below) => {
                let mut path = vec!["metadata", "filter_metadata"];
                for step in below {
                    preimage.frame(Tag::CallerMetadata, step.as_bytes());
                    path.push(step);
                }
                head.attributes.attribute(&path).into_iter().collect()
            }
            Self::Peer => {
                preimage.frame(Tag::CallerPeer, b"");
                let path = ["connection", "uri_san_peer_certificate"];
                head.attributes.attribute(&path).into_iter().collect()
            }
        };
        let values = Values::bytes(values);
        if values.is_missing() {
            return Err(KeyError::CallerMissing);
        }
        values.add(preimage);
        Ok(())
    }
}
