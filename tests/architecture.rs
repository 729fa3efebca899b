//! The tree is the architecture: which room may import which, and what the module imports from its host.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test: clippy sees only what stands in a #[test] function as one"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use wasmparser::{Parser, Payload, TypeRef};

/// A room of `src/`, and the names that its code may not use.
struct Room {
    name: &'static str,
    /// Other rooms it may import.
    may_import: &'static [&'static str],
    /// Paths that are foreign to it, beyond the rooms it may not import.
    must_not_say: &'static [&'static str],
}

/// Envoy, and whatever else makes a run differ from the next.
const OUTSIDE: [&str; 5] =
    ["extern \"C\"", "getrandom", "Instant::now", "SystemTime::now", "std::env"];

const ROOMS: [Room; 10] = [
    Room { name: "time", may_import: &[], must_not_say: &["serde_json"] },
    Room { name: "key", may_import: &["time"], must_not_say: &["serde_path_to_error"] },
    // A record is bytes with a meaning; HTTP and JSON belong to other rooms.
    Room { name: "record", may_import: &["time", "key"], must_not_say: &["serde_json"] },
    Room { name: "store", may_import: &["time", "key", "record"], must_not_say: &["serde_json"] },
    Room { name: "reply", may_import: &[], must_not_say: &[] },
    Room { name: "telemetry", may_import: &["time"], must_not_say: &[] },
    Room { name: "schedule", may_import: &["time", "key"], must_not_say: &[] },
    Room {
        name: "config",
        may_import: &["time", "key", "record", "store", "reply"],
        must_not_say: &[],
    },
    Room {
        name: "exchange",
        may_import: &["time", "key", "record", "store", "reply", "telemetry", "config"],
        // It knows stores by their commands and replies, so that every backend serves it.
        must_not_say: &["shared_data", "redis"],
    },
    Room {
        name: "host",
        may_import: &[
            "time",
            "key",
            "record",
            "store",
            "reply",
            "telemetry",
            "schedule",
            "config",
            "exchange",
        ],
        // Decisions about replies and states of records belong to `store` and `exchange`.
        must_not_say: &["Verdict", "Begun", "State", "Knowledge", "StoreError::"],
    },
];

/// The package of `src/`: the core and the module.
const CORE: &str = "envoy-idempotency";

/// The crates beside the core, and which crates of the workspace each may use outside its tests.
const CRATES: [(&str, &[&str]); 3] = [
    ("cli", &[CORE]),
    ("testkit", &[CORE]),
    // They drive a real Envoy, and see the core only through it.
    ("tools", &["testkit"]),
];

/// The imports that the module may have. The first of a pair is the import's module.
///
/// An import that a host lacks keeps the module from loading there, and one that came with a dependency
/// may be an unwanted way to the outside: a new one is added here by hand, with its reason.
const IMPORTS: [(&str, &[&str]); 2] = [
    (
        "env",
        &[
            // The request and the response.
            "proxy_get_header_map_pairs",
            "proxy_replace_header_map_value",
            "proxy_remove_header_map_value",
            "proxy_get_buffer_bytes",
            "proxy_get_property",
            "proxy_set_property",
            "proxy_send_local_response",
            "proxy_continue_stream",
            // From a root's callback to a request that waits.
            "proxy_set_effective_context",
            "proxy_done",
            // Records, and messages between workers.
            "proxy_get_shared_data",
            "proxy_set_shared_data",
            "proxy_register_shared_queue",
            "proxy_enqueue_shared_queue",
            "proxy_dequeue_shared_queue",
            // The clock, and the heartbeat.
            "proxy_get_current_time_nanoseconds",
            "proxy_set_tick_period_milliseconds",
            // Metrics and logs for operators.
            "proxy_define_metric",
            "proxy_increment_metric",
            // How long Redis takes: a counter cannot show the slow one in a hundred.
            "proxy_record_metric",
            "proxy_log",
            // The way to Redis, and requests of the worker's own.
            "proxy_grpc_cancel",
            "proxy_grpc_send",
            "proxy_grpc_stream",
            "proxy_http_call",
            // The bridge.
            "proxy_set_buffer_bytes",
        ],
    ),
    (
        "wasi_snapshot_preview1",
        &[
            // Tokens.
            "random_get",
            // The clock that never goes back.
            "clock_time_get",
            // `secret_env`, and Rust's start-up.
            "environ_get",
            "environ_sizes_get",
            // A panic's message, and its end.
            "fd_write",
            "proc_exit",
        ],
    ),
];

