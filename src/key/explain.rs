//! The parts of a key, for people: by the same readers that make the key, without its digests.

use super::body::Body;
use super::digest::{Preimage, Subject};
use super::{KeyError, KeyPart, KeyPlan, RequestHead, Secret};

impl KeyPart {
    /// Its values in this request, in order; none when it is missing. JSON is in canonical form.
    ///
    /// They are the client's: they must not reach a log.
    ///
    /// # Errors
    ///
    /// [`KeyError::KeyInvalid`] and [`KeyError::BodyInvalid`].
    pub fn values(&self, head: &RequestHead<'_>, body: &[u8]) -> Result<Vec<Vec<u8>>, KeyError> {
        let found = if self.is_in_body() {
            self.in_body(&Body::new(body, &head.media_type()))
        } else {
            self.in_head(head)
        };
        found.map(|values| if values.is_missing() { Vec::new() } else { values.into_bytes() })
    }
}

impl KeyPlan {
    /// A digest of only the caller, which shows whether two requests have the same caller. It is keyed with
    /// the secret; without one, anyone who can guess the caller can check the guess.
    ///
    /// # Errors
    ///
    /// [`KeyError::CallerMissing`].
    pub fn caller_in(
        &self,
        head: &RequestHead<'_>,
        secret: Option<&Secret>,
    ) -> Result<[u8; 32], KeyError> {
        let mut preimage = Preimage::new(Subject::Key);
        self.caller.add(head, &mut preimage)?;
        Ok(preimage.digest(secret))
    }
}
