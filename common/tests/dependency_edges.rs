//! The map in ARCHITECTURE.md, enforced: which crate may know which, who may name openraft, and
//! who may open a file of the log.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace above this crate").to_path_buf()
}

/// The allowed edges between our own crates, dev-dependencies left out.
fn allowed() -> BTreeMap<&'static str, &'static [&'static str]> {
    BTreeMap::from([
        ("ledgermq-common", &[] as &[&str]),
        ("ledgermq-proto", &[]),
        ("ledgermq-filter", &[]),
        ("ledgermq-raft-store", &["ledgermq-common", "ledgermq-proto"]),
        ("ledgermq-listener", &["ledgermq-common"]),
        ("ledgermq-edge", &["ledgermq-common", "ledgermq-proto", "ledgermq-filter", "ledgermq-listener"]),
        (
            "ledgermq-broker",
            &[
                "ledgermq-common",
                "ledgermq-proto",
                "ledgermq-filter",
                "ledgermq-raft-store",
                "ledgermq-listener",
                "ledgermq-edge",
            ],
        ),
        ("ledgermq-nameserver", &["ledgermq-common", "ledgermq-proto", "ledgermq-listener", "ledgermq-edge"]),
        ("ledgermq-client", &["ledgermq-common", "ledgermq-proto"]),
        ("ledgermq-checkers", &[]),
        ("ledgermq-faultfs", &[]),
        ("ledgermq-faultnet", &[]),
        ("ledgermq-clockskew", &[]),
        ("ledgermq-bench", &["ledgermq-common", "ledgermq-client", "ledgermq-proto"]),
        (
            "ledgermq",
            &[
                "ledgermq-common",
                "ledgermq-proto",
                "ledgermq-client",
                "ledgermq-checkers",
                "ledgermq-faultfs",
                "ledgermq-faultnet",
                "ledgermq-raft-store",
                "ledgermq-broker",
                "ledgermq-nameserver",
                "ledgermq-bench",
            ],
        ),
        ("ledgermq-sim", &["ledgermq-common", "ledgermq-proto", "ledgermq-raft-store", "ledgermq-broker"]),
        (
            "ledgermq-fuzz",
            &[
                "ledgermq-common",
                "ledgermq-proto",
                "ledgermq-filter",
                "ledgermq-raft-store",
                "ledgermq-edge",
                "ledgermq-broker",
                "ledgermq-nameserver",
            ],
        ),
        ("ledgermq-jepsen-tests", &["ledgermq-common", "ledgermq-client", "ledgermq-checkers", "ledgermq"]),
    ])
}

fn manifests() -> BTreeMap<String, toml::Table> {
    let root = workspace_root();
    let workspace: toml::Table =
        std::fs::read_to_string(root.join("Cargo.toml")).expect("workspace manifest").parse().expect("TOML");
    let members = workspace["workspace"]["members"].as_array().expect("members");
    members
        .iter()
        .map(|member| {
            let path = root.join(member.as_str().expect("a path")).join("Cargo.toml");
            let manifest: toml::Table =
                std::fs::read_to_string(&path).expect("member manifest").parse().expect("TOML");
            (manifest["package"]["name"].as_str().expect("a name").to_owned(), manifest)
        })
        .collect()
}

fn dependencies(manifest: &toml::Table) -> BTreeSet<String> {
    manifest
        .get("dependencies")
        .and_then(|d| d.as_table())
        .map(|d| d.keys().cloned().collect())
        .unwrap_or_default()
}

#[test]
fn crates_depend_only_along_the_map() {
    let allowed = allowed();
    let mut offences = Vec::new();
    for (name, manifest) in manifests() {
        let Some(may) = allowed.get(name.as_str()) else {
            offences.push(format!("{name} is not on the map"));
            continue;
        };
        for dependency in dependencies(&manifest) {
            let ours = dependency == "ledgermq" || dependency.starts_with("ledgermq-");
            if ours && !may.contains(&dependency.as_str()) {
                offences.push(format!("{name} -> {dependency}"));
            }
            if dependency.starts_with("openraft") && name != "ledgermq-raft-store" {
                offences.push(format!("{name} -> {dependency}: only raft-store may name openraft"));
            }
        }
    }
    assert!(offences.is_empty(), "edges that ARCHITECTURE.md does not have: {offences:#?}");
}

/// Broken builds are for the simulation: no other crate may ask for them, and none has them by default.
#[test]
fn only_the_simulation_asks_for_broken_builds() {
    for (name, manifest) in manifests() {
        let features = manifest.get("features").and_then(toml::Value::as_table);
        let default = features.and_then(|features| features.get("default")).and_then(toml::Value::as_array);
        let names_it = |list: Option<&Vec<toml::Value>>| {
            list.is_some_and(|list| {
                list.iter().any(|text| text.as_str().is_some_and(|text| text.contains("defects")))
            })
        };
        assert!(!names_it(default), "{name} is broken by default");
        for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(table) = manifest.get(table).and_then(toml::Value::as_table) else { continue };
            for (dependency, how) in table {
                let asks = names_it(how.get("features").and_then(toml::Value::as_array));
                assert!(!asks || name == "ledgermq-sim", "{name} asks for broken promises of {dependency}");
            }
        }
    }
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The code of a file without its test module, which may do what the product may not.
fn product_code(path: &Path) -> String {
    if path.file_name().is_some_and(|name| name == "tests.rs") {
        return String::new();
    }
    let text = std::fs::read_to_string(path).expect("a readable source file");
    text.split("#[cfg(test)]").next().unwrap_or_default().to_owned()
}

#[test]
fn only_the_io_module_opens_files_of_the_log() {
    let source = workspace_root().join("raft-store/src");
    let mut files = Vec::new();
    rust_files(&source, &mut files);
    assert!(!files.is_empty());
    let offenders: Vec<_> = files
        .iter()
        .filter(|path| !path.starts_with(source.join("io")))
        .filter(|path| {
            let code = product_code(path);
            ["std::fs::", "File::open", "OpenOptions", "tokio::fs"].iter().any(|call| code.contains(call))
        })
        .collect();
    assert!(offenders.is_empty(), "these files reach around the disk boundary: {offenders:#?}");
}

#[test]
fn only_the_raft_and_group_modules_name_openraft() {
    let source = workspace_root().join("raft-store/src");
    let mut files = Vec::new();
    rust_files(&source, &mut files);
    let offenders: Vec<_> = files
        .iter()
        .filter(|path| {
            !["raft", "group", "group.rs"].iter().any(|inside| path.starts_with(source.join(inside)))
        })
        .filter(|path| {
            product_code(path)
                .lines()
                .any(|line| line.contains("openraft::") && !line.trim_start().starts_with("//"))
        })
        .collect();
    assert!(offenders.is_empty(), "openraft belongs into raft-store's `raft` and `group`: {offenders:#?}");
}

#[test]
fn the_openraft_pins_are_exact() {
    let workspace: toml::Table = std::fs::read_to_string(workspace_root().join("Cargo.toml"))
        .expect("manifest")
        .parse()
        .expect("TOML");
    let dependencies = workspace["workspace"]["dependencies"].as_table().expect("a table");
    for name in ["openraft", "openraft-rt", "openraft-rt-tokio", "openraft-macros"] {
        let pin = dependencies.get(name).unwrap_or_else(|| panic!("{name} is not pinned"));
        let version = pin.as_str().or_else(|| pin["version"].as_str()).expect("a version");
        assert!(version.starts_with('='), "{name} = {version}: a later alpha could resolve");
    }
}
