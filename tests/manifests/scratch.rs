//! Files that an Envoy of these tests reads, in a folder that ends with them.

use serde_json::{Value, json};
use std::path::PathBuf;
use testkit::process::Scratch;

/// The extension configs of a control plane, as files.
pub(crate) struct Extensions(Scratch);

impl Extensions {
    pub(crate) fn new() -> Self {
        Self(Scratch::new())
    }

    /// Where the extension of this name is found, as Envoy's `config_source`.
    pub(crate) fn serve(&self, name: &str, typed_config: &Value) -> Value {
        let path: PathBuf = self.0.file(&format!("{name}.json"));
        let resource = json!({
            "@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
            "name": name,
            "typed_config": typed_config,
        });
        let written = path.with_extension("new");
        std::fs::write(&written, json!({ "resources": [resource] }).to_string()).unwrap();
        // Envoy reads a file again when another takes its place, never half of one.
        std::fs::rename(written, &path).unwrap();
        json!({ "path_config_source": { "path": path }, "resource_api_version": "V3" })
    }
}
