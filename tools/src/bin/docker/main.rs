//! `make docker-test`: two Envoys, Redis and an origin that counts, in containers, through the faults that an
//! operator fears; `--demo` shows normal operation, `--serve` leaves them running.
//!
//! The origin is the reference. Unknown outcomes last 15 minutes in `envoy/redis.yaml`, longer than a run,
//! and the origin refuses nothing. So one rule holds for all keys of a run, whatever was stopped,
//! disconnected or restarted meanwhile: *no key is executed twice*. Each client gets the answer of that
//! execution, or `outcome-unknown`.
//!
//! Everything that the run creates is removed at its end, also after a failure or a signal.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "it takes the time that containers take, and a run that cannot go on ends there"
)]

mod compose;
mod fleet;
mod load;

use compose::Compose;
use fleet::Fleet;
use load::{Load, Verdict};
use std::collections::BTreeMap;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use testkit::{Answer, Request};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

/// Several times the length of a run: a hanging run must not delay CI.
const LONGEST: Duration = Duration::from_secs(360);

/// Duplicates at once, half of them at each Envoy.
const DUPLICATES: usize = 40;

/// An Envoy caches the lookup of a claim elsewhere for 10 ms: copies get 409 for so long after the end of the
/// execution.
const LOOKUP_CACHED: Duration = Duration::from_millis(100);

/// How long Redis is away: several times the store's timeout (250 ms), far below a lease (10 s).
const REDIS_AWAY: Duration = Duration::from_secs(2);

/// How long one Envoy is disconnected: as above.
const CUT_OFF: Duration = Duration::from_secs(4);

/// The drain time of the compose file, plus the delay of a busy machine: an Envoy that is stopped then has
/// drained.
const DRAIN: Duration = Duration::from_secs(3);

/// How soon service must be back after the fault ends.
const BACK_WITHIN: Duration = Duration::from_secs(3);

/// A lease, for which the claim of a stopped Envoy lives on, plus the delay of a busy machine.
const LAPSED_WITHIN: Duration = Duration::from_secs(15);

/// Requests of the demo that got 503 while Redis was there, and were sent again.
static SENT_AGAIN: AtomicUsize = AtomicUsize::new(0);

/// Lines that were not as expected.
static FAILURES: AtomicUsize = AtomicUsize::new(0);

#[tokio::main]
async fn main() -> ExitCode {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let serves = wanted == "--serve";
    let compose = Compose::new();
    let begun = Instant::now();
    println!("Starting two Envoys, Redis and an origin that counts: project {}", compose.project());
    let story = tokio::spawn({
        let compose = compose.clone();
        async move {
            let fleet = Arc::new(Fleet::start(compose).await);
            images(&fleet).await;
            match wanted.as_str() {
                "--demo" => demo(&fleet).await,
                "--serve" => serve(&fleet).await,
                _ => test(&fleet).await,
            }
        }
    });
    let stop = story.abort_handle();
    let end = tokio::select! {
        story = story => if story.is_ok() { End::Told } else { End::BrokeOff },
        () = interrupted() => End::Interrupted,
        () = sleep(LONGEST), if !serves => End::TookTooLong,
    };
    stop.abort();
    let failures = FAILURES.load(Ordering::SeqCst);
    let verdict = match end {
        End::Told if failures == 0 => Ok("All as it should be"),
        End::Interrupted if serves => Ok("Ended"),
        End::Told => Err(format!("{failures} lines end in NOT AS EXPECTED")),
        End::BrokeOff => Err("it could not go on".to_owned()),
        End::TookTooLong => Err(format!("it takes longer than {} s", LONGEST.as_secs())),
        End::Interrupted => Err("it was interrupted".to_owned()),
    };
    if verdict.is_err() && end != End::Interrupted {
        println!("\nLogs of the containers:\n{}", compose.log().await);
    }
    let removed = compose.down().await;
    if let Err(why) = &removed {
        println!("\nSome resources of project {} remain: {why}", compose.project());
    }
    let seconds = begun.elapsed().as_secs();
    match verdict {
        Ok(how) if removed.is_ok() => {
            println!("\n{how}; everything removed again after {seconds} s.");
            return ExitCode::SUCCESS;
        }
        Ok(_) => {}
        Err(why) => println!("\nFAILED after {seconds} s: {why}."),
    }
    ExitCode::FAILURE
}

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// To the last line, whether or not all were as expected.
    Told,
    /// By a panic, which has printed its reason.
    BrokeOff,
    Interrupted,
    TookTooLong,
}

