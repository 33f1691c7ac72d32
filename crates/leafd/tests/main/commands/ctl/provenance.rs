//! `leafctl nix verify`: a leaf's signed statements about its builds.

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::support::SECURESYSTEMSLIB;

/// Checks an envelope's signature, and prints its payload: with a library that is not this project's.
const CHECKER: &str = r"
import base64, json, sys
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

envelope = json.load(sys.stdin)
# A line of a .pub file: its last 32 bytes are the key.
public = base64.b64decode(sys.argv[1].split()[1])[-32:]
key = SSlibKey(envelope['signatures'][0]['keyid'], 'ed25519', 'ed25519', {'public': public.hex()})
checked = Envelope.from_dict(envelope)
checked.verify([key], 1)
assert checked.payload_type == 'application/vnd.in-toto+json'
print(checked.payload.decode())
";

/// Builds something, and returns its job.
async fn built(leaf: &TestLeaf, name: &str) -> anyhow::Result<Value> {
    let file = derivation(leaf, name, "echo x > $out")?;
    document(leaf, &["nix", "build", "--file", &file]).await
}

fn store_path(job: &Value) -> anyhow::Result<String> {
    let path = job["result"]["store_path"].as_str();
    path.map(str::to_owned).with_context(|| job.to_string())
}

pub(super) async fn verified() -> anyhow::Result<()> {
    let leaf = TestLeaf::start().await?;
    let job = built(&leaf, "attested").await?;
    let path = store_path(&job)?;
    let id = job["id"].as_str().context("an id")?;
    let verified = document(&leaf, &["nix", "verify", &path]).await?;
    ensure!(
        verified["job"] == id && verified["path_checked"] == true && verified["key_given"] == false,
        "{verified}"
    );
    let predicate = &verified["predicate"];
    ensure!(
        predicate["runDetails"]["builder"]["id"] == format!("urn:cim-leaf:leaf:{}", leaf.name)
            && predicate["runDetails"]["metadata"]["invocationId"] == id
            && predicate["buildDefinition"]["resolvedDependencies"][0]["uri"]
                == format!("nix:{}", job["result"]["derivation"].as_str().unwrap_or_default()),
        "{predicate}"
    );
    // The log's hash is that of its text.
    let log = document(&leaf, &["nix", "log", id]).await?;
    let log = log["text"].as_str().context("a text")?;
    let digest = Sha256::digest(log.as_bytes());
    ensure!(
        predicate["runDetails"]["byproducts"][0]["digest"]["sha256"] == HEXLOWER.encode(&digest),
        "{predicate}: {log}"
    );
    // What a flake reference meant is a dependency.
    let flake = leaf.scratch().join("attested");
    std::fs::create_dir(&flake)?;
    std::fs::write(
        flake.join("flake.nix"),
        format!(
            "{{ outputs = _: {{ x = derivation {{ name = \"{}-of-flake\"; system = \"{}-linux\"; builder = \"/bin/sh\"; \
             args = [ \"-c\" ''echo y > $out'' ]; }}; }}; }}",
            leaf.name,
            std::env::consts::ARCH
        ),
    )?;
    let job = document(&leaf, &["nix", "build", &format!("path:{}#x", flake.display())]).await?;
    let of_flake = document(&leaf, &["nix", "verify", &store_path(&job)?]).await?;
    let sources = &of_flake["predicate"]["buildDefinition"]["resolvedDependencies"];
    ensure!(
        sources[0]["uri"]
            .as_str()
            .is_some_and(|uri| uri.contains("narHash="))
            && sources[0]["digest"]["sha256"] == job["result"]["sources"][0]["nar_sha256"]
            && sources[1]["uri"]
                .as_str()
                .is_some_and(|uri| uri.starts_with("nix:/nix/store/")),
        "{of_flake}"
    );
    // By a key that a person has, and not by that of another leaf.
    let own = leaf
        .state_dir
        .join("provenance_ed25519.pub")
        .display()
        .to_string();
    let text = printed(&leaf, &["nix", "verify", "--key", &own, &path]).await?;
    ensure!(
        text.contains("by the given key SHA256:") && text.contains("has this hash"),
        "{text}"
    );
    let other = leaf.state_dir.join("other").display().to_string();
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f", &other])
        .status()
        .await?;
    ensure!(made.success(), "ssh-keygen: {made}");
    let other = format!("{other}.pub");
    let refused = ctl(&leaf, &["nix", "verify", "--key", &other, &path]).await?;
    ended(&refused, 7, "it is not signed by the key SHA256:")?;
    // What was there, or is not known, was built by nobody that the leaf knows.
    let again = built(&leaf, "attested").await?;
    ensure!(
        again["result"]["origin"] == "present" && again["attestation"].is_null(),
        "{again}"
    );
    ended(&ctl(&leaf, &["nix", "verify", &path]).await?, 0, "")?;
    let unknown = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-unknown";
    ended(
        &ctl(&leaf, &["nix", "verify", unknown]).await?,
        7,
        "has no statement about",
    )
}

pub(super) async fn by_another_program() -> anyhow::Result<()> {
    let leaf = TestLeaf::start().await?;
    let job = built(&leaf, "attested").await?;
    let path = store_path(&job)?;
    let envelope = printed(&leaf, &["nix", "verify", "--print", &path]).await?;
    let key = std::fs::read_to_string(leaf.state_dir.join("provenance_ed25519.pub"))?;
    let output = check(&envelope, &key).await?;
    ensure!(output.status.success(), "{}", text(&output.stderr));
    let statement: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(
        statement["_type"] == "https://in-toto.io/Statement/v1"
            && statement["predicateType"] == "https://slsa.dev/provenance/v1"
            && statement["subject"][0]["name"] == path.as_str(),
        "{statement}"
    );
    // Nix's own hash of the path is the one that was signed.
    let hashed = Command::new("nix-hash")
        .args(["--type", "sha256", &path])
        .output()
        .await?;
    ensure!(
        statement["subject"][0]["digest"]["sha256"] == text(&hashed.stdout).trim(),
        "{statement}"
    );
    // The checker is one: it refuses an envelope that was changed.
    let changed = envelope.replacen("\"payload\":\"ey", "\"payload\":\"eX", 1);
    ensure!(changed != envelope, "{envelope}");
    ensure!(
        !check(&changed, &key).await?.status.success(),
        "it accepts what was changed"
    );
    Ok(())
}

/// Runs the checker.
async fn check(envelope: &str, key: &str) -> anyhow::Result<Output> {
    let library = std::env::var_os(SECURESYSTEMSLIB).context("the test is skipped without it")?;
    let mut checker = Command::new("python3")
        .args(["-c", CHECKER, key])
        .env("PYTHONPATH", library)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = checker.stdin.take().context("a pipe")?;
    tokio::io::AsyncWriteExt::write_all(&mut stdin, envelope.as_bytes()).await?;
    drop(stdin);
    Ok(checker.wait_with_output().await?)
}
