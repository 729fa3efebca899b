//! How many buckets, how many entries in each, how many bytes for their answers.

use super::entry::ENTRY_BYTES;
use std::fmt;

/// Limits of the table, and the largest answer that it must be able to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Maximum number of records.
    pub entries: u32,
    /// Maximum bytes, heads and answers together. Envoy's own overhead of about 150 bytes per answer comes on
    /// top.
    pub budget_bytes: u64,
    /// Bytes of the largest body that should be kept.
    pub largest_answer: usize,
}

/// The layout of the table. Part of its keys: tables of two layouts do not mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// A power of two.
    pub(super) buckets: u32,
    /// Entries in a bucket.
    pub(super) ways: usize,
    /// Bytes for the answers of a bucket.
    pub(super) answer_bytes: u64,
}

/// The heads would take more than half of the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyEntries {
    /// The least budget for this number of entries, in bytes.
    pub least_budget: u64,
}

impl fmt::Display for TooManyEntries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mebibytes = self.least_budget.div_ceil(1 << 20);
        write!(f, "too small for this number of entries, wanted a budget of {mebibytes}MiB or more")
    }
}

/// A bucket is read and written as a whole: more entries make each operation slower (31 KiB at 256, about a
/// microsecond); with fewer, it is likelier that one bucket is full while others are empty.
const FEWEST_WAYS: u32 = 8;
const MOST_WAYS: u32 = 256;

/// Room for the headers of an answer with the largest body; Envoy allows 60 KiB of headers by default.
const HEADERS_BYTES: u64 = 64 * 1024;

impl Layout {
    pub(super) fn of(capacity: Capacity) -> Result<Self, TooManyEntries> {
        let heads = u64::from(capacity.entries) * ENTRY_BYTES as u64;
        if heads > capacity.budget_bytes / 2 {
            return Err(TooManyEntries { least_budget: heads.saturating_mul(2) });
        }
        let answers = capacity.budget_bytes - heads;
        let largest = (capacity.largest_answer as u64).saturating_add(HEADERS_BYTES);
        // As many buckets as leave room for a largest answer in each, within the bounds of entries per
        // bucket.
        let wanted = u32::try_from(answers / largest).unwrap_or(u32::MAX);
        let fewest = capacity.entries.div_ceil(MOST_WAYS).next_power_of_two();
        let most = previous_power_of_two(capacity.entries / FEWEST_WAYS);
        let buckets = previous_power_of_two(wanted).min(most).max(fewest);
        Ok(Self {
            buckets,
            ways: (capacity.entries / buckets) as usize,
            answer_bytes: answers / u64::from(buckets),
        })
    }
}

fn previous_power_of_two(number: u32) -> u32 {
    1 << number.max(1).ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(entries: u32, budget_mib: u64, largest_kib: usize) -> Layout {
        let capacity =
            Capacity { entries, budget_bytes: budget_mib << 20, largest_answer: largest_kib << 10 };
        Layout::of(capacity).unwrap()
    }

    #[test]
    fn the_default_table_holds_a_largest_answer_in_each_bucket() {
        let layout = layout(16_384, 64, 256);
        assert_eq!((layout.buckets, layout.ways), (128, 128));
        assert!(layout.answer_bytes >= (256 + 64) << 10);
    }

    #[test]
    fn small_answers_make_many_small_buckets() {
        let layout = layout(65_536, 64, 1);
        assert_eq!((layout.buckets, layout.ways), (512, 128));
    }

    #[test]
    fn no_table_takes_more_than_its_budget_or_entries() {
        for entries in [64, 100, 4_096, 10_000, 16_383, 16_384, 1_000_000] {
            for budget in [1, 4, 64, 1_024] {
                for largest in [0, 1, 256, 8_192] {
                    let capacity = Capacity {
                        entries,
                        budget_bytes: budget << 20,
                        largest_answer: largest << 10,
                    };
                    let Ok(layout) = Layout::of(capacity) else { continue };
                    let all = u64::from(layout.buckets) * layout.ways as u64;
                    assert!(all <= u64::from(entries) && all * 2 > u64::from(entries));
                    let ways = FEWEST_WAYS as usize..=MOST_WAYS as usize;
                    assert!(ways.contains(&layout.ways), "{capacity:?} {layout:?}");
                    let bytes =
                        all * ENTRY_BYTES as u64 + layout.answer_bytes * u64::from(layout.buckets);
                    assert!(bytes <= budget << 20, "{capacity:?} {layout:?}");
                }
            }
        }
    }

    #[test]
    fn a_budget_that_the_heads_would_use_up_is_refused() {
        let capacity = Capacity { entries: 1_000_000, budget_bytes: 1 << 20, largest_answer: 1 };
        let error = Layout::of(capacity).unwrap_err();
        let least = (2 * 1_000_000 * ENTRY_BYTES).div_ceil(1 << 20);
        let wanted =
            format!("too small for this number of entries, wanted a budget of {least}MiB or more");
        assert_eq!(error.to_string(), wanted);
    }
}