/// Without waiting for the signal, it would end this process before its containers.
async fn interrupted() {
    let mut terminated = signal(SignalKind::terminate()).unwrap();
    let mut hung_up = signal(SignalKind::hangup()).unwrap();
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated.recv() => {}
        _ = hung_up.recv() => {}
    }
}

fn chapter(title: &str) {
    println!("\n{title}");
}

/// Prints a line, and whether it is as expected.
fn tell(is_so: bool, sentence: &str) {
    if is_so {
        println!("  {sentence}");
    } else {
        FAILURES.fetch_add(1, Ordering::SeqCst);
        println!("  {sentence}   NOT AS EXPECTED");
    }
}

/// Prints which images run: official images and substitutes have the same names.
async fn images(fleet: &Fleet) {
    for container in [&fleet.envoys[0].container, &fleet.redis] {
        let format = "{{.Config.Image}}{{if .Config.Labels}}\
             {{with index .Config.Labels \"envoy-idempotency/stand-in\"}}, a substitute{{end}}{{end}}";
        let image = fleet.compose.docker(&["inspect", "--format", format, container]).await;
        println!("  {}", image.trim());
    }
}

async fn test(fleet: &Arc<Fleet>) {
    let began = fleet.ledger().await.began;
    duplicates(fleet).await;
    redis_killed(fleet).await;
    cut_off(fleet).await;
    rolling_restart(fleet).await;
    chapter("The origin's ledger");
    let sent_again = SENT_AGAIN.load(Ordering::SeqCst);
    if sent_again > 0 {
        println!("  {sent_again} × Redis was too slow for a request above, which was sent again");
    }
    let ledger = fleet.ledger().await;
    tell(ledger.began == began, "one process of the origin has counted all of this");
    tell(
        ledger.most() == 1,
        &format!(
            "{} keys ran, {} executions, at the most {} of one key",
            ledger.executions.len(),
            ledger.total(),
            ledger.most()
        ),
    );
}

/// Sends this as a client should: again, if the store was too slow. A Redis that writes each command to a
/// busy disk may take longer than the timeout of 250 ms in `envoy/redis.yaml`.
async fn patiently(request: Request) -> Answer {
    try_patiently(request).await.unwrap()
}

/// … and the answer may break off.
async fn try_patiently(request: Request) -> io::Result<Answer> {
    let begun = Instant::now();
    loop {
        let answer = request.clone().try_send().await?;
        if answer.code() != "store-unavailable" || begun.elapsed() > LAPSED_WITHIN {
            return Ok(answer);
        }
        SENT_AGAIN.fetch_add(1, Ordering::SeqCst);
        sleep(Duration::from_millis(100)).await;
    }
}

/// Sends these at once; returns the number of answers of each kind, and the answers.
async fn at_once(
    requests: impl IntoIterator<Item = impl Future<Output = Answer> + Send + 'static>,
) -> (BTreeMap<String, usize>, Vec<Answer>) {
    let sent: Vec<_> = requests.into_iter().map(tokio::spawn).collect();
    let (mut kinds, mut answers) = (BTreeMap::new(), Vec::new());
    for one in sent {
        let answer = one.await.unwrap();
        *kinds.entry(kind(&answer)).or_default() += 1;
        answers.push(answer);
    }
    (kinds, answers)
}

fn kind(answer: &Answer) -> String {
    let replayed = if answer.is_replay() { "replayed" } else { "" };
    let words = [answer.status.to_string(), answer.code(), replayed.to_owned()];
    words.iter().filter(|word| !word.is_empty()).cloned().collect::<Vec<_>>().join(" ")
}

/// `38 × 409 in-progress, 1 × 201`
fn listed(kinds: &BTreeMap<String, usize>) -> String {
    let each: Vec<_> = kinds.iter().map(|(kind, count)| format!("{count} × {kind}")).collect();
    each.join(", ")
}

