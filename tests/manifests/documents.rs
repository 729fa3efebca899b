//! The YAML under `envoy/istio` and `envoy/gateway`: read, checked against schemas, and built by kustomize where there is one.

use crate::{home, schema};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use testkit::process::Scratch;

/// Nothing refers to it: `kubectl patch` takes it.
const BY_HAND: &str = "envoy/istio/overlays/managed-redis/proxy-env.yaml";

/// The placeholder of the image's digest in the tree.
const ZEROS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The documents of a file of this project.
pub(crate) fn read(path: &str) -> Vec<Value> {
    parse(&std::fs::read_to_string(home(path)).unwrap())
}

/// The one document of a file of this project.
pub(crate) fn one(path: &str) -> Value {
    let [document] = <[Value; 1]>::try_from(read(path)).unwrap();
    document
}

fn parse(text: &str) -> Vec<Value> {
    serde_norway::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).unwrap())
        .collect()
}

/// All files with this name, or with this ending, below a folder of this project; relative to it.
fn files(folder: &str, ending: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![home(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_str().unwrap().ends_with(ending) {
                found.push(path.strip_prefix(home("")).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort_unstable();
    found
}

/// The errors of an API server in strict mode.
fn violations(resource: &Value) -> Vec<String> {
    let named = |field: &str| resource[field].as_str().unwrap_or_else(|| panic!("no {field}"));
    let (version, kind) = (named("apiVersion"), named("kind"));
    let text = json!({ "type": "string" });
    let texts = json!({ "type": "object", "additionalProperties": { "type": "string" } });
    let metadata = json!({ "type": "object", "required": ["name"], "properties": {
        "name": { "type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$" },
        "namespace": { "type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$" },
        "labels": texts, "annotations": texts } });
    let mut schema = match (version, kind) {
        // Not custom resources, and simple enough to be checked here.
        ("v1", "ConfigMap") => json!({ "type": "object", "properties": { "data": texts } }),
        (version, kind) => {
            let crds = files("tests/crds", ".json");
            let crd = crds.iter().map(|path| {
                serde_json::from_str::<Value>(&std::fs::read_to_string(home(path)).unwrap())
                    .unwrap()
            });
            let mut crd = crd.filter(|crd| {
                crd["kind"] == kind
                    && format!(
                        "{}/{}",
                        crd["group"].as_str().unwrap(),
                        crd["version"].as_str().unwrap()
                    ) == version
            });
            crd.next().unwrap_or_else(|| panic!("no schema for {version} {kind}"))["schema"].take()
        }
    };
    schema["properties"]["apiVersion"] = text.clone();
    schema["properties"]["kind"] = text;
    schema["properties"]["metadata"] = metadata;
    schema::violations(&schema, resource, kind)
}

/// The files that a kustomization names, as paths of this project.
fn named(kustomization: &str) -> Vec<String> {
    let folder = Path::new(kustomization).parent().unwrap();
    let document = one(kustomization);
    let list = |name: &str| document[name].as_array().cloned().unwrap_or_default();
    let patches = list("patches").into_iter().filter_map(|patch| patch.get("path").cloned());
    list("resources")
        .into_iter()
        .chain(patches)
        .map(|name| folder.join(name.as_str().unwrap()).to_str().unwrap().to_owned())
        .collect()
}

#[test]
fn every_resource_fits_its_schema() {
    let mut kinds = BTreeSet::new();
    let mut count = 0;
    for path in [files("envoy/istio", ".yaml"), files("envoy/gateway", ".yaml")].concat() {
        for document in read(&path) {
            // Patches of an overlay: kustomize's results are checked below.
            if document.get("kind").is_none() || document["kind"] == "Kustomization" {
                continue;
            }
            assert_eq!(violations(&document), [""; 0], "{path}");
            kinds.insert(document["kind"].as_str().unwrap().to_owned());
            count += 1;
        }
    }
    println!("{count} resources of {kinds:?}");
    for kind in [
        "EnvoyFilter",
        "WasmPlugin",
        "ServiceEntry",
        "ConfigMap",
        "EnvoyExtensionPolicy",
        "EnvoyPatchPolicy",
        "EnvoyProxy",
    ] {
        assert!(kinds.contains(kind), "{kind}");
    }
}

#[test]
fn a_field_that_istio_does_not_know_is_found() {
    let mut plugin = one("envoy/istio/overlays/wasmplugin/plugin.yaml");
    plugin["spec"]["failStrategi"] = json!("FAIL_RELOAD");
    plugin["spec"]["phase"] = json!("FIRST");
    let found = violations(&plugin);
    assert_eq!(found.len(), 2, "{found:?}");
    let mut filter = one("envoy/istio/base/gateway.yaml");
    filter["spec"]["configPatches"][1]["match"]["cluster"] = json!({ "name": "redis" });
    // Either a listener or a cluster.
    assert_eq!(violations(&filter).len(), 1);
}

#[test]
fn kustomizations_refer_to_existing_files_and_leave_none_out() {
    let fields = ["apiVersion", "kind", "namespace", "resources", "patches", "replacements"];
    let mut referred = BTreeSet::from([BY_HAND.to_owned()]);
    let kustomizations = files("envoy/istio", "/kustomization.yaml");
    assert_eq!(kustomizations.len(), 7);
    for path in &kustomizations {
        let document = one(path);
        assert_eq!(document["apiVersion"], "kustomize.config.k8s.io/v1beta1", "{path}");
        for field in document.as_object().unwrap().keys() {
            assert!(fields.contains(&field.as_str()), "{path}: {field}");
        }
        for name in named(path) {
            let there = home(&name);
            let is_folder = there.join("kustomization.yaml").exists();
            assert!(there.is_file() || is_folder, "{path}: {name} does not exist");
            referred.insert(name);
        }
        referred.insert(path.clone());
    }
    for path in files("envoy/istio", ".yaml") {
        assert!(referred.contains(&path), "nothing refers to {path}");
    }
}

/// `kustomize build` of a folder, by the program that is installed; `None` if there is none.
fn build(folder: &Path) -> Option<Vec<Value>> {
    for (program, argument) in [("kustomize", "build"), ("kubectl", "kustomize")] {
        let Ok(output) = Command::new(program).arg(argument).arg(folder).output() else { continue };
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {}: {errors}", folder.display());
        return Some(parse(&String::from_utf8(output.stdout).unwrap()));
    }
    eprintln!("neither kustomize nor kubectl is here: {} is not built", folder.display());
    None
}

#[test]
fn kustomize_output_fits_the_schemas_and_is_in_a_namespace() {
    for path in files("envoy/istio", "/kustomization.yaml") {
        let Some(built) = build(home(&path).parent().unwrap()) else { return };
        assert!(!built.is_empty());
        for resource in built {
            assert_eq!(violations(&resource), [""; 0], "{path}");
            assert!(resource["metadata"]["namespace"].is_string(), "{path}: {resource}");
            // Only kustomize reads it.
            assert_ne!(resource["metadata"]["name"], "idempotency-module", "{path}");
        }
    }
}

/// These tests run the resources that kustomize builds: they apply an overlay themselves.
#[test]
fn kustomize_builds_the_overlays_that_run_here() {
    let Some(built) = build(&home("envoy/istio/overlays/managed-redis")) else { return };
    for ours in crate::istio::managed_redis() {
        let name = &ours["metadata"]["name"];
        let theirs = built.iter().find(|built| built["metadata"]["name"] == *name).unwrap();
        assert_eq!(theirs["spec"], ours["spec"], "{name}");
    }
    let Some(built) = build(&home("envoy/istio/overlays/gateway-only")) else { return };
    let names: Vec<_> =
        built.iter().map(|built| built["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["idempotency-bootstrap", "idempotency-gateway", "idempotency-redis"]);
}

#[test]
fn one_file_says_which_module_the_whole_mesh_runs() {
    let (url, digest) = ("oci://registry.internal/idempotency:9", "5".repeat(64));
    let scratch = Scratch::new();
    for path in files("envoy/istio", ".yaml") {
        let to: PathBuf = scratch.file(&path);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        let mut text = std::fs::read_to_string(home(&path)).unwrap();
        if path.ends_with("base/module.yaml") {
            text = text.replace(ZEROS, &digest);
            text = text.replace("oci://registry.example.com/envoy-idempotency:0.1.0", url);
        }
        std::fs::write(to, text).unwrap();
    }
    for (folder, modules) in [("base", 3), ("overlays/managed-redis", 3), ("overlays/workload", 4)]
    {
        let Some(built) = build(&scratch.file("envoy/istio").join(folder)) else { return };
        let text = json!(built).to_string();
        assert_eq!(text.matches(url).count(), modules, "{folder}");
        assert_eq!(text.matches(&digest).count(), modules, "{folder}");
        assert!(!text.contains(ZEROS), "{folder}");
    }
}
