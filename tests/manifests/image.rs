//! The OCI image and the bill of materials, read back with other tools than those that wrote them.

use crate::home;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use testkit::process::Scratch;

/// The module that the other tests run, too.
fn module() -> PathBuf {
    let named = std::env::var("IDEMPOTENCY_MODULE").ok().filter(|path| !path.is_empty());
    home(named.as_deref().unwrap_or("target/wasm32-wasip1/release/envoy_idempotency.wasm"))
}

fn image(what: &str, module: &Path, folder: &Path) -> Output {
    Command::new(home("scripts/image")).args([what.as_ref(), module, folder]).output().unwrap()
}

fn build(folder: &Path) -> String {
    let output = image("build", &module(), folder);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn digest(bytes: &[u8]) -> String {
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

/// The output of `tar`, given these bytes.
fn tar(arguments: &[&str], archive: &Path) -> Vec<u8> {
    let output =
        Command::new("tar").args(arguments).arg(archive).arg("plugin.wasm").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The layout, as a registry's client follows it: index, manifest, config, layer, file.
#[test]
fn the_layers_of_the_image_hold_the_module() {
    let scratch = Scratch::new();
    let printed = build(scratch.path());
    let layout = scratch.file("layout");
    let blob = |descriptor: &Value| {
        let named = descriptor["digest"].as_str().unwrap();
        let path = layout.join("blobs").join(named.replace(':', "/"));
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(
            (digest(&bytes).as_str(), Some(bytes.len() as u64)),
            (named, descriptor["size"].as_u64())
        );
        path
    };
    let index = json(&layout.join("index.json"));
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
    let manifest = json(&blob(&index["manifests"][0]));
    // The Accept headers of both control planes: neither may get another form of image.
    assert_eq!(manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    let [layer] = manifest["layers"].as_array().unwrap().as_slice() else { panic!("{manifest}") };
    assert_eq!(layer["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
    let config = json(&blob(&manifest["config"]));
    assert_eq!((&config["os"], &config["rootfs"]["type"]), (&"linux".into(), &"layers".into()));
    let layer = blob(layer);
    let found = tar(&["-xzOf"], &layer);
    assert!(found.starts_with(b"\0asm"));
    assert_eq!(digest(&found), digest(&std::fs::read(module()).unwrap()));
    let mut unzip = Command::new("gzip");
    unzip.arg("-dc").stdin(std::fs::File::open(&layer).unwrap());
    let unpacked = unzip.output().unwrap().stdout;
    assert_eq!(config["rootfs"]["diff_ids"][0], digest(&unpacked));
    for wanted in [digest(&found), index["manifests"][0]["digest"].as_str().unwrap().to_owned()] {
        assert!(printed.contains(&wanted), "{printed}");
    }
    println!("{printed}");
}

#[test]
fn the_same_module_makes_the_same_image() {
    let (one, other) = (Scratch::new(), Scratch::new());
    build(one.path());
    build(other.path());
    let archive = |scratch: &Scratch| {
        let name = format!("envoy-idempotency-{}.oci.tar", env!("CARGO_PKG_VERSION"));
        std::fs::read(scratch.file(&name)).unwrap()
    };
    assert!(archive(&one) == archive(&other), "they differ");
}

#[test]
fn an_image_of_another_module_and_a_damaged_one_are_refused() {
    let scratch = Scratch::new();
    build(scratch.path());
    let other = scratch.file("other.wasm");
    std::fs::write(&other, b"\0asm\x01\0\0\0").unwrap();
    let output = image("check", &other, scratch.path());
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("the module is"), "{output:?}");
    assert!(image("check", &module(), scratch.path()).status.success());
    let blobs = scratch.file("layout/blobs/sha256");
    let sizes = std::fs::read_dir(blobs).unwrap().map(|entry| entry.unwrap().path());
    let layer = sizes.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&layer).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(layer, bytes).unwrap();
    let output = image("check", &module(), scratch.path());
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("another blob"), "{output:?}");
}

#[test]
fn the_bill_of_materials_names_the_crates_in_the_module() {
    let output = Command::new(home("scripts/sbom")).arg(module()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bill: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&bill["bomFormat"], &bill["specVersion"]), (&"CycloneDX".into(), &"1.6".into()));
    let hash = bill["metadata"]["component"]["hashes"][0]["content"].as_str().unwrap();
    assert_eq!(format!("sha256:{hash}"), digest(&std::fs::read(module()).unwrap()));
    let components = bill["components"].as_array().unwrap();
    let scope = |name: &str| {
        let component = components.iter().find(|component| component["name"] == name)?;
        component["scope"].as_str()
    };
    // Compiled in; only for wasm32; used for the build; for the tests; for machines other than wasm32.
    assert_eq!(scope("serde_json"), Some("required"));
    assert_eq!(scope("getrandom"), Some("required"));
    assert_eq!(scope("serde_derive"), Some("excluded"));
    assert_eq!(scope("tokio"), None);
    let refs: Vec<_> = components.iter().map(|component| &component["bom-ref"]).collect();
    for component in components {
        assert!(component["hashes"][0]["content"].is_string(), "{component}");
        assert!(component["licenses"][0]["expression"].is_string(), "{component}");
    }
    for dependency in bill["dependencies"].as_array().unwrap() {
        for other in dependency["dependsOn"].as_array().unwrap() {
            assert!(refs.contains(&other), "{dependency}");
        }
    }
}