fn kinds<const N: usize>(wanted: [(&str, usize); N]) -> BTreeMap<String, usize> {
    wanted.into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect()
}

async fn duplicates(fleet: &Arc<Fleet>) {
    chapter("Duplicates across the two Envoys");
    let payment = |envoy: usize| fleet.payment(envoy, "payment").header("x-origin-hold", "payment");
    let first = tokio::spawn(patiently(payment(0)));
    fleet.runs("payment").await;
    let copies = || (0..DUPLICATES).map(|number| patiently(payment(number % 2)));
    let (got, _) = at_once(copies()).await;
    tell(
        got == kinds([("409 in-progress", DUPLICATES)]),
        &format!(
            "{DUPLICATES} copies of a payment while it runs, at both Envoys: {}",
            listed(&got)
        ),
    );
    fleet.release("payment").await;
    let first = first.await.unwrap();
    sleep(LOOKUP_CACHED).await;
    let (got, answers) = at_once(copies()).await;
    let same = answers.iter().all(|answer| answer.body == first.body);
    tell(
        same && got == kinds([("201 replayed", DUPLICATES)]),
        &format!(
            "{DUPLICATES} copies after it, at both: {}, byte for byte the first",
            listed(&got)
        ),
    );
    let other = patiently(fleet.payment_of(900, 1, "payment")).await;
    tell(other.code() == "key-reused", &format!("another amount under its key: {}", kind(&other)));
    tell_executions(fleet, "payment", 1).await;

    let path = "/orders/7/transitions";
    let transitions = (0..DUPLICATES).map(|number| {
        let request = Request::new(fleet.envoys[number % 2].front(), "POST", path)
            .header("x-origin-delay-ms", "1000")
            .json(r#"{"from":"A","to":"B"}"#);
        patiently(request)
    });
    let (got, answers) = at_once(transitions).await;
    let same = answers.iter().all(|answer| answer.body == answers[0].body);
    tell(
        same && got == kinds([("201", 1), ("201 replayed", DUPLICATES - 1)]),
        &format!(
            "{DUPLICATES} clients move order 7 from A to B at once, and wait: {}",
            listed(&got)
        ),
    );
    tell_executions(fleet, path, 1).await;
}

async fn tell_executions(fleet: &Fleet, key: &str, wanted: usize) {
    let count = fleet.ledger().await.of(key);
    tell(count == wanted, &format!("… executions at the origin: {count}"));
}

async fn redis_killed(fleet: &Arc<Fleet>) {
    chapter("Redis is killed, and started again, under load");
    let before = patiently(fleet.payment(0, "before-the-kill")).await;
    let load = Load::start(fleet, "redis");
    sleep(Duration::from_secs(2)).await;
    fleet.compose.docker(&["kill", &fleet.redis]).await;
    sleep(REDIS_AWAY).await;
    fleet.compose.docker(&["start", &fleet.redis]).await;
    tell_back(fleet, "Redis", &[0, 1]).await;
    let after = patiently(fleet.payment(1, "before-the-kill")).await;
    tell(
        after.is_replay() && after.body == before.body,
        &format!("a payment that envoy1 ran before, sent to envoy2 after: {}", kind(&after)),
    );
    sleep(Duration::from_secs(2)).await;
    let verdict = load.end().await;
    let refused = verdict.count("503 store-unavailable");
    tell(refused > 0, &format!("{refused} requests were refused meanwhile, none ran unprotected"));
    tell_verdict(&verdict);
}

async fn tell_back(fleet: &Fleet, what: &str, envoys: &[usize]) {
    let begun = Instant::now();
    for envoy in envoys {
        fleet.serves_new_keys(*envoy).await;
    }
    let (took, within) = (begun.elapsed().as_millis(), BACK_WITHIN.as_secs());
    tell(
        begun.elapsed() < BACK_WITHIN,
        &format!("{what} is back, and {took} ms later new keys run at both (within {within} s)"),
    );
}

fn tell_verdict(verdict: &Verdict) {
    println!(
        "  the load: {} requests of {} keys, {} executions, {} keys with unknown outcome",
        verdict.requests(),
        verdict.keys,
        verdict.executions,
        verdict.doubts
    );
    for (what, count) in &verdict.seen {
        println!("    {count:>6} {what}");
    }
    for violation in verdict.violations.iter().take(10) {
        println!("    VIOLATION: {violation}");
    }
    let most = verdict.ledger.most();
    tell(
        verdict.violations.is_empty() && most == 1,
        &format!(
            "violations: {}; executions of one key at the most: {most}",
            verdict.violations.len()
        ),
    );
}

async fn cut_off(fleet: &Arc<Fleet>) {
    chapter("envoy1 is cut off from Redis, and comes back, under load");
    let load = Load::start(fleet, "cut");
    let payment = |envoy: usize| fleet.payment(envoy, "cut-off").header("x-origin-hold", "cut-off");
    let first = tokio::spawn(patiently(payment(0)));
    fleet.runs("cut-off").await;
    fleet.compose.cut_off(&fleet.envoys[0].container).await;
    let since = Instant::now();
    let fresh = |envoy: usize| {
        (0..DUPLICATES)
            .map(move |number| fleet.payment(envoy, &format!("cut-at-envoy{}-{number}", envoy + 1)))
    };
    let (got, _) = at_once(fresh(0).map(Request::send)).await;
    let ledger = fleet.ledger().await;
    let ran = ledger.executions.keys().filter(|key| key.starts_with("cut-at-envoy1")).count();
    tell(
        ran == 0 && got == kinds([("503 store-unavailable", DUPLICATES)]),
        &format!("envoy1 refuses new keys: {}; {ran} of them ran", listed(&got)),
    );
    let (got, _) = at_once(fresh(1).map(patiently)).await;
    tell(
        got == kinds([("201", DUPLICATES)]),
        &format!("envoy2 goes on with new keys: {}", listed(&got)),
    );
    let (got, _) = at_once([payment(0), payment(1)].map(patiently)).await;
    tell(
        got == kinds([("409 in-progress", 2)]),
        &format!("copies of a payment that envoy1 runs, at either: {}", listed(&got)),
    );
    fleet.release("cut-off").await;
    let first = first.await.unwrap();
    tell(
        kind(&first) == "201",
        &format!("it ends, and envoy1 gives its client the answer: {}", kind(&first)),
    );
    let copy = patiently(payment(1)).await;
    tell(
        copy.code() == "in-progress",
        &format!("a copy at envoy2, which cannot know of it yet: {}", kind(&copy)),
    );
    sleep(CUT_OFF.saturating_sub(since.elapsed())).await;
    fleet.compose.reconnect(&fleet.envoys[0].container).await;
    let away = since.elapsed().as_millis();
    tell_back(fleet, &format!("after {away} ms envoy1"), &[0, 1]).await;
    let mut copy = patiently(payment(1)).await;
    let reconnected = Instant::now();
    while copy.code() == "in-progress" && reconnected.elapsed() < LAPSED_WITHIN {
        sleep(Duration::from_millis(50)).await;
        copy = patiently(payment(1)).await;
    }
    tell(
        copy.is_replay() && copy.body == first.body,
        &format!("envoy1's outstanding record is in Redis: a copy at envoy2 gets {}", kind(&copy)),
    );
    tell_executions(fleet, "cut-off", 1).await;
    let verdict = load.end().await;
    tell_verdict(&verdict);
}

async fn rolling_restart(fleet: &Arc<Fleet>) {
    chapter("A rolling restart under load: each Envoy drains, gets SIGTERM, starts again");
    let load = Load::start(fleet, "restart");
    sleep(Duration::from_secs(1)).await;
    let long = |envoy: usize| fleet.payment(envoy, "too-long").header("x-origin-hold", "too-long");
    let first = tokio::spawn(try_patiently(long(0)));
    fleet.runs("too-long").await;
    restart(fleet, 0).await;
    let ended = Instant::now();
    let first = first.await.unwrap();
    let got = first.as_ref().map_or("no answer".to_owned(), kind);
    tell(first.is_err(), &format!("a payment that outlasts envoy1's drain: {got}"));
    restart(fleet, 1).await;
    let mut retry = patiently(long(1)).await;
    while retry.code() == "in-progress" && ended.elapsed() < LAPSED_WITHIN {
        sleep(Duration::from_millis(100)).await;
        retry = patiently(long(1)).await;
    }
    tell(
        retry.code() == "outcome-unknown",
        &format!(
            "its retry gets outcome-unknown: {}, {} s after envoy1 was back",
            kind(&retry),
            ended.elapsed().as_secs()
        ),
    );
    fleet.release("too-long").await;
    tell_executions(fleet, "too-long", 1).await;
    let verdict = load.end().await;
    let broken = verdict.count(load::BROKEN);
    tell(broken > 0, &format!("clients found an Envoy gone {broken} times, and used the other"));
    tell_verdict(&verdict);
}

/// As an orchestrator replaces a container: drain, SIGTERM, start.
async fn restart(fleet: &Fleet, envoy: usize) {
    let node = &fleet.envoys[envoy];
    let before = fleet.ledger().await.total();
    let begun = Instant::now();
    let drained = Request::new(node.admin(), "POST", "/drain_listeners?graceful").send().await;
    sleep(DRAIN).await;
    // Ten seconds until SIGKILL, the engine's default; it should not be needed.
    fleet.compose.docker(&["stop", "-t", "10", &node.container]).await;
    let stopped = begun.elapsed();
    fleet.start_envoy(envoy).await;
    fleet.serves_new_keys(envoy).await;
    let meanwhile = fleet.ledger().await.total() - before;
    tell(
        drained.status == 200 && stopped < DRAIN + Duration::from_secs(9) && meanwhile > 0,
        &format!(
            "envoy{}: drained and stopped after {:.1} s, serves again after {:.1} s; {meanwhile} \
             executions meanwhile",
            envoy + 1,
            stopped.as_secs_f64(),
            begun.elapsed().as_secs_f64()
        ),
    );
}

async fn demo(fleet: &Arc<Fleet>) {
    chapter("A payment at envoy1, and its retry at envoy2");
    let first = patiently(fleet.payment(0, "8e03978e")).await;
    tell(kind(&first) == "201", &format!("envoy1: {}  {}", kind(&first), first.text().trim()));
    let retry = patiently(fleet.payment(1, "8e03978e")).await;
    tell(
        kind(&retry) == "201 replayed" && retry.body == first.body,
        &format!("envoy2: {}  {}", kind(&retry), retry.text().trim()),
    );
    tell_executions(fleet, "8e03978e", 1).await;
    chapter("Ten clients move order 7 from A to B at once, half of them at each Envoy");
    let path = "/orders/7/transitions";
    let transition = |number: usize| {
        let request = Request::new(fleet.envoys[number % 2].front(), "POST", path)
            .header("x-origin-delay-ms", "300")
            .json(r#"{"from":"A","to":"B"}"#);
        patiently(request)
    };
    let (got, _) = at_once((0..10).map(transition)).await;
    tell(got == kinds([("201", 1), ("201 replayed", 9)]), &listed(&got));
    tell_executions(fleet, path, 1).await;
    chapter("What Prometheus reads at /stats/prometheus");
    for envoy in 0..2 {
        let metrics = fleet.metrics(envoy).await;
        tell(!metrics.is_empty(), &format!("of envoy{}:", envoy + 1));
        for line in metrics {
            println!("    {line}");
        }
    }
}

/// Prints lines to try, and waits for a signal.
async fn serve(fleet: &Arc<Fleet>) {
    let payment = |envoy: usize| {
        let front = fleet.envoys[envoy].front();
        format!(
            "curl -i http://{front}/v1/payments -H 'authorization: Bearer alice' \
             -H 'idempotency-key: \"8e03978e\"' -d '{{\"amount\":100}}'"
        )
    };
    println!("\nA payment at envoy1, and its retry at envoy2:\n  {}\n  {}", payment(0), payment(1));
    println!("What ran, and what was counted:\n  curl http://{}/log", fleet.origin);
    for node in &fleet.envoys {
        println!("  curl -s http://{}/stats/prometheus | grep ^idempotency_", node.admin());
    }
    println!("\nCtrl-C ends it, and removes everything.");
    std::future::pending().await
}
