//! Crowds besides the ordinary load: duplicates of one new key that come in one moment to one Envoy.

use super::ledger::Fate;
use super::load::{Dice, Load, Seen};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use testkit::Client;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Pause between two crowds, at the most.
const PAUSE: Duration = Duration::from_secs(3);

/// The smallest is large enough to end a VM that answers all of it in one callback.
const SMALLEST: u64 = 500;
const LARGEST: u64 = 2_000;

/// Connections that share a crowd, so that every worker has a part of it.
const CONNECTIONS: u64 = 10;

/// The slowest execution of a crowd: most of it waits, and all of it is answered in time.
const SLOWEST_MILLIS: u64 = 600;

/// Sends crowds until the load ends.
pub(super) async fn send(load: Arc<Load>) {
    let mut dice = Dice::new(u64::MAX);
    while load.goes_on() {
        crowd(&load, &mut dice).await;
        sleep(Duration::from_millis(dice.below(PAUSE.as_millis() as u64))).await;
    }
}

async fn crowd(load: &Arc<Load>, dice: &mut Dice) {
    let (key, size) = (load.new_key(), SMALLEST + dice.below(LARGEST - SMALLEST + 1));
    let envoy = dice.below(load.envoys.len() as u64) as usize;
    // A released key passes from one to the next, so each of them must be fast.
    let (fate, slowest) = match dice.below(10) {
        0 => (Fate::Refuse, 1),
        1 => (Fate::DieBefore, SLOWEST_MILLIS),
        2 => (Fate::DieMiddle, SLOWEST_MILLIS),
        _ => (Fate::Answer, SLOWEST_MILLIS),
    };
    let delay = Duration::from_millis(dice.below(slowest));
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        match Client::connect(load.envoys[envoy], true).await {
            Ok(client) => clients.push(Arc::new(client)),
            Err(error) => drop(load.got(key, &Err(error))),
        }
    }
    let mut requests = JoinSet::new();
    for client in clients.iter().cycle().take(size as usize) {
        let (client, load) = (client.clone(), load.clone());
        requests.spawn(async move {
            let request = load.request(envoy, key, fate, delay).http2();
            load.requests.fetch_add(1, Ordering::SeqCst);
            let sent = Instant::now();
            let seen = load.got(key, &client.send(request).await);
            let took = sent.elapsed().as_millis() as u64;
            load.longest_in_a_crowd.fetch_max(took, Ordering::SeqCst);
            seen == Seen::Broken
        });
    }
    let mut broken = 0;
    while let Some(is_broken) = requests.join_next().await {
        broken += u64::from(is_broken.unwrap());
    }
    load.crowds.fetch_add(1, Ordering::SeqCst);
    // An execution that breaks costs its own request, and no other; after it, nobody runs the key for a while.
    if broken > 1 {
        let what = format!("{broken} answers of a crowd that broke");
        load.count(Seen::Unexplained(what));
    }
}
