//! Envoy's shared data as a map, for the tests of this room.

use super::{INSERT, SharedData, SharedDataError};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

/// Values with their versions. Clones are the same map.
#[derive(Clone, Debug, Default)]
pub(crate) struct Map {
    values: Rc<RefCell<Values>>,
    /// Nothing can be written.
    pub(crate) broken: Rc<Cell<bool>>,
}

type Values = HashMap<String, (Vec<u8>, u32)>;

impl SharedData for Map {
    fn load(&self, key: &str) -> (Option<Vec<u8>>, Option<u32>) {
        match self.values.borrow().get(key) {
            Some((value, cas)) => ((!value.is_empty()).then(|| value.clone()), Some(*cas)),
            None => (None, None),
        }
    }

    fn store(&self, key: &str, value: &[u8], cas: u32) -> Result<(), SharedDataError> {
        if self.broken.get() {
            return Err(SharedDataError::Failed);
        }
        let mut values = self.values.borrow_mut();
        let next = match values.get(key) {
            Some((_, version)) if *version == cas => version + 1,
            None if cas == INSERT => 1,
            Some(_) | None => return Err(SharedDataError::CasMismatch),
        };
        values.insert(key.to_owned(), (value.to_vec(), next));
        Ok(())
    }
}
