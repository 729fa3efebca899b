//! Envoy's shared data, as a map.

use envoy_idempotency::store::shared_data::{INSERT, SharedData, SharedDataError};
use std::cell::RefCell;
use std::collections::HashMap;

/// Values with their versions.
#[derive(Debug, Default)]
pub struct Map {
    values: RefCell<HashMap<String, (Vec<u8>, u32)>>,
}

impl SharedData for Map {
    fn load(&self, key: &str) -> (Option<Vec<u8>>, Option<u32>) {
        match self.values.borrow().get(key) {
            Some((value, cas)) => ((!value.is_empty()).then(|| value.clone()), Some(*cas)),
            None => (None, None),
        }
    }

    fn store(&self, key: &str, value: &[u8], cas: u32) -> Result<(), SharedDataError> {
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

impl Map {
    /// Bytes of all values.
    pub fn bytes(&self) -> usize {
        self.values.borrow().values().map(|(value, _)| value.len()).sum()
    }

    /// All values, by their names.
    pub fn values(&self) -> Vec<(String, Vec<u8>)> {
        let values = self.values.borrow();
        values.iter().map(|(name, (value, _))| (name.clone(), value.clone())).collect()
    }

    /// Cuts every value short.
    pub fn spoil(&self) {
        for (value, _) in self.values.borrow_mut().values_mut() {
            value.pop();
        }
    }
}
