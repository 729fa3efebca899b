//! Shows the filter with real requests to a real Envoy, and prints the count of executions at the origin
//! beside each answer. `--serve` leaves both running instead.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use testkit::{Answer, Bootstrap, Envoy, Origin, Request, World, eventually};
use tokio::signal::unix::{SignalKind, signal};

/// Some line of the demo was not as expected.
static FAILED: AtomicBool = AtomicBool::new(false);

#[tokio::main]
async fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--serve") {
        return serve().await;
    }
    let world = World::start_with(Bootstrap::demo()).await;
    println!("Envoy with the filter is at {}, a counting origin behind it.", world.envoy.front);
    retry(&world).await;
    at_once(&world).await;
    transitions(&world).await;
    waiter(&world).await;
    redirect(&world).await;
    pass(&world).await;
    if FAILED.load(Ordering::Relaxed) {
        println!("\nSome answers were not as expected: see the lines that end in NOT AS EXPECTED.");
        return ExitCode::FAILURE;
    }
    println!("\nAll as expected: {} executions in total.", world.executions());
    ExitCode::SUCCESS
}

async fn retry(world: &World) {
    chapter("A payment, its retry, and another payload under its key");
    let payment = world.post("/v1/payments").caller("Bearer alice").key("8e03978e");
    let ten = payment.clone().json(r#"{"amount":10}"#);
    tell(world, "POST /v1/payments {\"amount\":10}", &ten.clone().send().await, 200, "executed", 1);
    tell(world, "… the same, again", &ten.send().await, 200, "replayed", 1);
    let ninety = payment.json(r#"{"amount":90}"#).send().await;
    tell(world, "… the same key with {\"amount\":90}", &ninety, 422, "mismatch", 1);
}

async fn at_once(world: &World) {
    chapter("Twenty at once");
    let request = world
        .post("/v1/payments")
        .caller("Bearer alice")
        .key("twenty")
        .header("x-origin-hold", "twenty")
        .json("{}");
    let tasks: Vec<_> = (0..20).map(|_| tokio::spawn(request.clone().send())).collect();
    eventually("19 are refused", async || world.counted("payments", "rejected").await == 19).await;
    world.origin.release("twenty");
    let (mut executed, mut refused) = (0, 0);
    for task in tasks {
        match task.await.map(|answer| answer.status) {
            Ok(200) => executed += 1,
            Ok(409) => refused += 1,
            Ok(_) | Err(_) => {}
        }
    }
    let what = format!("{executed} × 200, {refused} × 409 in-progress");
    line(world, "20 × POST /v1/payments", &what, (executed, refused) == (1, 19), 2);
    tell(world, "… one more, later", &request.send().await, 200, "replayed", 2);
}

async fn transitions(world: &World) {
    chapter("A state machine: order 7 from A to B, for any caller");
    let post = |client: &str, body: &str| {
        world.post("/orders/7/transitions").header("x-client", client).json(body).send()
    };
    let first = post("ann", r#"{"from":"A","to":"B"}"#).await;
    tell(world, "ann: A→B", &first, 200, "executed", 3);
    let second = post("bob", r#"{ "to": "B", "from": "A" }"#).await;
    tell(world, "bob: A→B, in another order", &second, 200, "replayed", 3);
    let third = post("cleo", r#"{"from":"D","to":"B"}"#).await;
    tell(world, "cleo: D→B", &third, 200, "executed", 4);
}

async fn waiter(world: &World) {
    chapter("A duplicate that waits for the first");
    let request = world
        .post("/orders/8/transitions")
        .header("x-origin-hold", "order-8")
        .json(r#"{"from":"A","to":"B"}"#);
    let first = tokio::spawn(request.clone().send());
    eventually("the first runs", async || world.executions() == 5).await;
    let waits = tokio::spawn(request.send());
    eventually("the second waits", async || {
        world.envoy.stat("wasmcustom.idempotency_waiters").await == Some(1)
    })
    .await;
    line(world, "a second A→B for order 8", "is held, while the first runs", true, 5);
    world.origin.release("order-8");
    if let (Ok(first), Ok(second)) = (first.await, waits.await) {
        tell(world, "the first ends", &first, 200, "executed", 5);
        tell(world, "… and the second has its answer", &second, 200, "waited", 5);
    }
}

async fn redirect(world: &World) {
    chapter("A duplicate that is redirected to the place of the answer");
    let request = world.post("/reports/2026").header("x-origin-hold", "report").json("{}");
    let first = tokio::spawn(request.clone().send());
    eventually("the report is being made", async || world.executions() == 6).await;
    let second = request.send().await;
    tell(world, "a second POST /reports/2026", &second, 307, "rejected", 6);
    let location = second.header("location").unwrap_or("nowhere");
    let after = second.header("retry-after").unwrap_or("never");
    let as_it_should = (location, after) == ("/reports/2026/status", "2");
    line(world, "… location, retry-after", &format!("{location}, {after} s"), as_it_should, 6);
    world.origin.release("report");
    if let Ok(first) = first.await {
        tell(world, "the first ends", &first, 200, "executed", 6);
    }
}

async fn pass(world: &World) {
    chapter("A request that no rule protects");
    let get = Request::new(world.envoy.front, "GET", "/orders/7");
    tell(world, "GET /orders/7", &get.clone().send().await, 200, "-", 7);
    tell(world, "GET /orders/7, again", &get.send().await, 200, "-", 8);
}

fn chapter(title: &str) {
    println!("\n{title}");
}

fn tell(world: &World, what: &str, answer: &Answer, status: u16, word: &str, executions: usize) {
    let said = answer.header("idempotency-status").unwrap_or("-");
    let code = answer.code();
    let came = format!("{} {said} {code}", answer.status);
    line(world, what, came.trim_end(), (answer.status, said) == (status, word), executions);
}

fn line(world: &World, what: &str, came: &str, as_it_should: bool, executions: usize) {
    let counted = world.executions();
    let verdict = if as_it_should && counted == executions { "" } else { "  NOT AS EXPECTED" };
    if !verdict.is_empty() {
        FAILED.store(true, Ordering::Relaxed);
    }
    println!("  {what:<40} {came:<34} executions so far: {counted}{verdict}");
}

async fn serve() -> ExitCode {
    let origin = Origin::start().await;
    let envoy = Envoy::start(Bootstrap::demo().origin(origin.address.port())).await;
    let front = envoy.front;
    println!(
        "Envoy with the filter is at http://{front}, its admin page at http://{}.\n\n\
         Try, twice or more:\n\n  \
         curl -i http://{front}/v1/payments -H 'idempotency-key: 1' -H 'authorization: me' -d '{{\"amount\":1}}'\n  \
         curl -i http://{front}/v1/payments -H 'idempotency-key: 1' -H 'authorization: me' -d '{{\"amount\":2}}'\n  \
         curl -i http://{front}/orders/7/transitions -d '{{\"from\":\"A\",\"to\":\"B\"}}'\n  \
         curl -i http://{front}/orders/8/transitions -H 'x-origin-delay-ms: 5000' -d '{{\"from\":\"A\",\"to\":\"B\"}}'\n  \
         curl -i http://{front}/reports/1 -H 'x-origin-delay-ms: 5000' -d '{{}}'\n  \
         curl -s http://{}/stats/prometheus | grep idempotency_requests_total\n\n\
         Ctrl-C ends it.",
        envoy.admin, envoy.admin
    );
    // Without waiting for the signal, it would end this process before its Envoy.
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::hangup()));
    let (Ok(mut terminated), Ok(mut hung_up)) = signals else { return ExitCode::FAILURE };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated.recv() => {}
        _ = hung_up.recv() => {}
    }
    println!("\n{} executions at the origin. Goodbye.", origin.executions());
    ExitCode::SUCCESS
}