/// 1.25 MiB. Every worker compiles the module, and control planes carry it inline.
const LARGEST_MODULE: usize = 1280 * 1024;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every Rust file in a folder of the tree, relative to that folder.
fn rust_files(folder: &str) -> Vec<PathBuf> {
    let home = root().join(folder);
    let mut found = Vec::new();
    let mut folders = vec![home.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path.strip_prefix(&home).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// Every source file of the core, relative to `src/`.
fn sources() -> Vec<PathBuf> {
    rust_files("src")
}

/// The room a file of `src/` is in: its folder, or itself.
fn room_of(file: &Path) -> String {
    file.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

/// Source text without comments.
fn code(file: &Path) -> String {
    let lines = read(Path::new("src").join(file));
    let lines = lines.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// The rooms that `crate::…` leads to, groups included.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut word = String::new();
            for letter in group.chars() {
                match letter {
                    '}' if depth == 0 => break,
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 0 => found.extend(first_word(&std::mem::take(&mut word))),
                    _ if depth == 0 => word.push(letter),
                    _ => {}
                }
            }
            found.extend(first_word(&word));
        } else {
            found.extend(first_word(rest));
        }
    }
    found
}

fn first_word(path: &str) -> Option<String> {
    let word: String = path
        .trim_start()
        .chars()
        .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
        .collect();
    (!word.is_empty()).then_some(word)
}

#[test]
fn every_room_is_known_and_on_the_map() {
    let known: BTreeSet<_> = ROOMS.iter().map(|room| room.name.to_owned()).collect();
    let mut found: BTreeSet<_> = sources().iter().map(|file| room_of(file)).collect();
    assert!(found.remove("lib"));
    assert_eq!(found, known);
    let map = read("src/lib.rs");
    for room in &ROOMS {
        let named = map.lines().any(|line| {
            line.starts_with("//! |") && line.split('|').nth(1).unwrap().contains(room.name)
        });
        assert!(named, "src/lib.rs does not list {}", room.name);
    }
}

#[test]
fn a_room_imports_only_the_rooms_before_it() {
    let mut wrong = Vec::new();
    let mut followed = 0;
    for file in sources() {
        let name = room_of(&file);
        let Some(room) = ROOMS.iter().find(|room| room.name == name) else { continue };
        for import in imports(&code(&file)) {
            // A lower-case name is a module; a type at the root of the crate would not be ours.
            let is_own = import == name;
            followed += usize::from(!is_own);
            if !is_own && !room.may_import.contains(&import.as_str()) {
                wrong.push(format!("src/{} imports {import}", file.display()));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    // Else nothing was read, and the test could not fail.
    assert!(followed > 0);
}

/// What the statements of a file import from beside it.
fn siblings(code: &str, names: &BTreeSet<String>) -> BTreeSet<String> {
    let uses = code.split("use super::").skip(1);
    let statements = uses.filter_map(|rest| rest.split(';').next());
    let words = statements.flat_map(|text| {
        text.split(|letter: char| !letter.is_alphanumeric() && letter != '_').map(str::to_owned)
    });
    words.filter(|word| names.contains(word)).collect()
}

#[test]
fn the_files_of_a_room_import_each_other_in_no_circle() {
    let mut folders: BTreeMap<PathBuf, BTreeMap<String, PathBuf>> = BTreeMap::new();
    for file in sources().into_iter().filter(|file| !file.starts_with("bin")) {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        if name != "mod" && name != "tests" {
            let folder = file.parent().unwrap().to_owned();
            folders.entry(folder).or_default().insert(name, file);
        }
    }
    let mut followed = 0;
    for (folder, files) in folders {
        let names = files.keys().cloned().collect();
        let mut left: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (name, file) in &files {
            let mut imported = siblings(&code(file), &names);
            imported.remove(name);
            followed += imported.len();
            left.insert(name.clone(), imported);
        }
        // Whatever imports nothing that is left goes; what never goes is in a circle, or leads to one.
        while let Some(free) =
            left.iter().find(|(_, imported)| imported.iter().all(|name| !left.contains_key(name)))
        {
            let free = free.0.clone();
            left.remove(&free);
        }
        assert_eq!(left, BTreeMap::new(), "src/{}", folder.display());
    }
    // Else nothing was read, and the test could not fail.
    assert!(followed > 0);
}

#[test]
fn no_room_leaves_by_the_back_door() {
    // `super` from a room's own root is the crate: it hides what `crate::` shows.
    let mut wrong = Vec::new();
    for file in sources().into_iter().filter(|file| room_of(file) != "lib") {
        let is_root = file.file_name().is_some_and(|name| name == "mod.rs");
        let depth = file.iter().count() - usize::from(is_root);
        for line in code(&file).lines() {
            // An indented line is in a module of the file's own, one deeper.
            let depth = depth + usize::from(line.starts_with(' '));
            let supers = line.matches("super::").count();
            if line.trim_start().starts_with("use super::") && supers > depth - 1 {
                wrong.push(format!("src/{}: {}", file.display(), line.trim()));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn no_room_uses_names_that_are_foreign_to_it() {
    let mut wrong = Vec::new();
    for file in sources() {
        let name = room_of(&file);
        let code = code(&file);
        // It meets the world.
        let outside: &[&str] = if name == "host" { &[] } else { &OUTSIDE };
        let room = ROOMS.iter().find(|room| room.name == name);
        let own = room.map_or(&[][..], |room| room.must_not_say);
        // A test may well read a JSON file.
        let is_test = file.iter().any(|part| part.to_str().unwrap().starts_with("tests"));
        for word in outside.iter().chain(own.iter().filter(|_| !is_test)) {
            if code.contains(word) {
                wrong.push(format!("src/{} says {word}", file.display()));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn no_backend_knows_another() {
    for file in sources().into_iter().filter(|file| room_of(file) == "store") {
        let Some(backend) = file.iter().nth(1).and_then(|part| part.to_str()) else { continue };
        let code = code(&file);
        let (own, other) = match backend.trim_end_matches(".rs") {
            "shared_data" => ("shared_data", "redis"),
            "redis" => ("redis", "shared_data"),
            _ => continue,
        };
        assert!(!code.contains(other), "src/{}: {own} says {other}", file.display());
    }
}

/// The crates that a section of a manifest names, as they stand there at the start of a line.
fn dependencies<'a>(manifest: &'a str, section: &str) -> BTreeSet<&'a str> {
    let lines = manifest.lines().skip_while(|line| *line != section).skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    lines.filter_map(|line| line.split([' ', '.']).next()).filter(|name| !name.is_empty()).collect()
}

#[test]
fn a_crate_uses_only_the_crates_before_it() {
    let core = read("Cargo.toml");
    let names = CRATES.map(|(name, _)| format!("\"{name}\""));
    assert!(core.contains(&format!("\nmembers = [{}]\n", names.join(", "))));
    let ours = |manifest: &str| -> Vec<String> {
        let used = dependencies(manifest, "[dependencies]").into_iter();
        let is_ours = |name: &&str| *name == CORE || CRATES.iter().any(|(ours, _)| ours == name);
        used.filter(is_ours).map(str::to_owned).collect()
    };
    assert_eq!(ours(&core), Vec::<String>::new());
    for (name, may_use) in CRATES {
        assert_eq!(ours(&read(format!("{name}/Cargo.toml"))), may_use, "{name}");
    }
}

#[test]
fn a_file_belongs_to_one_crate() {
    // In two pieces: this file is checked too.
    let doors = [["#[", "path"].concat(), ["include", "!("].concat()];
    let mut wrong = Vec::new();
    for folder in ["src", "tests"].into_iter().chain(CRATES.map(|(name, _)| name)) {
        for file in rust_files(folder) {
            let file = Path::new(folder).join(file);
            let text = read(&file);
            wrong.extend(doors.iter().filter(|door| text.contains(*door)).map(|_| file.clone()));
        }
    }
    assert_eq!(wrong, Vec::<PathBuf>::new());
}

#[test]
fn envoy_is_out_of_reach_of_everything_that_builds_natively() {
    let section = "[target.'cfg(target_arch = \"wasm32\")'.dependencies]";
    let core = read("Cargo.toml");
    let wasm = dependencies(&core, section);
    assert_eq!(wasm, BTreeSet::from(["getrandom"]));
    let others = CRATES.map(|(name, _)| read(format!("{name}/Cargo.toml")));
    for dependency in wasm {
        // Not even where the workspace names a version for its crates.
        assert_eq!(core.matches(dependency).count(), 1, "{dependency}");
        assert!(!others.iter().any(|manifest| manifest.contains(dependency)), "{dependency}");
    }
    // The imports and exports of the module exist for wasm32 alone.
    assert!(read("src/lib.rs").contains("#[cfg(target_arch = \"wasm32\")]\nmod host;"));
}

/// The module that `make wasm` built.
fn module() -> Vec<u8> {
    let built = std::env::var("IDEMPOTENCY_MODULE").map_or_else(
        |_| root().join("target/wasm32-wasip1/release/envoy_idempotency.wasm"),
        PathBuf::from,
    );
    std::fs::read(&built)
        .unwrap_or_else(|error| panic!("{}: {error}; run `make wasm`", built.display()))
}

#[test]
fn nothing_in_the_module_stops_it_on_purpose() {
    // The name that is in the other module, which tests stop: else this would search for the wrong name.
    const MARK: &str = "x-deliberate-trap";
    assert!(read("src/host/trap.rs").contains(&format!("b\"{MARK}\"")));
    let found = module().windows(MARK.len()).any(|bytes| bytes == MARK.as_bytes());
    assert!(!found, "the module was built with the feature deliberate-trap");
}

#[test]
fn the_module_has_only_the_listed_imports() {
    let module = module();
    let mut unexpected = Vec::new();
    let mut exports = BTreeSet::new();
    for payload in Parser::new(0).parse_all(&module) {
        match payload.unwrap() {
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import.unwrap();
                    let listed = IMPORTS.iter().any(|(from, names)| {
                        *from == import.module && names.contains(&import.name)
                    });
                    if !listed || !matches!(import.ty, TypeRef::Func(_)) {
                        unexpected.push(format!("{}.{}", import.module, import.name));
                    }
                }
            }
            Payload::ExportSection(section) => {
                exports.extend(section.into_iter().map(|export| export.unwrap().name.to_owned()));
            }
            _ => {}
        }
    }
    assert_eq!(unexpected, Vec::<String>::new());
    // Else it is not a filter, and an empty module would pass.
    for export in ["proxy_abi_version_0_2_1", "proxy_on_configure", "proxy_on_request_headers"] {
        assert!(exports.contains(export), "{export} is not exported");
    }
}

#[test]
fn the_module_is_no_larger_than_a_mebibyte_and_a_quarter() {
    let size = module().len();
    assert!(size <= LARGEST_MODULE, "{size} bytes");
}
