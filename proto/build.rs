//! Compiles every `.proto` file below this folder, without `protoc`.
//!
//! The tree is walked rather than listed, so a new file takes part as soon as it exists; a new *package* also needs a
//! module in `src/lib.rs`. Files are compiled in sorted order: the generated code depends on their text alone, never on
//! the order in which a file system lists a folder.

use std::collections::BTreeSet;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use protox::prost::Message as _;

const DESCRIPTOR_SET_FILE: &str = "ledgermq_descriptors.bin";

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);

    let mut protos = BTreeSet::new();
    for package_root in ["apache", "ledgermq"] {
        collect_protos(&root.join(package_root), &mut protos)?;
    }
    println!("cargo::rerun-if-changed=build.rs");

    let descriptors = protox::compile(&protos, [&root])?;
    fs::write(out_dir.join(DESCRIPTOR_SET_FILE), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        // A `Bytes` field is a slice of the received frame; a `Vec<u8>` would copy every message body.
        .bytes(".")
        // A map must encode to the same bytes on every replica, so its iteration order has to be fixed.
        .btree_map(".")
        .compile_fds(descriptors)?;
    Ok(())
}

/// Adds every `.proto` below `folder`. Folders are watched as well as files, so that a new file triggers a build.
fn collect_protos(folder: &Path, found: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    println!("cargo::rerun-if-changed={}", folder.display());
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect_protos(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            println!("cargo::rerun-if-changed={}", path.display());
            found.insert(path);
        }
    }
    Ok(())
}
