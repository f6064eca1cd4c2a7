//! Kubernetes' own test data, the same objects as JSON and as protobuf, where they lie beside this project.

use std::path::PathBuf;
use std::process::ExitCode;

use hawser_sandbox::schema::Schema;
use hawser_sandbox::schema::protobuf::{DecodeError, decode};
use serde_json::Value;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/k8s-api-triples")
}

fn protobuf_decodes_to_the_json_of_the_same_object() {
    let mut compared = 0;
    for path in std::fs::read_dir(folder())
        .expect("it was there")
        .filter_map(|file| Some(file.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "pb"))
    {
        let decoded = match decode(&std::fs::read(&path).expect("the file is readable")) {
            // Not every kind of the oracle is served.
            Err(DecodeError::UnknownKind { .. }) => continue,
            decoded => decoded.unwrap_or_else(|error| panic!("{}: {error}", path.display())),
        };
        let text = std::fs::read(path.with_extension("json")).expect("every .pb has its .json");
        let mut expected: Value = serde_json::from_slice(&text).expect("it is JSON");
        let api_version = expected["apiVersion"].as_str().unwrap_or_default().to_owned();
        let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
        let kind = expected["kind"].as_str().unwrap_or_default().to_owned();
        let schema = Schema::for_kind(group, version, &kind).expect("the kind was decoded");
        // The oracle is newer than the table.
        schema.prune(&mut expected);
        assert_eq!(decoded, expected, "{}", path.display());
        compared += 1;
    }
    assert!(compared > 35, "only {compared} kinds were compared");
}

fn main() -> ExitCode {
    let missing = (!folder().is_dir()).then(|| "no data of Kubernetes beside the project".to_owned());
    let claim = "protobuf_decodes_to_the_json_of_the_same_object";
    hawser_testing::unless(
        missing,
        &[(claim, protobuf_decodes_to_the_json_of_the_same_object)],
    )
}
