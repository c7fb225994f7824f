//! Compiles the .proto files with protox: no protoc needed.

const FILES: [&str; 6] = ["types", "agent", "framework", "operator", "jobs", "registry"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = FILES.map(|name| format!("smalti/v1/{name}.proto"));
    let descriptors = protox::compile(files, ["proto"])?;
    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    tonic_prost_build::configure().compile_fds_with_config(descriptors, config)?;
    Ok(())
}
