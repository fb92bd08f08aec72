//! Compiles the eBPF programs (bpf/farwrite.bpf.c) with clang for the feature `ebpf`. They adapt themselves to the running
//! kernel when they are loaded, so nothing here depends on the machine that builds.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_EBPF").is_none() {
        return;
    }
    let out = std::env::var("OUT_DIR").expect("Cargo sets it");
    let headers =
        std::env::var("DEP_BPF_INCLUDE").expect("libbpf-sys says where libbpf's headers are");
    let top = Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("Cargo sets it")).join("../..");
    for file in [
        "bpf/farwrite.bpf.c",
        "bpf/kernel.h",
        "bpf/message.h",
        "bpf/shared.h",
        "bpf/state.h",
        "bpf/walk.h",
        "uapi/farwrite.h",
    ] {
        println!("cargo:rerun-if-changed={}", top.join(file).display());
    }
    println!("cargo:rerun-if-env-changed=CLANG");
    let clang = std::env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let status = Command::new(&clang)
        .args([
            "-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Werror",
        ])
        // No path of the machine that builds goes into the program.
        .arg(format!("-fdebug-prefix-map={}=.", top.display()))
        .arg(format!("-I{headers}"))
        .arg("-c")
        .arg(top.join("bpf/farwrite.bpf.c"))
        .arg("-o")
        .arg(Path::new(&out).join("farwrite.bpf.o"))
        .status();
    match status {
        Ok(s) if s.success() => {}
        Ok(s) => panic!("{clang} could not compile bpf/farwrite.bpf.c: {s}"),
        Err(e) => panic!(
            "{clang} is needed to compile the eBPF programs: {e}. Install it (Debian: apt-get install clang; \
             scripts/setup build does), or build without them: --no-default-features"
        ),
    }
}
